//! Pods that are alike, and how many of them each node has.
//!
//! Rules about pods among pods ask here: which pods does a selector select, and where are they?
//! The cost is that of the few groups that come into question and of the nodes they are on,
//! whatever the number of pods in the cluster.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::likeness::{Likeness, Namespaces, PodSelector, Term, pair};
use super::needs::Footprint;

#[derive(Default)]
pub(super) struct Groups {
    ids: HashMap<Arc<Likeness>, usize>,
    slots: Vec<Option<Group>>,
    free: Vec<usize>,
    by_namespace: HashMap<Arc<str>, Namespace>,
    /// Groups whose pods say of others that they may not be near.
    anti: BTreeSet<usize>,
    /// Groups whose pods say anything of others.
    opinionated: BTreeSet<usize>,
}

/// Pods that are alike.
pub(super) struct Group {
    pub(super) likeness: Arc<Likeness>,
    pub(super) nodes: HashMap<Arc<str>, Tally>,
}

/// How many pods of a group a node has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) pods: i64,
    /// Those of them that are being deleted.
    leaving: i64,
}

impl Tally {
    pub(super) fn staying(self) -> i64 {
        self.pods - self.leaving
    }
}

#[derive(Default)]
struct Namespace {
    all: BTreeSet<usize>,
    by_label: HashMap<String, BTreeSet<usize>>,
}

impl Groups {
    pub(super) fn add(&mut self, pod: &Footprint, node: &Arc<str>) {
        let id = self.id_of(&pod.likeness);
        let Some(group) = &mut self.slots[id] else {
            return;
        };
        let tally = group.nodes.entry(node.clone()).or_default();
        tally.pods += 1;
        tally.leaving += i64::from(pod.is_leaving());
    }

    pub(super) fn remove(&mut self, pod: &Footprint, node: &Arc<str>) {
        let Some(id) = self.ids.get(&pod.likeness).copied() else {
            return;
        };
        let Some(group) = &mut self.slots[id] else {
            return;
        };
        if let Some(tally) = group.nodes.get_mut(node) {
            tally.pods -= 1;
            tally.leaving -= i64::from(pod.is_leaving());
            if tally.pods == 0 {
                group.nodes.remove(node);
            }
        }
        if group.nodes.is_empty() {
            self.drop_group(id);
        }
    }

    /// The groups that a selector selects in one namespace.
    pub(super) fn selected<'a>(
        &'a self,
        namespace: &str,
        selector: &'a PodSelector,
    ) -> impl Iterator<Item = &'a Group> {
        let namespace = self.by_namespace.get(namespace);
        let candidates = namespace.and_then(|namespace| match selector.certain_label() {
            Some(label) => namespace.by_label.get(label),
            None => Some(&namespace.all),
        });
        candidates
            .into_iter()
            .flatten()
            .filter_map(|id| self.slots[*id].as_ref())
            .filter(|group| selector.matches(&group.likeness.labels))
    }

    /// The groups that a term of a pod's affinity selects, in all namespaces that it covers.
    pub(super) fn selected_by<'a>(
        &'a self,
        term: &'a Term,
        namespaces: &'a Namespaces,
    ) -> impl Iterator<Item = &'a Group> {
        term.covered(namespaces)
            .flat_map(move |namespace| self.selected(namespace, &term.selector))
    }

    /// Groups whose pods say of others that they may not be near.
    pub(super) fn with_anti_affinity(&self) -> impl Iterator<Item = &Group> {
        self.anti.iter().filter_map(|id| self.slots[*id].as_ref())
    }

    /// Groups whose pods want others near or far.
    pub(super) fn with_affinity(&self) -> impl Iterator<Item = &Group> {
        let ids = self.opinionated.iter();
        ids.filter_map(|id| self.slots[*id].as_ref())
    }

    fn id_of(&mut self, likeness: &Arc<Likeness>) -> usize {
        if let Some(id) = self.ids.get(likeness) {
            return *id;
        }
        let group = Group {
            likeness: likeness.clone(),
            nodes: HashMap::new(),
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id] = Some(group);
                id
            }
            None => {
                self.slots.push(Some(group));
                self.slots.len() - 1
            }
        };
        self.ids.insert(likeness.clone(), id);
        let namespace = self
            .by_namespace
            .entry(likeness.namespace.clone())
            .or_default();
        namespace.all.insert(id);
        for (key, value) in &likeness.labels {
            let label = namespace.by_label.entry(pair(key, value)).or_default();
            label.insert(id);
        }
        if !likeness.affinity.required_anti.is_empty() {
            self.anti.insert(id);
        }
        if !likeness.affinity.is_empty() {
            self.opinionated.insert(id);
        }
        id
    }

    fn drop_group(&mut self, id: usize) {
        let Some(group) = self.slots[id].take() else {
            return;
        };
        let likeness = group.likeness;
        self.free.push(id);
        self.ids.remove(&likeness);
        self.anti.remove(&id);
        self.opinionated.remove(&id);
        let Some(namespace) = self.by_namespace.get_mut(&likeness.namespace) else {
            return;
        };
        namespace.all.remove(&id);
        for (key, value) in &likeness.labels {
            let label = pair(key, value);
            if let Some(ids) = namespace.by_label.get_mut(&label) {
                ids.remove(&id);
                if ids.is_empty() {
                    namespace.by_label.remove(&label);
                }
            }
        }
        if namespace.all.is_empty() {
            self.by_namespace.remove(&likeness.namespace);
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

    use super::super::cycle::tests::pod;
    use super::*;

    fn labelled(name: &str, app: &str) -> Footprint {
        let mut pod = pod(name, &[]);
        pod.metadata.labels = Some([("app".to_string(), app.to_string())].into());
        Footprint::of(&pod)
    }

    fn select(app: &str) -> PodSelector {
        PodSelector::of(Some(&LabelSelector {
            match_labels: Some([("app".to_string(), app.to_string())].into()),
            match_expressions: None,
        }))
    }

    #[test]
    fn pods_are_found_by_label_and_counted_by_node() {
        let mut groups = Groups::default();
        let (one, two): (Arc<str>, Arc<str>) = ("n1".into(), "n2".into());
        for (pod, node) in [("a", &one), ("b", &one), ("c", &two)] {
            groups.add(&labelled(pod, "web"), node);
        }
        groups.add(&labelled("d", "db"), &one);
        let web = select("web");
        let found: Vec<&Group> = groups.selected("default", &web).collect();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].nodes[&one].pods, 2);
        assert_eq!(groups.selected("other", &web).count(), 0);
        let all = PodSelector::of(Some(&LabelSelector::default()));
        assert_eq!(groups.selected("default", &all).count(), 2);
        assert_eq!(
            groups.selected("default", &PodSelector::default()).count(),
            0
        );
    }

    #[test]
    fn a_group_ends_with_its_last_pod() {
        let mut groups = Groups::default();
        let node: Arc<str> = "n1".into();
        let pod = labelled("a", "web");
        groups.add(&pod, &node);
        groups.remove(&pod, &node);
        assert!(groups.ids.is_empty() && groups.by_namespace.is_empty());
        groups.add(&labelled("b", "db"), &node);
        assert_eq!(groups.slots.len(), 1, "the place is used again");
        assert_eq!(groups.selected("default", &select("db")).count(), 1);
    }
}
