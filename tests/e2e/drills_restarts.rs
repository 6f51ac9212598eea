//! What drills do to whole processes: the control plane and agents start anew in place, nodes end and come
//! back, and nothing else is touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use skiff_dev::DrillTask;

use crate::cluster::{self, Cluster};
use crate::nodes::{containers, state_of, until_ready_is};
use crate::wait;

#[test]
fn the_control_plane_starts_anew_in_place() {
    let mut cluster = Cluster::start();
    cluster.apply(&cluster::shell_pod("steady", cluster::SERVE, "", ""));
    cluster.until_ready("steady");
    let container = cluster.container_pid("steady", "main");
    let server = cluster.server_pid();
    let restarts = [(true, "0s"), (true, "1s"), (false, "0s"), (false, "1s")];
    for (number, (kill, down)) in restarts.into_iter().enumerate() {
        let started = start_of(server);
        cluster.kubectl(&format!("create configmap acknowledged-{number}"));
        let name = format!("restart-{number}");
        let restart = json!({"type": "RestartControlPlane", "kill": kill, "down": down});
        ask_for_restart(&cluster, &task(&name, None, &restart));
        let task = until_phase(&mut cluster, &name, "Ended");
        assert_eq!(task["status"]["message"], Value::Null);
        let away = time(&task, "endedAt").duration_since(time(&task, "startedAt"));
        let least = if down == "0s" { 0 } else { 1 };
        assert!(away >= SignedDuration::from_secs(least), "{away:?}");

        assert_eq!(cluster.server_pid(), server);
        assert_ne!(start_of(server), started, "it is the same start still");
        assert_eq!(cluster.container_pid("steady", "main"), container);
        let pod = cluster.until_ready("steady");
        assert_eq!(cluster::container_status(&pod)["restartCount"], 0);
        for earlier in 0..=number {
            cluster.kubectl(&format!("get configmap acknowledged-{earlier}"));
        }
    }
    // What it left behind would be seen here: a second lock, or a child that nobody waited for.
    let locks = open_files(server, &cluster.data_dir().join("lock"));
    assert_eq!(locks, 1);
    let listed = zombies_of(server);
    assert!(listed.is_empty(), "{listed:?}");

    // One that is to stay away for long can be stopped, and started by hand before its time.
    let started = start_of(server);
    let away = json!({"type": "RestartControlPlane", "kill": true, "down": "1h"});
    ask_for_restart(&cluster, &task("away", None, &away));
    wait::until("the server is away", || {
        let is_away =
            start_of(server) != started && cluster.get("/api/v1/namespaces/default").is_none();
        is_away.then_some(())
    });
    cluster.stop();
    cluster.up();
    let ended = until_phase(&mut cluster, "away", "Ended");
    assert!(time(&ended, "endedAt") > time(&ended, "startedAt"));
    cluster.kubectl("delete drilltask --all --timeout=60s");
    assert!(cluster.stop().success());
}

