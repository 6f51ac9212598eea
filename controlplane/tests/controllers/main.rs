//! The controllers and the scheduler at work on a real API server and store, in this process.
//!
//! Nodes are stand-ins that answer for their pods through the API (see `cluster`): what is
//! tested here is what the control plane decides. Real containers are the end-to-end tests'.

#![allow(clippy::unwrap_used)]

mod cluster;
mod deployments;
mod drill_agents;
mod drills;
mod garbage;
mod nodes;
mod scheduling;
mod services;
