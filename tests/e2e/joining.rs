//! A host joins a cluster: with the right token it becomes a node, with anything else it is told why not.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::cluster::{Cluster, SERVE, is_ready, shell_pod};
use crate::nodes::until_ready_is;
use crate::wait;

pub(crate) fn agent(cluster: &Cluster, token: Option<&str>) -> Command {
    agent_of(&format!("https://{}", cluster.address()), cluster, token)
}

pub(crate) fn agent_of(server: &str, cluster: &Cluster, token: Option<&str>) -> Command {
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
        // A host that trusts no public authority is as good as any other.
        .env("SSL_CERT_FILE", "/dev/null")
        .env_remove("SSL_CERT_DIR")
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

pub(crate) fn refusal(output: &Output) -> String {
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

/// An agent of a test's own beside a control plane on the same host.
struct Guest {
    data: std::path::PathBuf,
    process: Option<std::process::Child>,
}

impl Guest {
    fn start(cluster: &Cluster, token: Option<&str>) -> Self {
        let mut guest = Self {
            data: cluster.scratch().join("agent"),
            process: None,
        };
        guest.run(cluster, token);
        guest
    }

    fn run(&mut self, cluster: &Cluster, token: Option<&str>) {
        let log = cluster.scratch().join("agent.log");
        let log = fs::File::options().create(true).append(true).open(log);
        let mut command = agent(cluster, token);
        command.stdout(Stdio::null()).stderr(log.expect("a log"));
        self.process = Some(command.spawn().expect("skiff starts"));
    }

    /// SIGTERM; its containers run on.
    fn stop(&mut self) {
        let mut process = self.process.take().expect("it runs");
        let pid = nix::unistd::Pid::from_raw(process.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("SIGTERM");
        assert!(process.wait().expect("its end").success());
    }

    /// `skiff ARGS` on the node, without the control plane.
    fn skiff(&self, args: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_skiff"))
            .args(args)
            .arg("--data-dir")
            .arg(&self.data)
            .output()
            .expect("skiff starts");
        crate::cluster::succeeded(&format!("skiff {}", args.join(" ")), &output)
    }

    /// The main process of the node's only running container.
    fn pid(&self) -> Option<i64> {
        let listed: Value = serde_json::from_str(&self.skiff(&["ps", "-o", "json"])).ok()?;
        let mut listed = listed.as_array()?.iter();
        listed.find(|c| c["state"] == "running")?["pid"].as_i64()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        let identity = skiff_agent::identity::Identity::of(&self.data).expect("it exists");
        let down = Command::new(env!("CARGO_BIN_EXE_skiff"))
            .args(["down", "--purge", "--data-dir"])
            .arg(&self.data)
            .output()
            .expect("skiff starts");
        if std::thread::panicking() {
            let log = self.data.with_file_name("agent.log");
            eprintln!(
                "--- the agent\n{}",
                fs::read_to_string(log).unwrap_or_default()
            );
            return;
        }
        let left = crate::host::traces(&identity);
        assert!(
            down.status.success() && left.is_empty(),
            "{down:?} {left:#?}"
        );
    }
}

/// A control plane, and a node beside it that is Ready.
fn beside(flags: &[&str]) -> (Cluster, Guest) {
    let mut cluster = Cluster::server(flags);
    let token = token(&cluster, "1h");
    let guest = Guest::start(&cluster, Some(&token));
    until_ready_is(&mut cluster, "guest", "True");
    (cluster, guest)
}

#[test]
fn a_host_beside_its_server_outlives_it() {
    let (mut cluster, mut guest) = beside(&[]);
    let archive = crate::images::demonstration().join("busybox.tar");
    guest.skiff(&["image", "import", &archive.display().to_string()]);
    // A token is only in the memory of an agent, as in Kubernetes: it takes the API to start with one.
    let without_token = "automountServiceAccountToken: false";
    cluster.apply(&shell_pod("steady", SERVE, without_token, ""));
    cluster.until_ready("steady");
    assert_eq!(cluster.kubectl("exec steady -- hostname"), "steady\n");
    let nodes = cluster.kubectl("get nodes --no-headers");
    assert_eq!(
        nodes.split_whitespace().take(3).collect::<Vec<_>>(),
        ["guest", "Ready", "<none>"]
    );
    let first = guest.pid().expect("a container");

    let names = guest.data.join("agent/network/names.json");
    wait::until("the copy of what containers are told of services", || {
        names.exists().then_some(())
    });

    // Its agent ends: the container lives on, and the node is missed at once.
    guest.stop();
    until_ready_is(&mut cluster, "guest", "Unknown");
    assert_eq!(guest.pid(), Some(first));
    cluster.stop();

    // An agent that starts while there is no API looks after what it had.
    guest.run(&cluster, None);
    let pid = nix::unistd::Pid::from_raw(first as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("SIGKILL");
    let second = wait::until("the container is started anew", || {
        guest.pid().filter(|pid| *pid != first)
    });
    cluster.up();
    until_ready_is(&mut cluster, "guest", "True");
    let pod = cluster.until_pod("steady", "restarted once", |pod| {
        crate::cluster::container_status(pod)["restartCount"] == 1 && is_ready(pod)
    });
    assert_eq!(guest.pid(), Some(second));
    assert_eq!(pod["spec"]["nodeName"], "guest");
    guest.stop();
    drop(guest);
}

#[test]
fn a_node_whose_certificate_expired_keeps_its_pods_and_comes_back_by_a_token() {
    let (mut cluster, mut guest) = beside(&["--cluster-signing-duration", "20s"]);
    let archive = crate::images::demonstration().join("busybox.tar");
    guest.skiff(&["image", "import", &archive.display().to_string()]);
    let without_token = "automountServiceAccountToken: false";
    cluster.apply(&shell_pod("steady", SERVE, without_token, ""));
    cluster.until_ready("steady");
    let pid = guest.pid().expect("a container");
    let log = cluster.scratch().join("agent.log");
    let count = |words: &str| {
        let said = fs::read_to_string(&log).unwrap_or_default();
        said.lines().filter(|line| line.contains(words)).count()
    };
    let until_said = |words: &str, times: usize| {
        wait::until(&format!("{words}, {times} times"), || {
            (count(words) >= times).then_some(())
        });
    };
    let certificate = guest.data.join("agent/pki/client.pem");
    let shown = || fs::read(&certificate).expect("a certificate");

    // The control plane is away for longer than the certificate lasts; the token is good for longer.
    cluster.crash();
    let expired = shown();
    until_said("the node's certificate has expired", 1);
    assert_eq!(shown(), expired);
    cluster.up();
    wait::until("another certificate", || (shown() != expired).then_some(()));
    until_ready_is(&mut cluster, "guest", "True");
    assert_eq!(guest.pid(), Some(pid));

    // Nobody vouches for it any more.
    for secret in cluster
        .kubectl("get secrets -n kube-system -o name")
        .lines()
    {
        if secret.contains("bootstrap-token-") {
            cluster.kubectl(&format!("delete -n kube-system {secret}"));
        }
    }
    let said = count("the node's certificate has expired");
    cluster.crash();
    until_said("the node's certificate has expired", said + 1);
    cluster.up();
    until_said("the API server refused the token", 1);
    until_ready_is(&mut cluster, "guest", "Unknown");
    assert_eq!(guest.pid(), Some(pid));

    // An agent without a token says what it needs, and one with a new token finds everything as it was.
    guest.stop();
    let said = refusal(&agent(&cluster, None).output().expect("skiff"));
    assert!(
        said.contains("has expired while it was away: give it a new --token"),
        "{said}"
    );
    let new = token(&cluster, "1h");
    guest.run(&cluster, Some(&new));
    until_ready_is(&mut cluster, "guest", "True");
    assert_eq!(guest.pid(), Some(pid));
    guest.stop();
    drop(guest);
}
