//! Pods on this node: one worker task for each.
//!
//! ```text
//! API (watch) ─┐
//!              ├─> dispatch ─> worker ─> sandbox, volumes, images, containers, probes, hooks
//! pod.json ────┘                  └────> status (API and pod.json), events
//! ```
//!
//! [`dispatch`] keeps one [`worker`] for each pod that the API says is this node's, and for each
//! that is found on disk. A worker decides what is missing and has it done ([`tasks`]) through
//! the traits in [`seams`]; [`status`], [`phase`] and [`conditions`] say what is.
//!
//! # What a pod has on disk
//!
//! Everything durable is in `<root>/pods/<namespace>_<pod>_<uid>/`, readable while neither the
//! agent nor the control plane runs:
//!
//! | path | what |
//! |---|---|
//! | `pod.json` | the last known object, with the status that this node computed last |
//! | `containers/<id>/record.json` | one attempt: image, log, state, exit ([`ContainerRecord`]) |
//! | `containers/<id>/config.json` | its OCI runtime specification |
//! | `<container>/<attempt>.log` | its output, in the CRI format |
//! | `termination/<id>` | its last words (`terminationMessagePath`) |
//! | `volumes/<name>/` | volumes, except hostPath |
//! | `etc-hosts`, `etc-hostname`, `resolv.conf` | mounted into every container |
//!
//! The last two attempts of each container are kept. The directory goes when the pod's object is
//! gone.
//!
//! [`ContainerRecord`]: crate::runtime::types::ContainerRecord

pub mod api;
pub mod backoff;
pub mod conditions;
pub mod dispatch;
pub mod dns_config;
mod end;
pub mod env;
pub mod etc_files;
pub mod events;
pub mod fields;
mod grpc_check;
mod hooks;
mod http_check;
mod last_words;
mod launch;
mod network_check;
pub mod phase;
pub mod probe;
#[cfg(test)]
mod probe_tests;
mod pull;
pub mod record;
pub mod resources;
mod run;
#[cfg(test)]
pub(crate) mod scripted;
pub mod seams;
mod service_env;
mod slot;
pub mod status;
mod status_writer;
mod stop;
mod tasks;
mod tend;
pub mod worker;
#[cfg(test)]
mod worker_tests;

use std::sync::Arc;

use crate::identity::Identity;
use dns_config::NodeDns;
use events::Events;
use fields::NodeFacts;
use seams::{ContainerRuntime, ImageSource, PodApi, PodNetwork, ServiceDirectory};

/// What all workers of a node share.
pub struct NodeContext {
    pub identity: Identity,
    pub facts: NodeFacts,
    /// Bytes of memory of this host.
    pub memory_capacity: i64,
    /// Nothing is fetched; an image that is here serves `imagePullPolicy: Always` too.
    pub offline: bool,
    pub runtime: Arc<dyn ContainerRuntime>,
    pub network: Arc<dyn PodNetwork>,
    pub images: Arc<dyn ImageSource>,
    pub api: Arc<dyn PodApi>,
    pub events: Events,
    pub dns: NodeDns,
    pub services: Arc<dyn ServiceDirectory>,
}
