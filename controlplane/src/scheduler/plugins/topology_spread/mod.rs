//! Topology spread: pods that are alike are to be about as many in each place (node, zone).
//!
//! What a pod requires refuses nodes ([`required`]); what it prefers ranks them
//! ([`preferred`]). A pod that says nothing of it, but belongs to a Service or a ReplicaSet, is
//! spread over nodes and zones by preference: kube-scheduler's system defaults.

mod preferred;
mod required;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::node_affinity::is_admitted;
use super::taints::untolerated;
use super::{NodeFilter, Plugin, Plugins};
use crate::controllers::informer::{Index, ObjectKey};
use crate::scheduler::Listers;
use crate::scheduler::cluster::{Cluster, HOSTNAME, NodeInfo, ZONE};
use crate::scheduler::likeness::{Likeness, PodSelector};
use crate::scheduler::needs::{Needs, SpreadConstraint};

/// How uneven pods may be that say nothing of it, by kube-scheduler's system defaults.
const DEFAULT_SKEW: [(&str, i64); 2] = [(HOSTNAME, 3), (ZONE, 5)];

pub(super) struct PodTopologySpread {
    listers: Listers,
}

impl PodTopologySpread {
    pub(super) fn new(listers: &Listers) -> Self {
        Self {
            listers: listers.clone(),
        }
    }
}

impl Plugin for PodTopologySpread {
    fn id(&self) -> Plugins {
        Plugins::SPREAD
    }

    fn filter<'a>(&self, pod: &'a Needs, cluster: &'a Cluster) -> Option<NodeFilter<'a>> {
        let rule = required::Rule::count(pod, cluster)?;
        Some(Box::new(move |node, supposed| rule.check(node, supposed)))
    }

    fn score(&self, pod: &Needs, cluster: &Cluster, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if pod.spread.is_empty() {
            let defaults = self.defaults(pod)?;
            return preferred::score(pod, cluster, nodes, &defaults, false);
        }
        let preferred = pod.spread.iter().filter(|one| !one.is_required);
        let preferred: Vec<SpreadConstraint> = preferred.cloned().collect();
        preferred::score(pod, cluster, nodes, &preferred, true)
    }

    fn weight(&self) -> i64 {
        2
    }
}

impl PodTopologySpread {
    /// `None` when the pod belongs to nothing by which its like could be known.
    fn defaults(&self, pod: &Needs) -> Option<Vec<SpreadConstraint>> {
        let selector = self.default_selector(pod)?;
        let constraint = |(key, max_skew): (&str, i64)| SpreadConstraint {
            max_skew,
            topology_key: key.into(),
            selector: selector.clone(),
            min_domains: 1,
            is_required: false,
            honors_affinity: true,
            honors_taints: false,
        };
        Some(DEFAULT_SKEW.map(constraint).into())
    }

    /// Selects the pods that all Services of the pod and its ReplicaSet select.
    fn default_selector(&self, pod: &Needs) -> Option<PodSelector> {
        let likeness = &pod.footprint.likeness;
        let mut all = LabelSelector::default();
        for selector in self.services_of(likeness) {
            let labels = all.match_labels.get_or_insert_default();
            labels.extend(selector);
        }
        if let Some(name) = &pod.replica_set {
            let key = ObjectKey::new(&likeness.namespace, name);
            if let Some(set) = self.listers.replica_sets.get(&key) {
                let selector = set.spec.selector.clone();
                let labels = all.match_labels.get_or_insert_default();
                labels.extend(selector.match_labels.unwrap_or_default());
                all.match_expressions = selector.match_expressions;
            }
        }
        let selector = PodSelector::of(Some(&all));
        (!selector.selects_all()).then_some(selector)
    }

    fn services_of(&self, pod: &Likeness) -> Vec<BTreeMap<String, String>> {
        let selector = |service: &Service| service.spec.as_ref()?.selector.clone();
        let labels = pod.labels.values();
        labels
            // A Service is found by the first value of its selector.
            .flat_map(|value| self.listers.services.by_index(Index::Selector, value))
            .filter(|service| service.metadata.namespace.as_deref() == Some(&*pod.namespace))
            .filter_map(|service| selector(&service))
            .filter(|selector| {
                let mut selector = selector.iter();
                selector.all(|(key, value)| pod.labels.get(key) == Some(value))
            })
            .collect()
    }
}

/// Whether a pod that comes, goes or changes can help one that this rule refused.
pub(in crate::scheduler) fn is_helped_by(waiting: &Needs, other: &Likeness) -> bool {
    let mut required = waiting.spread.iter().filter(|one| one.is_required);
    waiting.footprint.likeness.namespace == other.namespace
        && required.any(|constraint| constraint.selector.matches(&other.labels))
}

/// Whether the pods of a node count for a constraint.
fn counts(constraint: &SpreadConstraint, pod: &Needs, node: &NodeInfo) -> bool {
    (!constraint.honors_affinity || is_admitted(pod, node))
        && (!constraint.honors_taints || untolerated(pod, node).is_none())
}

fn has_all_keys(constraints: &[&SpreadConstraint], node: &NodeInfo) -> bool {
    let mut constraints = constraints.iter();
    constraints.all(|constraint| node.label(&constraint.topology_key).is_some())
}

/// How many pods each node has that a constraint counts. An empty selector counts none, as in
/// kube-scheduler.
fn pods_by_node<'a>(
    constraint: &'a SpreadConstraint,
    pod: &Needs,
    cluster: &'a Cluster,
) -> std::collections::HashMap<&'a str, i64> {
    let mut found = std::collections::HashMap::new();
    if constraint.selector.selects_all() {
        return found;
    }
    let namespace = &pod.footprint.likeness.namespace;
    for group in cluster.groups.selected(namespace, &constraint.selector) {
        for (node, tally) in &group.nodes {
            *found.entry(&**node).or_default() += tally.staying();
        }
    }
    found
}

#[cfg(test)]
mod tests;
