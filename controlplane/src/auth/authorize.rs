//! May this user do that: `system:masters`, then the node authorizer, then RBAC.
//!
//! RBAC is read through [`Policy`], which the watch cache implements, so that a changed role
//! holds from the next request on.

use serde::Deserialize;

use super::{MASTERS, UserInfo};

/// What a request wants to do, in the words of an authorizer.
#[derive(Debug, Clone, Default)]
pub struct Attributes<'a> {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`,
    /// or the lower-case HTTP method for a path that names no resource.
    pub verb: &'a str,
    pub group: &'a str,
    pub version: &'a str,
    pub resource: &'a str,
    pub subresource: &'a str,
    /// Empty at cluster scope and across namespaces.
    pub namespace: &'a str,
    /// Empty for a collection.
    pub name: &'a str,
    /// What a list or a watch is narrowed to, as the query has it.
    pub field_selector: &'a str,
    /// The path of a request that names no resource (`/healthz`); else `None`.
    pub path: Option<&'a str>,
}

/// A rule of a Role or ClusterRole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    #[serde(deserialize_with = "null_as_default")]
    pub verbs: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub api_groups: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub resources: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    pub resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs", deserialize_with = "null_as_default")]
    pub non_resource_urls: Vec<String>,
}

/// Whom a binding is for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Subject {
    pub kind: String,
    pub name: String,
    #[serde(default)]
    pub namespace: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RoleRef {
    pub kind: String,
    pub name: String,
}

/// A RoleBinding or ClusterRoleBinding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    pub subjects: Vec<Subject>,
    pub role: RoleRef,
}

