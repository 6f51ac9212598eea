//! Leases: heartbeats and leader election.

use serde_json::Value;

use super::error::invalid;
use super::object::{at, is_set, text};
use super::print::{AGE, NAME, age, column, name};
use super::{Column, FieldError, Hooks, Resource, metadata};

const COLUMNS: &[Column] = &[NAME, column("Holder", "string", "Who holds it."), AGE];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "lease",
        hooks: Hooks {
            validate,
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row: |lease, now| {
            vec![
                name(lease),
                text(lease, "spec.holderIdentity").into(),
                age(lease, now),
            ]
        },
        ..Resource::namespaced(
            "coordination.k8s.io",
            "v1",
            "Lease",
            "leases",
            "io.k8s.api.coordination.v1.Lease",
        )
    }
}

fn validate(lease: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(lease);
    let duration = at(lease, "spec.leaseDurationSeconds");
    if duration.as_i64().is_some_and(|seconds| seconds <= 0) {
        errors.push(invalid(
            "spec.leaseDurationSeconds",
            duration,
            "must be greater than 0",
        ));
    }
    let transitions = at(lease, "spec.leaseTransitions");
    if transitions.as_i64().is_some_and(|n| n < 0) {
        errors.push(invalid(
            "spec.leaseTransitions",
            transitions,
            "must be greater than or equal to 0",
        ));
    }
    if is_set(lease, "spec.holderIdentity") && text(lease, "spec.holderIdentity").is_empty() {
        errors.push(invalid(
            "spec.holderIdentity",
            &"".into(),
            "must not be empty",
        ));
    }
    errors
}
