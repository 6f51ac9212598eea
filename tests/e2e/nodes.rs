//! Several nodes: pods spread over them, and what happens when one is killed, cut off or drained.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::cluster::{Cluster, SERVE};
use crate::web::Web;
use crate::{host, wait};

/// Pods that tell their names, and leave a lost node.
fn leaving_lost_nodes_after(seconds: u32) -> String {
    let script = format!("echo I am $HOSTNAME; {SERVE}");
    let container = json!({"name": "main", "image": "busybox", "command": ["sh", "-c", script]});
    let web = Web::of(3, &container).ending_within(1);
    web.leaving_lost_nodes_after(seconds).deployment()
}

#[test]
fn pods_spread_over_nodes_and_leave_one_that_is_killed() {
    let mut cluster = Cluster::of_nodes(3);
    cluster.apply(&leaving_lost_nodes_after(1));
    let pods = cluster.until_all_ready("app=web", 3);
    let mut nodes: Vec<&str> = pods.iter().map(node_of).collect();
    nodes.sort_unstable();
    assert_eq!(nodes, ["node-1", "node-2", "node-3"]);
    for pod in &pods {
        let name = name_of(pod);
        assert_eq!(
            cluster.kubectl(&format!("logs {name}")),
            format!("I am {name}\n")
        );
        assert_eq!(
            cluster.kubectl(&format!("exec {name} -- hostname")),
            format!("{name}\n")
        );
    }

    let victim = pods
        .iter()
        .find(|pod| node_of(pod) == "node-2")
        .expect("one");
    let victim = name_of(victim).to_owned();
    cluster.skiff(["node", "kill", "node-2"]);
    until_ready_is(&mut cluster, "node-2", "Unknown");
    assert_eq!(state_of(&cluster, "node-2"), "killed");
    wait::until("the taints of a node that is gone", || {
        let node = cluster.get("/api/v1/nodes/node-2")?;
        let taints = node["spec"]["taints"].as_array()?.clone();
        let has = |effect| {
            taints
                .iter()
                .any(|t| t["key"] == "node.kubernetes.io/unreachable" && t["effect"] == effect)
        };
        (has("NoSchedule") && has("NoExecute")).then_some(())
    });
    let moved = cluster.until_all_ready("app=web", 3);
    assert!(moved.iter().all(|pod| node_of(pod) != "node-2"));

    cluster.skiff(["node", "start", "node-2"]);
    until_ready_is(&mut cluster, "node-2", "True");
    wait::until("the lost pod is cleaned up", || {
        cluster.pod(&victim).is_none().then_some(())
    });
}

#[test]
fn the_hosts_commands_see_all_nodes_or_the_one_that_is_named() {
    let mut cluster = Cluster::of_nodes(2);
    cluster.apply(&leaving_lost_nodes_after(600));
    let pods = cluster.until_all_ready("app=web", 3);
    let listed = |printed: String| -> Vec<Value> { serde_json::from_str(&printed).expect("JSON") };
    let nodes: BTreeSet<String> = listed(cluster.skiff(["ps", "-o", "json"]))
        .iter()
        .map(|container| container["node"].as_str().expect("a node").to_owned())
        .collect();
    assert_eq!(nodes, ["node-1", "node-2"].map(str::to_owned).into());
    let one = listed(cluster.skiff(["ps", "--node", "node-2", "-o", "json"]));
    assert!(!one.is_empty() && one.iter().all(|container| container["node"] == "node-2"));
    for pod in &pods {
        let name = name_of(pod);
        assert_eq!(cluster.skiff(["logs", name]), format!("I am {name}\n"));
        let said = cluster.skiff(["exec", name, "--", "hostname"]);
        assert_eq!(said, format!("{name}\n"));
        let inspected = cluster.skiff(["inspect", name, "-o", "json"]);
        let inspected: Value = serde_json::from_str(&inspected).expect("JSON");
        assert_eq!(inspected["node"], node_of(pod));
    }

    let busybox = "docker.io/library/busybox:latest";
    let having = |cluster: &Cluster| -> Vec<String> {
        let listed = listed(cluster.skiff(["image", "list", "busybox", "-o", "json"]));
        let node = |image: &Value| image["node"].as_str().expect("a node").to_owned();
        listed.iter().map(node).collect()
    };
    assert_eq!(having(&cluster), ["node-1", "node-2"]);
    cluster.skiff(["image", "rm", "--force", "--node", "node-1", busybox]);
    assert_eq!(having(&cluster), ["node-2"]);
    // It is still somewhere, and then nowhere.
    cluster.skiff(["image", "rm", "--force", busybox]);
    assert_eq!(having(&cluster), Vec::<String>::new());
    for (words, told) in [
        (["image", "rm", busybox], "busybox"),
        (["ps", "--node", "node-9"], "it has node-1, node-2"),
    ] {
        let refused = cluster.try_skiff(words);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(told), "{said}");
    }
}

