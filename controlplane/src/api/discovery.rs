//! What the server serves, as clients ask for it under `/api` and `/apis`.

use serde_json::{Value, json};

use crate::resources::Registry;

/// `GET /api`: an `APIVersions` object. `address` is the server's `host:port`.
pub fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `GET /apis`: an `APIGroupList`.
pub fn groups(_registry: &Registry) -> Value {
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})
}

/// `GET /apis/<group>`: an `APIGroup`.
pub fn group(_registry: &Registry, _group: &str) -> Option<Value> {
    None
}

/// `GET /api/v1`, `GET /apis/<group>/<version>`: an `APIResourceList`.
pub fn resources(_registry: &Registry, _group: &str, _version: &str) -> Option<Value> {
    None
}

/// `GET /api` and `GET /apis` of clients that accept
/// `application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList`; the core group
/// alone with `core`, else all the others.
pub fn aggregated(_registry: &Registry, _core: bool) -> Value {
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": []})
}
