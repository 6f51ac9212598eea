//! Which taints a node's state calls for.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";

/// Conditions that keep new pods away while they are True.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
    (
        "NetworkUnavailable",
        "node.kubernetes.io/network-unavailable",
    ),
];

/// More nodes than this, and this share of all, have to be lost for it to look like the
/// control plane's own fault.
const MANY_NODES: usize = 2;
const LARGE_SHARE: f64 = 0.55;

/// Nodes that are lost within this time are lost at once: kube-controller-manager looks every
/// five seconds (`--node-monitor-period`), and counts before it taints.
const AT_ONCE: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Readiness {
    Ready,
    NotReady,
    /// Nothing is heard of it.
    Unknown,
}

/// How much of the cluster is lost at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Disruption {
    /// Little: pods are evicted from the nodes that are lost.
    Normal,
    /// Much: no further node's pods are evicted, nor those of nodes that were lost just before.
    Partial,
    /// All: nothing is gained by evicting anywhere.
    Full,
}

pub(super) fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    let conditions = node.status.as_ref()?.conditions.as_deref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

/// A node that never reported is not known to be anything.
pub(super) fn readiness(node: &Node) -> Readiness {
    match condition(node, "Ready").map(|ready| ready.status.as_str()) {
        Some("True") => Readiness::Ready,
        Some("False") => Readiness::NotReady,
        _ => Readiness::Unknown,
    }
}

pub(super) fn disruption(nodes: impl Iterator<Item = Readiness>) -> Disruption {
    let (mut total, mut lost) = (0usize, 0usize);
    for readiness in nodes {
        total += 1;
        lost += usize::from(readiness != Readiness::Ready);
    }
    if total > 0 && lost == total {
        Disruption::Full
    } else if lost > MANY_NODES && lost as f64 / total as f64 >= LARGE_SHARE {
        Disruption::Partial
    } else {
        Disruption::Normal
    }
}

