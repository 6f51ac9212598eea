//! Taints and tolerations: NoSchedule and NoExecute refuse, PreferNoSchedule ranks lower.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use super::{Best, NodeFilter, Plugin, Plugins, Preemption, Refusal, scaled};
use crate::scheduler::cluster::{Cluster, NodeInfo};
use crate::scheduler::needs::Needs;

pub(super) struct TaintToleration;

impl Plugin for TaintToleration {
    fn id(&self) -> Plugins {
        Plugins::TAINTS
    }

    fn filter<'a>(&self, pod: &'a Needs, _: &'a Cluster) -> Option<NodeFilter<'a>> {
        Some(Box::new(|node, _| match untolerated(pod, node) {
            None => Ok(()),
            Some(_) => Err(Refusal::new(
                "node(s) had untolerated taint(s)",
                Preemption::CannotHelp,
            )),
        }))
    }

    fn score(&self, pod: &Needs, _: &Cluster, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let unwanted = |node: &&NodeInfo| {
            node.taints()
                .iter()
                .filter(|taint| taint.effect == "PreferNoSchedule")
                .filter(|taint| !is_tolerated(taint, &pod.tolerations))
                .count() as i64
        };
        scaled(nodes.iter().map(unwanted).collect(), Best::Lowest)
    }

    fn weight(&self) -> i64 {
        3
    }
}

/// A taint of the node that keeps the pod away.
pub(super) fn untolerated<'a>(pod: &Needs, node: &'a NodeInfo) -> Option<&'a Taint> {
    let taints = node.taints().iter();
    let mut strict =
        taints.filter(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute");
    strict.find(|taint| !is_tolerated(taint, &pod.tolerations))
}

pub(crate) fn is_tolerated(taint: &Taint, tolerations: &[Toleration]) -> bool {
    tolerations
        .iter()
        .any(|toleration| tolerates(toleration, taint))
}

/// Whether one toleration matches one taint. An absent effect matches every effect; an absent
/// key with `Exists` matches every key.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if given(&toleration.effect).is_some_and(|effect| effect != taint.effect) {
        return false;
    }
    if given(&toleration.key).is_some_and(|key| key != taint.key) {
        return false;
    }
    let ours = toleration.value.as_deref().unwrap_or_default();
    let theirs = taint.value.as_deref().unwrap_or_default();
    let numbers = || Some((theirs.parse::<i64>().ok()?, ours.parse::<i64>().ok()?));
    match given(&toleration.operator).as_deref() {
        None | Some("Equal") => ours == theirs,
        Some("Exists") => true,
        Some("Lt") => numbers().is_some_and(|(theirs, ours)| theirs < ours),
        Some("Gt") => numbers().is_some_and(|(theirs, ours)| theirs > ours),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Supposition;
    use super::*;
    use crate::scheduler::cycle::tests::{node, pod};

    fn taint(key: &str, value: &str, effect: &str) -> Taint {
        Taint {
            key: key.into(),
            value: Some(value.into()),
            effect: effect.into(),
            time_added: None,
        }
    }

    fn toleration(key: &str, operator: &str, value: &str, effect: &str) -> Toleration {
        let given = |text: &str| Some(text.to_string()).filter(|text| !text.is_empty());
        Toleration {
            key: given(key),
            operator: given(operator),
            value: given(value),
            effect: given(effect),
            toleration_seconds: None,
        }
    }

    #[test]
    fn tolerations_match_as_documented() {
        let gpu = taint("gpu", "yes", "NoSchedule");
        for (toleration, expected) in [
            (toleration("gpu", "Equal", "yes", "NoSchedule"), true),
            (toleration("gpu", "", "yes", ""), true),
            (toleration("gpu", "Equal", "no", ""), false),
            (toleration("gpu", "Exists", "", "NoExecute"), false),
            (toleration("gpu", "Exists", "", ""), true),
            (toleration("", "Exists", "", ""), true),
            (toleration("cpu", "Exists", "", ""), false),
        ] {
            assert_eq!(tolerates(&toleration, &gpu), expected, "{toleration:?}");
        }
    }

    #[test]
    fn a_taint_keeps_pods_away_or_ranks_lower() {
        let mut tainted = node("n", &[]);
        let taints = vec![
            taint("soft", "", "PreferNoSchedule"),
            taint("node.kubernetes.io/not-ready", "", "NoSchedule"),
        ];
        tainted.spec.get_or_insert_default().taints = Some(taints);
        let tainted = NodeInfo::new(Arc::new(tainted));
        let needs = Needs::of(&pod("p", &[]));
        let cluster = Cluster::default();
        let refusal =
            TaintToleration.filter(&needs, &cluster).unwrap()(&tainted, Supposition::NONE)
                .unwrap_err();
        assert_eq!(refusal.reasons, ["node(s) had untolerated taint(s)"]);
        let clean = NodeInfo::new(Arc::new(node("m", &[])));
        let scores = TaintToleration.score(&needs, &cluster, &[&tainted, &clean]);
        assert_eq!(scores, Some(vec![0, 100]));
    }
}
