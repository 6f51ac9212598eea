//! Secrets.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::configmaps::{MAX_BYTES, frozen};
use super::error::{invalid, required, too_long};
use super::object::{at, default_zero, ensure, entries, text};
use super::print::{AGE, NAME, age, column, count, name};
use super::{Column, FieldError, Hooks, Resource, SelectableField, metadata, syntax};

const COLUMNS: &[Column] = &[
    NAME,
    column("Type", "string", "What kind of secret it is."),
    column("Data", "integer", "How many entries it has."),
    AGE,
];

const SELECTABLE: &[SelectableField] = &[SelectableField::text("type")];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "secret",
        hooks: Hooks {
            default: |secret| {
                default_zero(secret, "type", "Opaque");
                fold_string_data(secret);
            },
            validate,
            validate_update: |new, old| frozen(new, old, "data"),
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row: |secret, now| {
            vec![
                name(secret),
                text(secret, "type").into(),
                count(secret, "data").into(),
                age(secret, now),
            ]
        },
        selectable_fields: SELECTABLE,
        ..Resource::namespaced("", "v1", "Secret", "secrets", "io.k8s.api.core.v1.Secret")
    }
}

/// `stringData` is for writing only: its values go into `data`, encoded, over what is there.
fn fold_string_data(secret: &mut Value) {
    let Some(Value::Object(plain)) = secret.as_object_mut().and_then(|s| s.remove("stringData"))
    else {
        return;
    };
    for (key, value) in plain {
        let encoded = STANDARD.encode(value.as_str().unwrap_or_default());
        ensure(secret, "data")[key] = encoded.into();
    }
}

fn validate(secret: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(secret);
    let mut bytes = 0;
    for (key, value) in entries(secret, "data") {
        let field = format!("data[{key}]");
        errors.extend(
            syntax::config_key(key)
                .iter()
                .map(|why| invalid(&field, &Value::from(key.as_str()), why)),
        );
        bytes += value.as_str().map_or(0, |v| v.len() / 4 * 3);
    }
    if bytes > MAX_BYTES {
        errors.push(too_long("data", MAX_BYTES));
    }
    errors.extend(missing_keys(secret));
    errors
}

/// The entries that a secret's type demands.
fn missing_keys(secret: &Value) -> Vec<FieldError> {
    let has = |key: &str| at(secret, "data").get(key).is_some();
    let needed: &[&str] = match text(secret, "type") {
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            &["username", "password"]
        }
        _ => &[],
    };
    needed
        .iter()
        .filter(|key| !has(key))
        .map(|key| required(&format!("data[{key}]"), ""))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn string_data_is_encoded() {
        let mut secret = json!({"stringData": {"a": "hello"}, "data": {"a": "eA==", "b": "eQ=="}});
        (resource().hooks.default)(&mut secret);
        assert_eq!(
            secret,
            json!({"type": "Opaque", "data": {"a": "aGVsbG8=", "b": "eQ=="}})
        );
    }

    #[test]
    fn types_demand_their_keys() {
        let errors = validate(
            &json!({"metadata": {"name": "s"}, "type": "kubernetes.io/tls", "data": {"tls.crt": ""}}),
        );
        assert_eq!(errors, [required("data[tls.key]", "")]);
    }
}
