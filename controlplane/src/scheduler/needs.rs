//! What a pod needs of a node, read from its spec once.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    NodeSelector, Pod, PreferredSchedulingTerm, Toleration, TopologySpreadConstraint,
};

use super::likeness::{Likeness, PodSelector};
use super::resources::{Resources, requested, requested_for_score};
use crate::controllers::informer::ObjectKey;
use crate::controllers::ownership::controller_ref;
use crate::controllers::pod_state::condition;

/// What a victim of preemption is told in its condition `DisruptionTarget`.
pub(super) const PREEMPTED: &str = "PreemptionByScheduler";

/// What a pod takes from the node that it is on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Footprint {
    pub(super) key: ObjectKey,
    pub(super) uid: Arc<str>,
    pub(super) likeness: Arc<Likeness>,
    pub(super) requested: Resources,
    /// For scores: with defaults for containers that request nothing.
    pub(super) scored: Resources,
    pub(super) host_ports: Vec<HostPort>,
    /// The images of its containers, as nodes name them.
    pub(super) images: Vec<String>,
    pub(super) priority: i32,
    /// When its node began with it.
    pub(super) started: Option<Timestamp>,
    pub(super) stay: Stay,
}

/// Whether a pod stays where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stay {
    Stays,
    /// It is being deleted.
    Leaves,
    /// It is being deleted because a more important pod needs its place.
    MakesRoom,
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
    /// How its like are to spread over nodes, as its spec says.
    pub(super) spread: Vec<SpreadConstraint>,
    /// The ReplicaSet that it belongs to, by name: its pods spread where nothing else is said.
    pub(super) replica_set: Option<Arc<str>>,
    pub(super) may_preempt: bool,
}

/// How evenly pods spread over places.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SpreadConstraint {
    pub(super) max_skew: i64,
    /// Nodes are one place that have the same value of this label.
    pub(super) topology_key: String,
    /// Which pods are counted, in the pod's own namespace.
    pub(super) selector: PodSelector,
    /// With fewer places than this, the emptiest counts as having none.
    pub(super) min_domains: usize,
    pub(super) is_required: bool,
    /// Nodes that the pod's node affinity rules out don't count.
    pub(super) honors_affinity: bool,
    /// Nodes with taints that the pod doesn't tolerate don't count.
    pub(super) honors_taints: bool,
}

impl Footprint {
    pub(super) fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
        Self {
            key: ObjectKey::of(pod),
            uid: pod.metadata.uid.as_deref().unwrap_or_default().into(),
            likeness: Likeness::of(pod),
            requested: requested(pod),
            scored: requested_for_score(pod),
            host_ports: host_ports(pod),
            images: images(pod),
            priority: spec.and_then(|spec| spec.priority).unwrap_or(0),
            started: started.map(|time| time.0),
            stay: Stay::of(pod),
        }
    }

    pub(super) fn is_leaving(&self) -> bool {
        self.stay != Stay::Stays
    }
}

impl Stay {
    pub(super) fn of(pod: &Pod) -> Self {
        let target = condition(pod, "DisruptionTarget");
        if pod.metadata.deletion_timestamp.is_none() {
            Self::Stays
        } else if target.is_some_and(|c| c.reason.as_deref() == Some(PREEMPTED)) {
            Self::MakesRoom
        } else {
            Self::Leaves
        }
    }
}

impl SpreadConstraint {
    fn of(constraint: &TopologySpreadConstraint) -> Self {
        let honors = |policy: &Option<String>, default| match policy.as_deref() {
            None => default,
            Some(policy) => policy == "Honor",
        };
        Self {
            max_skew: i64::from(constraint.max_skew),
            topology_key: constraint.topology_key.clone(),
            selector: PodSelector::of(constraint.label_selector.as_ref()),
            min_domains: constraint
                .min_domains
                .and_then(|least| least.try_into().ok())
                .unwrap_or(1),
            is_required: constraint.when_unsatisfiable == "DoNotSchedule",
            honors_affinity: honors(&constraint.node_affinity_policy, true),
            honors_taints: honors(&constraint.node_taints_policy, false),
        }
    }
}

impl Needs {
    pub(super) fn of(pod: &Pod) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let affinity = spec.affinity.unwrap_or_default();
        let node_affinity = affinity.node_affinity.unwrap_or_default();
        let constraints = spec.topology_spread_constraints.iter().flatten();
        let owner = controller_ref(pod).filter(|owner| owner.kind == "ReplicaSet");
        Self {
            key: ObjectKey::of(pod),
            footprint: Arc::new(Footprint::of(pod)),
            node_selector: spec.node_selector.unwrap_or_default().into_iter().collect(),
            required_affinity: node_affinity.required_during_scheduling_ignored_during_execution,
            preferred_affinity: node_affinity
                .preferred_during_scheduling_ignored_during_execution
                .unwrap_or_default(),
            tolerations: spec.tolerations.unwrap_or_default(),
            spread: constraints.map(SpreadConstraint::of).collect(),
            replica_set: owner.map(|owner| owner.name.as_str().into()),
            may_preempt: spec.preemption_policy.as_deref() != Some("Never"),
        }
    }
}

/// The images of all containers, with the tag that is meant where there is none.
fn images(pod: &Pod) -> Vec<String> {
    let Some(spec) = &pod.spec else {
        return Vec::new();
    };
    let containers = spec.init_containers.iter().flatten();
    containers
        .chain(&spec.containers)
        .filter_map(|container| container.image.as_deref())
        .map(|image| match image.rfind(':') > image.rfind('/') {
            true => image.to_string(),
            false => format!("{image}:latest"),
        })
        .collect()
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
