//! Whether this host can run containers, looked at before anything is started.
//!
//! Each check tries the thing itself rather than asking for a version, and says in one line what
//! is missing and what to do.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::blocking;
use super::cgroup::Layout;
use super::error::RuntimeError;

/// A feature that the host lacks.
#[derive(Debug, thiserror::Error)]
#[error("{feature}: {problem}")]
pub struct Missing {
    /// What is missing, in a word or two.
    pub feature: &'static str,
    /// What was seen, and what can be done.
    pub problem: String,
}

impl Missing {
    fn new(feature: &'static str, problem: impl Into<String>) -> Self {
        Self {
            feature,
            problem: problem.into(),
        }
    }
}

/// Checks everything that containers need, with `data_dir` (which exists) for their layers.
///
/// # Errors
/// The first feature that is missing.
pub async fn check(data_dir: &Path) -> Result<(), Missing> {
    let data_dir = data_dir.to_owned();
    let checks = move || Ok::<_, RuntimeError>(check_all(&data_dir));
    match blocking(checks).await {
        Ok(result) => result,
        Err(error) => Err(Missing::new("this host", error.to_string())),
    }
}

fn check_all(data_dir: &Path) -> Result<(), Missing> {
    root()?;
    cgroups()?;
    seccomp()?;
    // Namespaces and mounts are tried in a thread, which takes them with it when it ends.
    let data_dir = data_dir.to_owned();
    let trial = std::thread::spawn(move || {
        namespaces()?;
        own_root()?;
        overlay(&data_dir)
    });
    trial
        .join()
        .unwrap_or_else(|_| Err(Missing::new("this host", "a check panicked")))
}

fn root() -> Result<(), Missing> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Missing::new("root", "skiff must run as root (try sudo)"));
    }
    let needed = [
        caps::Capability::CAP_SYS_ADMIN,
        caps::Capability::CAP_NET_ADMIN,
        caps::Capability::CAP_SYS_CHROOT,
        caps::Capability::CAP_MKNOD,
    ];
    let held = caps::read(None, caps::CapSet::Effective).unwrap_or_default();
    match needed.into_iter().find(|needed| !held.contains(needed)) {
        None => Ok(()),
        Some(missing) => Err(Missing::new(
            "capabilities",
            format!(
                "{missing} is not held: run skiff with full privileges (in a container: --privileged)"
            ),
        )),
    }
}

fn cgroups() -> Result<(), Missing> {
    match Layout::detect() {
        Ok(_) => Ok(()),
        Err(error) => Err(Missing::new("cgroups", error.to_string())),
    }
}

fn seccomp() -> Result<(), Missing> {
    // SAFETY: the call takes no pointers; asking for the mode changes nothing.
    let mode = unsafe { libc::prctl(libc::PR_GET_SECCOMP, 0, 0, 0, 0) };
    if mode >= 0 {
        return Ok(());
    }
    Err(Missing::new(
        "seccomp",
        "the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)",
    ))
}

fn namespaces() -> Result<(), Missing> {
    let kinds = [
        ("mount namespaces", CloneFlags::CLONE_NEWNS),
        ("network namespaces", CloneFlags::CLONE_NEWNET),
        ("UTS namespaces", CloneFlags::CLONE_NEWUTS),
        ("IPC namespaces", CloneFlags::CLONE_NEWIPC),
        ("pid namespaces", CloneFlags::CLONE_NEWPID),
        ("cgroup namespaces", CloneFlags::CLONE_NEWCGROUP),
    ];
    for (feature, flag) in kinds {
        unshare(flag).map_err(|error| {
            Missing::new(feature, format!("the kernel refuses to make one: {error}"))
        })?;
    }
    Ok(())
}

/// Refuses a chroot: `pivot_root` would leave the host's root underneath each container's own, where `exec` arrives
/// and where a process with CAP_SYS_CHROOT can go.
///
/// This thread has a mount namespace of its own; joining it leads to the root of the namespace.
fn own_root() -> Result<(), Missing> {
    let before = root_mount()?;
    let namespace = File::open("/proc/thread-self/ns/mnt").map_err(unseen_root)?;
    setns(namespace, CloneFlags::CLONE_NEWNS).map_err(unseen_root)?;
    if before == root_mount()? {
        return Ok(());
    }
    Err(Missing::new(
        "a root of its own",
        "skiff runs in a chroot, where containers could reach the host's files: enter the directory with \
         pivot_root in a mount namespace instead (or use systemd-nspawn)",
    ))
}

/// The kernel's number of the mount that `/` is on.
fn root_mount() -> Result<String, Missing> {
    let root = File::open("/").map_err(unseen_root)?;
    let told = format!("/proc/thread-self/fdinfo/{}", root.as_raw_fd());
    let told = std::fs::read_to_string(told).map_err(unseen_root)?;
    let number = told.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    Ok(number.unwrap_or_default().trim().to_owned())
}

fn unseen_root(error: impl std::fmt::Display) -> Missing {
    Missing::new("mount namespaces", format!("looking at the root: {error}"))
}

/// Mounts an overlay of directories in the data directory, in this thread's mount namespace.
fn overlay(data_dir: &Path) -> Result<(), Missing> {
    let fail = |what: &str, error: &dyn std::fmt::Display| {
        Missing::new("overlayfs", format!("{what}: {error}"))
    };
    let place = data_dir.join(format!(".preflight-{}", std::process::id()));
    let result = (|| {
        for name in ["lower", "upper", "work", "merged"] {
            std::fs::create_dir_all(place.join(name))
                .map_err(|error| fail("making a directory in the data directory", &error))?;
        }
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
            .map_err(|error| fail("separating mounts", &error))?;
        let path = |name: &str| escape(&place.join(name));
        let options = CString::new(format!(
            "lowerdir={},upperdir={},workdir={}",
            path("lower"),
            path("upper"),
            path("work")
        ))
        .map_err(|error| fail("naming layers", &error))?;
        let overlay = Some("overlay");
        let merged = place.join("merged");
        mount(
            overlay,
            &merged,
            overlay,
            MsFlags::empty(),
            Some(options.as_c_str()),
        )
        .map_err(|error| {
            let help = "mounting an overlay in the data directory (is the module loaded? a data \
                            directory on overlayfs or NFS does not work: choose another with \
                            --data-dir)";
            fail(help, &error)
        })?;
        let _ = umount2(&merged, MntFlags::MNT_DETACH);
        Ok(())
    })();
    let _ = std::fs::remove_dir_all(&place);
    result
}

fn escape(path: &Path) -> String {
    let text = path.display().to_string();
    text.replace('\\', "\\\\")
        .replace(':', "\\:")
        .replace(',', "\\,")
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn a_host_that_runs_the_tests_can_run_containers() {
        let directory = tempfile::tempdir().unwrap();
        super::check(directory.path()).await.unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
