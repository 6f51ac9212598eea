//! Preemption: which less important pods to end, and where, so that a pod fits
//! (`pkg/scheduler/framework/preemption` of kube-scheduler).
//!
//! On each node that could become fit, all less important pods are taken away in thought and put
//! back one by one, the most important first and those that a disruption budget protects before
//! others; who can't be put back is a victim. The node is chosen whose victims matter least.

use std::cmp::Reverse;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use rand::Rng;

use super::Listers;
use super::cluster::{Cluster, NodeInfo};
use super::cycle::{Filters, Profile};
use super::diagnosis::{Diagnosis, Reasons};
use super::likeness::{Likeness, PodSelector};
use super::needs::{Footprint, Needs, Stay};
use super::plugins::Refusal;

/// In a large cluster, at least so many nodes are tried, and this share of all, in percent.
const LEAST_NODES: usize = 100;
const LEAST_SHARE: usize = 10;

pub(super) enum Preemption {
    Plan(Plan),
    /// It helps nowhere, for this reason; none is told where there are no nodes.
    Pointless(String),
    /// Somebody is being ended for the pod already.
    UnderWay(String),
}

/// Whom to end for a pod.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) node: Arc<str>,
    pub(super) victims: Vec<Arc<Footprint>>,
    /// Less important pods for which room was being made there.
    pub(super) outranked: Vec<Arc<Footprint>>,
    /// Victims that a disruption budget protects in vain.
    violations: usize,
}

/// Looks for the node where the fewest and least important pods have to end for `pod`.
pub(super) fn search(
    profile: &Profile,
    cluster: &Cluster,
    pod: &Needs,
    diagnosis: &Diagnosis,
    listers: &Listers,
) -> Preemption {
    if diagnosis.nodes == 0 {
        return Preemption::Pointless(String::new());
    }
    if !pod.may_preempt {
        let why = "not eligible due to preemptionPolicy=Never.";
        return Preemption::Pointless(why.into());
    }
    if is_under_way(cluster, pod, diagnosis) {
        let why = "not eligible due to a terminating pod on the nominated node.";
        return Preemption::UnderWay(why.into());
    }
    let mut reasons = Reasons::default();
    reasons.count(
        "Preemption is not helpful for scheduling",
        diagnosis.nodes - diagnosis.curable.len(),
    );
    let filters = Filters::new(profile, pod, cluster);
    let budgets = match diagnosis.curable.is_empty() {
        true => Vec::new(),
        false => Budget::all(listers),
    };
    let mut best: Option<Plan> = None;
    let enough = (diagnosis.curable.len() * LEAST_SHARE / 100).max(LEAST_NODES);
    let mut found = 0;
    for name in rotated(&diagnosis.curable) {
        let Some(node) = cluster.node(name) else {
            continue;
        };
        match victims(&filters, pod, node, &budgets) {
            Ok(mut plan) => {
                plan.outranked = cluster.nominations.after(&pod.footprint, name);
                let rank = plan.rank();
                if best.as_ref().is_none_or(|best| rank < best.rank()) {
                    best = Some(plan);
                }
                found += 1;
            }
            Err(refusal) => reasons.add(refusal),
        }
        if found == enough {
            break;
        }
    }
    match best {
        Some(plan) => Preemption::Plan(plan),
        None => Preemption::Pointless(reasons.message(diagnosis.nodes)),
    }
}

/// Whether room is being made for the pod on a node that it can use.
fn is_under_way(cluster: &Cluster, pod: &Needs, diagnosis: &Diagnosis) -> bool {
    let Some(name) = cluster.nominations.node_of(&pod.footprint.uid) else {
        return false;
    };
    let node = cluster
        .node(name)
        .filter(|_| diagnosis.curable.contains(name));
    node.is_some_and(|node| {
        let mut pods = node.pods.values();
        pods.any(|other| other.stay == Stay::MakesRoom && other.priority < pod.footprint.priority)
    })
}

/// From somewhere on, so that not always the same nodes lose their pods.
fn rotated(names: &[Arc<str>]) -> impl Iterator<Item = &Arc<str>> {
    let start = match names.len() {
        0 => 0,
        some => rand::rng().random_range(0..some),
    };
    names[start..].iter().chain(&names[..start])
}

