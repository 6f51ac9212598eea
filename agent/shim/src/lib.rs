//! What the agent and a pod's supervisor (the shim) say to each other.
//!
//! One shim runs for each pod. It listens on `<run dir>/shim.sock`, a Unix socket of the
//! sequenced-packet kind: one packet is one JSON message, and file descriptors travel with the
//! message that they belong to. Any number of clients may be connected.
//!
//! - [`protocol`]: the requests, their answers and the news that a shim tells unasked;
//! - [`record`]: what is durably known of a container;
//! - [`wire`]: packets with descriptors, for both sides.

pub mod protocol;
pub mod record;
pub mod wire;
