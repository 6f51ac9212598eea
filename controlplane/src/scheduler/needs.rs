//! What a pod needs of a node, read from its spec once.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Affinity, NodeSelector, Pod, PreferredSchedulingTerm, Toleration,
};

use super::resources::{Resources, requested, requested_for_score};
use crate::controllers::informer::ObjectKey;
use crate::controllers::ownership::controller_ref;

/// What a pod takes from the node that it is on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Footprint {
    pub(super) uid: Arc<str>,
    pub(super) requested: Resources,
    /// For scores: with defaults for containers that request nothing.
    pub(super) scored: Resources,
    pub(super) host_ports: Vec<HostPort>,
    /// The uid of its controller: pods of one owner spread over nodes.
    pub(super) owner: Option<Arc<str>>,
    pub(super) priority: i32,
}

/// A port of the host that a pod takes for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HostPort {
    /// `0.0.0.0` is every address.
    pub(super) address: String,
    pub(super) protocol: String,
    pub(super) port: i32,
}

impl HostPort {
    pub(super) fn conflicts_with(&self, other: &Self) -> bool {
        const ANY: &str = "0.0.0.0";
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || self.address == ANY || other.address == ANY)
    }
}

/// A pod that looks for a node.
#[derive(Debug)]
pub(super) struct Needs {
    pub(super) key: ObjectKey,
    pub(super) footprint: Arc<Footprint>,
    pub(super) node_selector: Vec<(String, String)>,
    pub(super) required_affinity: Option<NodeSelector>,
    pub(super) preferred_affinity: Vec<PreferredSchedulingTerm>,
    pub(super) tolerations: Vec<Toleration>,
    pub(super) may_preempt: bool,
}

impl Footprint {
    pub(super) fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        Self {
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            requested: requested(pod),
            scored: requested_for_score(pod),
            host_ports: host_ports(pod),
            owner: controller_ref(pod).map(|owner| owner.uid.as_str().into()),
            priority: spec.and_then(|spec| spec.priority).unwrap_or(0),
        }
    }
}

impl Needs {
    pub(super) fn of(pod: &Pod) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let Affinity { node_affinity, .. } = spec.affinity.unwrap_or_default();
        let node_affinity = node_affinity.unwrap_or_default();
        Self {
            key: ObjectKey::of(pod),
            footprint: Arc::new(Footprint::of(pod)),
            node_selector: spec.node_selector.unwrap_or_default().into_iter().collect(),
            required_affinity: node_affinity.required_during_scheduling_ignored_during_execution,
            preferred_affinity: node_affinity
                .preferred_during_scheduling_ignored_during_execution
                .unwrap_or_default(),
            tolerations: spec.tolerations.unwrap_or_default(),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
        }
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    spec.containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let address = port.host_ip.as_deref().filter(|ip| !ip.is_empty());
            Some(HostPort {
                address: address.unwrap_or("0.0.0.0").into(),
                protocol: port.protocol.as_deref().unwrap_or("TCP").into(),
                port: number,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(address: &str, protocol: &str, port: i32) -> HostPort {
        HostPort {
            address: address.into(),
            protocol: protocol.into(),
            port,
        }
    }

    #[test]
    fn a_port_on_every_address_conflicts_with_each() {
        let any = port("0.0.0.0", "TCP", 80);
        assert!(any.conflicts_with(&port("10.0.0.1", "TCP", 80)));
        assert!(port("10.0.0.1", "TCP", 80).conflicts_with(&any));
        assert!(!any.conflicts_with(&port("0.0.0.0", "UDP", 80)));
        assert!(!any.conflicts_with(&port("0.0.0.0", "TCP", 81)));
        assert!(!port("10.0.0.1", "TCP", 80).conflicts_with(&port("10.0.0.2", "TCP", 80)));
    }
}
