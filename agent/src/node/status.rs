//! A Node's labels and status, as the kubelet writes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
    NodeSwapStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::jiff::Timestamp;
use skiff_images::Image;

use super::NodeConfig;
use super::host::{Host, Pressure};
use crate::pod::status::seconds;

/// What `kubectl get nodes` shows as VERSION: the Kubernetes version whose behaviour this is.
pub(crate) const KUBELET_VERSION: &str = "v1.37.0+skiff";
/// Memory that pods may not use, as the kubelet's `memory.available<100Mi`.
const RESERVED_MEMORY: i64 = 100 << 20;
/// Images that a status lists, the largest first, as many as the kubelet lists.
const MAX_IMAGES: usize = 50;
/// Names of one image, as `MaxNamesPerImageInNodeStatus` of the kubelet.
const MAX_IMAGE_NAMES: usize = 5;

/// The labels that every node has, and those that were asked for.
pub(super) fn labels(config: &NodeConfig, host: &Host) -> BTreeMap<String, String> {
    let mut labels = config.labels.clone();
    for (key, value) in [
        ("beta.kubernetes.io/arch", host.architecture),
        ("beta.kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", host.architecture),
        ("kubernetes.io/hostname", config.name.as_str()),
        ("kubernetes.io/os", "linux"),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
    labels
}

/// Bytes of memory that pods may use.
pub(crate) fn allocatable_memory(host: &Host) -> i64 {
    (host.memory_bytes - RESERVED_MEMORY).max(0)
}

/// The status of the node. `last` gives the conditions their transition times.
pub(super) fn compute(
    config: &NodeConfig,
    host: &Host,
    images: &[Arc<Image>],
    pressure: Pressure,
    last: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeStatus {
    let capacity = capacity(config, host);
    let mut allocatable = capacity.clone();
    let kib = |bytes: i64| Quantity(format!("{}Ki", bytes >> 10));
    allocatable.insert("memory".into(), kib(allocatable_memory(host)));
    // `nodefs.available<10%` is kept free.
    let storage = Quantity((host.storage_bytes / 10 * 9).to_string());
    allocatable.insert("ephemeral-storage".into(), storage);
    NodeStatus {
        addresses: Some(vec![
            address("InternalIP", config.address.to_string()),
            address("Hostname", config.name.clone()),
        ]),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        conditions: Some(conditions(pressure, last, now)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint {
                port: i32::from(config.port),
            }),
        }),
        images: Some(listed(images)),
        node_info: Some(node_info(host)),
        ..NodeStatus::default()
    }
}

fn address(type_: &str, address: String) -> NodeAddress {
    NodeAddress {
        address,
        type_: type_.to_owned(),
    }
}

fn capacity(config: &NodeConfig, host: &Host) -> BTreeMap<String, Quantity> {
    let mut capacity = BTreeMap::new();
    let mut put = |name: &str, text: String| capacity.insert(name.to_owned(), Quantity(text));
    put("cpu", host.cpus.to_string());
    put("memory", format!("{}Ki", host.memory_bytes >> 10));
    put("pods", config.max_pods.to_string());
    put(
        "ephemeral-storage",
        format!("{}Ki", host.storage_bytes >> 10),
    );
    for (size, bytes) in &host.huge_pages {
        put(&format!("hugepages-{size}"), bytes.to_string());
    }
    capacity
}

