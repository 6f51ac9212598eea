//! ReplicaSets.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::deployments::selector_and_template;
use super::error::{immutable, non_negative};
use super::object::{at, carry_over, default, ensure, integer};
use super::pod_spec::defaults;
use super::print::{AGE, NAME, age, column, containers_and_images, label_selector, name, wide};
use super::{Column, FieldError, Hooks, Resource, Scale, SelectableField, metadata};

const COLUMNS: &[Column] = &[
    NAME,
    column("Desired", "integer", "How many pods are wanted."),
    column("Current", "integer", "How many pods there are."),
    column("Ready", "integer", "How many pods are ready."),
    AGE,
    wide(
        "Containers",
        "string",
        "The names of the template's containers.",
    ),
    wide(
        "Images",
        "string",
        "The images of the template's containers.",
    ),
    wide(
        "Selector",
        "string",
        "Which pods belong to the replica set.",
    ),
];

const SELECTABLE: &[SelectableField] = &[SelectableField::number("status.replicas")];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        has_status: true,
        has_generation: true,
        scale: Some(Scale {
            replicas: "spec.replicas",
            status_replicas: "status.replicas",
            selector: "spec.selector",
        }),
        hooks: Hooks {
            default: |set| {
                let spec = ensure(set, "spec");
                default(spec, "replicas", 1);
                defaults::default_template(ensure(spec, "template"));
            },
            prepare_create: |set| set["status"] = json!({"replicas": 0}),
            prepare_update: |new, old| carry_over(new, old, "status"),
            validate,
            validate_update: |new, old| {
                immutable(
                    "spec.selector",
                    &new["spec"]["selector"],
                    &old["spec"]["selector"],
                )
                .into_iter()
                .collect()
            },
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row,
        selectable_fields: SELECTABLE,
        ..Resource::namespaced(
            "apps",
            "v1",
            "ReplicaSet",
            "replicasets",
            "io.k8s.api.apps.v1.ReplicaSet",
        )
    }
}

fn validate(set: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(set);
    let spec = &set["spec"];
    errors.extend(non_negative("spec.replicas", &spec["replicas"]));
    errors.extend(non_negative(
        "spec.minReadySeconds",
        at(spec, "minReadySeconds"),
    ));
    errors.extend(selector_and_template(spec));
    errors
}

fn row(set: &Value, now: Timestamp) -> Vec<Value> {
    let (containers, images) = containers_and_images(&set["spec"]["template"]);
    vec![
        name(set),
        integer(set, "spec.replicas").into(),
        integer(set, "status.replicas").into(),
        integer(set, "status.readyReplicas").into(),
        age(set, now),
        containers,
        images,
        label_selector(&set["spec"]["selector"]).into(),
    ]
}
