//! Made-up objects, for the tests of the drills.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

/// So many milliseconds after a fixed instant.
pub(super) fn at(millis: i64) -> Timestamp {
    let begin = Timestamp::from_second(1_800_000_000).unwrap();
    begin + SignedDuration::from_millis(millis)
}

/// A pod of the workload with the uid `rs`; `state` is `Pending`, `Running`, `Ready` or `Terminating`.
pub(super) fn pod(name: &str, node: &str, state: &str) -> Pod {
    let phase = if matches!(state, "Pending") {
        "Pending"
    } else {
        "Running"
    };
    let ready = if state == "Ready" { "True" } else { "False" };
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"),
            "labels": {"app": "web"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-1", "uid": "rs",
                "controller": true}]},
        "spec": {"nodeName": node, "containers": [{"name": "main"}, {"name": "side"}]},
        "status": {"phase": phase, "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": ready}]},
    });
    if state == "Terminating" {
        pod["metadata"]["deletionTimestamp"] = json!("2027-01-15T08:00:00Z");
    }
    serde_json::from_value(pod).unwrap()
}

/// The pod with its container `main` running for the `restarts`-th time anew.
pub(super) fn running(mut pod: Pod, restarts: i32) -> Pod {
    let mut container = json!({"name": "main", "restartCount": restarts, "image": "", "imageID": "",
        "ready": true, "containerID": format!("skiff://{restarts}"),
        "state": {"running": {}}, "lastState": {}});
    if restarts > 0 {
        container["lastState"] = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled",
            "containerID": format!("skiff://{}", restarts - 1)}});
    }
    let status = pod.status.get_or_insert_default();
    status.container_statuses = Some(vec![serde_json::from_value(container).unwrap()]);
    pod
}

pub(super) fn node(name: &str, ready: &str) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "status": {"conditions": [{"type": "Ready", "status": ready}]},
    }))
    .unwrap()
}
