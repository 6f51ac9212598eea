//! Probes of a scripted container, under paused time.

use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::seams::{ExecOutcome, SeamError};
use super::worker_tests::{Bench, main_container, phase, pod, ready};

/// A pod with a container `web` that has these probes.
fn probed(probes: Value, more: Value) -> Bench {
    let mut container = json!({"name": "web", "image": "nginx"});
    for (name, probe) in probes.as_object().unwrap() {
        container[name] = probe.clone();
    }
    let mut spec = json!({"containers": [container]});
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    Bench::new(pod(spec))
}

fn exec(word: &str, more: Value) -> Value {
    let mut probe = json!({"exec": {"command": [word, "-c"]}, "periodSeconds": 10});
    for (field, value) in more.as_object().unwrap() {
        probe[field] = value.clone();
    }
    probe
}

fn fails(output: &str) -> ExecOutcome {
    ExecOutcome::Exited {
        code: 1,
        output: output.to_owned(),
    }
}

fn succeeds() -> ExecOutcome {
    ExecOutcome::Exited {
        code: 0,
        output: String::new(),
    }
}

fn restarted(count: i32) -> impl Fn(&PodStatus) -> bool {
    move |status| {
        let container = main_container(status);
        let runs = container
            .state
            .as_ref()
            .is_some_and(|s| s.running.is_some());
        container.restart_count == count && runs
    }
}

fn unready(status: &PodStatus) -> bool {
    phase("Running")(status) && !ready(status)
}

impl Bench {
    /// Events of probes and kills, repetitions left out.
    fn told(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            let line = format!("{} {}", event.reason, event.message);
            if matches!(event.reason, "Unhealthy" | "ProbeWarning" | "Killing")
                && told.last() != Some(&line)
            {
                told.push(line);
            }
        }
        told
    }

    async fn running(&self) {
        self.api.until(phase("Running")).await;
    }
}

