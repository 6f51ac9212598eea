//! Starting anew in the same process, as drills ask for: execve(2) of this program with its arguments and
//! environment.
//!
//! The pid stays, and with it whoever watches over it: systemd, a shell, `skiff up`. Memory, threads
//! and all files but the standard three are gone in one instant, exactly as by SIGKILL. Children stay
//! children, and what they leave behind when they end is for the new program to take ([`inherit`]).

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};

/// Tells the new program that it is one, and the earliest time, in milliseconds since 1970, at which
/// it may begin.
const START_AT: &str = "SKIFF_START_AT";
/// This program, whatever became of its file.
const RUNNING: &str = "/proc/self/exe";

/// Replaces this process by a new start of itself, which begins no earlier than `at`. Returns only when
/// that was not possible: nothing has changed then.
pub fn exec(at: Option<Timestamp>) -> io::Error {
    exec_program(&program(), at)
}

fn exec_program(program: &Path, at: Option<Timestamp>) -> io::Error {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("skiff"));
    let at = at.unwrap_or_else(Timestamp::now).as_millisecond();
    Command::new(program)
        .arg0(name)
        .args(arguments)
        .env(START_AT, at.to_string())
        .exec()
}

/// The path of this program; another one may have been installed there since.
fn program() -> PathBuf {
    let same = |path: &PathBuf| {
        let (installed, running) = (path.metadata().ok()?, Path::new(RUNNING).metadata().ok()?);
        let id = |file: &std::fs::Metadata| (file.dev(), file.ino());
        (id(&installed) == id(&running)).then_some(())
    };
    let path = std::env::current_exe().ok();
    path.filter(|path| same(path).is_some())
        .unwrap_or_else(|| RUNNING.into())
}

/// After an orderly stop: a new start of this process, no earlier than `down` from now. It returns when that
/// was not possible, and the work is to begin anew in this process.
pub async fn begin_anew(down: Duration) -> anyhow::Result<()> {
    let at = after(down);
    let error = exec(Some(at));
    tracing::error!(%error, "this process can't be replaced; it begins anew as it is");
    wait_until(at).await;
    Ok(())
}

/// The time at which something may begin that has to stay away for `down`.
pub fn after(down: Duration) -> Timestamp {
    let now = Timestamp::now();
    now.checked_add(down).unwrap_or(Timestamp::MAX)
}

/// Waits until this process may begin its work.
///
/// # Errors
/// When the environment says nonsense of that time.
pub async fn turn() -> anyhow::Result<()> {
    if let Some(at) = start_at()? {
        wait_until(at).await;
    }
    Ok(())
}

/// Keeps this process away until `at`, should that lie ahead.
pub async fn wait_until(at: Timestamp) {
    if let Ok(left) = Duration::try_from(at.duration_since(Timestamp::now())) {
        tracing::warn!(%at, "a drill keeps this process away until then");
        tokio::time::sleep(left).await;
    }
}

fn start_at() -> anyhow::Result<Option<Timestamp>> {
    let Ok(text) = std::env::var(START_AT) else {
        return Ok(None);
    };
    let at = text.parse().ok();
    let at = at.and_then(|milliseconds| Timestamp::from_millisecond(milliseconds).ok());
    let at = at.with_context(|| format!("{START_AT}={text} is no time in milliseconds"))?;
    Ok(Some(at))
}

/// Takes care of the children that this process had before it was replaced: somebody has to wait for
/// them when they end. To be called before there are new ones.
pub fn inherit() -> anyhow::Result<()> {
    if start_at()?.is_none() {
        return Ok(());
    }
    let mut left = children().context("cannot list this process's children")?;
    if left.is_empty() {
        return Ok(());
    }
    let mut ended = signal(SignalKind::child())?;
    tokio::spawn(async move {
        loop {
            left.retain(|child| is_alive(*child));
            if left.is_empty() || ended.recv().await.is_none() {
                return;
            }
        }
    });
    Ok(())
}

/// Whether a child runs; one that ended is taken care of.
fn is_alive(child: Pid) -> bool {
    let state = waitpid(child, Some(WaitPidFlag::WNOHANG));
    matches!(state, Ok(WaitStatus::StillAlive))
}

fn children() -> io::Result<Vec<Pid>> {
    let own = std::process::id().to_string();
    let mut children = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that ended meanwhile was nobody's child of ours any more.
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat
            .rsplit_once(") ")
            .and_then(|(_, rest)| rest.split(' ').nth(1));
        if parent == Some(own.as_str()) {
            children.push(Pid::from_raw(pid));
        }
    }
    Ok(children)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_this_one() {
        let id = |path: &Path| path.metadata().unwrap().ino();
        assert_eq!(id(&program()), id(Path::new(RUNNING)));
    }

    #[test]
    fn a_program_that_is_not_there_changes_nothing() {
        let error = exec_program(Path::new("/nonexistent/skiff"), None);
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(start_at().unwrap(), None);
    }

    #[test]
    fn children_are_found() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
        assert!(children().unwrap().contains(&pid));
        assert!(is_alive(pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!is_alive(pid));
    }
}
