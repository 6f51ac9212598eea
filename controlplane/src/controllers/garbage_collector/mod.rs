//! The garbage collector: what no owner wants any more, goes.
//!
//! It sees every object's owner references through the [`monitor`](super::monitor) and keeps
//! them as a [`graph`]. When an owner goes, its dependents are looked at: one whose owners are
//! all gone is deleted; one that has another owner only loses the reference. Before anything
//! is deleted, the API server is asked whether the graph is right.
//!
//! An owner deleted in the *foreground* stays, with a finalizer, until the dependents that
//! block it are gone; one that *orphans* stays until its dependents don't name it any more.

mod graph;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Client;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::debug;

use super::monitor::{Identity, Kind, Monitor, Observation};
use super::queue::WorkQueue;
use super::runner::{self, Controller, IsExpected, Next};
use super::tasks::Tasks;
use graph::{FOREGROUND, Graph, Node, ORPHAN, Work};

const WORKERS: usize = 10;

/// The graph as it is filled from the monitor, before the collector itself starts.
#[derive(Clone, Default)]
pub(super) struct Observed {
    graph: Arc<Mutex<Graph>>,
    queue: WorkQueue<Work>,
}

impl Observed {
    /// For the monitor to call.
    pub(super) fn observe(&self, observation: &Observation<'_>) {
        let work = match observation {
            Observation::Seen(identity, meta) => self.lock().see(identity.clone(), meta),
            Observation::Gone(identity) => self.lock().remove(&identity.uid),
        };
        for work in work {
            self.queue.add(work);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) fn start(client: Client, monitor: &Monitor, observed: Observed, tasks: &Tasks) {
    let queue = observed.queue.clone();
    let controller = Arc::new(GarbageCollector {
        client,
        monitor: monitor.clone(),
        observed,
        is_synced: watch::Sender::new(false),
    });
    let (this, monitor) = (controller.clone(), monitor.clone());
    tasks.spawn(async move {
        monitor.synced().await;
        this.is_synced.send_replace(true);
    });
    runner::run(controller, &queue, WORKERS, tasks);
}

struct GarbageCollector {
    client: Client,
    monitor: Monitor,
    observed: Observed,
    /// Every kind has been listed once. Until then an owner may just not have been seen.
    is_synced: watch::Sender<bool>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum GcError {
    #[error("{0}")]
    Api(#[from] kube::Error),
    #[error("owner of unknown kind {kind} in {api_version}: it can't be told whether it exists")]
    UnknownKind { api_version: String, kind: String },
}

impl IsExpected for GcError {
    fn is_expected(&self) -> bool {
        match self {
            GcError::Api(error) => error.is_expected(),
            GcError::UnknownKind { .. } => false,
        }
    }
}

impl Controller for GarbageCollector {
    type Key = Work;
    type Error = GcError;
    const NAME: &'static str = "garbage-collector-controller";

    async fn reconcile(&self, work: &Work) -> Result<Next, GcError> {
        // The sender is our own, so waiting for it can't fail.
        let _ = self.is_synced.subscribe().wait_for(|synced| *synced).await;
        match work {
            Work::Delete(uid) => self.attempt_to_delete(uid).await,
            Work::Orphan(uid) => self.orphan_dependents(uid).await,
        }
    }
}

/// How an object's owners stand.
#[derive(Default)]
struct Owners {
    /// They exist and stay.
    solid: Vec<OwnerReference>,
    absent: Vec<OwnerReference>,
    /// They are being deleted in the foreground and wait for this object.
    waiting: Vec<OwnerReference>,
}

impl GarbageCollector {
    async fn attempt_to_delete(&self, uid: &Arc<str>) -> Result<Next, GcError> {
        let Some(node) = self.observed.lock().node(uid).cloned() else {
            return Ok(Next::Wait);
        };
        let Some(identity) = node.identity.clone() else {
            return self.verify_virtual(uid, &node).await;
        };
        if node.is_being_deleted && !node.waits_for_dependents {
            return Ok(Next::Wait);
        }
        let Some(latest) = self.latest(&identity).await? else {
            self.forget(uid);
            return Ok(Next::Wait);
        };
        if node.waits_for_dependents {
            return self.release_or_wait(&identity, &latest).await;
        }
        let references = latest.owner_references.clone().unwrap_or_default();
        if references.is_empty() {
            return Ok(Next::Wait);
        }
        let owners = self.classify(&identity, references).await?;
        if !owners.solid.is_empty() {
            if owners.solid.len() < latest.owner_references.iter().flatten().count() {
                // The others are gone or about to go: they own it no more.
                self.patch(&identity, &latest, json!({"ownerReferences": owners.solid}))
                    .await?;
            }
            return Ok(Next::Wait);
        }
        let dependents = self.observed.lock().dependents(uid);
        if !owners.waiting.is_empty() && !dependents.is_empty() {
            if dependents
                .iter()
                .any(|dependent| dependent.waits_for_dependents)
            {
                self.stop_blocking_owners(&identity, &latest).await?;
            }
            self.delete(&identity, &latest, PropagationPolicy::Foreground)
                .await?;
        } else {
            self.delete(&identity, &latest, policy_of(&latest)).await?;
        }
        Ok(Next::Wait)
    }

    /// Asks for an owner that is named but wasn't seen. If there is none, its dependents are
    /// looked at.
    async fn verify_virtual(&self, uid: &Arc<str>, node: &Node) -> Result<Next, GcError> {
        let Some((reference, namespace)) = node.named() else {
            return Ok(Next::Wait);
        };
        match self.find_owner(reference, namespace).await? {
            // It exists: its watch will tell. If it doesn't (events aren't watched), the
            // dependents just keep it.
            Some(_) => Ok(Next::Wait),
            None => {
                self.forget(uid);
                Ok(Next::Wait)
            }
        }
    }

    /// Lets an owner go whose blocking dependents are gone; sees to those that aren't.
    async fn release_or_wait(
        &self,
        identity: &Identity,
        latest: &ObjectMeta,
    ) -> Result<Next, GcError> {
        let dependents = self.observed.lock().dependents(&identity.uid);
        let blocking: Vec<_> = dependents
            .iter()
            .filter(|dependent| dependent.blocks)
            .collect();
        if blocking.is_empty() {
            self.remove_finalizer(identity, latest, FOREGROUND).await?;
            return Ok(Next::Wait);
        }
        for dependent in blocking {
            if !dependent.waits_for_dependents {
                let uid = dependent.identity.uid.clone();
                self.observed.queue.add(Work::Delete(uid));
            }
        }
        Ok(Next::Wait)
    }

    async fn orphan_dependents(&self, uid: &Arc<str>) -> Result<Next, GcError> {
        let (node, dependents) = {
            let graph = self.observed.lock();
            (graph.node(uid).cloned(), graph.dependents(uid))
        };
        let Some(owner) = node.and_then(|node| node.identity) else {
            return Ok(Next::Wait);
        };
        for dependent in dependents {
            let Some(latest) = self.latest(&dependent.identity).await? else {
                continue;
            };
            let mut references = latest.owner_references.clone().unwrap_or_default();
            references.retain(|reference| *reference.uid != **uid);
            self.patch(
                &dependent.identity,
                &latest,
                json!({"ownerReferences": references}),
            )
            .await?;
        }
        if let Some(latest) = self.latest(&owner).await? {
            self.remove_finalizer(&owner, &latest, ORPHAN).await?;
        }
        Ok(Next::Wait)
    }

    async fn classify(
        &self,
        dependent: &Identity,
        references: Vec<OwnerReference>,
    ) -> Result<Owners, GcError> {
        let mut owners = Owners::default();
        for reference in references {
            match self
                .find_owner(&reference, &dependent.key.namespace)
                .await?
            {
                None => owners.absent.push(reference),
                Some(owner) if has_finalizer(&owner, FOREGROUND) => {
                    if owner.deletion_timestamp.is_some() {
                        owners.waiting.push(reference);
                    } else {
                        owners.solid.push(reference);
                    }
                }
                Some(_) => owners.solid.push(reference),
            }
        }
        debug!(
            object = %dependent.key,
            kind = dependent.kind.resource.kind,
            solid = owners.solid.len(),
            absent = owners.absent.len(),
            waiting = owners.waiting.len(),
            "looked at owners"
        );
        Ok(owners)
    }

    /// The owner that a reference names, if it exists with that uid.
    async fn find_owner(
        &self,
        reference: &OwnerReference,
        namespace: &str,
    ) -> Result<Option<ObjectMeta>, GcError> {
        let kind = self.kind_of(reference)?;
        let found = kind
            .api(&self.client, namespace)
            .get_metadata_opt(&reference.name)
            .await?;
        Ok(found
            .map(|owner| owner.metadata)
            .filter(|owner| owner.uid.as_deref() == Some(&reference.uid)))
    }

    fn kind_of(&self, reference: &OwnerReference) -> Result<Arc<Kind>, GcError> {
        self.monitor
            .find(&reference.api_version, &reference.kind)
            .ok_or_else(|| GcError::UnknownKind {
                api_version: reference.api_version.clone(),
                kind: reference.kind.clone(),
            })
    }

    /// The object as the API server has it; `None` if it is gone, whatever has its name now.
    async fn latest(&self, identity: &Identity) -> Result<Option<ObjectMeta>, GcError> {
        let api = identity.kind.api(&self.client, &identity.key.namespace);
        let found = api.get_metadata_opt(&identity.key.name).await?;
        Ok(found
            .map(|object| object.metadata)
            .filter(|meta| meta.uid.as_deref() == Some(&identity.uid)))
    }

    async fn delete(
        &self,
        identity: &Identity,
        latest: &ObjectMeta,
        policy: PropagationPolicy,
    ) -> Result<(), GcError> {
        debug!(object = %identity.key, kind = identity.kind.resource.kind, ?policy, "collecting");
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: Some(identity.uid.to_string()),
                resource_version: latest.resource_version.clone(),
            }),
            ..Default::default()
        };
        let api = identity.kind.api(&self.client, &identity.key.namespace);
        ignore_absent(api.delete(&identity.key.name, &params).await.map(|_| ()))
    }

    /// Circles of owners that wait for each other would never end: this object stops to block.
    async fn stop_blocking_owners(
        &self,
        identity: &Identity,
        latest: &ObjectMeta,
    ) -> Result<(), GcError> {
        let mut references = latest.owner_references.clone().unwrap_or_default();
        for reference in &mut references {
            reference.block_owner_deletion = Some(false);
        }
        let patch = json!({
            "uid": *identity.uid,
            "ownerReferences": references,
        });
        self.patch_metadata(identity, patch).await
    }

    async fn remove_finalizer(
        &self,
        identity: &Identity,
        latest: &ObjectMeta,
        finalizer: &str,
    ) -> Result<(), GcError> {
        let mut finalizers = latest.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|other| other == finalizer) {
            return Ok(());
        }
        finalizers.retain(|other| other != finalizer);
        self.patch(identity, latest, json!({"finalizers": finalizers}))
            .await
    }

