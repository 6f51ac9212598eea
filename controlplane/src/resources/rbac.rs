//! Roles and their bindings.

use jiff::Timestamp;
use serde_json::Value;

use super::error::{immutable, not_supported, required};
use super::object::{at, default_zero, ensure, items_mut, list, text};
use super::print::{AGE, NAME, age, column, name, wide};
use super::{Column, FieldError, Hooks, Resource, metadata};

const GROUP: &str = "rbac.authorization.k8s.io";

const ROLE_COLUMNS: &[Column] = &[NAME, column("Created At", "date", "When it was created.")];

const BINDING_COLUMNS: &[Column] = &[
    NAME,
    column("Role", "string", "The role that it gives."),
    AGE,
    wide("Users", "string", "The users that get it."),
    wide("Groups", "string", "The groups that get it."),
    wide(
        "ServiceAccounts",
        "string",
        "The service accounts that get it.",
    ),
];

pub(super) fn resources() -> [Resource; 4] {
    let role = Resource {
        singular: "role",
        hooks: Hooks {
            validate: validate_role,
            ..Hooks::NONE
        },
        columns: ROLE_COLUMNS,
        row: role_row,
        ..Resource::namespaced(GROUP, "v1", "Role", "roles", "io.k8s.api.rbac.v1.Role")
    };
    let binding = Resource {
        singular: "rolebinding",
        hooks: Hooks {
            default: default_binding,
            validate: validate_binding,
            validate_update: same_role,
            ..Hooks::NONE
        },
        columns: BINDING_COLUMNS,
        row: binding_row,
        ..Resource::namespaced(
            GROUP,
            "v1",
            "RoleBinding",
            "rolebindings",
            "io.k8s.api.rbac.v1.RoleBinding",
        )
    };
    let cluster_role = Resource {
        namespaced: false,
        kind: "ClusterRole",
        plural: "clusterroles",
        singular: "clusterrole",
        schema: "io.k8s.api.rbac.v1.ClusterRole",
        ..role.clone()
    };
    let cluster_binding = Resource {
        namespaced: false,
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        schema: "io.k8s.api.rbac.v1.ClusterRoleBinding",
        ..binding.clone()
    };
    [role, binding, cluster_role, cluster_binding]
}

fn default_binding(binding: &mut Value) {
    default_zero(ensure(binding, "roleRef"), "apiGroup", GROUP);
    for subject in items_mut(binding, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            default_zero(subject, "apiGroup", GROUP);
        }
    }
}

fn validate_role(role: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(role);
    for (index, rule) in list(role, "rules").iter().enumerate() {
        let path = format!("rules[{index}]");
        if list(rule, "verbs").is_empty() {
            errors.push(required(
                &format!("{path}.verbs"),
                "verbs must contain at least one value",
            ));
        }
        if !list(rule, "nonResourceURLs").is_empty() {
            continue;
        }
        if list(rule, "apiGroups").is_empty() {
            let why = "resource rules must supply at least one api group";
            errors.push(required(&format!("{path}.apiGroups"), why));
        }
        if list(rule, "resources").is_empty() {
            let why = "resource rules must supply at least one resource";
            errors.push(required(&format!("{path}.resources"), why));
        }
    }
    errors
}

fn validate_binding(binding: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(binding);
    if text(binding, "roleRef.apiGroup") != GROUP {
        errors.push(not_supported(
            "roleRef.apiGroup",
            text(binding, "roleRef.apiGroup"),
            &[GROUP],
        ));
    }
    let kind = text(binding, "roleRef.kind");
    if !matches!(kind, "Role" | "ClusterRole") {
        errors.push(not_supported(
            "roleRef.kind",
            kind,
            &["Role", "ClusterRole"],
        ));
    }
    if text(binding, "roleRef.name").is_empty() {
        errors.push(required("roleRef.name", ""));
    }
    for (index, subject) in list(binding, "subjects").iter().enumerate() {
        let path = format!("subjects[{index}]");
        if text(subject, "name").is_empty() {
            errors.push(required(&format!("{path}.name"), ""));
        }
        match text(subject, "kind") {
            "ServiceAccount" if text(subject, "namespace").is_empty() => {
                errors.push(required(&format!("{path}.namespace"), ""));
            }
            "ServiceAccount" | "User" | "Group" => {}
            other => errors.push(not_supported(
                &format!("{path}.kind"),
                other,
                &["ServiceAccount", "User", "Group"],
            )),
        }
    }
    errors
}

fn same_role(new: &Value, old: &Value) -> Vec<FieldError> {
    let error = immutable("roleRef", at(new, "roleRef"), at(old, "roleRef"));
    error
        .map(|e| FieldError {
            message: e
                .message
                .replace("field is immutable", "cannot change roleRef"),
            ..e
        })
        .into_iter()
        .collect()
}

fn role_row(role: &Value, _now: Timestamp) -> Vec<Value> {
    vec![name(role), text(role, "metadata.creationTimestamp").into()]
}

fn binding_row(binding: &Value, now: Timestamp) -> Vec<Value> {
    let subjects = |kind: &str| {
        let named = list(binding, "subjects")
            .iter()
            .filter(|s| text(s, "kind") == kind);
        let names: Vec<String> = named
            .map(|s| match text(s, "namespace") {
                namespace if kind == "ServiceAccount" => format!("{namespace}/{}", text(s, "name")),
                _ => text(s, "name").to_string(),
            })
            .collect();
        Value::from(names.join(", "))
    };
    vec![
        name(binding),
        format!(
            "{}/{}",
            text(binding, "roleRef.kind"),
            text(binding, "roleRef.name")
        )
        .into(),
        age(binding, now),
        subjects("User"),
        subjects("Group"),
        subjects("ServiceAccount"),
    ]
}
