//! Pod affinity and anti-affinity: pods that want others in the same place, and pods that
//! don't, whichever of the two was there first.
//!
//! Before nodes are looked at, it is counted how many pods in which places speak for or against
//! each place; then a node is a few look-ups.

use std::collections::HashMap;

use super::{NodeFilter, Plugin, Plugins, Preemption, Refusal, Supposition};
use crate::scheduler::cluster::{Cluster, NodeInfo};
use crate::scheduler::groups::Group;
use crate::scheduler::likeness::{Likeness, Namespaces, Term};
use crate::scheduler::needs::{Footprint, Needs};

/// What a required affinity of a pod that is there counts for, when another comes that it wants
/// near: kube-scheduler's `hardPodAffinityWeight`.
const HARD_AFFINITY_WEIGHT: i64 = 1;

pub(super) struct InterPodAffinity;

impl Plugin for InterPodAffinity {
    fn id(&self) -> Plugins {
        Plugins::POD_AFFINITY
    }

    fn filter<'a>(&self, pod: &'a Needs, cluster: &'a Cluster) -> Option<NodeFilter<'a>> {
        let rule = Rule::count(&pod.footprint.likeness, cluster);
        let own = &rule.pod.affinity;
        let says_nothing = own.required.is_empty() && own.required_anti.is_empty();
        if says_nothing && rule.objections.is_empty() && cluster.nominations.is_empty() {
            return None;
        }
        Some(Box::new(move |node, supposed| rule.check(node, supposed)))
    }

    fn score(&self, pod: &Needs, cluster: &Cluster, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let places = preferences(&pod.footprint.likeness, cluster);
        if places.is_empty() {
            return None;
        }
        let score = |node: &&NodeInfo| {
            let here = places.iter().filter_map(|(key, values)| {
                let value = node.label(key)?;
                values.get(value)
            });
            here.sum::<i64>()
        };
        let scores: Vec<i64> = nodes.iter().map(score).collect();
        let (least, most) = (*scores.iter().min()?, *scores.iter().max()?);
        if least == most {
            return None;
        }
        let scaled = scores.into_iter();
        Some(
            scaled
                .map(|score| (100.0 * (score - least) as f64 / (most - least) as f64) as i64)
                .collect(),
        )
    }

    fn weight(&self) -> i64 {
        2
    }
}

/// Whether a pod that comes, goes or changes can help one that this rule refused.
pub(in crate::scheduler) fn is_helped_by(
    waiting: &Likeness,
    other: &Likeness,
    namespaces: &Namespaces,
) -> bool {
    let mut own = waiting.affinity.required.iter();
    let mut own_anti = waiting.affinity.required_anti.iter();
    let mut theirs = other.affinity.required_anti.iter();
    own.any(|term| term.selects(other, namespaces))
        || own_anti.any(|term| term.selects(other, namespaces))
        || theirs.any(|term| term.selects(waiting, namespaces))
}

/// How many pods each place has that matter: by the label that makes places, then its value.
type Places<'a> = HashMap<&'a str, HashMap<&'a str, i64>>;

/// What is required by this pod, and of it.
struct Rule<'a> {
    pod: &'a Likeness,
    namespaces: &'a Namespaces,
    /// Pods that the pod wants near.
    wanted: Places<'a>,
    /// All that was counted in `wanted`.
    wanted_in_all: i64,
    /// Pods that the pod does not want near.
    unwanted: Places<'a>,
    /// Pods that do not want this one near.
    objections: Places<'a>,
}

impl<'a> Rule<'a> {
    fn count(pod: &'a Likeness, cluster: &'a Cluster) -> Self {
        let mut rule = Self {
            pod,
            namespaces: &cluster.namespaces,
            wanted: Places::new(),
            wanted_in_all: 0,
            unwanted: Places::new(),
            objections: Places::new(),
        };
        rule.count_wanted(cluster);
        for term in &pod.affinity.required_anti {
            for group in cluster.groups.selected_by(term, &cluster.namespaces) {
                count(&mut rule.unwanted, cluster, group, term, 1);
            }
        }
        for group in cluster.groups.with_anti_affinity() {
            for term in &group.likeness.affinity.required_anti {
                if term.selects(pod, &cluster.namespaces) {
                    count(&mut rule.objections, cluster, group, term, 1);
                }
            }
        }
        rule
    }

