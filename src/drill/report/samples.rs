//! Made-up drills, ordinary and ugly, that the tests render.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use skiff_dev::{
    Drill, DrillKind, DrillPhase, DrillResult, DrillSpec, DrillStatus, EventCount,
    ExpectationResult, GoDuration, Latency, ProbeBucket, Requests, Span, Target, TargetKind,
    TimelineEntry,
};

use super::{Entry, Report};

/// A container was killed, and restarted in less than half a second.
pub fn recovered() -> Drill {
    let pod = "pod/web-6f7b9c-4xk2p";
    let buckets = (-20..43).map(|tenth| bucket(tenth, i64::from((0..2).contains(&tenth))));
    Drill {
        metadata: named("container-kill-x7k2p"),
        spec: DrillSpec {
            drill: DrillKind::ContainerKill,
            target: deployment("web"),
            expect: vec!["recovery<5s".into(), "failed<10%".into()],
            ..DrillSpec::default()
        },
        status: Some(DrillStatus {
            phase: DrillPhase::Completed,
            result: Some(DrillResult::Passed),
            victims: vec![format!("{pod} (node-1)")],
            seed: Some(42),
            started_at: Some(time("2026-11-23T04:12:18.100Z")),
            injected_at: Some(time("2026-11-23T04:12:20.123Z")),
            healed_at: Some(time("2026-11-23T04:12:20.123Z")),
            completed_at: Some(time("2026-11-23T04:12:24.423Z")),
            recovered: Some(true),
            time_to_detect: Some(0.012),
            time_to_recover: Some(0.411),
            requests: Some(Requests {
                sent: 63,
                failed: 2,
                longest_gap: 0.21,
                latency: Some(Latency {
                    p50: 0.0008,
                    p99: 0.0034,
                    max: 0.0061,
                }),
                target: "http://10.43.0.7:80/".into(),
                from: "node-2".into(),
                errors: vec![EventCount {
                    reason: "connection refused".into(),
                    count: 2,
                    ..EventCount::default()
                }],
                buckets: buckets.collect(),
                ..Requests::default()
            }),
            restarts: Some(1),
            pods_moved: Some(0),
            timeline: vec![
                entry(0.0, "injected", pod, "SIGKILL to nginx (pid 4711)"),
                entry(
                    0.012,
                    "detected",
                    pod,
                    "nginx terminated: Error, exit code 137",
                ),
                entry(0.05, "firstFailedProbe", "", "connection refused"),
                entry(0.15, "lastFailedProbe", "", "connection refused"),
                entry(0.298, "started", pod, "nginx, attempt 1"),
                entry(0.402, "ready", pod, ""),
                entry(0.408, "inService", pod, ""),
                entry(0.411, "recovered", "", ""),
            ],
            spans: vec![
                span(pod, "Ready", -2.0, Some(0.012)),
                span(pod, "NotReady", 0.012, Some(0.402)),
                span(pod, "Ready", 0.402, None),
                span("pod/web-6f7b9c-9qzzd", "Ready", -2.0, None),
                span("pod/web-6f7b9c-tt8wb", "Ready", -2.0, None),
                span("node/node-1", "Ready", -2.0, None),
            ],
            expectations: vec![
                judged("recovery<5s", true, "411ms"),
                judged("failed<10%", true, "3.2%"),
            ],
            events: vec![EventCount {
                reason: "Started".into(),
                object: pod.into(),
                message: "Started container nginx".into(),
                count: 1,
            }],
            ..DrillStatus::default()
        }),
    }
}

