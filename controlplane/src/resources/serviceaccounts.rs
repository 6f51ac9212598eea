//! ServiceAccounts.

use super::print::{AGE, NAME, age, column, count, name};
use super::{Column, Hooks, Resource, metadata};

const COLUMNS: &[Column] = &[
    NAME,
    column("Secrets", "integer", "How many secrets it may use."),
    AGE,
];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "serviceaccount",
        short_names: &["sa"],
        hooks: Hooks {
            validate: metadata::validate,
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row: |account, now| {
            vec![
                name(account),
                count(account, "secrets").into(),
                age(account, now),
            ]
        },
        ..Resource::namespaced(
            "",
            "v1",
            "ServiceAccount",
            "serviceaccounts",
            "io.k8s.api.core.v1.ServiceAccount",
        )
    }
}
