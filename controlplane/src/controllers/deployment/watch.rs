//! Which changes concern which deployment.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;

use super::DeploymentController;
use crate::controllers::informer::{Change, Index, ObjectKey};
use crate::controllers::ownership::{controller_ref, parse_selector, selects};
use crate::controllers::queue::WorkQueue;

impl DeploymentController {
    pub(super) fn watch(self: &Arc<Self>, queue: &WorkQueue<ObjectKey>) {
        let deployments = queue.clone();
        self.deployments
            .subscribe(move |change| deployments.add(ObjectKey::of(&**change.object())));
        let sets = queue.clone();
        let this = Arc::downgrade(self);
        self.replica_sets.subscribe(move |change| {
            if let Some(this) = this.upgrade() {
                this.set_changed(change, &sets);
            }
        });
        let pods = queue.clone();
        let this = Arc::downgrade(self);
        self.pods.subscribe(move |change| {
            if let (Change::Deleted(pod), Some(this)) = (change, this.upgrade()) {
                this.pod_deleted(pod, &pods);
            }
        });
    }

    fn set_changed(&self, change: &Change<ReplicaSet>, queue: &WorkQueue<ObjectKey>) {
        let set = change.object();
        let owner = deployment_of(set);
        if let Change::Updated { old, .. } = change
            && let Some(before) = deployment_of(old)
            && Some(&before) != owner.as_ref()
        {
            queue.add(before);
        }
        match owner {
            Some(key) => queue.add(key),
            None if matches!(change, Change::Deleted(_)) => {}
            None => self.enqueue_adopters(set, queue),
        }
    }

    fn enqueue_adopters(&self, set: &ReplicaSet, queue: &WorkQueue<ObjectKey>) {
        if controller_ref(set).is_some() || set.metadata.labels.is_none() {
            return;
        }
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        for deployment in self.deployments.by_index(Index::Namespace, namespace) {
            let selector = parse_selector(&deployment.spec.selector);
            if selector.is_some_and(|selector| !selector.selects_all() && selects(&selector, set)) {
                queue.add(ObjectKey::of(&*deployment));
            }
        }
    }

    /// Recreate waits for the last old pod to be gone; nothing else depends on single pods.
    fn pod_deleted(&self, pod: &Pod, queue: &WorkQueue<ObjectKey>) {
        let Some(owner) = controller_ref(pod).filter(|owner| owner.kind == "ReplicaSet") else {
            return;
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let set = self
            .replica_sets
            .get(&ObjectKey::new(namespace, &owner.name));
        let Some(key) = set.and_then(|set| deployment_of(&set)) else {
            return;
        };
        let recreates = self.deployments.get(&key).is_some_and(|deployment| {
            let strategy = deployment.spec.strategy.as_ref();
            strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
        });
        if recreates {
            queue.add(key);
        }
    }
}

fn deployment_of(set: &ReplicaSet) -> Option<ObjectKey> {
    let owner = controller_ref(set).filter(|owner| owner.kind == "Deployment")?;
    let namespace = set.metadata.namespace.as_deref()?;
    Some(ObjectKey::new(namespace, &owner.name))
}
