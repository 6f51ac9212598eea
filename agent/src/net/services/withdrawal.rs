//! When a pod of this node may be ended: after this node's table has stopped to lead to it.
//!
//! A pod that is being deleted leaves its EndpointSlices at once, and every node's data plane follows
//! within milliseconds. A container that got its signal before that would refuse connections that are
//! still sent to it; so the pod's worker waits here, for a bounded time.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::watch;

/// The uids of this node's pods that services lead to.
pub(in crate::net) struct Withdrawal {
    served: watch::Sender<Arc<HashSet<Arc<str>>>>,
}

impl Default for Withdrawal {
    fn default() -> Self {
        Self {
            served: watch::Sender::new(Arc::default()),
        }
    }
}

impl Withdrawal {
    /// Says whom the table that is in force now leads to.
    pub(super) fn publish(&self, served: HashSet<Arc<str>>) {
        self.served.send_if_modified(|now| {
            let changed = **now != served;
            if changed {
                *now = Arc::new(served);
            }
            changed
        });
    }

    /// Whether a service leads to the pod.
    pub(in crate::net) fn is_served(&self, uid: &str) -> bool {
        self.served.borrow().contains(uid)
    }

    /// Resolves when no service leads to the pod any more.
    pub(in crate::net) async fn withdrawn(&self, uid: &str) {
        let mut served = self.served.subscribe();
        // The sender lives as long as `self`.
        let _ = served.wait_for(|served| !served.contains(uid)).await;
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
        withdrawal.withdrawn("uid").await;
        served.add([&pod, &pod].into_iter());
        withdrawal.publish(served.pods());
        served.remove([&pod].into_iter());
        withdrawal.publish(served.pods());
        assert!(withdrawal.is_served("uid"));
        served.remove([&pod].into_iter());
        let (_, ()) = tokio::join!(withdrawal.withdrawn("uid"), async {
            withdrawal.publish(served.pods());
        });
        assert!(!withdrawal.is_served("uid"));
    }
}
