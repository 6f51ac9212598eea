//! What a pod is to a Service: an address with its state, and the ports that it serves.

use k8s_openapi::api::core::v1::{Container, Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::controllers::pod_state::{is_finished, is_ready, node_name};

const ZONE: &str = "topology.kubernetes.io/zone";

/// Whether a pod has a place behind Services at all: it has an address, and will run.
pub(super) fn is_addressable(pod: &Pod) -> bool {
    !is_finished(pod) && address(pod).is_some()
}

/// The pod's IPv4 address.
pub(super) fn address(pod: &Pod) -> Option<&str> {
    let status = pod.status.as_ref()?;
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    all.chain(status.pod_ip.as_deref())
        .find(|ip| ip.parse::<std::net::Ipv4Addr>().is_ok())
}

pub(super) fn publishes_not_ready(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|s| s.publish_not_ready_addresses) == Some(true)
}

pub(super) fn is_headless(service: &Service) -> bool {
    let address = service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref());
    matches!(address, None | Some("" | "None"))
}

/// The pod as an endpoint of the Service.
pub(super) fn endpoint(service: &Service, pod: &Pod, node: Option<&Node>) -> Endpoint {
    let serving = is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = publishes_not_ready(service) || (serving && !terminating);
    let labels = node.and_then(|node| node.metadata.labels.as_ref());
    let zone = labels.and_then(|labels| labels.get(ZONE));
    let zone = zone.filter(|zone| !zone.is_empty()).cloned();
    let node_name = node_name(pod).map(str::to_string);
    Endpoint {
        addresses: address(pod).map(str::to_string).into_iter().collect(),
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: ready
            .then(|| hints(service, zone.as_deref(), node_name.as_deref()))
            .flatten(),
        hostname: hostname(service, pod).map(str::to_string),
        node_name,
        target_ref: Some(reference(pod)),
        zone,
        ..Default::default()
    }
}

pub(super) fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_string()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// The pod's name below the Service's, where it asked for one.
pub(super) fn hostname<'p>(service: &Service, pod: &'p Pod) -> Option<&'p str> {
    let spec = pod.spec.as_ref()?;
    let same_name = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    let hostname = spec.hostname.as_deref().filter(|name| !name.is_empty());
    hostname.filter(|_| same_name && pod.metadata.namespace == service.metadata.namespace)
}

/// Whom an endpoint is best for, as the Service's `trafficDistribution` wants it.
fn hints(service: &Service, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let spec = service.spec.as_ref()?;
    let for_zones = zone.map(|zone| {
        vec![ForZone {
            name: zone.to_string(),
        }]
    });
    match spec.traffic_distribution.as_deref()? {
        "PreferClose" | "PreferSameZone" => for_zones.map(|for_zones| EndpointHints {
            for_zones: Some(for_zones),
            ..Default::default()
        }),
        "PreferSameNode" => {
            let node = node?.to_string();
            Some(EndpointHints {
                for_nodes: Some(vec![ForNode { name: node }]),
                for_zones,
            })
        }
        _ => None,
    }
}

/// The ports at which the pod serves the Service's; a named port that the pod does not have is
/// left out.
pub(super) fn ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let ports = spec.ports.iter().flatten();
    ports
        .filter_map(|port| {
            Some(EndpointPort {
                app_protocol: port.app_protocol.clone(),
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(pod, port)?),
                protocol: Some(protocol(port.protocol.as_deref()).to_string()),
            })
        })
        .collect()
}

fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let found = |container: &Container| {
        let mut ports = container.ports.iter().flatten();
        let found = ports.find(|p| {
            p.name.as_ref() == Some(name)
                && protocol(p.protocol.as_deref()) == protocol(port.protocol.as_deref())
        });
        found.map(|p| p.container_port)
    };
    spec.containers.iter().chain(sidecars).find_map(found)
}

fn protocol(given: Option<&str>) -> &str {
    given.filter(|text| !text.is_empty()).unwrap_or("TCP")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn service(spec: serde_json::Value) -> Service {
        let object = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    fn pod(spec: serde_json::Value) -> Pod {
        let mut object = json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u"},
            "spec": {"nodeName": "n", "containers": [
                {"name": "c", "ports": [{"name": "http", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"}]},
            ]},
            "status": {"phase": "Running", "podIP": "10.42.0.2", "podIPs": [{"ip": "10.42.0.2"}],
                "conditions": [{"type": "Ready", "status": "True"}]},
        });
        for (key, value) in spec.as_object().unwrap() {
            object["spec"][key] = value.clone();
        }
        serde_json::from_value(object).unwrap()
    }

    fn conditions(endpoint: &Endpoint) -> [Option<bool>; 3] {
        let conditions = endpoint.conditions.as_ref().unwrap();
        [conditions.ready, conditions.serving, conditions.terminating]
    }

    #[test]
    fn a_pod_that_is_deleted_is_not_ready_but_may_serve() {
        let plain = service(json!({}));
        let mut pod = pod(json!({}));
        let yes_no = |a, b, c| [Some(a), Some(b), Some(c)];
        assert_eq!(
            conditions(&endpoint(&plain, &pod, None)),
            yes_no(true, true, false)
        );
        let now = "2026-01-01T00:00:00Z".parse::<jiff::Timestamp>().unwrap();
        pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
        assert_eq!(
            conditions(&endpoint(&plain, &pod, None)),
            yes_no(false, true, true)
        );
        let published = service(json!({"publishNotReadyAddresses": true}));
        assert_eq!(
            conditions(&endpoint(&published, &pod, None)),
            yes_no(true, true, true)
        );
        pod.status.as_mut().unwrap().conditions = None;
        assert_eq!(
            conditions(&endpoint(&plain, &pod, None)),
            yes_no(false, false, true)
        );
    }

    #[test]
    fn named_ports_are_the_pods_own() {
        let service = service(json!({"ports": [
            {"name": "a", "port": 80, "targetPort": "http"},
            {"name": "b", "port": 81, "targetPort": "dns"},
            {"name": "c", "port": 82, "targetPort": 9000, "appProtocol": "http"},
            {"name": "d", "port": 53, "targetPort": "dns", "protocol": "UDP"},
        ]}));
        let ports = ports(&service, &pod(json!({})));
        let numbers: Vec<(&str, i32)> = ports
            .iter()
            .map(|p| (p.name.as_deref().unwrap(), p.port.unwrap()))
            .collect();
        assert_eq!(numbers, [("a", 8080), ("c", 9000), ("d", 53)]);
    }

    #[test]
    fn a_hostname_belongs_to_the_service_of_that_name() {
        let service = service(json!({}));
        let named = |subdomain: &str| pod(json!({"hostname": "db-0", "subdomain": subdomain}));
        assert_eq!(hostname(&service, &named("web")), Some("db-0"));
        assert_eq!(hostname(&service, &named("other")), None);
        assert_eq!(hostname(&service, &pod(json!({"subdomain": "web"}))), None);
    }

    #[test]
    fn zones_and_hints() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"labels": {ZONE: "z1"}}})).unwrap();
        let service = service(json!({"trafficDistribution": "PreferSameNode"}));
        let endpoint = endpoint(&service, &pod(json!({})), Some(&node));
        assert_eq!(endpoint.zone.as_deref(), Some("z1"));
        let hints = json!(endpoint.hints.unwrap());
        assert_eq!(
            hints,
            json!({"forNodes": [{"name": "n"}], "forZones": [{"name": "z1"}]})
        );
    }
}
