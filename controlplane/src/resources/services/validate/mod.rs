//! Checks Services, in the words of `ValidateService` and `ValidateServiceUpdate`.

mod addresses;
mod ports;
mod traffic;

use serde_json::{Value, json};

use super::{has_cluster_address, has_health_check, is_headless};
use crate::resources::error::{forbidden, invalid, not_supported, required};
use crate::resources::object::{at, integer, is_set, list, text};
use crate::resources::{FieldError, metadata, syntax};
pub(crate) use addresses::special;
use addresses::{cluster_addresses, external_addresses};
use ports::ports;
use traffic::{load_balancer, session_affinity, traffic};

pub(super) fn validate(service: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(service);
    errors.extend(kind(service));
    errors.extend(ports(service));
    errors.extend(metadata::labels(
        at(service, "spec.selector"),
        "spec.selector",
    ));
    errors.extend(session_affinity(service));
    if has_cluster_address(service) {
        errors.extend(cluster_addresses(service));
    }
    errors.extend(external_addresses(service));
    errors.extend(load_balancer(service));
    errors.extend(traffic(service));
    errors
}

fn kind(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let kind = text(service, "spec.type");
    if list(service, "spec.ports").is_empty() && kind != "ExternalName" && !is_headless(service) {
        errors.push(required("spec.ports", ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(service) => {
            let why = format!("may not be set to 'None' for {kind} services");
            errors.push(invalid("spec.clusterIPs[0]", &json!("None"), &why));
        }
        "ExternalName" => errors.extend(external_name(service)),
        "ClusterIP" | "LoadBalancer" | "NodePort" => {}
        _ => errors.push(not_supported(
            "spec.type",
            kind,
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        )),
    }
    errors
}

fn external_name(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if is_set(&service["spec"], field) {
            let path = format!("spec.{field}");
            errors.push(forbidden(&path, "may not be set for ExternalName services"));
        }
    }
    let name = text(service, "spec.externalName");
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        errors.push(required("spec.externalName", ""));
    } else {
        let faults = syntax::dns_subdomain(name);
        errors.extend(
            faults
                .iter()
                .map(|why| invalid("spec.externalName", &name.into(), why)),
        );
    }
    errors
}

pub(super) fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if has_cluster_address(new) && has_cluster_address(old) {
        for field in ["clusterIPs", "ipFamilies"] {
            let (before, now) = (list(&old["spec"], field), list(&new["spec"], field));
            let changed = before.iter().zip(now).any(|(before, now)| before != now);
            if changed {
                errors.push(invalid(
                    &format!("spec.{field}[0]"),
                    at(&new["spec"], field),
                    "may not change once set",
                ));
            }
        }
    }
    let is_balancer = |service: &Value| text(service, "spec.type") == "LoadBalancer";
    let class = |service| at(service, "spec.loadBalancerClass");
    if is_balancer(old) && is_balancer(new) && class(old) != class(new) {
        let why = "may not change once set";
        errors.push(invalid("spec.loadBalancerClass", class(new), why));
    }
    let health = |service| integer(service, "spec.healthCheckNodePort");
    if has_health_check(old) && has_health_check(new) && health(old) != health(new) {
        errors.push(forbidden("spec.healthCheckNodePort", "field is immutable"));
    }
    errors
}

#[cfg(test)]
mod tests;