/// A node crashed, and its pods were made anew on another one.
pub fn node_crash() -> Drill {
    let mut drill = recovered();
    drill.metadata = named("node-crash-b2x9q");
    drill.spec.drill = DrillKind::NodeCrash;
    drill.spec.expect = vec!["recovery<20s".into(), "moved=1".into(), "gap<2s".into()];
    let (old, new) = ("pod/web-6f7b9c-4xk2p", "pod/web-6f7b9c-m5hfw");
    let Some(status) = &mut drill.status else {
        return drill;
    };
    status.victims = vec!["node/node-1".into()];
    status.healed_at = Some(time("2026-11-23T04:12:51.623Z"));
    status.completed_at = Some(time("2026-11-23T04:12:54.023Z"));
    status.time_to_detect = Some(1.021);
    status.time_to_recover = Some(12.84);
    status.restarts = Some(0);
    status.pods_moved = Some(1);
    if let Some(requests) = &mut status.requests {
        (requests.sent, requests.failed, requests.longest_gap) = (360, 7, 1.1);
        let fails = |tenth: i32| [1, 4, 5, 8, 9].contains(&tenth);
        requests.buckets = (-20..340)
            .map(|tenth| bucket(tenth, i64::from(fails(tenth))))
            .collect();
    }
    status.timeline = vec![
        entry(
            0.0,
            "injected",
            "node/node-1",
            "agent, 4 shims and 4 containers ended, network removed",
        ),
        entry(0.1, "firstFailedProbe", "", "timed out after 1s"),
        entry(0.9, "lastFailedProbe", "", "timed out after 1s"),
        entry(
            1.021,
            "detected",
            "node/node-1",
            "Ready is Unknown: NodeStatusUnknown",
        ),
        entry(1.022, "outOfService", old, ""),
        entry(11.2, "deleted", old, "TaintManagerEviction"),
        entry(11.21, "scheduled", new, "node-3"),
        entry(11.9, "started", new, "nginx"),
        entry(12.8, "ready", new, ""),
        entry(12.84, "inService", new, ""),
        entry(12.84, "recovered", "", ""),
        entry(30.0, "undone", "node/node-1", ""),
        entry(31.5, "healed", "", ""),
    ];
    status.spans = vec![
        span(old, "Ready", -2.0, Some(1.022)),
        span(old, "NotReady", 1.022, Some(11.2)),
        span(old, "Terminating", 11.2, Some(31.4)),
        span("pod/web-6f7b9c-9qzzd", "Ready", -2.0, None),
        span(new, "Pending", 11.2, Some(11.21)),
        span(new, "ContainerCreating", 11.21, Some(11.9)),
        span(new, "Running", 11.9, Some(12.8)),
        span(new, "Ready", 12.8, None),
        span("node/node-1", "Ready", -2.0, Some(1.021)),
        span("node/node-1", "NotReady", 1.021, Some(31.5)),
        span("node/node-1", "Ready", 31.5, None),
        span("node/node-2", "Ready", -2.0, None),
        span("node/node-3", "Ready", -2.0, None),
    ];
    status.expectations = vec![
        judged("recovery<20s", true, "12.84s"),
        judged("moved=1", true, "1"),
        judged("gap<2s", true, "1.1s"),
    ];
    drill
}

/// A node crashed for a moment, and brought its pods back itself.
pub fn mended() -> Drill {
    let mut drill = node_crash();
    drill.spec.expect = vec!["recovery<20s".into()];
    let Some(status) = &mut drill.status else {
        return drill;
    };
    status.result = Some(DrillResult::Failed);
    status.message = Some(
        "not recovered before the undo after 5s: the target was not whole; whole again after 6.4s, by the undo".into(),
    );
    status.recovered = Some(false);
    status.time_to_recover = None;
    (status.restarts, status.pods_moved) = (Some(1), Some(0));
    let pod = "pod/web-6f7b9c-4xk2p";
    status.timeline.truncate(5);
    status.timeline.extend([
        entry(5.0, "undone", "node/node-1", ""),
        entry(6.3, "ready", pod, ""),
        entry(6.4, "inService", pod, ""),
        entry(6.4, "healed", "", ""),
    ]);
    status.spans = vec![
        span(pod, "Ready", -2.0, Some(1.022)),
        span(pod, "NotReady", 1.022, Some(6.3)),
        span(pod, "Ready", 6.3, None),
    ];
    status.expectations = vec![judged("recovery<20s", false, "never")];
    drill
}

/// Nobody mended it in time: no end of anything.
pub fn never_recovered() -> Drill {
    let mut drill = recovered();
    drill.spec.expect = vec!["recovery<5s".into()];
    let Some(status) = &mut drill.status else {
        return drill;
    };
    status.result = Some(DrillResult::Failed);
    status.message = Some("the target did not recover within 2m0s".into());
    status.recovered = Some(false);
    status.time_to_detect = None;
    status.time_to_recover = None;
    status.timeline.truncate(3);
    status.spans = vec![span("pod/web-6f7b9c-4xk2p", "CrashLoopBackOff", 0.1, None)];
    status.expectations = vec![judged("recovery<5s", false, "never")];
    if let Some(requests) = &mut status.requests {
        (requests.failed, requests.sent) = (1180, 1200);
        requests.buckets = (0..600)
            .map(|index| ProbeBucket {
                at: f64::from(index) * 0.2 - 2.0,
                sent: 2,
                failed: if index < 10 { 0 } else { 2 },
                slowest: if index < 10 { 0.002 } else { 0.0 },
            })
            .collect();
    }
    status.completed_at = Some(time("2026-11-23T04:14:20.423Z"));
    drill
}

