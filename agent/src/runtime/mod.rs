//! Containers: from a pod's declaration to processes, and back to exit codes.
//!
//! [`Runtime`] starts one shim for each pod sandbox and finds those that already run.
//! A [`Sandbox`] is the agent's client of one shim: it creates, starts, signals and removes
//! containers, runs commands in them, and tells of every exit. `spec` turns what Kubernetes
//! says of a container into an OCI runtime specification, `cgroup` speaks to the kernel's
//! cgroup files on v1, v2 and hybrid hosts.

pub mod types;
