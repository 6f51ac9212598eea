//! The files and directories of control groups.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{fs, io};

use crate::runtime::error::RuntimeError;
use crate::runtime::types::CgroupResources;

/// Microseconds; Kubernetes' default period.
const CPU_PERIOD: u64 = 100_000;

/// Writes one setting.
pub(super) fn write(directory: &Path, file: &str, value: &str) -> Result<(), RuntimeError> {
    let path = directory.join(file);
    fs::write(&path, value).map_err(|error| {
        RuntimeError::Cgroup(format!("writing {value:?} to {}: {error}", path.display()))
    })
}

/// The settings that carry limits out: controller, file, value.
pub(super) fn settings(
    limits: &CgroupResources,
    v2: bool,
) -> Vec<(&'static str, &'static str, String)> {
    let mut settings = Vec::new();
    if let Some(shares) = limits.cpu_shares {
        settings.push(match v2 {
            true => ("cpu", "cpu.weight", weight(shares).to_string()),
            false => ("cpu", "cpu.shares", shares.to_string()),
        });
    }
    if let Some(quota) = limits.cpu_quota {
        if v2 {
            let quota = match u64::try_from(quota) {
                Ok(quota) => quota.to_string(),
                Err(_) => "max".to_owned(),
            };
            settings.push(("cpu", "cpu.max", format!("{quota} {CPU_PERIOD}")));
        } else {
            settings.push(("cpu", "cpu.cfs_period_us", CPU_PERIOD.to_string()));
            settings.push(("cpu", "cpu.cfs_quota_us", quota.to_string()));
        }
    }
    if let Some(bytes) = limits.memory_limit_bytes {
        let file = if v2 {
            "memory.max"
        } else {
            "memory.limit_in_bytes"
        };
        settings.push(("memory", file, bytes.to_string()));
        // A container gets no swap (the kubelet's `NoSwap`).
        settings.push(match v2 {
            true => ("memory", "memory.swap.max", "0".to_owned()),
            false => ("memory", "memory.memsw.limit_in_bytes", bytes.to_string()),
        });
    }
    if let Some(pids) = limits.pids_limit {
        let pids = if pids > 0 {
            pids.to_string()
        } else {
            "max".to_owned()
        };
        settings.push(("pids", "pids.max", pids));
    }
    settings
}

/// cgroup v2's weight (1 to 10000) for v1's shares (2 to 262144), as Kubernetes converts it
/// (KEP-2254).
fn weight(shares: u64) -> u64 {
    let shares = shares.clamp(2, 262_144);
    1 + ((shares - 2) * 9999) / 262_142
}

/// Makes a v1 group in one hierarchy.
pub(super) fn make_v1(mount: &Path, group: &str) -> Result<(), RuntimeError> {
    path_down(mount, group)
        .iter()
        .try_for_each(|path| make(path))
}

/// Makes a v2 group and hands the controllers down to it. No process may be in a group that
/// hands controllers down, so only the groups at the ends hold processes.
pub(super) fn make_v2(root: &Path, group: &str) -> Result<(), RuntimeError> {
    let mut parent = root.to_path_buf();
    for directory in path_down(root, group) {
        hand_down(&parent)?;
        make(&directory)?;
        parent = directory;
    }
    Ok(())
}

/// Enables the controllers that Kubernetes needs for the children of a group.
fn hand_down(directory: &Path) -> Result<(), RuntimeError> {
    let read = |file: &str| {
        let path = directory.join(file);
        fs::read_to_string(&path).map_err(RuntimeError::io("reading", path))
    };
    let enabled = read("cgroup.subtree_control")?;
    let enabled: BTreeSet<_> = enabled.split_whitespace().collect();
    let available = read("cgroup.controllers")?;
    for controller in ["cpu", "memory", "pids"] {
        let present = available.split_whitespace().any(|name| name == controller);
        if present && !enabled.contains(controller) {
            let path = directory.join("cgroup.subtree_control");
            fs::write(&path, format!("+{controller}")).map_err(|error| {
                RuntimeError::Cgroup(format!(
                    "the {controller} controller can't be enabled in {}: {error} (no process may \
                     be in that group itself; is it delegated to this host?)",
                    path.display()
                ))
            })?;
        }
    }
    Ok(())
}

/// The directories from below a mount point down to a group.
fn path_down(mount: &Path, group: &str) -> Vec<PathBuf> {
    let mut path = mount.to_path_buf();
    group
        .split('/')
        .map(|part| {
            path.push(part);
            path.clone()
        })
        .collect()
}

/// Makes a directory that may exist.
fn make(directory: &Path) -> Result<(), RuntimeError> {
    match fs::create_dir(directory) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(RuntimeError::Cgroup(format!(
            "making {}: {error}",
            directory.display()
        ))),
    }
}

/// Adds the processes of a group and of those below it.
pub(super) fn collect_processes(directory: &Path, pids: &mut BTreeSet<i32>) {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in children(directory) {
        collect_processes(&child, pids);
    }
}

/// Removes a group and those below it.
pub(super) fn remove_tree(directory: &Path) -> io::Result<()> {
    for child in children(directory) {
        remove_tree(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn children(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_files() {
        let limits = CgroupResources {
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            memory_limit_bytes: Some(1 << 20),
            pids_limit: Some(-1),
        };
        let files = |v2| {
            settings(&limits, v2)
                .into_iter()
                .map(|(_, file, value)| format!("{file}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            files(false),
            [
                "cpu.shares=1024",
                "cpu.cfs_period_us=100000",
                "cpu.cfs_quota_us=50000",
                "memory.limit_in_bytes=1048576",
                "memory.memsw.limit_in_bytes=1048576",
                "pids.max=max",
            ]
        );
        assert_eq!(
            files(true),
            [
                "cpu.weight=39",
                "cpu.max=50000 100000",
                "memory.max=1048576",
                "memory.swap.max=0",
                "pids.max=max"
            ]
        );
    }
}
