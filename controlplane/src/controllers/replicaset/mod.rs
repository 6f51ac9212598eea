//! The ReplicaSet controller: keeps as many pods as a ReplicaSet asks for.
//!
//! A reconcile claims the pods that belong to the set, creates or deletes what is missing or
//! too many, and writes the status. Creates and deletes run in parallel. [`Expectations`]
//! keep it from counting before the informer has seen its own last writes.

mod expectations;
mod ranking;
mod status;
mod watch;

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::core::Selector;
use kube::{Api, Client};
use tracing::debug;

use super::Informers;
use super::events::{EventRecorder, Severity};
use super::informer::{Index, Informer, ObjectKey};
use super::ownership::{self, Owner, controller_ref, new_controller_ref, parse_selector};
use super::pod_state::{self, is_active, is_finished, is_terminating};
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next};
use super::tasks::Tasks;
use super::writes::{api_message, only};
use expectations::Expectations;

/// Pods that one reconcile creates or deletes at most.
const BURST: usize = 500;
const WORKERS: usize = 5;

pub(super) fn start(client: Client, informers: &Informers, events: &EventRecorder, tasks: &Tasks) {
    let queue = WorkQueue::default();
    let controller = Arc::new(ReplicaSetController {
        client,
        replica_sets: informers.replica_sets.clone(),
        pods: informers.pods.clone(),
        events: events.named(ReplicaSetController::NAME),
        expectations: Expectations::default(),
    });
    controller.watch(&queue);
    runner::run(controller, &queue, WORKERS, tasks);
}

struct ReplicaSetController {
    client: Client,
    replica_sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    events: EventRecorder,
    expectations: Expectations,
}

impl Controller for ReplicaSetController {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "replicaset-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        self.replica_sets.synced().await;
        self.pods.synced().await;
        let Some(set) = self.replica_sets.get(key) else {
            self.expectations.forget(key);
            return Ok(Next::Wait);
        };
        let spec = &set.spec;
        let Some(selector) = parse_selector(&spec.selector) else {
            return Ok(Next::Wait);
        };
        // Asked before the pods are read: what is seen afterwards can only be newer.
        let may_manage = self.expectations.are_met(key);
        let owned = self.claim_pods(&set, &selector).await?;
        let (active, others): (Vec<_>, Vec<_>) = owned.into_iter().partition(|pod| is_active(pod));
        let terminating = others.iter().filter(|pod| is_terminating(pod)).count();

        let managed = if may_manage && set.metadata.deletion_timestamp.is_none() {
            self.manage(key, &set, spec, &active).await
        } else {
            Ok(())
        };
        let now = Timestamp::now();
        let observed = status::Observed {
            active: &active,
            terminating,
            now,
        };
        let failure = managed.as_ref().err().map(api_message);
        let status = status::compute(&set, &observed, failure.as_deref());
        self.write_status(&set, status).await?;
        managed?;
        Ok(next_availability(spec, &active, now))
    }
}

impl ReplicaSetController {
    async fn claim_pods(
        &self,
        set: &ReplicaSet,
        selector: &Selector,
    ) -> Result<Vec<Arc<Pod>>, kube::Error> {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let mut candidates = self.pods.by_index(Index::Controller, uid);
        candidates.extend(
            self.pods
                .by_index(Index::Orphan, namespace)
                .into_iter()
                .filter(|pod| !is_finished(pod)),
        );
        let owner = Owner {
            reference: new_controller_ref(set),
            selector,
            is_deleted: set.metadata.deletion_timestamp.is_some(),
        };
        let sets: Api<ReplicaSet> = Api::namespaced(self.client.clone(), namespace);
        ownership::claim(
            &self.pods_in(namespace),
            &owner,
            candidates,
            || async move { ownership::still_exists(&sets, set).await },
        )
        .await
    }

    async fn manage(
        &self,
        key: &ObjectKey,
        set: &ReplicaSet,
        spec: &ReplicaSetSpec,
        active: &[Arc<Pod>],
    ) -> Result<(), kube::Error> {
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        if active.len() < wanted {
            let missing = (wanted - active.len()).min(BURST);
            self.create_pods(key, set, spec, missing).await
        } else if active.len() > wanted {
            let surplus = (active.len() - wanted).min(BURST);
            self.delete_pods(key, set, active, surplus).await
        } else {
            Ok(())
        }
    }

