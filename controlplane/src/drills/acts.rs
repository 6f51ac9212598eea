//! What the controller breaks, and mends, itself: deletes, evicts, cordons.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{EvictParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use skiff_dev::PodRef;

use crate::controllers::ownership::controller_ref;
use crate::controllers::pod_state::is_active;
use crate::controllers::writes::{api_message, only, unless_gone};

/// Deletes a pod, if it is still this one.
pub(super) async fn delete(client: &Client, pod: &PodRef) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    unless_gone(api.delete(&pod.name, &only(Some(&pod.uid))).await)
}

/// Evicts a pod, if it is still this one; a disruption budget's refusal is an answer.
pub(super) async fn evict(client: &Client, pod: &PodRef) -> Result<Option<String>, kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let params = EvictParams {
        delete_options: Some(only(Some(&pod.uid))),
        ..EvictParams::default()
    };
    match api.evict(&pod.name, &params).await {
        Err(kube::Error::Api(status)) if status.code == 429 => {
            let causes = status.details.iter().flat_map(|details| &details.causes);
            let causes: Vec<&str> = causes.map(|cause| cause.message.as_str()).collect();
            Ok(Some(match causes.is_empty() {
                true => status.message.clone(),
                false => format!("{} {}", status.message, causes.join(" ")),
            }))
        }
        // More than one budget, say.
        Err(kube::Error::Api(status)) if !status.is_not_found() && !status.is_conflict() => {
            Ok(Some(api_message(&kube::Error::Api(status))))
        }
        other => unless_gone(other).map(|()| None),
    }
}

/// Whether a drain has to evict a pod.
pub(super) fn is_drained(pod: &Arc<Pod>) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let is_static = annotations.is_some_and(|a| a.contains_key("kubernetes.io/config.mirror"));
    let is_daemon = controller_ref(&**pod).is_some_and(|owner| owner.kind == "DaemonSet");
    is_active(pod) && !is_static && !is_daemon
}

/// Lets nothing be scheduled on a node, or again.
pub(super) async fn set_cordoned(
    client: &Client,
    node: &str,
    cordoned: bool,
) -> Result<(), kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let value = if cordoned { json!(true) } else { json!(null) };
    let patch = Patch::Merge(json!({"spec": {"unschedulable": value}}));
    unless_gone(api.patch(node, &PatchParams::default(), &patch).await)
}
