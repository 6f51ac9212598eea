//! Objects as rows: the server-side tables that `kubectl get` prints.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::resources::{Column, Resource};

/// What each row carries beside its cells (`includeObject`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IncludeObject {
    None,
    /// A `PartialObjectMetadata`.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

/// A `meta.k8s.io/v1` `Table` of the objects. `metadata` is the list's (resourceVersion,
/// continue). `columns` is false in a watch's events after the first.
pub fn table(
    resource: &Resource,
    objects: &[Value],
    metadata: Value,
    include: IncludeObject,
    columns: bool,
) -> Value {
    let now = Timestamp::now();
    let definitions = match columns {
        true => resource.columns.iter().map(definition).collect(),
        false => Value::Null,
    };
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| row(resource, object, include, now))
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": definitions,
        "rows": rows,
    })
}

fn definition(column: &Column) -> Value {
    json!({
        "name": column.name,
        "type": column.kind,
        "format": column.format,
        "description": column.description,
        "priority": column.priority,
    })
}

fn row(resource: &Resource, object: &Value, include: IncludeObject, now: Timestamp) -> Value {
    let mut row = Map::new();
    row.insert("cells".into(), (resource.row)(object, now).into());
    let carried = match include {
        IncludeObject::None => None,
        IncludeObject::Object => Some(object.clone()),
        IncludeObject::Metadata => Some(json!({
            "kind": "PartialObjectMetadata",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": object["metadata"],
        })),
    };
    if let Some(carried) = carried {
        row.insert("object".into(), carried);
    }
    Value::Object(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::registry;

    #[test]
    fn rows_carry_what_was_asked_for() {
        let registry = registry();
        let resource = registry.get("", "v1", "configmaps").unwrap();
        let object = json!({"metadata": {"name": "a"}, "data": {"k": "v"}});
        let metadata = json!({"resourceVersion": "7"});
        let table_of = |include, columns| {
            table(
                resource,
                std::slice::from_ref(&object),
                metadata.clone(),
                include,
                columns,
            )
        };

        let full = table_of(IncludeObject::Metadata, true);
        assert_eq!(full["metadata"]["resourceVersion"], "7");
        assert_eq!(full["columnDefinitions"][0]["name"], "Name");
        assert_eq!(full["columnDefinitions"][0]["format"], "name");
        assert_eq!(full["rows"][0]["cells"], json!(["a", 1, "<unknown>"]));
        assert_eq!(full["rows"][0]["object"]["kind"], "PartialObjectMetadata");
        assert_eq!(full["rows"][0]["object"].get("data"), None);
        assert_eq!(
            table_of(IncludeObject::Object, true)["rows"][0]["object"],
            object
        );
        let bare = table_of(IncludeObject::None, false);
        assert_eq!(
            (&bare["columnDefinitions"], bare["rows"][0].get("object")),
            (&Value::Null, None)
        );
    }
}
