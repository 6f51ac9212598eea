//! The node lifecycle controller: notices nodes that are silent, taints nodes by their
//! conditions, and tells the pods of a node that isn't ready.
//!
//!     lease renewed -> heartbeat noted (no reconcile)
//!     grace period over without one -> Ready is Unknown -> taints -> eviction
//!     its agent's connections closed, none within a second -> the same, at once
//!
//! A node's silence is measured on this process's clock, from the heartbeat that it last saw:
//! clocks of nodes don't matter, and a control plane that was away gives every node a full
//! grace period.

mod eviction;
mod taints;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;
use tracing::warn;

use super::Informers;
use super::events::{EventRecorder, Severity};
use super::informer::{Change, Index, Informer, ObjectKey};
use super::pod_state::is_ready;
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next};
use super::tasks::Tasks;
use crate::presence::Presence;
use taints::Readiness;

const WORKERS: usize = 4;
/// How long an agent may take to connect again before its node counts as gone: a restart.
const RETURN: Duration = Duration::from_secs(1);
/// Pods of a lost node that are marked at one time.
const PODS_AT_ONCE: usize = 64;
/// The conditions that a node reports itself, and can't any more when it is silent.
const REPORTED: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

pub(super) fn start(
    client: Client,
    informers: &Informers,
    events: &EventRecorder,
    grace_period: Duration,
    presence: Presence,
    tasks: &Tasks,
) {
    let queue = WorkQueue::default();
    let controller = Arc::new(NodeLifecycle {
        client: client.clone(),
        nodes: informers.nodes.clone(),
        pods: informers.pods.clone(),
        events: events.named("node-controller"),
        grace_period,
        heartbeats: Mutex::default(),
        presence: presence.clone(),
    });
    controller.watch(informers, &queue);
    let absent = queue.clone();
    tasks.supervise("node-presence", move || {
        notice_absence(presence.clone(), absent.clone())
    });
    runner::run(controller, &queue, WORKERS, tasks);
    eviction::start(client, informers, events, tasks);
}

struct NodeLifecycle {
    client: Client,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    events: EventRecorder,
    grace_period: Duration,
    /// When each node was last heard of.
    heartbeats: Mutex<HashMap<Arc<str>, Instant>>,
    /// Which nodes' connections are closed.
    presence: Presence,
}

/// Has every node looked at that lost its last connection and did not return.
async fn notice_absence(presence: Presence, queue: WorkQueue<ObjectKey>) {
    let mut losses = presence.losses();
    losses.mark_changed();
    while losses.changed().await.is_ok() {
        for node in presence.absent() {
            queue.add_after(ObjectKey::cluster(&node), RETURN);
        }
    }
}

impl Controller for NodeLifecycle {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "node-lifecycle-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        self.nodes.synced().await;
        self.pods.synced().await;
        let Some(node) = self.nodes.get(key) else {
            self.heartbeats().remove(&key.name);
            self.presence.forget(&key.name);
            return Ok(Next::Wait);
        };
        let heard = *self
            .heartbeats()
            .entry(key.name.clone())
            .or_insert_with(Instant::now);
        let silence = heard.elapsed();
        let mut node = Node::clone(&node);
        let is_gone = self
            .presence
            .absent_for(&key.name)
            .is_some_and(|absence| absence >= RETURN);
        let is_silent = silence >= self.grace_period;
        if (is_silent || is_gone) && taints::readiness(&node) != Readiness::Unknown {
            warn!(node = %key, ?silence, is_gone, "node is silent; taking it for unreachable");
            node = self.mark_unknown(node).await?;
        }
        if taints::readiness(&node) != Readiness::Ready {
            self.mark_pods_not_ready(&node).await?;
        }
        self.write_taints(&node).await?;
        Ok(match self.grace_period.checked_sub(silence) {
            Some(left) if !left.is_zero() => Next::After(left),
            _ => Next::Wait,
        })
    }
}

impl NodeLifecycle {
    fn watch(self: &Arc<Self>, informers: &Informers, queue: &WorkQueue<ObjectKey>) {
        let leases = Arc::downgrade(self);
        let lease_queue = queue.clone();
        informers.node_leases.subscribe(move |change| {
            let (Some(this), Some(name)) = (leases.upgrade(), &change.object().metadata.name)
            else {
                return;
            };
            if !matches!(change, Change::Deleted(_)) {
                this.hear(name, &lease_queue);
            }
        });
        let nodes = Arc::downgrade(self);
        let node_queue = queue.clone();
        informers.nodes.subscribe(move |change| {
            if let Some(this) = nodes.upgrade() {
                this.node_changed(change, &node_queue);
            }
        });
        let pods = queue.clone();
        let known = informers.nodes.clone();
        informers.pods.subscribe(move |change| {
            // A pod that says it is ready on a node that isn't has to be corrected.
            let pod = change.object();
            let name = super::pod_state::node_name(pod).unwrap_or_default();
            let key = ObjectKey::cluster(name);
            if !matches!(change, Change::Deleted(_))
                && is_ready(pod)
                && known
                    .get(&key)
                    .is_some_and(|node| taints::readiness(&node) == Readiness::Unknown)
            {
                pods.add(key);
            }
        });
    }

