//! One scheduling cycle: which node is the best for a pod.
//!
//! Filters run on each node until enough feasible ones are found; scores rank those; chance
//! decides among the best. In a large cluster only a part of the nodes is looked at, and the
//! next cycle goes on where this one ended, so that all nodes get their turn.

use std::sync::Arc;

use rand::Rng;

use super::cluster::{Cluster, NodeInfo};
use super::needs::Needs;
use super::plugins::{self, NodeFilter, Plugin, Plugins, Refusal};
use super::report::Diagnosis;

/// Feasible nodes that are always enough to choose from.
const ENOUGH_NODES: usize = 100;
/// In a large cluster, the least share of nodes to look for, in percent.
const LEAST_SHARE: usize = 5;

/// The rules by which nodes are chosen.
pub(super) struct Profile {
    plugins: Vec<Box<dyn Plugin>>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            plugins: plugins::all(),
        }
    }
}

pub(super) enum Choice {
    /// The name of the best node.
    Node(Arc<str>),
    /// No node fits.
    Nowhere(Diagnosis),
}

/// Chooses a node for a pod. The search begins at node number `next`, and leaves there where
/// the next one should begin.
pub(super) fn choose(
    profile: &Profile,
    cluster: &Cluster,
    pod: &Needs,
    next: &mut usize,
) -> Choice {
    let nodes = cluster.nodes();
    let filters: Vec<(Plugins, NodeFilter<'_>)> = profile
        .plugins
        .iter()
        .filter_map(|plugin| Some((plugin.id(), plugin.filter(pod)?)))
        .collect();
    let enough = enough_nodes(nodes.len());
    let mut feasible: Vec<&NodeInfo> = Vec::with_capacity(enough.min(nodes.len()));
    let mut diagnosis = Diagnosis::new(nodes.len());
    let start = if nodes.is_empty() {
        0
    } else {
        *next % nodes.len()
    };
    let mut seen = 0;
    for node in nodes[start..].iter().chain(&nodes[..start]) {
        seen += 1;
        match check(&filters, node) {
            Ok(()) => feasible.push(node),
            Err((plugin, refusal)) => diagnosis.add(pod, node, plugin, refusal),
        }
        if feasible.len() == enough {
            break;
        }
    }
    *next = start + seen;
    match best(profile, pod, &feasible) {
        Some(node) => Choice::Node(node.name.clone()),
        None => Choice::Nowhere(diagnosis),
    }
}

fn check(filters: &[(Plugins, NodeFilter<'_>)], node: &NodeInfo) -> Result<(), (Plugins, Refusal)> {
    for (plugin, filter) in filters {
        filter(node).map_err(|refusal| (*plugin, refusal))?;
    }
    Ok(())
}

/// How many feasible nodes to look for among `total`: all in a small cluster, from half down
/// to a twentieth in a large one.
fn enough_nodes(total: usize) -> usize {
    if total <= ENOUGH_NODES {
        return total.max(1);
    }
    let share = 50usize.saturating_sub(total / 125).max(LEAST_SHARE);
    (total * share / 100).max(ENOUGH_NODES)
}

fn best<'a>(profile: &Profile, pod: &Needs, feasible: &[&'a NodeInfo]) -> Option<&'a NodeInfo> {
    if feasible.len() < 2 {
        return feasible.first().copied();
    }
    let mut totals = vec![0i64; feasible.len()];
    for plugin in &profile.plugins {
        let Some(scores) = plugin.score(pod, feasible) else {
            continue;
        };
        for (total, score) in totals.iter_mut().zip(scores) {
            *total += score * plugin.weight();
        }
    }
    let highest = totals.iter().copied().max()?;
    let ties = totals.iter().filter(|total| **total == highest).count();
    let mut winner = rand::rng().random_range(0..ties);
    for (total, node) in totals.iter().zip(feasible) {
        if *total == highest {
            if winner == 0 {
                return Some(node);
            }
            winner -= 1;
        }
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::{
        Container, Node, NodeStatus, Pod, PodSpec, ResourceRequirements,
    };
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    fn list(items: &[(&str, &str)]) -> BTreeMap<String, Quantity> {
        let items = items.iter();
        items
            .map(|(n, q)| (n.to_string(), Quantity(q.to_string())))
            .collect()
    }

    pub(in crate::scheduler) fn node(name: &str, allocatable: &[(&str, &str)]) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.into());
        node.status = Some(NodeStatus {
            allocatable: Some(list(allocatable)),
            ..Default::default()
        });
        node
    }

    pub(in crate::scheduler) fn pod(name: &str, requests: &[(&str, &str)]) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.namespace = Some("default".into());
        pod.metadata.uid = Some(format!("uid-{name}"));
        pod.spec = Some(PodSpec {
            containers: vec![Container {
                resources: Some(ResourceRequirements {
                    requests: Some(list(requests)),
                    ..Default::default()
                }),
                ..Default::default()
            }],
            ..Default::default()
        });
        pod
    }

    fn cluster(nodes: usize) -> Cluster {
        let mut cluster = Cluster::default();
        for index in 0..nodes {
            let allocatable = [("cpu", "4"), ("memory", "8Gi"), ("pods", "110")];
            cluster.set_node(Arc::new(node(&format!("n{index}"), &allocatable)));
        }
        cluster
    }

    fn schedule(cluster: &mut Cluster, pod: &Pod, next: &mut usize) -> Result<String, String> {
        let needs = Needs::of(pod);
        match choose(&Profile::default(), cluster, &needs, next) {
            Choice::Node(node) => {
                cluster.assume(&needs, &node);
                Ok(node.to_string())
            }
            Choice::Nowhere(diagnosis) => Err(diagnosis.message(&needs)),
        }
    }

    #[test]
    fn replicas_spread_over_all_nodes() {
        let (mut cluster, mut next) = (cluster(3), 0);
        for index in 0..9 {
            let mut pod = pod(&format!("p{index}"), &[("cpu", "100m")]);
            pod.metadata.owner_references = Some(vec![OwnerReference {
                uid: "set".into(),
                controller: Some(true),
                ..Default::default()
            }]);
            schedule(&mut cluster, &pod, &mut next).unwrap();
        }
        for node in cluster.nodes() {
            assert_eq!(node.pods.len(), 3, "{}", node.name);
        }
    }

    #[test]
    fn a_pod_that_fits_nowhere_says_why_in_the_schedulers_words() {
        let (mut cluster, mut next) = (cluster(1), 0);
        let large = pod("large", &[("cpu", "64")]);
        assert_eq!(
            schedule(&mut cluster, &large, &mut next).unwrap_err(),
            "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
             1 Preemption is not helpful for scheduling."
        );
        schedule(&mut cluster, &pod("first", &[("cpu", "3")]), &mut next).unwrap();
        assert_eq!(
            schedule(&mut cluster, &pod("second", &[("cpu", "3")]), &mut next).unwrap_err(),
            "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
             1 No preemption victims found for incoming pod."
        );
        let mut none = super::super::cluster::Cluster::default();
        assert_eq!(
            schedule(&mut none, &large, &mut next).unwrap_err(),
            "no nodes available to schedule pods"
        );
    }

    #[test]
    fn a_large_cluster_is_searched_in_turns() {
        assert_eq!(enough_nodes(0), 1);
        assert_eq!(enough_nodes(100), 100);
        assert_eq!(enough_nodes(150), 100);
        assert_eq!(enough_nodes(1000), 420);
        assert_eq!(enough_nodes(5000), 500);
        let (mut cluster, mut next) = (cluster(400), 0);
        let mut used = std::collections::HashSet::new();
        for index in 0..800 {
            let pod = pod(&format!("p{index}"), &[("cpu", "1")]);
            used.insert(schedule(&mut cluster, &pod, &mut next).unwrap());
        }
        assert_eq!(used.len(), 400);
    }
}
