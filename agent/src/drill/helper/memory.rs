//! Using up memory.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use k8s_openapi::jiff::Timestamp;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::left;
use crate::runtime::cgroup::read_memory;

const CHUNK: u64 = 1 << 20;
/// Between looks at how much is in use.
const LOOK: Duration = Duration::from_millis(50);

/// Where memory is taken from, and who knows how much is in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum MemoryGroup {
    /// The directory of a control group with the files of the memory controller.
    Group(PathBuf),
    /// All of the host.
    Host,
}

impl MemoryGroup {
    /// Bytes in use that can't be had for the asking.
    pub(crate) fn in_use(&self) -> io::Result<u64> {
        match self {
            Self::Group(directory) => read_memory(directory),
            Self::Host => {
                let (total, available) = host_memory()?;
                Ok(total.saturating_sub(available))
            }
        }
    }
}

/// The host's memory and how much of it is available, in bytes.
pub(crate) fn host_memory() -> io::Result<(u64, u64)> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
        let kib: Option<u64> = number.and_then(|number| number.parse().ok());
        kib.map(|kib| kib << 10)
            .ok_or_else(|| io::Error::other(format!("/proc/meminfo has no {name}")))
    };
    Ok((field("MemTotal")?, field("MemAvailable")?))
}

/// Memory that is really there: written to.
#[derive(Default)]
struct Hoard {
    chunks: Vec<Vec<u8>>,
}

impl Hoard {
    fn grow(&mut self) {
        let mut chunk = vec![0_u8; CHUNK as usize];
        // The kernel gives a page when it is first written to.
        for byte in chunk.iter_mut().step_by(4096) {
            *byte = 1;
        }
        self.chunks.push(std::hint::black_box(chunk));
    }

    #[cfg(test)]
    fn bytes(&self) -> u64 {
        self.chunks.len() as u64 * CHUNK
    }
}

/// Takes memory until the kernel kills somebody for it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Exhaust {
    /// Who is to be killed: when it is gone, so is the helper.
    pub(crate) victim: i32,
    /// When nobody was killed for so many bytes, nobody will be.
    pub(crate) at_most: u64,
}

impl Exhaust {
    pub(super) fn run(&self, until: Timestamp) -> io::Result<()> {
        // Only with a privilege; it is not in the way otherwise either, see below.
        let _ = fs::write("/proc/self/oom_score_adj", "-1000");
        let victim = format!("/proc/{}", self.victim);
        // The kernel kills the one that has most mapped, and score added to that. A file in memory that nobody maps
        // counts for the group, and against no process.
        let mut file = File::from(memfd_create(c"skiff-drill", MFdFlags::MFD_CLOEXEC)?);
        let chunk = vec![0_u8; CHUNK as usize];
        let mut taken = 0;
        while Path::new(&victim).exists() && !left(until).is_zero() {
            if taken >= self.at_most {
                let message = "the kernel killed nobody for want of memory";
                return Err(io::Error::other(message));
            }
            match file.write(&chunk) {
                Ok(written) => taken += written as u64,
                // Somebody is about to end.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        Ok(())
    }
}

/// Keeps a certain amount of memory in use: takes what is missing, gives back what is too much.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Keep {
    pub(crate) memory: MemoryGroup,
    /// Bytes that are to be in use, by all together.
    pub(crate) level: u64,
}

impl Keep {
    pub(super) fn run(&self, until: Timestamp) -> io::Result<()> {
        // If it comes to the worst, this is the one to be killed. Raising the score needs no privilege.
        fs::write("/proc/self/oom_score_adj", "1000")?;
        let mut hoard = Hoard::default();
        while !left(until).is_zero() {
            self.adjust(&mut hoard)?;
            std::thread::sleep(left(until).min(LOOK));
        }
        Ok(())
    }

    fn adjust(&self, hoard: &mut Hoard) -> io::Result<()> {
        let in_use = self.memory.in_use()?;
        let missing = self.level.saturating_sub(in_use) / CHUNK;
        // The kernel counts in batches: half of what is missing is looked at before the other half is taken.
        for _ in 0..missing.div_ceil(2) {
            hoard.grow();
        }
        let excess = in_use.saturating_sub(self.level).div_ceil(CHUNK) as usize;
        let kept = hoard.chunks.len().saturating_sub(excess);
        hoard.chunks.truncate(kept);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_has_memory() {
        let (total, available) = host_memory().unwrap();
        assert!(total > available && available > 0);
        assert!(MemoryGroup::Host.in_use().unwrap() < total);
    }

    #[test]
    fn a_level_is_reached_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let set = |used: u64, cache: u64| {
            fs::write(dir.path().join("memory.current"), used.to_string()).unwrap();
            let stat = format!("anon 1\ninactive_file {cache}\n");
            fs::write(dir.path().join("memory.stat"), stat).unwrap();
        };
        let keep = Keep {
            memory: MemoryGroup::Group(dir.path().to_owned()),
            level: 40 << 20,
        };
        let mut hoard = Hoard::default();
        // Pages of files that nobody uses are no use.
        set(30 << 20, 10 << 20);
        keep.adjust(&mut hoard).unwrap();
        assert_eq!(hoard.bytes(), 10 << 20);
        set(40 << 20, 0);
        keep.adjust(&mut hoard).unwrap();
        assert_eq!(hoard.bytes(), 10 << 20);
        // The container wants more: it gets what the helper held.
        set(46 << 20, 0);
        keep.adjust(&mut hoard).unwrap();
        assert_eq!(hoard.bytes(), 4 << 20);
        set(90 << 20, 0);
        keep.adjust(&mut hoard).unwrap();
        assert_eq!(hoard.bytes(), 0);
        fs::remove_file(dir.path().join("memory.current")).unwrap();
        assert!(keep.adjust(&mut hoard).is_err());
    }
}
