//! What a request's path names.

use percent_encoding::percent_decode_str;

/// A path, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Resource(ResourcePath),
    /// `/api`
    CoreVersions,
    /// `/apis`
    Groups,
    /// `/apis/<group>`
    Group(String),
    /// `/api/v1`, `/apis/<group>/<version>`: the group is empty for the core group.
    Version(String, String),
    /// Everything else, as it came.
    Other,
}

/// `/apis/<group>/<version>[/namespaces/<namespace>]/<plural>[/<name>[/<subresource>[/<rest>]]]`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResourcePath {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// What follows a subresource (`proxy`), without the slash.
    pub rest: Option<String>,
}

impl Target {
    pub fn parse(path: &str) -> Self {
        let decode = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
        let parts: Vec<String> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(decode)
            .collect();
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        match parts.as_slice() {
            ["api"] => Self::CoreVersions,
            ["apis"] => Self::Groups,
            ["apis", group] => Self::Group((*group).to_string()),
            ["api", version] => Self::Version(String::new(), (*version).to_string()),
            ["apis", group, version] => Self::Version((*group).to_string(), (*version).to_string()),
            ["api", version, rest @ ..] => Self::resource("", version, rest),
            ["apis", group, version, rest @ ..] => Self::resource(group, version, rest),
            _ => Self::Other,
        }
    }

    fn resource(group: &str, version: &str, parts: &[&str]) -> Self {
        // `namespaces/<name>/<plural>` is inside a namespace; its own subresources are not.
        let (namespace, parts) = match parts {
            ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => (None, parts),
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            _ => (None, parts),
        };
        let owned = |part: Option<&&str>| part.map(|part| (*part).to_string());
        Self::Resource(ResourcePath {
            group: group.to_string(),
            version: version.to_string(),
            plural: parts.first().map_or_else(String::new, |p| (*p).to_string()),
            namespace: namespace.map(str::to_string),
            name: owned(parts.get(1)),
            subresource: owned(parts.get(2)),
            rest: parts
                .get(3..)
                .filter(|rest| !rest.is_empty())
                .map(|rest| rest.join("/")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(path: &str) -> [String; 7] {
        let Target::Resource(r) = Target::parse(path) else {
            panic!("{path} is not a resource");
        };
        let text = |part: Option<String>| part.unwrap_or_default();
        [
            r.group,
            r.version,
            text(r.namespace),
            r.plural,
            text(r.name),
            text(r.subresource),
            text(r.rest),
        ]
    }

    #[test]
    fn resources_have_groups_namespaces_names_and_subresources() {
        for (path, expected) in [
            ("/api/v1/pods", ["", "v1", "", "pods", "", "", ""]),
            (
                "/api/v1/namespaces",
                ["", "v1", "", "namespaces", "", "", ""],
            ),
            (
                "/api/v1/namespaces/a",
                ["", "v1", "", "namespaces", "a", "", ""],
            ),
            (
                "/api/v1/namespaces/a/finalize",
                ["", "v1", "", "namespaces", "a", "finalize", ""],
            ),
            (
                "/api/v1/namespaces/a/pods/",
                ["", "v1", "a", "pods", "", "", ""],
            ),
            (
                "/api/v1/namespaces/a/pods/p/log",
                ["", "v1", "a", "pods", "p", "log", ""],
            ),
            (
                "/api/v1/nodes/n/proxy/a/b",
                ["", "v1", "", "nodes", "n", "proxy", "a/b"],
            ),
            (
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                ["apps", "v1", "a", "deployments", "d", "scale", ""],
            ),
            (
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/system%3Anode",
                [
                    "rbac.authorization.k8s.io",
                    "v1",
                    "",
                    "clusterroles",
                    "system:node",
                    "",
                    "",
                ],
            ),
        ] {
            assert_eq!(resource(path), expected, "{path}");
        }
    }

    #[test]
    fn other_paths_are_discovery_or_none_of_ours() {
        assert_eq!(Target::parse("/api"), Target::CoreVersions);
        assert_eq!(Target::parse("/apis/"), Target::Groups);
        assert_eq!(Target::parse("/apis/apps"), Target::Group("apps".into()));
        assert_eq!(
            Target::parse("/api/v1"),
            Target::Version(String::new(), "v1".into())
        );
        for other in ["/", "/version", "/healthz/ping", "/openapi/v3/api/v1"] {
            assert_eq!(Target::parse(other), Target::Other);
        }
    }
}