#[test]
fn a_node_that_is_cut_off_keeps_its_pods_and_comes_back() {
    let mut cluster = Cluster::of_nodes(2);
    cluster.apply(&leaving_lost_nodes_after(600));
    cluster.until_all_ready("app=web", 3);
    cluster.skiff(["node", "cut", "node-1"]);
    assert_eq!(state_of(&cluster, "node-1"), "cut");
    until_ready_is(&mut cluster, "node-1", "Unknown");
    let running = containers(&cluster, "node-1");
    assert!(!running.is_empty());
    for pid in &running {
        assert!(!host::command_line(*pid).is_empty(), "{pid} lives on");
    }
    cluster.skiff(["node", "heal", "node-1"]);
    until_ready_is(&mut cluster, "node-1", "True");
    cluster.until_all_ready("app=web", 3);
    assert_eq!(containers(&cluster, "node-1"), running);
}

#[test]
fn nodes_outlive_the_control_plane_and_come_back_with_it() {
    let mut cluster = Cluster::of_nodes(2);
    cluster.apply(&leaving_lost_nodes_after(600));
    cluster.until_all_ready("app=web", 3);
    let running = containers(&cluster, "node-1");
    cluster.crash();
    assert_eq!(state_of(&cluster, "node-1"), "running");
    cluster.skiff(["node", "kill", "node-2"]);
    cluster.options.clear();
    cluster.up();
    until_ready_is(&mut cluster, "node-1", "True");
    assert_eq!(containers(&cluster, "node-1"), running);
    assert_eq!(state_of(&cluster, "node-2"), "killed");
    until_ready_is(&mut cluster, "node-2", "Unknown");
    cluster.stop();
    assert_eq!(state_of(&cluster, "node-1"), "stopped");
    assert_eq!(containers(&cluster, "node-1"), running);
}

#[test]
fn a_drain_waits_for_the_disruption_budget() {
    let mut cluster = Cluster::of_nodes(2);
    cluster.apply(&leaving_lost_nodes_after(1));
    cluster.until_all_ready("app=web", 3);
    cluster.apply(
        "apiVersion: policy/v1\nkind: PodDisruptionBudget\nmetadata: {name: web}\nspec:\n  minAvailable: 3\n  selector: {matchLabels: {app: web}}\n",
    );
    let budget = "/apis/policy/v1/namespaces/default/poddisruptionbudgets/web";
    wait::until("the budget is counted", || {
        let budget = cluster.get(budget)?;
        (budget["status"]["currentHealthy"] == 3).then_some(())
    });
    let refused = cluster.try_kubectl("drain node-1 --ignore-daemonsets --timeout=3s");
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("Cannot evict pod as it would violate the pod's disruption budget."),
        "{said}"
    );
    cluster.kubectl("patch pdb web --type merge -p {\"spec\":{\"minAvailable\":1}}");
    cluster.kubectl("drain node-1 --ignore-daemonsets --timeout=60s");
    let pods = cluster.until_all_ready("app=web", 3);
    assert!(pods.iter().all(|pod| node_of(pod) == "node-2"));
    let nodes = cluster.kubectl("get nodes");
    assert!(nodes.contains("Ready,SchedulingDisabled"), "{nodes}");
    cluster.kubectl("uncordon node-1");
}

pub(crate) fn node_of(pod: &Value) -> &str {
    pod["spec"]["nodeName"].as_str().unwrap_or_default()
}

fn name_of(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap_or_default()
}

/// Waits for a node's Ready condition.
pub(crate) fn until_ready_is(cluster: &mut Cluster, node: &str, status: &str) {
    wait::until(&format!("{node}: Ready is {status}"), || {
        let node = cluster.get(&format!("/api/v1/nodes/{node}"))?;
        let conditions = node["status"]["conditions"].as_array()?.clone();
        let ready = conditions.into_iter().find(|c| c["type"] == "Ready")?;
        (ready["status"] == status).then_some(())
    });
}

pub(crate) fn state_of(cluster: &Cluster, node: &str) -> String {
    let listed = cluster.skiff(["node", "list", "-o", "json"]);
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let listed = listed.as_array().expect("a list");
    let found = listed.iter().find(|n| n["name"] == node).expect("the node");
    found["state"].as_str().expect("a state").to_owned()
}

/// The processes of a node's containers.
pub(crate) fn containers(cluster: &Cluster, node: &str) -> Vec<i32> {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_skiff"))
        .args(["ps", "-o", "json", "--data-dir"])
        .arg(cluster.node_dir(node))
        .output()
        .expect("skiff starts");
    let listed = crate::cluster::succeeded("skiff ps", &output);
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let listed = listed.as_array().expect("a list");
    let running = listed.iter().filter(|c| c["state"] == "running");
    let mut pids: Vec<i32> = running
        .filter_map(|c| c["pid"].as_i64())
        .map(|pid| pid as i32)
        .collect();
    pids.sort_unstable();
    pids
}
