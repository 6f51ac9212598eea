//! When a pod of this node may be ended: after this node's table has stopped to lead to it.
//!
//! A pod that is being deleted leaves its EndpointSlices at once, and every node's data plane follows
//! within milliseconds. A container that got its signal before that would refuse connections that are
//! still sent to it; so the pod's worker waits here, for a bounded time. What the other nodes have to let go of
//! is named by a revision of the slices: [`crate::net::settling`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How far the table may lag behind the API before a pod that it never led to is ended all the same: the slices may
/// never have had the pod.
const LAG: Duration = Duration::from_millis(500);

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
    /// one that no service ever led to. A service should have led to the pod when it was deleted at the revision
    /// `deleted`, if that is given.
    pub(in crate::net) async fn withdrawn(&self, uid: &str, deleted: Option<u64>) -> Option<u64> {
        let mut committed = self.committed.subscribe();
        let free = committed.wait_for(|now| !now.served.contains(uid)).await;
        // The sender lives as long as `self`.
        let left = free.ok()?.left.get(uid).copied();
        let (None, Some(deleted)) = (left, deleted) else {
            return left;
        };
        // This table has never led to it, but others, which heard of it sooner, may: this one lags behind.
        let is_past = |now: &Committed| now.revision > deleted && !now.served.contains(uid);
        let past = tokio::time::timeout(LAG, committed.wait_for(is_past)).await;
        let past = past.ok()?.ok()?;
        Some(past.left.get(uid).copied().unwrap_or(past.revision))
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

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_only_others_can_know_is_waited_for_until_the_slices_are_past_its_end() {
        let (withdrawal, mut served) = (Withdrawal::default(), Served::default());
        let pod: Arc<str> = "uid".into();
        withdrawal.publish(HashSet::new(), 5);
        // The slices never have it.
        assert_eq!(withdrawal.withdrawn("uid", Some(7)).await, None);
        // Both that it came and that it went come at once.
        let (since, ()) = tokio::join!(withdrawal.withdrawn("uid", Some(7)), async {
            withdrawal.publish(HashSet::new(), 6);
            tokio::task::yield_now().await;
            withdrawal.publish(HashSet::new(), 9);
        });
        assert_eq!(since, Some(9));
        // They come one after the other.
        served.add([&pod].into_iter());
        let (since, ()) = tokio::join!(withdrawal.withdrawn("uid", Some(10)), async {
            withdrawal.publish(served.pods(), 11);
            tokio::task::yield_now().await;
            withdrawal.publish(HashSet::new(), 12);
        });
        assert_eq!(since, Some(12));
    }

    #[tokio::test]
    async fn a_pod_is_withdrawn_when_its_last_slice_lets_it_go() {
        let (withdrawal, mut served) = (Withdrawal::default(), Served::default());
        let pod: Arc<str> = "uid".into();
        assert_eq!(
            withdrawal.withdrawn("uid", None).await,
            None,
            "never served"
        );
        served.add([&pod, &pod].into_iter());
        withdrawal.publish(served.pods(), 5);
        served.remove([&pod].into_iter());
        withdrawal.publish(served.pods(), 6);
        assert!(withdrawal.committed.borrow().served.contains("uid"));
        served.remove([&pod].into_iter());
        let (since, ()) = tokio::join!(withdrawal.withdrawn("uid", None), async {
            withdrawal.publish(served.pods(), 7);
        });
        assert_eq!(since, Some(7));
        // What comes later changes nothing of that, until it is served again.
        withdrawal.publish(served.pods(), 9);
        assert_eq!(withdrawal.withdrawn("uid", None).await, Some(7));
        served.add([&pod].into_iter());
        withdrawal.publish(served.pods(), 10);
        assert!(withdrawal.committed.borrow().left.is_empty());
        served.remove([&pod].into_iter());
        withdrawal.publish(served.pods(), 11);
        withdrawal.forget("uid");
        assert_eq!(withdrawal.withdrawn("uid", None).await, None);
    }
}
