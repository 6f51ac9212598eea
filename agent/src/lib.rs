//! The node agent: everything that happens on one node.
//!
//! [`Agent::start`] takes a [`Config`] and gives a [`Running`] agent; [`purge`] ends everything that
//! an agent of a data directory ever had on this host.

mod agent;
pub mod drill;
pub mod fleet;
pub mod hooks;
pub mod identity;
pub mod join;
mod leases;
pub mod logs;
pub mod net;
pub mod node;
pub mod pod;
mod pull_accounts;
mod purge;
mod quantity;
mod reconnect;
pub mod runtime;
pub mod server;
pub mod volume;
mod wiring;

pub use agent::{Agent, AgentError, ApiServer, Config, MAX_PODS, Running};
pub use purge::{PurgeError, purge};
