//! The namespace controller: empties a namespace that is being deleted, then lets it go.
//!
//! Pods go first, so that nothing they use is taken from under them; then everything else, of
//! every kind. What holds the namespace up (finalizers, pods in their grace period) is told in
//! its conditions, and each object that goes brings another look.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use tracing::debug;

use super::Informers;
use super::informer::{Informer, ObjectKey};
use super::monitor::{Kind, Monitor, Observation};
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next};
use super::tasks::Tasks;

const FINALIZER: &str = "kubernetes";
const WORKERS: usize = 5;
/// A look without an event, should one have been missed. Only while a namespace ends.
const RECHECK: Duration = Duration::from_secs(15);

/// Tells the controller of objects that went, before the controller itself starts.
#[derive(Clone)]
pub(super) struct Observed {
    queue: WorkQueue<ObjectKey>,
    namespaces: Informer<Namespace>,
}

impl Observed {
    pub(super) fn new(informers: &Informers) -> Self {
        Self {
            queue: WorkQueue::default(),
            namespaces: informers.namespaces.clone(),
        }
    }

    /// For the monitor to call.
    pub(super) fn observe(&self, observation: &Observation<'_>) {
        let Observation::Gone(identity) = observation else {
            return;
        };
        let key = ObjectKey::cluster(&identity.key.namespace);
        let namespace = self.namespaces.get(&key);
        if namespace.is_some_and(|n| n.metadata.deletion_timestamp.is_some()) {
            self.queue.add(key);
        }
    }
}

pub(super) fn start(client: Client, monitor: &Monitor, observed: Observed, tasks: &Tasks) {
    let queue = observed.queue;
    let changes = queue.clone();
    observed.namespaces.subscribe(move |change| {
        let namespace = change.object();
        if namespace.metadata.deletion_timestamp.is_some() {
            changes.add(ObjectKey::of(&**namespace));
        }
    });
    let controller = Arc::new(NamespaceController {
        client,
        monitor: monitor.clone(),
        namespaces: observed.namespaces,
    });
    runner::run(controller, &queue, WORKERS, tasks);
}

struct NamespaceController {
    client: Client,
    monitor: Monitor,
    namespaces: Informer<Namespace>,
}

impl Controller for NamespaceController {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "namespace-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        let Some(namespace) = self.namespaces.get(key) else {
            return Ok(Next::Wait);
        };
        let finalizers = namespace.spec.as_ref().and_then(|s| s.finalizers.as_ref());
        let is_ours = finalizers.is_some_and(|f| f.iter().any(|f| f == FINALIZER));
        if namespace.metadata.deletion_timestamp.is_none() || !is_ours {
            return Ok(Next::Wait);
        }
        self.monitor.synced().await;
        let remaining = self.delete_content(&key.name).await?;
        let namespace = self.write_conditions(&namespace, &remaining).await?;
        if remaining.is_empty() {
            self.finalize(namespace).await?;
            return Ok(Next::Wait);
        }
        debug!(namespace = %key, remaining = remaining.counts.len(), "content remains");
        Ok(Next::After(RECHECK))
    }
}

/// What is still in a namespace.
#[derive(Debug, Default, PartialEq)]
struct Remaining {
    /// Objects of each kind, as `deployments.apps`.
    counts: BTreeMap<String, usize>,
    /// Objects that each finalizer holds.
    finalizers: BTreeMap<String, usize>,
}

impl Remaining {
    fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    fn add<'a>(&mut self, kind: &str, objects: impl Iterator<Item = &'a ObjectMeta>) {
        for object in objects {
            *self.counts.entry(kind.to_string()).or_default() += 1;
            for finalizer in object.finalizers.iter().flatten() {
                *self.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
        }
    }
}

impl NamespaceController {
    /// Deletes what is in the namespace, and says what is still there.
    async fn delete_content(&self, namespace: &str) -> Result<Remaining, kube::Error> {
        let mut remaining = Remaining::default();
        let mut kinds = self.monitor.kinds();
        kinds.retain(|kind| kind.is_namespaced);
        let (pods, others): (Vec<_>, Vec<_>) = kinds
            .into_iter()
            .partition(|kind| kind.resource.group.is_empty() && kind.resource.kind == "Pod");
        for kind in pods {
            self.delete_kind(&kind, namespace, &mut remaining).await?;
        }
        if !remaining.is_empty() {
            return Ok(remaining);
        }
        for kind in others {
            self.delete_kind(&kind, namespace, &mut remaining).await?;
        }
        Ok(remaining)
    }

