//! What everything with a pod in it shares: pods themselves and the templates of Deployments
//! and ReplicaSets.

pub(super) mod affinity;
mod container;
pub(crate) mod defaults;
pub(crate) mod qos;
pub(crate) mod resources;
pub(crate) mod validation;
pub(crate) mod volumes;
