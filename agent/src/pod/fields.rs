//! `fieldRef` and `resourceFieldRef`: what a pod may learn about itself, through its environment
//! and through downward API volumes.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use super::resources::{self, Bound};
use crate::quantity;

/// What the node adds to the pod's own object.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    pub node_name: String,
    pub host_ips: Vec<IpAddr>,
    /// Thousandths of a CPU that pods may use.
    pub allocatable_milli_cpu: i64,
    /// Bytes that pods may use.
    pub allocatable_memory: i64,
}

/// The value of a `fieldPath`.
///
/// # Errors
/// The kubelet's words when the path is not one that a pod may use.
pub fn field(
    pod: &Pod,
    pod_ips: &[IpAddr],
    node: &NodeFacts,
    path: &str,
) -> Result<String, String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(format!("invalid fieldPath with subscript: {path}")),
        };
        return Ok(map.and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let joined = |ips: &[IpAddr]| {
        let ips: Vec<String> = ips.iter().map(ToString::to_string).collect();
        ips.join(",")
    };
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => node.node_name.clone(),
        "spec.serviceAccountName" => spec
            .and_then(|s| s.service_account_name.clone())
            .unwrap_or_default(),
        "status.hostIP" => first(&node.host_ips),
        "status.hostIPs" => joined(&node.host_ips),
        "status.podIP" => first(pod_ips),
        "status.podIPs" => joined(pod_ips),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    })
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// A map as downward API files have it: `key="value"` lines, sorted.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={v:?}"))
        .collect();
    lines.join("\n")
}

/// The value of a `resourceFieldRef`, in units of its divisor, rounded up. A missing limit is
/// what the node can give.
///
/// # Errors
/// The kubelet's words when the resource or the container does not exist.
pub fn resource_field(
    pod: &Pod,
    container: &Container,
    node: &NodeFacts,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let container = match &selector.container_name {
        Some(name) if !name.is_empty() => {
            find(pod, name).ok_or_else(|| format!("container {name} not found"))?
        }
        _ => container,
    };
    let unsupported = || format!("unsupported container resource : {}", selector.resource);
    let (bound, resource) = match selector.resource.split_once('.') {
        Some(("limits", resource)) => (Bound::Limit, resource),
        Some(("requests", resource)) => (Bound::Request, resource),
        _ => return Err(unsupported()),
    };
    let fallback = match (bound, resource) {
        (Bound::Limit, "cpu") => node.allocatable_milli_cpu,
        (Bound::Limit, "memory") => node.allocatable_memory,
        (_, "cpu" | "memory" | "ephemeral-storage") => 0,
        (_, other) if other.starts_with("hugepages-") => 0,
        _ => return Err(unsupported()),
    };
    let value = resources::amount(container, bound, resource).unwrap_or(fallback);
    let divisor = selector
        .divisor
        .as_ref()
        .and_then(|d| {
            if resource == "cpu" {
                quantity::milli(d)
            } else {
                quantity::units(d)
            }
        })
        .filter(|d| *d > 0)
        .unwrap_or(if resource == "cpu" { 1000 } else { 1 });
    Ok((value.div_euclid(divisor) + i64::from(value.rem_euclid(divisor) != 0)).to_string())
}

fn find<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .find(|c| c.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u1",
                "labels": {"app": "nginx", "tier": "a"}},
            "spec": {"containers": [{"name": "c", "resources": {
                "requests": {"cpu": "250m"}, "limits": {"memory": "65Mi"}}}]},
        }))
        .unwrap()
    }

    #[test]
    fn fields() {
        let node = NodeFacts {
            node_name: "n1".into(),
            host_ips: vec!["10.0.0.1".parse().unwrap()],
            ..NodeFacts::default()
        };
        let ips = ["10.1.0.2".parse().unwrap()];
        for (path, value) in [
            ("metadata.name", "web"),
            ("metadata.labels", "app=\"nginx\"\ntier=\"a\""),
            ("metadata.labels['app']", "nginx"),
            ("metadata.annotations['none']", ""),
            ("spec.nodeName", "n1"),
            ("status.hostIP", "10.0.0.1"),
            ("status.podIP", "10.1.0.2"),
        ] {
            assert_eq!(
                field(&pod(), &ips, &node, path).as_deref(),
                Ok(value),
                "{path}"
            );
        }
        assert!(field(&pod(), &ips, &node, "spec.containers").is_err());
    }

    #[test]
    fn resource_fields_round_up_and_fall_back_to_the_node() {
        let pod = pod();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let node = NodeFacts {
            allocatable_milli_cpu: 2000,
            ..NodeFacts::default()
        };
        let value = |resource: &str, divisor: &str| {
            let selector =
                serde_json::from_value(json!({"resource": resource, "divisor": divisor}));
            resource_field(&pod, container, &node, &selector.unwrap()).unwrap()
        };
        assert_eq!(value("requests.cpu", "0"), "1");
        assert_eq!(value("requests.cpu", "1m"), "250");
        assert_eq!(value("limits.cpu", "1"), "2");
        assert_eq!(value("limits.memory", "1Mi"), "65");
        assert_eq!(value("limits.memory", "10Mi"), "7");
    }
}
