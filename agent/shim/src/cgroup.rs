//! Joining, watching and removing a container's cgroups.
//!
//! The agent makes and limits them and gives one directory for each hierarchy. Who joins one by
//! itself is spared the RCU grace period (8 ms) that moving another process costs: on v1 a task
//! writes `0` into `tasks`, on v2 it is cloned into the group.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Makes the calling process a member; for v1 hierarchies, and for v2 where being cloned into
/// the group was not possible.
pub(crate) fn join(directories: &[PathBuf]) -> io::Result<()> {
    for directory in directories {
        let tasks = directory.join("tasks");
        if tasks.exists() {
            fs::write(tasks, "0")?;
        } else {
            fs::write(directory.join("cgroup.procs"), "0")?;
        }
    }
    Ok(())
}

/// The directory of the unified hierarchy, if that is what the group is in.
pub(crate) fn unified(directories: &[PathBuf]) -> Option<&Path> {
    match directories {
        [directory] if !directory.join("tasks").exists() => Some(directory),
        _ => None,
    }
}

/// How many processes of the group the kernel has killed for want of memory.
pub(crate) fn oom_kills(directories: &[PathBuf]) -> u64 {
    let count = |file: PathBuf| {
        let text = fs::read_to_string(file).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line?.trim().parse::<u64>().ok()
    };
    let files = ["memory.oom_control", "memory.events"];
    directories
        .iter()
        .flat_map(|directory| files.map(|file| directory.join(file)))
        .find_map(count)
        .unwrap_or(0)
}

/// Sends SIGKILL to every member.
pub(crate) fn kill(directories: &[PathBuf]) {
    let Some(directory) = directories.first() else {
        return;
    };
    let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse().ok()) {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

/// Removes the group with those that the container made in it; whether it is gone. It is not
/// while processes are dying in it.
pub(crate) fn remove(directories: &[PathBuf]) -> bool {
    let mut gone = true;
    for directory in directories {
        // Each is tried, whatever became of the others.
        gone &= remove_tree(directory);
    }
    gone
}

fn remove_tree(directory: &Path) -> bool {
    // The kernel's files in a group are not entries that have to be removed: try that first.
    match fs::remove_dir(directory) {
        Ok(()) => return true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
        Err(_) => {}
    }
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) && !remove_tree(&entry.path()) {
            return false;
        }
    }
    fs::remove_dir(directory).is_ok()
}
