//! A host joins a cluster: with the right token it becomes a node, with anything else it is told why not.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::cluster::Cluster;
use crate::nodes::until_ready_is;
use crate::wait;

pub(crate) fn agent(cluster: &Cluster, token: Option<&str>) -> Command {
    agent_of(&format!("https://{}", cluster.address()), cluster, token)
}

fn agent_of(server: &str, cluster: &Cluster, token: Option<&str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
    command
        .args([
            "agent",
            "--offline",
            "--node-name",
            "guest",
            "--server",
            server,
        ])
        .arg("--data-dir")
        .arg(cluster.scratch().join("agent"))
        .stdin(Stdio::null());
    if let Some(token) = token {
        command.args(["--token", token]);
    }
    command
}

/// A token of the cluster.
pub(crate) fn token(cluster: &Cluster, ttl: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_skiff"))
        .args(["token", "create", "-o", "json", "--ttl", ttl, "--data-dir"])
        .arg(cluster.data_dir())
        .env_remove("KUBECONFIG")
        .output()
        .expect("skiff starts");
    let made = crate::cluster::succeeded("skiff token create", &output);
    let made: Value = serde_json::from_str(&made).expect("JSON");
    made["token"].as_str().expect("a token").to_owned()
}

fn refusal(output: &Output) -> String {
    assert!(!output.status.success(), "it was let in");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("skiff: ") || last.starts_with("For more"),
        "{said}"
    );
    said
}

#[test]
fn who_may_not_join_is_told_why() {
    let mut cluster = Cluster::server(&[]);
    let good = token(&cluster, "1h");
    let mut parts: Vec<&str> = good.split('.').collect();
    let refused = |token: Option<&str>| refusal(&agent(&cluster, token).output().expect("skiff"));

    assert!(refused(None).contains("has not joined a cluster yet"));
    assert!(refused(Some("nonsense")).contains("this is no join token"));
    let pin = parts[2];
    let wrong_pin = "0".repeat(64);
    parts[2] = &wrong_pin;
    let said = refused(Some(&parts.join(".")));
    assert!(said.contains("another certificate authority"), "{said}");
    parts[2] = pin;
    parts[1] = "0123456789abcdef";
    let said = refused(Some(&parts.join(".")));
    assert!(said.contains("refused the token"), "{said}");

    let short = token(&cluster, "1s");
    let id = short.split('.').next().expect("an id").to_owned();
    wait::until("the token's end", || {
        let path = format!("/api/v1/namespaces/kube-system/secrets/bootstrap-token-{id}");
        cluster.get(&path).is_none().then_some(())
    });
    let said = refusal(&agent(&cluster, Some(&short)).output().expect("skiff"));
    assert!(said.contains("has expired or was deleted"), "{said}");

    let nowhere = agent_of("https://127.0.0.1:1", &cluster, Some(&good)).output();
    let said = refusal(&nowhere.expect("skiff"));
    assert!(
        said.contains("cannot reach the API server at https://127.0.0.1:1"),
        "{said}"
    );
    let plain = agent_of("http://127.0.0.1:1", &cluster, Some(&good)).output();
    assert!(refusal(&plain.expect("skiff")).contains("https://HOST:PORT"));
}

#[test]
fn a_name_and_a_data_directory_belong_to_one_node() {
    let mut cluster = Cluster::of_nodes(1);
    until_ready_is(&mut cluster, "node-1", "True");
    let data = cluster.node_dir("node-1");
    let server = format!("https://{}", cluster.address());
    let agent = |data: &Path, token: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_skiff"))
            .args(["agent", "--node-name", "node-1", "--server", &server])
            .args(["--token", token, "--data-dir"])
            .arg(data)
            .output();
        refusal(&output.expect("skiff starts"))
    };
    let token = token(&cluster, "1h");
    let said = agent(&data, &token);
    assert!(
        said.contains("is in use by another skiff process"),
        "{said}"
    );
    let said = agent(&cluster.scratch().join("twin"), &token);
    assert!(
        said.contains("the node node-1 is part of the cluster already, and alive"),
        "{said}"
    );

    let before = cluster.get("/api/v1/nodes/node-1").expect("the node");
    cluster.skiff(["node", "kill", "node-1"]);
    until_ready_is(&mut cluster, "node-1", "Unknown");
    cluster.skiff(["node", "start", "node-1"]);
    until_ready_is(&mut cluster, "node-1", "True");
    let after = cluster.get("/api/v1/nodes/node-1").expect("the node");
    assert_eq!(before["spec"]["podCIDR"], after["spec"]["podCIDR"]);
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
}

#[test]
fn certificates_are_renewed_before_they_end() {
    let mut cluster = Cluster::new();
    cluster.set_nodes(1);
    let lifetime = ["--cluster-signing-duration", "15s"];
    cluster.options.extend(lifetime.map(str::to_owned));
    cluster.up();
    let pki = cluster.node_dir("node-1").join("agent/pki");
    for file in ["client.pem", "serving.pem"] {
        let read = || fs::read(pki.join(file)).expect("a certificate");
        let first = read();
        wait::until(&format!("{file} is renewed"), || {
            (read() != first).then_some(())
        });
    }
    // What it joined with is over after another round, and it is a node still.
    let second = fs::read(pki.join("client.pem")).expect("a certificate");
    wait::until("another renewal", || {
        (fs::read(pki.join("client.pem")).expect("a certificate") != second).then_some(())
    });
    until_ready_is(&mut cluster, "node-1", "True");
}
