//! Pods of one owner (the replicas of a set) go to different nodes where they can.

use super::{Best, Plugin, Plugins, scaled};
use crate::scheduler::cluster::NodeInfo;
use crate::scheduler::needs::Needs;

pub(super) struct OwnerSpread;

impl Plugin for OwnerSpread {
    fn id(&self) -> Plugins {
        Plugins::SPREAD
    }

    fn score(&self, pod: &Needs, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let owner = pod.footprint.owner.as_ref()?;
        let here = |node: &&NodeInfo| i64::from(node.owners.get(owner).copied().unwrap_or(0));
        scaled(nodes.iter().map(here).collect(), Best::Lowest)
    }

    fn weight(&self) -> i64 {
        2
    }
}