    /// Only pods that fit all terms count.
    fn count_wanted(&mut self, cluster: &'a Cluster) {
        let Some(first) = self.pod.affinity.required.first() else {
            return;
        };
        for group in cluster.groups.selected_by(first, &cluster.namespaces) {
            if !self.wants(&group.likeness) {
                continue;
            }
            for term in &self.pod.affinity.required {
                self.wanted_in_all += count(&mut self.wanted, cluster, group, term, 1);
            }
        }
    }

    fn wants(&self, other: &Likeness) -> bool {
        let mut terms = self.pod.affinity.required.iter();
        terms.all(|term| term.selects(other, self.namespaces))
    }

    fn check(&self, node: &NodeInfo, supposed: Supposition<'_>) -> Result<(), Refusal> {
        if !self.has_wanted(node, supposed) {
            return Err(Refusal::new(
                "node(s) didn't match pod affinity rules",
                Preemption::CannotHelp,
            ));
        }
        if self.has_unwanted(node, supposed) {
            return Err(Refusal::new(
                "node(s) didn't match pod anti-affinity rules",
                Preemption::MayHelp,
            ));
        }
        if self.has_objections(node, supposed) {
            return Err(Refusal::new(
                "node(s) didn't satisfy existing pods anti-affinity rules",
                Preemption::MayHelp,
            ));
        }
        Ok(())
    }

    fn has_wanted(&self, node: &NodeInfo, supposed: Supposition<'_>) -> bool {
        let terms = &self.pod.affinity.required;
        let mut all_are_near = true;
        for term in terms {
            let Some(value) = node.label(&term.topology_key) else {
                return false;
            };
            let same_place = terms.iter().filter(|t| t.topology_key == term.topology_key);
            let same_place = same_place.count() as i64;
            let change = supposed.change(|other| match self.wants(&other.likeness) {
                true => same_place,
                false => 0,
            });
            all_are_near &= at(&self.wanted, &term.topology_key, value) + change > 0;
        }
        all_are_near || (self.is_first_of_its_kind(supposed) && self.wants(self.pod))
    }

    /// Nobody that the pod wants near is anywhere: pods that want their like may begin.
    fn is_first_of_its_kind(&self, supposed: Supposition<'_>) -> bool {
        let terms = self.pod.affinity.required.len() as i64;
        let change = supposed.change(|other| match self.wants(&other.likeness) {
            true => terms,
            false => 0,
        });
        self.wanted_in_all + change == 0
    }

    fn has_unwanted(&self, node: &NodeInfo, supposed: Supposition<'_>) -> bool {
        let terms = &self.pod.affinity.required_anti;
        terms.iter().any(|term| {
            let Some(value) = node.label(&term.topology_key) else {
                return false;
            };
            let same_place = || terms.iter().filter(|t| t.topology_key == term.topology_key);
            let change = supposed.change(|other| {
                same_place()
                    .filter(|term| term.selects(&other.likeness, self.namespaces))
                    .count() as i64
            });
            at(&self.unwanted, &term.topology_key, value) + change > 0
        })
    }

    fn has_objections(&self, node: &NodeInfo, supposed: Supposition<'_>) -> bool {
        let objects = |other: &Footprint, key: &str| {
            let terms = other.likeness.affinity.required_anti.iter();
            terms
                .filter(|term| term.topology_key == key && term.selects(self.pod, self.namespaces))
                .count() as i64
        };
        let counted = self.objections.iter().any(|(key, values)| {
            let Some(value) = node.label(key) else {
                return false;
            };
            let change = supposed.change(|other| objects(other, key));
            values.get(value).copied().unwrap_or(0) + change > 0
        });
        // Those that come may object where nobody did before.
        let mut come = supposed.come.iter();
        counted
            || come.any(|other| {
                let mut terms = other.likeness.affinity.required_anti.iter();
                terms.any(|term| {
                    !self.objections.contains_key(term.topology_key.as_str())
                        && node.label(&term.topology_key).is_some()
                        && term.selects(self.pod, self.namespaces)
                })
            })
    }
}

/// Adds `weight` for each pod of a group to the place where it is. Returns how much in all.
fn count<'a>(
    places: &mut Places<'a>,
    cluster: &'a Cluster,
    group: &Group,
    term: &'a Term,
    weight: i64,
) -> i64 {
    let mut sum = 0;
    for (node, tally) in &group.nodes {
        let node = cluster.node(node);
        let Some(value) = node.and_then(|node| node.label(&term.topology_key)) else {
            continue;
        };
        let values = places.entry(&term.topology_key).or_default();
        *values.entry(value).or_default() += weight * tally.pods;
        sum += weight * tally.pods;
    }
    sum
}

