//! What drills do to containers: each task is made by hand, as the drill controller makes it, and looked at from outside.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::cluster::{container_status, shell_pod};
use crate::drill_tasks::{
    LONG, are_stopped, begin, cluster_with_busybox, group_of, helpers, members, run_pod, state,
    stop, until_forgotten, until_phase, upon,
};
use crate::wait;

#[test]
fn a_container_is_killed_once_and_what_can_not_be_done_is_refused() {
    let mut cluster = cluster_with_busybox();
    let pod = run_pod(&mut cluster, "victim", "");
    let other = run_pod(&mut cluster, "other", "");
    begin(
        &mut cluster,
        "kill",
        &upon(&pod, "KillContainer", json!({})),
        LONG,
    );
    let status = until_phase(&mut cluster, "kill", "Ended");
    assert!(
        status["startedAt"].as_str() <= status["endedAt"].as_str(),
        "{status}"
    );
    let killed = cluster.until_pod("victim", "started anew", |pod| {
        container_status(pod)["restartCount"] == 1
    });
    let end = &container_status(&killed)["lastState"]["terminated"];
    assert_eq!(
        (&end["exitCode"], &end["reason"]),
        (&json!(137), &json!("Error"))
    );
    until_forgotten(&cluster);

    let elsewhere = json!({"type": "KillContainer", "container": "main",
        "pod": {"namespace": "default", "name": "nobody", "uid": "../../etc"}});
    let mut wrong = upon(&pod, "KillContainer", json!({}));
    wrong["container"] = "sidecar".into();
    let limitless = upon(&other, "TakeMemory", json!({"percent": 90}));
    let crowd = upon(&other, "BurnCpu", json!({"workers": 0}));
    for (task, action, seconds, message) in [
        (
            "elsewhere",
            &elsewhere,
            LONG,
            "pod default/nobody does not run on node",
        ),
        (
            "wrong",
            &wrong,
            LONG,
            "pod default/victim has not started container \"sidecar\"",
        ),
        (
            "late",
            &upon(&other, "KillContainer", json!({})),
            -1,
            "it was to end before it had begun",
        ),
        (
            "limitless",
            &limitless,
            LONG,
            "container \"main\" has no memory limit",
        ),
        ("crowd", &crowd, LONG, "0 workers"),
        (
            "shared",
            &json!({"type": "FillDisk", "leave": 0, "sharedDisk": false}),
            LONG,
            "set parameters.sharedDisk",
        ),
        (
            "offline",
            &json!({"type": "RefuseRegistries", "registries": []}),
            LONG,
            "--offline",
        ),
        (
            "crash",
            &json!({"type": "CrashNode", "node": "another"}),
            LONG,
            "not another",
        ),
    ] {
        begin(&mut cluster, task, action, seconds);
        let status = until_phase(&mut cluster, task, "Failed");
        let said = status["message"].as_str().unwrap_or_default();
        assert!(said.contains(message), "{task}: {said}");
        assert_eq!(status["startedAt"], Value::Null, "{task}");
    }
    let other = cluster.pod("other").expect("the pod");
    assert_eq!(container_status(&other)["restartCount"], 0);
    until_forgotten(&cluster);
}

#[test]
fn the_kernel_kills_a_container_whose_memory_is_used_up() {
    let mut cluster = cluster_with_busybox();
    let limit = "resources: {limits: {memory: 48Mi}}";
    let limited = run_pod(&mut cluster, "limited", limit);
    let limitless = run_pod(&mut cluster, "limitless", "");
    for (pod, task) in [(&limited, "oom-1"), (&limitless, "oom-2")] {
        begin(
            &mut cluster,
            task,
            &upon(pod, "ExhaustMemory", json!({})),
            LONG,
        );
    }
    for task in ["oom-1", "oom-2"] {
        let status = until_phase(&mut cluster, task, "Ended");
        assert_eq!(status["message"], Value::Null);
    }
    for pod in ["limited", "limitless"] {
        let killed = cluster.until_pod(pod, "started anew", |pod| {
            container_status(pod)["restartCount"] == 1
        });
        let end = &container_status(&killed)["lastState"]["terminated"];
        assert_eq!(
            (&end["exitCode"], &end["reason"]),
            (&json!(137), &json!("OOMKilled")),
            "{pod}"
        );
        // Whatever limit it had for the time went with it.
        let group = group_of(cluster.container_pid(pod, "main"), "memory");
        let now = fs::read_to_string(group.join("memory.limit_in_bytes"))
            .or_else(|_| fs::read_to_string(group.join("memory.max")))
            .expect("a limit");
        let limit = now.trim().parse::<u64>().unwrap_or(u64::MAX);
        assert_eq!(limit == 48 << 20, pod == "limited", "{pod}: {now}");
    }
    assert_eq!(helpers(&cluster), [0; 0]);
    until_forgotten(&cluster);
}

