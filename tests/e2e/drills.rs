//! Failure drills as objects: applied with kubectl, carried out on real containers, reported in their status.

use serde_json::Value;

use crate::cluster::{Cluster, name};
use crate::wait;
use crate::web::Web;

/// A target that serves HTTP, and whose pods leave a lost node after so many seconds.
fn target(seconds: u32) -> String {
    let web = Web::nginx(3).ending_within(1);
    web.leaving_lost_nodes_after(seconds).manifest()
}

/// A cluster with the target on it, serving.
fn serving(nodes: usize) -> Cluster {
    let mut cluster = Cluster::of_nodes(nodes);
    cluster.apply(&target(0));
    cluster.until_all_ready("app=web", 3);
    cluster
}

/// Applies a drill, waits for its end, and gives its status.
fn run(cluster: &mut Cluster, drill: &str, spec: &str) -> Value {
    apply(cluster, drill, spec);
    completed(cluster, drill)
}

fn apply(cluster: &Cluster, drill: &str, spec: &str) {
    let manifest = format!(
        "apiVersion: skiff.dev/v1\nkind: Drill\nmetadata: {{name: {drill}}}\nspec:\n  drill: {drill}\n{spec}"
    );
    cluster.apply(&manifest);
}

fn completed(cluster: &mut Cluster, drill: &str) -> Value {
    wait::until(&format!("the end of {drill}"), || {
        let drill = cluster.get(&format!("/apis/skiff.dev/v1/drills/{drill}"))?;
        (drill["status"]["phase"] == "Completed").then(|| drill["status"].clone())
    })
}

/// The first entry of the timeline with this event.
fn entry<'a>(status: &'a Value, event: &str) -> &'a Value {
    let timeline = status["timeline"].as_array().expect("a timeline");
    let found = timeline.iter().find(|entry| entry["event"] == event);
    found.unwrap_or_else(|| panic!("no {event} in {timeline:#?}"))
}

fn at(status: &Value, event: &str) -> f64 {
    entry(status, event)["at"].as_f64().expect("a time")
}

/// What every drill that passed has in its report.
fn check(status: &Value) {
    assert_eq!(status["result"], "Passed", "{status:#}");
    assert_eq!(status["recovered"], true);
    let sent = status["requests"]["sent"].as_i64().expect("a number");
    assert!(sent > 10, "{sent} probes");
    let buckets = status["requests"]["buckets"].as_array().expect("a course");
    let counted: i64 = buckets.iter().filter_map(|b| b["sent"].as_i64()).sum();
    assert_eq!(counted, sent);
    let detect = status["timeToDetect"].as_f64().expect("a time");
    let recover = status["timeToRecover"].as_f64().expect("a time");
    assert!(0.0 <= detect && detect <= recover, "{detect} {recover}");
    assert!(at(status, "healed") >= at(status, "recovered"));
    assert_eq!(status["plan"], Value::Null);
    let spans = status["spans"].as_array().expect("spans");
    let ready = |span: &&Value| span["state"] == "Ready" && span["from"].as_f64() < Some(0.0);
    assert!(spans.iter().filter(ready).count() >= 4, "{spans:#?}");
}

#[test]
fn pods_are_killed_deleted_and_evicted() {
    let mut cluster = serving(2);
    let target = "  target: {kind: Deployment, name: web}\n";
    let pods: Vec<String> = cluster.pods("app=web").iter().map(name).collect();

    let kill = run(
        &mut cluster,
        "container-kill",
        &format!("{target}  seed: 1\n  expect: [restarts=1, moved=0]\n"),
    );
    check(&kill);
    assert_eq!(
        (&kill["restarts"], &kill["podsMoved"]),
        (&1.into(), &0.into())
    );
    let victim = kill["victims"][0].as_str().expect("a victim");
    assert!(
        pods.iter()
            .any(|pod| victim.starts_with(&format!("pod/{pod} (node-"))),
        "{victim}"
    );
    assert!(
        entry(&kill, "terminated")["detail"]
            .as_str()
            .expect("why")
            .contains("exit code 137")
    );
    assert!(at(&kill, "started") <= at(&kill, "recovered"));

    let delete = run(&mut cluster, "pod-delete", &format!("{target}  count: 2\n"));
    check(&delete);
    assert_eq!(delete["victims"].as_array().map(Vec::len), Some(2));
    for event in [
        "terminating",
        "created",
        "scheduled",
        "started",
        "ready",
        "inService",
    ] {
        assert!(at(&delete, event) >= 0.0);
    }

    let evict = run(&mut cluster, "pod-evict", target);
    check(&evict);

    let table = cluster.kubectl("get drills");
    for drill in ["container-kill", "pod-delete", "pod-evict"] {
        let row = table
            .lines()
            .find(|line| line.starts_with(drill))
            .expect("a row");
        assert!(
            row.contains("deployment/web") && row.contains("Passed"),
            "{table}"
        );
    }
    cluster.kubectl("wait drill/pod-evict --for=jsonpath={.status.phase}=Completed --timeout=5s");
    assert_eq!(cluster.kubectl("get drilltasks"), "");
    cluster.kubectl("delete drills --all");

    cluster.apply(
        "
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 3, selector: {matchLabels: {app: web}}}
",
    );
    wait::until("the budget's status", || {
        let budget = cluster.get("/apis/policy/v1/namespaces/default/poddisruptionbudgets/web")?;
        (budget["status"]["currentHealthy"] == 3).then_some(())
    });
    let refused = run(&mut cluster, "pod-evict", target);
    assert_eq!(refused["result"], "Refused");
    assert!(
        refused["message"]
            .as_str()
            .expect("why")
            .contains("The disruption budget web needs 3 healthy pods")
    );
}

