//! Resources: a node must have what the pod requests; the emptier and the better balanced
//! node is the better one.

use std::borrow::Cow;

use super::{NodeFilter, Plugin, Plugins, Preemption, Refusal};
use crate::scheduler::cluster::{Cluster, NodeInfo};
use crate::scheduler::needs::Needs;

pub(super) struct NodeResourcesFit;

impl Plugin for NodeResourcesFit {
    fn id(&self) -> Plugins {
        Plugins::FIT
    }

    fn filter<'a>(&self, pod: &'a Needs, _: &'a Cluster) -> Option<NodeFilter<'a>> {
        Some(Box::new(|node, _| fits(pod, node)))
    }

    /// The share of cpu and memory that is left, with this pod there.
    fn score(&self, pod: &Needs, _: &Cluster, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let score = |node: &&NodeInfo| {
            let left = use_with(pod, node).map(|used| 100.0 - used.min(1.0) * 100.0);
            ((left[0] + left[1]) / 2.0) as i64
        };
        Some(nodes.iter().map(score).collect())
    }
}

fn fits(pod: &Needs, node: &NodeInfo) -> Result<(), Refusal> {
    let mut shortage = Shortage::default();
    if node.pods.len() as i64 >= node.allocatable.pods {
        shortage.add("Too many pods", node.allocatable.pods > 0);
    }
    let (wanted, has, used) = (&pod.footprint.requested, &node.allocatable, &node.requested);
    shortage.check(
        "Insufficient cpu",
        wanted.milli_cpu,
        has.milli_cpu,
        used.milli_cpu,
    );
    shortage.check(
        "Insufficient memory",
        wanted.memory,
        has.memory,
        used.memory,
    );
    shortage.check(
        "Insufficient ephemeral-storage",
        wanted.ephemeral_storage,
        has.ephemeral_storage,
        used.ephemeral_storage,
    );
    for (name, wanted) in &wanted.others {
        let has = has.others.get(name).copied().unwrap_or(0);
        let used = used.others.get(name).copied().unwrap_or(0);
        if *wanted > 0 && *wanted > has - used {
            shortage.add(format!("Insufficient {name}"), *wanted <= has);
        }
    }
    shortage.into_result()
}

#[derive(Default)]
struct Shortage {
    reasons: Vec<Cow<'static, str>>,
    /// Something is short that even an empty node wouldn't have.
    is_hopeless: bool,
}

impl Shortage {
    fn check(&mut self, reason: &'static str, wanted: i64, has: i64, used: i64) {
        if wanted > 0 && wanted > has - used {
            self.add(reason, wanted <= has);
        }
    }

    fn add(&mut self, reason: impl Into<Cow<'static, str>>, empty_node_would_do: bool) {
        self.reasons.push(reason.into());
        self.is_hopeless |= !empty_node_would_do;
    }

    fn into_result(self) -> Result<(), Refusal> {
        if self.reasons.is_empty() {
            return Ok(());
        }
        Err(Refusal {
            reasons: self.reasons,
            preemption: if self.is_hopeless {
                Preemption::CannotHelp
            } else {
                Preemption::MayHelp
            },
        })
    }
}

/// Ranks nodes higher on which cpu and memory are used to about the same degree.
pub(super) struct BalancedAllocation;

impl Plugin for BalancedAllocation {
    fn id(&self) -> Plugins {
        Plugins::FIT
    }

    fn score(&self, pod: &Needs, _: &Cluster, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let score = |node: &&NodeInfo| {
            let [cpu, memory] = use_with(pod, node).map(|used| used.min(1.0));
            // The standard deviation of two values is half their distance.
            ((1.0 - (cpu - memory).abs() / 2.0) * 100.0) as i64
        };
        Some(nodes.iter().map(score).collect())
    }
}

/// How full cpu and memory of the node would be with the pod, as shares.
fn use_with(pod: &Needs, node: &NodeInfo) -> [f64; 2] {
    let share = |wanted: i64, used: i64, has: i64| {
        if has == 0 {
            1.0
        } else {
            (wanted + used) as f64 / has as f64
        }
    };
    let (wanted, used, has) = (&pod.footprint.scored, &node.scored, &node.allocatable);
    [
        share(wanted.milli_cpu, used.milli_cpu, has.milli_cpu),
        share(wanted.memory, used.memory, has.memory),
    ]
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::scheduler::cycle::tests::{node, pod};

    fn info(allocatable: &[(&str, &str)]) -> NodeInfo {
        NodeInfo::new(Arc::new(node("n", allocatable)))
    }

    #[test]
    fn every_shortage_of_a_node_is_named() {
        let node = info(&[("cpu", "1"), ("memory", "1Gi"), ("pods", "110")]);
        let needs = Needs::of(&pod(
            "p",
            &[("cpu", "2"), ("memory", "2Gi"), ("a/gpu", "1")],
        ));
        let refusal = fits(&needs, &node).unwrap_err();
        assert_eq!(
            refusal.reasons,
            [
                "Insufficient cpu",
                "Insufficient memory",
                "Insufficient a/gpu"
            ]
        );
        assert_eq!(refusal.preemption, Preemption::CannotHelp);
    }

    #[test]
    fn a_full_node_could_be_freed_and_a_small_one_not() {
        let mut node = info(&[("cpu", "1"), ("pods", "110")]);
        node.requested.milli_cpu = 800;
        let needs = Needs::of(&pod("p", &[("cpu", "500m")]));
        assert_eq!(
            fits(&needs, &node).unwrap_err().preemption,
            Preemption::MayHelp
        );
        node.requested.milli_cpu = 500;
        assert_eq!(fits(&needs, &node), Ok(()));
        let none = info(&[("cpu", "1"), ("pods", "0")]);
        assert_eq!(fits(&needs, &none).unwrap_err().reasons, ["Too many pods"]);
    }

    #[test]
    fn a_pod_that_requests_nothing_fits_where_there_is_a_place() {
        let mut node = info(&[("cpu", "1"), ("pods", "1")]);
        node.requested.milli_cpu = 5000;
        assert_eq!(fits(&Needs::of(&pod("p", &[])), &node), Ok(()));
    }

    #[test]
    fn the_emptier_and_the_balanced_node_score_higher() {
        let needs = Needs::of(&pod("p", &[("cpu", "1"), ("memory", "1Gi")]));
        let cluster = Cluster::default();
        let large = info(&[("cpu", "8"), ("memory", "8Gi"), ("pods", "110")]);
        let small = info(&[("cpu", "2"), ("memory", "2Gi"), ("pods", "110")]);
        let skewed = info(&[("cpu", "8"), ("memory", "2Gi"), ("pods", "110")]);
        let nodes = [&large, &small, &skewed];
        assert_eq!(
            NodeResourcesFit.score(&needs, &cluster, &nodes),
            Some(vec![87, 50, 68])
        );
        assert_eq!(
            BalancedAllocation.score(&needs, &cluster, &nodes),
            Some(vec![100, 100, 81])
        );
    }
}
