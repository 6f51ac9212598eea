//! Namespaces.

use serde_json::json;

use super::object::{carry_over, ensure, text};
use super::print::{AGE, NAME, age, column, name};
use super::{Column, Hooks, Resource, SelectableField, metadata};

/// The label by which a selector finds a namespace by name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

const COLUMNS: &[Column] = &[
    NAME,
    column(
        "Status",
        "string",
        "Active, or Terminating while it is emptied.",
    ),
    AGE,
];

const SELECTABLE: &[SelectableField] = &[SelectableField::text("status.phase")];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "namespace",
        short_names: &["ns"],
        has_status: true,
        hooks: Hooks {
            default: |namespace| {
                let name = text(namespace, "metadata.name").to_string();
                if !name.is_empty() {
                    ensure(ensure(namespace, "metadata"), "labels")[NAME_LABEL] = name.into();
                }
            },
            prepare_create: |namespace| {
                namespace["status"] = json!({"phase": "Active"});
                namespace["spec"] = json!({"finalizers": ["kubernetes"]});
            },
            // Its finalizers change through the `finalize` subresource alone.
            prepare_update: |new, old| {
                carry_over(new, old, "status");
                carry_over(new, old, "spec");
            },
            validate: metadata::validate,
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row: |namespace, now| {
            vec![
                name(namespace),
                text(namespace, "status.phase").into(),
                age(namespace, now),
            ]
        },
        selectable_fields: SELECTABLE,
        ..Resource::cluster_scoped(
            "",
            "v1",
            "Namespace",
            "namespaces",
            "io.k8s.api.core.v1.Namespace",
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::resource;

    #[test]
    fn a_new_namespace_is_active_and_findable_by_name() {
        let hooks = resource().hooks;
        let mut namespace = json!({"metadata": {"name": "web"}});
        (hooks.default)(&mut namespace);
        (hooks.prepare_create)(&mut namespace);
        assert_eq!(
            namespace,
            json!({"metadata": {"name": "web", "labels": {"kubernetes.io/metadata.name": "web"}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
        );
    }
}
