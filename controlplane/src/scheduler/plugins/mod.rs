//! The scheduler's rules, one a file.
//!
//! A plugin refuses nodes (filter), ranks those that are left (score), or both. It first
//! looks at the pod alone and says nothing if the rule doesn't concern it, so that a pod
//! without ports, say, costs no look at any node's ports.

mod fit;
mod host_ports;
mod image_locality;
mod node_affinity;
mod pod_affinity;
mod taints;
mod topology_spread;
mod unschedulable;

use std::borrow::Cow;
use std::sync::Arc;

pub(super) use pod_affinity::is_helped_by as affinity_is_helped_by;
pub(crate) use taints::tolerates;
pub(super) use topology_spread::is_helped_by as spread_is_helped_by;

use super::Listers;
use super::cluster::{Cluster, NodeInfo};
use super::needs::{Footprint, Needs};

/// A set of plugins: those that refused a pod, or that a change can make think again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Plugins(u16);

impl Plugins {
    pub(super) const NONE: Self = Self(0);
    pub(super) const UNSCHEDULABLE: Self = Self(1);
    pub(super) const TAINTS: Self = Self(1 << 1);
    pub(super) const NODE_AFFINITY: Self = Self(1 << 2);
    pub(super) const HOST_PORTS: Self = Self(1 << 3);
    pub(super) const FIT: Self = Self(1 << 4);
    pub(super) const POD_AFFINITY: Self = Self(1 << 5);
    pub(super) const SPREAD: Self = Self(1 << 6);
    pub(super) const IMAGES: Self = Self(1 << 7);
    pub(super) const ALL: Self = Self(u16::MAX);

    #[must_use]
    pub(super) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[cfg(test)]
    pub(super) fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Each of the set as a small number.
    pub(super) fn numbers(self) -> impl Iterator<Item = usize> {
        (0..Self::COUNT).filter(move |bit| self.0 & (1 << bit) != 0)
    }

    /// One more than the greatest of [`numbers`](Self::numbers).
    pub(super) const COUNT: usize = u16::BITS as usize;
}

/// One rule.
pub(super) trait Plugin: Send + Sync {
    /// The set of this plugin alone.
    fn id(&self) -> Plugins;

    /// What to check of each node for this pod; `None` when nothing has to be.
    fn filter<'a>(&self, _pod: &'a Needs, _cluster: &'a Cluster) -> Option<NodeFilter<'a>> {
        None
    }

    /// How good each node is for this pod, from 0 to 100; `None` when all are alike.
    fn score(&self, _pod: &Needs, _cluster: &Cluster, _nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        None
    }

    /// How much its scores count.
    fn weight(&self) -> i64 {
        1
    }
}

/// Checks a node. What it is told of the node's pods is as if the [`Supposition`] were true;
/// what it counted in the cluster before, it has to correct by it.
pub(super) type NodeFilter<'a> =
    Box<dyn Fn(&NodeInfo, Supposition<'_>) -> Result<(), Refusal> + 'a>;

/// That a node had other pods than it has: to find out whom to end for a pod, and to leave
/// room for pods that wait for somebody's end.
#[derive(Clone, Copy, Default)]
pub(super) struct Supposition<'a> {
    pub(super) gone: &'a [Arc<Footprint>],
    pub(super) come: &'a [Arc<Footprint>],
}

impl<'a> Supposition<'a> {
    /// That nothing is otherwise.
    #[cfg(test)]
    pub(super) const NONE: Supposition<'static> = Supposition {
        gone: &[],
        come: &[],
    };

    /// By how much a count of pods is different: what `of` says of each.
    fn change(self, of: impl Fn(&Footprint) -> i64) -> i64 {
        let sum = |pods: &'a [Arc<Footprint>]| pods.iter().map(|pod| of(pod)).sum::<i64>();
        sum(self.come) - sum(self.gone)
    }
}

/// Why a node can't take a pod, in the words that Kubernetes uses.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    pub(super) reasons: Vec<Cow<'static, str>>,
    /// Whether it would help to end other pods on the node.
    pub(super) preemption: Preemption,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Preemption {
    MayHelp,
    CannotHelp,
}

impl Refusal {
    /// That nothing on the node can be ended to help.
    pub(super) fn without_cure(reason: &'static str) -> Self {
        Self::new(reason, Preemption::CannotHelp)
    }

    fn new(reason: impl Into<Cow<'static, str>>, preemption: Preemption) -> Self {
        Self {
            reasons: vec![reason.into()],
            preemption,
        }
    }
}

/// All plugins, in the order in which they look at a node. The first that refuses it is the
/// one whose reasons are told.
pub(super) fn all(listers: &Listers) -> Vec<Box<dyn Plugin>> {
    vec![
        Box::new(unschedulable::NodeUnschedulable),
        Box::new(taints::TaintToleration),
        Box::new(node_affinity::NodeAffinity),
        Box::new(host_ports::NodePorts),
        Box::new(fit::NodeResourcesFit),
        Box::new(fit::BalancedAllocation),
        Box::new(topology_spread::PodTopologySpread::new(listers)),
        Box::new(pod_affinity::InterPodAffinity),
        Box::new(image_locality::ImageLocality),
    ]
}

/// Scales scores so that the best is 100. `None` when all are zero.
fn scaled(scores: Vec<i64>, best: Best) -> Option<Vec<i64>> {
    let highest = scores
        .iter()
        .copied()
        .max()
        .filter(|highest| *highest > 0)?;
    let scale = |score: i64| score * 100 / highest;
    Some(match best {
        Best::Highest => scores.into_iter().map(scale).collect(),
        Best::Lowest => scores.into_iter().map(|s| 100 - scale(s)).collect(),
    })
}

#[derive(Clone, Copy)]
enum Best {
    Highest,
    Lowest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_scaled_to_a_hundred() {
        assert_eq!(scaled(vec![0, 0], Best::Lowest), None);
        assert_eq!(scaled(vec![0, 2, 4], Best::Lowest), Some(vec![100, 50, 0]));
        assert_eq!(scaled(vec![0, 2, 4], Best::Highest), Some(vec![0, 50, 100]));
    }
}
