//! Pods that wait for room to be made: each has the node on which others are ended for it.
//!
//! Until it runs there, its place is kept from pods that are less important.

use std::collections::HashMap;
use std::sync::Arc;

use super::needs::Footprint;

#[derive(Default)]
pub(super) struct Nominations {
    by_pod: HashMap<Arc<str>, (Arc<str>, Arc<Footprint>)>,
    by_node: HashMap<Arc<str>, HashMap<Arc<str>, Arc<Footprint>>>,
}

impl Nominations {
    pub(super) fn set(&mut self, pod: Arc<Footprint>, node: &str) {
        self.remove(&pod.uid);
        let node: Arc<str> = node.into();
        let there = self.by_node.entry(node.clone()).or_default();
        there.insert(pod.uid.clone(), pod.clone());
        self.by_pod.insert(pod.uid.clone(), (node, pod));
    }

    /// True when the pod was nominated.
    pub(super) fn remove(&mut self, uid: &str) -> bool {
        let Some((node, _)) = self.by_pod.remove(uid) else {
            return false;
        };
        if let Some(there) = self.by_node.get_mut(&node) {
            there.remove(uid);
            if there.is_empty() {
                self.by_node.remove(&node);
            }
        }
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_pod.is_empty()
    }

    /// The node on which room is made for a pod.
    pub(super) fn node_of(&self, uid: &str) -> Option<&Arc<str>> {
        self.by_pod.get(uid).map(|(node, _)| node)
    }

    /// Other pods that wait for room on a node and are at least as important as this one: it
    /// must leave them theirs.
    pub(super) fn before(&self, pod: &Footprint, node: &str) -> Vec<Arc<Footprint>> {
        self.on(node)
            .filter(|other| other.uid != pod.uid && other.priority >= pod.priority)
            .cloned()
            .collect()
    }

    /// Pods that wait for room on a node and are less important than this one.
    pub(super) fn after(&self, pod: &Footprint, node: &str) -> Vec<Arc<Footprint>> {
        self.on(node)
            .filter(|other| other.priority < pod.priority)
            .cloned()
            .collect()
    }

    fn on(&self, node: &str) -> impl Iterator<Item = &Arc<Footprint>> {
        self.by_node.get(node).into_iter().flat_map(HashMap::values)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cycle::tests::pod;
    use super::*;

    #[test]
    fn a_place_is_kept_from_the_less_important() {
        let footprint = |name: &str, priority| {
            let mut pod = pod(name, &[]);
            pod.spec.as_mut().unwrap().priority = Some(priority);
            Arc::new(Footprint::of(&pod))
        };
        let mut nominations = Nominations::default();
        let (high, low) = (footprint("high", 10), footprint("low", 1));
        nominations.set(high.clone(), "n1");
        assert_eq!(nominations.before(&low, "n1"), std::slice::from_ref(&high));
        assert!(nominations.before(&low, "n2").is_empty());
        assert!(nominations.before(&high, "n1").is_empty());
        assert!(
            nominations
                .before(&footprint("higher", 11), "n1")
                .is_empty()
        );
        assert_eq!(
            nominations.after(&footprint("higher", 11), "n1"),
            std::slice::from_ref(&high)
        );
        nominations.set(high.clone(), "n2");
        assert!(nominations.before(&low, "n1").is_empty());
        assert_eq!(
            nominations.node_of(&high.uid).map(AsRef::as_ref),
            Some("n2")
        );
        assert!(nominations.remove(&high.uid));
        assert!(nominations.is_empty());
    }
}
