//! What the server serves, as clients ask for it under `/api` and `/apis`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::resources::{Registry, Resource};

/// A part of a resource with a path and verbs of its own.
struct Subresource {
    name: &'static str,
    /// Group, version and kind of what it takes and gives.
    gvk: (&'static str, &'static str, &'static str),
    verbs: &'static [&'static str],
}

const POD_SUBRESOURCES: [Subresource; 6] = [
    Subresource {
        name: "attach",
        gvk: ("", "v1", "PodAttachOptions"),
        verbs: &["create", "get"],
    },
    Subresource {
        name: "binding",
        gvk: ("", "v1", "Binding"),
        verbs: &["create"],
    },
    Subresource {
        name: "eviction",
        gvk: ("policy", "v1", "Eviction"),
        verbs: &["create"],
    },
    Subresource {
        name: "exec",
        gvk: ("", "v1", "PodExecOptions"),
        verbs: &["create", "get"],
    },
    Subresource {
        name: "log",
        gvk: ("", "v1", "Pod"),
        verbs: &["get"],
    },
    Subresource {
        name: "portforward",
        gvk: ("", "v1", "PodPortForwardOptions"),
        verbs: &["create", "get"],
    },
];
const FINALIZE: Subresource = Subresource {
    name: "finalize",
    gvk: ("", "v1", "Namespace"),
    verbs: &["update"],
};
const NODE_PROXY: Subresource = Subresource {
    name: "proxy",
    gvk: ("", "v1", "NodeProxyOptions"),
    verbs: &["get"],
};
const TOKEN: Subresource = Subresource {
    name: "token",
    gvk: ("authentication.k8s.io", "v1", "TokenRequest"),
    verbs: &["create"],
};
const SCALE: Subresource = Subresource {
    name: "scale",
    gvk: ("autoscaling", "v1", "Scale"),
    verbs: &["get", "patch", "update"],
};
const PART_VERBS: &[&str] = &["get", "patch", "update"];

/// `GET /api`: an `APIVersions` object. `address` is the server's `host:port`.
pub fn core_versions(address: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    })
}

