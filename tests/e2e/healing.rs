//! Nodes that are lost: who notices, where their pods go, and who goes on serving.

use std::process::Command;

use serde_json::Value;

use crate::cluster::{self, Cluster};
use crate::nodes::{node_of, until_ready_is};
use crate::wait;
use crate::web::Web;

/// Pods that serve their own name, one on each node, and say nothing of nodes that are lost.
fn spread(replicas: usize, when_unsatisfiable: &str) -> String {
    let web = Web::names(replicas).ending_within(1);
    web.spread(when_unsatisfiable).manifest()
}

fn of_nodes(nodes: usize, toleration: &str) -> Cluster {
    let flags = [
        "--default-unreachable-toleration-seconds",
        toleration,
        "--default-not-ready-toleration-seconds",
        toleration,
    ];
    Cluster::of_nodes_with(nodes, &flags)
}

#[test]
fn a_lost_node_serves_nothing_and_its_pods_are_replaced() {
    let mut cluster = of_nodes(3, "2");
    cluster.apply(&spread(3, "ScheduleAnyway"));
    let pods = cluster.until_all_ready("app=web", 3);
    let nodes: std::collections::BTreeSet<&str> = pods.iter().map(node_of).collect();
    assert_eq!(nodes.len(), 3, "one on each node");
    until_served_by(&mut cluster, 3);
    let lost = pods.iter().find(|pod| node_of(pod) == "node-2");
    let lost = cluster::name(lost.expect("a pod of node-2"));

    cluster.skiff(["node", "kill", "node-2"]);
    until_ready_is(&mut cluster, "node-2", "Unknown");
    wait::until("its endpoint is out", || {
        let ready = ready_endpoints(&mut cluster);
        (!ready.contains(&lost)).then_some(())
    });
    let moved = cluster.until_all_ready("app=web", 3);
    assert!(moved.iter().all(|pod| node_of(pod) != "node-2"));
    until_served_by(&mut cluster, 3);
    let evicted = cluster.pod(&lost).expect("nobody confirms its end yet");
    let target = cluster::condition(&evicted, "DisruptionTarget");
    assert_eq!(target["reason"], "DeletionByTaintManager");

    cluster.skiff(["node", "start", "node-2"]);
    until_ready_is(&mut cluster, "node-2", "True");
    wait::until("the lost pod is cleaned up", || {
        cluster.pod(&lost).is_none().then_some(())
    });
    wait::until("the taints are gone", || {
        let node = cluster.get("/api/v1/nodes/node-2")?;
        node["spec"]["taints"].is_null().then_some(())
    });
    assert!(running(&cluster, "node-2").is_empty());
    cluster.kubectl("scale deployment web --replicas=6");
    let pods = cluster.until_all_ready("app=web", 6);
    assert!(pods.iter().any(|pod| node_of(pod) == "node-2"));
}

#[test]
fn nobody_is_evicted_while_most_nodes_are_lost() {
    let mut cluster = of_nodes(4, "8");
    cluster.apply(&spread(4, "DoNotSchedule"));
    let pods = cluster.until_all_ready("app=web", 4);
    // At once, not one after the other.
    let kills = ["node-1", "node-2", "node-3"].map(|node| {
        let mut kill = Command::new(env!("CARGO_BIN_EXE_skiff"));
        kill.args(["node", "kill", node, "--data-dir"]);
        kill.arg(cluster.data_dir()).spawn().expect("skiff starts")
    });
    for mut kill in kills {
        assert!(kill.wait().expect("its end").success());
    }
    for node in ["node-1", "node-2", "node-3"] {
        until_ready_is(&mut cluster, node, "Unknown");
    }
    wait::until("taints that evict nobody", || {
        let lost = ["node-1", "node-2", "node-3"];
        let effects = lost.map(|node| effects_of(&mut cluster, node));
        effects.iter().all(|e| e == &["NoSchedule"]).then_some(())
    });
    let names = |pods: &[Value]| pods.iter().map(cluster::name).collect::<Vec<_>>();
    assert_eq!(names(&cluster.pods("app=web")), names(&pods));

    cluster.skiff(["node", "start", "node-1"]);
    until_ready_is(&mut cluster, "node-1", "True");
    // Half of the nodes are there again: the others are lost for good.
    for node in ["node-2", "node-3"] {
        wait::until("a taint that evicts", || {
            let effects = effects_of(&mut cluster, node);
            (effects == ["NoSchedule", "NoExecute"]).then_some(())
        });
    }
    wait::until("their pods are evicted", || {
        let left = cluster.pods("app=web");
        let lost = left
            .iter()
            .filter(|pod| matches!(node_of(pod), "node-2" | "node-3"));
        (lost.count() == 0).then_some(())
    });
}

