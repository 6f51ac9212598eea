//! Keeping an agent running for each node that is to run.
//!
//! One task for each node: it starts the agent, waits until it ends or the node's state changes, and
//! starts over. Changes are told by inotify(7), so `skiff node start` is a file that is written.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::process::Agent;
use super::{Fleet, FleetError, log, state};

/// Between the end of an agent and its next start.
const RESTART: Duration = Duration::from_millis(200);
const LONGEST_RESTART: Duration = Duration::from_secs(10);
/// An agent that ran for this long is started anew without delay.
const STABLE: Duration = Duration::from_secs(20);

/// Makes a join token when a node needs one.
pub type MakeToken = Arc<dyn Fn() -> BoxFuture<'static, Result<String, String>> + Send + Sync>;

/// The agents of a fleet, kept running until it is stopped.
pub struct Supervisor {
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Supervisor {
    /// Starts what is to run. Agents that an earlier process left stay if they are as they would be started now,
    /// and are replaced if not; their pods run on.
    ///
    /// # Errors
    /// When the state can't be read or watched.
    pub fn start(fleet: &Fleet, token: MakeToken) -> Result<Self, FleetError> {
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let (changed, changes) = watch::channel(());
        let inotify = watch_states(fleet).map_err(FleetError::State)?;
        let directory = state::directory(fleet.identity.data_dir());
        let ended = stop.clone();
        tasks.spawn(async move {
            let telling = follow(inotify, directory, changed);
            let _ = ended.run_until_cancelled(telling).await;
        });
        for (name, _) in fleet.nodes()? {
            let node = Supervised {
                fleet: fleet.clone(),
                name,
                token: token.clone(),
                changes: changes.clone(),
                stop: stop.clone(),
            };
            tasks.spawn(node.run());
        }
        Ok(Self { stop, tasks })
    }

    /// Leaves the agents running, for a process that comes after this one.
    pub async fn leave(mut self) {
        self.tasks.shutdown().await;
    }

    /// Ends the agents; containers run on.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

fn watch_states(fleet: &Fleet) -> io::Result<AsyncFd<Instance>> {
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
    let directory = state::directory(fleet.identity.data_dir());
    // State files are replaced by renaming, logs grow.
    let seen = AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MODIFY;
    inotify.add_watch(&directory, seen)?;
    // SAFETY: the instance owns its descriptor, gives always the same one, and is never taken out
    // again.
    Ok(unsafe { AsyncFd::register(Instance(inotify)) }?)
}

struct Instance(Inotify);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Tells of changed states, and keeps the logs within bounds.
async fn follow(inotify: AsyncFd<Instance>, directory: PathBuf, changed: watch::Sender<()>) {
    loop {
        let Ok(mut ready) = inotify.readable().await else {
            return;
        };
        match inotify.get_ref().0.read_events() {
            Ok(events) => {
                let names = events
                    .iter()
                    .filter_map(|event| event.name.as_ref()?.to_str());
                let logs: BTreeSet<&str> = names.filter(|name| log::is_log(name)).collect();
                if events
                    .iter()
                    .any(|e| e.mask.contains(AddWatchFlags::IN_MOVED_TO))
                {
                    changed.send_replace(());
                }
                for name in logs {
                    bound(directory.join(name)).await;
                }
            }
            Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
            Err(error) => {
                tracing::error!(%error, "changes of the nodes' states are not seen any more");
                return;
            }
        }
    }
}

async fn bound(log: PathBuf) {
    let path = log.clone();
    let bounded = tokio::task::spawn_blocking(move || log::bound(&path)).await;
    if let Ok(Err(error)) = bounded {
        tracing::warn!(log = %log.display(), %error, "the node's log grows without bounds");
    }
}

/// One node.
struct Supervised {
    fleet: Fleet,
    name: String,
    token: MakeToken,
    changes: watch::Receiver<()>,
    stop: CancellationToken,
}

impl Supervised {
    async fn run(mut self) {
        let mut rest = RESTART;
        let mut adopted = self.adopt().await;
        while !self.stop.is_cancelled() {
            self.changes.mark_unchanged();
            if !self.is_wanted() {
                let stop = self.stop.clone();
                let _ = stop.run_until_cancelled(self.changes.changed()).await;
                continue;
            }
            let began = tokio::time::Instant::now();
            let agent = match adopted.take() {
                Some(agent) => Ok(agent),
                None => self.start().await,
            };
            match agent {
                Ok(agent) => self.watch_over(agent).await,
                Err(error) => tracing::warn!(node = self.name, %error, "node not started"),
            }
            if self.stop.is_cancelled() {
                break;
            }
            rest = if began.elapsed() > STABLE {
                RESTART
            } else {
                rest
            };
            if self.is_wanted() {
                tracing::warn!(
                    node = self.name,
                    ?rest,
                    "the node's agent ended; starting it again"
                );
                let pause = tokio::time::sleep(rest);
                let _ = self.stop.run_until_cancelled(pause).await;
                rest = (rest * 2).min(LONGEST_RESTART);
            }
        }
    }

    /// The agent that an earlier process started, if it may stay; it is ended if not.
    async fn adopt(&self) -> Option<Agent> {
        if self.is_wanted() {
            let (fleet, name) = (self.fleet.clone(), self.name.clone());
            let adopted = tokio::task::spawn_blocking(move || fleet.adopt(&name)).await;
            if let Ok(Ok(Some(agent))) = adopted {
                return Some(agent);
            }
        }
        self.end_agent().await;
        None
    }

    async fn start(&self) -> Result<Agent, String> {
        let token = if self.fleet.has_joined(&self.name) {
            None
        } else {
            Some((self.token)().await?)
        };
        let (fleet, name) = (self.fleet.clone(), self.name.clone());
        let launched =
            tokio::task::spawn_blocking(move || fleet.launch(&name, token.as_deref())).await;
        let child = launched.map_err(|e| e.to_string())?;
        child.map(Agent::Started).map_err(|e| e.to_string())
    }

    /// Until the agent has ended, by itself or because everything stops.
    async fn watch_over(&self, agent: Agent) {
        let mut ended = tokio::task::spawn_blocking(move || agent.wait());
        tokio::select! {
            _ = &mut ended => {}
            () = self.stop.cancelled() => {
                self.end_agent().await;
                let _ = ended.await;
            }
        }
    }

    async fn end_agent(&self) {
        let (fleet, name) = (self.fleet.clone(), self.name.clone());
        let ended = tokio::task::spawn_blocking(move || fleet.stop_agent(&name)).await;
        if let Ok(Err(error)) = ended {
            tracing::warn!(node = self.name, %error, "the node's agent does not end");
        }
    }

    fn is_wanted(&self) -> bool {
        self.fleet.node(&self.name).is_ok_and(|state| state.running)
    }
}