/// `GET /apis`: an `APIGroupList`.
pub fn groups(registry: &Registry) -> Value {
    let names: BTreeSet<&str> = registry
        .iter()
        .map(|r| r.group)
        .filter(|g| !g.is_empty())
        .collect();
    let groups: Vec<Value> = names
        .into_iter()
        .map(|name| group_of(registry, name))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/<group>`: an `APIGroup`.
pub fn group(registry: &Registry, group: &str) -> Option<Value> {
    if group.is_empty() || !registry.iter().any(|r| r.group == group) {
        return None;
    }
    let mut found = group_of(registry, group);
    found["kind"] = json!("APIGroup");
    found["apiVersion"] = json!("v1");
    Some(found)
}

fn group_of(registry: &Registry, name: &str) -> Value {
    let versions: Vec<Value> = versions(registry, name)
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
        .collect();
    json!({"name": name, "preferredVersion": versions[0], "versions": versions})
}

/// A group's versions, the preferred one first.
fn versions(registry: &Registry, group: &str) -> Vec<&'static str> {
    let found: BTreeSet<&str> = registry
        .iter()
        .filter(|r| r.group == group)
        .map(|r| r.version)
        .collect();
    let (stable, other): (Vec<_>, Vec<_>) = found
        .into_iter()
        .rev()
        .partition(|v| !v.contains("alpha") && !v.contains("beta"));
    stable.into_iter().chain(other).collect()
}

/// `GET /api/v1`, `GET /apis/<group>/<version>`: an `APIResourceList`.
pub fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for resource in registry
        .iter()
        .filter(|r| r.group == group && r.version == version)
    {
        list.push(resource_of(resource));
        for part in subresources(resource) {
            list.push(subresource_of(resource, &part));
        }
    }
    if list.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() {
        version.to_string()
    } else {
        format!("{group}/{version}")
    };
    Some(json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": list,
    }))
}

fn resource_of(resource: &Resource) -> Value {
    let mut found = json!({
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": verbs(resource),
    });
    add_names(&mut found, resource);
    found
}

fn subresource_of(resource: &Resource, part: &Subresource) -> Value {
    let (group, version, kind) = part.gvk;
    let mut found = json!({
        "name": format!("{}/{}", resource.plural, part.name),
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": kind,
        "verbs": part.verbs,
    });
    if (group, version) != (resource.group, resource.version) {
        found["group"] = json!(group);
        found["version"] = json!(version);
    }
    found
}

/// `GET /api` and `GET /apis` of clients that accept
/// `application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList`; the core group
/// alone with `core`, else all the others.
pub fn aggregated(registry: &Registry, core: bool) -> Value {
    let groups: BTreeSet<&str> = registry
        .iter()
        .map(|r| r.group)
        .filter(|g| g.is_empty() == core)
        .collect();
    let items: Vec<Value> = groups
        .into_iter()
        .map(|group| aggregated_group(registry, group))
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregated_group(registry: &Registry, group: &str) -> Value {
    let versions: Vec<Value> = versions(registry, group)
        .into_iter()
        .map(|version| {
            let served = registry
                .iter()
                .filter(|r| r.group == group && r.version == version);
            let resources: Vec<Value> = served.map(|r| aggregated_resource(r)).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let metadata = if group.is_empty() {
        json!({})
    } else {
        json!({"name": group})
    };
    json!({"metadata": metadata, "versions": versions})
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind = |(group, version, kind): (&str, &str, &str)| json!({"group": group, "version": version, "kind": kind});
    let mut found = json!({
        "resource": resource.plural,
        "responseKind": kind((resource.group, resource.version, resource.kind)),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": verbs(resource),
    });
    add_names(&mut found, resource);
    let parts: Vec<Value> = subresources(resource)
        .iter()
        .map(|part| json!({"subresource": part.name, "responseKind": kind(part.gvk), "verbs": part.verbs}))
        .collect();
    if !parts.is_empty() {
        found["subresources"] = json!(parts);
    }
    found
}

fn add_names(found: &mut Value, resource: &Resource) {
    if !resource.short_names.is_empty() {
        found["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        found["categories"] = json!(resource.categories);
    }
}

/// What a resource itself takes; namespaces are deleted one by one.
pub(super) fn verbs(resource: &Resource) -> &'static [&'static str] {
    if resource.question {
        return &["create"];
    }
    if resource.group.is_empty() && resource.plural == "namespaces" {
        return &[
            "create", "delete", "get", "list", "patch", "update", "watch",
        ];
    }
    &[
        "create",
        "delete",
        "deletecollection",
        "get",
        "list",
        "patch",
        "update",
        "watch",
    ]
}

fn subresources(resource: &Resource) -> Vec<Subresource> {
    let mut parts = Vec::new();
    match (resource.group, resource.plural) {
        ("", "pods") => parts.extend(POD_SUBRESOURCES),
        ("", "namespaces") => parts.push(FINALIZE),
        ("", "nodes") => parts.push(NODE_PROXY),
        ("", "serviceaccounts") => parts.push(TOKEN),
        _ => {}
    }
    if resource.scale.is_some() {
        parts.push(SCALE);
    }
    let gvk = (resource.group, resource.version, resource.kind);
    if resource.has_approval {
        parts.push(Subresource {
            name: "approval",
            gvk,
            verbs: PART_VERBS,
        });
    }
    if resource.has_status {
        parts.push(Subresource {
            name: "status",
            gvk,
            verbs: PART_VERBS,
        });
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::registry;

    #[test]
    fn groups_name_their_versions() {
        let registry = registry();
        let apps = group(&registry, "apps").unwrap();
        assert_eq!(
            apps["preferredVersion"],
            json!({"groupVersion": "apps/v1", "version": "v1"})
        );
        assert_eq!(apps["kind"], "APIGroup");
        assert_eq!(group(&registry, "nothing"), None);
        let names: Vec<Value> = groups(&registry)["groups"]
            .as_array()
            .unwrap()
            .iter()
            .map(|g| g["name"].clone())
            .collect();
        assert_eq!(
            json!(names),
            json!([
                "apps",
                "authentication.k8s.io",
                "authorization.k8s.io",
                "certificates.k8s.io",
                "coordination.k8s.io",
                "discovery.k8s.io",
                "events.k8s.io",
                "policy",
                "rbac.authorization.k8s.io",
                "scheduling.k8s.io",
                "skiff.dev"
            ])
        );
    }

    #[test]
    fn resources_name_their_subresources() {
        let list = resources(&registry(), "apps", "v1").unwrap();
        assert_eq!(list["groupVersion"], "apps/v1");
        let find = |name: &str| {
            list["resources"]
                .as_array()
                .unwrap()
                .iter()
                .find(|r| r["name"] == name)
                .unwrap()
                .clone()
        };
        assert_eq!(find("deployments")["shortNames"], json!(["deploy"]));
        assert_eq!(find("deployments/scale")["group"], "autoscaling");
        assert_eq!(find("deployments/status").get("group"), None);
        assert_eq!(resources(&registry(), "apps", "v2"), None);
    }

    #[test]
    fn aggregated_discovery_splits_core_from_the_rest() {
        let core = aggregated(&registry(), true);
        assert_eq!(core["items"].as_array().unwrap().len(), 1);
        let pods = core["items"][0]["versions"][0]["resources"]
            .as_array()
            .unwrap()
            .iter()
            .find(|r| r["resource"] == "pods")
            .unwrap();
        assert_eq!(pods["scope"], "Namespaced");
        assert_eq!(pods["subresources"][3]["subresource"], "exec");
        let rest = aggregated(&registry(), false);
        assert_eq!(rest["items"][0]["metadata"]["name"], "apps");
    }
}
