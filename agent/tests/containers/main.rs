//! Real containers, through the runtime's public interface: shims, namespaces, cgroups and all.
//!
//! They run as root, each test in a data directory (and so an identity) of its own.

#![allow(clippy::unwrap_used)]

mod fixture;

mod durability;
mod exec;
mod isolation;
mod lifecycle;
mod logs;
mod server;
