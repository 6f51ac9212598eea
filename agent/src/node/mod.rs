//! This host as a Kubernetes node: registration, heartbeat, conditions, capacity.
//!
//! [`host`] finds out what the host is; [`status`] says it as a Node's status; [`Registrar`] puts the Node
//! into the API, keeps its status true (written when it changes, and every five minutes), and renews
//! its lease.

pub mod host;
mod image_gc;
mod lease;
mod pod_cidr;
mod status;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus, ObjectReference, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::json;
use skiff_images::Store;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::pod::events::{Events, Severity};
use crate::reconnect::Reconnect;
use host::Host;
use ipnet::Ipv4Net;

pub use host::host_address;
pub(crate) use image_gc::Collector;
pub use image_gc::ImageGcPolicy;
pub(crate) use pod_cidr::pod_cidr;
pub(crate) use status::{KUBELET_VERSION, allocatable_memory};

/// Between looks at the host, as the kubelet's `nodeStatusUpdateFrequency`.
const LOOK: Duration = Duration::from_secs(10);
/// The longest time without a written status, as the kubelet's `nodeStatusReportFrequency`.
const REPORT: Duration = Duration::from_secs(300);
/// Between attempts to reach an API that does not answer.
const RETRY: Duration = Duration::from_secs(1);

/// What a node tells of itself.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub name: String,
    /// Beside those that Kubernetes gives to every node.
    pub labels: BTreeMap<String, String>,
    /// Set when the node joins, and left alone afterwards.
    pub taints: Vec<Taint>,
    /// Where the node is reached.
    pub address: IpAddr,
    /// Of the node's HTTPS endpoint.
    pub port: u16,
    /// The addresses that its pods have, if it had any: it asks for the same again.
    pub pod_cidr: Option<Ipv4Net>,
    pub max_pods: u32,
}

/// This node's images, and when to look at them again before it is time.
#[derive(Clone)]
pub(crate) struct NodeImageList {
    pub(crate) store: Store,
    pub(crate) changed: Arc<Notify>,
}

/// What the API says about this node.
enum Seen {
    Here(Box<Node>),
    Gone,
}

/// The node as it joins: without a status it takes no pods yet.
pub(crate) fn new_node(config: &NodeConfig, host: &Host) -> Node {
    let wanted = config
        .pod_cidr
        .map(|block| BTreeMap::from([(pod_cidr::WANTED.to_owned(), block.to_string())]));
    let taints = config.taints.clone();
    Node {
        metadata: ObjectMeta {
            name: Some(config.name.clone()),
            labels: Some(status::labels(config, host)),
            annotations: wanted,
            ..ObjectMeta::default()
        },
        spec: (!taints.is_empty()).then(|| NodeSpec {
            taints: Some(taints),
            ..NodeSpec::default()
        }),
        status: None,
    }
}

/// Keeps the Node object.
pub(crate) struct Registrar {
    config: NodeConfig,
    host: Host,
    images: NodeImageList,
    nodes: Api<Node>,
    client: Client,
    events: Events,
    /// True once the node is in the API with its status.
    registered: watch::Sender<bool>,
    /// Woken when the disk becomes short.
    disk_pressure: Arc<Notify>,
}

impl Registrar {
    pub(crate) fn new(
        config: NodeConfig,
        host: Host,
        images: NodeImageList,
        client: Client,
        events: Events,
    ) -> Self {
        Self {
            config,
            host,
            images,
            nodes: Api::all(client.clone()),
            client,
            events,
            registered: watch::channel(false).0,
            disk_pressure: Arc::default(),
        }
    }

    /// Woken when the node comes under disk pressure.
    pub(crate) fn disk_pressure(&self) -> Arc<Notify> {
        Arc::clone(&self.disk_pressure)
    }

    /// Turns true when the node is in the API.
    pub(crate) fn registered(&self) -> watch::Receiver<bool> {
        self.registered.subscribe()
    }

    /// Registers the node and keeps it true, until dropped.
    pub(crate) async fn run(self) {
        let mut known = self.register_until_done().await;
        let uid = known.metadata.uid.clone().unwrap_or_default();
        let lease = lease::renew(self.client.clone(), self.config.name.clone(), uid);
        tokio::select! {
            () = lease => {}
            () = self.keep_status(&mut known) => {}
        }
        // As the kubelet: a node that somebody took out of the cluster does not come back by itself.
        tracing::warn!(
            node = self.config.name,
            "the node was deleted from the cluster: restart its agent to have it join again"
        );
        std::future::pending::<()>().await;
    }

