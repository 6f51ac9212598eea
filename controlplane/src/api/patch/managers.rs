//! `metadata.managedFields`: who owns which fields of an object.

use serde_json::{Value, json};

use super::field_set::FieldSet;

/// One entry of `managedFields`.
#[derive(Debug, Clone)]
pub(super) struct Manager {
    pub(super) name: String,
    pub(super) operation: String,
    pub(super) api_version: String,
    pub(super) subresource: String,
    /// RFC 3339.
    pub(super) time: String,
    pub(super) fields: FieldSet,
}

impl Manager {
    pub(super) fn is(&self, other: &Self) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.api_version == other.api_version
            && self.subresource == other.subresource
    }

    /// As conflicts name it.
    pub(super) fn described(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text += &format!(" with subresource {:?}", self.subresource);
        }
        if self.operation == "Update" {
            text += &format!(" using {}", self.api_version);
        }
        text
    }

    fn from_json(entry: &Value) -> Self {
        let text = |field: &str| entry[field].as_str().unwrap_or_default().to_string();
        Self {
            name: text("manager"),
            operation: text("operation"),
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields: FieldSet::from_json(&entry["fieldsV1"]),
        }
    }

    fn to_json(&self) -> Value {
        let mut entry = json!({
            "manager": self.name,
            "operation": self.operation,
            "apiVersion": self.api_version,
            "time": self.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_json(),
        });
        if !self.subresource.is_empty() {
            entry["subresource"] = json!(self.subresource);
        }
        entry
    }
}

/// The managers of an object.
pub(super) fn read(object: &Value) -> Vec<Manager> {
    let list = object
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .map(Manager::from_json)
        .filter(|m| !m.fields.is_empty())
        .collect()
}

/// Writes who owns what into an object; without managers nothing is left of it.
pub(super) fn write(object: &mut Value, mut managers: Vec<Manager>) {
    managers.retain(|m| !m.fields.is_empty());
    managers.sort_by(|a, b| {
        let key = |m: &Manager| {
            (
                m.operation.clone(),
                m.time.clone(),
                m.name.clone(),
                m.api_version.clone(),
            )
        };
        key(a)
            .cmp(&key(b))
            .then_with(|| a.subresource.cmp(&b.subresource))
    });
    if managers.is_empty() {
        remove_managed_fields(object);
    } else {
        object["metadata"]["managedFields"] = managers.iter().map(Manager::to_json).collect();
    }
}

pub(super) fn remove_managed_fields(object: &mut Value) {
    if let Some(Value::Object(metadata)) = object.get_mut("metadata") {
        metadata.remove("managedFields");
    }
}
