//! One worker for each pod of this node.
//!
//! Pods are known from the API, through a watch, and from their records on disk, so that pods
//! that were here before the agent started are looked after at once, control plane or not. A
//! pod that is on disk but not in the API's list any more is ended.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, RwLock};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::Event;
use tokio::sync::watch;
use tokio::task::{Id, JoinSet};

use super::NodeContext;
use super::seams::PodSandbox;
use super::worker::{Desired, Worker};

/// The pods that workers look after, by uid. Cheap to clone.
#[derive(Clone, Default)]
pub struct Pods {
    known: Arc<RwLock<HashMap<String, watch::Sender<Desired>>>>,
}

impl Pods {
    /// The objects, as they were last seen.
    pub fn list(&self) -> Vec<Arc<Pod>> {
        let known = self
            .known
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        known
            .values()
            .map(|sender| sender.borrow().pod.clone())
            .collect()
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<String, watch::Sender<Desired>>> {
        // The map is whole between any two statements, also after a panic elsewhere.
        self.known
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Finds the sandbox that runs for a pod.
pub type FindSandbox = Arc<
    dyn Fn(String) -> futures::future::BoxFuture<'static, Option<Arc<dyn PodSandbox>>>
        + Send
        + Sync,
>;

/// Runs the workers.
pub struct Dispatch {
    node: Arc<NodeContext>,
    pods: Pods,
    sandboxes: FindSandbox,
    workers: JoinSet<()>,
    uids: HashMap<Id, String>,
    /// Uids seen in the list that is under way.
    listing: Option<Vec<String>>,
}

impl Dispatch {
    /// Nothing runs yet.
    pub fn new(node: Arc<NodeContext>, pods: Pods, sandboxes: FindSandbox) -> Self {
        Self {
            node,
            pods,
            sandboxes,
            workers: JoinSet::new(),
            uids: HashMap::new(),
            listing: None,
        }
    }

    /// Looks after `known` pods and those that `watch` tells of, until it is dropped. Dropping
    /// leaves every container running.
    pub async fn run<E: std::fmt::Display>(
        mut self,
        known: Vec<Pod>,
        watch: impl Stream<Item = Result<Event<Pod>, E>>,
    ) {
        for pod in known {
            self.apply(pod);
        }
        let mut watch = pin!(watch);
        let mut reported = false;
        loop {
            tokio::select! {
                event = watch.next() => match event {
                    Some(Ok(event)) => {
                        // It begins to list before anybody has answered.
                        reported &= matches!(event, Event::Init);
                        self.take(event);
                    }
                    Some(Err(error)) => {
                        if !reported {
                            tracing::warn!(%error, "lost the watch of this node's pods, trying again");
                            reported = true;
                        }
                    }
                    None => return,
                },
                Some(ended) = self.workers.join_next_with_id() => {
                    let (id, failed) = match ended {
                        Ok((id, ())) => (id, None),
                        Err(error) => (error.id(), Some(error)),
                    };
                    self.worker_ended(id, failed);
                }
            }
        }
    }

    fn take(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.listing = Some(Vec::new()),
            Event::InitApply(pod) => {
                if let Some(seen) = &mut self.listing {
                    seen.extend(pod.metadata.uid.clone());
                }
                self.apply(pod);
            }
            Event::InitDone => self.forget_unlisted(),
            Event::Apply(pod) => self.apply(pod),
            Event::Delete(pod) => {
                if let Some(uid) = &pod.metadata.uid {
                    self.gone(uid);
                }
            }
        }
    }

    fn forget_unlisted(&mut self) {
        let Some(seen) = self.listing.take() else {
            return;
        };
        let missing: Vec<String> = {
            let known = self.pods.write();
            known
                .keys()
                .filter(|uid| !seen.contains(uid))
                .cloned()
                .collect()
        };
        for uid in missing {
            self.gone(&uid);
        }
    }

    fn apply(&mut self, pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else {
            return;
        };
        let desired = Desired {
            pod: Arc::new(pod),
            gone: false,
        };
        let known = self.pods.write().get(&uid).map(|sender| {
            let newer = !sender.borrow().gone;
            if newer {
                sender.send_replace(desired.clone());
            }
        });
        if known.is_none() {
            let (sender, receiver) = watch::channel(desired);
            self.pods.write().insert(uid.clone(), sender);
            self.start(uid, receiver);
        }
    }

    fn gone(&mut self, uid: &str) {
        if let Some(sender) = self.pods.write().get(uid) {
            sender.send_modify(|desired| desired.gone = true);
        }
    }

    fn start(&mut self, uid: String, desired: watch::Receiver<Desired>) {
        let (node, sandboxes) = (self.node.clone(), self.sandboxes.clone());
        let wanted = uid.clone();
        let handle = self.workers.spawn(async move {
            let sandbox = sandboxes(wanted).await;
            Worker::new(node, desired).run(sandbox).await;
        });
        self.uids.insert(handle.id(), uid);
    }

    fn worker_ended(&mut self, id: Id, failed: Option<tokio::task::JoinError>) {
        let Some(uid) = self.uids.remove(&id) else {
            return;
        };
        match failed {
            None => {
                self.pods.write().remove(&uid);
            }
            Some(error) => {
                tracing::error!(uid, %error, "a pod's worker died, starting another one");
                let receiver = self.pods.write().get(&uid).map(watch::Sender::subscribe);
                if let Some(receiver) = receiver {
                    self.start(uid, receiver);
                }
            }
        }
    }
}
