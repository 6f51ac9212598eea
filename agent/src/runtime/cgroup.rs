//! Control groups on v1, v2 and hybrid hosts.
//!
//! Every group of this node lies under `skiff-<id>`: the quality-of-service classes, in them a
//! group for each pod, in it one for each container; the shims have a group of their own. On v1
//! each controller is a hierarchy, so a group is a directory in each of them; on v2 it is one
//! directory. The agent makes and limits groups, processes join them by themselves (see the
//! shim), and the shim removes a container's when it has ended.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::{fs, io};

use super::error::RuntimeError;
use super::types::{CgroupResources, CgroupStats, QosClass};

mod devices;
mod files;
mod memory;
mod stats;

pub(crate) use memory::read_memory;

/// The controllers that Kubernetes needs; a host without one of them can't be a node.
const REQUIRED: [&str; 3] = ["cpu", "memory", "pids"];

/// The v1 controllers whose hierarchies groups are made in. The others limit nothing that
/// Kubernetes knows, and each hierarchy joined costs a start about half a millisecond.
const V1_USED: [&str; 5] = ["cpu", "cpuacct", "memory", "pids", "devices"];

/// Where the host's control groups are mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// One hierarchy for each entry: its mount point and its controllers.
    V1(Vec<(PathBuf, BTreeSet<String>)>),
    /// The unified hierarchy's mount point.
    V2(PathBuf),
}

impl Layout {
    /// Looks at the mounts of this process.
    ///
    /// # Errors
    /// When no usable control groups are mounted, or a required controller is missing.
    pub fn detect() -> Result<Self, RuntimeError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")
            .map_err(RuntimeError::io("reading", "/proc/self/mountinfo"))?;
        let layout = Self::from_mountinfo(&mounts);
        let missing: Vec<_> = match &layout {
            Self::V1(hierarchies) => {
                let has = |name| hierarchies.iter().any(|(_, set)| set.contains(name));
                REQUIRED.into_iter().filter(|name| !has(*name)).collect()
            }
            Self::V2(root) => {
                let path = root.join("cgroup.controllers");
                let text = fs::read_to_string(&path).map_err(RuntimeError::io("reading", path))?;
                let has: BTreeSet<_> = text.split_whitespace().collect();
                REQUIRED
                    .into_iter()
                    .filter(|name| !has.contains(name))
                    .collect()
            }
        };
        if missing.is_empty() {
            return Ok(layout);
        }
        Err(RuntimeError::Cgroup(format!(
            "this host has no {} controller: mount cgroup v2 at /sys/fs/cgroup, or enable it in \
             the kernel's command line",
            missing.join(", ")
        )))
    }

    /// Containers can be limited only where the controllers are: v1 hierarchies if there are
    /// any with a required controller (a hybrid host), the unified hierarchy otherwise.
    fn from_mountinfo(text: &str) -> Self {
        let mut v1: Vec<(PathBuf, BTreeSet<String>)> = Vec::new();
        let mut v2 = PathBuf::from("/sys/fs/cgroup");
        for line in text.lines() {
            let Some((mount, filesystem)) = line.split_once(" - ") else {
                continue;
            };
            let Some(point) = mount.split(' ').nth(4) else {
                continue;
            };
            let mut fields = filesystem.split(' ');
            match (fields.next(), fields.nth(1)) {
                (Some("cgroup"), Some(options)) => {
                    let controllers: BTreeSet<String> = options
                        .split(',')
                        .filter(|option| V1_USED.contains(option))
                        .map(str::to_owned)
                        .collect();
                    let known = v1.iter().any(|(_, set)| *set == controllers);
                    if !controllers.is_empty() && !known {
                        v1.push((point.into(), controllers));
                    }
                }
                (Some("cgroup2"), _) => v2 = point.into(),
                _ => {}
            }
        }
        let limits = |set: &BTreeSet<String>| REQUIRED.iter().any(|name| set.contains(*name));
        if v1.iter().any(|(_, set)| limits(set)) {
            Self::V1(v1)
        } else {
            Self::V2(v2)
        }
    }
}

/// This node's groups.
#[derive(Debug, Clone)]
pub struct Cgroups {
    layout: Layout,
    /// `skiff-<id>`
    root: String,
}

impl Cgroups {
    /// The groups under `root` (a name, without slashes).
    ///
    /// # Errors
    /// As [`Layout::detect`].
    pub fn detect(root: String) -> Result<Self, RuntimeError> {
        Ok(Self {
            layout: Layout::detect()?,
            root,
        })
    }

    pub fn is_v2(&self) -> bool {
        matches!(self.layout, Layout::V2(_))
    }

    /// The shims' group, relative to a hierarchy's root.
    pub fn shims(&self) -> String {
        format!("{}/shims", self.root)
    }

    /// A pod's group: `skiff-<id>/<class>/pod<uid>`.
    pub fn pod(&self, qos: QosClass, uid: &str) -> String {
        let class = match qos {
            QosClass::Guaranteed => "guaranteed",
            QosClass::Burstable => "burstable",
            QosClass::BestEffort => "besteffort",
        };
        format!("{}/{class}/pod{uid}", self.root)
    }

    /// A container's group in its pod's.
    pub fn container(&self, qos: QosClass, uid: &str, id: &str) -> String {
        format!("{}/{id}", self.pod(qos, uid))
    }

    /// A group's directory in every hierarchy.
    pub fn directories(&self, group: &str) -> Vec<PathBuf> {
        match &self.layout {
            Layout::V1(hierarchies) => hierarchies
                .iter()
                .map(|(mount, _)| mount.join(group))
                .collect(),
            Layout::V2(root) => vec![root.join(group)],
        }
    }

