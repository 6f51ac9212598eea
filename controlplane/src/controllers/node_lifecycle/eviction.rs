//! Evicts pods that don't tolerate a NoExecute taint of their node, at once or when their
//! toleration ends.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use crate::controllers::Informers;
use crate::controllers::events::{EventRecorder, Severity};
use crate::controllers::informer::{Change, Index, Informer, ObjectKey};
use crate::controllers::pod_state::node_name;
use crate::controllers::queue::WorkQueue;
use crate::controllers::runner::{self, Controller, Next};
use crate::controllers::tasks::Tasks;
use crate::controllers::writes::{only, unless_gone};
use crate::scheduler::tolerates;

const WORKERS: usize = 8;

pub(super) fn start(client: Client, informers: &Informers, events: &EventRecorder, tasks: &Tasks) {
    let queue = WorkQueue::default();
    let (tainted, pods) = (queue.clone(), informers.pods.clone());
    informers.nodes.subscribe(move |change| {
        let node = change.object();
        let changed = match change {
            Change::Added(_) => true,
            Change::Updated { old, new } => taints(old).ne(taints(new)),
            Change::Deleted(_) => false,
        };
        if changed && taints(node).next().is_some() {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            for pod in pods.by_index(Index::Node, name) {
                tainted.add(ObjectKey::of(&*pod));
            }
        }
    });
    let (bound, nodes) = (queue.clone(), informers.nodes.clone());
    informers.pods.subscribe(move |change| {
        let pod = change.object();
        let changed = match change {
            Change::Added(_) => true,
            Change::Updated { old, new } => {
                node_name(old) != node_name(new) || tolerations(old) != tolerations(new)
            }
            Change::Deleted(_) => false,
        };
        let node = node_name(pod).filter(|_| changed);
        let node = node.and_then(|name| nodes.get(&ObjectKey::cluster(name)));
        if node.is_some_and(|node| taints(&node).next().is_some()) {
            bound.add(ObjectKey::of(&**pod));
        }
    });
    let controller = Arc::new(TaintEviction {
        client,
        pods: informers.pods.clone(),
        nodes: informers.nodes.clone(),
        events: events.named(TaintEviction::NAME),
    });
    runner::run(controller, &queue, WORKERS, tasks);
}

struct TaintEviction {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    events: EventRecorder,
}

impl Controller for TaintEviction {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "taint-eviction-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        self.nodes.synced().await;
        let Some(pod) = self.pods.get(key) else {
            return Ok(Next::Wait);
        };
        let node = node_name(&pod).and_then(|name| self.nodes.get(&ObjectKey::cluster(name)));
        let Some(node) = node.filter(|_| pod.metadata.deletion_timestamp.is_none()) else {
            return Ok(Next::Wait);
        };
        let taints: Vec<&Taint> = taints(&node).collect();
        match decide(&taints, tolerations(&pod), Timestamp::now()) {
            Eviction::Never => Ok(Next::Wait),
            Eviction::In(wait) => Ok(Next::After(wait)),
            Eviction::Now => {
                self.evict(key, &pod).await?;
                Ok(Next::Wait)
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Eviction {
    Never,
    In(Duration),
    Now,
}

/// When a pod has to leave. A toleration without an end tolerates forever; of those that end,
/// the first to end decides.
fn decide(taints: &[&Taint], tolerations: &[Toleration], now: Timestamp) -> Eviction {
    let mut first_end: Option<Timestamp> = None;
    for taint in taints {
        let mut used = tolerations
            .iter()
            .filter(|toleration| tolerates(toleration, taint));
        let Some(toleration) = used.next() else {
            return Eviction::Now;
        };
        let shortest = used
            .chain([toleration])
            .filter_map(|toleration| toleration.toleration_seconds)
            .min();
        let Some(seconds) = shortest else { continue };
        if seconds <= 0 {
            return Eviction::Now;
        }
        let since = taint.time_added.as_ref().map_or(now, |time| time.0);
        let end = since + Duration::from_secs(seconds.unsigned_abs());
        first_end = Some(first_end.map_or(end, |first| first.min(end)));
    }
    match first_end {
        None => Eviction::Never,
        Some(end) => match Duration::try_from(end.duration_since(now)) {
            Ok(wait) if !wait.is_zero() => Eviction::In(wait),
            _ => Eviction::Now,
        },
    }
}

impl TaintEviction {
    async fn evict(&self, key: &ObjectKey, pod: &Pod) -> Result<(), kube::Error> {
        let message = format!("Marking for deletion Pod {key}");
        self.events
            .record(pod, Severity::Normal, "TaintManagerEviction", message);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByTaintManager",
                "message": "Taint manager: deleting due to NoExecute taint",
                "lastTransitionTime": Time(Timestamp::now()),
                "observedGeneration": pod.metadata.generation,
            }]},
        });
        let params = PatchParams::default();
        let marked = api
            .patch_status(&key.name, &params, &Patch::Strategic(patch))
            .await;
        unless_gone(marked)?;
        let params = only(pod.metadata.uid.as_deref());
        unless_gone(api.delete(&key.name, &params).await)
    }
}

fn taints(node: &Node) -> impl Iterator<Item = &Taint> {
    let taints = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.effect == "NoExecute")
}

fn tolerations(pod: &Pod) -> &[Toleration] {
    let spec = pod.spec.as_ref();
    let tolerations = spec.and_then(|spec| spec.tolerations.as_deref());
    tolerations.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(added: i64) -> Taint {
        Taint {
            key: "node.kubernetes.io/unreachable".into(),
            effect: "NoExecute".into(),
            time_added: Some(Time(Timestamp::from_second(added).unwrap())),
            value: None,
        }
    }

    fn toleration(seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some("node.kubernetes.io/unreachable".into()),
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            toleration_seconds: seconds,
            value: None,
        }
    }

    #[test]
    fn a_pod_stays_as_long_as_it_tolerates() {
        let now = Timestamp::from_second(1000).unwrap();
        let taint = taint(900);
        let taints = [&taint];
        let decide = |tolerations: &[Toleration]| decide(&taints, tolerations, now);
        assert_eq!(decide(&[]), Eviction::Now);
        assert_eq!(decide(&[toleration(None)]), Eviction::Never);
        assert_eq!(decide(&[toleration(Some(0))]), Eviction::Now);
        assert_eq!(
            decide(&[toleration(Some(300))]),
            Eviction::In(Duration::from_secs(200))
        );
        assert_eq!(decide(&[toleration(Some(50))]), Eviction::Now);
        assert_eq!(
            decide(&[toleration(Some(300)), toleration(Some(150))]),
            Eviction::In(Duration::from_secs(50))
        );
        assert_eq!(super::decide(&[], &[], now), Eviction::Never);
    }
}
