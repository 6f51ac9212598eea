//! Why no node can take a pod.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::cluster::NodeInfo;
use super::plugins::{Plugins, Preemption, Refusal};

/// What each node said.
#[derive(Debug)]
pub(super) struct Diagnosis {
    pub(super) nodes: usize,
    reasons: Reasons,
    pub(super) refused_by: Plugins,
    /// Nodes that may become fit when others on them end.
    pub(super) curable: Vec<Arc<str>>,
}

/// How many nodes have each reason.
#[derive(Debug, Default)]
pub(super) struct Reasons(BTreeMap<String, usize>);

impl Diagnosis {
    pub(super) fn new(nodes: usize) -> Self {
        Self {
            nodes,
            reasons: Reasons::default(),
            refused_by: Plugins::NONE,
            curable: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, node: &NodeInfo, plugin: Plugins, refusal: Refusal) {
        self.refused_by = self.refused_by.with(plugin);
        if refusal.preemption == Preemption::MayHelp {
            self.curable.push(node.name.clone());
        }
        self.reasons.add(refusal);
    }

    /// As kube-scheduler begins what it puts into the pod's condition and event.
    pub(super) fn message(&self) -> String {
        match self.nodes {
            0 => "no nodes available to schedule pods".into(),
            nodes => self.reasons.message(nodes),
        }
    }
}

impl Reasons {
    pub(super) fn add(&mut self, refusal: Refusal) {
        for reason in refusal.reasons {
            self.count(&reason, 1);
        }
    }

    pub(super) fn count(&mut self, reason: &str, nodes: usize) {
        if nodes > 0 {
            *self.0.entry(reason.to_string()).or_default() += nodes;
        }
    }

    pub(super) fn message(&self, nodes: usize) -> String {
        let counted = self.0.iter();
        let mut counted: Vec<String> = counted
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        counted.sort();
        format!("0/{nodes} nodes are available: {}.", counted.join(", "))
    }
}
