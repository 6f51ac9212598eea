use serde_json::{Value, json};

use super::super::cycle::tests::{node, pod};
use super::super::cycle::{self, Choice};
use super::*;

struct Scene {
    cluster: Cluster,
    listers: Listers,
}

impl Scene {
    /// Nodes of four cores.
    fn new(nodes: &[&str]) -> Self {
        let mut cluster = Cluster::default();
        for name in nodes {
            let amounts = [("cpu", "4"), ("memory", "8Gi"), ("pods", "110")];
            cluster.set_node(Arc::new(node(name, &amounts)));
        }
        Self {
            cluster,
            listers: Listers::empty(),
        }
    }

    fn place(&mut self, name: &str, cpu: &str, priority: i32, node: &str) -> &mut Self {
        self.cluster.assume(&needs(name, cpu, priority), node);
        self
    }

    fn search(&self, pod: &Needs) -> Preemption {
        let profile = Profile::new(&self.listers);
        match cycle::choose(&profile, &self.cluster, pod, &mut 0) {
            Choice::Node(node) => panic!("it fits on {node}"),
            Choice::Nowhere(diagnosis) => {
                search(&profile, &self.cluster, pod, &diagnosis, &self.listers)
            }
        }
    }

    fn plan(&self, pod: &Needs) -> (String, Vec<String>) {
        match self.search(pod) {
            Preemption::Plan(plan) => {
                let victims = plan.victims.iter();
                let victims = victims.map(|victim| victim.key.name.to_string());
                (plan.node.to_string(), victims.collect())
            }
            Preemption::Pointless(why) | Preemption::UnderWay(why) => panic!("{why}"),
        }
    }

    fn refusal(&self, pod: &Needs) -> String {
        match self.search(pod) {
            Preemption::Plan(plan) => panic!("{plan:?}"),
            Preemption::Pointless(why) | Preemption::UnderWay(why) => why,
        }
    }
}

fn needs(name: &str, cpu: &str, priority: i32) -> Needs {
    Needs::of(&with_priority(name, cpu, priority))
}

fn with_priority(name: &str, cpu: &str, priority: i32) -> k8s_openapi::api::core::v1::Pod {
    let mut pod = pod(name, &[("cpu", cpu)]);
    pod.metadata.labels = Some([("app".to_string(), name.to_string())].into());
    pod.spec.as_mut().unwrap().priority = Some(priority);
    pod
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

#[test]
fn only_who_has_to_go_goes_and_the_least_important_first() {
    let mut scene = Scene::new(&["n1"]);
    scene
        .place("low", "2", 1, "n1")
        .place("middle", "1", 5, "n1")
        .place("high", "1", 50, "n1");
    assert_eq!(
        scene.plan(&needs("p", "2", 10)),
        ("n1".into(), names(&["low"]))
    );
    assert_eq!(
        scene.plan(&needs("p", "3", 10)),
        ("n1".into(), names(&["middle", "low"]))
    );
}

#[test]
fn the_node_is_taken_whose_victims_matter_least() {
    let mut scene = Scene::new(&["n1", "n2", "n3"]);
    scene
        .place("a", "4", 5, "n1")
        .place("b", "2", 2, "n2")
        .place("c", "2", 2, "n2")
        .place("d", "4", 2, "n3");
    // n1 has the more important victim, n2 two where n3 has one.
    assert_eq!(
        scene.plan(&needs("p", "4", 10)),
        ("n3".into(), names(&["d"]))
    );
}

#[test]
fn a_disruption_budget_is_broken_only_when_nothing_else_helps() {
    let budget = |name: &str, allowed: i64| {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"selector": {"matchLabels": {"app": name}}},
            "status": {"disruptionsAllowed": allowed, "currentHealthy": 1,
                "desiredHealthy": 1, "expectedPods": 1},
        }))
        .unwrap()
    };
    let mut scene = Scene::new(&["n1", "n2"]);
    scene
        .place("cheap", "4", 1, "n1")
        .place("dear", "4", 5, "n2");
    assert_eq!(scene.plan(&needs("p", "4", 10)).0, "n1");
    scene.listers.budgets.put(budget("cheap", 0));
    assert_eq!(scene.plan(&needs("p", "4", 10)).0, "n2");
    scene.listers.budgets.put(budget("dear", 0));
    assert_eq!(scene.plan(&needs("p", "4", 10)).0, "n1");
}

#[test]
fn it_is_said_why_preemption_does_not_help() {
    let mut scene = Scene::new(&["n1", "n2"]);
    scene
        .place("equal", "4", 10, "n1")
        .place("low", "1", 1, "n2");
    assert_eq!(
        scene.refusal(&needs("p", "64", 10)),
        "0/2 nodes are available: 2 Preemption is not helpful for scheduling."
    );
    scene.place("equal2", "3", 10, "n2");
    assert_eq!(
        scene.refusal(&needs("p", "2", 10)),
        "0/2 nodes are available: 1 Insufficient cpu, 1 No preemption victims found for incoming \
         pod."
    );
    let mut modest = with_priority("p", "2", 100);
    modest.spec.as_mut().unwrap().preemption_policy = Some("Never".into());
    assert_eq!(
        scene.refusal(&Needs::of(&modest)),
        "not eligible due to preemptionPolicy=Never."
    );
}

#[test]
fn a_pod_waits_for_those_that_make_room_for_it() {
    let mut scene = Scene::new(&["n1"]);
    let mut victim = with_priority("victim", "4", 1);
    victim.metadata.deletion_timestamp = Some(
        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH),
    );
    let condition: Value =
        json!({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"});
    victim.status = Some(serde_json::from_value(json!({"conditions": [condition]})).unwrap());
    let victim = Arc::new(Footprint::of(&victim));
    scene.cluster.set_pod(victim.clone(), "n1");
    let high = needs("high", "4", 10);
    let nominations = &mut scene.cluster.nominations;
    nominations.set(high.footprint.clone(), "n1");
    assert_eq!(
        scene.refusal(&high),
        "not eligible due to a terminating pod on the nominated node."
    );
    // Nobody less important may take the place when it is free.
    scene.cluster.remove_pod(&victim.uid);
    let low = needs("low", "1", 1);
    assert_eq!(
        scene.refusal(&low),
        "0/1 nodes are available: 1 No preemption victims found for incoming pod."
    );
    // The pod itself has it, and one that is more important too.
    let profile = Profile::new(&scene.listers);
    for pod in [high, needs("higher", "4", 20)] {
        let choice = cycle::choose(&profile, &scene.cluster, &pod, &mut 0);
        assert!(matches!(choice, Choice::Node(_)));
    }
}

#[test]
fn whom_others_keep_away_can_make_them_go() {
    let mut scene = Scene::new(&["n1"]);
    let mut hermit = with_priority("hermit", "1", 1);
    let affinity = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "p"}}},
    ]}});
    hermit.spec.as_mut().unwrap().affinity = Some(serde_json::from_value(affinity).unwrap());
    scene.cluster.assume(&Needs::of(&hermit), "n1");
    scene.place("other", "1", 1, "n1");
    assert_eq!(
        scene.plan(&needs("p", "1", 10)),
        ("n1".into(), names(&["hermit"]))
    );
}
