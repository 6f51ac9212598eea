//! The shim: one tiny supervisor for each pod.
//!
//! `skiff-shim SPEC` makes the pod's namespaces, goes to the background and serves its socket;
//! the process that was started ends, with success, once the socket is there. From then on the
//! shim depends on nobody: it reaps the pod's processes, writes their logs and records their
//! exits whether or not an agent is connected.
//!
//! It has one thread and one loop ([`supervisor`]). Everything with libcontainer in it happens in
//! a forked child that ends when its work is done ([`create`], [`exec`]), so what stays resident
//! is the loop and its few tables.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::unistd::{ForkResult, fork, pipe2, setsid};
use skiff_shim::protocol::SandboxSpec;

mod cgroup;
mod child;
mod clock;
mod container;
mod create;
mod exec;
mod execute;
mod log;
mod output;
mod privileges;
mod reaper;
mod requests;
mod rootfs;
mod sandbox;
mod seccomp;
mod supervisor;

/// What goes wrong in the shim is told to the agent as text.
type Result<T, E = String> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let Some(path) = std::env::args_os().nth(1) else {
        eprintln!("usage: skiff-shim SPEC (it is started by `skiff`, not by hand)");
        return ExitCode::from(2);
    };
    match start(Path::new(&path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// Forks the shim proper and waits until it is ready or has failed.
fn start(path: &Path) -> Result<()> {
    let bytes = std::fs::read(path).map_err(context("reading", path))?;
    let spec: SandboxSpec =
        serde_json::from_slice(&bytes).map_err(context("understanding", path))?;
    let (ready, announce) = pipe2(OFlag::O_CLOEXEC).map_err(context("making", "a pipe"))?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.map_err(context("forking", "the shim"))? {
        ForkResult::Parent { .. } => {
            drop(announce);
            let mut said = String::new();
            let read = File::from(ready).read_to_string(&mut said);
            read.map_err(context("hearing from", "the shim"))?;
            match said.as_str() {
                "ready" => Ok(()),
                "" => Err("the shim died while it started".to_owned()),
                message => Err(message.to_owned()),
            }
        }
        ForkResult::Child => {
            drop(ready);
            let mut announce = File::from(announce);
            match supervise(&spec, &mut announce) {
                Ok(()) => std::process::exit(0),
                Err(message) => {
                    let _ = announce.write_all(message.as_bytes());
                    std::process::exit(1);
                }
            }
        }
    }
}

/// The shim's life: returns when the pod was stopped.
fn supervise(spec: &SandboxSpec, announce: &mut File) -> Result<()> {
    let _ = setsid();
    let _lock = lock(&spec.run_dir.join("shim.lock"))?;
    redirect_stdio(&spec.run_dir.join("shim.log"))?;
    let init = sandbox::build(spec)?;
    let mut supervisor = supervisor::Supervisor::new(spec, init)?;
    announce
        .write_all(b"ready")
        .map_err(context("telling", "the agent"))?;
    // The agent reads to the end.
    let null = File::from(open_null()?);
    let _ = std::mem::replace(announce, null);
    supervisor.run()
}

/// Makes sure that a pod has one shim. The lock lasts as long as the process.
fn lock(path: &Path) -> Result<Flock<File>> {
    let file = File::create(path).map_err(context("making", path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock)
        .map_err(|_| "another shim of this pod is running".to_owned())
}

/// Input from nowhere; what is said (a panic) goes to a file beside the socket.
fn redirect_stdio(log: &Path) -> Result<()> {
    let null = open_null()?;
    let log = File::options()
        .append(true)
        .create(true)
        .open(log)
        .map_err(context("making", log))?;
    let log = OwnedFd::from(log);
    for (from, to) in [(&null, 0), (&null, 1), (&log, 2)] {
        // SAFETY: `from` is open, and 0 to 2 are this process's to replace.
        let result = unsafe { libc::dup2(from.as_raw_fd(), to) };
        nix::errno::Errno::result(result).map_err(context("redirecting", "standard streams"))?;
    }
    Ok(())
}

fn open_null() -> Result<OwnedFd> {
    let file = File::options().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from)
        .map_err(context("opening", "/dev/null"))
}

/// Tells of an error what was being done, to what.
fn context<E: std::fmt::Display>(
    doing: &'static str,
    what: impl Into<PathBuf>,
) -> impl FnOnce(E) -> String {
    let what = what.into();
    move |error| format!("{doing} {}: {error}", what.display())
}
