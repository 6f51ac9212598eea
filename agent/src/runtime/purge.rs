//! Removing what the runtime made on the host: one sandbox's, or everything of a node.
//!
//! Nothing here needs a living shim or a complete start. Processes are found through the
//! cgroups, so what was begun and not recorded is found too.

use std::io;
use std::path::Path;

use super::cgroup::Cgroups;
use super::error::RuntimeError;
use super::types::QosClass;
use super::{Runtime, blocking};
use crate::identity::Identity;

/// Kills every shim and container of a node and removes its cgroups, mounts and run directory,
/// also after a crash or a start that was cut short. The data directory is left alone.
///
/// # Errors
/// When a process can't be killed or something can't be removed; the rest is removed first.
pub async fn purge(identity: Identity) -> Result<(), RuntimeError> {
    blocking(move || purge_blocking(&identity)).await
}

/// As [`purge`], on this thread.
///
/// # Errors
/// As [`purge`].
pub(crate) fn purge_blocking(identity: &Identity) -> Result<(), RuntimeError> {
    let cgroups = Cgroups::detect(identity.cgroup_root())?;
    let group = cgroups.root().to_owned();
    let killed = cgroups
        .destroy(&group)
        .map_err(RuntimeError::io("emptying the cgroup", &group));
    let run_dir = identity.run_dir();
    let cleared = clear(&run_dir).map_err(RuntimeError::io("removing", &run_dir));
    // `/run/skiff` stays: another node of this host may be about to make its own directory in it.
    killed.and(cleared)
}

impl Runtime {
    /// Kills what is left of a sandbox and removes its cgroup, mounts and run directory.
    /// Blocking; no error when there is nothing.
    pub(super) fn demolish(&self, uid: &str, qos: QosClass) -> Result<(), RuntimeError> {
        let run_dir = self.run_dir(uid);
        if let Some(pid) = shim_pid(&run_dir) {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let group = self.cgroups().pod(qos, uid);
        self.cgroups()
            .destroy(&group)
            .map_err(RuntimeError::io("emptying the cgroup", &group))?;
        clear(&run_dir).map_err(RuntimeError::io("removing", &run_dir))
    }
}

/// The process that listens on a sandbox's socket, told by the kernel.
fn shim_pid(run_dir: &Path) -> Option<nix::unistd::Pid> {
    let socket = skiff_shim::wire::connect_to(&run_dir.join(skiff_shim::protocol::SOCKET_FILE));
    let peer = nix::sys::socket::sockopt::PeerCredentials;
    let credentials = nix::sys::socket::getsockopt(&socket.ok()?, peer).ok()?;
    Some(nix::unistd::Pid::from_raw(credentials.pid()))
}

/// Unmounts everything below a directory and removes it.
fn clear(directory: &Path) -> io::Result<()> {
    for point in mounts_below(directory)? {
        let flags = nix::mount::MntFlags::MNT_DETACH;
        match nix::mount::umount2(&point, flags) {
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Mount points at or below a directory, the last mounted first.
fn mounts_below(directory: &Path) -> io::Result<Vec<std::path::PathBuf>> {
    let text = std::fs::read_to_string("/proc/self/mountinfo")?;
    let points = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| std::path::PathBuf::from(unescape(field)))
        .filter(|point| point.starts_with(directory));
    let mut points: Vec<_> = points.collect();
    points.reverse();
    Ok(points)
}

/// Undoes the kernel's octal escapes of white space in mount tables.
fn unescape(field: &str) -> String {
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}
