//! Telling the API server what was decided: bindings, and why a pod has no node.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, core::Status};
use serde_json::json;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::needs::{Footprint, PREEMPTED};
use super::plugins::Plugins;
use super::{Failure, SCHEDULER_NAME, Scheduler};
use crate::controllers::events::Severity;
use crate::controllers::informer::ObjectKey;
use crate::controllers::pod_state::{condition, node_name, nominated_node};
use crate::controllers::writes::{api_message, only, unless_gone};

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
            state.queue.wake(Plugins::ALL, Instant::now());
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
        let nominated = nominated_node(&current).unwrap_or_default();
        self.tell_failure(&current, "SchedulerError", &message, nominated)
            .await;
    }

    /// Says why a pod has no node, and makes room for it where that was found to help.
    pub(super) async fn report_unschedulable(&self, pod: &Pod, failure: Failure) {
        let nominated = failure.nominated.as_deref().unwrap_or_default();
        self.tell_failure(pod, "Unschedulable", &failure.message, nominated)
            .await;
        let Some(plan) = failure.plan else { return };
        for other in &plan.outranked {
            self.withdraw_nomination(other).await;
        }
        for victim in &plan.victims {
            if let Err(error) = self.preempt(pod, victim, &plan.node).await {
                warn!(victim = %victim.key, pod = %ObjectKey::of(pod), %error, "preemption failed; trying again");
                let mut state = self.lock();
                state
                    .cluster
                    .nominations
                    .remove(pod.metadata.uid.as_deref().unwrap_or_default());
                state.queue.nudge(&ObjectKey::of(pod), Instant::now());
                self.changed.notify_one();
                return;
            }
        }
    }

    /// Ends a pod gracefully, because a more important one needs its place.
    async fn preempt(&self, by: &Pod, victim: &Footprint, node: &str) -> Result<(), kube::Error> {
        let key = &victim.key;
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let patch = json!({
            "metadata": {"uid": &*victim.uid},
            "status": {"conditions": [{
                "type": "DisruptionTarget",
                "status": "True",
                "reason": PREEMPTED,
                "message": format!("{SCHEDULER_NAME}: preempting to accommodate a higher priority pod"),
                "lastTransitionTime": Time(jiff::Timestamp::now()),
            }]},
        });
        let params = PatchParams::default();
        let marked = api
            .patch_status(&key.name, &params, &Patch::Strategic(patch))
            .await;
        unless_gone(marked)?;
        unless_gone(api.delete(&key.name, &only(Some(&victim.uid))).await)?;
        let uid = by.metadata.uid.as_deref().unwrap_or_default();
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(key.namespace.to_string()),
            name: Some(key.name.to_string()),
            uid: Some(victim.uid.to_string()),
            ..Default::default()
        };
        let message = format!("Preempted by pod {uid} on node {node}");
        self.events
            .record_about(about, Severity::Normal, "Preempted", message);
        Ok(())
    }

    /// The room that was made for a pod goes to a more important one: it may look elsewhere.
    async fn withdraw_nomination(&self, pod: &Footprint) {
        let patch = json!({
            "metadata": {"uid": &*pod.uid},
            "status": {"nominatedNodeName": null},
        });
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.key.namespace);
        let patched = api
            .patch_status(&pod.key.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        if let Err(error) = patched {
            debug!(pod = %pod.key, %error, "could not withdraw a nomination");
        }
    }

    async fn tell_failure(&self, pod: &Pod, reason: &str, message: &str, nominated: &str) {
        self.events
            .record(pod, Severity::Warning, "FailedScheduling", message);
        let known = condition(pod, "PodScheduled");
        let is_said = known.is_some_and(|known| {
            known.status == "False" && known.message.as_deref() == Some(message)
        });
        if is_said && nominated_node(pod).unwrap_or_default() == nominated {
            return;
        }
        let since = known
            .filter(|known| known.status == "False")
            .and_then(|known| known.last_transition_time.clone());
        let patch = json!({
            "metadata": {"uid": pod.metadata.uid},
            "status": {"nominatedNodeName": (!nominated.is_empty()).then_some(nominated), "conditions": [{
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