/// Whole seconds on the paused clock.
fn seconds_since(begin: Instant) -> u64 {
    begin.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn readiness_begins_false_and_follows_its_thresholds() {
    let probe = exec(
        "ask",
        json!({"initialDelaySeconds": 5, "successThreshold": 2, "failureThreshold": 3}),
    );
    let mut bench = probed(json!({"readinessProbe": probe}), json!({}));
    bench.running().await;
    let begin = Instant::now();
    let status = bench.api.until(ready).await;
    assert!(main_container(&status).started == Some(true));
    // The first probe after the delay, the second a period later.
    assert_eq!(seconds_since(begin), 15);
    bench.api.forget_statuses();
    bench.sandbox().script("ask", Ok(fails("down\n")));
    bench.api.until(unready).await;
    assert_eq!(seconds_since(begin), 45);
    assert_eq!(bench.told(), ["Unhealthy Readiness probe failed: down\n"]);
    assert_eq!(bench.sandbox().executed("ask"), 5);
    bench.api.forget_statuses();
    bench.sandbox().script("ask", Ok(succeeds()));
    bench.api.until(ready).await;
    assert_eq!(seconds_since(begin), 65);
}

#[tokio::test(start_paused = true)]
async fn liveness_ends_the_container_which_starts_anew() {
    let probe = exec(
        "live",
        json!({"failureThreshold": 2, "terminationGracePeriodSeconds": 3}),
    );
    let mut bench = probed(
        json!({"livenessProbe": probe}),
        json!({"terminationGracePeriodSeconds": 60}),
    );
    bench.running().await;
    *bench.sandbox().stubborn.lock().unwrap() = true;
    bench.sandbox().script("live", Ok(fails("")));
    bench.sandbox().until_signalled("web.0 15").await;
    let begin = Instant::now();
    bench.api.until(restarted(1)).await;
    // The probe's own grace period, not the pod's.
    assert!(seconds_since(begin) < 60, "{}", seconds_since(begin));
    assert_eq!(
        bench.told()[..2],
        [
            "Unhealthy Liveness probe failed: ",
            "Killing Container web failed liveness probe, will be restarted"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_container_that_is_not_restarted_is_not_said_to_be() {
    let probe = exec("live", json!({"failureThreshold": 1}));
    let mut bench = probed(
        json!({"livenessProbe": probe}),
        json!({"restartPolicy": "Never"}),
    );
    bench.running().await;
    bench.sandbox().script("live", Ok(fails("")));
    bench
        .api
        .until(|status| {
            main_container(status)
                .state
                .as_ref()
                .is_some_and(|s| s.terminated.is_some())
        })
        .await;
    assert!(
        bench
            .told()
            .contains(&"Killing Container web failed liveness probe".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn startup_comes_before_the_others() {
    let probes = json!({
        "startupProbe": exec("begin", json!({"initialDelaySeconds": 1, "failureThreshold": 30, "periodSeconds": 2})),
        "livenessProbe": exec("live", json!({"failureThreshold": 1})),
        "readinessProbe": exec("ask", json!({"failureThreshold": 1}))});
    let mut bench = probed(probes, json!({}));
    bench.running().await;
    bench.sandbox().script("begin", Ok(fails("not yet")));
    tokio::time::sleep(Duration::from_secs(31)).await;
    let sandbox = bench.sandbox();
    assert_eq!((sandbox.executed("live"), sandbox.executed("ask")), (0, 0));
    assert!(sandbox.executed("begin") >= 15);
    bench.sandbox().script("begin", Ok(succeeds()));
    bench.api.until(ready).await;
    let begun = sandbox.executed("begin");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(sandbox.executed("begin"), begun, "startup is over for good");
    assert!(sandbox.executed("live") >= 6 && sandbox.executed("ask") >= 6);
    assert_eq!(bench.told(), ["Unhealthy Startup probe failed: not yet"]);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_never_starts_up_is_ended() {
    let probe = exec(
        "begin",
        json!({"initialDelaySeconds": 1, "failureThreshold": 3, "periodSeconds": 1}),
    );
    let mut bench = probed(json!({"startupProbe": probe}), json!({}));
    bench.running().await;
    bench.sandbox().script("begin", Ok(fails("no")));
    bench.api.until(restarted(1)).await;
    let told = bench.told();
    assert_eq!(
        told[..2],
        [
            "Unhealthy Startup probe failed: no",
            "Killing Container web failed startup probe, will be restarted"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_cannot_be_made_counts_neither_way() {
    let probe = exec("ask", json!({"failureThreshold": 1}));
    let mut bench = probed(json!({"readinessProbe": probe}), json!({}));
    bench.api.until(ready).await;
    bench.api.forget_statuses();
    bench
        .sandbox()
        .script("ask", Err(SeamError("no such container".into())));
    let before = bench.sandbox().executed("ask");
    tokio::time::sleep(Duration::from_secs(25)).await;
    // Each is tried three times.
    assert_eq!((bench.sandbox().executed("ask") - before) % 3, 0);
    bench.sandbox().script("ask", Ok(ExecOutcome::TimedOut));
    bench.api.until(unready).await;
    assert_eq!(
        bench.told(),
        [
            "Unhealthy Readiness probe errored and resulted in unknown state: no such container",
            "Unhealthy Readiness probe failed: command timed out: \"ask -c\" timed out after 1s"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn while_a_pod_ends_only_readiness_is_asked_for() {
    let probes = json!({
        "livenessProbe": exec("live", json!({"failureThreshold": 1, "periodSeconds": 1})),
        "readinessProbe": exec("ask", json!({"failureThreshold": 1, "periodSeconds": 1}))});
    let mut bench = probed(probes, json!({}));
    bench.api.until(ready).await;
    let sandbox = bench.sandbox();
    *sandbox.stubborn.lock().unwrap() = true;
    bench.api.forget_statuses();
    bench.delete(20);
    sandbox.until_signalled("web.0 15").await;
    let (live, asked) = (sandbox.executed("live"), sandbox.executed("ask"));
    sandbox.script("live", Ok(fails("dead")));
    sandbox.script("ask", Ok(fails("going")));
    bench.api.until(|status| !ready(status)).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(sandbox.executed("live"), live);
    assert!(sandbox.executed("ask") > asked + 3);
    let told = bench.told();
    assert!(
        told.iter().all(|line| !line.contains("Liveness")),
        "{told:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn readiness_gates_are_others_to_open() {
    let mut bench = probed(
        json!({}),
        json!({"readinessGates": [{"conditionType": "example.org/go"}]}),
    );
    let status = bench.api.until(phase("Running")).await;
    let condition = |status: &PodStatus, kind: &str| {
        let all = status.conditions.clone().unwrap_or_default();
        all.into_iter().find(|c| c.type_ == kind).unwrap()
    };
    assert_eq!(condition(&status, "ContainersReady").status, "True");
    let closed = condition(&status, "Ready");
    assert_eq!(
        (closed.status.as_str(), closed.reason.as_deref()),
        ("False", Some("ReadinessGatesNotReady"))
    );
    bench.change(|pod| {
        let mut given = pod.status.clone().unwrap_or_default();
        let open = json!([{"type": "example.org/go", "status": "True"}]);
        given.conditions = Some(serde_json::from_value(open).unwrap());
        pod.status = Some(given);
    });
    bench.api.until(ready).await;
    assert!(bench.told().is_empty());
}
