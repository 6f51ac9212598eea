//! How nodes rank by what a pod prefers of its spread (`whenUnsatisfiable: ScheduleAnyway`).

use std::collections::HashMap;

use super::{counts, has_all_keys, pods_by_node};
use crate::scheduler::cluster::{Cluster, HOSTNAME, NodeInfo};
use crate::scheduler::needs::{Needs, SpreadConstraint};

/// Scores `nodes`, the emptiest place highest. With `needs_all_keys`, nodes that lack a label of
/// any constraint are last. `None` without constraints.
pub(super) fn score(
    pod: &Needs,
    cluster: &Cluster,
    nodes: &[&NodeInfo],
    constraints: &[SpreadConstraint],
    needs_all_keys: bool,
) -> Option<Vec<i64>> {
    if constraints.is_empty() {
        return None;
    }
    let all: Vec<&SpreadConstraint> = constraints.iter().collect();
    let is_ranked = |node: &NodeInfo| !needs_all_keys || has_all_keys(&all, node);
    let ranked: Vec<&NodeInfo> = nodes.iter().copied().filter(|n| is_ranked(n)).collect();
    let counted: Vec<Counted<'_>> = constraints
        .iter()
        .map(|constraint| Counted::new(constraint, pod, cluster, &ranked, &is_ranked))
        .collect();
    let raw = |node: &&NodeInfo| {
        is_ranked(node).then(|| {
            let scores = counted.iter().filter_map(|counted| counted.score(node));
            scores.sum::<f64>().round() as i64
        })
    };
    Some(normalized(&nodes.iter().map(raw).collect::<Vec<_>>()))
}

/// A constraint, with what there is in each place that comes into question.
struct Counted<'a> {
    constraint: &'a SpreadConstraint,
    /// By node for the constraint over nodes, by place for others.
    pods: HashMap<&'a str, i64>,
    /// The more places there are, the more a pod in one counts.
    weight: f64,
}

impl<'a> Counted<'a> {
    fn new(
        constraint: &'a SpreadConstraint,
        pod: &Needs,
        cluster: &'a Cluster,
        ranked: &[&'a NodeInfo],
        is_ranked: &impl Fn(&NodeInfo) -> bool,
    ) -> Self {
        let by_node = pods_by_node(constraint, pod, cluster);
        let weight = |places: usize| ((places + 2) as f64).ln();
        if constraint.topology_key == HOSTNAME {
            return Self {
                constraint,
                pods: by_node,
                weight: weight(ranked.len()),
            };
        }
        let key = &constraint.topology_key;
        let mut places: HashMap<&str, i64> = HashMap::new();
        for node in ranked {
            // Those without the label are one place of their own.
            places
                .entry(node.label(key).unwrap_or_default())
                .or_default();
        }
        for (name, count) in &by_node {
            let Some(node) = cluster.node(name).filter(|node| is_ranked(node)) else {
                continue;
            };
            if counts(constraint, pod, node)
                && let Some(here) = places.get_mut(node.label(key).unwrap_or_default())
            {
                *here += count;
            }
        }
        Self {
            constraint,
            weight: weight(places.len()),
            pods: places,
        }
    }

    /// The lower the better; `None` where the node has no place.
    fn score(&self, node: &NodeInfo) -> Option<f64> {
        let place = node.label(&self.constraint.topology_key)?;
        let place = match self.constraint.topology_key == HOSTNAME {
            true => &*node.name,
            false => place,
        };
        let count = self.pods.get(place).copied().unwrap_or(0);
        Some(count as f64 * self.weight + (self.constraint.max_skew - 1) as f64)
    }
}

/// From "lower is better" to 0 up to 100; what is not ranked has 0.
fn normalized(scores: &[Option<i64>]) -> Vec<i64> {
    let known = scores.iter().flatten().copied();
    let (least, most) = (known.clone().min().unwrap_or(0), known.max().unwrap_or(0));
    let scale = |score: &Option<i64>| match score {
        None => 0,
        Some(_) if most == 0 => 100,
        Some(score) => 100 * (most + least - score) / most,
    };
    scores.iter().map(scale).collect()
}