    /// Notes a sign of life. It brings a reconcile only if the node was taken for dead: its
    /// own time comes when the grace period of the last one noted is over.
    fn hear(&self, name: &str, queue: &WorkQueue<ObjectKey>) {
        let before = self.heartbeats().insert(name.into(), Instant::now());
        if before.is_none_or(|before| before.elapsed() >= self.grace_period) {
            queue.add(ObjectKey::cluster(name));
        }
    }

    fn node_changed(&self, change: &Change<Node>, queue: &WorkQueue<ObjectKey>) {
        let key = ObjectKey::of(&**change.object());
        let readiness_changed = match change {
            Change::Added(_) => {
                self.hear(&key.name, queue);
                true
            }
            Change::Updated { old, new } => {
                if heartbeat(old) != heartbeat(new) && taints::readiness(new) != Readiness::Unknown
                {
                    self.hear(&key.name, queue);
                }
                taints::readiness(old) != taints::readiness(new)
            }
            Change::Deleted(_) => true,
        };
        queue.add(key);
        if readiness_changed {
            // How many are ready decides whether pods may be evicted from those that aren't.
            for node in self.nodes.list() {
                if taints::readiness(&node) != Readiness::Ready {
                    queue.add(ObjectKey::of(&*node));
                }
            }
        }
    }

    async fn mark_unknown(&self, mut node: Node) -> Result<Node, kube::Error> {
        let now = Time(Timestamp::now());
        let conditions = node
            .status
            .get_or_insert_default()
            .conditions
            .get_or_insert_default();
        for kind in REPORTED {
            match conditions
                .iter_mut()
                .find(|condition| condition.type_ == kind)
            {
                Some(condition) if condition.status != "Unknown" => {
                    condition.status = "Unknown".into();
                    condition.reason = Some("NodeStatusUnknown".into());
                    condition.message = Some("Kubelet stopped posting node status.".into());
                    condition.last_transition_time = Some(now.clone());
                }
                Some(_) => {}
                None => conditions.push(NodeCondition {
                    type_: kind.into(),
                    status: "Unknown".into(),
                    reason: Some("NodeStatusNeverUpdated".into()),
                    message: Some("Kubelet never posted node status.".into()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(now.clone()),
                }),
            }
        }
        let name = node.metadata.name.clone().unwrap_or_default();
        let updated = self
            .api()
            .replace_status(&name, &PostParams::default(), &node)
            .await?;
        let message = format!("Node {name} status is now: NodeNotReady");
        self.events
            .record(&updated, Severity::Normal, "NodeNotReady", message);
        Ok(updated)
    }

    /// Nobody on a silent node can say so, and services must stop sending there.
    async fn mark_pods_not_ready(&self, node: &Node) -> Result<(), kube::Error> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let mut pods = self.pods.by_index(Index::Node, name);
        pods.retain(|pod| is_ready(pod));
        stream::iter(&pods)
            .map(Ok)
            .try_for_each_concurrent(PODS_AT_ONCE, |pod| self.mark_pod_not_ready(pod))
            .await
    }

    async fn mark_pod_not_ready(&self, pod: &Pod) -> Result<(), kube::Error> {
        let key = ObjectKey::of(pod);
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [{
                "type": "Ready",
                "status": "False",
                "lastTransitionTime": Time(Timestamp::now()),
                "observedGeneration": pod.metadata.generation,
            }]},
        });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let params = PatchParams::default();
        match api
            .patch_status(&key.name, &params, &Patch::Strategic(patch))
            .await
        {
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            other => drop(other?),
        }
        self.events
            .record(pod, Severity::Warning, "NodeNotReady", "Node is not ready");
        Ok(())
    }

    async fn write_taints(&self, node: &Node) -> Result<(), kube::Error> {
        let spec = node.spec.as_ref();
        let current = spec
            .and_then(|spec| spec.taints.clone())
            .unwrap_or_default();
        let all = self.nodes.list();
        let disruption = taints::disruption(all.iter().map(|node| taints::readiness(node)));
        let wanted = taints::wanted(node, &current, disruption, Timestamp::now());
        if wanted == current {
            return Ok(());
        }
        let patch = json!({
            "metadata": {
                "uid": node.metadata.uid,
                "resourceVersion": node.metadata.resource_version,
            },
            "spec": {"taints": wanted},
        });
        let name = node.metadata.name.as_deref().unwrap_or_default();
        self.api()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        Ok(())
    }

    fn api(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    fn heartbeats(&self) -> MutexGuard<'_, HashMap<Arc<str>, Instant>> {
        self.heartbeats
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn heartbeat(node: &Node) -> Option<&Time> {
    taints::condition(node, "Ready")?
        .last_heartbeat_time
        .as_ref()
}
