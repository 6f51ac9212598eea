//! Node selectors and node affinity: required terms refuse, preferred terms rank.

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

use super::{Best, NodeFilter, Plugin, Plugins, Preemption, Refusal, scaled};
use crate::scheduler::cluster::{Cluster, NodeInfo};
use crate::scheduler::needs::Needs;

pub(super) struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn id(&self) -> Plugins {
        Plugins::NODE_AFFINITY
    }

    fn filter<'a>(&self, pod: &'a Needs, _: &'a Cluster) -> Option<NodeFilter<'a>> {
        if pod.node_selector.is_empty() && pod.required_affinity.is_none() {
            return None;
        }
        Some(Box::new(|node, _| {
            if is_admitted(pod, node) {
                Ok(())
            } else {
                Err(Refusal::new(
                    "node(s) didn't match Pod's node affinity/selector",
                    Preemption::CannotHelp,
                ))
            }
        }))
    }

    fn score(&self, pod: &Needs, _: &Cluster, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        if pod.preferred_affinity.is_empty() {
            return None;
        }
        let score = |node: &&NodeInfo| {
            pod.preferred_affinity
                .iter()
                .filter(|term| preferred_matches(&term.preference, node))
                .map(|term| i64::from(term.weight))
                .sum()
        };
        scaled(nodes.iter().map(score).collect(), Best::Highest)
    }

    fn weight(&self) -> i64 {
        2
    }
}

/// Whether the pod's node selector and required affinity let it onto the node.
pub(super) fn is_admitted(pod: &Needs, node: &NodeInfo) -> bool {
    let mut selector = pod.node_selector.iter();
    let required = pod.required_affinity.as_ref();
    selector.all(|(key, value)| node.label(key) == Some(value))
        && required.is_none_or(|selector| selector_matches(selector, node))
}

/// Any of the terms has to match.
pub(crate) fn selector_matches(selector: &NodeSelector, node: &NodeInfo) -> bool {
    let mut terms = selector.node_selector_terms.iter();
    terms.any(|term| !is_empty(term) && term_matches(term, node))
}

/// A preferred term without requirements matches every node; a required one, none.
fn preferred_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    is_empty(term) || term_matches(term, node)
}

fn is_empty(term: &NodeSelectorTerm) -> bool {
    let none =
        |list: &Option<Vec<NodeSelectorRequirement>>| list.as_ref().is_none_or(Vec::is_empty);
    none(&term.match_expressions) && none(&term.match_fields)
}

fn term_matches(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let mut expressions = term.match_expressions.iter().flatten();
    let mut fields = term.match_fields.iter().flatten();
    expressions.all(|expression| requirement_matches(expression, node.label(&expression.key)))
        && fields.all(|field| {
            // The one field that the API server lets through.
            field.key == "metadata.name" && requirement_matches(field, Some(&node.name))
        })
}

fn requirement_matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let is_listed = |value| values.iter().any(|listed| listed == value);
    let compare = || {
        let ours: i64 = value?.parse().ok()?;
        let theirs: i64 = values.first()?.parse().ok()?;
        Some(ours.cmp(&theirs))
    };
    match requirement.operator.as_str() {
        "In" => value.is_some_and(is_listed),
        "NotIn" => !value.is_some_and(is_listed),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compare() == Some(std::cmp::Ordering::Greater),
        "Lt" => compare() == Some(std::cmp::Ordering::Less),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::PreferredSchedulingTerm;

    use super::super::Supposition;
    use super::*;
    use crate::scheduler::cycle::tests::{node, pod};

    fn labelled(name: &str, labels: &[(&str, &str)]) -> NodeInfo {
        let mut node = node(name, &[]);
        let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string()));
        node.metadata.labels = Some(labels.collect());
        NodeInfo::new(Arc::new(node))
    }

    fn requirement(key: &str, operator: &str, values: &[&str]) -> NodeSelectorRequirement {
        NodeSelectorRequirement {
            key: key.into(),
            operator: operator.into(),
            values: Some(values.iter().map(ToString::to_string).collect()),
        }
    }

    fn term(requirement: NodeSelectorRequirement) -> NodeSelectorTerm {
        NodeSelectorTerm {
            match_expressions: Some(vec![requirement]),
            match_fields: None,
        }
    }

    #[test]
    fn operators_work_as_documented() {
        for (requirement, value, expected) in [
            (requirement("k", "In", &["a", "b"]), Some("b"), true),
            (requirement("k", "In", &["a"]), None, false),
            (requirement("k", "NotIn", &["a"]), None, true),
            (requirement("k", "NotIn", &["a"]), Some("a"), false),
            (requirement("k", "Exists", &[]), Some(""), true),
            (requirement("k", "DoesNotExist", &[]), Some("x"), false),
            (requirement("k", "Gt", &["5"]), Some("6"), true),
            (requirement("k", "Lt", &["5"]), Some("6"), false),
            (requirement("k", "Gt", &["5"]), Some("many"), false),
        ] {
            assert_eq!(
                requirement_matches(&requirement, value),
                expected,
                "{requirement:?} {value:?}"
            );
        }
    }

    #[test]
    fn a_pod_goes_only_where_its_selector_and_affinity_point() {
        let mut needs = Needs::of(&pod("p", &[]));
        let cluster = Cluster::default();
        assert!(NodeAffinity.filter(&needs, &cluster).is_none());
        needs.node_selector = vec![("disk".into(), "ssd".into())];
        needs.required_affinity = Some(NodeSelector {
            node_selector_terms: vec![
                term(requirement("zone", "In", &["a"])),
                NodeSelectorTerm {
                    match_expressions: None,
                    match_fields: Some(vec![requirement("metadata.name", "In", &["chosen"])]),
                },
                NodeSelectorTerm::default(),
            ],
        });
        let filter = NodeAffinity.filter(&needs, &cluster).unwrap();
        assert!(
            filter(
                &labelled("n", &[("disk", "ssd"), ("zone", "a")]),
                Supposition::NONE
            )
            .is_ok()
        );
        assert!(filter(&labelled("chosen", &[("disk", "ssd")]), Supposition::NONE).is_ok());
        assert!(
            filter(
                &labelled("n", &[("disk", "ssd"), ("zone", "b")]),
                Supposition::NONE
            )
            .is_err()
        );
        assert!(filter(&labelled("n", &[("zone", "a")]), Supposition::NONE).is_err());
    }

    #[test]
    fn preferences_add_up() {
        let mut needs = Needs::of(&pod("p", &[]));
        let cluster = Cluster::default();
        needs.preferred_affinity = [("zone", "a", 10), ("disk", "ssd", 40)]
            .map(|(key, value, weight)| PreferredSchedulingTerm {
                weight,
                preference: term(requirement(key, "In", &[value])),
            })
            .into();
        let both = labelled("n1", &[("zone", "a"), ("disk", "ssd")]);
        let one = labelled("n2", &[("zone", "a")]);
        let scores = NodeAffinity.score(&needs, &cluster, &[&both, &one]);
        assert_eq!(scores, Some(vec![100, 20]));
    }
}
