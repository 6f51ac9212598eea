//! PriorityClasses: how much pods matter beside others.

use serde_json::Value;

use super::error::{forbidden, immutable, not_supported};
use super::object::{at, default, integer, text, truth};
use super::print::{AGE, NAME, age, column, name};
use super::{Column, FieldError, Hooks, Resource, metadata};

/// Classes with this prefix are the system's.
const SYSTEM_PREFIX: &str = "system-";
/// The classes that every cluster has: name, value and description.
pub(crate) const SYSTEM: [(&str, i64, &str); 2] = [
    (
        "system-node-critical",
        2_000_001_000,
        "Used for system critical pods that must not be moved from their current node.",
    ),
    (
        "system-cluster-critical",
        2_000_000_000,
        "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
    ),
];
/// What people may ask for at most.
const HIGHEST: i64 = 1_000_000_000;
pub(crate) const POLICIES: [&str; 2] = ["Never", "PreemptLowerPriority"];

const COLUMNS: &[Column] = &[
    NAME,
    column("Value", "integer", "The priority of the class's pods."),
    column(
        "Global-Default",
        "boolean",
        "Whether pods that name no class have it.",
    ),
    AGE,
    column(
        "PreemptionPolicy",
        "string",
        "Whether its pods may make others end.",
    ),
];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "priorityclass",
        short_names: &["pc"],
        hooks: Hooks {
            default: |class| default(class, "preemptionPolicy", "PreemptLowerPriority"),
            prepare_create: |class| default(class, "value", 0),
            validate,
            validate_update,
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row: |class, now| {
            vec![
                name(class),
                integer(class, "value").into(),
                truth(class, "globalDefault").into(),
                age(class, now),
                text(class, "preemptionPolicy").into(),
            ]
        },
        ..Resource::cluster_scoped(
            "scheduling.k8s.io",
            "v1",
            "PriorityClass",
            "priorityclasses",
            "io.k8s.api.scheduling.v1.PriorityClass",
        )
    }
}

fn validate(class: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(class);
    let name = text(class, "metadata.name");
    if name.starts_with(SYSTEM_PREFIX) {
        if let Err(why) = is_system_class(class) {
            let why = format!(
                "priority class names with '{SYSTEM_PREFIX}' prefix are reserved for system use only. error: {why}"
            );
            errors.push(forbidden("metadata.name", &why));
        }
    } else if integer(class, "value") > HIGHEST {
        let why = format!("maximum allowed value of a user defined priority is {HIGHEST}");
        errors.push(forbidden("value", &why));
    }
    let policy = text(class, "preemptionPolicy");
    if !POLICIES.contains(&policy) {
        errors.push(not_supported("preemptionPolicy", policy, &POLICIES));
    }
    errors
}

fn is_system_class(class: &Value) -> Result<(), String> {
    let name = text(class, "metadata.name");
    let known = SYSTEM.iter().find(|(known, ..)| *known == name);
    let Some((_, value, _)) = known else {
        return Err(format!("{name} is not a known system priority class"));
    };
    if integer(class, "value") != *value {
        return Err(format!("value of {name} PriorityClass must be {value}"));
    }
    if truth(class, "globalDefault") {
        return Err(format!(
            "globalDefault of {name} PriorityClass must be false"
        ));
    }
    Ok(())
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if integer(new, "value") != integer(old, "value") {
        errors.push(forbidden("value", "may not be changed in an update."));
    }
    let field = "preemptionPolicy";
    errors.extend(immutable(field, at(new, field), at(old, field)));
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults(class: Value) -> Vec<String> {
        let mut class = class;
        (resource().hooks.default)(&mut class);
        let errors = validate(&class);
        errors
            .iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect()
    }

    #[test]
    fn classes_of_people_and_of_the_system() {
        let class = |name: &str, value: i64| json!({"metadata": {"name": name}, "value": value});
        assert!(faults(class("high", 1_000_000_000)).is_empty());
        assert!(faults(class("low", -5)).is_empty());
        assert_eq!(
            faults(class("high", 1_000_000_001)),
            ["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]
        );
        for (name, value, _) in SYSTEM {
            assert!(faults(class(name, value)).is_empty());
        }
        let reserved = "metadata.name: Forbidden: priority class names with 'system-' prefix are \
                        reserved for system use only. error:";
        assert_eq!(
            faults(class("system-mine", 1)),
            [format!(
                "{reserved} system-mine is not a known system priority class"
            )]
        );
        assert_eq!(
            faults(class("system-node-critical", 1)),
            [format!(
                "{reserved} value of system-node-critical PriorityClass must be 2000001000"
            )]
        );
        let mut odd = class("high", 1);
        odd["preemptionPolicy"] = json!("Always");
        assert_eq!(
            faults(odd),
            [
                r#"preemptionPolicy: Unsupported value: "Always": supported values: "Never", "PreemptLowerPriority""#
            ]
        );
    }

    #[test]
    fn a_class_keeps_its_value() {
        let class = |value: i64| json!({"metadata": {"name": "high"}, "value": value});
        let errors = validate_update(&class(2), &class(1));
        assert_eq!(
            errors[0].message,
            "Forbidden: may not be changed in an update."
        );
        assert!(validate_update(&class(1), &class(1)).is_empty());
    }
}
