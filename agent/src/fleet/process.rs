//! The agent process of a node of a fleet: started inside the node's network and control group,
//! found again by that group.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
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
        .args(["agent", "--server", launch.server, "--node-name", name])
        .args(["--node-ip", &segment.address(number).to_string()])
        .arg("--data-dir")
        .arg(&node_dir)
        .args(launch.flags)
        .env_remove("SKIFF_TOKEN")
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
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let mut words = command.split(|byte| *byte == 0);
        words.nth(1) == Some(b"agent".as_slice())
    })
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
