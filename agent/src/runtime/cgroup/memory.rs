//! Looking at, and changing, how much memory a group may use.

use std::path::Path;
use std::{fs, io};

use super::stats::V1_UNLIMITED;
use super::{Cgroups, Layout, files};
use crate::runtime::error::RuntimeError;

/// Bytes in use by a group and those below it, without pages of files that are given back when somebody needs them.
/// `directory` is the group's in the memory controller's hierarchy.
///
/// # Errors
/// When the group is gone.
pub(crate) fn read_memory(directory: &Path) -> io::Result<u64> {
    let (current, idle) = match directory.join("memory.current").exists() {
        true => ("memory.current", "inactive_file "),
        false => ("memory.usage_in_bytes", "total_inactive_file "),
    };
    let current = fs::read_to_string(directory.join(current))?;
    let current: u64 = current.trim().parse().map_err(io::Error::other)?;
    let stat = fs::read_to_string(directory.join("memory.stat"))?;
    let idle = stat.lines().find_map(|line| line.strip_prefix(idle));
    let idle: u64 = idle
        .and_then(|bytes| bytes.trim().parse().ok())
        .unwrap_or(0);
    Ok(current.saturating_sub(idle))
}

impl Cgroups {
    /// The least of the limits of a group and of those above it, in bytes; `None`: there is none.
    pub fn memory_limit(&self, group: &str) -> Option<u64> {
        let mut least = None;
        let mut path = Some(Path::new(group)).filter(|path| !path.as_os_str().is_empty());
        while let Some(level) = path {
            let own = self.own_memory_limit(&level.to_string_lossy());
            least = [least, own].into_iter().flatten().min();
            path = level
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
        }
        least
    }

    /// The limit of a group itself.
    pub fn own_memory_limit(&self, group: &str) -> Option<u64> {
        let directory = self.directory(group, "memory")?;
        let (file, none) = match self.is_v2() {
            true => ("memory.max", u64::MAX),
            false => ("memory.limit_in_bytes", V1_UNLIMITED),
        };
        let text = fs::read_to_string(directory.join(file)).ok()?;
        // v2 says `max`, which is no number.
        let limit: u64 = text.trim().parse().ok()?;
        (limit < none).then_some(limit)
    }

    /// Limits a group's memory, swap included, or takes its limit away.
    ///
    /// # Errors
    /// When the kernel refuses: on v1, less than is in use and can't be given back.
    pub fn set_memory_limit(&self, group: &str, limit: Option<u64>) -> Result<(), RuntimeError> {
        let Some(directory) = self.directory(group, "memory") else {
            return Ok(());
        };
        for (file, value) in memory_settings(matches!(self.layout, Layout::V2(_)), limit) {
            // Kernels without accounting of swap have no file for it.
            let is_optional = file.contains("sw");
            if !is_optional || directory.join(file).exists() {
                files::write(&directory, file, &value)?;
            }
        }
        Ok(())
    }
}

/// In an order that the kernel takes: v1 wants memory's limit never above that of memory and swap.
fn memory_settings(v2: bool, limit: Option<u64>) -> [(&'static str, String); 2] {
    match (v2, limit) {
        (true, Some(bytes)) => [
            ("memory.swap.max", "0".to_owned()),
            ("memory.max", bytes.to_string()),
        ],
        (true, None) => [
            ("memory.max", "max".to_owned()),
            ("memory.swap.max", "max".to_owned()),
        ],
        (false, Some(bytes)) => [
            ("memory.limit_in_bytes", bytes.to_string()),
            ("memory.memsw.limit_in_bytes", bytes.to_string()),
        ],
        (false, None) => [
            ("memory.memsw.limit_in_bytes", "-1".to_owned()),
            ("memory.limit_in_bytes", "-1".to_owned()),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unified(root: &Path) -> Cgroups {
        Cgroups {
            layout: Layout::V2(root.to_owned()),
            root: "skiff-x".to_owned(),
        }
    }

    #[test]
    fn the_tightest_limit_on_the_way_up_counts() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("skiff-x/burstable/pod1");
        fs::create_dir_all(pod.join("c1")).unwrap();
        let cgroups = unified(dir.path());
        let group = "skiff-x/burstable/pod1/c1";
        assert_eq!(cgroups.memory_limit(group), None);
        fs::write(pod.join("c1/memory.max"), "max\n").unwrap();
        assert_eq!(cgroups.memory_limit(group), None);
        fs::write(pod.join("memory.max"), "1000\n").unwrap();
        assert_eq!(cgroups.memory_limit(group), Some(1000));
        assert_eq!(cgroups.own_memory_limit(group), None);
        fs::write(pod.join("c1/memory.max"), "500\n").unwrap();
        assert_eq!(cgroups.memory_limit(group), Some(500));
    }

    #[test]
    fn a_limit_is_set_and_taken_away_on_v2() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("skiff-x");
        fs::create_dir_all(&group).unwrap();
        let cgroups = unified(dir.path());
        let read = |file| fs::read_to_string(group.join(file)).ok();
        cgroups.set_memory_limit("skiff-x", Some(4096)).unwrap();
        assert_eq!(read("memory.max").as_deref(), Some("4096"));
        // No accounting of swap here.
        assert_eq!(read("memory.swap.max"), None);
        fs::write(group.join("memory.swap.max"), "max").unwrap();
        cgroups.set_memory_limit("skiff-x", Some(4096)).unwrap();
        assert_eq!(read("memory.swap.max").as_deref(), Some("0"));
        cgroups.set_memory_limit("skiff-x", None).unwrap();
        assert_eq!(read("memory.max").as_deref(), Some("max"));
        assert_eq!(read("memory.swap.max").as_deref(), Some("max"));
    }

    #[test]
    fn v1_is_told_in_an_order_that_it_takes() {
        let files = |limit| memory_settings(false, limit).map(|(file, _)| file);
        assert_eq!(
            files(Some(1)),
            ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        );
        assert_eq!(
            files(None),
            ["memory.memsw.limit_in_bytes", "memory.limit_in_bytes"]
        );
    }

    #[test]
    fn what_is_in_use_is_read_on_both_versions() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        write("memory.usage_in_bytes", "1000\n");
        write("memory.stat", "inactive_file 1\ntotal_inactive_file 400\n");
        assert_eq!(read_memory(dir.path()).unwrap(), 600);
        write("memory.current", "2000\n");
        write("memory.stat", "anon 5\ninactive_file 500\n");
        assert_eq!(read_memory(dir.path()).unwrap(), 1500);
    }
}
