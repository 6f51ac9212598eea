//! When a pod of this node may be ended: after this node's table has stopped to lead to it.
//!
//! A pod that is being deleted leaves its EndpointSlices at once, and every node's data plane follows
//! within milliseconds. A container that got its signal before that would refuse connections that are
//! still sent to it; so the pod's worker waits here, for a bounded time. What the other nodes have to let go of
//! is named by a revision of the slices: [`crate::net::settling`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::watch;

/// What the table that is in force says of this node's pods.
#[derive(Debug, Default)]
pub(in crate::net) struct Committed {
    /// The table has what the slices were at this revision.
    pub(in crate::net) revision: u64,
    /// The uids of pods that services lead to.
    served: HashSet<Arc<str>>,
    /// Pods that services led to before, with the revision that ended it.
    left: HashMap<Arc<str>, u64>,
}

/// Follows what is committed.
#[derive(Default)]
pub(in crate::net) struct Withdrawal {
    committed: watch::Sender<Committed>,
}

impl Withdrawal {
    /// Says whom the table that is in force now leads to.
    pub(in crate::net) fn publish(&self, served: HashSet<Arc<str>>, revision: u64) {
        self.committed.send_if_modified(|now| {
            if now.revision == revision && now.served == served {
                return false;
            }
            now.left.retain(|pod, _| !served.contains(pod));
            let gone = now.served.iter().filter(|pod| !served.contains(*pod));
            now.left.extend(gone.map(|pod| (pod.clone(), revision)));
            now.served = served;
            now.revision = revision;
            true
        });
    }

    /// Follows what is committed.
    pub(in crate::net) fn subscribe(&self) -> watch::Receiver<Committed> {
        self.committed.subscribe()
    }

    /// Resolves when no service leads to the pod any more, with the revision of the slices since when; `None` for
    /// one that no service ever led to.
    pub(in crate::net) async fn withdrawn(&self, uid: &str) -> Option<u64> {
        let mut committed = self.committed.subscribe();
        let free = committed.wait_for(|now| !now.served.contains(uid)).await;
        // The sender lives as long as `self`.
        free.ok()?.left.get(uid).copied()
    }

    /// The pod is gone for good.
    pub(in crate::net) fn forget(&self, uid: &str) {
        self.committed
            .send_if_modified(|now| now.left.remove(uid).is_some());
    }
}

/// In how many slices each pod of this node stands as one to be used.
#[derive(Default)]
pub(super) struct Served {
    slices: HashMap<Arc<str>, usize>,
}

impl Served {
    pub(super) fn add<'a>(&mut self, pods: impl Iterator<Item = &'a Arc<str>>) {
        for pod in pods {
            *self.slices.entry(pod.clone()).or_default() += 1;
        }
    }

    pub(super) fn remove<'a>(&mut self, pods: impl Iterator<Item = &'a Arc<str>>) {
        for pod in pods {
            if let Some(count) = self.slices.get_mut(pod) {
                *count -= 1;
                if *count == 0 {
                    self.slices.remove(pod);
                }
            }
        }
    }

    pub(super) fn pods(&self) -> HashSet<Arc<str>> {
        self.slices.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pod_is_withdrawn_when_its_last_slice_lets_it_go() {
        let (withdrawal, mut served) = (Withdrawal::default(), Served::default());
        let pod: Arc<str> = "uid".into();
        assert_eq!(withdrawal.withdrawn("uid").await, None, "never served");
        served.add([&pod, &pod].into_iter());
        withdrawal.publish(served.pods(), 5);
        served.remove([&pod].into_iter());
        withdrawal.publish(served.pods(), 6);
        assert!(withdrawal.committed.borrow().served.contains("uid"));
        served.remove([&pod].into_iter());
        let (since, ()) = tokio::join!(withdrawal.withdrawn("uid"), async {
            withdrawal.publish(served.pods(), 7);
        });
        assert_eq!(since, Some(7));
        // What comes later changes nothing of that, until it is served again.
        withdrawal.publish(served.pods(), 9);
        assert_eq!(withdrawal.withdrawn("uid").await, Some(7));
        served.add([&pod].into_iter());
        withdrawal.publish(served.pods(), 10);
        assert!(withdrawal.committed.borrow().left.is_empty());
        served.remove([&pod].into_iter());
        withdrawal.publish(served.pods(), 11);
        withdrawal.forget("uid");
        assert_eq!(withdrawal.withdrawn("uid").await, None);
    }
}
