//! How drills reach this process: what an agent and a control plane can't do to themselves.

use std::io;

use jiff::Timestamp;
use skiff_agent::hooks::AgentHooks;

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
