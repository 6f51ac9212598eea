//! The node agent: everything that happens on one node.

pub mod identity;
pub mod logs;
pub mod net;
pub mod pod;
mod quantity;
pub mod runtime;
pub mod server;
pub mod volume;