    async fn register_until_done(&self) -> Node {
        let mut reported = false;
        loop {
            match self.register().await {
                Ok(node) => return node,
                Err(error) if !reported => {
                    tracing::warn!(node = self.config.name, %error, "node not registered, trying again");
                    reported = true;
                }
                Err(_) => {}
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Puts the node into the API. One that is there keeps its labels and taints; those that
    /// are this node's to set are set.
    async fn register(&self) -> Result<Node, kube::Error> {
        let name = &self.config.name;
        match self.nodes.get_opt(name).await? {
            Some(found) => {
                let labels = status::labels(&self.config, &self.host);
                let had = found.metadata.labels.unwrap_or_default();
                if labels
                    .iter()
                    .any(|(key, value)| had.get(key) != Some(value))
                {
                    let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
                    self.nodes
                        .patch(name, &PatchParams::default(), &patch)
                        .await?;
                }
                let first = found.status.as_ref().is_none_or(|s| s.conditions.is_none());
                let node = self.write_status(found.status.as_ref()).await?;
                if first {
                    self.tell_first_conditions();
                }
                Ok(node)
            }
            None => {
                self.nodes
                    .create(&PostParams::default(), &new_node(&self.config, &self.host))
                    .await?;
                let node = self.write_status(None).await?;
                self.tell_first_conditions();
                Ok(node)
            }
        }
    }

    async fn write_status(&self, last: Option<&NodeStatus>) -> Result<Node, kube::Error> {
        let status = self.look(last).await;
        self.put(&status).await
    }

    async fn put(&self, status: &NodeStatus) -> Result<Node, kube::Error> {
        let patch = Patch::Strategic(json!({"status": status}));
        let name = &self.config.name;
        let written = self
            .nodes
            .patch_status(name, &PatchParams::default(), &patch)
            .await?;
        self.registered.send_replace(true);
        Ok(written)
    }

    /// The node's status as the host is now.
    async fn look(&self, last: Option<&NodeStatus>) -> NodeStatus {
        let images = match self.images.store.list().await {
            Ok(images) => images,
            Err(error) => {
                tracing::warn!(%error, "can't list this node's images");
                Vec::new()
            }
        };
        let dir = self.images.store.root().to_owned();
        let pressure = tokio::task::spawn_blocking(move || host::Pressure::look(&dir)).await;
        let pressure = pressure.unwrap_or_default();
        status::compute(
            &self.config,
            &self.host,
            &images,
            pressure,
            last,
            Timestamp::now(),
        )
    }

    /// Until somebody deletes the node.
    async fn keep_status(&self, known: &mut Node) {
        let mut written = Instant::now();
        let mut failing = false;
        let mut seen = pin!(self.seen());
        loop {
            tokio::select! {
                () = tokio::time::sleep(if failing { RETRY } else { LOOK }) => {}
                () = self.images.changed.notified(), if !failing => {}
                // What others make of this node while it can't be heard is mended at once.
                Some(node) = seen.next() => match node {
                    Seen::Here(node) if node.metadata.uid == known.metadata.uid => *known = *node,
                    Seen::Here(_) | Seen::Gone => return,
                },
            }
            let last = known.status.as_ref();
            let status = self.look(last).await;
            let changed = last.is_none_or(|last| status::differs(last, &status));
            if !changed && !failing && written.elapsed() < REPORT {
                continue;
            }
            match self.put(&status).await {
                Ok(node) => {
                    self.tell_changes(last, &status);
                    *known = node;
                    written = Instant::now();
                    failing = false;
                }
                Err(kube::Error::Api(answer)) if answer.code == 404 => {
                    return;
                }
                Err(error) => {
                    if !failing {
                        tracing::warn!(node = self.config.name, %error, "node status not written, trying again");
                    }
                    failing = true;
                }
            }
        }
    }

    /// The Node as the API has it, whenever it changes.
    fn seen(&self) -> impl Stream<Item = Seen> + Send + use<> {
        let config =
            watcher::Config::default().fields(&format!("metadata.name={}", self.config.name));
        let events = watcher(self.nodes.clone(), config).backoff(Reconnect::default());
        let mut found = false;
        events.filter_map(move |event| {
            let seen = match event {
                Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node)) => {
                    found = true;
                    Some(Seen::Here(Box::new(node)))
                }
                Ok(watcher::Event::Init) => {
                    found = false;
                    None
                }
                Ok(watcher::Event::InitDone) if found => None,
                Ok(watcher::Event::InitDone | watcher::Event::Delete(_)) => Some(Seen::Gone),
                // It is tried again; what is lost meanwhile is in the next list.
                Err(_) => None,
            };
            std::future::ready(seen)
        })
    }

    fn tell_first_conditions(&self) {
        self.tell(Severity::Normal, "Starting", "Starting kubelet.".into());
        for reason in [
            "NodeHasSufficientMemory",
            "NodeHasNoDiskPressure",
            "NodeHasSufficientPID",
            "NodeReady",
        ] {
            self.tell_status(reason);
        }
        let message = "Updated Node Allocatable limit across pods".to_owned();
        self.tell(Severity::Normal, "NodeAllocatableEnforced", message);
    }

    fn tell_changes(&self, last: Option<&NodeStatus>, now: &NodeStatus) {
        let Some(last) = last else { return };
        for reason in status::transitions(last, now) {
            if reason == "NodeHasDiskPressure" {
                self.disk_pressure.notify_one();
            }
            self.tell_status(reason);
        }
    }

    fn tell_status(&self, reason: &'static str) {
        let message = format!("Node {} status is now: {reason}", self.config.name);
        self.tell(Severity::Normal, reason, message);
    }

    fn tell(&self, severity: Severity, reason: &'static str, message: String) {
        tell(&self.events, &self.config.name, severity, reason, message);
    }
}

/// Records an event about a node.
fn tell(events: &Events, node: &str, severity: Severity, reason: &'static str, message: String) {
    let about = ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(node.to_owned()),
        // The kubelet's habit: a node's events go by its name.
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    };
    events.record(about, severity, reason, message);
}
