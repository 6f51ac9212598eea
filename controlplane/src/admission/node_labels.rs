//! What a node may say of itself: it chooses neither the labels by which important pods find
//! trusted nodes, nor its taints (the admission plugin `NodeRestriction`).

use std::collections::BTreeSet;

use serde_json::Value;

use crate::resources::object::{at, entries, list};

/// Labels that only administrators set, so that pods can trust them.
const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// Namespaces of labels that belong to Kubernetes ...
const KUBERNETES: [&str; 2] = ["kubernetes.io", "k8s.io"];
/// ... of which nodes have these to themselves ...
const NODES_OWN: [&str; 2] = ["kubelet.kubernetes.io", "node.kubernetes.io"];
/// ... and these labels.
const NODES_LABELS: [&str; 12] = [
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "node.kubernetes.io/windows-build",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];

/// Why a node may not create itself like this.
pub(super) fn creation_refusal(node: &str, object: &Value) -> Option<String> {
    let forbidden = forbidden_labels(object, &Value::Null);
    (!forbidden.is_empty()).then(|| {
        let labels = forbidden.join(", ");
        format!("node {node:?} is not allowed to set the following labels: {labels}")
    })
}

/// Why a node may not change itself like this.
pub(super) fn change_refusal(node: &str, old: &Value, new: &Value) -> Option<String> {
    if list(old, "spec.taints") != list(new, "spec.taints") {
        return Some(format!("node {node:?} is not allowed to modify taints"));
    }
    let owners = |object| list(object, "metadata.ownerReferences").to_vec();
    if owners(old) != owners(new) {
        return Some(format!(
            "node {node:?} is not allowed to modify ownerReferences"
        ));
    }
    let forbidden = forbidden_labels(new, old);
    (!forbidden.is_empty())
        .then(|| format!("is not allowed to modify labels: {}", forbidden.join(", ")))
}

/// The labels that differ and that a node does not choose.
fn forbidden_labels<'v>(new: &'v Value, old: &'v Value) -> Vec<&'v str> {
    const LABELS: &str = "metadata.labels";
    let keys = entries(new, LABELS).chain(entries(old, LABELS));
    let keys: BTreeSet<&str> = keys.map(|(key, _)| key.as_str()).collect();
    let value = |object: &'v Value, key: &str| at(object, LABELS).get(key);
    keys.into_iter()
        .filter(|key| value(new, key) != value(old, key))
        .filter(|key| !is_nodes_own(key))
        .collect()
}

/// Whether a node may choose a label of itself.
pub fn is_nodes_own(label: &str) -> bool {
    let namespace = label.split_once('/').map_or("", |(namespace, _)| namespace);
    let within = |parent: &str| {
        let rest = namespace.strip_suffix(parent);
        rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if within(RESTRICTED) {
        return false;
    }
    !KUBERNETES.into_iter().any(within)
        || NODES_OWN.into_iter().any(within)
        || NODES_LABELS.contains(&label)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(labels: Value) -> Value {
        json!({"metadata": {"name": "a", "labels": labels}})
    }

    #[test]
    fn a_node_chooses_only_labels_that_are_its_own() {
        for (label, own) in [
            ("disk", true),
            ("example.com/disk", true),
            ("kubernetes.io/hostname", true),
            ("topology.kubernetes.io/zone", true),
            ("node.kubernetes.io/anything", true),
            ("x.kubelet.kubernetes.io/anything", true),
            ("node-role.kubernetes.io/control-plane", false),
            ("kubernetes.io/anything", false),
            ("sub.k8s.io/anything", false),
            ("node-restriction.kubernetes.io/trusted", false),
            ("x.node-restriction.kubernetes.io/trusted", false),
            ("notkubernetes.io/anything", true),
        ] {
            assert_eq!(is_nodes_own(label), own, "{label}");
        }
    }

    #[test]
    fn refusals_are_kubernetes() {
        let plain = node(json!({"kubernetes.io/hostname": "a", "disk": "ssd"}));
        assert_eq!(creation_refusal("a", &plain), None);
        let trusted = node(json!({"node-restriction.kubernetes.io/b": "1", "k8s.io/a": "1"}));
        assert_eq!(
            creation_refusal("a", &trusted).unwrap(),
            "node \"a\" is not allowed to set the following labels: k8s.io/a, node-restriction.kubernetes.io/b"
        );
        // What somebody else gave it, it may keep but not change or take away.
        assert_eq!(change_refusal("a", &trusted, &trusted), None);
        assert_eq!(
            change_refusal("a", &trusted, &node(json!({"k8s.io/a": "2"}))).unwrap(),
            "is not allowed to modify labels: k8s.io/a, node-restriction.kubernetes.io/b"
        );
        let mut tainted = plain.clone();
        tainted["spec"]["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
        let why = change_refusal("a", &tainted, &plain).unwrap();
        assert_eq!(why, "node \"a\" is not allowed to modify taints");
        let mut owned = plain.clone();
        owned["metadata"]["ownerReferences"] = json!([{"uid": "1"}]);
        let why = change_refusal("a", &plain, &owned).unwrap();
        assert_eq!(why, "node \"a\" is not allowed to modify ownerReferences");
    }
}
