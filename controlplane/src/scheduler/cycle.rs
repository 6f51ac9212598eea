//! One scheduling cycle: which node is the best for a pod.
//!
//! Filters run on each node until enough feasible ones are found; scores rank those; chance
//! decides among the best. In a large cluster only a part of the nodes is looked at, and the
//! next cycle goes on where this one ended, so that all nodes get their turn.

use std::sync::Arc;

use rand::Rng;

use super::Listers;
use super::cluster::{Cluster, NodeInfo};
use super::diagnosis::Diagnosis;
use super::needs::{Footprint, Needs};
use super::plugins::{self, NodeFilter, Plugin, Plugins, Refusal, Supposition};

/// Feasible nodes that are always enough to choose from.
const ENOUGH_NODES: usize = 100;
/// In a large cluster, the least share of nodes to look for, in percent.
const LEAST_SHARE: usize = 5;

/// The rules by which nodes are chosen.
pub(super) struct Profile {
    plugins: Vec<Box<dyn Plugin>>,
}

impl Profile {
    pub(super) fn new(listers: &Listers) -> Self {
        Self {
            plugins: plugins::all(listers),
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
    let filters = Filters::new(profile, pod, cluster);
    // Room was made for it there.
    let nominated = cluster.nominations.node_of(&pod.footprint.uid);
    if let Some(node) = nominated.and_then(|name| cluster.node(name))
        && filters.check(node).is_ok()
    {
        return Choice::Node(node.name.clone());
    }
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
        match filters.check(node) {
            Ok(()) => feasible.push(node),
            Err((plugin, refusal)) => diagnosis.add(node, plugin, refusal),
        }
        if feasible.len() == enough {
            break;
        }
    }
    *next = start + seen;
    match best(profile, pod, cluster, &feasible) {
        Some(node) => Choice::Node(node.name.clone()),
        None => Choice::Nowhere(diagnosis),
    }
}

/// The checks that a pod needs.
pub(super) struct Filters<'a> {
    pod: &'a Needs,
    cluster: &'a Cluster,
    filters: Vec<(Plugins, NodeFilter<'a>)>,
}

impl<'a> Filters<'a> {
    pub(super) fn new(profile: &Profile, pod: &'a Needs, cluster: &'a Cluster) -> Self {
        let filters = profile.plugins.iter();
        Self {
            filters: filters
                .filter_map(|plugin| Some((plugin.id(), plugin.filter(pod, cluster)?)))
                .collect(),
            pod,
            cluster,
        }
    }

    pub(super) fn check(&self, node: &NodeInfo) -> Result<(), (Plugins, Refusal)> {
        self.check_without(node, &[])
    }

    /// Checks a node from which `gone` were taken. Pods that wait for room there and are not less
    /// important have to fit as well as this one, and may not be what lets it in.
    pub(super) fn check_without(
        &self,
        node: &NodeInfo,
        gone: &[Arc<Footprint>],
    ) -> Result<(), (Plugins, Refusal)> {
        let nominations = &self.cluster.nominations;
        if !nominations.is_empty() {
            let come = nominations.before(&self.pod.footprint, &node.name);
            if !come.is_empty() {
                let mut crowded = node.clone();
                come.iter().for_each(|pod| crowded.add(pod.clone()));
                self.ask(&crowded, Supposition { gone, come: &come })?;
            }
        }
        self.ask(node, Supposition { gone, come: &[] })
    }

