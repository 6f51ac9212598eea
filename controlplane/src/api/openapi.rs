//! The API's description as OpenAPI documents.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::resources::Registry;

/// `GET /openapi/v2`, as JSON.
pub fn v2(_registry: &Registry) -> Bytes {
    Bytes::from_static(b"{}")
}

/// `GET /openapi/v3`: `{"paths": {"api/v1": {"serverRelativeURL": ...}}}`.
pub fn v3_index(_registry: &Registry) -> Value {
    json!({"paths": {}})
}

/// `GET /openapi/v3/api/v1`, `GET /openapi/v3/apis/<group>/<version>`, as JSON.
pub fn v3(_registry: &Registry, _group: &str, _version: &str) -> Option<Bytes> {
    None
}