    async fn create_pods(
        &self,
        key: &ObjectKey,
        set: &ReplicaSet,
        spec: &ReplicaSetSpec,
        count: usize,
    ) -> Result<(), kube::Error> {
        debug!(replicaset = %key, count, "creating pods");
        let template = spec.template.clone().unwrap_or_default();
        let pod = pod_from_template(set, &template, new_controller_ref(set));
        let api = self.pods_in(&key.namespace);
        self.expectations.expect_creations(key, count);
        let (created, result) = slow_start(count, || self.create_pod(&api, set, &pod)).await;
        for _ in created..count {
            // Those will not be seen: they failed or were not tried.
            self.expectations.creation_observed(key);
        }
        match result {
            Err(kube::Error::Api(status)) if is_namespace_terminating(&status) => Ok(()),
            other => other,
        }
    }

    async fn create_pod(
        &self,
        api: &Api<Pod>,
        set: &ReplicaSet,
        pod: &Pod,
    ) -> Result<(), kube::Error> {
        match api.create(&PostParams::default(), pod).await {
            Ok(created) => {
                let name = created.metadata.name.unwrap_or_default();
                let message = format!("Created pod: {name}");
                self.events
                    .record(set, Severity::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) => {
                let quiet =
                    matches!(&error, kube::Error::Api(status) if is_namespace_terminating(status));
                if !quiet {
                    let message = format!("Error creating: {}", api_message(&error));
                    self.events
                        .record(set, Severity::Warning, "FailedCreate", message);
                }
                Err(error)
            }
        }
    }

    async fn delete_pods(
        &self,
        key: &ObjectKey,
        set: &ReplicaSet,
        active: &[Arc<Pod>],
        count: usize,
    ) -> Result<(), kube::Error> {
        debug!(replicaset = %key, count, "deleting pods");
        let related = self.pods_per_node_of_siblings(set);
        let victims = ranking::pods_to_delete(active, &related, count, Timestamp::now());
        let uids = victims.iter().filter_map(|pod| pod.metadata.uid.clone());
        self.expectations.expect_deletions(key, uids.collect());
        let api = self.pods_in(&key.namespace);
        let mut deletions: FuturesUnordered<_> = victims
            .iter()
            .map(|pod| self.delete_pod(&api, key, set, pod))
            .collect();
        let mut result = Ok(());
        while let Some(deleted) = deletions.next().await {
            result = result.and(deleted);
        }
        result
    }

    async fn delete_pod(
        &self,
        api: &Api<Pod>,
        key: &ObjectKey,
        set: &ReplicaSet,
        pod: &Pod,
    ) -> Result<(), kube::Error> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let params = only(pod.metadata.uid.as_deref());
        let result = api.delete(name, &params).await;
        if result.is_err()
            && let Some(uid) = &pod.metadata.uid
        {
            self.expectations.deletion_observed(key, uid);
        }
        match result {
            Ok(_) => {
                let message = format!("Deleted pod: {name}");
                self.events
                    .record(set, Severity::Normal, "SuccessfulDelete", message);
                Ok(())
            }
            // Gone already, or another pod has its name.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                Ok(())
            }
            Err(error) => {
                let message = format!("Error deleting: {}", api_message(&error));
                self.events
                    .record(set, Severity::Warning, "FailedDelete", message);
                Err(error)
            }
        }
    }

    /// How many active pods each node has of this set and of its siblings (the sets that the
    /// same controller owns).
    fn pods_per_node_of_siblings(&self, set: &ReplicaSet) -> HashMap<String, usize> {
        let uids: Vec<String> = match controller_ref(set) {
            Some(owner) => self
                .replica_sets
                .by_index(Index::Controller, &owner.uid)
                .iter()
                .filter_map(|sibling| sibling.metadata.uid.clone())
                .collect(),
            None => set.metadata.uid.iter().cloned().collect(),
        };
        let mut counts = HashMap::new();
        for uid in uids {
            for pod in self.pods.by_index(Index::Controller, &uid) {
                if let (true, Some(node)) = (is_active(&pod), pod_state::node_name(&pod)) {
                    *counts.entry(node.to_string()).or_default() += 1;
                }
            }
        }
        counts
    }

    async fn write_status(
        &self,
        set: &ReplicaSet,
        status: k8s_openapi::api::apps::v1::ReplicaSetStatus,
    ) -> Result<(), kube::Error> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), namespace);
        let mut updated = set.clone();
        updated.status = Some(status);
        match api
            .replace_status(name, &PostParams::default(), &updated)
            .await
        {
            Err(kube::Error::Api(error)) if error.is_not_found() => Ok(()),
            other => other.map(|_| ()),
        }
    }

    fn pods_in(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

/// When to look again because a ready pod becomes available by the passing of time alone.
fn next_availability(spec: &ReplicaSetSpec, active: &[Arc<Pod>], now: Timestamp) -> Next {
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    active
        .iter()
        .filter_map(|pod| pod_state::available_in(pod, min_ready, now))
        .filter(|wait| !wait.is_zero())
        .min()
        .map_or(Next::Wait, |wait| {
            // Transition times are whole seconds; a moment late is surely not too early.
            Next::After(wait + Duration::from_millis(5))
        })
}

fn pod_from_template(set: &ReplicaSet, template: &PodTemplateSpec, owner: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let name = set.metadata.name.as_deref().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{name}-")),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Runs `count` calls in batches of 1, 2, 4 ..., each batch in parallel, and stops after the
/// first batch in which one failed: a refusal (a quota, say) is met once and not `count`
/// times. Gives the number of successes and the first error.
async fn slow_start<F, T>(count: usize, call: F) -> (usize, Result<(), kube::Error>)
where
    F: Fn() -> T,
    T: Future<Output = Result<(), kube::Error>>,
{
    let (mut done, mut batch) = (0, 1);
    while done < count {
        batch = batch.min(count - done);
        let mut calls: FuturesUnordered<T> = (0..batch).map(|_| call()).collect();
        let mut result = Ok(());
        while let Some(outcome) = calls.next().await {
            match outcome {
                Ok(()) => done += 1,
                Err(error) => result = result.and(Err(error)),
            }
        }
        if result.is_err() {
            return (done, result);
        }
        batch *= 2;
    }
    (done, Ok(()))
}

fn is_namespace_terminating(status: &kube::core::Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes
        .into_iter()
        .any(|cause| cause.reason == "NamespaceTerminating")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn slow_start_stops_after_the_batch_that_fails() {
        let calls = AtomicUsize::new(0);
        let (done, result) = slow_start(100, || async {
            match calls.fetch_add(1, Ordering::SeqCst) {
                // In the third batch of 4.
                4 => Err(kube::Error::LinesCodecMaxLineLengthExceeded),
                _ => Ok(()),
            }
        })
        .await;
        assert!(result.is_err());
        assert_eq!((done, calls.load(Ordering::SeqCst)), (6, 7));
    }

    #[tokio::test]
    async fn slow_start_makes_exactly_as_many_as_asked() {
        let (done, result) = slow_start(100, || async { Ok(()) }).await;
        assert_eq!(done, 100);
        assert!(result.is_ok());
    }

    #[test]
    fn a_pod_takes_its_template_and_its_owner() {
        let set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some("web-5d9c".into()),
                namespace: Some("default".into()),
                uid: Some("u1".into()),
                ..Default::default()
            },
            ..Default::default()
        };
        let template = PodTemplateSpec {
            metadata: Some(ObjectMeta {
                labels: Some([("app".to_string(), "web".to_string())].into()),
                ..Default::default()
            }),
            spec: Some(Default::default()),
        };
        let pod = pod_from_template(&set, &template, new_controller_ref(&set));
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-5d9c-"));
        let owner = controller_ref(&pod).unwrap();
        assert_eq!(
            (owner.kind.as_str(), owner.uid.as_str()),
            ("ReplicaSet", "u1")
        );
        assert_eq!(owner.api_version, "apps/v1");
        assert_eq!(owner.block_owner_deletion, Some(true));
    }
}
