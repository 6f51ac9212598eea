//! Forked children of the shim, and how they report.
//!
//! A child does one piece of work with libcontainer or with namespaces. It reports over a
//! channel which the process that it sets up inherits and which closes when that process
//! executes its program: the end of the channel means success.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use skiff_shim::wire;

use crate::{Result, cgroup, context};

/// What a child tells.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The process that it set up, as the host sees it. With a terminal, its descriptor comes
    /// along (create), or follows (exec).
    Process { pid: i32 },
    /// The terminal of an exec'd command comes with this.
    Terminal,
    /// It did not work: the runtime's own words.
    Failed { message: String },
}

/// The child's end of the channel.
pub(crate) struct Channel(OwnedFd);

impl Channel {
    pub(crate) fn report(&self, report: &Report, fds: &[RawFd]) {
        // If the shim is gone there is nobody to tell.
        let _ = wire::send(self.0.as_fd(), report, fds);
    }

    pub(crate) fn fail(&self, message: String) {
        self.report(&Report::Failed { message }, &[]);
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

/// Forks a child that does `work` as a member of the given cgroups, then ends. Of the shim's
/// descriptors it has those in `keep` only. Returns it and the channel on which it reports.
pub(crate) fn fork(
    cgroups: &[PathBuf],
    keep: &[RawFd],
    work: impl FnOnce(&Channel),
) -> Result<(Pid, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(context("making", "a channel"))?;
    let unified = cgroup::unified(cgroups);
    let pid = clone(0, unified).map_err(context("forking", "a child"))?;
    if let Some(pid) = pid {
        return Ok((pid, ours));
    }
    drop(ours);
    let channel = Channel(theirs);
    close_all_but(keep, channel.raw());
    restore_signals();
    // Processes of the container must not look into this one while it is among them.
    // SAFETY: the call takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) };
    let joined = match unified {
        Some(_) => Ok(()),
        None => cgroup::join(cgroups),
    };
    match joined {
        Ok(()) => work(&channel),
        Err(error) => channel.fail(format!("joining the container's cgroup: {error}")),
    }
    // Not `exit`: destructors and buffers are the shim's.
    // SAFETY: ends the process, touches nothing.
    unsafe { libc::_exit(0) }
}

/// A copy of another container's pipe or of a client's would keep it from ending.
fn close_all_but(keep: &[RawFd], channel: RawFd) {
    let mut kept: Vec<RawFd> = keep.iter().copied().chain([channel]).collect();
    kept.sort_unstable();
    let mut next = 3;
    for fd in kept
        .into_iter()
        .filter(|fd| *fd >= 3)
        .map(|fd| fd as libc::c_uint)
    {
        close_between(next, fd);
        next = fd + 1;
    }
    close_between(next, libc::c_uint::MAX);
}

/// Closes descriptors from the first up to but without the second.
fn close_between(first: libc::c_uint, end: libc::c_uint) {
    if first < end {
        // SAFETY: this is a forked child that uses none of them, and ends without destructors.
        unsafe { libc::close_range(first, end - 1, 0) };
    }
}

/// As `fork(2)` with flags, into a group of the unified hierarchy if one is given; `None` in the
/// child.
///
/// The C library's own fork has no flags. What it would do besides (locks of other threads) does
/// not matter in a process with one thread.
pub(crate) fn clone(flags: i32, group: Option<&Path>) -> std::io::Result<Option<Pid>> {
    let group = group.map(File::open).transpose()?;
    let into = if group.is_some() {
        CLONE_INTO_CGROUP
    } else {
        0
    };
    let is_sibling = flags & libc::CLONE_PARENT != 0;
    let arguments = CloneArguments {
        flags: flags as u64 | into,
        // A sibling's end is told as its parent's is.
        exit_signal: if is_sibling { 0 } else { libc::SIGCHLD as u64 },
        cgroup: group.as_ref().map_or(0, |group| group.as_raw_fd() as u64),
        ..CloneArguments::default()
    };
    // SAFETY: the structure is the kernel's `clone_args`, valid for the call; without CLONE_VM the
    // child has its own copy of everything, and there is one thread to copy.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<CloneArguments>(),
        )
    };
    match Errno::result(result)? {
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(pid as i32))),
    }
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of the kernel, up to `cgroup` (Linux 5.7).
#[repr(C)]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// The first process of a pid namespace that containers share: it does nothing but reap what is
/// orphaned there, and dies with the shim.
pub(crate) fn spawn_init() -> Result<Pid> {
    let cloned = clone(libc::CLONE_NEWPID, None);
    if let Some(pid) = cloned.map_err(context("making", "the pod's pid namespace"))? {
        return Ok(pid);
    }
    // SAFETY: the calls take no pointers, and nothing in this process uses descriptors any more.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"pause".as_ptr());
        libc::close_range(0, libc::c_uint::MAX, 0);
    }
    let mut wanted = SigSet::empty();
    wanted.add(Signal::SIGCHLD);
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None);
    loop {
        let _ = wanted.wait();
        while waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG))
            .is_ok_and(|status| status.pid().is_some())
        {}
    }
}

/// What the shim blocks or ignores must not be blocked or ignored in containers: Rust ignores
/// SIGPIPE, and glibc's `posix_spawn`, by which the shim was started, its two own signals.
pub(crate) fn restore_signals() {
    const GLIBC_INTERNAL: [libc::c_int; 2] = [32, 33];
    // The kernel's `struct sigaction`, all zero: the default action, no flags, an empty mask.
    let default = [0u64; 4];
    for signal in GLIBC_INTERNAL.into_iter().chain([libc::SIGPIPE]) {
        // SAFETY: the structure is as large as the kernel's and outlives the call. The C
        // library's own function refuses its internal signals.
        unsafe {
            let none = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, 8)
        };
    }
    let _ = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
}

/// Takes ownership of a raw descriptor that nobody else owns.
///
/// # Safety
/// `fd` is open and owned by nobody.
pub(crate) unsafe fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
