//! Finding what a task is pointed at.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use skiff_dev::PodRef;

use super::fault::FaultError;
use super::site::{Scene, Site};
use crate::runtime::types::ContainerRecord;

/// A running container of this node.
pub(super) struct Target {
    pub(super) record: ContainerRecord,
    /// The container's first process, as the host sees it.
    pub(super) pid: i32,
    /// Its control group.
    pub(super) group: String,
}

impl Target {
    /// The container with this name that runs now, or the pod's oldest without a name.
    pub(super) fn find(
        scene: &Scene,
        pod: &PodRef,
        container: Option<&str>,
    ) -> Result<Self, FaultError> {
        let refuse = |why: &str| {
            let PodRef {
                namespace, name, ..
            } = pod;
            Err(FaultError::Refused(format!("pod {namespace}/{name} {why}")))
        };
        let Some(sandbox) = scene.sandboxes.get(&pod.uid) else {
            return refuse(&format!("does not run on node {}", scene.node_name));
        };
        let records = sandbox.containers();
        let mut named = records
            .into_iter()
            .filter(|record| container.is_none_or(|name| record.name == name))
            .peekable();
        let what = container.map_or("a container".to_owned(), |name| {
            format!("container {name:?}")
        });
        if named.peek().is_none() {
            return refuse(&format!("has not started {what}"));
        }
        let running = named.find_map(|record| Some((record.pid()?, record)));
        let Some((pid, record)) = running else {
            return refuse(&format!("does not run {what} at the moment"));
        };
        Ok(Self {
            group: sandbox.group(&record.id),
            record,
            pid,
        })
    }
}

/// Returns when a container that a task was pointed at has ended: also when its pod is gone.
pub(super) async fn ended(scene: &Scene, pod: &PodRef, id: &str) {
    let Some(sandbox) = scene.sandboxes.get(&pod.uid) else {
        return;
    };
    let mut state = sandbox.watch();
    let gone = state.wait_for(|state| {
        let record = state.containers.get(id);
        !state.alive || record.is_none_or(ContainerRecord::has_exited)
    });
    // An error: nobody looks after the sandbox any more.
    let _ = gone.await;
}

/// A process, told from others that get the same pid later.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Process {
    pub(super) pid: i32,
    /// When it began, in clock ticks after the boot.
    pub(super) began: u64,
}

/// What a process does at the moment: the third field of `/proc/<pid>/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Anything that stopping would change.
    Runs,
    Stopped,
    Ended,
}

impl Process {
    /// The process with this pid, and what it does.
    pub(super) fn look(pid: i32) -> Option<(Self, Doing)> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (began, doing) = parse_stat(&stat)?;
        Some((Self { pid, began }, doing))
    }

    /// Whether its program is in a directory.
    pub(super) fn executes_in(self, directory: &Path) -> bool {
        let program = fs::read_link(format!("/proc/{}/exe", self.pid));
        program.is_ok_and(|program| program.starts_with(directory))
    }

    pub(super) fn signal(self, signal: Signal) {
        // It has ended: nothing to do.
        let _ = kill(Pid::from_raw(self.pid), signal);
    }
}

/// The processes in a control group and below it.
pub(super) fn processes(site: &Site, group: &str) -> BTreeMap<Process, Doing> {
    let pids = site.cgroups.processes(group).into_iter();
    pids.filter_map(Process::look).collect()
}

fn parse_stat(stat: &str) -> Option<(u64, Doing)> {
    // The name may hold anything, also blanks and parentheses.
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split_ascii_whitespace();
    let doing = match fields.next()? {
        "T" | "t" => Doing::Stopped,
        "Z" | "X" | "x" => Doing::Ended,
        _ => Doing::Runs,
    };
    // `starttime` is field 22 of proc_pid_stat(5); the state was field 3.
    Some((fields.nth(18)?.parse().ok()?, doing))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_it_is_called() {
        let stat = |name: &str, state: &str| {
            format!("7 ({name}) {state} 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2\n")
        };
        for (name, state, doing) in [
            ("nginx", "S", Doing::Runs),
            ("a) T (b", "R", Doing::Runs),
            ("x y", "T", Doing::Stopped),
            ("z", "Z", Doing::Ended),
        ] {
            assert_eq!(
                parse_stat(&stat(name, state)),
                Some((987_654, doing)),
                "{name}"
            );
        }
        assert_eq!(parse_stat("7 (x"), None);
        assert_eq!(parse_stat("7 (x) S 1 2"), None);
        let (me, doing) = Process::look(std::process::id() as i32).unwrap();
        assert_eq!((me.pid as u32, doing), (std::process::id(), Doing::Runs));
        assert!(me.began > 0);
    }
}
