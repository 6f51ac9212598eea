//! The nodes and what runs on each: the scheduler's picture of the cluster.
//!
//! It has the pods that the API server shows as bound, and those that were just given a node
//! and whose binding is still under way (assumed).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Taint};

use super::groups::Groups;
use super::likeness::{Labels, Namespaces};
use super::needs::{Footprint, Needs};
use super::nominations::Nominations;
use super::resources::Resources;

pub(super) const HOSTNAME: &str = "kubernetes.io/hostname";
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";

#[derive(Default)]
pub(super) struct Cluster {
    nodes: Vec<NodeInfo>,
    /// The pods on nodes, by what rules about pods among pods see of them.
    pub(super) groups: Groups,
    pub(super) namespaces: Namespaces,
    /// Pods that wait for room to be made on a node.
    pub(super) nominations: Nominations,
    /// How many nodes have each image.
    images: HashMap<String, usize>,
    index: HashMap<Arc<str>, usize>,
    /// Where each pod is, by uid.
    placed: HashMap<Arc<str>, Arc<str>>,
    assumed: HashSet<Arc<str>>,
    /// Pods whose node isn't known (yet), by the node's name.
    homeless: HashMap<Arc<str>, HashMap<Arc<str>, Arc<Footprint>>>,
}

/// One node.
#[derive(Debug, Clone)]
pub(super) struct NodeInfo {
    pub(super) name: Arc<str>,
    pub(super) node: Arc<Node>,
    pub(super) allocatable: Resources,
    pub(super) requested: Resources,
    pub(super) scored: Resources,
    pub(super) pods: HashMap<Arc<str>, Arc<Footprint>>,
    /// Images that are here, by each of their names, with their bytes.
    pub(super) images: HashMap<String, i64>,
    /// The labels that most rules ask for, read once.
    hostname: Option<Arc<str>>,
    zone: Option<Arc<str>>,
}

impl NodeInfo {
    pub(super) fn new(node: Arc<Node>) -> Self {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let status = node.status.as_ref();
        let label = |key| {
            node.metadata
                .labels
                .as_ref()?
                .get(key)
                .map(|v| v.as_str().into())
        };
        Self {
            name: name.into(),
            allocatable: Resources::parse(status.and_then(|status| status.allocatable.as_ref())),
            images: images(&node),
            hostname: label(HOSTNAME),
            zone: label(ZONE),
            node,
            requested: Resources::default(),
            scored: Resources::default(),
            pods: HashMap::new(),
        }
    }

    pub(super) fn taints(&self) -> &[Taint] {
        let taints = self
            .node
            .spec
            .as_ref()
            .and_then(|spec| spec.taints.as_deref());
        taints.unwrap_or_default()
    }

    pub(super) fn is_unschedulable(&self) -> bool {
        let spec = self.node.spec.as_ref();
        spec.and_then(|spec| spec.unschedulable) == Some(true)
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        match key {
            HOSTNAME => return self.hostname.as_deref(),
            ZONE => return self.zone.as_deref(),
            _ => {}
        }
        let labels = self.node.metadata.labels.as_ref()?;
        labels.get(key).map(String::as_str)
    }

    pub(super) fn add(&mut self, pod: Arc<Footprint>) {
        self.requested.add(&pod.requested);
        self.scored.add(&pod.scored);
        self.pods.insert(pod.uid.clone(), pod);
    }

    pub(super) fn remove(&mut self, uid: &str) -> Option<Arc<Footprint>> {
        let pod = self.pods.remove(uid)?;
        self.requested.subtract(&pod.requested);
        self.scored.subtract(&pod.scored);
        Some(pod)
    }
}

impl Cluster {
    pub(super) fn nodes(&self) -> &[NodeInfo] {
        &self.nodes
    }

