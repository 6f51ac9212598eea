//! Two pods can't have the same port of one host.

use super::{NodeFilter, Plugin, Plugins, Preemption, Refusal};
use crate::scheduler::cluster::Cluster;
use crate::scheduler::needs::Needs;

pub(super) struct NodePorts;

impl Plugin for NodePorts {
    fn id(&self) -> Plugins {
        Plugins::HOST_PORTS
    }

    fn filter<'a>(&self, pod: &'a Needs, _: &'a Cluster) -> Option<NodeFilter<'a>> {
        let wanted = &pod.footprint.host_ports;
        if wanted.is_empty() {
            return None;
        }
        Some(Box::new(|node, _| {
            let mut taken = node.pods.values().flat_map(|other| &other.host_ports);
            if taken.any(|taken| wanted.iter().any(|port| port.conflicts_with(taken))) {
                return Err(Refusal::new(
                    "node(s) didn't have free ports for the requested pod ports",
                    Preemption::MayHelp,
                ));
            }
            Ok(())
        }))
    }
}
