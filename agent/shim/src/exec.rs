//! The forked child that runs a command in a container.
//!
//! libcontainer can do this too, but in 0.7 without the container's seccomp filter, which would
//! make `exec` a way around it; so the steps are ours: join the cgroup and the namespaces of the
//! container's first process, clone into its pid namespace as a child of the shim, become the
//! container's user with its privileges, execute.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use libcontainer::oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::unistd::{
    Gid, Pid, Uid, chdir, dup2_stderr, dup2_stdin, dup2_stdout, setgroups, setresgid, setresuid,
    setsid,
};
use skiff_shim::protocol::Exec;

use crate::child::{Channel, Report, clone};
use crate::create::seccomp_filter;
use crate::execute::execute;
use crate::privileges::Privileges;
use crate::{Result, context};

/// Where the command's standard streams go.
pub(crate) enum Streams {
    Pipes([OwnedFd; 3]),
    Terminal,
}

impl Streams {
    pub(crate) fn raw(&self) -> Vec<RawFd> {
        match self {
            Self::Pipes(fds) => fds.iter().map(AsRawFd::as_raw_fd).collect(),
            Self::Terminal => Vec::new(),
        }
    }
}

/// Runs the command; this process ends, and the command is the shim's child.
pub(crate) fn run(
    exec: &Exec,
    run_dir: &Path,
    state_dir: &Path,
    container: Pid,
    streams: &Streams,
    channel: &Channel,
) {
    if let Err(message) = enter_and_clone(exec, run_dir, state_dir, container, streams, channel) {
        channel.fail(message);
    }
}

fn enter_and_clone(
    exec: &Exec,
    run_dir: &Path,
    state_dir: &Path,
    container: Pid,
    streams: &Streams,
    channel: &Channel,
) -> Result<()> {
    let mut spec = Spec::load(state_dir.join("config.json"))
        .map_err(context("reading the specification in", state_dir))?;
    let filter = seccomp_filter(&spec, run_dir)?;
    let privileges = Privileges::take(&mut spec, filter);
    let process = spec
        .process()
        .as_ref()
        .ok_or("the container has no process")?;
    if let Some(score) = process.oom_score_adj() {
        // The container's own, which the host allowed it.
        let _ = fs::write("/proc/self/oom_score_adj", score.to_string());
    }
    enter(container, &spec)?;
    let cloned = clone(libc::CLONE_PARENT, None);
    match cloned.map_err(context("cloning", "the command's process"))? {
        Some(pid) => {
            channel.report(&Report::Process { pid: pid.as_raw() }, &[]);
            Ok(())
        }
        None => {
            let message = match become_command(exec, process, &privileges, streams, channel) {
                Ok(never) => match never {},
                Err(message) => message,
            };
            channel.fail(message);
            // SAFETY: ends the process; the shim's destructors are not ours to run.
            unsafe { libc::_exit(128) }
        }
    }
}

/// Joins the namespaces that are the container's own; the pod's this process is in already.
fn enter(container: Pid, spec: &Spec) -> Result<()> {
    let mut flags = CloneFlags::empty();
    let linux = spec.linux().as_ref();
    for namespace in linux
        .and_then(|linux| linux.namespaces().as_ref())
        .into_iter()
        .flatten()
    {
        flags |= match namespace.typ() {
            LinuxNamespaceType::Mount => CloneFlags::CLONE_NEWNS,
            LinuxNamespaceType::Pid => CloneFlags::CLONE_NEWPID,
            LinuxNamespaceType::Cgroup => CloneFlags::CLONE_NEWCGROUP,
            _ => CloneFlags::empty(),
        };
    }
    // SAFETY: the call takes no pointers; the result is a new descriptor or an error.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, container.as_raw(), 0) };
    let fd = Errno::result(opened).map_err(context("opening", "the container's process"))?;
    // SAFETY: the kernel has just made this descriptor for us.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    nix::sched::setns(pidfd, flags).map_err(context("joining", "the container's namespaces"))
}

fn become_command(
    exec: &Exec,
    process: &Process,
    privileges: &Privileges,
    streams: &Streams,
    channel: &Channel,
) -> Result<std::convert::Infallible> {
    let _ = setsid();
    match streams {
        Streams::Pipes([stdin, stdout, stderr]) => dup2_stdin(stdin)
            .and_then(|()| dup2_stdout(stdout))
            .and_then(|()| dup2_stderr(stderr))
            .map_err(context("connecting", "the command's streams"))?,
        Streams::Terminal => {
            open_terminal(channel).map_err(context("opening", "a terminal in the container"))?;
        }
    }
    let cwd = process.cwd();
    // A directory that only the container's user may enter is tried again as that user.
    let late = chdir(cwd).is_err();
    let mut env = process.env().clone().unwrap_or_default();
    if exec.tty && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", home(process.user().uid())));
    }
    become_user(process)?;
    privileges.enter()?;
    if late {
        chdir(cwd).map_err(context("entering the working directory", cwd))?;
    }
    // SAFETY: only marks descriptors; those of this process are done with when it executes.
    unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    Err(execute(&exec.args, &env))
}

/// Becomes the container's user, keeping capabilities, which are reduced after it.
fn become_user(process: &Process) -> Result<()> {
    let user = process.user();
    let groups = user.additional_gids().clone().unwrap_or_default();
    let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(context("setting", "supplementary groups"))?;
    // SAFETY: the call takes no pointers.
    unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) };
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    setresgid(gid, gid, gid).map_err(context("becoming", "the container's group"))?;
    setresuid(uid, uid, uid).map_err(context("becoming", "the container's user"))
}

/// Opens a terminal of the container, makes it the controlling one, and sends the shim the other
/// end.
fn open_terminal(channel: &Channel) -> std::io::Result<()> {
    let mut options = fs::File::options();
    let master = options.read(true).write(true).open("/dev/ptmx")?;
    let mut unlock: libc::c_int = 0;
    // SAFETY: the descriptors are open and the arguments are what these requests take.
    let slave = unsafe {
        let result = libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw mut unlock);
        Errno::result(result)?;
        let flags = libc::O_RDWR | libc::O_NOCTTY;
        let opened = libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags);
        OwnedFd::from_raw_fd(Errno::result(opened)?)
    };
    // SAFETY: as above.
    let result = unsafe { libc::ioctl(slave.as_raw_fd(), libc::TIOCSCTTY, 0) };
    Errno::result(result)?;
    dup2_stdin(&slave)?;
    dup2_stdout(&slave)?;
    dup2_stderr(&slave)?;
    channel.report(&Report::Terminal, &[master.as_raw_fd()]);
    Ok(())
}

/// The home directory of a user, from the container's own file.
fn home(uid: u32) -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let entry = passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let same = fields.get(2)?.parse::<u32>().ok()? == uid;
        same.then(|| fields.get(5).map(|home| (*home).to_owned()))?
    });
    entry
        .filter(|home| !home.is_empty())
        .unwrap_or_else(|| "/".to_owned())
}
