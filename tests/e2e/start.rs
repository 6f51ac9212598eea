//! `skiff up`: what serves, what it tells, what it refuses.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::cluster::{Cluster, SERVE, shell_pod};
use crate::wait;

#[test]
fn serves_the_api_and_registers_the_node() {
    let mut cluster = Cluster::start_empty();
    let address = cluster.address();

    let mode = std::fs::metadata(cluster.kubeconfig())
        .expect("a kubeconfig")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    let info = plain(&cluster.kubectl("cluster-info"));
    let first = info.lines().next().expect("a line");
    assert_eq!(
        first,
        format!("Kubernetes control plane is running at https://{address}")
    );

    wait::until("the node is Ready", || {
        let node = cluster.get("/api/v1/nodes")?["items"].get(0)?.clone();
        (crate::cluster::condition(&node, "Ready")["status"] == "True").then_some(())
    });
    let nodes = cluster.kubectl("get nodes");
    let mut lines = nodes
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(
        lines.next().expect("a header"),
        ["NAME", "STATUS", "ROLES", "AGE", "VERSION"]
    );
    let node = lines.next().expect("a node");
    assert_eq!(node[1..3], ["Ready", "control-plane"]);
    assert!(node[4].starts_with("v1.37."), "{node:?}");
    assert!(lines.next().is_none(), "one node:\n{nodes}");

    let version = cluster.kubectl("version");
    assert!(version.contains("Server Version: v1.37."), "{version}");
    let readyz = cluster.kubectl_args(&["get", "--raw", "/readyz?verbose"]);
    assert!(readyz.starts_with("[+]ping ok\n"), "{readyz}");
    assert!(
        readyz.trim_end().ends_with("readyz check passed"),
        "{readyz}"
    );

    let described = cluster.kubectl(&format!("describe node {}", node[0]));
    for part in [
        "Roles:              control-plane",
        "Capacity:",
        "KubeletReady",
        "Allocated resources:",
        "Events:",
    ] {
        assert!(described.contains(part), "no {part:?} in\n{described}");
    }
}

#[test]
fn anonymous_requests_see_health_and_version_only() {
    let cluster = Cluster::start_empty();
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(anonymous(&cluster, path), "200", "{path}");
    }
    for path in [
        "/api/v1/namespaces/default/pods",
        "/apis/apps/v1/deployments",
        "/api/v1/nodes",
        "/metrics",
    ] {
        let code = anonymous(&cluster, path);
        assert!(code == "401" || code == "403", "{path}: {code}");
    }
}

fn anonymous(cluster: &Cluster, path: &str) -> String {
    let url = format!("https://{}{path}", cluster.address());
    let output = Command::new("curl")
        .args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", &url])
        .output();
    String::from_utf8(output.expect("curl").stdout).expect("a code")
}

#[test]
fn refuses_a_second_process_on_its_data_directory() {
    let mut cluster = Cluster::start_empty();
    refused(
        &cluster.up_command().output().expect("skiff starts"),
        &[&cluster.data_dir().display().to_string()],
    );
    assert!(
        cluster.get("/api/v1/nodes").is_some(),
        "the first one is unharmed"
    );
}

#[test]
fn refuses_a_taken_port() {
    let cluster = Cluster::start_empty();
    let other = Cluster::new();
    let output = Command::new(env!("CARGO_BIN_EXE_skiff"))
        .args([
            "up",
            "--offline",
            "--listen",
            &cluster.address(),
            "--data-dir",
        ])
        .arg(other.data_dir())
        .output()
        .expect("skiff starts");
    refused(&output, &[&cluster.address()]);
}

#[test]
fn refuses_to_run_without_root() {
    let dir = tempfile::tempdir().expect("a directory");
    // A copy, because the build's directory may be closed to others.
    let copy = dir.path().join("skiff");
    std::fs::copy(env!("CARGO_BIN_EXE_skiff"), &copy).expect("a copy");
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777))
        .expect("open to all");
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&copy)
        .args(["up", "--offline", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(dir.path().join("data"))
        .output()
        .expect("setpriv");
    refused(&output, &["root"]);
}

#[test]
fn names_the_kernel_feature_that_is_missing() {
    let cluster = Cluster::new();
    let up = cluster.up_command();
    let output = Command::new("unshare")
        .args([
            "--mount",
            "sh",
            "-c",
            "umount -R -l /sys/fs/cgroup && exec \"$@\"",
            "sh",
        ])
        .arg(up.get_program())
        .args(up.get_args())
        .stdin(Stdio::null())
        .output()
        .expect("unshare");
    refused(&output, &["cgroup"]);
}

/// One clear line on standard error that contains `words`, nothing on standard output, exit code 1.
fn refused(output: &Output, words: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    for word in words {
        assert!(error.contains(word), "no {word:?} in {error}");
    }
    assert!(
        output.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn wrong_usage_exits_with_2() {
    let output = Command::new(env!("CARGO_BIN_EXE_skiff"))
        .args(["up", "--no-such-option"])
        .output();
    assert_eq!(output.expect("skiff starts").status.code(), Some(2));
}

#[test]
fn two_clusters_share_a_host() {
    let mut one = Cluster::start();
    let mut two = Cluster::start();
    for cluster in [&mut one, &mut two] {
        cluster.apply(&shell_pod("twin", SERVE, "", ""));
    }
    let first = one.until_ready("twin");
    let second = two.until_ready("twin");
    assert_ne!(first["metadata"]["uid"], second["metadata"]["uid"]);
    assert_ne!(
        first["status"]["podIP"], second["status"]["podIP"],
        "both clusters' addresses are on one host"
    );

    drop(two);
    let still = one.pod("twin").expect("the pod");
    assert_eq!(
        still["status"]["containerStatuses"],
        first["status"]["containerStatuses"]
    );
    assert_eq!(one.kubectl("exec twin -- echo here"), "here\n");
}

/// Terminal text without its colours.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("\x1b[") {
        plain.push_str(&rest[..at]);
        let end = rest[at..]
            .find('m')
            .map_or(rest.len(), |length| at + length + 1);
        rest = &rest[end..];
    }
    plain + rest
}

#[test]
fn a_fresh_data_directory_is_made() {
    let parent = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let missing = parent.path().join("not/yet/there");
    let run = |subcommand: &[&str], data: &Path| {
        let status = Command::new(env!("CARGO_BIN_EXE_skiff"))
            .args(subcommand)
            .arg("--data-dir")
            .arg(data)
            .status();
        assert!(
            status.expect("skiff starts").success(),
            "skiff {subcommand:?}"
        );
    };
    // The one-shot commands work on a directory that no server has seen.
    run(
        &[
            "image",
            "import",
            &crate::images::demonstration()
                .join("busybox.tar")
                .display()
                .to_string(),
        ],
        &missing,
    );
    run(&["down", "--purge"], &missing);
    assert!(!missing.exists());
    run(&["down", "--purge"], &missing);
}