    async fn delete_kind(
        &self,
        kind: &Kind,
        namespace: &str,
        remaining: &mut Remaining,
    ) -> Result<(), kube::Error> {
        let api = kind.api(&self.client, namespace);
        let list = ListParams::default();
        let present = api.list_metadata(&list).await?;
        if present.items.is_empty() {
            return Ok(());
        }
        if present
            .items
            .iter()
            .any(|object| object.metadata.deletion_timestamp.is_none())
        {
            api.delete_collection(&DeleteParams::background(), &list)
                .await?;
        }
        let left = api.list_metadata(&list).await?;
        remaining.add(
            &kind.qualified(),
            left.items.iter().map(|object| &object.metadata),
        );
        Ok(())
    }

    async fn write_conditions(
        &self,
        namespace: &Namespace,
        remaining: &Remaining,
    ) -> Result<Namespace, kube::Error> {
        let mut updated = namespace.clone();
        let status = updated.status.get_or_insert_default();
        status.phase = Some("Terminating".into());
        let before = status.conditions.take().unwrap_or_default();
        status.conditions = Some(conditions(before, remaining, Timestamp::now()));
        if updated.status == namespace.status {
            return Ok(updated);
        }
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.replace_status(name, &PostParams::default(), &updated)
            .await
    }

    async fn finalize(&self, mut namespace: Namespace) -> Result<(), kube::Error> {
        if let Some(finalizers) = namespace.spec.as_mut().and_then(|s| s.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let name = namespace.metadata.name.clone().unwrap_or_default();
        let api: Api<Namespace> = Api::all(self.client.clone());
        let finalized = api
            .replace_subresource("finalize", &name, &PostParams::default(), &namespace)
            .await;
        match finalized {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            other => other.map(|_| ()),
        }
    }
}

fn conditions(
    before: Vec<NamespaceCondition>,
    remaining: &Remaining,
    now: Timestamp,
) -> Vec<NamespaceCondition> {
    let mut conditions = vec![
        condition(
            "NamespaceDeletionDiscoveryFailure",
            "False",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        condition(
            "NamespaceDeletionGroupVersionParsingFailure",
            "False",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        condition(
            "NamespaceDeletionContentFailure",
            "False",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
    ];
    conditions.push(if remaining.counts.is_empty() {
        condition(
            "NamespaceContentRemaining",
            "False",
            "ContentRemoved",
            "All content successfully removed",
        )
    } else {
        let counts = remaining.counts.iter();
        let counts: Vec<String> = counts
            .map(|(kind, count)| format!("{kind}. has {count} resource instances"))
            .collect();
        let message = format!("Some resources are remaining: {}", counts.join(", "));
        condition(
            "NamespaceContentRemaining",
            "True",
            "SomeResourcesRemain",
            &message,
        )
    });
    conditions.push(if remaining.finalizers.is_empty() {
        condition(
            "NamespaceFinalizersRemaining",
            "False",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        )
    } else {
        let counts = remaining.finalizers.iter();
        let counts: Vec<String> = counts
            .map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"))
            .collect();
        let message = format!(
            "Some content in the namespace has finalizers remaining: {}",
            counts.join(", ")
        );
        condition(
            "NamespaceFinalizersRemaining",
            "True",
            "SomeFinalizersRemain",
            &message,
        )
    });
    for new in &mut conditions {
        let known = before.iter().find(|old| old.type_ == new.type_);
        let since = known
            .filter(|old| old.status == new.status)
            .and_then(|old| old.last_transition_time.clone());
        new.last_transition_time = Some(since.unwrap_or(Time(now)));
    }
    conditions
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> NamespaceCondition {
    NamespaceCondition {
        type_: kind.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_transition_time: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_told_and_times_stay() {
        let mut remaining = Remaining::default();
        let held = ObjectMeta {
            finalizers: Some(vec!["example.com/hold".into()]),
            ..Default::default()
        };
        remaining.add(
            "deployments.apps",
            [&held, &ObjectMeta::default()].into_iter(),
        );
        let first = conditions(Vec::new(), &remaining, Timestamp::UNIX_EPOCH);
        let messages: Vec<_> = first.iter().filter_map(|c| c.message.as_deref()).collect();
        assert_eq!(
            messages[3],
            "Some resources are remaining: deployments.apps. has 2 resource instances"
        );
        assert_eq!(
            messages[4],
            "Some content in the namespace has finalizers remaining: example.com/hold in 1 \
             resource instances"
        );
        let again = conditions(first.clone(), &remaining, Timestamp::now());
        assert_eq!(first, again);
        let done = conditions(first, &Remaining::default(), Timestamp::now());
        assert!(done.iter().all(|condition| condition.status == "False"));
    }
}
