//! The controllers: loops that move what is to what should be.
//!
//!     API server -> informer (one a kind) -> work queue (one a controller) -> reconcile
//!         -> API server
//!
//! [`Informers`] keep what is in memory, [`runner`] gives keys to workers, and a controller is
//! one file: which changes concern it, and what it does about a key. Decisions are pure
//! functions of what was observed, so that they are tested without a server. Every controller
//! can be stopped at any instant: nothing that matters is in its memory alone.

mod certificates;
mod cluster_dns;
mod deployment;
mod disruption;
mod drill_tasks;
mod endpoints;
mod event_ttl;
pub mod events;
mod garbage_collector;
pub mod informer;
pub(crate) mod informers;
mod load_balancer;
mod monitor;
mod namespace;
pub mod node_ipam;
mod node_lifecycle;
pub mod ownership;
mod pod_gc;
pub mod pod_state;
pub mod queue;
mod replicaset;
pub mod runner;
pub(crate) mod service_account;
pub mod tasks;
mod token_cleaner;
pub(crate) mod writes;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;

pub use endpoints::Advertised;
pub use informers::Informers;

use events::EventRecorder;
use ipnet::Ipv4Net;
use monitor::Monitor;
use tasks::Tasks;

use crate::auth::pki::Pki;
use crate::drill_hooks::DrillHooks;
use crate::presence::Presence;

/// As kube-controller-manager's: a year.
pub const SIGNING_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// What the controllers have to be told.
#[derive(Clone)]
pub struct Config {
    /// The certificate of the authority that signed the API server's, in PEM: published in
    /// every namespace as the ConfigMap `kube-root-ca.crt`.
    pub root_ca: String,
    /// The address of the Service `kube-dns`; without it there is none.
    pub cluster_dns: Option<Ipv4Addr>,
    /// Nodes get their pods' addresses from this block ...
    pub cluster_cidr: Ipv4Net,
    /// ... in smaller ones of so many bits: 22 leaves room for 1,021 pods.
    pub node_prefix: u8,
    /// How long a node's lease may go without renewal before the node counts as unreachable.
    pub node_grace_period: Duration,
    /// How long after a node vanished its pods are removed, should it not be back by then.
    pub pod_quarantine: Duration,
    /// How many finished pods may stay before the oldest are removed.
    pub terminated_pods: usize,
    /// Signs what is asked for by CertificateSigningRequests; without it nobody does.
    pub signer: Option<Arc<Pki>>,
    /// The longest life of a certificate that is signed (`--cluster-signing-duration`).
    pub signing_duration: Duration,
    /// Which nodes are connected.
    pub presence: Presence,
    /// Where the Service `kubernetes` leads; without it there is none.
    pub advertised: Option<Advertised>,
    /// How drills reach the process around the control plane.
    pub drill_hooks: Option<Arc<dyn DrillHooks>>,
}

impl Config {
    pub fn new(root_ca: String, cluster_cidr: Ipv4Net) -> Self {
        Self {
            root_ca,
            cluster_dns: None,
            cluster_cidr,
            node_prefix: 22.max(cluster_cidr.prefix_len()),
            node_grace_period: Duration::from_secs(10),
            pod_quarantine: Duration::from_secs(40),
            terminated_pods: 12_500,
            signer: None,
            signing_duration: SIGNING_DURATION,
            presence: Presence::default(),
            advertised: None,
            drill_hooks: None,
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
    deployment::start(client.clone(), informers, &events, &tasks);
    replicaset::start(client.clone(), informers, &events, &tasks);
    node_lifecycle::start(
        client.clone(),
        informers,
        &events,
        config.node_grace_period,
        config.presence.clone(),
        &tasks,
    );
    if let Some(pki) = config.signer.clone() {
        certificates::start(
            client.clone(),
            informers,
            pki,
            config.signing_duration,
            &tasks,
        );
    }
    disruption::start(client.clone(), informers, &tasks);
    let hooks = config.drill_hooks.clone();
    drill_tasks::start(client.clone(), informers, hooks.clone(), &tasks);
    crate::drills::start(client.clone(), informers, hooks, &tasks);
    token_cleaner::start(client.clone(), informers, &tasks);
    load_balancer::start(client.clone(), informers, &events, &tasks);
    endpoints::start(&client, informers, config.advertised, &tasks);
    let (cluster, prefix) = (config.cluster_cidr, config.node_prefix);
    node_ipam::start(client.clone(), informers, &events, cluster, prefix, &tasks);
    pod_gc::start(client.clone(), informers, &config, &tasks);
    service_account::start(client.clone(), informers, config.root_ca, &tasks);
    if let Some(address) = config.cluster_dns {
        cluster_dns::start(client.clone(), informers, address, &tasks);
    }
    event_ttl::start(client.clone(), &tasks);

    let collected = garbage_collector::Observed::default();
    let emptied = namespace::Observed::new(informers);
    let (to_collector, to_namespaces) = (collected.clone(), emptied.clone());
    let monitor = Monitor::start(
        client.clone(),
        vec![
            Box::new(move |observation| to_collector.observe(observation)),
            Box::new(move |observation| to_namespaces.observe(observation)),
        ],
        &tasks,
    );
    garbage_collector::start(client.clone(), &monitor, collected, &tasks);
    namespace::start(client, &monitor, emptied, &tasks);
    Running { tasks }
}