/// Where roles and bindings are read from.
pub trait Policy {
    /// All ClusterRoleBindings.
    fn cluster_bindings(&self) -> Vec<Binding>;
    /// The RoleBindings of a namespace.
    fn bindings(&self, namespace: &str) -> Vec<Binding>;
    /// The rules of a ClusterRole, aggregated where it says so; `None` when there is none.
    fn cluster_role(&self, name: &str) -> Option<Vec<PolicyRule>>;
    /// The rules of a namespace's Role.
    fn role(&self, namespace: &str, name: &str) -> Option<Vec<PolicyRule>>;
    /// Whether a pod that is bound to the node uses the object.
    fn node_uses(&self, node: &str, namespace: &str, object: Used<'_>) -> bool;
    /// Whether the DrillTask is for the node, or there is none of this name.
    fn may_be_task_of(&self, node: &str, task: &str) -> bool;
}

/// What a pod can depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Used<'a> {
    Secret(&'a str),
    ConfigMap(&'a str),
    ServiceAccount(&'a str),
    /// The pod itself.
    Pod(&'a str),
}

/// Whether the user may do it.
pub fn is_allowed(user: &UserInfo, attributes: &Attributes<'_>, policy: &dyn Policy) -> bool {
    user.is_in(MASTERS)
        || user
            .node()
            .is_some_and(|node| node_may(node, attributes, policy))
        || rules_for(user, attributes.namespace, policy)
            .iter()
            .any(|rule| rule.allows(attributes))
}

/// Every rule that RBAC gives a user in a namespace (and at cluster scope).
pub fn rules_for(user: &UserInfo, namespace: &str, policy: &dyn Policy) -> Vec<PolicyRule> {
    let mut rules = Vec::new();
    for binding in policy.cluster_bindings() {
        if binding.names(user, "") {
            rules.extend(policy.cluster_role(&binding.role.name).unwrap_or_default());
        }
    }
    if namespace.is_empty() {
        return rules;
    }
    for binding in policy.bindings(namespace) {
        if binding.names(user, namespace) {
            let role = match binding.role.kind.as_str() {
                "ClusterRole" => policy.cluster_role(&binding.role.name),
                _ => policy.role(namespace, &binding.role.name),
            };
            rules.extend(role.unwrap_or_default());
        }
    }
    rules
}

impl Binding {
    /// Whether one of the subjects is this user. `namespace` is the binding's own, which a
    /// service account that names none is in.
    fn names(&self, user: &UserInfo, namespace: &str) -> bool {
        self.subjects
            .iter()
            .any(|subject| match subject.kind.as_str() {
                "User" => subject.name == user.name,
                "Group" => user.is_in(&subject.name),
                "ServiceAccount" => {
                    let of = if subject.namespace.is_empty() {
                        namespace
                    } else {
                        &subject.namespace
                    };
                    user.name == format!("system:serviceaccount:{of}:{}", subject.name)
                }
                _ => false,
            })
    }
}

impl PolicyRule {
    /// Whether the rule covers the request, as `k8s.io/kubernetes/pkg/registry/rbac` matches.
    pub fn allows(&self, request: &Attributes<'_>) -> bool {
        let has = |list: &[String], value: &str| list.iter().any(|v| v == "*" || v == value);
        if !has(&self.verbs, request.verb) {
            return false;
        }
        if let Some(path) = request.path {
            return self
                .non_resource_urls
                .iter()
                .any(|url| url_covers(url, path));
        }
        has(&self.api_groups, request.group)
            && self.resources.iter().any(|r| resource_covers(r, request))
            && (self.resource_names.is_empty()
                || self.resource_names.iter().any(|n| n == request.name))
    }
}

/// `pods`, `pods/log`, `*`, or `*/scale`.
fn resource_covers(rule: &str, request: &Attributes<'_>) -> bool {
    if rule == "*" {
        return true;
    }
    match rule.split_once('/') {
        None => request.subresource.is_empty() && rule == request.resource,
        Some(("*", subresource)) => subresource == request.subresource,
        Some((resource, subresource)) => {
            resource == request.resource && subresource == request.subresource
        }
    }
}

/// `/healthz`, or `/healthz/*`.
fn url_covers(rule: &str, path: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => rule == path,
    }
}

/// What a node's agent may do, whatever RBAC says: Kubernetes' node authorizer. Of secrets, config
/// maps, service accounts and pods it reads those that its own pods use. Whose objects it writes is
/// narrowed by the NodeRestriction admission step.
fn node_may(node: &str, request: &Attributes<'_>, policy: &dyn Policy) -> bool {
    if request.path.is_some() {
        return request.verb == "get";
    }
    let reads = matches!(request.verb, "get" | "list" | "watch");
    let writes = matches!(request.verb, "create" | "update" | "patch" | "delete");
    let uses = |object| {
        let is_get = request.verb == "get" && !request.name.is_empty();
        is_get && policy.node_uses(node, request.namespace, object)
    };
    let has_task = || !request.name.is_empty() && policy.may_be_task_of(node, request.name);
    match (request.group, request.resource, request.subresource) {
        ("", "nodes", "") => reads || request.verb == "create" || (writes && request.name == node),
        ("", "nodes", "status") => request.verb != "delete" && request.name == node,
        ("", "pods", "") => match request.verb {
            "get" => uses(Used::Pod(request.name)),
            "list" | "watch" => request.field_selector == format!("spec.nodeName={node}"),
            verb => matches!(verb, "create" | "delete"),
        },
        ("", "pods", "status") => matches!(request.verb, "get" | "update" | "patch"),
        ("", "pods", "eviction") => request.verb == "create",
        ("", "secrets", "") => uses(Used::Secret(request.name)),
        ("", "configmaps", "") => uses(Used::ConfigMap(request.name)),
        ("", "serviceaccounts", "") => uses(Used::ServiceAccount(request.name)),
        ("", "services", "") => reads,
        ("", "serviceaccounts", "token") => request.verb == "create",
        ("discovery.k8s.io", "endpointslices", "") => reads,
        ("" | "events.k8s.io", "events", "") => {
            matches!(request.verb, "create" | "update" | "patch")
        }
        ("coordination.k8s.io", "leases", "") => {
            request.namespace == "kube-node-lease"
                && (request.verb == "create" || request.name == node)
        }
        ("certificates.k8s.io", "certificatesigningrequests", "") => {
            reads || request.verb == "create"
        }
        ("skiff.dev", "drilltasks", "") => match request.verb {
            "list" | "watch" => request.field_selector == format!("spec.nodeName={node}"),
            // What it may change of its own tasks, the admission step tells.
            verb => matches!(verb, "get" | "update" | "patch") && has_task(),
        },
        ("skiff.dev", "drilltasks", "status") => {
            matches!(request.verb, "get" | "update" | "patch") && has_task()
        }
        ("authentication.k8s.io", "tokenreviews", "")
        | ("authorization.k8s.io", "subjectaccessreviews", "") => request.verb == "create",
        _ => false,
    }
}

fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Policy for Fixed {
        fn cluster_bindings(&self) -> Vec<Binding> {
            vec![binding("Group", "ops", "", "ClusterRole", "everything")]
        }

        fn bindings(&self, namespace: &str) -> Vec<Binding> {
            match namespace {
                "dev" => vec![
                    binding("User", "ann", "", "Role", "reader"),
                    binding("ServiceAccount", "bot", "", "ClusterRole", "logs"),
                ],
                _ => Vec::new(),
            }
        }

        fn cluster_role(&self, name: &str) -> Option<Vec<PolicyRule>> {
            match name {
                "everything" => Some(vec![
                    rule(&["*"], &["*"], &["*"]),
                    PolicyRule {
                        verbs: vec!["get".into()],
                        non_resource_urls: vec!["/metrics".into(), "/debug/*".into()],
                        ..PolicyRule::default()
                    },
                ]),
                "logs" => Some(vec![rule(&["get"], &[""], &["pods/log"])]),
                _ => None,
            }
        }

        fn role(&self, _namespace: &str, name: &str) -> Option<Vec<PolicyRule>> {
            (name == "reader").then(|| vec![rule(&["get", "list"], &[""], &["pods"])])
        }

        fn node_uses(&self, node: &str, namespace: &str, object: Used<'_>) -> bool {
            (node, namespace, object) == ("a", "dev", Used::Secret("mine"))
        }

        fn may_be_task_of(&self, node: &str, task: &str) -> bool {
            (node, task) == ("a", "kill")
        }
    }

    fn binding(kind: &str, name: &str, namespace: &str, role_kind: &str, role: &str) -> Binding {
        Binding {
            subjects: vec![Subject {
                kind: kind.into(),
                name: name.into(),
                namespace: namespace.into(),
            }],
            role: RoleRef {
                kind: role_kind.into(),
                name: role.into(),
            },
        }
    }

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str]) -> PolicyRule {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect();
        PolicyRule {
            verbs: owned(verbs),
            api_groups: owned(groups),
            resources: owned(resources),
            ..PolicyRule::default()
        }
    }

