//! What may change in a pod that exists.

use serde_json::Value;

use super::super::FieldError;
use super::super::error::{forbidden, invalid};
use super::super::object::{at, items_mut, list, text};

const RULE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// An update may change images, lower the deadline, add tolerations, and nothing else of the
/// specification; a pod is bound to a node once, through the `binding` subresource.
pub(super) fn validate(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for kind in ["containers", "initContainers"] {
        if list(new, &format!("spec.{kind}")).len() != list(old, &format!("spec.{kind}")).len() {
            errors.push(forbidden(
                &format!("spec.{kind}"),
                "pod updates may not add or remove containers",
            ));
            return errors;
        }
    }
    errors.extend(deadline(new, old));
    errors.extend(tolerations(new, old));

    let (mut wanted, before) = (new["spec"].clone(), &old["spec"]);
    undo_what_may_change(&mut wanted, before);
    if wanted != *before {
        let mut changes = Vec::new();
        difference(&wanted, before, "spec", &mut changes);
        errors.push(forbidden(
            "spec",
            &format!("{RULE}\n{}", changes.join("\n")),
        ));
    }
    errors
}

fn undo_what_may_change(wanted: &mut Value, before: &Value) {
    for kind in ["containers", "initContainers"] {
        for (container, old) in items_mut(wanted, kind).zip(list(before, kind)) {
            container["image"] = old["image"].clone();
        }
    }
    let grace_fixed = at(before, "terminationGracePeriodSeconds")
        .as_i64()
        .is_some_and(|s| s < 0)
        && wanted["terminationGracePeriodSeconds"] == 1;
    let Value::Object(wanted) = wanted else {
        return;
    };
    for field in ["activeDeadlineSeconds", "tolerations"] {
        match before.get(field) {
            Some(old) => wanted.insert(field.into(), old.clone()),
            None => wanted.remove(field),
        };
    }
    if grace_fixed {
        wanted.insert(
            "terminationGracePeriodSeconds".into(),
            before["terminationGracePeriodSeconds"].clone(),
        );
    }
}

fn deadline(new: &Value, old: &Value) -> Option<FieldError> {
    const FIELD: &str = "spec.activeDeadlineSeconds";
    let (new, old) = (at(new, FIELD), at(old, FIELD));
    match (new.as_i64(), old.as_i64()) {
        (Some(new_seconds), Some(old_seconds)) if new_seconds > old_seconds => Some(invalid(
            FIELD,
            new,
            "must be less than or equal to previous value",
        )),
        (None, Some(_)) => Some(invalid(
            FIELD,
            &Value::Null,
            "must not update from a positive integer to nil value",
        )),
        _ => None,
    }
}

fn tolerations(new: &Value, old: &Value) -> Option<FieldError> {
    const FIELD: &str = "spec.tolerations";
    let kept = |toleration: &Value| {
        list(new, FIELD).iter().any(|t| {
            // The seconds of an existing toleration may change.
            ["key", "operator", "value", "effect"]
                .iter()
                .all(|f| text(t, f) == text(toleration, f))
        })
    };
    let all_kept = list(old, FIELD).iter().all(kept);
    (!all_kept).then(|| {
        forbidden(
            FIELD,
            "existing toleration can not be modified except its tolerationSeconds",
        )
    })
}

/// One line for each leaf that differs, as `-spec.nodeName: "a"` and `+spec.nodeName: "b"`.
fn difference(new: &Value, old: &Value, path: &str, lines: &mut Vec<String>) {
    match (new, old) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                difference(at(new, key), at(old, key), &format!("{path}.{key}"), lines);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (new, old)) in a.iter().zip(b).enumerate() {
                difference(new, old, &format!("{path}[{index}]"), lines);
            }
        }
        _ if new == old => {}
        _ => {
            if !old.is_null() {
                lines.push(format!("-{path}: {old}"));
            }
            if !new.is_null() {
                lines.push(format!("+{path}: {new}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{RULE, validate};

    fn pod(image: &str, node: &str) -> Value {
        json!({"spec": {"nodeName": node, "containers": [{"name": "a", "image": image}],
            "tolerations": [{"key": "a", "operator": "Exists"}]}})
    }

    #[test]
    fn images_and_new_tolerations_may_change() {
        let old = pod("1", "n");
        let mut new = pod("2", "n");
        new["spec"]["tolerations"]
            .as_array_mut()
            .unwrap()
            .push(json!({"key": "b", "operator": "Exists"}));
        assert_eq!(validate(&new, &old), []);
    }

    #[test]
    fn the_rest_may_not() {
        let errors = validate(&pod("1", "m"), &pod("1", "n"));
        assert_eq!(
            errors[0].message,
            format!("Forbidden: {RULE}\n-spec.nodeName: \"n\"\n+spec.nodeName: \"m\"")
        );
        let mut new = pod("1", "n");
        new["spec"]["containers"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "b"}));
        let errors = validate(&new, &pod("1", "n"));
        assert_eq!(
            errors[0].message,
            "Forbidden: pod updates may not add or remove containers"
        );
        new = pod("1", "n");
        new["spec"]["tolerations"] = json!([]);
        assert_eq!(validate(&new, &pod("1", "n"))[0].field, "spec.tolerations");
    }
}
