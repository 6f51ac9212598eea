//! Services.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::error::{duplicate, invalid, not_supported, required};
use super::object::{
    at, carry_over, default, default_zero, ensure, integer, is_set, items_mut, list, text,
};
use super::print::{AGE, NAME, age, column, labels, name, or_none, wide};
use super::{Column, FieldError, Hooks, Resource, SelectableField, metadata, syntax};

const COLUMNS: &[Column] = &[
    NAME,
    column("Type", "string", "How the service is reached."),
    column("Cluster-IP", "string", "Its address inside the cluster."),
    column("External-IP", "string", "Its address for the outside."),
    column("Port(s)", "string", "Its ports, with the nodes' ports."),
    AGE,
    wide("Selector", "string", "Which pods serve it."),
];

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
            default: default_service,
            prepare_create: |service| service["status"] = json!({"loadBalancer": {}}),
            prepare_update,
            validate,
            validate_update,
            ..Hooks::NONE
        },
        columns: COLUMNS,
        row,
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

fn default_service(service: &mut Value) {
    let spec = ensure(service, "spec");
    default_zero(spec, "sessionAffinity", "None");
    default_zero(spec, "type", "ClusterIP");
    if text(spec, "sessionAffinity") == "ClientIP" {
        let config = ensure(ensure(spec, "sessionAffinityConfig"), "clientIP");
        default(config, "timeoutSeconds", 10_800);
    }
    let kind = text(spec, "type").to_string();
    if kind != "ExternalName" {
        default(spec, "internalTrafficPolicy", "Cluster");
        default(spec, "ipFamilyPolicy", "SingleStack");
        default(spec, "ipFamilies", json!(["IPv4"]));
        let address = spec["clusterIP"].clone();
        if address.is_string() && address != "" {
            default(spec, "clusterIPs", json!([address]));
        }
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        default_zero(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" {
        default(spec, "allocateLoadBalancerNodePorts", true);
    }
    for port in items_mut(spec, "ports") {
        default_zero(port, "protocol", "TCP");
        let number = port["port"].clone();
        default_zero(port, "targetPort", number);
    }
}

/// An update that leaves the address out keeps it.
fn prepare_update(new: &mut Value, old: &Value) {
    carry_over(new, old, "status");
    if text(new, "spec.type") == "ExternalName" || text(old, "spec.type") == "ExternalName" {
        return;
    }
    for field in ["clusterIP", "clusterIPs"] {
        if !is_set(&new["spec"], field) {
            let kept = at(&old["spec"], field);
            if !kept.is_null() {
                new["spec"][field] = kept.clone();
            }
        }
    }
}

fn validate(service: &Value) -> Vec<FieldError> {
    let mut errors = metadata::validate(service);
    let spec = &service["spec"];
    let kind = text(spec, "type");
    if !matches!(
        kind,
        "ClusterIP" | "NodePort" | "LoadBalancer" | "ExternalName"
    ) {
        errors.push(not_supported(
            "spec.type",
            kind,
            &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        ));
    }
    if list(spec, "ports").is_empty() && kind != "ExternalName" && text(spec, "clusterIP") != "None"
    {
        errors.push(required("spec.ports", ""));
    }
    if kind == "ExternalName" && text(spec, "externalName").is_empty() {
        errors.push(required("spec.externalName", ""));
    }
    errors.extend(metadata::labels(at(spec, "selector"), "spec.selector"));
    let affinity = text(spec, "sessionAffinity");
    if !matches!(affinity, "ClientIP" | "None") {
        errors.push(not_supported(
            "spec.sessionAffinity",
            affinity,
            &["ClientIP", "None"],
        ));
    }
    errors.extend(ports(spec));
    errors
}

fn ports(spec: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let all = list(spec, "ports");
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
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
        let faults = syntax::port_number(integer(port, "port"));
        errors.extend(
            faults
                .iter()
                .map(|why| invalid(&format!("{path}.port"), &integer(port, "port").into(), why)),
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
                .map(|why| invalid(&format!("{path}.targetPort"), &port["targetPort"], why)),
        );
        if !numbers.insert((protocol, integer(port, "port"))) {
            let key = json!({"port": port["port"], "protocol": protocol});
            errors.push(duplicate(&path, &key));
        }
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let external = |service| text(service, "spec.type") == "ExternalName";
    let had = text(old, "spec.clusterIP");
    if external(new) || external(old) || had.is_empty() || text(new, "spec.clusterIP") == had {
        return Vec::new();
    }
    let given = json!([text(new, "spec.clusterIP")]);
    vec![invalid(
        "spec.clusterIPs[0]",
        &given,
        "may not change once set",
    )]
}

fn row(service: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        name(service),
        text(service, "spec.type").into(),
        or_none(text(service, "spec.clusterIP")),
        external_address(service).into(),
        port_list(service).into(),
        age(service, now),
        labels(at(service, "spec.selector")).into(),
    ]
}

fn external_address(service: &Value) -> String {
    let given: Vec<&str> = list(service, "spec.externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    let balancer = || {
        let points = list(service, "status.loadBalancer.ingress").iter();
        points.map(|p| match text(p, "ip") {
            "" => text(p, "hostname"),
            ip => ip,
        })
    };
    let found = match text(service, "spec.type") {
        "ExternalName" => return text(service, "spec.externalName").to_string(),
        "LoadBalancer" => balancer().chain(given).collect::<Vec<_>>(),
        _ => given,
    };
    match (found.is_empty(), text(service, "spec.type")) {
        (true, "LoadBalancer") => "<pending>".into(),
        (true, _) => "<none>".into(),
        _ => found.join(","),
    }
}

fn port_list(service: &Value) -> String {
    let ports = list(service, "spec.ports");
    let one = |port: &Value| match integer(port, "nodePort") {
        0 => format!("{}/{}", integer(port, "port"), text(port, "protocol")),
        node => format!(
            "{}:{node}/{}",
            integer(port, "port"),
            text(port, "protocol")
        ),
    };
    if ports.is_empty() {
        "<none>".into()
    } else {
        ports.iter().map(one).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn defaults_and_row() {
        let mut service = json!({"metadata": {"name": "web", "creationTimestamp": "2024-01-01T00:00:00Z"},
            "spec": {"selector": {"app": "nginx"}, "ports": [{"port": 80}]}});
        default_service(&mut service);
        assert_eq!(
            service["spec"],
            json!({"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack", "selector": {"app": "nginx"},
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]})
        );
        assert_eq!(validate(&service), []);
        let cells = row(&service, "2024-01-01T00:00:01Z".parse().unwrap());
        assert_eq!(
            json!(cells),
            json!([
                "web",
                "ClusterIP",
                "<none>",
                "<none>",
                "80/TCP",
                "1s",
                "app=nginx"
            ])
        );
    }

    #[test]
    fn several_ports_need_names() {
        let mut service = json!({"spec": {"ports": [{"port": 80}, {"port": 0, "name": "b"}]}});
        default_service(&mut service);
        let said: Vec<String> = validate(&service)
            .iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect();
        assert_eq!(said[0], "spec.ports[0].name: Required value");
        assert_eq!(
            said[1],
            "spec.ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive"
        );
    }
}
