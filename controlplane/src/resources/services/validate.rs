//! Checks Services, in the words of `ValidateService` and `ValidateServiceUpdate`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::{has_cluster_address, has_health_check, is_externally_accessible, is_headless};
use crate::resources::error::{duplicate, forbidden, invalid, not_supported, required};
use crate::resources::object::{at, integer, is_set, list, text};
use crate::resources::{FieldError, metadata, syntax};

const ONLY_LOAD_BALANCER: &str = "may only be used when `type` is 'LoadBalancer'";

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

fn ports(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let all = list(service, "spec.ports");
    let mut names = BTreeSet::new();
    for (index, port) in all.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let name = text(port, "name");
        if name.is_empty() && all.len() > 1 {
            errors.push(required(&format!("{path}.name"), ""));
        } else if !name.is_empty() {
            let faults = syntax::dns_label(name);
            errors.extend(
                faults
                    .iter()
                    .map(|why| invalid(&format!("{path}.name"), &port["name"], why)),
            );
            if !names.insert(name) {
                errors.push(duplicate(&format!("{path}.name"), &port["name"]));
            }
        }
        errors.extend(port_values(port, &path));
    }
    let is_cluster_ip = text(service, "spec.type") == "ClusterIP";
    let (mut numbers, mut node_ports) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in all.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let (protocol, node_port) = (text(port, "protocol"), integer(port, "nodePort"));
        if node_port != 0 && is_cluster_ip {
            let why = "may not be used when `type` is 'ClusterIP'";
            errors.push(forbidden(&format!("{path}.nodePort"), why));
        }
        if node_port != 0 && !node_ports.insert((protocol, node_port)) {
            errors.push(duplicate(&format!("{path}.nodePort"), &node_port.into()));
        }
        if !numbers.insert((protocol, integer(port, "port"))) {
            let key = json!({"port": port["port"], "protocol": protocol});
            errors.push(duplicate(&path, &key));
        }
    }
    errors
}

fn port_values(port: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let number = integer(port, "port");
    let faults = syntax::port_number(number);
    errors.extend(
        faults
            .iter()
            .map(|why| invalid(&format!("{path}.port"), &number.into(), why)),
    );
    let protocol = text(port, "protocol");
    if !matches!(protocol, "SCTP" | "TCP" | "UDP") {
        errors.push(not_supported(
            &format!("{path}.protocol"),
            protocol,
            &["SCTP", "TCP", "UDP"],
        ));
    }
    let faults = match at(port, "targetPort") {
        Value::String(name) => syntax::port_name(name),
        number => syntax::port_number(number.as_i64().unwrap_or_default()),
    };
    errors.extend(
        faults
            .iter()
            .map(|why| invalid(&format!("{path}.targetPort"), at(port, "targetPort"), why)),
    );
    if is_set(port, "appProtocol") {
        let faults = syntax::qualified_name(text(port, "appProtocol"));
        errors.extend(
            faults
                .iter()
                .map(|why| invalid(&format!("{path}.appProtocol"), &port["appProtocol"], why)),
        );
    }
    errors
}

