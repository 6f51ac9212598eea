//! Nodes.

use jiff::Timestamp;
use serde_json::Value;

use super::object::{carry_over, list, text, truth};
use super::print::{AGE, NAME, age, column, name, wide};
use super::{Column, Hooks, Resource, SelectableField, metadata};

const ROLE_PREFIX: &str = "node-role.kubernetes.io/";
const ROLE_LABEL: &str = "kubernetes.io/role";

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Status",
        "string",
        "Whether the node is ready, and whether it takes pods.",
    ),
    column("Roles", "string", "The roles that its labels give it."),
    AGE,
    column("Version", "string", "The version of its agent."),
    wide("Internal-IP", "string", "Its address among the nodes."),
    wide("External-IP", "string", "Its address for the outside."),
    wide("OS-Image", "string", "Its operating system."),
    wide("Kernel-Version", "string", "Its kernel."),
    wide("Container-Runtime", "string", "What runs its containers."),
];

const SELECTABLE: &[SelectableField] = &[SelectableField::truth("spec.unschedulable")];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "node",
        short_names: &["no"],
        has_status: true,
        hooks: Hooks {
            prepare_update: |new, old| carry_over(new, old, "status"),
            validate: metadata::validate,
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row,
        selectable_fields: SELECTABLE,
        ..Resource::cluster_scoped("", "v1", "Node", "nodes", "io.k8s.api.core.v1.Node")
    }
}

fn row(node: &Value, now: Timestamp) -> Vec<Value> {
    let info = |field| or_unknown(text(node, &format!("status.nodeInfo.{field}")));
    vec![
        name(node),
        status(node).into(),
        roles(node).into(),
        age(node, now),
        text(node, "status.nodeInfo.kubeletVersion").into(),
        address(node, "InternalIP"),
        address(node, "ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn status(node: &Value) -> String {
    let ready = list(node, "status.conditions")
        .iter()
        .find(|c| text(c, "type") == "Ready");
    let status = match ready.map(|c| text(c, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let cordoned = if truth(node, "spec.unschedulable") {
        ",SchedulingDisabled"
    } else {
        ""
    };
    format!("{status}{cordoned}")
}

fn roles(node: &Value) -> String {
    let labels = node["metadata"]["labels"].as_object();
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None if key == ROLE_LABEL => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() {
        "<none>".into()
    } else {
        roles.join(",")
    }
}

fn address(node: &Value, kind: &str) -> Value {
    let found = list(node, "status.addresses")
        .iter()
        .find(|a| text(a, "type") == kind);
    found.map_or("<none>", |a| text(a, "address")).into()
}

fn or_unknown(value: &str) -> Value {
    if value.is_empty() {
        "<unknown>".into()
    } else {
        value.into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_cordoned_control_plane() {
        let node = json!({
            "metadata": {"name": "n", "creationTimestamp": "2024-01-01T00:00:00Z",
                "labels": {"node-role.kubernetes.io/control-plane": "", "kubernetes.io/role": "edge"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.37.0", "osImage": "Debian", "kernelVersion": "6.1"}},
        });
        let cells = row(&node, "2024-01-01T01:00:00Z".parse().unwrap());
        assert_eq!(
            json!(cells),
            json!([
                "n",
                "Ready,SchedulingDisabled",
                "control-plane,edge",
                "60m",
                "v1.37.0",
                "10.0.0.1",
                "<none>",
                "Debian",
                "6.1",
                "<unknown>"
            ])
        );
        assert_eq!(row(&json!({}), Timestamp::now())[1], "Unknown");
    }
}
