//! Looking into running containers: through the API, and on the node itself without it.

use std::io::Write;
use std::process::Stdio;

use serde_json::Value;

use crate::cluster::{Cluster, SERVE, container_status, shell_pod};
use crate::host;

#[test]
fn exec_runs_commands_with_their_exit_codes() {
    let mut cluster = Cluster::start();
    cluster.apply(&shell_pod(
        "box",
        SERVE,
        "",
        "env: [{name: GREETING, value: ahoy}]\nworkingDir: /tmp",
    ));
    cluster.until_ready("box");
    assert_eq!(
        cluster.kubectl_args(&["exec", "box", "--", "sh", "-c", "echo $GREETING; pwd"]),
        "ahoy\n/tmp\n"
    );
    for code in [0, 1, 7, 255] {
        let output = cluster
            .kubectl_command()
            .args(["exec", "box", "--", "sh", "-c", &format!("exit {code}")])
            .output();
        assert_eq!(output.expect("kubectl").status.code(), Some(code));
    }
    let output = cluster
        .kubectl_command()
        .args([
            "exec",
            "box",
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; exit 3",
        ])
        .output();
    let output = output.expect("kubectl");
    assert_eq!(output.stdout, b"out\n");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr, "err\ncommand terminated with exit code 3\n");
    let missing = cluster.try_kubectl("exec box -- /no/such/command");
    assert_ne!(missing.status.code(), Some(0));
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("/no/such/command"),
        "{missing:?}"
    );
    let wrong = cluster.try_kubectl("exec box -c nobody -- true");
    assert!(
        String::from_utf8_lossy(&wrong.stderr)
            .contains("container nobody is not valid for pod box"),
        "{wrong:?}"
    );

    // Standard input arrives whole, and its end is seen.
    let input = "line\n".repeat(200_000);
    assert_eq!(
        cluster.feed("exec -i box -- wc -c", &input),
        format!("{}\n", input.len())
    );
    // Output arrives whole.
    let output = cluster.kubectl("exec box -- seq 1 200000");
    assert!(
        output
            .lines()
            .map(str::to_owned)
            .eq((1..=200_000).map(|n| n.to_string()))
    );
}

#[test]
fn exec_gives_a_terminal() {
    let mut cluster = Cluster::start();
    cluster.apply(&shell_pod("box", SERVE, "", ""));
    cluster.until_ready("box");
    // `script` gives kubectl a terminal of its own.
    let kubectl = crate::images::kubectl();
    let exec = format!(
        "stty rows 33 cols 111; {} exec -it box -- sh",
        kubectl.display()
    );
    let mut child = std::process::Command::new("script")
        .args(["--quiet", "--return", "--command", &exec, "/dev/null"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("script starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin
        .write_all(b"tty; stty size; echo $((6 * 7)); exit 5\n")
        .expect("its input");
    let output = child.wait_with_output().expect("its end");
    drop(stdin);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(5), "{text}");
    for part in ["/dev/pts/", "33 111", "42"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn the_node_tells_without_the_control_plane() {
    let mut cluster = Cluster::start();
    let script =
        "echo started; [ -e /state/ran ] || { touch /state/ran; exit 3; }; ".to_owned() + SERVE;
    cluster.apply(&shell_pod(
        "box",
        &script,
        "volumes: [{name: state, emptyDir: {}}]",
        "volumeMounts: [{name: state, mountPath: /state}]\nresources: {limits: {memory: 64Mi}}",
    ));
    let pod = cluster.until_pod("box", "restarted and serving", |pod| {
        container_status(pod)["restartCount"] == 1 && crate::cluster::is_ready(pod)
    });
    look_on_the_node(&cluster, &pod);
    cluster.stop();
    look_on_the_node(&cluster, &pod);
}

fn look_on_the_node(cluster: &Cluster, pod: &Value) {
    let id = container_status(pod)["containerID"]
        .as_str()
        .expect("an id")
        .split_once("://")
        .expect("a runtime")
        .1;
    let table = cluster.skiff(["ps"]);
    assert!(
        table
            .lines()
            .any(|line| line.contains("box") && line.contains("main")),
        "{table}"
    );
    let listed: Value = serde_json::from_str(&cluster.skiff(["ps", "-o", "json"])).expect("JSON");
    let running = listed
        .as_array()
        .expect("an array")
        .iter()
        .find(|c| c["id"] == id)
        .expect("the container");
    assert_eq!(running["namespace"], "default");
    assert_eq!(running["pod"], "box");
    assert_eq!(running["container"], "main");
    assert_eq!(running["state"], "running");
    assert_eq!(running["restartCount"], 1);
    assert!(
        running["image"]
            .as_str()
            .expect("an image")
            .contains("busybox")
    );
    assert!(running["startedAt"].is_string() && running["exitCode"].is_null());
    let pid = running["pid"].as_i64().expect("a pid") as i32;
    assert!(host::command_line(pid).starts_with("sh -c"));

    let inspected: Value =
        serde_json::from_str(&cluster.skiff(["inspect", "box", "-o", "json"])).expect("JSON");
    let text = inspected.to_string();
    for word in [
        id,
        "\"namespaces\"",
        "\"mounts\"",
        "\"cgroup",
        "\"exitCode\":3",
    ] {
        assert!(text.contains(word), "no {word} in {inspected:#}");
    }
    let shown = cluster.skiff(["inspect", "box"]);
    assert!(shown.contains(id) && shown.contains("busybox"), "{shown}");

    assert_eq!(cluster.skiff(["logs", "box"]), "started\n");
    assert_eq!(
        cluster.skiff(["exec", "box", "--", "echo", "hello"]),
        "hello\n"
    );
    let output = cluster.try_skiff(["exec", "box", "--", "sh", "-c", "exit 9"]);
    assert_eq!(output.status.code(), Some(9));
    let nobody = cluster.try_skiff(["inspect", "nobody"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("nobody"));
}