fn node_info(host: &Host) -> NodeSystemInfo {
    NodeSystemInfo {
        architecture: host.architecture.to_owned(),
        boot_id: host.boot_id.clone(),
        container_runtime_version: concat!("skiff://", env!("CARGO_PKG_VERSION")).to_owned(),
        kernel_version: host.kernel.clone(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: host.machine_id.clone(),
        operating_system: "linux".to_owned(),
        os_image: host.os_image.clone(),
        system_uuid: host.system_uuid.clone(),
        swap: (host.swap_bytes > 0).then_some(NodeSwapStatus {
            capacity: Some(host.swap_bytes),
        }),
        ..NodeSystemInfo::default()
    }
}

fn listed(images: &[Arc<Image>]) -> Vec<ContainerImage> {
    let mut images: Vec<_> = images.iter().collect();
    images.sort_by_key(|image| std::cmp::Reverse(image.size));
    images.iter().take(MAX_IMAGES).map(|i| named(i)).collect()
}

/// An image by its digests, then its tags.
fn named(image: &Image) -> ContainerImage {
    let digests = image.repo_digests();
    let tags = image.references.iter().filter(|name| name.tag().is_some());
    let names = digests.iter().chain(tags).map(ToString::to_string);
    ContainerImage {
        names: Some(names.take(MAX_IMAGE_NAMES).collect()),
        size_bytes: i64::try_from(image.size).ok(),
    }
}

/// A condition when it is as it should be, and when it is not.
struct Kind {
    type_: &'static str,
    good: (&'static str, &'static str),
    bad: (&'static str, &'static str),
}

const PRESSURES: [Kind; 3] = [
    Kind {
        type_: "MemoryPressure",
        good: (
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        bad: (
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        ),
    },
    Kind {
        type_: "DiskPressure",
        good: ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        bad: ("KubeletHasDiskPressure", "kubelet has disk pressure"),
    },
    Kind {
        type_: "PIDPressure",
        good: (
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        bad: (
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
        ),
    },
];

fn conditions(pressure: Pressure, last: Option<&NodeStatus>, now: Timestamp) -> Vec<NodeCondition> {
    let states = [pressure.memory, pressure.disk, pressure.pids];
    let mut conditions: Vec<_> = PRESSURES
        .iter()
        .zip(states)
        .map(|(kind, bad)| {
            let (reason, message) = if bad { kind.bad } else { kind.good };
            let status = if bad { "True" } else { "False" };
            condition(kind.type_, status, reason, message, last, now)
        })
        .collect();
    conditions.push(condition(
        "Ready",
        "True",
        "KubeletReady",
        "kubelet is posting ready status",
        last,
        now,
    ));
    conditions
}

fn condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    last: Option<&NodeStatus>,
    now: Timestamp,
) -> NodeCondition {
    let before = last
        .and_then(|l| l.conditions.as_ref())
        .and_then(|list| list.iter().find(|c| c.type_ == type_ && c.status == status));
    let since = before.and_then(|c| c.last_transition_time.clone());
    NodeCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_heartbeat_time: Some(seconds(now)),
        last_transition_time: since.or_else(|| Some(seconds(now))),
    }
}

/// Whether a status says more than that time went by. Conditions and fields of others in `last`
/// do not count.
pub(super) fn differs(last: &NodeStatus, now: &NodeStatus) -> bool {
    let quiet = |status: &NodeStatus| {
        let mut quiet = status.clone();
        let own = |c: &NodeCondition| {
            c.type_ == "Ready" || PRESSURES.iter().any(|kind| kind.type_ == c.type_)
        };
        let conditions = quiet.conditions.take().unwrap_or_default();
        let mut own: Vec<_> = conditions.into_iter().filter(own).collect();
        own.sort_by(|a, b| a.type_.cmp(&b.type_));
        for condition in &mut own {
            condition.last_heartbeat_time = None;
        }
        NodeStatus {
            conditions: Some(own),
            addresses: quiet.addresses,
            allocatable: quiet.allocatable,
            capacity: quiet.capacity,
            daemon_endpoints: quiet.daemon_endpoints,
            images: quiet.images.filter(|i| !i.is_empty()),
            node_info: quiet.node_info,
            ..NodeStatus::default()
        }
    };
    quiet(last) != quiet(now)
}

/// Reasons of the events about conditions that changed.
pub(super) fn transitions(last: &NodeStatus, now: &NodeStatus) -> Vec<&'static str> {
    let status_of = |status: &NodeStatus, type_: &str| {
        let mut all = status.conditions.iter().flatten();
        all.find(|c| c.type_ == type_).map(|c| c.status.clone())
    };
    let mut reasons = Vec::new();
    for type_ in ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"] {
        let (before, after) = (status_of(last, type_), status_of(now, type_));
        if before == after {
            continue;
        }
        let bad = after.as_deref() == Some("True");
        reasons.push(match (type_, bad) {
            ("MemoryPressure", false) => "NodeHasSufficientMemory",
            ("MemoryPressure", true) => "NodeHasInsufficientMemory",
            ("DiskPressure", false) => "NodeHasNoDiskPressure",
            ("DiskPressure", true) => "NodeHasDiskPressure",
            ("PIDPressure", false) => "NodeHasSufficientPID",
            ("PIDPressure", true) => "NodeHasInsufficientPID",
            (_, true) => "NodeReady",
            (_, false) => "NodeNotReady",
        });
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pressure: Pressure, last: Option<&NodeStatus>, second: i64) -> NodeStatus {
        let config = NodeConfig {
            name: "n1".into(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            address: "10.0.0.1".parse().unwrap(),
            port: 10250,
            pod_cidr: None,
            max_pods: 500,
        };
        let host = Host {
            cpus: 2,
            memory_bytes: 1 << 30,
            storage_bytes: 100 << 20,
            huge_pages: vec![("2Mi".into(), 0)],
            ..Host::default()
        };
        let now = Timestamp::from_second(second).unwrap();
        compute(&config, &host, &[], pressure, last, now)
    }

    #[test]
    fn what_pods_may_use_is_less_than_what_there_is() {
        let status = status(Pressure::default(), None, 0);
        let text = |map: &Option<BTreeMap<String, Quantity>>, key: &str| {
            map.as_ref().unwrap()[key].0.clone()
        };
        assert_eq!(text(&status.capacity, "memory"), "1048576Ki");
        assert_eq!(text(&status.allocatable, "memory"), "946176Ki");
        assert_eq!(text(&status.allocatable, "pods"), "500");
        assert_eq!(text(&status.capacity, "hugepages-2Mi"), "0");
    }

    #[test]
    fn only_a_change_is_worth_writing() {
        let first = status(Pressure::default(), None, 100);
        let later = status(Pressure::default(), Some(&first), 200);
        assert!(!differs(&first, &later));
        assert!(transitions(&first, &later).is_empty());
        let short = Pressure {
            memory: true,
            ..Pressure::default()
        };
        let worse = status(short, Some(&later), 300);
        assert!(differs(&later, &worse));
        assert_eq!(transitions(&later, &worse), ["NodeHasInsufficientMemory"]);
        let since = |s: &NodeStatus, i: usize| {
            let at = s.conditions.as_ref().unwrap()[i]
                .last_transition_time
                .clone();
            at.unwrap().0.as_second()
        };
        assert_eq!((since(&worse, 0), since(&worse, 1)), (300, 100));
    }
}
