//! DrillTasks: what one node, or the control plane, does in a drill (`skiff.dev/v1`).
//!
//! The drill controller makes them, and the agents of their nodes (found by the field selector
//! `spec.nodeName`) carry them out. What an agent may write of them is in `crate::admission`.

use jiff::Timestamp;
use serde_json::Value;
use skiff_dev::DrillTask;

use super::drills::{only_ever_sets, or_pending, unreadable, unreadable_status};
use super::error::{not_supported, required};
use super::object::{at, carry_over, text};
use super::print::{AGE, NAME, age, column, name, or_none};
use super::{Column, FieldError, Hooks, Resource, SelectableField, metadata};

const ACTIONS: [&str; 17] = [
    "BurnCpu",
    "CrashNode",
    "CutControlPlane",
    "CutPods",
    "DelayPackets",
    "ExhaustMemory",
    "FillDisk",
    "KillContainer",
    "LosePackets",
    "Probe",
    "RefuseRegistries",
    "RestartAgent",
    "RestartControlPlane",
    "SilenceDns",
    "StopContainer",
    "TakeMemory",
    "Write",
];

const COLUMNS: &[Column] = &[
    NAME,
    column("Drill", "string", "The drill that it is part of."),
    column("Node", "string", "Whose agent carries it out."),
    column("Action", "string", "What is done."),
    column("Phase", "string", "How far it is."),
    AGE,
];

const SELECTABLE: &[SelectableField] = &[
    SelectableField::text("spec.nodeName"),
    SelectableField::text("spec.drill"),
];
/// Where [`SELECTABLE`] has the node's name.
pub(crate) const NODE_NAME: usize = 0;

pub(super) fn resource() -> Resource {
    Resource {
        singular: "drilltask",
        has_status: true,
        has_generation: true,
        hooks: Hooks {
            prepare_create: |task| {
                if let Some(fields) = task.as_object_mut() {
                    fields.remove("status");
                }
            },
            prepare_update: |new, old| carry_over(new, old, "status"),
            validate,
            validate_update: |new, old| only_ever_sets(new, old, "stop"),
            validate_status: unreadable_status::<DrillTask>,
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row,
        selectable_fields: SELECTABLE,
        ..Resource::cluster_scoped(
            skiff_dev::GROUP,
            skiff_dev::VERSION,
            "DrillTask",
            "drilltasks",
            "dev.skiff.v1.DrillTask",
        )
    }
}

fn row(task: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(task),
        text(task, "spec.drill").into(),
        or_none(text(task, "spec.nodeName")),
        text(task, "spec.action.type").into(),
        or_pending(text(task, "status.phase")).into(),
        age(task, now),
    ]
}

fn validate(task: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(task);
    for field in ["spec.drill", "spec.until"] {
        if text(task, field).is_empty() {
            errors.push(required(field, ""));
        }
    }
    let action = text(task, "spec.action.type");
    if at(task, "spec.action").is_null() {
        errors.push(required("spec.action", ""));
    } else if action.is_empty() {
        errors.push(required("spec.action.type", ""));
    } else if !ACTIONS.contains(&action) {
        errors.push(not_supported("spec.action.type", action, &ACTIONS));
    }
    if errors.is_empty() {
        errors.extend(unreadable::<DrillTask>(task, "spec"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task(action: Value) -> Value {
        json!({"metadata": {"name": "t"}, "spec": {"drill": "d", "nodeName": "a",
            "until": "2026-01-01T00:00:00.000000Z", "action": action}})
    }

    fn faults(task: &Value) -> Vec<String> {
        let errors = validate(task).into_iter();
        errors
            .map(|error| format!("{}: {}", error.field, error.message))
            .collect()
    }

    #[test]
    fn tasks_say_what_to_do() {
        let pod = json!({"namespace": "default", "name": "web", "uid": "u"});
        let kill = json!({"type": "KillContainer", "pod": pod, "container": "nginx"});
        assert_eq!(faults(&task(kill)), [""; 0]);
        // The API leaves out empty lists.
        assert_eq!(
            faults(&task(json!({"type": "CutPods", "pods": [pod]}))),
            [""; 0]
        );
        assert_eq!(faults(&task(json!({"type": "RefuseRegistries"}))), [""; 0]);
        let missing = json!({"metadata": {"name": "t"}, "spec": {}});
        assert_eq!(
            faults(&missing),
            [
                "spec.drill: Required value",
                "spec.until: Required value",
                "spec.action: Required value"
            ]
        );
        assert_eq!(
            faults(&task(json!({}))),
            ["spec.action.type: Required value"]
        );
        let unknown = faults(&task(json!({"type": "Explode"})));
        assert!(
            unknown[0].starts_with(
                "spec.action.type: Unsupported value: \"Explode\": supported values: \"BurnCpu\""
            ),
            "{unknown:?}"
        );
        let incomplete = faults(&task(
            json!({"type": "KillContainer", "container": "nginx"}),
        ));
        assert!(
            incomplete[0].ends_with("missing field `pod`"),
            "{incomplete:?}"
        );
        let wrong = task(json!({"type": "DelayPackets", "pods": [], "delay": "soon"}));
        assert!(
            faults(&wrong)[0].contains("is no duration"),
            "{:?}",
            faults(&wrong)
        );
    }

    #[test]
    fn a_task_is_only_ever_stopped() {
        let mut old = task(json!({"type": "RestartAgent"}));
        let mut new = old.clone();
        new["spec"]["stop"] = json!(true);
        assert_eq!(only_ever_sets(&new, &old, "stop"), []);
        old["spec"]["stop"] = json!(true);
        new["spec"]["stop"] = json!(false);
        assert_eq!(only_ever_sets(&new, &old, "stop")[0].field, "spec.stop");
        new["spec"]["stop"] = json!(true);
        new["spec"]["nodeName"] = json!("b");
        assert_eq!(only_ever_sets(&new, &old, "stop")[0].field, "spec");
    }

    #[test]
    fn a_status_that_nobody_can_read_is_refused() {
        let mut task = task(json!({"type": "RestartAgent"}));
        assert_eq!(unreadable_status::<DrillTask>(&task), []);
        task["status"] = json!({"phase": "Active", "startedAt": "2026-01-01T00:00:00.000000Z"});
        assert_eq!(unreadable_status::<DrillTask>(&task), []);
        task["status"]["phase"] = json!("Bored");
        let errors = unreadable_status::<DrillTask>(&task);
        assert_eq!(errors[0].field, "status");
        assert!(
            errors[0].message.contains("unknown variant `Bored`"),
            "{errors:?}"
        );
    }

    #[test]
    fn rows_tell_who_does_what() {
        let mut task = task(json!({"type": "Probe"}));
        let row = row(&task, Timestamp::now());
        assert_eq!(
            row[1..5],
            [json!("d"), json!("a"), json!("Probe"), json!("Pending")]
        );
        task["spec"]["nodeName"] = Value::Null;
        assert_eq!(super::row(&task, Timestamp::now())[2], "<none>");
    }
}
