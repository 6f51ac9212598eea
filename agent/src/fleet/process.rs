//! The agent process of a node of a fleet: started inside the node's network and control group,
//! found again by that group.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{log, state};
use crate::identity::Identity;
use crate::net::segment::Segment;
use crate::runtime::RuntimeError;
use crate::runtime::cgroup::Cgroups;
use crate::runtime::types::CgroupResources;

/// How often a process that is not a child is looked at while it ends: the kernel has no event for
/// it that needs no privilege over it.
const LOOK: Duration = Duration::from_millis(10);

/// How an agent is started.
pub(super) struct Launch<'a> {
    pub(super) server: &'a str,
    /// `None` for a node that has joined.
    pub(super) token: Option<&'a str>,
    pub(super) flags: &'a [String],
}

/// The group of a node's agent; those of its pods and shims lie beside it.
fn group(node: &Identity) -> String {
    format!("{}/agent", node.cgroup_root())
}

fn cgroups(node: &Identity) -> Result<Cgroups, RuntimeError> {
    Cgroups::detect(node.cgroup_root())
}

/// Makes the data directory of a node where it is missing.
pub(super) fn make_data_dir(path: &Path) -> io::Result<Identity> {
    if !path.exists() {
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    }
    Identity::of(path)
}

/// A node's agent that runs.
pub(super) enum Agent {
    Started(Child),
    /// By an earlier process.
    Adopted(OwnedFd),
}

impl Agent {
    /// Blocks until it has ended.
    pub(super) fn wait(self) -> io::Result<()> {
        match self {
            Self::Started(mut child) => child.wait().map(drop),
            Self::Adopted(process) => {
                let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
                while let Err(error) = poll(&mut ended, PollTimeout::NONE) {
                    if error != Errno::EINTR {
                        return Err(error.into());
                    }
                }
                Ok(())
            }
        }
    }
}

/// A node's agent that an earlier process started, if it is as one that would be started now.
pub(super) fn adopt(
    segment: &Segment,
    data_dir: &Path,
    name: &str,
    number: u16,
    launch: &Launch<'_>,
) -> Option<Agent> {
    let node_dir = state::directory(data_dir).join(name);
    let node = make_data_dir(&node_dir).ok()?;
    let pid = find(&node)?;
    let process = open_process(pid).ok()?;
    let wanted = arguments(segment, &node_dir, name, number, launch);
    let has_command = command_line(pid).get(1..) == Some(wanted.as_slice());
    // Of a program that was replaced since, the link names a deleted file.
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let is_same = program.is_some() && program == fs::read_link("/proc/self/exe").ok();
    (has_command && is_same).then_some(Agent::Adopted(process))
}

fn open_process(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: it takes two integers, and touches no memory of this process.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just given out this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn arguments(
    segment: &Segment,
    node_dir: &Path,
    name: &str,
    number: u16,
    launch: &Launch<'_>,
) -> Vec<OsString> {
    let address = segment.address(number).to_string();
    let own = ["agent", "--server", launch.server, "--node-name", name];
    let own = own.into_iter().chain(["--node-ip", &address, "--data-dir"]);
    let mut arguments: Vec<OsString> = own.map(OsString::from).collect();
    arguments.push(node_dir.into());
    arguments.extend(launch.flags.iter().map(OsString::from));
    arguments
}

/// Starts a node's agent. The caller reaps it.
pub(super) fn spawn(
    segment: &Segment,
    data_dir: &Path,
    name: &str,
    number: u16,
    launch: &Launch<'_>,
) -> io::Result<Child> {
    let node_dir = state::directory(data_dir).join(name);
    let node = make_data_dir(&node_dir)?;
    let output = File::options()
        .create(true)
        .append(true)
        .open(log::path(&state::directory(data_dir), name))?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(arguments(segment, &node_dir, name, number, launch))
        .env_remove("SKIFF_TOKEN")
        // Of a drill that restarted this process.
        .env_remove("SKIFF_START_AT")
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(output)
        // An interrupt at the terminal is for the process that watches over the nodes.
        .process_group(0);
    if let Some(token) = launch.token {
        // Not on the command line, which everybody can read.
        command.env("SKIFF_TOKEN", token);
    }
    let cgroups = cgroups(&node).map_err(io::Error::other)?;
    let group = group(&node);
    cgroups
        .create(&group, &CgroupResources::default())
        .map_err(io::Error::other)?;
    let mut child = segment.enter(name, move || command.spawn())?;
    for directory in cgroups.directories(&group) {
        if let Err(error) = fs::write(directory.join("cgroup.procs"), child.id().to_string()) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
    }
    Ok(child)
}

/// The process of a node's agent, if it runs.
pub(super) fn find(node: &Identity) -> Option<Pid> {
    let found = cgroups(node).ok()?.processes(&group(node));
    // Helpers of the agent are in its group too, and younger.
    found.into_iter().map(Pid::from_raw).find(|pid| {
        let command = command_line(*pid);
        command.get(1).is_some_and(|word| word == "agent")
    })
}

/// The words of a process's command line; none when it is gone.
fn command_line(pid: Pid) -> Vec<OsString> {
    let text = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = text.strip_suffix(&[0]).unwrap_or(&text);
    words
        .split(|byte| *byte == 0)
        .map(|word| OsString::from_vec(word.to_vec()))
        .collect()
}

/// Asks an agent to end, and makes it after `patience`; containers run on. Blocking.
pub(super) fn stop(node: &Identity, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    if let Some(pid) = find(node) {
        ignore_gone(kill(pid, Signal::SIGTERM))?;
        while alive(pid) && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
    }
    cgroups(node)
        .map_err(io::Error::other)?
        .destroy(&group(node))
}

/// Whether a process runs. One that ended and was not reaped does not.
fn alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

fn ignore_gone(result: nix::Result<()>) -> io::Result<()> {
    match result {
        Err(Errno::ESRCH) => Ok(()),
        other => Ok(other?),
    }
}
