//! Stops, crashes and half-finished starts lose nothing and leave nothing.

use std::collections::BTreeMap;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::cluster::{Cluster, SERVE, container_status, name, shell_pod};
use crate::{host, images, wait};

/// Each running container's id and process.
fn containers(cluster: &Cluster) -> BTreeMap<String, i64> {
    let listed: Value = serde_json::from_str(&cluster.skiff(["ps", "-o", "json"])).expect("JSON");
    let running = listed
        .as_array()
        .expect("an array")
        .iter()
        .filter(|c| c["state"] == "running");
    running
        .map(|c| {
            (
                c["id"].as_str().expect("an id").to_owned(),
                c["pid"].as_i64().expect("a pid"),
            )
        })
        .collect()
}

#[test]
fn a_stopped_server_leaves_its_containers_running() {
    let mut cluster = Cluster::start();
    cluster.kubectl_args(&[
        "apply",
        "-f",
        images::nginx_demo().to_str().expect("a path"),
    ]);
    let pods = cluster.until_all_ready("app=nginx", 3);
    let before = containers(&cluster);
    assert_eq!(before.len(), 3);
    assert!(cluster.stop().success(), "SIGTERM is an orderly end");
    assert_eq!(containers(&cluster), before);
    for pod in &pods {
        let address = format!(
            "{}:80",
            pod["status"]["podIP"].as_str().expect("an address")
        );
        host::http_get(&address).expect("an answer while nothing of Skiff but the shims runs");
    }
    cluster.up();
    cluster.kubectl("rollout status deployment/nginx-demo --timeout=60s");
    assert_eq!(containers(&cluster), before);
    let after = cluster.until_all_ready("app=nginx", 3);
    for (old, new) in pods.iter().zip(&after) {
        assert_eq!(
            container_status(old)["state"],
            container_status(new)["state"],
            "{}",
            name(old)
        );
        assert_eq!(container_status(new)["restartCount"], 0);
    }
    assert_eq!(
        cluster.kubectl(&format!("exec {} -- echo back", name(&after[0]))),
        "back\n"
    );
}

