//! Filling the file system that a node keeps its pods on.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};

use crate::drill::fault::{Fault, FaultError, Order};
use crate::drill::helper::blocking;
use crate::drill::site::{Scene, Site};

pub(crate) struct FillDisk {
    /// Bytes that are left free.
    pub(crate) leave: i64,
    pub(crate) shared_disk: bool,
}

/// The file that takes the room has the task's name.
#[derive(Serialize, Deserialize)]
pub(crate) struct Filled {}

#[async_trait]
impl Fault for FillDisk {
    type Undo = Filled;

    async fn prepare(&self, scene: &Scene, _: &Order) -> Result<Filled, FaultError> {
        if self.leave < 0 {
            let message = format!("{} bytes can't be left free", self.leave);
            return Err(FaultError::Refused(message));
        }
        let (identity, shared) = (scene.site.identity.clone(), self.shared_disk);
        blocking(move || {
            if shared {
                return Ok(Filled {});
            }
            let read = fs::read_to_string("/proc/self/mountinfo");
            let mounts = read.map_err(FaultError::io("reading", "/proc/self/mountinfo"))?;
            match others_on_the_disk(&mounts, identity.data_dir(), &identity.agent_root()) {
                None => Ok(Filled {}),
                Some(other) => Err(FaultError::Refused(format!(
                    "the file system of {} holds more than this node's data ({}): give the data directory one of its own, or set parameters.sharedDisk",
                    identity.data_dir().display(),
                    other.display()
                ))),
            }
        })
        .await
    }

    async fn inject(
        &self,
        scene: &Scene,
        order: &Order,
        _: &Filled,
    ) -> Result<Timestamp, FaultError> {
        let path = filler(&scene.site, order);
        let leave = self.leave.unsigned_abs();
        let now = Timestamp::now();
        blocking(move || fill(&path, leave)).await?;
        Ok(now)
    }

    async fn undo(&self, site: &Site, order: &Order, _: &Filled) -> Result<(), FaultError> {
        let path = filler(site, order);
        blocking(move || match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(FaultError::io("removing", path)(error))
            }
            _ => Ok(()),
        })
        .await
    }
}

fn filler(site: &Site, order: &Order) -> PathBuf {
    site.file(&order.uid, "fill")
}

/// Gives a file so much room that no more than `leave` bytes are free.
fn fill(path: &Path, leave: u64) -> Result<(), FaultError> {
    let file = File::options()
        .create(true)
        .append(true)
        .open(path)
        .map_err(FaultError::io("making", path))?;
    let meta = file.metadata().map_err(FaultError::io("reading", path))?;
    let mut size = meta.len();
    let (mut free, block) = room(path)?;
    let mut step = free.saturating_sub(leave);
    // With nothing to be left, also that is taken which is kept back for root.
    while step >= block && free > leave {
        let begin = i64::try_from(size).unwrap_or(i64::MAX);
        let length = i64::try_from(step).unwrap_or(i64::MAX);
        match fallocate(&file, FallocateFlags::empty(), begin, length) {
            Ok(()) => {
                size += step;
                (free, _) = room(path)?;
                step = step.min(free.saturating_sub(leave));
            }
            // Room for what the file system itself needs is counted as free.
            Err(Errno::ENOSPC) => step /= 2,
            Err(Errno::EINTR) => {}
            Err(Errno::EFBIG) if step > block => step /= 2,
            Err(errno) => return Err(FaultError::io("making room in", path)(errno.into())),
        }
    }
    Ok(())
}

/// Bytes that are free, also to root alone, and the size of a block.
fn room(path: &Path) -> Result<(u64, u64), FaultError> {
    let stat = statvfs(path).map_err(|errno| FaultError::io("reading", path)(errno.into()))?;
    let block = stat.fragment_size().max(1);
    Ok((stat.blocks_free() * block, block))
}