#[test]
fn a_container_that_hangs_goes_on_when_it_may_or_is_restarted_by_its_probe() {
    let mut cluster = cluster_with_busybox();
    let pod = run_pod(&mut cluster, "hung", "");
    let group = group_of(cluster.container_pid("hung", "main"), "memory");
    begin(
        &mut cluster,
        "hang",
        &upon(&pod, "StopContainer", json!({})),
        LONG,
    );
    until_phase(&mut cluster, "hang", "Active");
    assert!(are_stopped(&group), "{:?}", members(&group));
    // What is put into it later hangs too.
    let mut command = cluster.kubectl_command();
    let mut entered = command
        .args(["exec", "hung", "--", "sleep", "1000"])
        .spawn()
        .expect("kubectl starts");
    wait::until("the entered process hangs", || {
        let sleeping = members(&group).into_iter().find(|pid| {
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline"));
            command.unwrap_or_default().starts_with("sleep\0") && state(*pid) == Some('T')
        })?;
        are_stopped(&group).then_some(sleeping)
    });
    stop(&cluster, "hang");
    until_phase(&mut cluster, "hang", "Ended");
    let running = |pid: &i32| state(*pid).is_some_and(|state| state != 'T');
    wait::until("all go on", || {
        members(&group).iter().all(running).then_some(())
    });
    entered.kill().expect("SIGKILL");
    entered.wait().expect("its end");

    let probe = "livenessProbe: {exec: {command: [sh, -c, \"rm -f /alive; sleep 0.5; test -e /alive\"]}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 2}";
    let lively = "trap 'exit 0' TERM; while :; do touch /alive; sleep 0.1; done";
    cluster.apply(&shell_pod("probed", lively, "", probe));
    let pod = cluster.until_ready("probed");
    begin(
        &mut cluster,
        "probed",
        &upon(&pod, "StopContainer", json!({})),
        LONG,
    );
    cluster.until_pod("probed", "started anew", |pod| {
        container_status(pod)["restartCount"].as_i64() >= Some(1)
    });
    // Its successor is none of the task's business.
    until_phase(&mut cluster, "probed", "Ended");
    let group = group_of(cluster.container_pid("probed", "main"), "memory");
    assert!(!are_stopped(&group));
    let untouched = cluster.pod("hung").expect("the pod");
    assert_eq!(container_status(&untouched)["restartCount"], 0);
}

#[test]
fn a_container_is_pressed_without_being_killed() {
    let mut cluster = cluster_with_busybox();
    let limit = "resources: {limits: {memory: 96Mi}}";
    let pod = run_pod(&mut cluster, "pressed", limit);
    let pid = cluster.container_pid("pressed", "main");
    let number = |group: &Path, files: [&str; 2]| {
        let text = files
            .iter()
            .find_map(|file| fs::read_to_string(group.join(file)).ok());
        text.expect("a file")
            .trim()
            .parse::<u64>()
            .expect("a number")
    };
    let memory = group_of(pid, "memory");
    let in_use = || number(&memory, ["memory.usage_in_bytes", "memory.current"]);
    begin(
        &mut cluster,
        "press",
        &upon(&pod, "TakeMemory", json!({"percent": 90})),
        LONG,
    );
    until_phase(&mut cluster, "press", "Active");
    wait::until("the memory is in use", || {
        (in_use() > 80 << 20).then_some(())
    });

    begin(
        &mut cluster,
        "burn",
        &upon(&pod, "BurnCpu", json!({"workers": 2})),
        LONG,
    );
    until_phase(&mut cluster, "burn", "Active");
    let cpu = group_of(pid, "cpuacct");
    let used = || {
        let stat = fs::read_to_string(cpu.join("cpu.stat")).unwrap_or_default();
        let unified = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        match unified {
            Some(micros) => micros.parse::<u64>().expect("a number") * 1000,
            None => number(&cpu, ["cpuacct.usage", "cpuacct.usage"]),
        }
    };
    let before = used();
    wait::until("CPU time is used up", || {
        (used() > before + 1_000_000_000).then_some(())
    });
    assert_eq!(helpers(&cluster).len(), 2);

    for task in ["press", "burn"] {
        stop(&cluster, task);
        until_phase(&mut cluster, task, "Ended");
    }
    assert_eq!(helpers(&cluster), [0; 0]);
    wait::until("the memory is given back", || {
        (in_use() < 20 << 20).then_some(())
    });
    let pressed = cluster.pod("pressed").expect("the pod");
    assert_eq!(container_status(&pressed)["restartCount"], 0);
    assert_eq!(cluster.container_pid("pressed", "main"), pid);

    // Of the node, and until it is due.
    begin(
        &mut cluster,
        "node",
        &json!({"type": "BurnCpu", "workers": 1}),
        3,
    );
    until_phase(&mut cluster, "node", "Active");
    assert_eq!(helpers(&cluster).len(), 1);
    let status = until_phase(&mut cluster, "node", "Ended");
    assert!(status["endedAt"].as_str() > status["startedAt"].as_str());
    assert_eq!(helpers(&cluster), [0; 0]);
}
