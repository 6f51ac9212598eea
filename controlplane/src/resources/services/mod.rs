//! Services: `prepare` completes them, `validate` checks them, `row` prints them. Their
//! addresses and node ports come from `crate::allocation`.

mod prepare;
mod row;
mod validate;

use serde_json::Value;

use super::object::{list, text};
use super::{Hooks, Resource, SelectableField};
pub(super) use validate::special as special_address;

const SELECTABLE: &[SelectableField] = &[
    SelectableField::text("spec.clusterIP"),
    SelectableField::text("spec.type"),
];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        has_status: true,
        hooks: Hooks {
            default: prepare::default_service,
            prepare_create: prepare::create,
            prepare_update: prepare::update,
            validate: validate::validate,
            validate_update: validate::validate_update,
            warnings: Some(prepare::warnings),
            ..Hooks::NONE
        },
        columns: row::COLUMNS,
        row: row::row,
        selectable_fields: SELECTABLE,
        ..Resource::namespaced(
            "",
            "v1",
            "Service",
            "services",
            "io.k8s.api.core.v1.Service",
        )
    }
}

/// Whether it has a cluster address, or says that it wants none.
pub(crate) fn has_cluster_address(service: &Value) -> bool {
    text(service, "spec.type") != "ExternalName"
}

/// Whether its cluster address is `None`.
pub(crate) fn is_headless(service: &Value) -> bool {
    let addresses = list(service, "spec.clusterIPs");
    (addresses.len() == 1 && addresses[0] == "None")
        || (addresses.is_empty() && text(service, "spec.clusterIP") == "None")
}

pub(crate) fn has_node_ports(service: &Value) -> bool {
    matches!(text(service, "spec.type"), "NodePort" | "LoadBalancer")
}

/// Whether load balancers ask each node if it has endpoints.
pub(crate) fn has_health_check(service: &Value) -> bool {
    text(service, "spec.type") == "LoadBalancer"
        && text(service, "spec.externalTrafficPolicy") == "Local"
}

pub(crate) fn is_externally_accessible(service: &Value) -> bool {
    has_node_ports(service)
        || (text(service, "spec.type") == "ClusterIP"
            && !list(service, "spec.externalIPs").is_empty())
}