/// Where else the file system of `root` is seen than within `data`; `None` if it is this node's alone.
fn others_on_the_disk(mountinfo: &str, data: &Path, root: &Path) -> Option<PathBuf> {
    // Device, then where each of its mounts is and which part of it that is.
    let mut devices: HashMap<&str, Vec<(PathBuf, &str)>> = HashMap::new();
    let mut own: Option<(&str, PathBuf)> = None;
    for line in mountinfo.lines() {
        let mut fields = line.split(' ').skip(2);
        let (Some(device), Some(part), Some(point)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let point = PathBuf::from(point.replace("\\040", " "));
        // The last of the longest is what is seen there.
        if root.starts_with(&point)
            && own
                .as_ref()
                .is_none_or(|(_, longest)| point.starts_with(longest))
        {
            own = Some((device, point.clone()));
        }
        devices.entry(device).or_default().push((point, part));
    }
    let (device, point) = own?;
    let mounts = devices.remove(device)?;
    let mut foreign = mounts
        .into_iter()
        .filter(|(point, part)| !point.starts_with(data) || *part != "/");
    if !point.starts_with(data) {
        return Some(point);
    }
    // A part of it that is mounted may be all that is seen, but is not all there is. Containers
    // have parts of volumes mounted in namespaces of their own only.
    foreign.next().map(|(point, _)| point)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn others(mounts: &[&str]) -> Option<PathBuf> {
        let text = mounts.join("\n");
        others_on_the_disk(
            &text,
            Path::new("/var/lib/skiff"),
            Path::new("/var/lib/skiff/agent"),
        )
    }

    const ROOT: &str = "1 0 8:1 / / rw - ext4 /dev/sda1 rw";

    #[test]
    fn a_disk_of_its_own_is_told_from_one_that_holds_other_things() {
        assert_eq!(others(&[ROOT]), Some("/".into()));
        let own = "2 1 8:2 / /var/lib/skiff rw shared:1 - ext4 /dev/sdb rw";
        assert_eq!(others(&[ROOT, own]), None);
        let deeper = "2 1 8:2 / /var/lib/skiff/agent rw - tmpfs tmpfs rw";
        assert_eq!(others(&[ROOT, deeper]), None);
        let above = "2 1 8:2 / /var/lib rw - ext4 /dev/sdb rw";
        assert_eq!(others(&[ROOT, above]), Some("/var/lib".into()));
        // A directory of the root disk, bound there.
        let bound = "2 1 8:1 /srv/skiff /var/lib/skiff rw - ext4 /dev/sda1 rw";
        assert_eq!(others(&[ROOT, bound]), Some("/".into()));
        let part = "2 1 8:2 /sub /var/lib/skiff rw - btrfs /dev/sdb rw";
        assert_eq!(others(&[ROOT, part]), Some("/var/lib/skiff".into()));
        let elsewhere = "3 1 8:2 / /mnt rw - ext4 /dev/sdb rw";
        assert_eq!(others(&[ROOT, own, elsewhere]), Some("/mnt".into()));
        // A name that only begins like it.
        let similar = "2 1 8:2 / /var/lib/skiff-old rw - ext4 /dev/sdb rw";
        assert_eq!(others(&[ROOT, similar]), Some("/".into()));
    }

    #[test]
    fn a_disk_is_filled_up_to_what_is_to_be_left() {
        let dir = tempfile::tempdir().unwrap();
        let options = Some("size=16m");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, options).unwrap();
        let file = dir.path().join("x.fill");
        let filled = fill(&file, 4 << 20).map(|()| room(dir.path()).unwrap().0);
        let again = fill(&file, 4 << 20).map(|()| room(dir.path()).unwrap().0);
        let full = fill(&file, 0).map(|()| room(dir.path()).unwrap().0);
        nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
        assert_eq!(filled.unwrap(), 4 << 20);
        assert_eq!(again.unwrap(), 4 << 20);
        assert_eq!(full.unwrap(), 0);
    }
}
