//! Which changes concern which ReplicaSet.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::ReplicaSetController;
use crate::controllers::informer::{Change, Index, ObjectKey};
use crate::controllers::ownership::{controller_ref, parse_selector, selects};
use crate::controllers::queue::WorkQueue;

impl ReplicaSetController {
    pub(super) fn watch(self: &Arc<Self>, queue: &WorkQueue<ObjectKey>) {
        let sets = queue.clone();
        let this = Arc::downgrade(self);
        self.replica_sets.subscribe(move |change| {
            let key = ObjectKey::of(&**change.object());
            if let (Change::Deleted(_), Some(this)) = (change, this.upgrade()) {
                this.expectations.forget(&key);
            }
            sets.add(key);
        });
        let pods = queue.clone();
        let this = Arc::downgrade(self);
        self.pods.subscribe(move |change| {
            if let Some(this) = this.upgrade() {
                this.pod_changed(change, &pods);
            }
        });
    }

    fn pod_changed(&self, change: &Change<Pod>, queue: &WorkQueue<ObjectKey>) {
        match change {
            Change::Added(pod) if pod.metadata.deletion_timestamp.is_some() => {
                self.pod_is_going(pod, queue);
            }
            Change::Added(pod) => match self.set_of(pod) {
                Some(key) => {
                    self.expectations.creation_observed(&key);
                    queue.add(key);
                }
                None => self.enqueue_adopters(pod, queue),
            },
            Change::Updated { old, new } => {
                let owner = self.set_of(new);
                let owner_before = self.set_of(old);
                if let Some(before) = owner_before.filter(|before| Some(before) != owner.as_ref()) {
                    queue.add(before);
                }
                if new.metadata.deletion_timestamp.is_some() {
                    return self.pod_is_going(new, queue);
                }
                match owner {
                    Some(key) => queue.add(key),
                    None if labels_or_owner_changed(old, new) => self.enqueue_adopters(new, queue),
                    None => {}
                }
            }
            Change::Deleted(pod) => self.pod_is_going(pod, queue),
        }
    }

    fn pod_is_going(&self, pod: &Pod, queue: &WorkQueue<ObjectKey>) {
        if let Some(key) = self.set_of(pod) {
            if let Some(uid) = &pod.metadata.uid {
                self.expectations.deletion_observed(&key, uid);
            }
            queue.add(key);
        }
    }

    /// The set that controls a pod, if it still exists.
    fn set_of(&self, pod: &Pod) -> Option<ObjectKey> {
        let owner = controller_ref(pod).filter(|owner| owner.kind == "ReplicaSet")?;
        let namespace = pod.metadata.namespace.as_deref()?;
        let key = ObjectKey::new(namespace, &owner.name);
        let set = self.replica_sets.get(&key)?;
        (set.metadata.uid.as_deref() == Some(&owner.uid)).then_some(key)
    }

    /// Lets every set that selects an orphan look whether to adopt it.
    fn enqueue_adopters(&self, pod: &Pod, queue: &WorkQueue<ObjectKey>) {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        if controller_ref(pod).is_some() || pod.metadata.labels.is_none() {
            return;
        }
        for set in self.replica_sets.by_index(Index::Namespace, namespace) {
            let selector = parse_selector(&set.spec.selector);
            if selector.is_some_and(|selector| !selector.selects_all() && selects(&selector, pod)) {
                queue.add(ObjectKey::of(&*set));
            }
        }
    }
}

fn labels_or_owner_changed(old: &Pod, new: &Pod) -> bool {
    old.metadata.labels != new.metadata.labels
        || controller_ref(old).map(|owner| &owner.uid)
            != controller_ref(new).map(|owner| &owner.uid)
}
