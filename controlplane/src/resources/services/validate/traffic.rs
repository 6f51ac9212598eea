//! Whose connections a Service takes, and where it leads them: load balancers, policies, affinity.

use std::net::IpAddr;

use serde_json::Value;

use super::super::{has_health_check, is_externally_accessible};
use crate::resources::error::{forbidden, invalid, not_supported, required};
use crate::resources::object::{at, integer, is_set, list, text};
use crate::resources::{FieldError, syntax};

const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";

pub(super) fn session_affinity(service: &Value) -> Vec<FieldError> {
    let affinity = text(service, "spec.sessionAffinity");
    let config = at(service, "spec.sessionAffinityConfig");
    let path = "spec.sessionAffinityConfig";
    match affinity {
        "ClientIP" => {
            let timeout = integer(config, "clientIP.timeoutSeconds");
            if !is_set(config, "clientIP.timeoutSeconds") {
                let why = "when session affinity type is ClientIP";
                return vec![required(&format!("{path}.clientIP.timeoutSeconds"), why)];
            }
            if !(1..=86_400).contains(&timeout) {
                let why = "must be greater than 0 and less than 86400";
                let path = format!("{path}.clientIP.timeoutSeconds");
                return vec![invalid(&path, &timeout.into(), why)];
            }
            Vec::new()
        }
        "None" if !config.is_null() => {
            vec![forbidden(
                path,
                "must not be set when session affinity is None",
            )]
        }
        "None" => Vec::new(),
        _ => vec![not_supported(
            "spec.sessionAffinity",
            affinity,
            &["ClientIP", "None"],
        )],
    }
}

pub(super) fn load_balancer(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let is_balancer = text(service, "spec.type") == "LoadBalancer";
    // The path's capital is Kubernetes'.
    let path = "spec.LoadBalancerSourceRanges";
    let ranges = list(service, "spec.loadBalancerSourceRanges");
    if !ranges.is_empty() && !is_balancer {
        errors.push(forbidden(path, ONLY_LOAD_BALANCER));
    }
    for (index, range) in ranges.iter().enumerate() {
        if !is_cidr(range.as_str().unwrap_or_default().trim()) {
            let why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.push(invalid(&format!("{path}[{index}]"), range, why));
        }
    }
    if is_set(service, "spec.allocateLoadBalancerNodePorts") && !is_balancer {
        errors.push(forbidden(
            "spec.allocateLoadBalancerNodePorts",
            ONLY_LOAD_BALANCER,
        ));
    }
    if is_set(service, "spec.loadBalancerClass") {
        let class = at(service, "spec.loadBalancerClass");
        let faults = syntax::qualified_name(class.as_str().unwrap_or_default());
        errors.extend(
            faults
                .iter()
                .map(|why| invalid("spec.loadBalancerClass", class, why)),
        );
        if !is_balancer {
            errors.push(forbidden("spec.loadBalancerClass", ONLY_LOAD_BALANCER));
        }
    }
    errors
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

/// The traffic policies, the health check that belongs to one, and the distribution.
pub(super) fn traffic(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let external = text(service, "spec.externalTrafficPolicy");
    let path = "spec.externalTrafficPolicy";
    if !is_externally_accessible(service) {
        if !external.is_empty() {
            let why = "may only be set for externally-accessible services";
            errors.push(invalid(path, &external.into(), why));
        }
    } else if external.is_empty() {
        errors.push(required(path, ""));
    } else if !matches!(external, "Cluster" | "Local") {
        errors.push(not_supported(path, external, &["Cluster", "Local"]));
    }
    let health = integer(service, "spec.healthCheckNodePort");
    if health != 0 {
        let path = "spec.healthCheckNodePort";
        if has_health_check(service) {
            let faults = syntax::port_number(health);
            errors.extend(faults.iter().map(|why| invalid(path, &health.into(), why)));
        } else {
            let why = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(invalid(path, &health.into(), why));
        }
    }
    let internal = text(service, "spec.internalTrafficPolicy");
    if !matches!(internal, "" | "Cluster" | "Local") {
        let path = "spec.internalTrafficPolicy";
        errors.push(not_supported(path, internal, &["Cluster", "Local"]));
    }
    if is_set(service, "spec.trafficDistribution") {
        let known = ["PreferClose", "PreferSameNode", "PreferSameZone"];
        let given = text(service, "spec.trafficDistribution");
        if !known.contains(&given) {
            errors.push(not_supported("spec.trafficDistribution", given, &known));
        }
    }
    errors
}