fn session_affinity(service: &Value) -> Vec<FieldError> {
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

/// `clusterIP`, `clusterIPs`, and the address families, which have to agree.
fn cluster_addresses(service: &Value) -> Vec<FieldError> {
    let mut errors = families(service);
    let addresses = at(service, "spec.clusterIPs");
    let first = text(service, "spec.clusterIP");
    let all = list(service, "spec.clusterIPs");
    if let Some(given) = all.first()
        && given != first
    {
        let why = "first value must match `clusterIP`";
        errors.push(invalid("spec.clusterIPs", addresses, why));
    }
    if all.len() > 2 {
        errors.push(invalid(
            "spec.clusterIPs",
            addresses,
            "may only hold up to 2 values",
        ));
    }
    for (index, address) in all.iter().enumerate() {
        let path = format!("spec.clusterIPs[{index}]");
        let given = address.as_str().unwrap_or_default();
        if given == "None" {
            if all.len() > 1 {
                errors.push(invalid(
                    &path,
                    address,
                    "'None' must be the first and only value",
                ));
            }
            continue;
        }
        match given.parse::<IpAddr>() {
            Err(_) => errors.push(invalid(&path, address, NO_ADDRESS)),
            Ok(parsed) => {
                let family = if parsed.is_ipv4() { "IPv4" } else { "IPv6" };
                let expected = list(service, "spec.ipFamilies").get(index);
                let expected = expected.and_then(Value::as_str).unwrap_or(family);
                if expected != family {
                    let why = format!(
                        "expected an {expected} value as indicated by `ipFamilies[{index}]`"
                    );
                    errors.push(invalid(&path, addresses, &why));
                }
            }
        }
    }
    if let [Some(one), Some(other)] = [0, 1].map(|n| {
        let given = all.get(n).and_then(Value::as_str);
        given.and_then(|text| text.parse::<IpAddr>().ok())
    }) && one.is_ipv4() == other.is_ipv4()
    {
        let why = "may specify no more than one IP for each IP family";
        errors.push(invalid("spec.clusterIPs", addresses, why));
    }
    errors
}

const NO_ADDRESS: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

fn families(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let policy = text(service, "spec.ipFamilyPolicy");
    let all = list(service, "spec.ipFamilies");
    if !matches!(
        policy,
        "" | "SingleStack" | "PreferDualStack" | "RequireDualStack"
    ) {
        let supported = ["PreferDualStack", "RequireDualStack", "SingleStack"];
        errors.push(not_supported("spec.ipFamilyPolicy", policy, &supported));
    }
    let selects_nothing = at(service, "spec.selector")
        .as_object()
        .is_none_or(serde_json::Map::is_empty);
    // Addresses of both families can be listed by hand, whatever the cluster's own are.
    let by_hand = is_headless(service) && selects_nothing;
    if policy == "SingleStack" {
        for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if list(&service["spec"], field).len() == 2 {
                let why = format!(
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
                );
                errors.push(invalid("spec.ipFamilyPolicy", &policy.into(), &why));
            }
        }
    }
    if policy == "RequireDualStack" && !by_hand {
        let why = "this cluster is not configured for dual-stack services";
        errors.push(invalid("spec.ipFamilyPolicy", &policy.into(), why));
    }
    let mut seen = BTreeSet::new();
    for (index, family) in all.iter().enumerate() {
        let path = format!("spec.ipFamilies[{index}]");
        let name = family.as_str().unwrap_or_default();
        if !matches!(name, "IPv4" | "IPv6") {
            errors.push(not_supported(&path, name, &["IPv4", "IPv6"]));
        } else if !seen.insert(name) {
            errors.push(duplicate(&path, family));
        } else if name == "IPv6" && !by_hand {
            errors.push(invalid(&path, family, "not configured on this cluster"));
        }
    }
    errors
}

fn external_addresses(service: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    for (index, given) in list(service, "spec.externalIPs").iter().enumerate() {
        let path = format!("spec.externalIPs[{index}]");
        let fault = match given.as_str().unwrap_or_default().parse::<IpAddr>() {
            Err(_) => Some(NO_ADDRESS.to_string()),
            Ok(address) => special(address),
        };
        errors.extend(fault.map(|why| invalid(&path, given, &why)));
    }
    errors
}

/// Why nobody outside a host can have this address.
pub(crate) fn special(address: IpAddr) -> Option<String> {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let link_multicast = match address {
        IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
        IpAddr::V6(address) => address.segments()[0] & 0xff0f == 0xff02,
    };
    let why = match address {
        _ if address.is_unspecified() => {
            return Some(format!("may not be unspecified ({address})"));
        }
        _ if address.is_loopback() => "may not be in the loopback range (127.0.0.0/8, ::1/128)",
        _ if link_local => "may not be in the link-local range (169.254.0.0/16, fe80::/10)",
        _ if link_multicast => {
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"
        }
        _ => return None,
    };
    Some(why.to_string())
}

