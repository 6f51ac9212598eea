//! The controllers: loops that move what is to what should be.
//!
//!     API server -> informer (one a kind) -> work queue (one a controller) -> reconcile
//!         -> API server
//!
//! [`Informers`] keep what is in memory, [`runner`] gives keys to workers, and a controller is
//! one file: which changes concern it, and what it does about a key. Decisions are pure
//! functions of what was observed, so that they are tested without a server. Every controller
//! can be stopped at any instant: nothing that matters is in its memory alone.

mod deployment;
pub mod events;
pub mod informer;
pub mod ownership;
pub mod pod_state;
pub mod queue;
mod replicaset;
pub mod runner;
pub mod tasks;

use std::time::Duration;

use kube::Client;

pub use informer::Informers;

use events::EventRecorder;
use tasks::Tasks;

/// What the controllers have to be told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The certificate of the authority that signed the API server's, in PEM: published in
    /// every namespace as the ConfigMap `kube-root-ca.crt`.
    pub root_ca: String,
    /// How long a node's lease may go without renewal before the node counts as unreachable.
    pub node_grace_period: Duration,
    /// How many finished pods may stay before the oldest are removed.
    pub terminated_pods: usize,
}

impl Config {
    pub fn new(root_ca: String) -> Self {
        Self {
            root_ca,
            node_grace_period: Duration::from_secs(10),
            terminated_pods: 12_500,
        }
    }
}

/// Controllers that run until they are stopped.
pub struct Running {
    tasks: Tasks,
}

impl Running {
    /// Ends every controller and waits for the last.
    pub async fn stop(self) {
        self.tasks.stop().await;
    }
}

/// Starts every controller, over informers that the scheduler can share.
pub fn start(client: Client, informers: &Informers, config: Config) -> Running {
    let tasks = Tasks::default();
    let events = EventRecorder::start(client.clone(), "controller-manager", &tasks);
    let _ = config;
    deployment::start(client.clone(), informers, &events, &tasks);
    replicaset::start(client.clone(), informers, &events, &tasks);
    Running { tasks }
}