#[test]
fn nodes_outlive_their_control_planes_restarts_and_are_crashed_by_it() {
    let mut cluster = Cluster::of_nodes(2);
    for node in ["node-1", "node-2"] {
        let more = format!("nodeName: {node}\n");
        cluster.apply(&cluster::shell_pod(
            &format!("on-{node}"),
            cluster::SERVE,
            &more,
            "",
        ));
    }
    for node in ["node-1", "node-2"] {
        cluster.until_ready(&format!("on-{node}"));
    }
    let agents = [agent(&cluster, "node-1"), agent(&cluster, "node-2")];
    let server = cluster.server_pid();
    for (name, kill) in [("kill", true), ("kill-again", true), ("orderly", false)] {
        let started = start_of(server);
        let restart = json!({"type": "RestartControlPlane", "kill": kill, "down": "0s"});
        ask_for_restart(&cluster, &task(name, None, &restart));
        until_phase(&mut cluster, name, "Ended");
        assert_ne!(start_of(server), started);
        for node in ["node-1", "node-2"] {
            until_ready_is(&mut cluster, node, "True");
        }
        assert_eq!(
            [agent(&cluster, "node-1"), agent(&cluster, "node-2")],
            agents,
            "{name}"
        );
    }

    let running = containers(&cluster, "node-1");
    let (pid, started) = (agents[0], start_of(agents[0]));
    cluster.apply(&task(
        "agent",
        Some("node-1"),
        &json!({"type": "RestartAgent"}),
    ));
    until_phase(&mut cluster, "agent", "Ended");
    assert_eq!(agent(&cluster, "node-1"), pid);
    assert_ne!(start_of(pid), started);
    assert_eq!(containers(&cluster, "node-1"), running);

    let crash = json!({"type": "CrashNode", "node": "node-2"});
    cluster.apply(&task("crash", None, &crash));
    until_phase(&mut cluster, "crash", "Active");
    assert_eq!(state_of(&cluster, "node-2"), "killed");
    // It was a child that this start of the control plane did not make.
    wait::until("the agent's end is taken note of", || {
        zombies_of(server).is_empty().then_some(())
    });
    until_ready_is(&mut cluster, "node-2", "Unknown");
    // Whoever comes after a control plane that ended in between, undoes it.
    cluster.crash();
    cluster.options.clear();
    cluster.up();
    assert_eq!(state_of(&cluster, "node-2"), "killed");
    assert_eq!(
        agent(&cluster, "node-1"),
        pid,
        "adopted, by another process too"
    );
    cluster.kubectl("delete drilltask crash --timeout=60s");
    until_ready_is(&mut cluster, "node-2", "True");

    let nobody = json!({"type": "CrashNode", "node": "node-9"});
    cluster.apply(&task("nobody", None, &nobody));
    let failed = until_phase(&mut cluster, "nobody", "Failed");
    assert_eq!(
        failed["status"]["message"],
        "node node-9 is not one of this host's: its own agent has to do it"
    );
    cluster.kubectl("delete drilltask --all --timeout=60s");
    assert!(cluster.stop().success());
}

/// A task for the next minutes.
fn task(name: &str, node: Option<&str>, action: &Value) -> String {
    let until = Timestamp::now() + SignedDuration::from_mins(5);
    let task = json!({
        "apiVersion": "skiff.dev/v1", "kind": "DrillTask",
        "metadata": {"name": name, "finalizers": [DrillTask::UNDO]},
        "spec": {"drill": name, "nodeName": node, "action": action,
            "until": format!("{until:.6}")},
    });
    task.to_string()
}

fn until_phase(cluster: &mut Cluster, name: &str, phase: &str) -> Value {
    wait::until(&format!("task {name} is {phase}"), || {
        let task = cluster.get(&format!("/apis/skiff.dev/v1/drilltasks/{name}"))?;
        (task["status"]["phase"] == phase).then_some(task)
    })
}

fn time(task: &Value, field: &str) -> Timestamp {
    let text = task["status"][field].as_str().expect(field);
    text.parse().expect("a time")
}

/// Asks the server to start anew, which may cut its answer to this very request short.
fn ask_for_restart(cluster: &Cluster, task: &str) {
    let applied = cluster.try_feed("apply -f -", task);
    let said = String::from_utf8_lossy(&applied.stderr);
    let is_cut_short = ["EOF", "connection reset", "connection refused"]
        .iter()
        .any(|end| said.contains(end));
    assert!(applied.status.success() || is_cut_short, "{said}");
}

/// Changes whenever the process is replaced by a new start of itself.
fn start_of(pid: i32) -> String {
    // While it is being replaced, it has none that could be read.
    let environment = wait::until("the process has an environment", || {
        fs::read(format!("/proc/{pid}/environ")).ok()
    });
    let words = environment.split(|byte| *byte == 0);
    let mut words = words.map(String::from_utf8_lossy);
    let told = words.find(|word| word.starts_with("SKIFF_START_AT="));
    told.unwrap_or_default().into_owned()
}

fn agent(cluster: &Cluster, node: &str) -> i32 {
    let listed: Value =
        serde_json::from_str(&cluster.skiff(["node", "list", "-o", "json"])).expect("JSON");
    let listed = listed.as_array().expect("a list");
    let found = listed.iter().find(|n| n["name"] == node).expect("the node");
    i32::try_from(found["pid"].as_i64().expect("it runs")).expect("a pid")
}

/// The children of a process that have ended, and nobody knows.
fn zombies_of(parent: i32) -> BTreeSet<i32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_zombie = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
        fields.starts_with(&format!("Z {parent} "))
    };
    pids.filter(is_zombie).collect()
}

fn open_files(pid: i32, path: &Path) -> usize {
    let path = path.canonicalize().expect("it is there");
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let links = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter(|link| *link == path).count()
}
