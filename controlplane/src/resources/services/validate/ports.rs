//! A Service's ports.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::resources::error::{duplicate, forbidden, invalid, not_supported, required};
use crate::resources::object::{at, integer, is_set, list, text};
use crate::resources::{FieldError, syntax};

pub(super) fn ports(service: &Value) -> Vec<FieldError> {
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