/// The taints that the node should have: those of others as they are, and ours as its state
/// calls for them.
pub(super) fn wanted(
    node: &Node,
    current: &[Taint],
    disruption: Disruption,
    now: Timestamp,
) -> Vec<Taint> {
    let mut ours: Vec<(&str, &str)> = Vec::new();
    let lost = match readiness(node) {
        Readiness::Ready => None,
        Readiness::NotReady => Some(NOT_READY),
        Readiness::Unknown => Some(UNREACHABLE),
    };
    if let Some(key) = lost {
        ours.push((key, NO_SCHEDULE));
        let mut known = current.iter().filter(|taint| is(taint, key, NO_EXECUTE));
        let was_lost_before = known.any(|taint| {
            let since = taint
                .time_added
                .as_ref()
                .map(|added| now.duration_since(added.0));
            since.is_none_or(|since| since.as_secs_f64() > AT_ONCE.as_secs_f64())
        });
        match disruption {
            Disruption::Normal => ours.push((key, NO_EXECUTE)),
            Disruption::Partial if was_lost_before => ours.push((key, NO_EXECUTE)),
            Disruption::Partial | Disruption::Full => {}
        }
    }
    for (kind, key) in PRESSURES {
        if condition(node, kind).is_some_and(|condition| condition.status == "True") {
            ours.push((key, NO_SCHEDULE));
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        ours.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let keeps = |taint: &&Taint| !is_managed(taint) || ours.iter().any(|(k, e)| is(taint, k, e));
    let mut taints: Vec<Taint> = current.iter().filter(keeps).cloned().collect();
    for (key, effect) in ours {
        if !taints.iter().any(|taint| is(taint, key, effect)) {
            taints.push(Taint {
                key: key.into(),
                effect: effect.into(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    taints
}

fn is(taint: &Taint, key: &str, effect: &str) -> bool {
    taint.key == key && taint.effect == effect
}

fn is_managed(taint: &Taint) -> bool {
    let is_lost = taint.key == NOT_READY || taint.key == UNREACHABLE;
    let is_pressure = PRESSURES.iter().any(|(_, key)| taint.key == *key);
    match taint.effect.as_str() {
        NO_SCHEDULE => is_lost || is_pressure || taint.key == UNSCHEDULABLE,
        NO_EXECUTE => is_lost,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{NodeSpec, NodeStatus};

    use super::*;

    fn node(ready: &str) -> Node {
        Node {
            status: Some(NodeStatus {
                conditions: Some(vec![NodeCondition {
                    type_: "Ready".into(),
                    status: ready.into(),
                    ..Default::default()
                }]),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn names(taints: &[Taint]) -> Vec<String> {
        let short = |key: &str| key.trim_start_matches("node.kubernetes.io/").to_string();
        taints
            .iter()
            .map(|t| format!("{}:{}", short(&t.key), t.effect))
            .collect()
    }

    #[test]
    fn a_lost_node_is_tainted_and_a_ready_one_freed() {
        let now = Timestamp::from_second(100).unwrap();
        let foreign = Taint {
            key: "team".into(),
            effect: NO_EXECUTE.into(),
            ..Default::default()
        };
        let lost = wanted(
            &node("Unknown"),
            std::slice::from_ref(&foreign),
            Disruption::Normal,
            now,
        );
        assert_eq!(
            names(&lost),
            [
                "team:NoExecute",
                "unreachable:NoSchedule",
                "unreachable:NoExecute"
            ]
        );
        // The time of a taint is that of its first writing: evictions count from it.
        let later = Timestamp::from_second(200).unwrap();
        assert_eq!(
            wanted(&node("Unknown"), &lost, Disruption::Normal, later),
            lost
        );
        let not_ready = wanted(&node("False"), &lost, Disruption::Normal, later);
        assert_eq!(
            names(&not_ready),
            [
                "team:NoExecute",
                "not-ready:NoSchedule",
                "not-ready:NoExecute"
            ]
        );
        assert_eq!(
            wanted(&node("True"), &lost, Disruption::Normal, later),
            [foreign]
        );
    }

    #[test]
    fn nobody_is_evicted_when_most_nodes_vanish() {
        let now = Timestamp::from_second(100).unwrap();
        let tainted = wanted(&node("Unknown"), &[], Disruption::Normal, now);
        let partial = wanted(&node("Unknown"), &[], Disruption::Partial, now);
        assert_eq!(names(&partial), ["unreachable:NoSchedule"]);
        // The first of them was taken for the only one.
        assert_eq!(
            wanted(&node("Unknown"), &tainted, Disruption::Partial, now),
            partial
        );
        let later = Timestamp::from_second(110).unwrap();
        assert_eq!(
            wanted(&node("Unknown"), &tainted, Disruption::Partial, later),
            tainted
        );
        let full = wanted(&node("Unknown"), &tainted, Disruption::Full, now);
        assert_eq!(names(&full), ["unreachable:NoSchedule"]);
    }

    #[test]
    fn disruption_is_a_matter_of_numbers() {
        let nodes = |ready: usize, lost: usize| {
            let ready = std::iter::repeat_n(Readiness::Ready, ready);
            disruption(ready.chain(std::iter::repeat_n(Readiness::Unknown, lost)))
        };
        assert_eq!(nodes(0, 0), Disruption::Normal);
        assert_eq!(nodes(0, 1), Disruption::Full);
        assert_eq!(nodes(1, 2), Disruption::Normal);
        assert_eq!(nodes(2, 3), Disruption::Partial);
        assert_eq!(nodes(5, 3), Disruption::Normal);
    }

    #[test]
    fn cordons_and_pressures_keep_new_pods_away() {
        let mut node = node("True");
        node.spec = Some(NodeSpec {
            unschedulable: Some(true),
            ..Default::default()
        });
        let conditions = node.status.as_mut().unwrap().conditions.as_mut().unwrap();
        conditions.push(NodeCondition {
            type_: "DiskPressure".into(),
            status: "True".into(),
            ..Default::default()
        });
        let taints = wanted(&node, &[], Disruption::Normal, Timestamp::UNIX_EPOCH);
        assert_eq!(
            names(&taints),
            ["disk-pressure:NoSchedule", "unschedulable:NoSchedule"]
        );
    }
}
