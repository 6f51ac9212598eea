//! Pods.

mod row;
mod update;

use serde_json::{Value, json};

use super::object::{carry_over, default, default_zero, ensure, integer};
use super::pod_spec::{affinity, defaults, qos, validation};
use super::print::{AGE, NAME, column, wide};
use super::{Column, FieldError, Hooks, Resource, SelectableField, metadata};

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Ready",
        "string",
        "How many of the pod's containers are ready, of all.",
    ),
    column(
        "Status",
        "string",
        "The phase, or why the pod is not further.",
    ),
    column(
        "Restarts",
        "string",
        "How often its containers were started again, and when last.",
    ),
    AGE,
    wide("IP", "string", "The pod's primary address."),
    wide("Node", "string", "The node that the pod is bound to."),
    wide(
        "Nominated Node",
        "string",
        "The node that preemption makes room on for the pod.",
    ),
    wide(
        "Readiness Gates",
        "string",
        "How many of the pod's readiness gates hold, of all.",
    ),
];

/// The place of `spec.nodeName` among the selectable fields.
pub(crate) const NODE_NAME: usize = 0;

const SELECTABLE: &[SelectableField] = &[
    SelectableField::text("spec.nodeName"),
    SelectableField::text("spec.restartPolicy"),
    SelectableField::text("spec.schedulerName"),
    SelectableField::text("spec.serviceAccountName"),
    SelectableField::truth("spec.hostNetwork"),
    SelectableField::text("status.phase"),
    SelectableField::text("status.podIP"),
    SelectableField::text("status.nominatedNodeName"),
];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        has_status: true,
        has_generation: true,
        hooks: Hooks {
            default: defaults::default_pod,
            prepare_create,
            prepare_update,
            validate,
            validate_update: update::validate,
            default_grace_period: |pod| Some(integer(pod, "spec.terminationGracePeriodSeconds")),
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row: row::row,
        selectable_fields: SELECTABLE,
        ..Resource::namespaced("", "v1", "Pod", "pods", "io.k8s.api.core.v1.Pod")
    }
}

/// A new pod waits, whatever the client said of its status.
fn prepare_create(pod: &mut Value) {
    let spec = ensure(pod, "spec");
    default_zero(spec, "serviceAccountName", "default");
    spec["serviceAccount"] = spec["serviceAccountName"].clone();
    affinity::merge_label_keys(pod);
    pod["status"] = json!({"phase": "Pending", "qosClass": qos::qos_class(&pod["spec"])});
}

fn prepare_update(new: &mut Value, old: &Value) {
    carry_over(new, old, "status");
    // Defaulting may not touch what admission once filled in.
    for field in [
        "serviceAccountName",
        "serviceAccount",
        "priority",
        "preemptionPolicy",
    ] {
        if let Some(value) = old.pointer(&format!("/spec/{field}")) {
            default(&mut new["spec"], field, value.clone());
        }
    }
}

fn validate(pod: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(pod);
    errors.extend(validation::pod_spec(&pod["spec"], "spec"));
    errors
}