    fn ask(&self, node: &NodeInfo, supposed: Supposition<'_>) -> Result<(), (Plugins, Refusal)> {
        for (plugin, filter) in &self.filters {
            filter(node, supposed).map_err(|refusal| (*plugin, refusal))?;
        }
        Ok(())
    }
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

fn best<'a>(
    profile: &Profile,
    pod: &Needs,
    cluster: &Cluster,
    feasible: &[&'a NodeInfo],
) -> Option<&'a NodeInfo> {
    if feasible.len() < 2 {
        return feasible.first().copied();
    }
    let mut totals = vec![0i64; feasible.len()];
    for plugin in &profile.plugins {
        let Some(scores) = plugin.score(pod, cluster, feasible) else {
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

    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::core::v1::{
        Container, Node, NodeStatus, Pod, PodSpec, ResourceRequirements,
    };
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::super::cluster::HOSTNAME;
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
        node.metadata.labels = Some([(HOSTNAME.to_string(), name.to_string())].into());
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
        let profile = Profile::new(&Listers::empty());
        match choose(&profile, cluster, &needs, next) {
            Choice::Node(node) => {
                cluster.assume(&needs, &node);
                Ok(node.to_string())
            }
            Choice::Nowhere(diagnosis) => Err(diagnosis.message()),
        }
    }

    #[test]
    fn replicas_spread_over_all_nodes() {
        let listers = Listers::empty();
        listers.replica_sets.put(replica_set("set"));
        let profile = Profile::new(&listers);
        let (mut cluster, mut next) = (cluster(3), 0);
        for index in 0..9 {
            let needs = Needs::of(&replica("set", &format!("p{index}")));
            let Choice::Node(node) = choose(&profile, &cluster, &needs, &mut next) else {
                panic!("no node");
            };
            cluster.assume(&needs, &node);
        }
        for node in cluster.nodes() {
            assert_eq!(node.pods.len(), 3, "{}", node.name);
        }
    }

    pub(in crate::scheduler) fn replica_set(name: &str) -> ReplicaSet {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"set": name}}, "template": {}},
        }))
        .unwrap()
    }

    /// A pod of a ReplicaSet.
    pub(in crate::scheduler) fn replica(set: &str, name: &str) -> Pod {
        let mut pod = pod(name, &[("cpu", "100m")]);
        pod.metadata.labels = Some([("set".to_string(), set.to_string())].into());
        pod.metadata.owner_references = Some(vec![OwnerReference {
            kind: "ReplicaSet".into(),
            name: set.into(),
            uid: set.into(),
            controller: Some(true),
            ..Default::default()
        }]);
        pod
    }

    #[test]
    fn a_pod_that_fits_nowhere_says_why_in_the_schedulers_words() {
        let (mut cluster, mut next) = (cluster(1), 0);
        let large = pod("large", &[("cpu", "64")]);
        assert_eq!(
            schedule(&mut cluster, &large, &mut next).unwrap_err(),
            "0/1 nodes are available: 1 Insufficient cpu."
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

    /// How long a pod takes on average when 3,000 replicas come to so many nodes.
    fn time_for_each(nodes: usize, spec: &serde_json::Value) -> std::time::Duration {
        let listers = Listers::empty();
        let profile = Profile::new(&listers);
        let (mut cluster, mut next) = (cluster(nodes), 0);
        for set in 0..10 {
            listers.replica_sets.put(replica_set(&format!("set{set}")));
        }
        let pods: Vec<Needs> = (0..3000)
            .map(|index| {
                let mut pod = replica(&format!("set{}", index % 10), &format!("p{index}"));
                let mut spec = spec.clone();
                let text = spec
                    .to_string()
                    .replace("SET", &format!("set{}", index % 10));
                spec = serde_json::from_str(&text).unwrap();
                let ours = pod.spec.as_mut().unwrap();
                ours.affinity = serde_json::from_value(spec["affinity"].clone()).unwrap();
                let constraints = spec["topologySpreadConstraints"].clone();
                ours.topology_spread_constraints = serde_json::from_value(constraints).unwrap();
                Needs::of(&pod)
            })
            .collect();
        let begin = std::time::Instant::now();
        for needs in &pods {
            let Choice::Node(node) = choose(&profile, &cluster, needs, &mut next) else {
                panic!("no node");
            };
            cluster.assume(needs, &node);
        }
        begin.elapsed() / 3000
    }

    #[test]
    #[ignore = "a measurement: cargo test --release -- --ignored --nocapture at_a_thousand_nodes"]
    fn pods_a_second_at_a_thousand_nodes() {
        use serde_json::{Value, json};
        let selector = json!({"matchLabels": {"set": "SET"}});
        let apart = json!({"affinity": {"podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": HOSTNAME, "labelSelector": selector},
            ],
        }}});
        let even = json!({"topologySpreadConstraints": [{
            "topologyKey": HOSTNAME, "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": selector,
        }]});
        let kinds = [
            ("replicas", Value::Null),
            ("anti-affinity", apart),
            ("spread", even),
        ];
        for (name, spec) in kinds {
            for nodes in [500, 1000, 2000] {
                let each = time_for_each(nodes, &spec);
                let rate = 1.0 / each.as_secs_f64();
                eprintln!("{name:>13} {nodes:>5} nodes: {each:>9.1?} a pod, {rate:>7.0} pods/s");
            }
        }
    }
}
