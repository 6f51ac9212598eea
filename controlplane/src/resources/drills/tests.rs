//! Right and wrong drills, and how the schema and the types agree.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use skiff_dev::{
    Action, DrillPlan, DrillResult, DrillSpec, DrillStatus, DrillTask, DrillTaskSpec,
    DrillTaskStatus, EventCount, ExpectationResult, Latency, NumberRange, Parameters, PodRef,
    ProbeBucket, ProbeScheme, ProbeSpec, ProbeTarget, Requests, Span, Target, TaskPhase,
    TimelineEntry, Writes,
};

use super::*;

fn drill(spec: Value) -> Value {
    let mut drill = json!({"apiVersion": "skiff.dev/v1", "kind": "Drill",
        "metadata": {"name": "d"}, "spec": spec});
    complete(&mut drill);
    drill
}

fn web(more: Value) -> Value {
    let mut spec = json!({"drill": "container-kill",
        "target": {"kind": "Deployment", "name": "web"}});
    for (key, value) in more.as_object().expect("fields") {
        spec[key] = value.clone();
    }
    drill(spec)
}

fn faults(drill: &Value) -> Vec<String> {
    let errors = validate(drill).into_iter();
    errors
        .map(|error| format!("{}: {}", error.field, error.message))
        .collect()
}

/// The fields that are wrong in a drill.
fn wrong(more: Value) -> Vec<String> {
    let errors = validate(&web(more)).into_iter();
    errors.map(|error| error.field).collect()
}

#[test]
fn what_was_not_said_is_written_down() {
    let spec = |drill: Value| drill["spec"].clone();
    assert_eq!(
        spec(web(json!({}))),
        json!({"drill": "container-kill", "count": 1, "timeout": "2m0s",
            "target": {"kind": "Deployment", "name": "web", "namespace": "default"}})
    );
    let loss = spec(web(json!({"drill": "packet-loss", "percent": 50})));
    assert_eq!(loss["duration"], "10s");
    assert_eq!(loss["parameters"], json!({"loss": 30}));
    assert_eq!(loss["count"], Value::Null);
    let crash = spec(drill(
        json!({"drill": "node-crash", "target": {"kind": "Node", "name": "n"}, "duration": "5s"}),
    ));
    assert_eq!(crash["duration"], "5s");
    assert_eq!(crash["target"], json!({"kind": "Node", "name": "n"}));
}

#[test]
fn every_kind_may_be_written_in_short() {
    for kind in DrillKind::ALL {
        assert_eq!(
            faults(&web(json!({"drill": kind.name()}))),
            [""; 0],
            "{kind}"
        );
    }
}

#[test]
fn an_unknown_drill_is_told_which_there_are() {
    let faults = faults(&web(json!({"drill": "container-hug"})));
    assert_eq!(faults.len(), 1);
    assert!(
        faults[0].starts_with(
            "spec.drill: Unsupported value: \"container-hug\": supported values: \"container-kill\", \"container-oom\","
        ),
        "{faults:?}"
    );
    assert!(faults[0].ends_with("\"controlplane-kill\""));
}

#[test]
fn nothing_at_all_is_said_so() {
    assert_eq!(
        faults(&drill(json!({}))),
        ["spec.drill: Required value", "spec.target: Required value"]
    );
}

