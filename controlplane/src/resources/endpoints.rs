//! Endpoints: the addresses behind a Service, as clients from before EndpointSlices read them.

use std::net::IpAddr;

use serde_json::Value;

use super::error::{invalid, not_supported, required};
use super::object::{default_zero, integer, is_set, items_mut, list, text};
use super::print::{AGE, NAME, age, column, name};
use super::services::special_address;
use super::{Column, FieldError, Hooks, Resource, metadata, syntax};

const COLUMNS: &[Column] = &[
    NAME,
    column("Endpoints", "string", "The first addresses and ports."),
    AGE,
];
const DEPRECATED: &str =
    "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice";

/// How many addresses a row shows.
const SHOWN: usize = 3;

pub(super) fn resource() -> Resource {
    Resource {
        singular: "endpoints",
        short_names: &["ep"],
        deprecated: Some(DEPRECATED),
        hooks: Hooks {
            default: |endpoints| {
                for subset in items_mut(endpoints, "subsets") {
                    for port in items_mut(subset, "ports") {
                        default_zero(port, "protocol", "TCP");
                    }
                }
            },
            validate,
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row: |endpoints, now| {
            vec![
                name(endpoints),
                addresses(endpoints).into(),
                age(endpoints, now),
            ]
        },
        ..Resource::namespaced(
            "",
            "v1",
            "Endpoints",
            "endpoints",
            "io.k8s.api.core.v1.Endpoints",
        )
    }
}

fn validate(endpoints: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(endpoints);
    for (index, subset) in list(endpoints, "subsets").iter().enumerate() {
        let path = format!("subsets[{index}]");
        let kinds = ["addresses", "notReadyAddresses"];
        if kinds.iter().all(|kind| list(subset, kind).is_empty()) {
            let why = "must specify `addresses` or `notReadyAddresses`";
            errors.push(required(&path, why));
        }
        for kind in kinds {
            for (index, address) in list(subset, kind).iter().enumerate() {
                errors.extend(address_faults(address, &format!("{path}.{kind}[{index}]")));
            }
        }
        let ports = list(subset, "ports");
        for (index, port) in ports.iter().enumerate() {
            let path = format!("{path}.ports[{index}]");
            errors.extend(port_faults(port, &path, ports.len() > 1));
        }
    }
    errors
}

fn address_faults(address: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let ip = text(address, "ip");
    let fault = match ip.parse::<IpAddr>() {
        Ok(address) => special_address(address),
        Err(_) => Some("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_string()),
    };
    errors.extend(fault.map(|why| invalid(&format!("{path}.ip"), &ip.into(), &why)));
    for field in ["hostname", "nodeName"] {
        let given = text(address, field);
        let faults = match field {
            _ if given.is_empty() => Vec::new(),
            "hostname" => syntax::dns_label(given),
            _ => syntax::dns_subdomain(given),
        };
        let path = format!("{path}.{field}");
        errors.extend(faults.iter().map(|why| invalid(&path, &given.into(), why)));
    }
    errors
}

fn port_faults(port: &Value, path: &str, named: bool) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let name = text(port, "name");
    if named && name.is_empty() {
        errors.push(required(&format!("{path}.name"), ""));
    } else if !name.is_empty() {
        let faults = syntax::dns_label(name);
        errors.extend(
            faults
                .iter()
                .map(|why| invalid(&format!("{path}.name"), &name.into(), why)),
        );
    }
    let number = integer(port, "port");
    let faults = syntax::port_number(number);
    errors.extend(
        faults
            .iter()
            .map(|why| invalid(&format!("{path}.port"), &number.into(), why)),
    );
    let protocol = text(port, "protocol");
    if !matches!(protocol, "SCTP" | "TCP" | "UDP") {
        let path = format!("{path}.protocol");
        errors.push(not_supported(&path, protocol, &["SCTP", "TCP", "UDP"]));
    }
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

/// The first ready addresses with their ports: `10.42.0.2:80,10.42.0.3:80 + 1 more...`.
fn addresses(endpoints: &Value) -> String {
    let subsets = list(endpoints, "subsets");
    if subsets.is_empty() {
        return "<none>".into();
    }
    let mut all = Vec::new();
    for subset in subsets {
        let ips = || list(subset, "addresses").iter().map(|a| text(a, "ip"));
        match list(subset, "ports") {
            [] => all.extend(ips().map(str::to_string)),
            ports => {
                for port in ports {
                    let port = integer(port, "port");
                    all.extend(ips().map(|ip| format!("{ip}:{port}")));
                }
            }
        }
    }
    first(all)
}

/// The first few, and how many more there are.
pub(super) fn first(mut all: Vec<String>) -> String {
    let more = all.len().saturating_sub(SHOWN);
    all.truncate(SHOWN);
    let shown = all.join(",");
    match more {
        0 => shown,
        more => format!("{shown} + {more} more..."),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_three_addresses_are_shown() {
        let ips = |n: u8| -> Value {
            (2..2 + n)
                .map(|i| json!({"ip": format!("10.42.0.{i}")}))
                .collect()
        };
        assert_eq!(addresses(&json!({})), "<none>");
        let not_ready =
            json!({"subsets": [{"notReadyAddresses": ips(1), "ports": [{"port": 80}]}]});
        assert_eq!(addresses(&not_ready), "");
        let many = json!({"subsets": [{"addresses": ips(5), "ports": [{"port": 80}]}]});
        assert_eq!(
            addresses(&many),
            "10.42.0.2:80,10.42.0.3:80,10.42.0.4:80 + 2 more..."
        );
        assert_eq!(
            addresses(&json!({"subsets": [{"addresses": ips(1)}]})),
            "10.42.0.2"
        );
    }

    #[test]
    fn wrong_subsets_are_refused() {
        let said = |subset: Value| -> Vec<String> {
            let errors = validate(&json!({"subsets": [subset]})).into_iter();
            errors
                .map(|e| format!("{}: {}", e.field, e.message))
                .collect()
        };
        assert_eq!(
            said(json!({"ports": [{"port": 80, "protocol": "TCP"}]})),
            ["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"]
        );
        assert_eq!(
            said(
                json!({"addresses": [{"ip": "127.0.0.1"}], "ports": [{"port": 0, "protocol": "TCP"}]})
            ),
            [
                r#"subsets[0].addresses[0].ip: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)"#,
                "subsets[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ]
        );
    }
}
