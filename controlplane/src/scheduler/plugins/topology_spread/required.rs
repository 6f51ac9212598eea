//! What a pod requires of its spread (`whenUnsatisfiable: DoNotSchedule`).

use std::collections::HashMap;

use super::super::{Preemption, Refusal, Supposition};
use super::{counts, has_all_keys, pods_by_node};
use crate::scheduler::cluster::{Cluster, NodeInfo};
use crate::scheduler::needs::{Footprint, Needs, SpreadConstraint};

/// A pod's constraints, with what there is in each place.
pub(super) struct Rule<'a> {
    pod: &'a Needs,
    constraints: Vec<Counted<'a>>,
}

struct Counted<'a> {
    constraint: &'a SpreadConstraint,
    /// How many pods each place has that the constraint counts.
    places: HashMap<&'a str, i64>,
    /// The two places that have the fewest.
    fewest: [Option<(&'a str, i64)>; 2],
    /// One if the pod will count itself.
    own: i64,
}

impl<'a> Rule<'a> {
    /// `None` when the pod requires nothing.
    pub(super) fn count(pod: &'a Needs, cluster: &'a Cluster) -> Option<Self> {
        let required = pod.spread.iter().filter(|one| one.is_required);
        let required: Vec<&SpreadConstraint> = required.collect();
        if required.is_empty() {
            return None;
        }
        let constraints = required.iter();
        let constraints = constraints.map(|one| Counted::new(one, &required, pod, cluster));
        Some(Self {
            pod,
            constraints: constraints.collect(),
        })
    }

    pub(super) fn check(&self, node: &NodeInfo, supposed: Supposition<'_>) -> Result<(), Refusal> {
        for counted in &self.constraints {
            let Some(place) = node.label(&counted.constraint.topology_key) else {
                return Err(Refusal::new(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                    Preemption::CannotHelp,
                ));
            };
            let change = self.change(counted, node, supposed);
            let here = counted.places.get(place).copied().unwrap_or(0) + change;
            let skew = here + counted.own - counted.least(place, here);
            if skew > counted.constraint.max_skew {
                return Err(Refusal::new(
                    "node(s) didn't match pod topology spread constraints",
                    Preemption::MayHelp,
                ));
            }
        }
        Ok(())
    }

    fn change(&self, counted: &Counted<'_>, node: &NodeInfo, supposed: Supposition<'_>) -> i64 {
        let constraint = counted.constraint;
        if constraint.selector.selects_all() || !counts(constraint, self.pod, node) {
            return 0;
        }
        let is_counted = |other: &Footprint| {
            !other.is_leaving()
                && other.likeness.namespace == self.pod.footprint.likeness.namespace
                && constraint.selector.matches(&other.likeness.labels)
        };
        supposed.change(|other| i64::from(is_counted(other)))
    }
}

impl<'a> Counted<'a> {
    fn new(
        constraint: &'a SpreadConstraint,
        all: &[&SpreadConstraint],
        pod: &'a Needs,
        cluster: &'a Cluster,
    ) -> Self {
        let pods = pods_by_node(constraint, pod, cluster);
        let mut places: HashMap<&str, i64> = HashMap::new();
        for node in cluster.nodes() {
            if !has_all_keys(all, node) || !counts(constraint, pod, node) {
                continue;
            }
            if let Some(place) = node.label(&constraint.topology_key) {
                let here = pods.get(&*node.name).copied().unwrap_or(0);
                *places.entry(place).or_default() += here;
            }
        }
        let own = constraint.selector.matches(&pod.footprint.likeness.labels);
        Self {
            fewest: fewest(&places),
            constraint,
            places,
            own: i64::from(own),
        }
    }

    /// How many pods the emptiest place has, if `place` had `here`.
    fn least(&self, place: &str, here: i64) -> i64 {
        if self.places.len() < self.constraint.min_domains {
            return 0;
        }
        let others = self.fewest.iter().flatten();
        let mut others = others.filter(|(name, _)| *name != place);
        let other = others.next().map(|(_, count)| *count);
        match self.places.contains_key(place) {
            true => other.map_or(here, |other| other.min(here)),
            false => other.unwrap_or(i64::MAX),
        }
    }
}

fn fewest<'a>(places: &HashMap<&'a str, i64>) -> [Option<(&'a str, i64)>; 2] {
    let mut fewest: [Option<(&str, i64)>; 2] = [None, None];
    for (place, count) in places {
        let this = Some((*place, *count));
        if fewest[0].is_none_or(|(_, least)| *count < least) {
            fewest = [this, fewest[0]];
        } else if fewest[1].is_none_or(|(_, least)| *count < least) {
            fewest[1] = this;
        }
    }
    fewest
}