/// Whom to end on a node.
fn victims(
    filters: &Filters<'_>,
    pod: &Needs,
    node: &NodeInfo,
    budgets: &[Budget],
) -> Result<Plan, Refusal> {
    let lower = |other: &&Arc<Footprint>| other.priority < pod.footprint.priority;
    let mut candidates: Vec<Arc<Footprint>> = node.pods.values().filter(lower).cloned().collect();
    if candidates.is_empty() {
        return Err(Refusal::without_cure(
            "No preemption victims found for incoming pod",
        ));
    }
    let mut left = node.clone();
    for candidate in &candidates {
        left.remove(&candidate.uid);
    }
    let mut gone = candidates.clone();
    filters
        .check_without(&left, &gone)
        .map_err(|(_, refusal)| refusal)?;
    candidates.sort_by_key(|candidate| importance(candidate));
    let (protected, others) = by_protection(candidates, budgets);
    let mut plan = Plan {
        node: node.name.clone(),
        victims: Vec::new(),
        outranked: Vec::new(),
        violations: 0,
    };
    let protected = protected.into_iter().map(|candidate| (candidate, 1));
    for (candidate, violation) in protected.chain(others.into_iter().map(|other| (other, 0))) {
        left.add(candidate.clone());
        gone.retain(|other| other.uid != candidate.uid);
        if filters.check_without(&left, &gone).is_err() {
            left.remove(&candidate.uid);
            gone.push(candidate.clone());
            plan.victims.push(candidate);
            plan.violations += violation;
        }
    }
    plan.victims.sort_by_key(|victim| importance(victim));
    Ok(plan)
}

/// Sorts the more important pod first: by priority, then by who began earlier.
fn importance(pod: &Footprint) -> (Reverse<i32>, Timestamp) {
    (Reverse(pod.priority), pod.started.unwrap_or(Timestamp::MAX))
}

impl Plan {
    /// The lower the better: protected pods, the most important victim, how much all matter, how
    /// many they are, and at last those that have run for the shortest time.
    fn rank(&self) -> (usize, i32, i64, usize, Reverse<Timestamp>) {
        let highest = self.victims.first().map_or(i32::MIN, |v| v.priority);
        // As in kube-scheduler: so that many victims of a low priority outweigh few.
        let weight = |victim: &Arc<Footprint>| i64::from(victim.priority) + i64::from(i32::MAX) + 1;
        let most_important = self.victims.iter().filter(|v| v.priority == highest);
        let earliest = most_important
            .map(|victim| victim.started.unwrap_or(Timestamp::MAX))
            .min();
        (
            self.violations,
            highest,
            self.victims.iter().map(weight).sum(),
            self.victims.len(),
            Reverse(earliest.unwrap_or(Timestamp::MAX)),
        )
    }
}

/// What a PodDisruptionBudget lets go.
pub(super) struct Budget {
    namespace: String,
    selector: PodSelector,
    allowed: i32,
    /// Pods whose disruption it has counted already.
    disrupted: Vec<String>,
}

impl Budget {
    fn all(listers: &Listers) -> Vec<Self> {
        let budgets = listers.budgets.list();
        budgets.iter().map(|budget| Self::of(budget)).collect()
    }

    fn of(budget: &PodDisruptionBudget) -> Self {
        let selector = budget.spec.as_ref().and_then(|s| s.selector.as_ref());
        let status = budget.status.as_ref();
        let disrupted = status.and_then(|s| s.disrupted_pods.as_ref());
        Self {
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            selector: PodSelector::of(selector),
            allowed: status.and_then(|s| s.disruptions_allowed).unwrap_or(0),
            disrupted: disrupted
                .into_iter()
                .flatten()
                .map(|(n, _)| n.clone())
                .collect(),
        }
    }

    /// A budget without a selector protects nobody here.
    fn protects(&self, pod: &Likeness) -> bool {
        *self.namespace == *pod.namespace
            && !pod.labels.is_empty()
            && !self.selector.selects_all()
            && self.selector.matches(&pod.labels)
    }
}

/// Those whose end would break a budget, and the others, each in the order in which they are.
fn by_protection(
    pods: Vec<Arc<Footprint>>,
    budgets: &[Budget],
) -> (Vec<Arc<Footprint>>, Vec<Arc<Footprint>>) {
    let mut allowed: Vec<i32> = budgets.iter().map(|budget| budget.allowed).collect();
    pods.into_iter().partition(|pod| {
        let mut breaks = false;
        for (budget, allowed) in budgets.iter().zip(&mut allowed) {
            let is_counted = budget.disrupted.iter().any(|name| **name == *pod.key.name);
            if budget.protects(&pod.likeness) && !is_counted {
                *allowed -= 1;
                breaks |= *allowed < 0;
            }
        }
        breaks
    })
}

#[cfg(test)]
mod tests;