    /// The directory of a group where a controller's files are.
    pub fn directory(&self, group: &str, controller: &str) -> Option<PathBuf> {
        match &self.layout {
            Layout::V1(hierarchies) => hierarchies
                .iter()
                .find(|(_, set)| set.contains(controller))
                .map(|(mount, _)| mount.join(group)),
            Layout::V2(root) => Some(root.join(group)),
        }
    }

    /// Makes a group and those above it, and sets its limits. A group that exists is kept.
    ///
    /// # Errors
    /// When a directory can't be made or the kernel refuses a limit.
    pub fn create(&self, group: &str, limits: &CgroupResources) -> Result<(), RuntimeError> {
        match &self.layout {
            Layout::V1(hierarchies) => {
                for (mount, _) in hierarchies {
                    files::make_v1(mount, group)?;
                }
            }
            Layout::V2(root) => files::make_v2(root, group)?,
        }
        self.limit(group, limits)
    }

    /// Restricts a container's group to the devices that every container may use (Docker's).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn restrict_devices(&self, group: &str) -> Result<(), RuntimeError> {
        let Some(directory) = self.directory(group, "devices") else {
            return Ok(());
        };
        if self.is_v2() {
            return devices::restrict_unified(&directory, &devices::DEFAULT).map_err(|error| {
                let path = directory.display();
                RuntimeError::Cgroup(format!("restricting the devices of {path}: {error}"))
            });
        }
        files::write(&directory, "devices.deny", "a")?;
        for rule in devices::DEFAULT {
            files::write(&directory, "devices.allow", &rule.to_string())?;
        }
        Ok(())
    }

    /// Makes the kernel kill all of a container when it kills one of its processes for want of
    /// memory, as the kubelet does on v2 (v1 can't).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill_together(&self, group: &str) -> Result<(), RuntimeError> {
        match &self.layout {
            Layout::V1(_) => Ok(()),
            Layout::V2(root) => files::write(&root.join(group), "memory.oom.group", "1"),
        }
    }

    fn limit(&self, group: &str, limits: &CgroupResources) -> Result<(), RuntimeError> {
        for (controller, file, value) in files::settings(limits, self.is_v2()) {
            let Some(directory) = self.directory(group, controller) else {
                continue;
            };
            // Kernels without accounting of swap have no files for it.
            let is_optional = file.contains("sw");
            if !is_optional || directory.join(file).exists() {
                files::write(&directory, file, &value)?;
            }
        }
        Ok(())
    }

    /// What a group and those below it use.
    ///
    /// # Errors
    /// When the group does not exist.
    pub fn stats(&self, group: &str) -> Result<CgroupStats, RuntimeError> {
        let directory = |controller| {
            self.directory(group, controller)
                .ok_or_else(|| RuntimeError::Cgroup(format!("no {controller} controller")))
        };
        match &self.layout {
            Layout::V1(_) => stats::v1(
                &directory("cpuacct")?,
                &directory("memory")?,
                &directory("pids")?,
            ),
            Layout::V2(root) => stats::v2(&root.join(group)),
        }
    }

    /// The processes in a group and below it, in all hierarchies.
    pub fn processes(&self, group: &str) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        for directory in self.directories(group) {
            files::collect_processes(&directory, &mut pids);
        }
        pids
    }

    /// Sends SIGKILL to every process in a group and below it, and returns how many there were.
    pub fn kill(&self, group: &str) -> usize {
        let pids = self.processes(group);
        for pid in &pids {
            let pid = nix::unistd::Pid::from_raw(*pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        pids.len()
    }

    /// Removes a group and those below it. One that does not exist is no error.
    ///
    /// # Errors
    /// `ResourceBusy` while processes are in it.
    pub fn remove(&self, group: &str) -> io::Result<()> {
        for directory in self.directories(group) {
            files::remove_tree(&directory)?;
        }
        Ok(())
    }

    /// Kills what is in a group and removes it, waiting for the processes to be gone; blocking.
    ///
    /// # Errors
    /// When processes don't die within ten seconds (stuck in the kernel).
    pub fn destroy(&self, group: &str) -> io::Result<()> {
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        loop {
            let alive = self.kill(group);
            match self.remove(group) {
                Ok(()) => return Ok(()),
                Err(error) if std::time::Instant::now() > deadline => {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("{group} still holds {alive} processes: {error}"),
                    ));
                }
                // The kernel tells nobody when a group becomes empty on v1.
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(2)),
            }
        }
    }

    /// The group of everything of this node.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Whether a group exists in any hierarchy.
    pub fn exists(&self, group: &str) -> bool {
        self.directories(group).iter().any(|path| path.exists())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_is_v1() {
        let text = "\
30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
31 23 0:27 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct
32 23 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 23 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
34 23 0:30 / /sys/fs/cgroup/net_cls rw - cgroup cgroup rw,net_cls
";
        let Layout::V1(hierarchies) = Layout::from_mountinfo(text) else {
            panic!("not v1");
        };
        let points: Vec<_> = hierarchies
            .iter()
            .map(|(p, _)| p.display().to_string())
            .collect();
        assert_eq!(
            points,
            ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/memory"]
        );
    }

    #[test]
    fn a_unified_host_is_v2() {
        let text =
            "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            Layout::from_mountinfo(text),
            Layout::V2("/sys/fs/cgroup".into())
        );
    }
}