    /// Changes metadata, if the object is still as it was read.
    async fn patch(
        &self,
        identity: &Identity,
        latest: &ObjectMeta,
        mut metadata: Value,
    ) -> Result<(), GcError> {
        metadata["uid"] = json!(*identity.uid);
        metadata["resourceVersion"] = json!(latest.resource_version);
        self.patch_metadata(identity, metadata).await
    }

    async fn patch_metadata(&self, identity: &Identity, metadata: Value) -> Result<(), GcError> {
        let api = identity.kind.api(&self.client, &identity.key.namespace);
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let params = PatchParams::default();
        let patched = api
            .patch_metadata(&identity.key.name, &params, &patch)
            .await;
        ignore_absent(patched.map(|_| ()))
    }

    fn forget(&self, uid: &str) {
        let work = self.observed.lock().remove(uid);
        for work in work {
            self.observed.queue.add(work);
        }
    }
}

/// How the dependents of a collected object fare: as whoever asked for its end wanted.
fn policy_of(latest: &ObjectMeta) -> PropagationPolicy {
    if has_finalizer(latest, ORPHAN) {
        PropagationPolicy::Orphan
    } else if has_finalizer(latest, FOREGROUND) {
        PropagationPolicy::Foreground
    } else {
        PropagationPolicy::Background
    }
}

fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    let mut finalizers = meta.finalizers.iter().flatten();
    finalizers.any(|other| other == finalizer)
}

fn ignore_absent(result: Result<(), kube::Error>) -> Result<(), GcError> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => Ok(other?),
    }
}
