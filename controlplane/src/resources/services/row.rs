//! How a Service prints.

use jiff::Timestamp;
use serde_json::Value;

use crate::resources::Column;
use crate::resources::object::{at, integer, list, text};
use crate::resources::print::{AGE, NAME, age, column, labels, name, or_none, wide};

pub(super) const COLUMNS: &[Column] = &[
    NAME,
    column("Type", "string", "How the service is reached."),
    column("Cluster-IP", "string", "Its address inside the cluster."),
    column("External-IP", "string", "Its address for the outside."),
    column("Port(s)", "string", "Its ports, with the nodes' ports."),
    AGE,
    wide("Selector", "string", "Which pods serve it."),
];

pub(super) fn row(service: &Value, now: Timestamp) -> Vec<Value> {
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

    fn cells(spec: Value, status: Value) -> Vec<Value> {
        let service = json!({"metadata": {"name": "web"}, "spec": spec, "status": status});
        row(&service, "2024-01-01T00:00:01Z".parse().unwrap())
    }

    #[test]
    fn every_type_has_its_row() {
        let ports = json!([{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"}]);
        let spec = json!({"type": "NodePort", "clusterIP": "10.43.0.9", "ports": ports, "selector": {"app": "web"}});
        let row = cells(spec.clone(), Value::Null);
        assert_eq!(
            json!(row[1..5]),
            json!(["NodePort", "10.43.0.9", "<none>", "80:30080/TCP,53/UDP"])
        );
        assert_eq!(row[6], "app=web");
        let mut spec = spec;
        spec["type"] = json!("LoadBalancer");
        assert_eq!(cells(spec.clone(), Value::Null)[3], "<pending>");
        let status =
            json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "lb.example"}]}});
        assert_eq!(cells(spec, status)[3], "192.0.2.1,lb.example");
        let row = cells(
            json!({"type": "ExternalName", "externalName": "a.example"}),
            Value::Null,
        );
        assert_eq!(json!(row[2..5]), json!(["<none>", "a.example", "<none>"]));
        let row = cells(
            json!({"type": "ClusterIP", "clusterIP": "None"}),
            Value::Null,
        );
        assert_eq!(row[2], "None");
    }
}
