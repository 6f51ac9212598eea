//! What a drill needs of the process around the agent: to be ended and started again.

use std::fmt;
use std::io;

use jiff::Timestamp;

/// The process that an agent runs in. Whoever starts the agent passes it in its
/// [`Config`](crate::Config).
pub trait AgentHooks: fmt::Debug + Send + Sync + 'static {
    /// Ends the agent at once, as SIGKILL does, and starts it again in the same process: pid, arguments,
    /// environment and output stay; memory, threads and open files are gone. Containers run on.
    /// It returns only when it could not.
    fn restart(&self) -> io::Error;

    /// The same, but the new agent begins its work no earlier than `at`. Until then it holds nothing
    /// but the lock of its data directory.
    fn restart_at(&self, at: Timestamp) -> io::Error;

    /// Whether the control plane runs in the same process, and ends and starts with the agent.
    fn with_control_plane(&self) -> bool;
}
