//! The API's description as OpenAPI documents, made from the schema table and the registry.
//!
//! They carry what clients act upon (structure, merge keys, parameters), and prose for Skiff's own types
//! alone: `kubectl apply` reads the merge keys from them, `kubectl explain` the structure, and every
//! write of kubectl's whether the server validates fields and knows dry runs.

mod components;
mod paths;
mod protobuf;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::builtin::GIT_VERSION;
use crate::resources::{Registry, Resource};
use components::Components;
pub use protobuf::{ACCEPTED as PROTOBUF_ACCEPTED, MEDIA_TYPE as PROTOBUF};

/// The two forms of the specification that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flavor {
    V2,
    V3,
}

/// `GET /openapi/v2`, as JSON.
pub fn v2(registry: &Registry) -> Bytes {
    to_bytes(&v2_document(registry))
}

/// `GET /openapi/v2`, as protobuf.
pub fn v2_protobuf(registry: &Registry) -> Bytes {
    protobuf::encode(&v2_document(registry)).into()
}

fn v2_document(registry: &Registry) -> Value {
    let served: Vec<&Resource> = registry.iter().map(AsRef::as_ref).collect();
    let (paths, definitions) = describe(Flavor::V2, &served);
    json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": GIT_VERSION},
        "paths": paths,
        "definitions": definitions,
    })
}

/// `GET /openapi/v3`: `{"paths": {"api/v1": {"serverRelativeURL": ...}}}`. The hash in a URL
/// changes with the document behind it, so that clients may keep what they have.
pub fn v3_index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for resource in registry.iter() {
        let path = paths::root(resource).trim_start_matches('/').to_string();
        paths.entry(path.clone()).or_insert_with(|| {
            let hash = fingerprint(registry, resource.group, resource.version);
            json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")})
        });
    }
    json!({ "paths": paths })
}

/// `GET /openapi/v3/api/v1`, `GET /openapi/v3/apis/<group>/<version>`, as JSON.
pub fn v3(registry: &Registry, group: &str, version: &str) -> Option<Bytes> {
    let served = in_version(registry, group, version);
    if served.is_empty() {
        return None;
    }
    let (paths, schemas) = describe(Flavor::V3, &served);
    Some(to_bytes(&json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": GIT_VERSION},
        "paths": paths,
        "components": {"schemas": schemas},
    })))
}

fn describe(flavor: Flavor, resources: &[&Resource]) -> (Map<String, Value>, Map<String, Value>) {
    let mut components = Components::new(flavor);
    let mut all = Map::new();
    for resource in resources {
        paths::add(&mut all, resource, &mut components);
    }
    (all, components.finish())
}

fn in_version<'r>(registry: &'r Registry, group: &str, version: &str) -> Vec<&'r Resource> {
    let served = registry
        .iter()
        .filter(|r| r.group == group && r.version == version);
    served.map(AsRef::as_ref).collect()
}

/// Names the document's content: this build, and the kinds that are served.
pub fn fingerprint(registry: &Registry, group: &str, version: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(GIT_VERSION);
    for text in crate::schema::DEFINITIONS {
        hasher.update(text);
    }
    for resource in in_version(registry, group, version) {
        hasher.update(resource.plural);
        hasher.update(resource.schema);
    }
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect()
}

fn to_bytes(document: &Value) -> Bytes {
    document.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::registry;

    fn apps() -> Value {
        serde_json::from_slice(&v3(&registry(), "apps", "v1").unwrap()).unwrap()
    }

    #[test]
    fn patches_tell_of_field_validation_and_dry_runs() {
        let document = apps();
        let patch =
            &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        let kind = json!({"group": "apps", "version": "v1", "kind": "Deployment"});
        assert_eq!(patch["x-kubernetes-group-version-kind"], kind);
        let names: Vec<&str> = patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|p| p["name"].as_str())
            .collect();
        assert!(
            names.contains(&"fieldValidation") && names.contains(&"dryRun"),
            "{names:?}"
        );
        assert!(
            patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object()
        );
    }

    #[test]
    fn schemas_have_the_merge_keys() {
        let schemas = &apps()["components"]["schemas"];
        let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
        assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(containers["x-kubernetes-patch-strategy"], "merge");
        let reference = json!({"allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.Container"}], "default": {}});
        assert_eq!(containers["items"], reference);
        let deployment = &schemas["io.k8s.api.apps.v1.Deployment"];
        assert_eq!(
            deployment["x-kubernetes-group-version-kind"][0]["kind"],
            "Deployment"
        );
        assert_eq!(
            schemas.get("io.k8s.api.core.v1.Service"),
            None,
            "only what is reachable"
        );
    }

    #[test]
    fn our_own_types_are_described() {
        let document = v3(&registry(), "skiff.dev", "v1").unwrap();
        let document: Value = serde_json::from_slice(&document).unwrap();
        let schemas = &document["components"]["schemas"];
        let spec = &schemas["dev.skiff.v1.DrillSpec"];
        let count = &spec["properties"]["count"];
        assert_eq!(count["type"], "integer");
        assert!(
            count["description"]
                .as_str()
                .unwrap()
                .starts_with("How many victims")
        );
        assert!(spec["description"].is_string());
        assert!(spec["properties"]["target"]["description"].is_string());
        assert_eq!(spec["required"], json!(["drill", "target"]));
        let kind = json!([{"group": "skiff.dev", "version": "v1", "kind": "Drill"}]);
        assert_eq!(
            schemas["dev.skiff.v1.Drill"]["x-kubernetes-group-version-kind"],
            kind
        );
    }

    #[test]
    fn every_reference_resolves() {
        fn references<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str));
                    map.values().for_each(|v| references(v, found));
                }
                Value::Array(items) => items.iter().for_each(|v| references(v, found)),
                _ => {}
            }
        }
        let v2: Value = serde_json::from_slice(&v2(&registry())).unwrap();
        for document in [apps(), v2] {
            let mut found = Vec::new();
            references(&document, &mut found);
            for reference in found {
                assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
            }
        }
    }

    #[test]
    fn the_index_names_every_version() {
        let index = v3_index(&registry());
        let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"]
            .as_str()
            .unwrap();
        assert!(url.starts_with("/openapi/v3/apis/apps/v1?hash="));
        assert!(index["paths"]["api/v1"].is_object());
    }
}