fn at(places: &Places<'_>, key: &str, value: &str) -> i64 {
    let values = places.get(key);
    values.and_then(|v| v.get(value)).copied().unwrap_or(0)
}

/// How much pods that are there speak for each place: by what this one prefers, and by what
/// they prefer or require.
fn preferences<'a>(pod: &'a Likeness, cluster: &'a Cluster) -> Places<'a> {
    let mut places = Places::new();
    for (weight, term) in &pod.affinity.preferred {
        for group in cluster.groups.selected_by(term, &cluster.namespaces) {
            count(&mut places, cluster, group, term, *weight);
        }
    }
    for group in cluster.groups.with_affinity() {
        let theirs = &group.likeness.affinity;
        let required = theirs.required.iter().map(|t| (HARD_AFFINITY_WEIGHT, t));
        let preferred = theirs
            .preferred
            .iter()
            .map(|(weight, term)| (*weight, term));
        for (weight, term) in required.chain(preferred) {
            if term.selects(pod, &cluster.namespaces) {
                count(&mut places, cluster, group, term, weight);
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::scheduler::cycle::tests::node;

    /// Nodes n1 and n2 in zone a, n3 in zone b, n4 in none.
    fn cluster() -> Cluster {
        let mut cluster = Cluster::default();
        for (name, zone) in [("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "")] {
            let mut node = node(name, &[]);
            let labels = node.metadata.labels.get_or_insert_default();
            labels.insert("kubernetes.io/hostname".into(), name.into());
            if !zone.is_empty() {
                labels.insert("zone".into(), zone.into());
            }
            cluster.set_node(Arc::new(node));
        }
        cluster
    }

    fn needs(name: &str, app: &str, affinity: Value) -> Needs {
        let pod = json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": app}},
            "spec": {"containers": [], "affinity": affinity},
        });
        Needs::of(&serde_json::from_value(pod).unwrap())
    }

    fn term(app: &str, key: &str) -> Value {
        json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}})
    }

    fn near(app: &str, key: &str) -> Value {
        json!({"podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [term(app, key)],
        }})
    }

    fn far(app: &str, key: &str) -> Value {
        json!({"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [term(app, key)],
        }})
    }

    fn prefers(kind: &str, app: &str, weight: i64) -> Value {
        json!({kind: {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": weight, "podAffinityTerm": term(app, "zone")},
        ]}})
    }

    /// The nodes that take the pod, and the last refusal of the others.
    fn feasible(cluster: &Cluster, pod: &Needs) -> (Vec<String>, Option<Refusal>) {
        let Some(filter) = InterPodAffinity.filter(pod, cluster) else {
            return (vec!["any".into()], None);
        };
        let (mut names, mut refusal) = (Vec::new(), None);
        for node in cluster.nodes() {
            match filter(node, Supposition::NONE) {
                Ok(()) => names.push(node.name.to_string()),
                Err(why) => refusal = Some(why),
            }
        }
        (names, refusal)
    }

    #[test]
    fn a_pod_goes_where_those_are_that_it_wants_near() {
        let mut cluster = cluster();
        let pod = needs("p", "web", near("db", "zone"));
        let (nodes, refusal) = feasible(&cluster, &pod);
        assert!(nodes.is_empty());
        let refusal = refusal.unwrap();
        assert_eq!(refusal.reasons, ["node(s) didn't match pod affinity rules"]);
        assert_eq!(refusal.preemption, Preemption::CannotHelp);
        cluster.assume(&needs("db", "db", Value::Null), "n2");
        assert_eq!(feasible(&cluster, &pod).0, ["n1", "n2"]);
    }

    #[test]
    fn pods_that_want_their_like_near_may_begin() {
        let mut cluster = cluster();
        let pod = needs("p", "web", near("web", "zone"));
        // A node without the label is no place at all.
        assert_eq!(feasible(&cluster, &pod).0, ["n1", "n2", "n3"]);
        cluster.assume(&pod, "n3");
        let next = needs("q", "web", near("web", "zone"));
        assert_eq!(feasible(&cluster, &next).0, ["n3"]);
    }

    #[test]
    fn all_terms_must_hold_of_one_pod() {
        let mut cluster = cluster();
        cluster.assume(&needs("db", "db", Value::Null), "n1");
        cluster.assume(&needs("cache", "cache", Value::Null), "n1");
        let both = json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            [term("db", "zone"), term("cache", "zone")]}});
        assert!(feasible(&cluster, &needs("p", "web", both)).0.is_empty());
    }

    #[test]
    fn replicas_that_keep_apart_take_one_place_each() {
        let mut cluster = cluster();
        let apart = far("web", "kubernetes.io/hostname");
        cluster.assume(&needs("a", "web", apart.clone()), "n1");
        let (nodes, refusal) = feasible(&cluster, &needs("b", "web", apart));
        assert_eq!(nodes, ["n2", "n3", "n4"]);
        let refusal = refusal.unwrap();
        assert_eq!(
            refusal.reasons,
            ["node(s) didn't match pod anti-affinity rules"]
        );
        assert_eq!(refusal.preemption, Preemption::MayHelp);
    }

    #[test]
    fn who_is_there_may_object_to_who_comes() {
        let mut cluster = cluster();
        cluster.assume(&needs("hermit", "hermit", far("web", "zone")), "n1");
        let (nodes, refusal) = feasible(&cluster, &needs("p", "web", Value::Null));
        assert_eq!(nodes, ["n3", "n4"]);
        assert_eq!(
            refusal.unwrap().reasons,
            ["node(s) didn't satisfy existing pods anti-affinity rules"]
        );
        assert_eq!(
            feasible(&cluster, &needs("p", "db", Value::Null)).0,
            ["any"]
        );
    }

    #[test]
    fn it_is_seen_what_would_be_if_pods_were_gone_or_came() {
        let mut cluster = cluster();
        let (hermit, web) = (
            needs("hermit", "hermit", far("web", "zone")),
            needs("a", "web", Value::Null),
        );
        cluster.assume(&hermit, "n1");
        let pod = needs("p", "web", far("web", "zone"));
        let filter = InterPodAffinity.filter(&pod, &cluster).unwrap();
        let (first, third) = (&cluster.nodes()[0], &cluster.nodes()[2]);
        let (hermit, web) = ([hermit.footprint.clone()], [web.footprint.clone()]);
        let gone = Supposition {
            gone: &hermit,
            come: &[],
        };
        assert!(filter(first, Supposition::NONE).is_err());
        assert!(filter(first, gone).is_ok());
        assert!(filter(third, Supposition::NONE).is_ok());
        let crowded = Supposition {
            gone: &[],
            come: &web,
        };
        assert!(filter(third, crowded).is_err());
        let objecting = Supposition {
            gone: &[],
            come: &hermit,
        };
        assert!(filter(third, objecting).is_err());
    }

    #[test]
    fn preferences_of_both_sides_count() {
        let mut cluster = cluster();
        cluster.assume(&needs("db", "db", Value::Null), "n3");
        let scores = |cluster: &Cluster, pod: &Needs| {
            let nodes: Vec<&NodeInfo> = cluster.nodes().iter().collect();
            InterPodAffinity.score(pod, cluster, &nodes)
        };
        let wants_db = needs("p", "web", prefers("podAffinity", "db", 10));
        assert_eq!(scores(&cluster, &wants_db), Some(vec![0, 0, 100, 0]));
        let shuns_db = needs("p", "web", prefers("podAntiAffinity", "db", 10));
        assert_eq!(scores(&cluster, &shuns_db), Some(vec![100, 100, 0, 100]));
        let plain = needs("p", "web", Value::Null);
        assert_eq!(scores(&cluster, &plain), None);
        cluster.assume(&needs("fan", "fan", near("web", "zone")), "n1");
        assert_eq!(scores(&cluster, &plain), Some(vec![100, 100, 0, 0]));
    }

    #[test]
    fn changes_help_only_whom_they_concern() {
        let namespaces = Namespaces::default();
        let likeness = |app, affinity| needs("p", app, affinity).footprint.likeness.clone();
        let waiting = likeness("web", near("db", "zone"));
        let helped = |other: Arc<Likeness>| is_helped_by(&waiting, &other, &namespaces);
        assert!(helped(likeness("db", Value::Null)));
        assert!(!helped(likeness("cache", Value::Null)));
        assert!(helped(likeness("cache", far("web", "zone"))));
    }
}