#[test]
fn a_target_is_named_or_selected() {
    let target = |target: Value| wrong(json!({"target": target}));
    assert_eq!(
        target(json!({"kind": "Selector", "selector": "app=web,tier in (a,b)"})),
        [""; 0]
    );
    for (given, field) in [
        (json!({"name": "web"}), "spec.target.kind"),
        (
            json!({"kind": "StatefulSet", "name": "web"}),
            "spec.target.kind",
        ),
        (json!({"kind": "Deployment"}), "spec.target.name"),
        (json!({"kind": "Pod", "name": "Web"}), "spec.target.name"),
        (json!({"kind": "Pod", "name": "web/1"}), "spec.target.name"),
        (
            json!({"kind": "Pod", "name": "web", "namespace": "a.b"}),
            "spec.target.namespace",
        ),
        (
            json!({"kind": "Pod", "name": "web", "selector": "a=b"}),
            "spec.target.selector",
        ),
        (json!({"kind": "Selector"}), "spec.target.selector"),
        (
            json!({"kind": "Selector", "selector": "a b"}),
            "spec.target.selector",
        ),
        (
            json!({"kind": "Selector", "selector": "a=b", "name": "web"}),
            "spec.target.name",
        ),
        (
            json!({"kind": "Node", "name": "n", "namespace": "x"}),
            "spec.target.namespace",
        ),
    ] {
        assert_eq!(target(given.clone()), [field], "{given}");
    }
    let peer = json!({"kind": "Selector", "selector": "app=db"});
    let apart = json!({"drill": "pod-partition", "peer": peer});
    assert_eq!(wrong(apart), [""; 0]);
    assert_eq!(wrong(json!({"peer": peer})), ["spec.peer"]);
    let node = json!({"kind": "Node", "name": "n"});
    assert_eq!(
        wrong(json!({"drill": "pod-partition", "peer": node})),
        ["spec.peer.kind"]
    );
}

#[test]
fn victims_are_counted_one_way() {
    for (given, field) in [
        (json!({"count": 1, "percent": 1}), "spec.percent"),
        (json!({"count": 0}), "spec.count"),
        (json!({"count": -1}), "spec.count"),
        (json!({"percent": 0}), "spec.percent"),
        (json!({"percent": 101}), "spec.percent"),
    ] {
        assert_eq!(wrong(given.clone()), [field], "{given}");
    }
}

#[test]
fn times_are_durations_within_reason() {
    for (given, field) in [
        (json!({"duration": "10s"}), "spec.duration"),
        (
            json!({"drill": "container-hang", "duration": "10"}),
            "spec.duration",
        ),
        (
            json!({"drill": "container-hang", "duration": "-10s"}),
            "spec.duration",
        ),
        (
            json!({"drill": "container-hang", "duration": "0s"}),
            "spec.duration",
        ),
        (
            json!({"drill": "container-hang", "duration": "25h"}),
            "spec.duration",
        ),
        (json!({"timeout": "0"}), "spec.timeout"),
        (json!({"timeout": "soon"}), "spec.timeout"),
    ] {
        assert_eq!(wrong(given.clone()), [field], "{given}");
    }
    assert_eq!(
        faults(&web(json!({"duration": "10s"}))),
        ["spec.duration: Forbidden: container-kill is over the moment that it has happened"]
    );
}

#[test]
fn parameters_belong_to_their_kinds() {
    for (drill, given) in [
        ("packet-loss", json!({"loss": 100})),
        ("latency", json!({"delay": "1s"})),
        ("cpu-stress", json!({"workers": 4})),
        ("memory-pressure", json!({"memory": 99})),
        ("disk-full", json!({"leave": "1Gi", "sharedDisk": true})),
        ("controlplane-kill", json!({"down": "5s"})),
        ("controlplane-restart", json!({"down": "5s"})),
    ] {
        assert_eq!(
            wrong(json!({"drill": drill, "parameters": given})),
            [""; 0],
            "{drill}"
        );
        let fields: Vec<String> = given
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| format!("spec.parameters.{name}"))
            .collect();
        assert_eq!(wrong(json!({"parameters": given})), fields, "{drill}");
    }
    for (drill, given) in [
        ("packet-loss", json!({"loss": 0})),
        ("packet-loss", json!({"loss": 101})),
        ("latency", json!({"delay": "0s"})),
        ("latency", json!({"delay": "2m"})),
        ("cpu-stress", json!({"workers": 0})),
        ("memory-pressure", json!({"memory": 100})),
        ("disk-full", json!({"leave": "-1"})),
        ("controlplane-kill", json!({"down": "x"})),
    ] {
        let more = json!({"drill": drill, "parameters": given});
        assert_eq!(wrong(more).len(), 1, "{drill} {given}");
    }
    assert_eq!(
        wrong(json!({"drill": "cpu-stress", "container": "nginx"})),
        [""; 0]
    );
    assert_eq!(
        wrong(json!({"drill": "pod-delete", "container": "nginx"})),
        ["spec.container"]
    );
}

