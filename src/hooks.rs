//! How drills reach this process: what an agent and a control plane can't do to themselves.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use skiff_agent::fleet::{Fleet, FleetError};
use skiff_agent::hooks::AgentHooks;
use skiff_controlplane::drill_hooks::{DrillHooks, HookError, Restart};
use tokio::sync::mpsc;

use crate::restart;

/// The process of an agent.
#[derive(Debug)]
pub struct AgentProcess {
    /// Whether the control plane runs in it too.
    pub with_control_plane: bool,
}

impl AgentHooks for AgentProcess {
    fn restart(&self) -> io::Error {
        restart::exec(None)
    }

    fn restart_at(&self, at: Timestamp) -> io::Error {
        restart::exec(Some(at))
    }

    fn with_control_plane(&self) -> bool {
        self.with_control_plane
    }
}

/// The process of a control plane.
#[derive(Debug)]
pub struct ControlPlaneProcess {
    own_node: Option<String>,
    fleet: Option<(Fleet, HashSet<String>)>,
    orderly: mpsc::Sender<Duration>,
}

impl ControlPlaneProcess {
    /// The hooks, and the orderly restarts that are asked for: how long the process is to stay away
    /// after it has stopped everything.
    pub fn new() -> (Self, mpsc::Receiver<Duration>) {
        let (orderly, asked) = mpsc::channel(1);
        let process = Self {
            own_node: None,
            fleet: None,
            orderly,
        };
        (process, asked)
    }

    /// The agent of a node runs in the process too.
    pub fn with_own_node(self, name: String) -> Self {
        Self {
            own_node: Some(name),
            ..self
        }
    }

    /// The process keeps nodes of its own on this host.
    pub fn with_fleet(self, fleet: Fleet) -> Result<Self, FleetError> {
        let names = fleet.names()?.into_iter().collect();
        Ok(Self {
            fleet: Some((fleet, names)),
            ..self
        })
    }

    async fn with_node(
        &self,
        name: &str,
        work: fn(&Fleet, &str) -> Result<(), FleetError>,
    ) -> Result<(), HookError> {
        let Some((fleet, _)) = &self.fleet else {
            return Err(HookError("this host has no nodes of its own".into()));
        };
        let (fleet, name) = (fleet.clone(), name.to_owned());
        let done = tokio::task::spawn_blocking(move || work(&fleet, &name)).await;
        match done {
            Ok(done) => done.map_err(|error| HookError(error.to_string())),
            Err(error) => Err(HookError(error.to_string())),
        }
    }
}

#[async_trait]
impl DrillHooks for ControlPlaneProcess {
    fn own_node(&self) -> Option<&str> {
        self.own_node.as_deref()
    }

    fn has_node(&self, name: &str) -> bool {
        let names = self.fleet.as_ref().map(|(_, names)| names);
        names.is_some_and(|names| names.contains(name))
    }

    async fn crash_node(&self, name: &str) -> Result<(), HookError> {
        self.with_node(name, Fleet::kill).await
    }

    async fn start_node(&self, name: &str) -> Result<(), HookError> {
        self.with_node(name, Fleet::start).await
    }

    async fn restart(&self, restart: Restart) -> HookError {
        if restart.kill {
            let error = restart::exec(Some(restart::after(restart.down)));
            return HookError(format!("this process can't be replaced: {error}"));
        }
        if self.orderly.send(restart.down).await.is_err() {
            return HookError("this process is about to stop".into());
        }
        // It ends with everything else that is stopped now.
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_orderly_restart_is_asked_for() {
        let (hooks, mut asked) = ControlPlaneProcess::new();
        let hooks = hooks.with_own_node("me".into());
        assert_eq!(hooks.own_node(), Some("me"));
        let down = Duration::from_secs(3);
        let restart = Restart { kill: false, down };
        tokio::select! {
            error = hooks.restart(restart) => panic!("{error}"),
            restart = asked.recv() => assert_eq!(restart, Some(down)),
        }
        drop(asked);
        assert_eq!(
            hooks.restart(restart).await.to_string(),
            "this process is about to stop"
        );
    }

    #[tokio::test]
    async fn a_host_without_nodes_crashes_none() {
        let (hooks, _asked) = ControlPlaneProcess::new();
        assert!(!hooks.has_node("node-1"));
        assert!(hooks.crash_node("node-1").await.is_err());
    }
}
