//! The pod's namespaces, which the shim lives in and its containers inherit.
//!
//! The network namespace is pinned by a bind mount, so that links and rules can be taken down
//! after the shim has died. IPC and UTS namespaces need no pin: nobody joins them from outside.

use std::ffi::CStr;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{Pid, sethostname};
use skiff_shim::protocol::{NETNS_FILE, ROOTFS_DIR, SHM_DIR, SandboxSpec};

use crate::{Result, cgroup, child, context};

/// The OOM killer's last choice, if the host lets us say so.
const OOM_SCORE: &str = "-998";

/// What every pod's network namespace has, as with containerd: ports below 1024 and `ping` need
/// no capability there.
const NETWORK_SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0\t2147483647"),
];

/// Puts this process into the pod's namespaces and the shims' cgroup. Returns the first process
/// of the pod's pid namespace if its containers share one.
pub(crate) fn build(spec: &SandboxSpec) -> Result<Option<Pid>> {
    cgroup::join(&spec.cgroups).map_err(context("joining", "the shims' cgroup"))?;
    become_subreaper()?;
    // Not without CAP_SYS_RESOURCE; the pod is none the worse.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let mut namespaces = CloneFlags::empty();
    namespaces.set(CloneFlags::CLONE_NEWNET, !spec.host_network);
    namespaces.set(CloneFlags::CLONE_NEWIPC, !spec.host_ipc);
    namespaces.set(CloneFlags::CLONE_NEWUTS, spec.hostname.is_some());
    unshare(namespaces).map_err(context("making", "the pod's namespaces"))?;
    if let Some(hostname) = &spec.hostname {
        sethostname(hostname).map_err(context("setting the host name to", hostname))?;
    }
    if !spec.host_network {
        bring_loopback_up()?;
        for (name, value) in NETWORK_SYSCTLS {
            set_sysctl(name, value)?;
        }
        pin("/proc/self/ns/net", &spec.run_dir.join(NETNS_FILE))?;
    }
    for (name, value) in &spec.sysctls {
        set_sysctl(name, value)?;
    }
    if !spec.host_ipc {
        mount_shared_memory(&spec.run_dir.join(SHM_DIR))?;
    }
    let rootfs = spec.run_dir.join(ROOTFS_DIR);
    fs::create_dir_all(&rootfs).map_err(context("making", rootfs))?;
    match spec.share_process_namespace {
        true => child::spawn_init().map(Some),
        false => Ok(None),
    }
}

/// Orphans of the pod become children of this process.
fn become_subreaper() -> Result<()> {
    // SAFETY: the call takes no pointers.
    let result = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    nix::errno::Errno::result(result).map_err(context("becoming", "a subreaper"))?;
    Ok(())
}

/// A new network namespace has a loopback link that is down.
fn bring_loopback_up() -> Result<()> {
    let fail = || context("bringing up", "the loopback link");
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(fail())?;
    let name: &CStr = c"lo";
    // SAFETY: all-zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes_with_nul()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the descriptor is open and `request` is what this request takes.
    let result = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCSIFFLAGS as _,
            &raw mut request,
        )
    };
    nix::errno::Errno::result(result).map_err(fail())?;
    Ok(())
}

/// Names are written with dots or with slashes between their parts.
fn set_sysctl(name: &str, value: &str) -> Result<()> {
    let slashes_first = name.find('/') < name.find('.') && name.contains('/');
    let relative = if slashes_first {
        name.to_owned()
    } else {
        let swap = |letter| match letter {
            '.' => '/',
            '/' => '.',
            other => other,
        };
        name.chars().map(swap).collect()
    };
    let is_inside = |part| matches!(part, std::path::Component::Normal(_));
    if !Path::new(&relative).components().all(is_inside) {
        return Err(format!("sysctl {name:?} is not a name"));
    }
    let path = Path::new("/proc/sys").join(relative);
    fs::write(&path, value).map_err(|error| format!("setting sysctl {name}={value}: {error}"))
}

fn pin(namespace: &str, file: &Path) -> Result<()> {
    fs::File::create(file).map_err(context("making", file))?;
    mount(
        Some(namespace),
        file,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .map_err(context("pinning a namespace at", file))
}

/// The containers' `/dev/shm`, of Docker's size.
fn mount_shared_memory(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(context("making", directory))?;
    mount(
        Some("shm"),
        directory,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=1777,size=65536k"),
    )
    .map_err(context("mounting shared memory at", directory))
}