#[test]
fn a_probe_can_be_sent() {
    let probe = |probe: Value| wrong(json!({"probe": probe}));
    for right in [
        json!({"off": true}),
        json!({"service": "web", "port": 80, "path": "/health?full=1"}),
        json!({"service": "0-shop/web"}),
        json!({"host": "10.0.0.1", "port": 5432, "scheme": "TCP", "rate": 1000, "timeout": "60s"}),
        json!({"host": "db.example", "port": 1}),
        json!({"host": "fd00::1", "port": 65535}),
    ] {
        assert_eq!(probe(right.clone()), [""; 0], "{right}");
    }
    for (given, field) in [
        (json!({"off": true, "rate": 5}), "spec.probe.rate"),
        (
            json!({"service": "web", "host": "a", "port": 1}),
            "spec.probe.host",
        ),
        (json!({"service": "1web"}), "spec.probe.service"),
        (json!({"service": "shop/web/1"}), "spec.probe.service"),
        (json!({"service": "Shop/web"}), "spec.probe.service"),
        (json!({"service": "/web"}), "spec.probe.service"),
        (json!({"host": "a"}), "spec.probe.port"),
        (json!({"host": "a b", "port": 1}), "spec.probe.host"),
        (json!({"host": "a;rm -rf /", "port": 1}), "spec.probe.host"),
        (json!({"port": 0}), "spec.probe.port"),
        (json!({"port": 65536}), "spec.probe.port"),
        (json!({"rate": 0}), "spec.probe.rate"),
        (json!({"rate": 1001}), "spec.probe.rate"),
        (json!({"timeout": "61s"}), "spec.probe.timeout"),
        (json!({"scheme": "UDP"}), "spec.probe.scheme"),
        (json!({"path": "health"}), "spec.probe.path"),
        (json!({"path": "/a b"}), "spec.probe.path"),
        (json!({"path": "/a\r\nHost: b"}), "spec.probe.path"),
        (json!({"path": "/", "scheme": "TCP"}), "spec.probe.path"),
    ] {
        assert_eq!(probe(given.clone()), [field], "{given}");
    }
}

#[test]
fn expectations_are_read() {
    let right = json!({"expect": ["recovery<5s", "failed<1%", "restarts=0"]});
    assert_eq!(wrong(right), [""; 0]);
    let one = web(json!({"expect": ["recovery<5s", "speed>1"]}));
    assert_eq!(
        faults(&one),
        [
            "spec.expect[1]: Invalid value: \"speed>1\": nothing called \"speed\" is measured; there \
          are recovery, detect, gap, latency.p50, latency.p99, latency.max, failed, sent, restarts, \
          moved, lost"
        ]
    );
    let many = vec!["restarts=0"; EXPECTATIONS + 1];
    assert_eq!(wrong(json!({"expect": many})), ["spec.expect"]);
}

#[test]
fn a_drill_is_only_ever_called_off() {
    let old = web(json!({}));
    let cancelled = web(json!({"cancel": true}));
    assert_eq!(validate_update(&cancelled, &old), []);
    let back = validate_update(&old, &cancelled);
    assert_eq!(back[0].message, "Forbidden: may not be taken back");
    let other = validate_update(&web(json!({"count": 2})), &old);
    assert_eq!((other.len(), other[0].field.as_str()), (1, "spec"));
}

#[test]
fn rows_tell_the_result() {
    let mut drill = web(json!({}));
    let now = Timestamp::now();
    assert_eq!(
        row(&drill, now)[1..7],
        [
            json!("container-kill"),
            json!("deployment/web"),
            json!("Pending"),
            json!(""),
            json!(""),
            json!("")
        ]
    );
    drill["status"] = json!({"phase": "Completed", "result": "Passed", "timeToDetect": 0.0123,
        "timeToRecover": 1.5, "seed": 7, "requests": {"sent": 600, "failed": 3}});
    let row = row(&drill, now);
    assert_eq!(
        row[3..7],
        [
            json!("Completed"),
            json!("Passed"),
            json!("0.012s"),
            json!("1.500s")
        ]
    );
    assert_eq!(row[8..], [json!("3/600"), json!("7")]);
}

