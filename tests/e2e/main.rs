//! End-to-end tests of the `skiff` binary: real containers, driven by kubectl and by kube-rs.
//!
//! Every test starts a cluster of its own on its own data directory and port ([`cluster`]), so tests
//! run side by side and share nothing but the image archives ([`images`]). A cluster that is dropped is taken
//! down with `skiff down --purge`, and the test fails when anything of it is left on the host ([`host`]).
//!
//! Tests wait for conditions ([`wait`]); no test sleeps for luck and none asserts how long something took.

mod cluster;
mod drill_tasks;
mod host;
mod images;
mod load;
mod registry;
mod wait;
mod web;

mod client;
mod crashes;
mod data_plane;
mod deployment;
mod dns;
mod drill_command;
mod drills;
mod drills_agent;
mod drills_api;
mod drills_container;
mod drills_examples;
mod drills_honest;
mod drills_network;
mod drills_restarts;
mod drills_supplies;
mod durability;
mod healing;
mod inspection;
mod isolation;
mod joining;
mod joining_skewed;
mod logs;
mod node_tables;
mod nodes;
mod probes;
mod pull;
mod reconcile;
mod service_faults;
mod services;
mod start;
