//! Objects as rows: the server-side tables that `kubectl get` prints.

use serde_json::{Value, json};

use crate::resources::Resource;

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
    _resource: &Resource,
    _objects: &[Value],
    metadata: Value,
    _include: IncludeObject,
    _columns: bool,
) -> Value {
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": [], "rows": []})
}