#[test]
fn nodes_are_drained_and_crashed() {
    let mut cluster = serving(3);
    let drain = run(
        &mut cluster,
        "node-drain",
        "  target: {kind: Node, name: node-2}\n  duration: 3s\n",
    );
    check(&drain);
    assert_eq!(drain["victims"], serde_json::json!(["node/node-2"]));
    assert_eq!(drain["podsMoved"], 1, "{drain:#}");
    assert_ne!(drain["requests"]["from"], "node-2");
    let node = cluster.get("/api/v1/nodes/node-2").expect("the node");
    assert_ne!(node["spec"]["unschedulable"], true);
    let pods = cluster.until_all_ready("app=web", 3);
    assert!(pods.iter().all(|pod| pod["spec"]["nodeName"] != "node-2"));

    let crash = run(
        &mut cluster,
        "node-crash",
        "  target: {kind: Deployment, name: web}\n  duration: 30s\n  seed: 4\n",
    );
    check(&crash);
    let node = crash["victims"][0].as_str().expect("a victim").to_owned();
    assert!(at(&crash, "recovered") < at(&crash, "undone"), "{crash:#}");
    let lost = crash["timeline"].as_array().expect("a timeline").iter();
    let lost: Vec<&Value> = lost
        .filter(|e| e["object"] == *node && e["event"] == "notReady")
        .collect();
    assert_eq!(lost.len(), 1, "{crash:#}");
    let node = node.trim_start_matches("node/");
    crate::nodes::until_ready_is(&mut cluster, node, "True");
}

#[test]
fn what_only_the_undo_mended_has_not_recovered() {
    let mut cluster = Cluster::of_nodes(2);
    // They stay where they are for five minutes, as Kubernetes has it.
    cluster.apply(&target(300));
    cluster.until_all_ready("app=web", 3);
    let crash = run(
        &mut cluster,
        "node-crash",
        "  target: {kind: Deployment, name: web}\n  duration: 3s\n",
    );
    assert_eq!(crash["result"], "Failed", "{crash:#}");
    assert_eq!(crash["recovered"], false);
    assert_eq!(crash["timeToRecover"], Value::Null);
    let message = crash["message"].as_str().expect("why");
    assert!(
        message.starts_with("not recovered before the undo after "),
        "{message}"
    );
    assert!(message.ends_with("by the undo"), "{message}");
    assert!(at(&crash, "healed") > at(&crash, "undone"), "{crash:#}");
    let told = crash["timeline"].as_array().expect("a timeline").iter();
    assert!(
        told.clone().all(|entry| entry["event"] != "recovered"),
        "{crash:#}"
    );
    assert_eq!(crash["podsMoved"], 0);
    cluster.until_all_ready("app=web", 3);
}

#[test]
fn a_drill_outlives_a_crash_of_the_control_plane() {
    let mut cluster = serving(2);
    let spec = "  target: {kind: Deployment, name: web}\n  duration: 10s\n";
    apply(&cluster, "container-hang", spec);
    let injected = wait::until("the injection", || {
        let drill = cluster.get("/apis/skiff.dev/v1/drills/container-hang")?;
        drill["status"]["injectedAt"].as_str().map(str::to_owned)
    });
    cluster.crash();
    cluster.up();
    let status = completed(&mut cluster, "container-hang");
    assert_eq!(status["result"], "Passed", "{status:#}");
    assert_eq!(status["injectedAt"], injected.as_str());
    assert!(at(&status, "recovered") >= at(&status, "undone"));
    assert_eq!(status["restarts"], 0);
}
