//! What containers print, complete and in every form.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;

use crate::cluster::{Cluster, SERVE, container_status, shell_pod};
use crate::wait;

#[test]
fn logs_have_kubectls_options() {
    let mut cluster = Cluster::start();
    let script = "echo attempt; [ -e /state/ran ] || { touch /state/ran; echo crash; exit 1; }; \
                  for n in 1 2 3 4 5; do echo line $n; done; echo to stderr >&2; "
        .to_owned()
        + SERVE;
    let first = shell_pod(
        "talker",
        &script,
        "volumes: [{name: state, emptyDir: {}}]",
        "volumeMounts: [{name: state, mountPath: /state}]",
    );
    let script = serde_json::to_string(&format!("echo from the side; {SERVE}")).expect("a string");
    cluster.apply(&format!(
        "{first}  - name: side\n    image: busybox\n    command: [sh, -c, {script}]\n"
    ));
    cluster.until_pod("talker", "restarted and serving", crate::cluster::is_ready);
    let logs = |args: &str| cluster.kubectl(&format!("logs {args}"));
    let all = "attempt\nline 1\nline 2\nline 3\nline 4\nline 5\nto stderr\n";
    wait::until("all output", || {
        (logs("talker -c main") == all).then_some(())
    });
    assert_eq!(logs("talker -c main --tail=2"), "line 5\nto stderr\n");
    assert_eq!(logs("talker -c main --tail=0"), "");
    assert_eq!(logs("talker -c main --limit-bytes=9"), "attempt\nl");
    assert_eq!(logs("talker -c main --previous"), "attempt\ncrash\n");
    assert_eq!(logs("talker -c side"), "from the side\n");
    assert_eq!(logs("talker -c main --since=1h"), all);
    assert_eq!(logs("talker -c main --since-time=2100-01-01T00:00:00Z"), "");
    let stamped = logs("talker -c main --timestamps --tail=1");
    let (time, line) = stamped.split_once(' ').expect("a time");
    assert_eq!(line, "to stderr\n");
    assert!(
        time.len() >= 20 && time.as_bytes()[10] == b'T' && time.ends_with('Z'),
        "{time}"
    );
    // The first container is the default one.
    let default = cluster.try_kubectl("logs talker");
    assert_eq!(String::from_utf8_lossy(&default.stdout), all);
    assert!(
        String::from_utf8_lossy(&default.stderr)
            .starts_with("Defaulted container \"main\" out of: main, side")
    );
    let everything = logs("talker --all-containers --prefix");
    assert!(
        everything.contains("[pod/talker/main] line 1\n")
            && everything.contains("[pod/talker/side] from the side\n"),
        "{everything}"
    );
    assert!(logs("-l app=talker --all-containers --tail=-1").contains("from the side\n"));
    let wrong = cluster.try_kubectl("logs talker -c nobody");
    assert!(
        String::from_utf8_lossy(&wrong.stderr)
            .contains("container nobody is not valid for pod talker"),
        "{wrong:?}"
    );

    // The files are in the CRI format, where log shippers look.
    let uid = cluster.pod("talker").expect("the pod")["metadata"]["uid"]
        .as_str()
        .expect("a uid")
        .to_owned();
    let file = cluster
        .identity()
        .pod_dir("default", "talker", &uid)
        .join("main/1.log");
    let raw = std::fs::read_to_string(file).expect("the log file");
    assert_eq!(raw.lines().count(), 7);
    for line in raw.lines() {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        assert!(fields[1] == "stdout" || fields[1] == "stderr", "{line}");
        assert_eq!(fields[2], "F", "{line}");
    }
}

#[test]
fn partial_lines_and_binary_output_survive() {
    let mut cluster = Cluster::start();
    // A line far longer than a CRI record, bytes that are no text, and an end without a newline.
    let script = "head -c 100000 /dev/zero | tr '\\0' x; echo; printf 'a\\000b\\377c\\n'; printf 'no newline'";
    cluster.apply(&shell_pod("odd", script, "restartPolicy: Never", ""));
    cluster.until_pod("odd", "ended", |pod| pod["status"]["phase"] == "Succeeded");
    let output = cluster.try_kubectl("logs odd");
    let mut expected = vec![b'x'; 100_000];
    expected.extend(b"\na\0b\xffc\nno newline");
    assert_eq!(output.stdout.len(), expected.len());
    assert!(output.stdout == expected);
}

#[test]
fn following_sees_everything_until_the_end() {
    let mut cluster = Cluster::start();
    cluster.apply(&shell_pod(
        "counter",
        "while [ ! -e /go ]; do sleep 0.1; done; for n in 1 2 3; do echo $n; done",
        "restartPolicy: Never",
        "",
    ));
    cluster.until_ready("counter");
    let mut follower = cluster
        .kubectl_command()
        .args(["logs", "-f", "counter"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl");
    cluster.kubectl("exec counter -- touch /go");
    let mut seen = String::new();
    follower
        .stdout
        .take()
        .expect("piped")
        .read_to_string(&mut seen)
        .expect("its output");
    assert!(
        follower.wait().expect("its end").success(),
        "it ends with the container"
    );
    assert_eq!(seen, "1\n2\n3\n");
}

#[test]
fn rotation_loses_nothing_under_follow() {
    let mut cluster = Cluster::start();
    // Some 25 MB of log: two rotations at the default 10 MiB.
    const LINES: usize = 500_000;
    let script =
        format!("echo begin; while [ ! -e /go ]; do sleep 0.1; done; seq -w 1 {LINES}; {SERVE}");
    cluster.apply(&shell_pod("long", &script, "", ""));
    let pod = cluster.until_ready("long");
    let mut follower = cluster
        .kubectl_command()
        .args(["logs", "-f", "long"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl");
    let mut lines = BufReader::new(follower.stdout.take().expect("piped"))
        .lines()
        .map_while(Result::ok);
    // It follows before the first rotation: what was rotated away earlier is not in `kubectl logs`.
    assert_eq!(lines.next().as_deref(), Some("begin"));
    cluster.kubectl("exec long -- touch /go");
    let mut count = 0;
    for line in lines {
        count += 1;
        assert_eq!(
            line.parse::<usize>().ok(),
            Some(count),
            "nothing is lost, nothing comes twice"
        );
        if count == LINES {
            break;
        }
    }
    follower.kill().expect("it runs");
    follower.wait().expect("its end");
    assert_eq!(count, LINES);

    let uid = pod["metadata"]["uid"].as_str().expect("a uid");
    let dir = cluster
        .identity()
        .pod_dir("default", "long", uid)
        .join("main");
    wait::until("rotated files", || {
        (std::fs::read_dir(&dir).ok()?.count() > 1).then_some(())
    });
    assert_eq!(cluster.kubectl("logs long --tail=1"), format!("{LINES}\n"));
    assert_eq!(container_status(&pod)["restartCount"], 0);
}