    fn pods<'a>(verb: &'a str, namespace: &'a str, subresource: &'a str) -> Attributes<'a> {
        Attributes {
            verb,
            namespace,
            subresource,
            version: "v1",
            resource: "pods",
            name: "web",
            ..Attributes::default()
        }
    }

    fn user(name: &str, groups: &[&str]) -> UserInfo {
        UserInfo::authenticated(name, groups.iter().map(ToString::to_string))
    }

    #[test]
    fn masters_may_everything() {
        assert!(is_allowed(
            &user("root", &[MASTERS]),
            &pods("delete", "any", ""),
            &Fixed
        ));
    }

    #[test]
    fn a_role_holds_in_its_namespace_only() {
        let ann = user("ann", &[]);
        assert!(is_allowed(&ann, &pods("list", "dev", ""), &Fixed));
        assert!(!is_allowed(&ann, &pods("list", "prod", ""), &Fixed));
        assert!(!is_allowed(&ann, &pods("list", "", ""), &Fixed));
        assert!(!is_allowed(&ann, &pods("delete", "dev", ""), &Fixed));
        assert!(!is_allowed(&ann, &pods("get", "dev", "log"), &Fixed));
    }

    #[test]
    fn subresources_are_named_apart() {
        let bot = user("system:serviceaccount:dev:bot", &[]);
        assert!(is_allowed(&bot, &pods("get", "dev", "log"), &Fixed));
        assert!(!is_allowed(&bot, &pods("get", "dev", ""), &Fixed));
    }

    #[test]
    fn paths_match_exactly_or_by_prefix() {
        let ops = user("olga", &["ops"]);
        let path = |path| Attributes {
            verb: "get",
            path: Some(path),
            ..Attributes::default()
        };
        assert!(is_allowed(&ops, &path("/metrics"), &Fixed));
        assert!(is_allowed(&ops, &path("/debug/pprof"), &Fixed));
        assert!(!is_allowed(&ops, &path("/metrics/more"), &Fixed));
    }

    #[test]
    fn a_node_reads_what_its_pods_use() {
        let agent = |name: &str| user(&format!("system:node:{name}"), &[super::super::NODES]);
        let read = |verb, resource, name, field_selector| Attributes {
            verb,
            resource,
            name,
            field_selector,
            namespace: "dev",
            ..Attributes::default()
        };
        let may = |node: &str, wanted: &Attributes<'_>| is_allowed(&agent(node), wanted, &Fixed);
        assert!(may("a", &read("get", "secrets", "mine", "")));
        assert!(!may("b", &read("get", "secrets", "mine", "")));
        assert!(!may("a", &read("get", "secrets", "other", "")));
        assert!(!may("a", &read("list", "secrets", "", "")));
        assert!(!may("a", &read("watch", "secrets", "mine", "")));
        assert!(may("a", &read("watch", "pods", "", "spec.nodeName=a")));
        assert!(!may("a", &read("watch", "pods", "", "spec.nodeName=b")));
        assert!(!may("a", &read("list", "pods", "", "")));
    }

    #[test]
    fn a_node_sees_and_reports_its_own_drill_tasks() {
        let agent = |name: &str| user(&format!("system:node:{name}"), &[super::super::NODES]);
        let tasks = |verb, name, subresource, field_selector| Attributes {
            verb,
            name,
            subresource,
            field_selector,
            group: "skiff.dev",
            resource: "drilltasks",
            ..Attributes::default()
        };
        let may = |node: &str, wanted: &Attributes<'_>| is_allowed(&agent(node), wanted, &Fixed);
        assert!(may("a", &tasks("watch", "", "", "spec.nodeName=a")));
        assert!(may("a", &tasks("list", "", "", "spec.nodeName=a")));
        assert!(!may("a", &tasks("list", "", "", "")));
        assert!(!may("a", &tasks("list", "", "", "spec.nodeName=b")));
        assert!(!may("a", &tasks("list", "", "", "spec.nodeName!=b")));
        for verb in ["get", "patch", "update"] {
            for subresource in ["", "status"] {
                assert!(may("a", &tasks(verb, "kill", subresource, "")));
                assert!(!may("b", &tasks(verb, "kill", subresource, "")));
                assert!(!may("a", &tasks(verb, "other", subresource, "")));
            }
        }
        for verb in ["create", "delete", "deletecollection"] {
            assert!(!may("a", &tasks(verb, "kill", "", "")), "{verb}");
        }
        let drills = Attributes {
            resource: "drills",
            ..tasks("get", "kill", "", "")
        };
        assert!(!may("a", &drills));
    }

    #[test]
    fn a_node_writes_only_its_own_node() {
        let agent = user("system:node:a", &[super::super::NODES]);
        let node = |verb, name| Attributes {
            verb,
            resource: "nodes",
            subresource: "status",
            name,
            ..Attributes::default()
        };
        assert!(is_allowed(&agent, &node("patch", "a"), &Fixed));
        assert!(!is_allowed(&agent, &node("patch", "b"), &Fixed));
        assert!(!is_allowed(&agent, &pods("create", "dev", "exec"), &Fixed));
    }
}
