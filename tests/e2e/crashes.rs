//! Containers that die, can't start, or eat too much.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{Cluster, SERVE, container_status, shell_pod};
use crate::{images, wait};

#[test]
fn a_killed_container_restarts_in_its_pod() {
    let mut cluster = Cluster::start();
    cluster.kubectl_args(&[
        "apply",
        "-f",
        images::nginx_demo().to_str().expect("a path"),
    ]);
    let before = cluster.until_all_ready("app=nginx", 3).remove(0);
    let pod = crate::cluster::name(&before);
    kill(
        Pid::from_raw(cluster.container_pid(&pod, "nginx")),
        Signal::SIGKILL,
    )
    .expect("kill -9");
    let after = cluster.until_pod(&pod, "restarted", |pod| {
        container_status(pod)["restartCount"] == 1 && crate::cluster::is_ready(pod)
    });
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(
        after["status"]["podIP"], before["status"]["podIP"],
        "the sandbox lives on"
    );
    let last = &container_status(&after)["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 137);
    assert_eq!(last["signal"], 9);
    assert_eq!(last["reason"], "Error");
    assert_eq!(
        last["containerID"],
        container_status(&before)["containerID"]
    );
    assert_ne!(
        container_status(&after)["containerID"],
        container_status(&before)["containerID"]
    );
    let time = |value: &Value| value.as_str().expect("a time").to_owned();
    assert_eq!(
        time(&last["startedAt"]),
        time(&container_status(&before)["state"]["running"]["startedAt"])
    );
    assert!(time(&last["startedAt"]) <= time(&last["finishedAt"]));
    let row = cluster.kubectl(&format!("get pod {pod} --no-headers"));
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(columns[1..4], ["1/1", "Running", "1"], "{row}");
    assert!(row.contains("s ago)"), "RESTARTS tells when: {row}");
    let address = format!(
        "{}:80",
        after["status"]["podIP"].as_str().expect("an address")
    );
    wait::until("it serves again", || crate::host::http_get(&address).ok());
}

#[test]
fn restart_policies_are_honoured() {
    let mut cluster = Cluster::start();
    let once = "[ -e /state/ran ] && exec sh -c \"$SERVE\"; touch /state/ran; exit $CODE";
    for (name, policy, code) in [
        ("always-0", "Always", 0),
        ("onfailure-0", "OnFailure", 0),
        ("onfailure-3", "OnFailure", 3),
        ("never-0", "Never", 0),
        ("never-3", "Never", 3),
    ] {
        let container = format!(
            "env: [{{name: CODE, value: '{code}'}}, {{name: SERVE, value: \"{SERVE}\"}}]\n\
             volumeMounts: [{{name: state, mountPath: /state}}]"
        );
        let more = format!("restartPolicy: {policy}\nvolumes: [{{name: state, emptyDir: {{}}}}]");
        cluster.apply(&shell_pod(name, once, &more, &container));
    }
    for name in ["always-0", "onfailure-3"] {
        let pod = cluster.until_pod(name, "restarted and serving", |pod| {
            container_status(pod)["restartCount"] == 1 && crate::cluster::is_ready(pod)
        });
        let last = &container_status(&pod)["lastState"]["terminated"];
        let (code, reason) = if name == "always-0" {
            (0, "Completed")
        } else {
            (3, "Error")
        };
        assert_eq!(
            (last["exitCode"].as_i64(), last["reason"].as_str()),
            (Some(code), Some(reason))
        );
    }
    for (name, phase, status) in [
        ("onfailure-0", "Succeeded", "Completed"),
        ("never-0", "Succeeded", "Completed"),
        ("never-3", "Failed", "Error"),
    ] {
        let pod = cluster.until_pod(name, phase, |pod| pod["status"]["phase"] == phase);
        assert_eq!(container_status(&pod)["restartCount"], 0);
        assert_eq!(
            container_status(&pod)["state"]["terminated"]["reason"],
            status
        );
        let row = cluster.kubectl(&format!("get pod {name} --no-headers"));
        assert_eq!(row.split_whitespace().nth(2), Some(status), "{row}");
    }
}

#[test]
fn repeated_crashes_back_off() {
    let mut cluster = Cluster::start();
    cluster.apply(&shell_pod("crasher", "echo going down; exit 1", "", ""));
    for (restarts, delay) in [(1, "10s"), (2, "20s")] {
        let pod = cluster.until_pod("crasher", &format!("backing off {delay}"), |pod| {
            let waiting = &container_status(pod)["state"]["waiting"];
            waiting["reason"] == "CrashLoopBackOff"
                && waiting["message"]
                    .as_str()
                    .unwrap_or_default()
                    .contains(delay)
        });
        let uid = pod["metadata"]["uid"].as_str().expect("a uid");
        let message =
            format!("back-off {delay} restarting failed container=main pod=crasher_default({uid})");
        assert_eq!(
            container_status(&pod)["state"]["waiting"]["message"],
            message
        );
        assert_eq!(container_status(&pod)["restartCount"], restarts);
        assert_eq!(
            container_status(&pod)["lastState"]["terminated"]["exitCode"],
            1
        );
        let row = cluster.kubectl("get pod crasher --no-headers");
        assert_eq!(
            row.split_whitespace().nth(2),
            Some("CrashLoopBackOff"),
            "{row}"
        );
    }
    let described = cluster.kubectl("describe pod crasher");
    assert!(described.contains("BackOff"), "{described}");
    assert!(
        described.contains("Back-off restarting failed container main in pod crasher_default("),
        "{described}"
    );
}

#[test]
fn eating_too_much_memory_ends_as_oom_killed() {
    let mut cluster = Cluster::start();
    let limit = "resources: {limits: {memory: 32Mi}}";
    cluster.apply(&shell_pod(
        "hungry",
        "head -c 300m /dev/zero | tail",
        "restartPolicy: Never",
        limit,
    ));
    // A shell that survives the death of its child ends in its own way.
    cluster.apply(&shell_pod(
        "greedy",
        "exec tail /dev/zero",
        "restartPolicy: Never",
        limit,
    ));
    let pod = cluster.until_pod("greedy", "ended", |pod| pod["status"]["phase"] == "Failed");
    let terminated = &container_status(&pod)["state"]["terminated"];
    assert_eq!(
        (&terminated["reason"], &terminated["exitCode"]),
        (&Value::from("OOMKilled"), &Value::from(137))
    );
    let row = cluster.kubectl("get pod greedy --no-headers");
    assert_eq!(row.split_whitespace().nth(2), Some("OOMKilled"), "{row}");
    let pod = cluster.until_pod("hungry", "ended", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(
        container_status(&pod)["state"]["terminated"]["exitCode"],
        137,
        "the pipeline's last command was killed"
    );
}

#[test]
fn a_missing_image_backs_off() {
    let mut cluster = Cluster::start();
    let pod = |name: &str, image: &str, policy: &str| {
        shell_pod(name, "true", "", &format!("imagePullPolicy: {policy}"))
            .replace("image: busybox", &format!("image: {image}"))
    };
    cluster.apply(&pod("absent", "no-such-image", "IfNotPresent"));
    cluster.apply(&pod("never", "no-such-image", "Never"));
    cluster.apply(&pod("invalid", "Not_A_Valid//Name", "IfNotPresent"));
    let mut reasons: Vec<String> = Vec::new();
    wait::until("ErrImagePull, then ImagePullBackOff", || {
        let pod = cluster.pod("absent")?;
        let reason = container_status(&pod)["state"]["waiting"]["reason"]
            .as_str()?
            .to_owned();
        if reason != "ContainerCreating" && reasons.last() != Some(&reason) {
            reasons.push(reason);
        }
        reasons
            .contains(&"ImagePullBackOff".to_owned())
            .then_some(())
    });
    let pod = cluster.pod("absent").expect("the pod");
    assert_eq!(pod["status"]["phase"], "Pending");
    let described = cluster.kubectl("describe pod absent");
    for part in [
        "Failed to pull image \"no-such-image\"",
        "Error: ErrImagePull",
        "Back-off pulling image \"no-such-image\"",
    ] {
        assert!(described.contains(part), "no {part:?} in\n{described}");
    }
    cluster.until_pod("never", "ErrImageNeverPull", |pod| {
        container_status(pod)["state"]["waiting"]["reason"] == "ErrImageNeverPull"
    });
    cluster.until_pod("invalid", "InvalidImageName", |pod| {
        container_status(pod)["state"]["waiting"]["reason"] == "InvalidImageName"
    });
    // The image arrives, and the pod runs without anybody touching it.
    let archive = cluster.scratch().join("late.tar");
    images::pack(
        &archive,
        "docker.io/library/no-such-image:latest",
        &serde_json::json!({}),
    );
    cluster.import(&archive);
    cluster.until_pod("absent", "run", |pod| {
        container_status(pod)["lastState"]["terminated"]["exitCode"] == 0
            || container_status(pod)["state"]["terminated"]["exitCode"] == 0
    });
}

#[test]
fn a_command_that_does_not_exist_shows_the_runtimes_error() {
    let mut cluster = Cluster::start();
    let command = shell_pod("nocommand", "true", "", "")
        .replace("command: [sh, -c, \"true\"]", "command: [/no/such/command]");
    cluster.apply(&command);
    let pod = cluster.until_pod("nocommand", "StartError", |pod| {
        container_status(pod)["lastState"]["terminated"]["reason"] == "StartError"
            || container_status(pod)["state"]["terminated"]["reason"] == "StartError"
    });
    let status = container_status(&pod);
    let ended = [
        &status["lastState"]["terminated"],
        &status["state"]["terminated"],
    ]
    .into_iter()
    .find(|t| !t.is_null());
    let ended = ended.expect("it ended");
    assert_eq!(ended["exitCode"], 128);
    assert!(
        ended["message"]
            .as_str()
            .expect("a message")
            .contains("/no/such/command"),
        "{ended}"
    );
    let described = cluster.kubectl("describe pod nocommand");
    assert!(
        described.contains("Failed") && described.contains("/no/such/command"),
        "{described}"
    );
}

#[test]
fn the_termination_message_is_kept() {
    let mut cluster = Cluster::start();
    cluster.apply(&shell_pod(
        "teller",
        "echo the reason >/dev/termination-log; exit 4",
        "restartPolicy: Never",
        "",
    ));
    let fallback = "terminationMessagePolicy: FallbackToLogsOnError";
    cluster.apply(&shell_pod(
        "fallback",
        "echo from the log; exit 5",
        "restartPolicy: Never",
        fallback,
    ));
    let pod = cluster.until_pod("teller", "ended", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(
        container_status(&pod)["state"]["terminated"]["message"],
        "the reason\n"
    );
    let pod = cluster.until_pod("fallback", "ended", |pod| {
        pod["status"]["phase"] == "Failed"
    });
    assert_eq!(
        container_status(&pod)["state"]["terminated"]["message"],
        "from the log\n"
    );
}
