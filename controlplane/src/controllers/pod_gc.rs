//! The pod garbage collector: removes pods whose node is gone for good, pods that end without
//! ever having had a node, and the oldest finished pods when there are too many.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tracing::info;

use super::informer::{Change, Index, Informer, ObjectKey};
use super::pod_state::{is_finished, node_name};
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next};
use super::tasks::Tasks;
use super::writes::{only, unless_gone};
use super::{Config, Informers};

pub(super) fn start(client: Client, informers: &Informers, config: &Config, tasks: &Tasks) {
    // A node that vanished may be back at once, under the same name.
    let quarantine = config.pod_quarantine;
    let queue: WorkQueue<Task> = WorkQueue::default();
    let (nodes, pods) = (queue.clone(), informers.pods.clone());
    informers.nodes.subscribe(move |change| {
        if let Change::Deleted(node) = change {
            let name = node.metadata.name.as_deref().unwrap_or_default();
            for pod in pods.by_index(Index::Node, name) {
                nodes.add_after(Task::Pod(ObjectKey::of(&*pod)), quarantine);
            }
        }
    });
    let (pods, known_nodes) = (queue.clone(), informers.nodes.clone());
    informers.pods.subscribe(move |change| {
        let pod = change.object();
        let was_finished = matches!(change, Change::Updated { old, .. } if is_finished(old));
        match change {
            Change::Deleted(_) => return,
            _ if is_finished(pod) && !was_finished => pods.add(Task::Finished),
            _ => {}
        }
        match node_name(pod) {
            None if pod.metadata.deletion_timestamp.is_some() => {
                pods.add(Task::Pod(ObjectKey::of(&**pod)));
            }
            Some(node)
                if matches!(change, Change::Added(_))
                    && known_nodes.get(&ObjectKey::cluster(node)).is_none() =>
            {
                pods.add_after(Task::Pod(ObjectKey::of(&**pod)), quarantine);
            }
            _ => {}
        }
    });
    let controller = Arc::new(PodGc {
        client,
        pods: informers.pods.clone(),
        nodes: informers.nodes.clone(),
        terminated_pods: config.terminated_pods,
    });
    runner::run(controller, &queue, 1, tasks);
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Task {
    /// See whether this pod has to go.
    Pod(ObjectKey),
    /// See whether there are too many finished pods.
    Finished,
}

struct PodGc {
    client: Client,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    terminated_pods: usize,
}

impl Controller for PodGc {
    type Key = Task;
    type Error = kube::Error;
    const NAME: &'static str = "pod-garbage-collector-controller";

    async fn reconcile(&self, task: &Task) -> Result<Next, kube::Error> {
        self.nodes.synced().await;
        self.pods.synced().await;
        match task {
            Task::Pod(key) => self.collect(key).await?,
            Task::Finished => self.collect_finished().await?,
        }
        Ok(Next::Wait)
    }
}

impl PodGc {
    async fn collect(&self, key: &ObjectKey) -> Result<(), kube::Error> {
        let Some(pod) = self.pods.get(key) else {
            return Ok(());
        };
        match node_name(&pod) {
            None if pod.metadata.deletion_timestamp.is_some() => self.delete(&pod).await,
            Some(node) if self.is_gone(node).await? => {
                info!(pod = %key, node, "removing a pod whose node no longer exists");
                if !is_finished(&pod) {
                    self.mark_failed(&pod).await?;
                }
                self.delete(&pod).await
            }
            _ => Ok(()),
        }
    }

    async fn is_gone(&self, node: &str) -> Result<bool, kube::Error> {
        if self.nodes.get(&ObjectKey::cluster(node)).is_some() {
            return Ok(false);
        }
        let api: Api<Node> = Api::all(self.client.clone());
        Ok(api.get_metadata_opt(node).await?.is_none())
    }

    async fn mark_failed(&self, pod: &Pod) -> Result<(), kube::Error> {
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {
                "phase": "Failed",
                "conditions": [{
                    "type": "DisruptionTarget",
                    "status": "True",
                    "reason": "DeletionByPodGC",
                    "message": "PodGC: node no longer exists",
                    "lastTransitionTime": Time(jiff::Timestamp::now()),
                    "observedGeneration": pod.metadata.generation,
                }],
            },
        });
        let (api, name) = self.api(pod);
        let params = PatchParams::default();
        match api
            .patch_status(&name, &params, &Patch::Strategic(patch))
            .await
        {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    async fn collect_finished(&self) -> Result<(), kube::Error> {
        let mut finished: Vec<Arc<Pod>> = self.pods.list();
        finished.retain(|pod| is_finished(pod) && pod.metadata.deletion_timestamp.is_none());
        let surplus = finished.len().saturating_sub(self.terminated_pods);
        if surplus == 0 {
            return Ok(());
        }
        finished.sort_by_key(|pod| {
            let created = pod.metadata.creation_timestamp.clone();
            (created.map(|time| time.0), ObjectKey::of(&**pod))
        });
        for pod in &finished[..surplus] {
            self.delete(pod).await?;
        }
        Ok(())
    }

    async fn delete(&self, pod: &Pod) -> Result<(), kube::Error> {
        let (api, name) = self.api(pod);
        let params = only(pod.metadata.uid.as_deref()).grace_period(0);
        unless_gone(api.delete(&name, &params).await)
    }

    fn api(&self, pod: &Pod) -> (Api<Pod>, String) {
        let key = ObjectKey::of(pod);
        let api = Api::namespaced(self.client.clone(), &key.namespace);
        (api, key.name.to_string())
    }
}
