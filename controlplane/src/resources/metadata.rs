//! The rules for `metadata`, the same for every kind.

use serde_json::Value;

use super::error::{forbidden, invalid, required, too_long};
use super::object::{at, entries, list, text};
use super::{FieldError, syntax};

/// All annotations of an object together.
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

/// Everything but the name, whose form the pipeline checks when it is given.
pub(crate) fn validate(object: &Value) -> Vec<FieldError> {
    let metadata = at(object, "metadata");
    let mut errors = labels(at(metadata, "labels"), "metadata.labels");
    errors.extend(annotations(
        at(metadata, "annotations"),
        "metadata.annotations",
    ));
    errors.extend(owner_references(metadata));
    for finalizer in list(metadata, "finalizers") {
        let faults = syntax::qualified_name(finalizer.as_str().unwrap_or_default());
        errors.extend(
            faults
                .iter()
                .map(|why| invalid("metadata.finalizers", finalizer, why)),
        );
    }
    errors
}

pub(crate) fn labels(labels: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        let faults = syntax::qualified_name(key);
        errors.extend(
            faults
                .iter()
                .map(|why| invalid(path, &Value::from(key.as_str()), why)),
        );
        let faults = syntax::label_value(value.as_str().unwrap_or_default());
        errors.extend(faults.iter().map(|why| invalid(path, value, why)));
    }
    errors
}

pub(crate) fn annotations(annotations: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut bytes = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        bytes += key.len() + value.as_str().map_or(0, str::len);
        let faults = syntax::qualified_name(&key.to_lowercase());
        errors.extend(
            faults
                .iter()
                .map(|why| invalid(path, &Value::from(key.as_str()), why)),
        );
    }
    if bytes > ANNOTATIONS_MAX_BYTES {
        errors.push(too_long(path, ANNOTATIONS_MAX_BYTES));
    }
    errors
}

fn owner_references(metadata: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut controller: Option<String> = None;
    for (index, owner) in list(metadata, "ownerReferences").iter().enumerate() {
        let path = format!("metadata.ownerReferences[{index}]");
        for field in ["apiVersion", "kind", "name", "uid"] {
            if text(owner, field).is_empty() {
                errors.push(required(&format!("{path}.{field}"), "must not be empty"));
            }
        }
        if owner["controller"] == true {
            let this = format!("{}/{}", text(owner, "kind"), text(owner, "name"));
            if let Some(first) = &controller {
                let why = format!(
                    "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                );
                errors.push(invalid(
                    "metadata.ownerReferences",
                    &metadata["ownerReferences"],
                    &why,
                ));
            }
            controller.get_or_insert(this);
        }
    }
    errors
}

/// A `LabelSelector` at `path`.
pub(crate) fn label_selector(selector: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = labels(at(selector, "matchLabels"), &format!("{path}.matchLabels"));
    for (index, expression) in list(selector, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let values = list(expression, "values").len();
        match text(expression, "operator") {
            "In" | "NotIn" if values == 0 => {
                let why = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(required(&format!("{path}.values"), why));
            }
            "Exists" | "DoesNotExist" if values > 0 => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(forbidden(&format!("{path}.values"), why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => errors.push(invalid(
                &format!("{path}.operator"),
                &expression["operator"],
                "not a valid selector operator",
            )),
        }
        let faults = syntax::qualified_name(text(expression, "key"));
        errors.extend(
            faults
                .iter()
                .map(|why| invalid(&format!("{path}.key"), &expression["key"], why)),
        );
    }
    errors
}

/// Whether a `LabelSelector` selects these labels; an empty one selects everything.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    let label = |key: &str| labels.get(key).and_then(Value::as_str);
    entries(selector, "matchLabels").all(|(key, value)| label(key) == value.as_str())
        && list(selector, "matchExpressions").iter().all(|expression| {
            let value = label(text(expression, "key"));
            let among = || {
                list(expression, "values")
                    .iter()
                    .any(|v| v.as_str() == value)
            };
            match text(expression, "operator") {
                "In" => value.is_some() && among(),
                "NotIn" => value.is_none() || !among(),
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
}

/// Whether a `LabelSelector` has no requirement.
pub(crate) fn selects_everything(selector: &Value) -> bool {
    entries(selector, "matchLabels").next().is_none()
        && list(selector, "matchExpressions").is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_are_checked() {
        let errors = labels(&json!({"a": "b c"}), "metadata.labels");
        assert_eq!(errors[0].field, "metadata.labels");
        assert!(errors[0].message.starts_with(
            "Invalid value: \"b c\": a valid label must be an empty string or consist of"
        ));
    }

    #[test]
    fn selectors_select() {
        let selector = json!({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "NotIn", "values": ["x"]}]});
        assert!(selects(&selector, &json!({"a": "1"})));
        assert!(!selects(&selector, &json!({"a": "1", "b": "x"})));
        assert!(!selects(&selector, &json!({"b": "y"})));
    }
}
