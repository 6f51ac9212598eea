//! ConfigMaps.

use std::collections::BTreeSet;

use serde_json::Value;

use super::error::{forbidden, immutable, invalid, too_long};
use super::object::{at, entries, truth};
use super::print::{AGE, NAME, age, column, count, name};
use super::{Column, FieldError, Hooks, Resource, metadata, syntax};

/// All values of a ConfigMap or Secret together.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

const COLUMNS: &[Column] = &[
    NAME,
    column("Data", "integer", "How many entries it has."),
    AGE,
];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "configmap",
        short_names: &["cm"],
        hooks: Hooks {
            validate,
            validate_update,
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row: |map, now| {
            vec![
                name(map),
                (count(map, "data") + count(map, "binaryData")).into(),
                age(map, now),
            ]
        },
        ..Resource::namespaced(
            "",
            "v1",
            "ConfigMap",
            "configmaps",
            "io.k8s.api.core.v1.ConfigMap",
        )
    }
}

fn validate(map: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(map);
    let mut bytes = 0;
    let mut seen = BTreeSet::new();
    for kind in ["data", "binaryData"] {
        for (key, value) in entries(map, kind) {
            let given = Value::from(key.as_str());
            let field = format!("{kind}[{key}]");
            errors.extend(
                syntax::config_key(key)
                    .iter()
                    .map(|why| invalid(&field, &given, why)),
            );
            if !seen.insert(key) {
                errors.push(invalid(&field, &given, "duplicate of key present in data"));
            }
            bytes += value.as_str().map_or(0, str::len);
        }
    }
    if bytes > MAX_BYTES {
        errors.push(too_long("", MAX_BYTES));
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = frozen(new, old, "data");
    if truth(old, "immutable") && at(new, "binaryData") != at(old, "binaryData") {
        errors.push(forbidden(
            "binaryData",
            "field is immutable when `immutable` is set",
        ));
    }
    errors
}

/// What is `immutable` stays so, with its data.
pub(super) fn frozen(new: &Value, old: &Value, data: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if truth(old, "immutable") {
        if !truth(new, "immutable") {
            errors.push(forbidden(
                "immutable",
                "field is immutable when `immutable` is set",
            ));
        }
        if at(new, data) != at(old, data) {
            errors.push(forbidden(
                data,
                "field is immutable when `immutable` is set",
            ));
        }
    }
    errors.extend(immutable("type", at(new, "type"), at(old, "type")));
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn immutable_data_stays() {
        let old = json!({"immutable": true, "data": {"a": "1"}});
        let errors = validate_update(&json!({"data": {"a": "2"}}), &old);
        let fields: Vec<&str> = errors.iter().map(|e| e.field.as_str()).collect();
        assert_eq!(fields, ["immutable", "data"]);
        assert_eq!(
            errors[0].message,
            "Forbidden: field is immutable when `immutable` is set"
        );
        assert_eq!(validate_update(&old, &old), []);
    }

    #[test]
    fn keys_are_checked() {
        let errors = validate(&json!({"metadata": {"name": "c"}, "data": {"a/b": "1"}}));
        assert_eq!(errors[0].field, "data[a/b]");
        assert!(
            errors[0]
                .message
                .starts_with("Invalid value: \"a/b\": a valid config key must consist of")
        );
    }
}
