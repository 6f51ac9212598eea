//! Reading and completing dynamic objects.
//!
//! Paths are dotted (`spec.template.metadata`); what is absent reads as null, as the empty
//! string, zero or an empty list, which is what its Go field would hold.

use serde_json::{Map, Value};

static NULL: Value = Value::Null;

/// The value at a path; null when any part of it is absent.
pub(crate) fn at<'v>(value: &'v Value, path: &str) -> &'v Value {
    path.split('.')
        .fold(value, |v, key| v.get(key).unwrap_or(&NULL))
}

pub(crate) fn text<'v>(value: &'v Value, path: &str) -> &'v str {
    at(value, path).as_str().unwrap_or_default()
}

pub(crate) fn integer(value: &Value, path: &str) -> i64 {
    at(value, path).as_i64().unwrap_or_default()
}

pub(crate) fn truth(value: &Value, path: &str) -> bool {
    at(value, path).as_bool().unwrap_or_default()
}

pub(crate) fn list<'v>(value: &'v Value, path: &str) -> &'v [Value] {
    at(value, path).as_array().map_or(&[], Vec::as_slice)
}

/// The entries of a map, none when it is absent.
pub(crate) fn entries<'v>(
    value: &'v Value,
    path: &str,
) -> impl Iterator<Item = (&'v String, &'v Value)> {
    at(value, path).as_object().into_iter().flatten()
}

pub(crate) fn is_set(value: &Value, path: &str) -> bool {
    !at(value, path).is_null()
}

/// The object at `key`, made when it is absent.
pub(crate) fn ensure<'v>(value: &'v mut Value, key: &str) -> &'v mut Value {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let entry = &mut value[key];
    if entry.is_null() {
        *entry = Value::Object(Map::new());
    }
    entry
}

/// The items of a list, to change; none when it is absent.
pub(crate) fn items_mut<'v>(
    value: &'v mut Value,
    key: &str,
) -> impl Iterator<Item = &'v mut Value> {
    value
        .get_mut(key)
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
}

/// Sets `key` when it is absent or null.
pub(crate) fn default(value: &mut Value, key: &str, to: impl Into<Value>) {
    if let Value::Object(map) = value {
        let entry = map.entry(key).or_insert(Value::Null);
        if entry.is_null() {
            *entry = to.into();
        }
    }
}

/// Sets `key` when it is absent, null, zero, false or empty: for fields that Go has as plain
/// values, where unset and zero are one.
pub(crate) fn default_zero(value: &mut Value, key: &str, to: impl Into<Value>) {
    let zero = match value.get(key) {
        None | Some(Value::Null | Value::Bool(false)) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Number(number)) => number.as_i64() == Some(0),
        Some(_) => false,
    };
    if zero && value.is_object() {
        value[key] = to.into();
    }
}

/// An update's new object takes `key` from the old one.
pub(crate) fn carry_over(new: &mut Value, old: &Value, key: &str) {
    let Value::Object(map) = new else { return };
    match old.get(key) {
        Some(value) => map.insert(key.to_string(), value.clone()),
        None => map.remove(key),
    };
}
