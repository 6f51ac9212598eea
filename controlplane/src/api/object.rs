//! Objects as the pipeline handles them: JSON values with Kubernetes' metadata.

use bytes::Bytes;
use serde_json::{Map, Value};

/// Short ways to the metadata of an object. Absent text reads as empty.
pub trait Object {
    fn metadata(&self) -> Option<&Map<String, Value>>;
    /// Made when there is none. `None` when the object is no JSON object at all.
    fn metadata_mut(&mut self) -> Option<&mut Map<String, Value>>;

    fn meta_text(&self, field: &str) -> &str {
        self.metadata()
            .and_then(|m| m.get(field))
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.meta_text("name")
    }

    fn namespace(&self) -> &str {
        self.meta_text("namespace")
    }

    fn uid(&self) -> &str {
        self.meta_text("uid")
    }

    fn resource_version(&self) -> &str {
        self.meta_text("resourceVersion")
    }

    /// Whether somebody asked for this object's deletion.
    fn is_terminating(&self) -> bool {
        !self.meta_text("deletionTimestamp").is_empty()
    }

    fn deletion_grace(&self) -> Option<i64> {
        self.metadata()?.get("deletionGracePeriodSeconds")?.as_i64()
    }

    fn generation(&self) -> i64 {
        self.metadata()
            .and_then(|m| m.get("generation"))
            .and_then(Value::as_i64)
            .unwrap_or_default()
    }

    fn finalizers(&self) -> Vec<&str> {
        self.metadata()
            .and_then(|m| m.get("finalizers"))
            .and_then(Value::as_array)
            .map(|list| list.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default()
    }

    fn set_meta(&mut self, field: &str, value: impl Into<Value>)
    where
        Self: Sized,
    {
        if let Some(metadata) = self.metadata_mut() {
            metadata.insert(field.to_string(), value.into());
        }
    }

    fn remove_meta(&mut self, field: &str)
    where
        Self: Sized,
    {
        if let Some(metadata) = self.metadata_mut() {
            metadata.remove(field);
        }
    }
}

impl Object for Value {
    fn metadata(&self) -> Option<&Map<String, Value>> {
        self.get("metadata")?.as_object()
    }

    fn metadata_mut(&mut self) -> Option<&mut Map<String, Value>> {
        let object = self.as_object_mut()?;
        let metadata = object
            .entry("metadata")
            .or_insert_with(|| Value::Object(Map::new()));
        if !metadata.is_object() {
            *metadata = Value::Object(Map::new());
        }
        metadata.as_object_mut()
    }
}

/// The value at a dotted path, as `spec.replicas`.
pub fn at<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    path.split('.')
        .filter(|step| !step.is_empty())
        .try_fold(object, |value, step| value.get(step))
}

/// Sets the value at a dotted path, making the objects on the way.
pub fn set_at(object: &mut Value, path: &str, value: Value) {
    let mut place = object;
    for step in path.split('.').filter(|step| !step.is_empty()) {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = &mut place[step];
    }
    *place = value;
}

/// Copies a field of `from` to `to`, or removes it there when `from` has none.
pub fn carry_over(to: &mut Value, from: &Value, field: &str) {
    let Some(to) = to.as_object_mut() else { return };
    match from.get(field) {
        Some(value) => to.insert(field.to_string(), value.clone()),
        None => to.remove(field),
    };
}

/// The object as it is stored: `apiVersion`, `kind` and `metadata` first, and without its
/// `resourceVersion`, which the store gives it (see [`crate::cache::entry::with_revision`]).
pub fn encode(object: &Value) -> Bytes {
    let mut bytes = Vec::with_capacity(1024);
    bytes.push(b'{');
    let empty = Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    for field in ["apiVersion", "kind"] {
        if let Some(value) = fields.get(field) {
            write_field(&mut bytes, field, value);
        }
    }
    bytes.extend_from_slice(b"\"metadata\":{");
    for (field, value) in object.metadata().into_iter().flatten() {
        if field != "resourceVersion" {
            write_field(&mut bytes, field, value);
        }
    }
    close(&mut bytes);
    bytes.push(b',');
    for (field, value) in fields {
        if !matches!(field.as_str(), "apiVersion" | "kind" | "metadata") {
            write_field(&mut bytes, field, value);
        }
    }
    close(&mut bytes);
    bytes.into()
}

/// Writes `"field":value,`.
fn write_field(bytes: &mut Vec<u8>, field: &str, value: &Value) {
    // Strings and JSON values always serialise, and a Vec takes every byte.
    let _ = serde_json::to_writer(&mut *bytes, field);
    bytes.push(b':');
    let _ = serde_json::to_writer(&mut *bytes, value);
    bytes.push(b',');
}

/// Turns the last comma into the closing brace.
fn close(bytes: &mut Vec<u8>) {
    match bytes.last_mut() {
        Some(last @ b',') => *last = b'}',
        _ => bytes.push(b'}'),
    }
}

/// The time as API objects write it: seconds, in UTC.
pub fn timestamp(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_stored_form_has_its_metadata_in_a_known_place() {
        let object = json!({
            "spec": {"metadata": {}}, "kind": "Pod", "apiVersion": "v1",
            "metadata": {"name": "a", "resourceVersion": "5"},
        });
        let text = String::from_utf8(encode(&object).to_vec()).unwrap();
        assert_eq!(
            text,
            r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"metadata":{}}}"#
        );
        let bare = encode(&json!({"kind": "Pod", "apiVersion": "v1"}));
        assert_eq!(
            &bare[..],
            br#"{"apiVersion":"v1","kind":"Pod","metadata":{}}"#
        );
    }

    #[test]
    fn paths_lead_into_objects() {
        let mut object = json!({"spec": {"replicas": 3}});
        assert_eq!(at(&object, "spec.replicas"), Some(&json!(3)));
        assert_eq!(at(&object, ".spec.replicas"), Some(&json!(3)));
        assert_eq!(at(&object, "status.replicas"), None);
        set_at(&mut object, "status.replicas", json!(2));
        assert_eq!(object["status"]["replicas"], 2);
    }
}
