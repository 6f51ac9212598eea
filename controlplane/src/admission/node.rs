//! Nodes write what is theirs: their own Node object and the pods that run on them.
//!
//! The authorizer lets every node at these resources; whose object it is takes the object to
//! tell.

use serde_json::Value;

use super::node_labels;
use crate::api::object::{self, Object};
use crate::api::status::ApiError;
use crate::auth::UserInfo;
use crate::resources::Resource;

/// A static pod's picture in the API carries this annotation.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What a node wants to do to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeWrite {
    Create,
    Update,
    Delete,
}

/// # Errors
/// 403 in the words of Kubernetes' NodeRestriction, when a node writes what belongs to another.
/// `object` is what is stored, or the new object of a create.
pub fn restrict(
    user: &UserInfo,
    resource: &Resource,
    write: NodeWrite,
    object: &Value,
) -> Result<(), ApiError> {
    let Some(node) = user.node() else {
        return Ok(());
    };
    let refusal = match (resource.group, resource.plural) {
        ("", "pods") => pod_refusal(node, write, object),
        ("", "nodes") if object.name() != node => {
            let name = object.name();
            Some(format!(
                "node {node:?} is not allowed to modify node {name:?}"
            ))
        }
        ("", "nodes") if write == NodeWrite::Create => node_labels::creation_refusal(node, object),
        _ => None,
    };
    match refusal {
        Some(why) => Err(ApiError::forbidden(resource, object.name(), &why)),
        None => Ok(()),
    }
}

/// # Errors
/// 403 when a node changes of its own Node what it may not choose.
pub fn restrict_change(
    user: &UserInfo,
    resource: &Resource,
    old: &Value,
    new: &Value,
) -> Result<(), ApiError> {
    let Some(node) = user.node() else {
        return Ok(());
    };
    if (resource.group, resource.plural) != ("", "nodes") {
        return Ok(());
    }
    match node_labels::change_refusal(node, old, new) {
        Some(why) => Err(ApiError::forbidden(resource, new.name(), &why)),
        None => Ok(()),
    }
}

fn pod_refusal(node: &str, write: NodeWrite, pod: &Value) -> Option<String> {
    let assigned = object::at(pod, "spec.nodeName").and_then(Value::as_str);
    let is_mirror = pod
        .metadata()
        .and_then(|m| m.get("annotations"))
        .is_some_and(|annotations| annotations.get(MIRROR).is_some());
    if write == NodeWrite::Create && !is_mirror {
        return Some(format!(
            "pod does not have {MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if assigned == Some(node) {
        return None;
    }
    let what = match write {
        NodeWrite::Create => "create pods",
        NodeWrite::Update => "update pod status for pods",
        NodeWrite::Delete => "delete pods",
    };
    Some(format!(
        "node {node:?} can only {what} with spec.nodeName set to itself"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::{MASTERS, NODES};

    fn refused(user: &UserInfo, plural: &str, write: NodeWrite, object: &Value) -> Option<String> {
        let registry = crate::resources::registry();
        let resource = registry.get("", "v1", plural).expect("declared");
        let error = restrict(user, resource, write, object).err()?;
        Some(error.message)
    }

    #[test]
    fn a_node_writes_its_own() {
        let node = UserInfo::authenticated("system:node:a", [NODES.to_string()]);
        let admin = UserInfo::authenticated("admin", [MASTERS.to_string()]);
        let here = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "a"}});
        let there = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "b"}});
        assert_eq!(refused(&node, "pods", NodeWrite::Update, &here), None);
        assert_eq!(refused(&node, "pods", NodeWrite::Delete, &here), None);
        assert_eq!(refused(&admin, "pods", NodeWrite::Create, &there), None);
        assert_eq!(
            refused(&node, "pods", NodeWrite::Delete, &there).unwrap(),
            r#"pods "p" is forbidden: node "a" can only delete pods with spec.nodeName set to itself"#
        );
        assert!(refused(&node, "pods", NodeWrite::Create, &here).is_some());
        let other = json!({"metadata": {"name": "b"}});
        assert_eq!(
            refused(&node, "nodes", NodeWrite::Update, &other).unwrap(),
            r#"nodes "b" is forbidden: node "a" is not allowed to modify node "b""#
        );
    }
}
