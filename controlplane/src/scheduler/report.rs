//! Telling the API server what was decided: bindings, and why a pod has no node.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, core::Status};
use serde_json::json;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::Scheduler;
use super::cluster::NodeInfo;
use super::needs::Needs;
use super::plugins::{Plugins, Preemption, Refusal};
use crate::controllers::events::Severity;
use crate::controllers::informer::ObjectKey;
use crate::controllers::pod_state::{condition, node_name};
use crate::controllers::writes::api_message;

/// Why no node can take a pod.
#[derive(Debug)]
pub(super) struct Diagnosis {
    nodes: usize,
    reasons: BTreeMap<String, usize>,
    pub(super) refused_by: Plugins,
    /// Nodes that stay unfit whatever else on them is ended.
    beyond_preemption: usize,
    /// Nodes with pods of a lower priority, whose end could make room.
    with_victims: usize,
}

impl Diagnosis {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            nodes,
            reasons: BTreeMap::new(),
            refused_by: Plugins::NONE,
            beyond_preemption: 0,
            with_victims: 0,
        }
    }

    pub(super) fn add(&mut self, pod: &Needs, node: &NodeInfo, plugin: Plugins, refusal: Refusal) {
        for reason in refusal.reasons {
            *self.reasons.entry(reason.into_owned()).or_default() += 1;
        }
        self.refused_by = self.refused_by.with(plugin);
        let priority = pod.footprint.priority;
        if refusal.preemption == Preemption::CannotHelp {
            self.beyond_preemption += 1;
        } else if node.pods.values().any(|other| other.priority < priority) {
            self.with_victims += 1;
        }
    }

    /// As kube-scheduler puts it into the pod's condition and event.
    pub(super) fn message(&self, pod: &Needs) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        let counted = self
            .reasons
            .iter()
            .map(|(reason, count)| (reason.as_str(), *count));
        let mut message = unavailable(self.nodes, counted);
        if !pod.may_preempt {
            message.push_str(" preemption: not eligible due to preemptionPolicy=Never.");
        } else if self.with_victims == 0 {
            let hopeless = (
                "Preemption is not helpful for scheduling",
                self.beyond_preemption,
            );
            let without_victims = (
                "No preemption victims found for incoming pod",
                self.nodes - self.beyond_preemption,
            );
            let reasons = [hopeless, without_victims].into_iter();
            message.push_str(" preemption: ");
            message.push_str(&unavailable(
                self.nodes,
                reasons.filter(|(_, count)| *count > 0),
            ));
        }
        message
    }
}

fn unavailable<'a>(nodes: usize, reasons: impl Iterator<Item = (&'a str, usize)>) -> String {
    let mut counted: Vec<String> = reasons
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    counted.sort();
    format!("0/{nodes} nodes are available: {}.", counted.join(", "))
}

impl Scheduler {
    pub(super) async fn bind(&self, pod: Arc<Pod>, node: &str) {
        let key = ObjectKey::of(&*pod);
        match self.post_binding(&pod, &key, node).await {
            Ok(()) => {
                let message = format!("Successfully assigned {key} to {node}");
                self.events
                    .record(&*pod, Severity::Normal, "Scheduled", message);
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => self.release(&pod),
            Err(error) => {
                self.release(&pod);
                self.try_again(&key, &pod, &error).await;
            }
        }
    }

    async fn post_binding(
        &self,
        pod: &Pod,
        key: &ObjectKey,
        node: &str,
    ) -> Result<(), kube::Error> {
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(key.name.to_string()),
                namespace: Some(key.namespace.to_string()),
                uid: pod.metadata.uid.clone(),
                ..Default::default()
            },
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.into()),
                ..Default::default()
            },
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        api.create_subresource::<_, Status>("binding", &key.name, &PostParams::default(), &binding)
            .await
            .map(|_| ())
    }

    /// Gives back what an assumed pod took of its node, to whoever waits for it.
    fn release(&self, pod: &Pod) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut state = self.lock();
        if state.cluster.forget(uid) {
            state
                .queue
                .wake(Plugins::FIT.with(Plugins::HOST_PORTS), Instant::now());
            self.changed.notify_one();
        }
    }

    async fn try_again(&self, key: &ObjectKey, pod: &Pod, error: &kube::Error) {
        // Bound by someone else, or replaced: the informer brings what is true.
        let current = self.pods.get(key).filter(|current| {
            current.metadata.uid == pod.metadata.uid && node_name(current).is_none()
        });
        let Some(current) = current else {
            debug!(pod = %key, %error, "binding refused: the pod has changed");
            return;
        };
        let message = format!("binding rejected: {}", api_message(error));
        warn!(pod = %key, %error, "binding failed; trying again");
        {
            let mut state = self.lock();
            state.queue.retry(current.clone(), 1, Instant::now());
            self.changed.notify_one();
        }
        self.tell_failure(&current, "SchedulerError", &message)
            .await;
    }

    pub(super) async fn report_unschedulable(&self, pod: &Arc<Pod>, diagnosis: &Diagnosis) {
        let message = diagnosis.message(&Needs::of(pod));
        self.tell_failure(pod, "Unschedulable", &message).await;
    }

    async fn tell_failure(&self, pod: &Pod, reason: &str, message: &str) {
        self.events
            .record(pod, Severity::Warning, "FailedScheduling", message);
        let known = condition(pod, "PodScheduled");
        if known.is_some_and(|known| {
            known.status == "False" && known.message.as_deref() == Some(message)
        }) {
            return;
        }
        let since = known
            .filter(|known| known.status == "False")
            .and_then(|known| known.last_transition_time.clone());
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"conditions": [{
                "type": "PodScheduled",
                "status": "False",
                "reason": reason,
                "message": message,
                "lastProbeTime": null,
                "lastTransitionTime": since.unwrap_or_else(|| Time(jiff::Timestamp::now())),
                "observedGeneration": pod.metadata.generation,
            }]},
        });
        let key = ObjectKey::of(pod);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let patched = api
            .patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        match patched {
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => debug!(pod = %key, %error, "could not write why the pod has no node"),
            Ok(_) => {}
        }
    }
}
