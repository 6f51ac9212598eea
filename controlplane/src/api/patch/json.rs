//! JSON patch (RFC 6902), with the `json-patch` crate.

use serde_json::Value;

use crate::api::status::ApiError;

/// The most operations that one patch may have, as in Kubernetes.
const MAX_OPERATIONS: usize = 10_000;

/// Applies the operations to `target` in order, all or none.
///
/// # Errors
/// 400 when `patch` is no list of operations, 422 when one does not apply.
pub(super) fn apply(target: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let operations: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| ApiError::bad_request(format!("error decoding JSON patch: {e}")))?;
    if operations.0.len() > MAX_OPERATIONS {
        return Err(ApiError::bad_request(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {}",
            operations.0.len()
        )));
    }
    json_patch::patch(target, &operations).map_err(|e| {
        let operation = &operations.0[e.operation];
        let name = match operation {
            json_patch::PatchOperation::Add(_) => "add",
            json_patch::PatchOperation::Remove(_) => "remove",
            json_patch::PatchOperation::Replace(_) => "replace",
            json_patch::PatchOperation::Move(_) => "move",
            json_patch::PatchOperation::Copy(_) => "copy",
            json_patch::PatchOperation::Test(_) => {
                return ApiError::unprocessable(&format!(
                    "testing value {} failed: test failed",
                    e.path
                ));
            }
        };
        ApiError::unprocessable(&format!(
            "{name} operation does not apply: doc is missing path: \"{}\": missing value",
            e.path
        ))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::apply;
    use crate::api::status::ApiError;

    #[test]
    fn operations_apply_in_order() {
        let mut target =
            json!({"spec": {"containers": [{"image": "a"}]}, "metadata": {"labels": {"a/b": "1"}}});
        let patch = json!([
            {"op": "test", "path": "/metadata/labels/a~1b", "value": "1"},
            {"op": "replace", "path": "/spec/containers/0/image", "value": "b"},
            {"op": "add", "path": "/spec/containers/-", "value": {"image": "c"}},
            {"op": "remove", "path": "/metadata/labels/a~1b"},
        ]);
        apply(&mut target, &patch).unwrap();
        assert_eq!(
            target,
            json!({"spec": {"containers": [{"image": "b"}, {"image": "c"}]}, "metadata": {"labels": {}}})
        );
    }

    #[test]
    fn a_failing_operation_leaves_the_object() {
        let mut target = json!({"a": 1});
        let patch =
            json!([{"op": "add", "path": "/a", "value": 2}, {"op": "remove", "path": "/b"}]);
        let error = apply(&mut target, &patch).unwrap_err();
        let why = r#"remove operation does not apply: doc is missing path: "/b": missing value"#;
        assert_eq!(error, ApiError::unprocessable(why));
        assert_eq!(target, json!({"a": 1}));
        assert_eq!(
            apply(&mut target, &json!({"op": "add"})).unwrap_err().code,
            400
        );
    }
}
