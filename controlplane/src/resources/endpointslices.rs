//! EndpointSlices: some of the addresses behind a Service, with the state of each.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use super::endpoints::first;
use super::error::{duplicate, immutable, invalid, not_supported, required};
use super::object::{at, default, items_mut, list, text};
use super::print::{AGE, NAME, age, column, name};
use super::services::special_address;
use super::{Column, FieldError, Hooks, Resource, metadata, syntax};

const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;

const COLUMNS: &[Column] = &[
    NAME,
    column("AddressType", "string", "What its addresses are."),
    column("Ports", "string", "The first ports."),
    column("Endpoints", "string", "The first addresses."),
    AGE,
];

pub(super) fn resource() -> Resource {
    Resource {
        singular: "endpointslice",
        has_generation: true,
        hooks: Hooks {
            default: |slice| {
                for port in items_mut(slice, "ports") {
                    default(port, "name", "");
                    default(port, "protocol", "TCP");
                }
            },
            validate,
            validate_update: |new, old| {
                let (new, old) = (at(new, "addressType"), at(old, "addressType"));
                immutable("addressType", new, old).into_iter().collect()
            },
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row: |slice, now| {
            vec![
                name(slice),
                text(slice, "addressType").into(),
                or_unset(ports(slice)).into(),
                or_unset(addresses(slice)).into(),
                age(slice, now),
            ]
        },
        ..Resource::namespaced(
            "discovery.k8s.io",
            "v1",
            "EndpointSlice",
            "endpointslices",
            "io.k8s.api.discovery.v1.EndpointSlice",
        )
    }
}

fn validate(slice: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(slice);
    let kind = text(slice, "addressType");
    match kind {
        "" => errors.push(required("addressType", "")),
        "FQDN" | "IPv4" | "IPv6" => {}
        _ => errors.push(not_supported(
            "addressType",
            kind,
            &["FQDN", "IPv4", "IPv6"],
        )),
    }
    let endpoints = list(slice, "endpoints");
    if endpoints.len() > MAX_ENDPOINTS {
        errors.push(too_many("endpoints", endpoints.len(), MAX_ENDPOINTS));
        return errors;
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        errors.extend(endpoint_faults(
            endpoint,
            kind,
            &format!("endpoints[{index}]"),
        ));
    }
    errors.extend(port_faults(list(slice, "ports")));
    errors
}

fn endpoint_faults(endpoint: &Value, kind: &str, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let addresses = list(endpoint, "addresses");
    let addresses_path = format!("{path}.addresses");
    if addresses.is_empty() {
        errors.push(required(&addresses_path, "must contain at least 1 address"));
    } else if addresses.len() > MAX_ADDRESSES {
        errors.push(too_many(&addresses_path, addresses.len(), MAX_ADDRESSES));
    }
    for (index, address) in addresses.iter().enumerate() {
        let path = format!("{addresses_path}[{index}]");
        let given = address.as_str().unwrap_or_default();
        let faults = match (kind, given.parse::<IpAddr>()) {
            ("FQDN", _) => syntax::dns_subdomain(given.strip_suffix('.').unwrap_or(given)),
            ("IPv4", Ok(ip)) if ip.is_ipv4() => special_address(ip).into_iter().collect(),
            ("IPv6", Ok(ip)) if ip.is_ipv6() => special_address(ip).into_iter().collect(),
            ("IPv4", _) => vec!["must be a valid IPv4 address".to_string()],
            ("IPv6", _) => vec!["must be a valid IPv6 address".to_string()],
            _ => Vec::new(),
        };
        errors.extend(faults.iter().map(|why| invalid(&path, address, why)));
    }
    for (field, check) in [
        ("hostname", syntax::dns_label as fn(&str) -> Vec<String>),
        ("nodeName", syntax::dns_subdomain),
    ] {
        let given = text(endpoint, field);
        if !given.is_empty() {
            let faults = check(given);
            let path = format!("{path}.{field}");
            errors.extend(faults.iter().map(|why| invalid(&path, &given.into(), why)));
        }
    }
    errors
}

fn port_faults(ports: &[Value]) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if ports.len() > MAX_PORTS {
        return vec![too_many("ports", ports.len(), MAX_PORTS)];
    }
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("ports[{index}]");
        let given = text(port, "name");
        if !given.is_empty() {
            let faults = syntax::dns_label(given);
            let path = format!("{path}.name");
            errors.extend(faults.iter().map(|why| invalid(&path, &given.into(), why)));
        }
        if !names.insert(given) {
            errors.push(duplicate(&format!("{path}.name"), &given.into()));
        }
        let protocol = text(port, "protocol");
        if !matches!(protocol, "SCTP" | "TCP" | "UDP") {
            let path = format!("{path}.protocol");
            errors.push(not_supported(&path, protocol, &["SCTP", "TCP", "UDP"]));
        }
        if let Some(number) = at(port, "port").as_i64() {
            let faults = syntax::port_number(number);
            let path = format!("{path}.port");
            errors.extend(faults.iter().map(|why| invalid(&path, &number.into(), why)));
        }
    }
    errors
}

fn too_many(path: &str, count: usize, most: usize) -> FieldError {
    FieldError {
        reason: "FieldValueTooMany",
        field: path.to_string(),
        message: format!("Too many: {count}: must have at most {most} items"),
    }
}

fn ports(slice: &Value) -> Vec<String> {
    let ports = list(slice, "ports").iter();
    ports
        .map(|port| match at(port, "port").as_i64() {
            Some(number) => number.to_string(),
            None if !text(port, "name").is_empty() => text(port, "name").to_string(),
            None => "*".to_string(),
        })
        .collect()
}

fn addresses(slice: &Value) -> Vec<String> {
    let endpoints = list(slice, "endpoints").iter();
    endpoints
        .flat_map(|endpoint| list(endpoint, "addresses"))
        .filter_map(|address| address.as_str().map(str::to_string))
        .collect()
}

fn or_unset(all: Vec<String>) -> String {
    match all.is_empty() {
        true => "<unset>".to_string(),
        false => first(all),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows() {
        let cells = |slice: Value| -> Vec<Value> {
            (resource().row)(&slice, "2024-01-01T00:00:01Z".parse().unwrap())
        };
        let row = cells(json!({"metadata": {"name": "web-x"}, "addressType": "IPv4",
            "ports": [{"port": 80}, {"name": "a"}, {}],
            "endpoints": [{"addresses": ["10.42.0.2"]}, {"addresses": ["10.42.0.3"]}]}));
        assert_eq!(
            json!(row[..4]),
            json!(["web-x", "IPv4", "80,a,*", "10.42.0.2,10.42.0.3"])
        );
        assert_eq!(json!(cells(json!({}))[2..4]), json!(["<unset>", "<unset>"]));
    }

    #[test]
    fn wrong_slices_are_refused() {
        let slice = json!({"addressType": "IPv4",
            "endpoints": [{"addresses": ["fd00::1"]}, {"addresses": []}],
            "ports": [{"name": "a", "protocol": "TCP"}, {"name": "a", "protocol": "TCP", "port": 0}]});
        let said: Vec<String> = validate(&slice)
            .into_iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect();
        assert_eq!(
            said,
            [
                r#"endpoints[0].addresses[0]: Invalid value: "fd00::1": must be a valid IPv4 address"#,
                "endpoints[1].addresses: Required value: must contain at least 1 address",
                r#"ports[1].name: Duplicate value: "a""#,
                "ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ]
        );
    }
}