/// A report with nothing left out.
fn full_status() -> DrillStatus {
    let time = || Some(MicroTime(Timestamp::UNIX_EPOCH));
    let counted = || {
        vec![EventCount {
            reason: "Killing".into(),
            object: "pod/web-1".into(),
            message: "m".into(),
            count: 1,
        }]
    };
    DrillStatus {
        phase: skiff_dev::DrillPhase::Completed,
        result: Some(DrillResult::Passed),
        message: Some("m".into()),
        victims: vec!["pod/web-1 (n1)".into()],
        seed: Some(1),
        started_at: time(),
        injected_at: time(),
        healed_at: time(),
        completed_at: time(),
        recovered: Some(true),
        time_to_detect: Some(0.5),
        time_to_recover: Some(0.5),
        requests: Some(Requests {
            sent: 1,
            failed: 1,
            late: 1,
            longest_gap: 0.5,
            latency: Some(Latency {
                p50: 0.5,
                p99: 0.5,
                max: 0.5,
            }),
            target: "t".into(),
            from: "n1".into(),
            errors: counted(),
            buckets: vec![ProbeBucket {
                at: 0.5,
                sent: 1,
                failed: 1,
                slowest: 0.5,
            }],
        }),
        writes: Some(Writes {
            sent: 1,
            acknowledged: 1,
            lost: 1,
            longest_gap: 0.5,
        }),
        restarts: Some(1),
        pods_moved: Some(1),
        timeline: vec![TimelineEntry {
            at: 0.5,
            event: "injected".into(),
            object: "o".into(),
            detail: "d".into(),
        }],
        spans: vec![Span {
            object: "o".into(),
            state: "Ready".into(),
            from: 0.5,
            to: Some(0.5),
        }],
        expectations: vec![ExpectationResult {
            text: "t".into(),
            met: true,
            actual: "a".into(),
        }],
        events: counted(),
        plan: Some(DrillPlan::default()),
    }
}

fn full_drill() -> Drill {
    let text = || Some("x".to_owned());
    let duration = Some(GoDuration::from_secs(1));
    let target = Target {
        namespace: text(),
        name: text(),
        selector: text(),
        ..Target::default()
    };
    let spec = DrillSpec {
        drill: DrillKind::ContainerKill,
        target: target.clone(),
        peer: Some(target),
        count: Some(1),
        percent: Some(1),
        seed: Some(1),
        duration,
        timeout: duration,
        container: text(),
        parameters: Some(Parameters {
            loss: Some(1),
            delay: duration,
            workers: Some(1),
            memory: Some(1),
            leave: Some(k8s_openapi::apimachinery::pkg::api::resource::Quantity(
                "1Gi".into(),
            )),
            shared_disk: true,
            down: duration,
        }),
        probe: Some(ProbeSpec {
            off: true,
            service: text(),
            host: text(),
            port: Some(1),
            scheme: Some(ProbeScheme::Tcp),
            path: text(),
            rate: Some(1),
            timeout: duration,
        }),
        expect: vec!["x".into()],
        dry_run: true,
        cancel: true,
    };
    let mut drill = Drill {
        spec,
        status: Some(full_status()),
        ..Drill::default()
    };
    drill.metadata.name = text();
    drill
}

