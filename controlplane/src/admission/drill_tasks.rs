//! Nodes let go of their drill tasks, and decide nothing else about them.
//!
//! The authorizer lets a node at its own tasks alone.

use serde_json::Value;

use super::Request;
use crate::api::object::Object;
use crate::api::status::ApiError;

/// # Errors
/// 403 when a node changes anything of a task but its finalizers, or adds one.
pub(super) fn restrict(request: &Request<'_>, object: &Value) -> Result<(), ApiError> {
    let resource = request.resource;
    let is_task = (resource.group, resource.plural) == (skiff_dev::GROUP, "drilltasks");
    let Some(node) = request.user.node().filter(|_| is_task) else {
        return Ok(());
    };
    if request.old.is_some_and(|old| only_releases(object, old)) {
        return Ok(());
    }
    let why = format!("node {node:?} can only remove finalizers of its drill tasks");
    Err(ApiError::forbidden(resource, object.name(), &why))
}

fn only_releases(new: &Value, old: &Value) -> bool {
    let others = |object: &Value| {
        let mut object = object.clone();
        for field in ["finalizers", "managedFields", "resourceVersion"] {
            object.remove_meta(field);
        }
        // An update of the main resource does not change it.
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
        object
    };
    let before = old.finalizers();
    let adds = new
        .finalizers()
        .iter()
        .any(|finalizer| !before.contains(finalizer));
    !adds && others(new) == others(old)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finalizers_may_go_and_nothing_else_may_change() {
        let old = json!({"metadata": {"name": "t", "finalizers": ["a/b"], "resourceVersion": "1"},
            "spec": {"stop": false}, "status": {"phase": "Active"}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!([]);
        new["status"] = json!({});
        assert!(only_releases(&new, &old));
        let mut stopped = new.clone();
        stopped["spec"]["stop"] = json!(true);
        assert!(!only_releases(&stopped, &old));
        let mut labelled = new.clone();
        labelled["metadata"]["labels"] = json!({"a": "b"});
        assert!(!only_releases(&labelled, &old));
        new["metadata"]["finalizers"] = json!(["c/d"]);
        assert!(!only_releases(&new, &old));
    }
}