fn load_balancer(service: &Value) -> Vec<FieldError> {
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
fn traffic(service: &Value) -> Vec<FieldError> {
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
mod tests {
    use super::super::prepare;
    use super::*;

    fn faults(spec: Value) -> Vec<String> {
        let mut service = json!({"metadata": {"name": "web"}, "spec": spec});
        prepare::default_service(&mut service);
        prepare::create(&mut service);
        said(validate(&service))
    }

    fn said(errors: Vec<FieldError>) -> Vec<String> {
        let errors = errors.into_iter();
        errors
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect()
    }

    #[test]
    fn right_services_pass() {
        let none: [String; 0] = [];
        for spec in [
            json!({"ports": [{"port": 80}]}),
            json!({"clusterIP": "None"}),
            json!({"clusterIP": "None", "selector": {"a": "b"}}),
            json!({"type": "ExternalName", "externalName": "a.example."}),
            json!({"type": "LoadBalancer", "ports": [{"port": 80}], "loadBalancerSourceRanges": [" 10.0.0.0/8"], "externalTrafficPolicy": "Local"}),
            json!({"type": "NodePort", "ports": [{"port": 53, "name": "a", "nodePort": 30053}, {"port": 53, "name": "b", "nodePort": 30053, "protocol": "UDP"}]}),
            json!({"ports": [{"port": 80}], "externalIPs": ["192.0.2.1"], "trafficDistribution": "PreferSameNode"}),
        ] {
            assert_eq!(faults(spec.clone()), none, "{spec}");
        }
    }

    #[test]
    fn wrong_ones_are_refused_in_kubernetes_words() {
        for (spec, fault) in [
            (json!({}), "spec.ports: Required value"),
            (
                json!({"type": "Web", "ports": [{"port": 80}]}),
                r#"spec.type: Unsupported value: "Web": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort""#,
            ),
            (
                json!({"ports": [{"port": 70_000, "targetPort": 80}]}),
                "spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"ports": [{"port": 80, "nodePort": 30000}]}),
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ),
            (
                json!({"ports": [{"port": 80}], "clusterIP": "web"}),
                r#"spec.clusterIPs[0]: Invalid value: "web": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
            ),
            (
                json!({"ports": [{"port": 80}], "clusterIP": "10.43.0.1", "clusterIPs": ["10.43.0.2"]}),
                r#"spec.clusterIPs: Invalid value: ["10.43.0.2"]: first value must match `clusterIP`"#,
            ),
            (
                json!({"ports": [{"port": 80}], "type": "NodePort", "clusterIP": "None"}),
                r#"spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services"#,
            ),
            (
                json!({"ports": [{"port": 80}], "ipFamilyPolicy": "RequireDualStack"}),
                r#"spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services"#,
            ),
            (
                json!({"ports": [{"port": 80}], "ipFamilies": ["IPv6"]}),
                r#"spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster"#,
            ),
            (
                json!({"ports": [{"port": 80}], "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86401}}}),
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400",
            ),
            (
                json!({"ports": [{"port": 80}], "externalTrafficPolicy": "Local"}),
                r#"spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services"#,
            ),
            (
                json!({"ports": [{"port": 80}], "healthCheckNodePort": 30000}),
                "spec.healthCheckNodePort: Invalid value: 30000: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            ),
            (
                json!({"ports": [{"port": 80}], "externalIPs": ["127.0.0.1"]}),
                r#"spec.externalIPs[0]: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)"#,
            ),
            (
                json!({"ports": [{"port": 80}], "allocateLoadBalancerNodePorts": true}),
                "spec.allocateLoadBalancerNodePorts: Forbidden: may only be used when `type` is 'LoadBalancer'",
            ),
            (
                json!({"ports": [{"port": 80}], "trafficDistribution": "Near"}),
                r#"spec.trafficDistribution: Unsupported value: "Near": supported values: "PreferClose", "PreferSameNode", "PreferSameZone""#,
            ),
            (
                json!({"type": "ExternalName"}),
                "spec.externalName: Required value",
            ),
        ] {
            assert_eq!(faults(spec.clone()), [fault], "{spec}");
        }
        let several = faults(json!({"ports": [{"port": 80}, {"port": 80, "name": "b"}]}));
        assert_eq!(
            several,
            [
                "spec.ports[0].name: Required value",
                r#"spec.ports[1]: Duplicate value: {"port":80,"protocol":"TCP"}"#
            ]
        );
    }

    #[test]
    fn what_was_given_stays() {
        let old = json!({"spec": {"type": "ClusterIP", "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9"], "ipFamilies": ["IPv4"]}});
        let mut new = old.clone();
        assert_eq!(validate_update(&new, &old), []);
        new["spec"]["clusterIPs"] = json!(["10.43.0.10"]);
        assert_eq!(
            said(validate_update(&new, &old)),
            [r#"spec.clusterIPs[0]: Invalid value: ["10.43.0.10"]: may not change once set"#]
        );
    }
}