/// Nothing was done at all.
pub fn refused() -> Drill {
    Drill {
        metadata: named("latency-1"),
        spec: DrillSpec {
            drill: DrillKind::Latency,
            target: deployment("web"),
            expect: vec!["latency.p99<200ms".into()],
            ..DrillSpec::default()
        },
        status: Some(DrillStatus {
            phase: DrillPhase::Completed,
            result: Some(DrillResult::Refused),
            message: Some("the kernel of node-1 has no netem (sch_netem)".into()),
            ..DrillStatus::default()
        }),
    }
}

/// Probing began and never got to send anything.
pub fn nothing_sent() -> Drill {
    let mut drill = recovered();
    if let Some(status) = &mut drill.status {
        status.requests = Some(Requests {
            target: "tcp://10.43.0.9:5432".into(),
            ..Requests::default()
        });
    }
    drill
}

/// Many pods with long names, many things at once.
pub fn crowded() -> Drill {
    let mut drill = node_crash();
    let Some(status) = &mut drill.status else {
        return drill;
    };
    for index in 0..40 {
        let pod = format!(
            "pod/a-deployment-with-a-name-of-someone-who-likes-long-names-{index:02}-5d8f7c9b6d-abcde"
        );
        let at = f64::from(index) * 0.013;
        status.victims.push(format!("{pod} (node-{})", index % 3));
        status
            .timeline
            .push(entry(at, "detected", &pod, "terminated"));
        status.timeline.push(entry(at + 2.0, "ready", &pod, ""));
        status.spans.push(span(&pod, "Ready", -2.0, Some(at)));
        status
            .spans
            .push(span(&pod, "ContainerCreating", at, Some(at + 2.0)));
        status.spans.push(span(&pod, "Ready", at + 2.0, None));
    }
    drill
}

/// As somebody might name things who wants to see what happens.
pub fn hostile() -> Drill {
    let evil = "\"></title><script>alert(1)</script>{{body}}";
    let mut drill = recovered();
    drill.metadata.name = Some(evil.into());
    drill.spec.target.name = Some(evil.into());
    drill.spec.expect = vec![evil.into()];
    let Some(status) = &mut drill.status else {
        return drill;
    };
    status.message = Some(evil.into());
    status.victims = vec![evil.into()];
    status.expectations = vec![judged(evil, false, evil)];
    status.timeline.push(entry(1.0, evil, evil, evil));
    status
        .spans
        .push(span(&format!("pod/{evil}"), evil, 0.0, None));
    status.events = vec![EventCount {
        reason: evil.into(),
        object: evil.into(),
        message: evil.into(),
        count: 1,
    }];
    if let Some(requests) = &mut status.requests {
        requests.target = evil.into();
        requests.from = evil.into();
    }
    drill
}

/// A drill that passed, a pause, one that failed, and one that was therefore not run.
pub fn game_day() -> Report {
    Report {
        title: Some("friday".into()),
        description: Some("What a customer sees when things break.".into()),
        entries: vec![
            Entry::Drill {
                title: "crash".into(),
                drill: Box::new(recovered()),
            },
            Entry::Pause(GoDuration::from_secs(5)),
            Entry::Drill {
                title: "crash-for-good".into(),
                drill: Box::new(never_recovered()),
            },
            Entry::NotRun {
                title: "node".into(),
                kind: DrillKind::NodeCrash,
                target: deployment("web"),
                why: None,
            },
        ],
    }
}

fn named(name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        ..ObjectMeta::default()
    }
}

fn deployment(name: &str) -> Target {
    Target {
        kind: TargetKind::Deployment,
        namespace: Some("default".into()),
        name: Some(name.into()),
        selector: None,
    }
}

fn time(text: &str) -> MicroTime {
    MicroTime(text.parse().expect("a time"))
}

fn bucket(tenth: i32, failed: i64) -> ProbeBucket {
    ProbeBucket {
        at: f64::from(tenth) / 10.0,
        sent: 1,
        failed,
        slowest: 0.001 + f64::from(tenth.rem_euclid(7)) * 0.0007,
    }
}

fn entry(at: f64, event: &str, object: &str, detail: &str) -> TimelineEntry {
    TimelineEntry {
        at,
        event: event.into(),
        object: object.into(),
        detail: detail.into(),
    }
}

fn span(object: &str, state: &str, from: f64, to: Option<f64>) -> Span {
    Span {
        object: object.into(),
        state: state.into(),
        from,
        to,
    }
}

fn judged(text: &str, met: bool, actual: &str) -> ExpectationResult {
    ExpectationResult {
        text: text.into(),
        met,
        actual: actual.into(),
    }
}