#[test]
fn a_crash_in_a_rolling_update_loses_nothing() {
    let mut cluster = Cluster::start();
    cluster.kubectl_args(&[
        "apply",
        "-f",
        images::nginx_demo().to_str().expect("a path"),
    ]);
    let counter = "n=0; while :; do n=$((n + 1)); echo $n; usleep 20000; done";
    cluster.apply(&shell_pod("counter", counter, "", ""));
    cluster.apply(&shell_pod(
        "doomed",
        "while [ ! -e /go ]; do usleep 10000; done; exit 42",
        "restartPolicy: Never",
        "",
    ));
    cluster.apply(&shell_pod("victim", SERVE, "", ""));
    cluster.until_all_ready("app=nginx", 3);
    for pod in ["counter", "doomed", "victim"] {
        cluster.until_ready(pod);
    }
    let counter_before = cluster.pod("counter").expect("the pod");
    let doomed = cluster.container_pid("doomed", "main");
    let victim = cluster.container_pid("victim", "main");

    cluster.kubectl("set env deployment/nginx-demo VERSION=2");
    cluster.kubectl("create configmap acknowledged --from-literal=write=yes");
    wait::until("the update has begun", || {
        (cluster.pods("app=nginx").len() > 3).then_some(())
    });
    let at_crash = containers(&cluster);
    cluster.crash();

    // Meanwhile one container ends by itself, and one is killed.
    std::fs::write(format!("/proc/{doomed}/root/go"), "").expect("the container's file");
    kill(Pid::from_raw(victim), Signal::SIGKILL).expect("kill -9");
    wait::until("both are gone", || {
        let gone = |pid: i32| host::command_line(pid).is_empty();
        (gone(doomed) && gone(victim)).then_some(())
    });

    cluster.up();
    assert_eq!(
        cluster.kubectl("get configmap acknowledged -o jsonpath={.data.write}"),
        "yes"
    );
    cluster.kubectl("rollout status deployment/nginx-demo --timeout=120s");
    let pods = cluster.until_all_ready("app=nginx", 3);
    for pod in &pods {
        assert_eq!(pod["spec"]["containers"][0]["env"][0]["value"], "2");
        assert_eq!(container_status(pod)["restartCount"], 0);
    }
    let ended = cluster.until_pod("doomed", "ended", |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(
        container_status(&ended)["state"]["terminated"]["exitCode"],
        42
    );
    let restarted = cluster.until_pod("victim", "restarted", |pod| {
        container_status(pod)["restartCount"] == 1 && crate::cluster::is_ready(pod)
    });
    assert_eq!(
        container_status(&restarted)["lastState"]["terminated"]["exitCode"],
        137
    );

    // The counter ran on through it all, and every line of it is there.
    let counter_after = cluster.pod("counter").expect("the pod");
    assert_eq!(
        container_status(&counter_after)["containerID"],
        container_status(&counter_before)["containerID"]
    );
    assert_eq!(container_status(&counter_after)["restartCount"], 0);
    let log = cluster.kubectl("logs counter");
    assert!(
        log.lines()
            .enumerate()
            .all(|(at, line)| line == (at + 1).to_string()),
        "a gap in the log"
    );
    let now = containers(&cluster);
    let id = container_status(&counter_after)["containerID"]
        .as_str()
        .expect("an id")
        .split_once("://")
        .expect("a runtime")
        .1;
    assert_eq!(now.get(id), at_crash.get(id), "the same process");
}

#[test]
fn down_leaves_nothing_and_keeps_the_data() {
    let mut cluster = Cluster::start_apart();
    cluster.kubectl_args(&[
        "apply",
        "-f",
        images::nginx_demo().to_str().expect("a path"),
    ]);
    cluster.until_all_ready("app=nginx", 3);
    assert!(
        !host::traces(&cluster.identity()).is_empty(),
        "a running cluster can be seen on the host"
    );
    cluster.stop();
    cluster.skiff(["down"]);
    let left = host::traces(&cluster.identity());
    assert!(left.is_empty(), "{left:#?}");

    // Without --purge what was stored is still there, and the pods run again.
    cluster.up();
    cluster.kubectl("rollout status deployment/nginx-demo --timeout=120s");
    cluster.until_all_ready("app=nginx", 3);
}

#[test]
fn down_stops_a_running_server() {
    let mut cluster = Cluster::start();
    cluster.apply(&shell_pod("box", SERVE, "", ""));
    cluster.until_ready("box");
    cluster.skiff(["down"]);
    let left = host::traces(&cluster.identity());
    // The server's process is this test's child, and stays a zombie until it is waited for.
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn down_cleans_up_after_a_crash() {
    let mut cluster = Cluster::start();
    cluster.kubectl_args(&[
        "apply",
        "-f",
        images::nginx_demo().to_str().expect("a path"),
    ]);
    // In the middle of everything: images unpacked, pods being set up, some running.
    wait::until("some pods run", || {
        let pods = cluster.pods("app=nginx");
        pods.iter()
            .any(|pod| pod["status"]["phase"] == "Running")
            .then_some(())
    });
    cluster.crash();
    cluster.skiff(["down"]);
    let left = host::traces(&cluster.identity());
    assert!(left.is_empty(), "{left:#?}");
}

#[test]
fn a_half_finished_start_is_cleaned_up_and_can_be_repeated() {
    for after in [0, 5, 20, 60, 150, 400] {
        let mut cluster = Cluster::new();
        let mut server = cluster
            .up_command()
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("skiff starts");
        // Where it is killed differs; that it is killed at any point is what is tested.
        std::thread::sleep(std::time::Duration::from_millis(after));
        server.kill().expect("SIGKILL");
        server.wait().expect("its end");
        if after % 20 == 0 {
            cluster.skiff(["down"]);
            let left = host::traces(&cluster.identity());
            assert!(left.is_empty(), "killed after {after} ms: {left:#?}");
        } else {
            cluster.up();
            assert!(cluster.get("/api/v1/namespaces/default").is_some());
        }
    }
}

#[test]
fn acknowledged_writes_survive_kill_9() {
    let mut cluster = Cluster::start_empty();
    let client = cluster.client();
    let maps: kube::Api<k8s_openapi::api::core::v1::ConfigMap> =
        kube::Api::default_namespaced(client);
    let writer_maps = maps.clone();
    let (sender, acknowledged) = std::sync::mpsc::channel();
    let pid = cluster.server_pid();
    cluster.block_on(async move {
        let writer = tokio::spawn(async move {
            for n in 0.. {
                let map = k8s_openapi::api::core::v1::ConfigMap {
                    metadata: kube::api::ObjectMeta {
                        name: Some(format!("map-{n}")),
                        ..Default::default()
                    },
                    ..Default::default()
                };
                if writer_maps.create(&Default::default(), &map).await.is_err() {
                    return;
                }
                sender.send(n).expect("the test listens");
                if n == 100 {
                    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill -9");
                }
            }
        });
        writer.await.expect("the writer");
    });
    cluster.crash();
    let written: Vec<i32> = acknowledged.into_iter().collect();
    assert!(written.len() > 100);
    cluster.up();
    let list = cluster
        .get("/api/v1/namespaces/default/configmaps")
        .expect("a list");
    let names: Vec<String> = list["items"]
        .as_array()
        .expect("items")
        .iter()
        .map(name)
        .collect();
    for n in written {
        assert!(
            names.contains(&format!("map-{n}")),
            "map-{n} was acknowledged and is lost"
        );
    }
}