    pub(super) fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.index.get(name).map(|index| &self.nodes[*index])
    }

    /// Adds a node or replaces what is known of it; its pods stay.
    pub(super) fn set_node(&mut self, node: Arc<Node>) {
        let fresh = NodeInfo::new(node);
        if let Some(index) = self.index.get(&fresh.name) {
            let known = &mut self.nodes[*index];
            count_images(&mut self.images, &known.images, &fresh.images);
            *known = NodeInfo {
                requested: std::mem::take(&mut known.requested),
                scored: std::mem::take(&mut known.scored),
                pods: std::mem::take(&mut known.pods),
                ..fresh
            };
            return;
        }
        count_images(&mut self.images, &HashMap::new(), &fresh.images);
        let name = fresh.name.clone();
        self.index.insert(name.clone(), self.nodes.len());
        self.nodes.push(fresh);
        for (_, pod) in self.homeless.remove(&name).unwrap_or_default() {
            self.add_to(&name, pod);
        }
    }

    pub(super) fn remove_node(&mut self, name: &str) {
        let Some(index) = self.index.remove(name) else {
            return;
        };
        let gone = self.nodes.swap_remove(index);
        count_images(&mut self.images, &gone.images, &HashMap::new());
        if let Some(moved) = self.nodes.get(index) {
            self.index.insert(moved.name.clone(), index);
        }
        if !gone.pods.is_empty() {
            self.homeless.insert(gone.name, gone.pods);
        }
    }

    /// How many nodes have an image.
    pub(super) fn nodes_with_image(&self, name: &str) -> usize {
        self.images.get(name).copied().unwrap_or(0)
    }

    pub(super) fn set_namespace(&mut self, name: &str, labels: Labels) {
        self.namespaces.insert(name.into(), labels);
    }

    pub(super) fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Counts a pod on a node before the API server has confirmed it.
    pub(super) fn assume(&mut self, pod: &Needs, node: &str) {
        self.nominations.remove(&pod.footprint.uid);
        self.place(pod.footprint.clone(), node);
        self.assumed.insert(pod.footprint.uid.clone());
    }

    /// Takes back an assumed pod whose binding failed. True if it was still only assumed.
    pub(super) fn forget(&mut self, uid: &str) -> bool {
        if !self.assumed.remove(uid) {
            return false;
        }
        self.remove_pod(uid);
        true
    }

    /// Whether the pod was given a node whose binding isn't confirmed yet.
    pub(super) fn is_assumed(&self, uid: &str) -> bool {
        self.assumed.contains(uid)
    }

    /// Records that a pod is on a node, as the API server says.
    pub(super) fn set_pod(&mut self, pod: Arc<Footprint>, node: &str) {
        self.assumed.remove(&pod.uid);
        let known = self.placed.get(&pod.uid);
        if known.is_some_and(|known| **known == *node)
            && self.known_footprint(&pod.uid) == Some(&pod)
        {
            return;
        }
        self.place(pod, node);
    }

    /// Takes a pod off its node. True if it was on one.
    pub(super) fn remove_pod(&mut self, uid: &str) -> bool {
        self.assumed.remove(uid);
        let Some(node) = self.placed.remove(uid) else {
            return false;
        };
        let gone = if let Some(index) = self.index.get(&node) {
            self.nodes[*index].remove(uid)
        } else if let Some(pods) = self.homeless.get_mut(&node) {
            let gone = pods.remove(uid);
            if pods.is_empty() {
                self.homeless.remove(&node);
            }
            gone
        } else {
            None
        };
        if let Some(gone) = gone {
            self.groups.remove(&gone, &node);
        }
        true
    }

    fn place(&mut self, pod: Arc<Footprint>, node: &str) {
        self.remove_pod(&pod.uid);
        let name = match self.index.get_key_value(node) {
            Some((name, _)) => name.clone(),
            None => node.into(),
        };
        self.placed.insert(pod.uid.clone(), name.clone());
        self.groups.add(&pod, &name);
        self.add_to(&name, pod);
    }

    fn add_to(&mut self, node: &Arc<str>, pod: Arc<Footprint>) {
        match self.index.get(node) {
            Some(index) => self.nodes[*index].add(pod),
            None => {
                let pods = self.homeless.entry(node.clone()).or_default();
                pods.insert(pod.uid.clone(), pod);
            }
        }
    }

    fn known_footprint(&self, uid: &str) -> Option<&Arc<Footprint>> {
        let node = self.placed.get(uid)?;
        match self.index.get(node) {
            Some(index) => self.nodes[*index].pods.get(uid),
            None => self.homeless.get(node)?.get(uid),
        }
    }
}

/// The images that a node says it has.
fn images(node: &Node) -> HashMap<String, i64> {
    let listed = node.status.iter().flat_map(|s| s.images.iter().flatten());
    listed
        .flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            let names = image.names.iter().flatten();
            names.map(move |name| (name.clone(), size))
        })
        .collect()
}

/// Takes note that a node has other images than before.
fn count_images(
    counts: &mut HashMap<String, usize>,
    before: &HashMap<String, i64>,
    after: &HashMap<String, i64>,
) {
    for name in after.keys().filter(|name| !before.contains_key(*name)) {
        *counts.entry(name.clone()).or_default() += 1;
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        if let Some(count) = counts.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                counts.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cycle::tests::{node, pod};
    use super::*;

    fn needs(name: &str) -> Needs {
        Needs::of(&pod(name, &[("cpu", "500m")]))
    }

    fn milli_cpu(cluster: &Cluster, name: &str) -> i64 {
        cluster.node(name).unwrap().requested.milli_cpu
    }

    #[test]
    fn an_assumed_pod_counts_once_it_is_confirmed_too() {
        let mut cluster = Cluster::default();
        cluster.set_node(Arc::new(node("n1", &[("cpu", "2")])));
        let needs = needs("p");
        cluster.assume(&needs, "n1");
        assert_eq!(milli_cpu(&cluster, "n1"), 500);
        cluster.set_pod(needs.footprint.clone(), "n1");
        assert_eq!(milli_cpu(&cluster, "n1"), 500);
        assert!(!cluster.forget(&needs.footprint.uid));
        assert!(cluster.remove_pod(&needs.footprint.uid));
        assert_eq!(milli_cpu(&cluster, "n1"), 0);
    }

    #[test]
    fn a_failed_binding_frees_the_node() {
        let mut cluster = Cluster::default();
        cluster.set_node(Arc::new(node("n1", &[("cpu", "2")])));
        let needs = needs("p");
        cluster.assume(&needs, "n1");
        assert!(cluster.forget(&needs.footprint.uid));
        assert_eq!(milli_cpu(&cluster, "n1"), 0);
    }

    #[test]
    fn pods_of_a_node_that_goes_and_comes_still_count() {
        let mut cluster = Cluster::default();
        for name in ["n1", "n2", "n3"] {
            cluster.set_node(Arc::new(node(name, &[("cpu", "2")])));
        }
        let needs = needs("p");
        cluster.set_pod(needs.footprint.clone(), "n1");
        cluster.remove_node("n1");
        assert!(cluster.node("n1").is_none());
        assert_eq!(cluster.node("n3").unwrap().name.as_ref(), "n3");
        cluster.set_node(Arc::new(node("n1", &[("cpu", "2")])));
        assert_eq!(milli_cpu(&cluster, "n1"), 500);
    }
}