#[test]
fn the_schema_has_the_fields_of_the_types_and_no_others() {
    let mut written = serde_json::to_value(full_drill()).unwrap();
    let unknown = crate::schema::conform("dev.skiff.v1.Drill", &mut written);
    assert_eq!(unknown, Ok(vec![]));
    assert_eq!(
        serde_json::from_value::<Drill>(written.clone()).unwrap(),
        full_drill()
    );

    let structures = [
        ("DrillSpec", at(&written, "spec")),
        ("DrillStatus", at(&written, "status")),
        ("Target", at(&written, "spec.target")),
        ("Parameters", at(&written, "spec.parameters")),
        ("ProbeSpec", at(&written, "spec.probe")),
        ("Requests", at(&written, "status.requests")),
        ("Latency", at(&written, "status.requests.latency")),
        ("ProbeBucket", &written["status"]["requests"]["buckets"][0]),
        ("EventCount", &written["status"]["events"][0]),
        ("Writes", at(&written, "status.writes")),
        ("TimelineEntry", &written["status"]["timeline"][0]),
        ("Span", &written["status"]["spans"][0]),
        ("ExpectationResult", &written["status"]["expectations"][0]),
    ];
    for (name, value) in structures {
        let definition = crate::schema::schema()
            .get(&format!("dev.skiff.v1.{name}"))
            .expect(name);
        let known: Vec<&str> = definition.fields.iter().map(|field| field.name).collect();
        let fields = value.as_object().expect(name);
        let mut fields: Vec<&str> = fields.keys().map(String::as_str).collect();
        fields.sort_unstable();
        assert_eq!(known, fields, "{name}");
        let silent = |field: &&&str| crate::schema::describe(definition, Some(field)).is_none();
        assert_eq!(
            known.iter().find(silent),
            None,
            "{name}: a field that nothing is said of"
        );
    }
}

#[test]
fn the_schema_has_the_fields_of_tasks_too() {
    let time = || Some(MicroTime(Timestamp::UNIX_EPOCH));
    let status = DrillTaskStatus {
        phase: TaskPhase::Active,
        message: Some("m".into()),
        started_at: time(),
        ended_at: time(),
        healthy: Some(true),
        healthy_since: time(),
        first_failed_at: time(),
        last_failed_at: time(),
        requests: Some(Requests::default()),
        writes: Some(Writes::default()),
        acknowledged: vec![NumberRange { first: 1, last: 2 }],
    };
    let pod = || PodRef {
        namespace: "n".into(),
        name: "p".into(),
        uid: "u".into(),
        ip: "10.42.0.2".into(),
    };
    let container = || "c".to_owned();
    let delay = GoDuration::from_secs(1);
    let actions = [
        Action::KillContainer {
            pod: pod(),
            container: container(),
        },
        Action::ExhaustMemory {
            pod: pod(),
            container: container(),
        },
        Action::StopContainer {
            pod: pod(),
            container: container(),
        },
        Action::BurnCpu {
            pod: Some(pod()),
            container: Some(container()),
            workers: Some(1),
        },
        Action::BurnCpu {
            pod: None,
            container: None,
            workers: None,
        },
        Action::TakeMemory {
            pod: None,
            container: None,
            percent: 90,
        },
        Action::FillDisk {
            leave: 0,
            shared_disk: false,
        },
        Action::CrashNode { node: "n1".into() },
        Action::CutControlPlane {},
        Action::CutPods {
            pods: vec![pod()],
            peers: vec!["10.42.0.3".into()],
        },
        Action::CutPods {
            pods: vec![pod()],
            peers: vec![],
        },
        Action::SilenceDns { pods: vec![pod()] },
        Action::RefuseRegistries { registries: vec![] },
        Action::LosePackets {
            pods: vec![pod()],
            percent: 30,
        },
        Action::DelayPackets {
            pods: vec![pod()],
            delay,
        },
        Action::RestartAgent {},
        Action::RestartControlPlane {
            kill: true,
            down: GoDuration::default(),
        },
        Action::Probe {
            target: ProbeTarget::default(),
            rate: 10,
            timeout: delay,
        },
        Action::Write {
            namespace: "n".into(),
            rate: 10,
            token: "t".into(),
        },
    ];
    for action in actions {
        let task = DrillTask {
            spec: DrillTaskSpec {
                drill: "d".into(),
                node_name: Some("n1".into()),
                action,
                stop: true,
                ..DrillTaskSpec::default()
            },
            status: Some(status.clone()),
            ..DrillTask::default()
        };
        let mut written = serde_json::to_value(&task).unwrap();
        let unknown = crate::schema::conform("dev.skiff.v1.DrillTask", &mut written);
        assert_eq!(unknown, Ok(vec![]));
        let read: DrillTask = serde_json::from_value(written).unwrap();
        assert_eq!(read, task, "what is stored is what was meant");
    }
}
