//! The examples in docs/drills, each run as its first lines say, on three nodes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::cluster::Cluster;

const CONTAINERS: [&str; 3] = ["container-kill", "container-oom", "container-hang"];
const PODS: [&str; 3] = ["pod-delete", "pod-evict", "game-day"];
const NODES: [&str; 4] = [
    "node-drain",
    "node-crash",
    "node-partition",
    "agent-restart",
];
const SHORTAGES: [&str; 5] = [
    "pod-partition",
    "dns-outage",
    "packet-loss",
    "cpu-stress",
    "memory-pressure",
];
const CONTROL_PLANE: [&str; 2] = ["controlplane-restart", "controlplane-kill"];
/// What this host, or nodes that never pull images, may not be able to do: then they have to say so, and touch nothing.
const IF_POSSIBLE: [&str; 3] = ["latency", "disk-full", "registry-outage"];

#[test]
fn no_example_is_forgotten() {
    let run = CONTAINERS
        .iter()
        .chain(&PODS)
        .chain(&NODES)
        .chain(&SHORTAGES)
        .chain(&CONTROL_PLANE)
        .chain(&IF_POSSIBLE);
    let run: BTreeSet<String> = run.map(ToString::to_string).collect();
    let entries = std::fs::read_dir(examples()).expect("docs/drills");
    let files = entries.map(|entry| entry.expect("an entry").path());
    let names = files.map(|file| file.file_stem().expect("a name").display().to_string());
    assert_eq!(run, names.collect());
}

#[test]
fn examples_that_hit_containers_pass() {
    all_pass(&CONTAINERS);
}

#[test]
fn examples_that_hit_pods_pass() {
    all_pass(&PODS);
}

#[test]
fn examples_that_hit_nodes_pass() {
    all_pass(&NODES);
}

#[test]
fn examples_of_shortages_pass() {
    all_pass(&SHORTAGES);
}

#[test]
fn examples_that_hit_the_control_plane_pass() {
    all_pass(&CONTROL_PLANE);
}

#[test]
fn examples_that_a_host_can_not_do_are_refused() {
    let mut cluster = with_web();
    for name in IF_POSSIBLE {
        let output = run(&cluster, name);
        let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
        let result = report["result"].as_str().expect("a result");
        match output.status.code() {
            Some(0) => assert_eq!(result, "Passed", "{report:#}"),
            Some(1) => {
                assert_eq!(result, "Refused", "{report:#}");
                assert!(!report["message"].as_str().unwrap_or_default().is_empty());
                assert!(report["injectedAt"].is_null(), "{report:#}");
            }
            code => panic!("{name} ended with {code:?}: {report:#}"),
        }
    }
    cluster.until_all_ready("app=web", 3);
}

fn all_pass(names: &[&str]) {
    let mut cluster = with_web();
    for name in names {
        let output = run(&cluster, name);
        assert!(
            output.status.success(),
            "{name}: {}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        // The next one needs them all.
        cluster.until_all_ready("app=web", 3);
    }
}

fn with_web() -> Cluster {
    let mut cluster = Cluster::of_nodes(3);
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples/web.yaml");
    cluster.apply(&std::fs::read_to_string(web).expect("the workload"));
    cluster.until_all_ready("app=web", 3);
    cluster
}

fn run(cluster: &Cluster, name: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_skiff"))
        .args(["drill", "run", "-o", "json", "--kubeconfig"])
        .arg(cluster.kubeconfig())
        .arg("-f")
        .arg(examples().join(format!("{name}.yaml")))
        .stdin(Stdio::null())
        .output()
        .expect("skiff starts")
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/drills")
}
