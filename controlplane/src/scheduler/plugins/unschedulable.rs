//! Nodes that were cordoned take no new pods.

use k8s_openapi::api::core::v1::Taint;

use super::taints::is_tolerated;
use super::{NodeFilter, Plugin, Plugins, Preemption, Refusal};
use crate::scheduler::cluster::Cluster;
use crate::scheduler::needs::Needs;

pub(super) struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn id(&self) -> Plugins {
        Plugins::UNSCHEDULABLE
    }

    fn filter<'a>(&self, pod: &'a Needs, _: &'a Cluster) -> Option<NodeFilter<'a>> {
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Default::default()
        };
        if is_tolerated(&taint, &pod.tolerations) {
            return None;
        }
        Some(Box::new(|node, _| {
            if node.is_unschedulable() {
                Err(Refusal::new(
                    "node(s) were unschedulable",
                    Preemption::CannotHelp,
                ))
            } else {
                Ok(())
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Supposition;
    use super::*;
    use crate::scheduler::cluster::NodeInfo;
    use crate::scheduler::cycle::tests::{node, pod};

    #[test]
    fn a_cordoned_node_refuses() {
        let mut cordoned = node("n", &[]);
        cordoned.spec.get_or_insert_default().unschedulable = Some(true);
        let needs = Needs::of(&pod("p", &[]));
        let cluster = Cluster::default();
        let filter = NodeUnschedulable.filter(&needs, &cluster).unwrap();
        assert!(filter(&NodeInfo::new(Arc::new(cordoned)), Supposition::NONE).is_err());
        assert!(filter(&NodeInfo::new(Arc::new(node("n", &[]))), Supposition::NONE).is_ok());
    }
}