#[test]
fn a_node_that_is_cut_off_serves_its_own_and_forgets_what_was_taken_from_it() {
    let mut cluster = of_nodes(2, "600");
    cluster.apply(&spread(4, "DoNotSchedule"));
    let pods = cluster.until_all_ready("app=web", 4);
    let here: Vec<&Value> = pods.iter().filter(|pod| node_of(pod) == "node-1").collect();
    assert_eq!(here.len(), 2);
    let (asks, answers) = (cluster::name(here[0]), cluster::name(here[1]));
    let address = here[1]["status"]["podIP"].as_str().expect("an address");

    cluster.skiff(["node", "cut", "node-1"]);
    until_ready_is(&mut cluster, "node-1", "Unknown");
    let url = format!("http://{address}/");
    let fetch = ["exec", &asks, "--", "wget", "-q", "-O-", &url];
    let answer = on_node(&cluster, "node-1", &fetch);
    assert_eq!(answer.trim(), answers);

    cluster.kubectl(&format!("delete pod {answers} --force --grace-period=0"));
    assert!(cluster.pod(&answers).is_none());
    assert!(running(&cluster, "node-1").contains(&answers));
    cluster.skiff(["node", "heal", "node-1"]);
    until_ready_is(&mut cluster, "node-1", "True");
    wait::until("the pod that is gone from the API ends", || {
        let running = running(&cluster, "node-1");
        (!running.contains(&answers) && running.contains(&asks)).then_some(())
    });
    cluster.until_all_ready("app=web", 4);
}

#[test]
fn ten_nodes_start_and_share_the_pods() {
    let mut cluster = Cluster::of_nodes(10);
    let begin = std::time::Instant::now();
    cluster.stop();
    cluster.up();
    eprintln!("ten nodes Ready again after {:?}", begin.elapsed());
    for node in 1..=10 {
        until_ready_is(&mut cluster, &format!("node-{node}"), "True");
    }
    cluster.apply(&spread(10, "DoNotSchedule"));
    let pods = cluster.until_all_ready("app=web", 10);
    let nodes: std::collections::BTreeSet<&str> = pods.iter().map(node_of).collect();
    assert_eq!(nodes.len(), 10);
}

/// The names of the pods behind the Service that are ready.
fn ready_endpoints(cluster: &mut Cluster) -> Vec<String> {
    let endpoints = cluster.endpoints_of("web");
    let ready = endpoints
        .iter()
        .filter(|e| e["conditions"]["ready"] == true);
    let names = ready.filter_map(|e| e["targetRef"]["name"].as_str());
    names.map(str::to_owned).collect()
}

fn until_served_by(cluster: &mut Cluster, pods: usize) {
    wait::until(&format!("{pods} ready endpoints"), || {
        (ready_endpoints(cluster).len() == pods).then_some(())
    });
}

/// The effects of the taint of a node that nothing is heard of.
fn effects_of(cluster: &mut Cluster, node: &str) -> Vec<String> {
    let node = cluster
        .get(&format!("/api/v1/nodes/{node}"))
        .unwrap_or_default();
    let taints = node["spec"]["taints"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let lost = taints
        .iter()
        .filter(|t| t["key"] == "node.kubernetes.io/unreachable");
    lost.filter_map(|t| t["effect"].as_str())
        .map(str::to_owned)
        .collect()
}

/// `skiff ARGS` on a node, without the control plane.
fn on_node(cluster: &Cluster, node: &str, args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_skiff"))
        .args(&args[..1])
        .arg("--data-dir")
        .arg(cluster.node_dir(node))
        .args(&args[1..])
        .output()
        .expect("skiff starts");
    cluster::succeeded(&format!("skiff {}", args.join(" ")), &output)
}

/// The pods that have a running container on a node.
fn running(cluster: &Cluster, node: &str) -> Vec<String> {
    let listed = on_node(cluster, node, &["ps", "-o", "json"]);
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let running = listed.as_array().expect("a list").iter();
    let running = running.filter(|container| container["state"] == "running");
    running
        .filter_map(|c| c["pod"].as_str())
        .map(str::to_owned)
        .collect()
}
