//! What a drill needs of the process around the control plane: to end it and start it again, and to
//! end and start the nodes that it keeps on its own host.
//!
//! The control plane can't do either by itself; whoever starts it passes these hooks in its
//! [`Config`](crate::Config). Faults of all other nodes are their agents'.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;

/// How a control plane is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart {
    /// At once, as by SIGKILL; else after an orderly stop.
    pub kill: bool,
    /// How long it stays away beyond what its start takes.
    pub down: Duration,
}

/// A hook could not do what it was asked for; the sentence is for whoever runs the drill.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HookError(pub String);

#[async_trait]
pub trait DrillHooks: fmt::Debug + Send + Sync + 'static {
    /// The node whose agent runs in the control plane's own process, if one does: it falls and rises
    /// with the control plane, and can't be crashed alone.
    fn own_node(&self) -> Option<&str>;

    /// Whether this process keeps the node on its own host (`up --nodes`).
    fn has_node(&self, name: &str) -> bool;

    /// Ends everything of such a node at once: agent, shims, containers, network. Does nothing more
    /// when it has ended already.
    ///
    /// # Errors
    /// When there is no such node, or something of it stays.
    async fn crash_node(&self, name: &str) -> Result<(), HookError>;

    /// Brings such a node back. Does nothing when it runs.
    ///
    /// # Errors
    /// When there is no such node.
    async fn start_node(&self, name: &str) -> Result<(), HookError>;

    /// Ends the control plane and starts it again in the same process: pid, arguments, environment and
    /// output stay. Whoever calls it ends with it; it returns only when it could not.
    async fn restart(&self, restart: Restart) -> HookError;
}
