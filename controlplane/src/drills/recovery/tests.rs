use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use skiff_dev::{Baseline, BaselinePod, PodRef, Scope};

use super::*;
use crate::drills::made_up::{at, node, pod, running};

const NOBODY: fn(&str, &str) -> Option<String> = |_, _| None;

/// A drill of some kind on the pod `a` on n1, or on n1 itself; `a` and `b` were Ready at 0.
struct Made {
    kind: DrillKind,
    plan: DrillPlan,
    course: Course,
    faults: Vec<Arc<DrillTask>>,
    probe: Option<DrillTaskStatus>,
    seen: i64,
}

fn made(kind: DrillKind) -> Made {
    let pod_victim = PodRef {
        namespace: "default".into(),
        name: "a".into(),
        uid: "uid-a".into(),
        ip: String::new(),
    };
    let baseline = ["a", "b"].map(|name| BaselinePod {
        uid: format!("uid-{name}"),
        node: if name == "a" {
            "n1".into()
        } else {
            "n2".into()
        },
        restarts: 0,
    });
    let plan = DrillPlan {
        victims: vec![Victim {
            pod: (!kind.hits_nodes()).then_some(pod_victim),
            container: "main".into(),
            node: "n1".into(),
        }],
        scope: Scope {
            controllers: vec!["rs".into()],
            ..Scope::default()
        },
        baseline: Some(Baseline {
            ready: 2,
            pods: baseline.into(),
        }),
        ..DrillPlan::default()
    };
    let mut course = Course::new(&plan, Vec::new(), Vec::new());
    course.take_in(at(0), |course| {
        course.see_pod(at(0), &running(pod("a", "n1", "Ready"), 0), &NOBODY);
        course.see_pod(at(0), &running(pod("b", "n2", "Ready"), 0), &NOBODY);
        course.see_node(at(0), &node("n1", "True"));
    });
    Made {
        kind,
        plan,
        course,
        faults: vec![task(TaskPhase::Active, None)],
        probe: None,
        seen: 0,
    }
}

fn task(phase: TaskPhase, ended: Option<i64>) -> Arc<DrillTask> {
    Arc::new(DrillTask {
        status: Some(DrillTaskStatus {
            phase,
            started_at: Some(MicroTime(at(0))),
            ended_at: ended.map(|millis| MicroTime(at(millis))),
            ..DrillTaskStatus::default()
        }),
        ..DrillTask::default()
    })
}

impl Made {
    fn see(&mut self, millis: i64, seen: k8s_openapi::api::core::v1::Pod) {
        self.course.see_pod(at(millis), &seen, &NOBODY);
    }

    fn undo(&mut self, millis: i64) {
        self.faults = vec![task(TaskPhase::Ended, Some(millis))];
    }

    /// The injection was at 0.
    fn judge(&self, now: i64) -> Recovery {
        judge(&Situation {
            kind: self.kind,
            plan: &self.plan,
            hit: &self.plan.victims,
            injected: at(0),
            course: &self.course,
            faults: &self.faults,
            probe: self.probe.as_ref().map(|status| Probed {
                status,
                seen: Some(at(self.seen)),
                timeout: Duration::from_secs(1),
            }),
            now: at(now),
        })
    }

    fn missing(&self) -> String {
        match self.judge(100_000) {
            Recovery::Missing(why) => why,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_killed_container_has_to_run_anew() {
    for kind in [DrillKind::ContainerKill, DrillKind::ContainerOom] {
        let mut made = made(kind);
        // Nobody has noticed yet: everything still looks well.
        assert_eq!(made.missing(), "pod/a was not started anew");
        made.see(50, running(pod("a", "n1", "Running"), 1));
        assert_eq!(made.missing(), "pod/a is not Ready");
        made.see(80, running(pod("a", "n1", "Ready"), 1));
        assert_eq!(made.judge(80), Recovery::At(at(80)));
    }
}

#[test]
fn a_restart_that_another_process_saw_counts() {
    let mut made = made(DrillKind::ContainerKill);
    let mut course = Course::new(&made.plan, Vec::new(), Vec::new());
    course.take_in(at(500), |course| {
        course.see_pod(at(500), &running(pod("a", "n1", "Ready"), 1), &NOBODY);
        course.see_pod(at(500), &running(pod("b", "n2", "Ready"), 0), &NOBODY);
    });
    made.course = course;
    assert_eq!(made.judge(600), Recovery::At(at(500)));
}

#[test]
fn a_deleted_pod_has_to_be_replaced() {
    for kind in [DrillKind::PodDelete, DrillKind::PodEvict] {
        let mut made = made(kind);
        made.faults.clear();
        assert_eq!(made.missing(), "pod/a is still there");
        made.see(5, running(pod("a", "n1", "Terminating"), 0));
        assert_eq!(made.missing(), "1 of 2 pods are Ready");
        made.see(90, running(pod("c", "n2", "Ready"), 0));
        // The old one may take its time to end.
        assert_eq!(made.judge(90), Recovery::At(at(90)));
    }
}

#[test]
fn a_hung_container_recovers_by_its_liveness_probe_or_by_the_undoing() {
    let mut restarted = made(DrillKind::ContainerHang);
    assert_eq!(restarted.missing(), "pod/a was not started anew");
    restarted.see(3000, running(pod("a", "n1", "Running"), 1));
    restarted.see(3100, running(pod("a", "n1", "Ready"), 1));
    assert_eq!(restarted.judge(3100), Recovery::At(at(3100)));

    let mut undone = made(DrillKind::ContainerHang);
    undone.see(2000, running(pod("a", "n1", "Running"), 0));
    undone.undo(10_000);
    assert!(undone.missing().contains("pod/a is not Ready"));
    undone.see(10_500, running(pod("a", "n1", "Ready"), 0));
    assert_eq!(undone.judge(10_500), Recovery::At(at(10_500)));
}

#[test]
fn a_drained_node_is_left_by_the_target() {
    let mut made = made(DrillKind::NodeDrain);
    made.faults.clear();
    assert_eq!(made.missing(), "pod/a is still on node/n1");
    made.see(10, running(pod("c", "n2", "Ready"), 0));
    made.see(20, running(pod("a", "n1", "Terminating"), 0));
    assert_eq!(made.judge(20), Recovery::At(at(20)));
}

#[test]
fn a_crashed_node_has_to_be_noticed() {
    let mut made = made(DrillKind::NodeCrash);
    assert_eq!(made.missing(), "nobody noticed that node/n1 is gone");
    made.course.see_node(at(1000), &node("n1", "Unknown"));
    made.see(1001, running(pod("a", "n1", "Running"), 0));
    assert_eq!(made.missing(), "1 of 2 pods are Ready");
    made.see(1500, running(pod("c", "n2", "Ready"), 0));
    assert_eq!(made.judge(1500), Recovery::At(at(1500)));
    let hit = made.plan.victims.clone();
    let healed = |made: &Made| {
        healed(&Situation {
            kind: made.kind,
            plan: &made.plan,
            hit: &hit,
            injected: at(0),
            course: &made.course,
            faults: &made.faults,
            probe: None,
            now: at(9000),
        })
    };
    assert!(healed(&made).is_err());
    made.undo(8000);
    assert!(healed(&made).is_err());
    made.course.see_node(at(8500), &node("n1", "True"));
    assert_eq!(healed(&made), Ok(at(8500)));
}

#[test]
fn what_a_crashed_node_brings_back_itself_is_no_recovery() {
    let why = |made: &Made, whole| match made.judge(100_000) {
        Recovery::ByUndo { at: since, why } => {
            assert_eq!(since, at(whole));
            why
        }
        other => panic!("{other:?}"),
    };
    let mut unnoticed = made(DrillKind::NodeCrash);
    unnoticed.undo(500);
    assert_eq!(
        why(&unnoticed, 500),
        "nobody had noticed that node/n1 was gone"
    );
    let mut late = made(DrillKind::NodeCrash);
    late.undo(500);
    late.course.see_node(at(600), &node("n1", "Unknown"));
    late.course.see_node(at(800), &node("n1", "True"));
    assert_eq!(why(&late, 600), "nobody had noticed that node/n1 was gone");

    let mut waiting = made(DrillKind::NodeCrash);
    waiting.course.see_node(at(1000), &node("n1", "Unknown"));
    waiting.see(1001, running(pod("a", "n1", "Running"), 0));
    waiting.undo(5000);
    assert_eq!(waiting.missing(), "1 of 2 pods are Ready");
    waiting.see(5900, running(pod("a", "n1", "Ready"), 1));
    assert_eq!(why(&waiting, 5900), "the target was not whole");

    let mut moved = made(DrillKind::NodeCrash);
    moved.course.see_node(at(1000), &node("n1", "Unknown"));
    moved.see(1001, running(pod("a", "n1", "Running"), 0));
    moved.see(4900, running(pod("c", "n2", "Ready"), 0));
    moved.undo(5000);
    assert_eq!(moved.judge(100_000), Recovery::At(at(4900)));
}

#[test]
fn an_agent_that_crashed_was_back_when_its_time_was_over() {
    let mut task = DrillTask::clone(&task(TaskPhase::Ended, Some(5300)));
    assert_eq!(first_undone(&[Arc::new(task.clone())]), Some(at(5300)));
    task.spec.node_name = Some("n1".into());
    task.spec.until = MicroTime(at(5000));
    assert_eq!(first_undone(&[Arc::new(task)]), Some(at(5000)));
    assert_eq!(first_undone(&[self::task(TaskPhase::Active, None)]), None);
}

#[test]
fn what_lasts_is_over_only_when_it_is_undone() {
    use DrillKind as Kind;
    let lasting = [
        Kind::PodPartition,
        Kind::DnsOutage,
        Kind::RegistryOutage,
        Kind::DiskFull,
        Kind::CpuStress,
        Kind::MemoryPressure,
        Kind::PacketLoss,
        Kind::Latency,
        Kind::NodePartition,
        Kind::AgentRestart,
        Kind::ControlplaneRestart,
        Kind::ControlplaneKill,
    ];
    for kind in lasting {
        let mut made = made(kind);
        if kind.hits_control_plane() {
            made.plan.victims.clear();
        }
        assert_eq!(made.missing(), "the fault is still there", "{kind}");
        made.undo(10_000);
        assert_eq!(made.judge(10_001), Recovery::At(at(10_000)), "{kind}");
    }
    let mut cut = made(Kind::NodePartition);
    cut.course.see_node(at(9000), &node("n1", "Unknown"));
    cut.undo(10_000);
    assert!(cut.missing().starts_with("node/n1 is not Ready"));
    cut.course.see_node(at(10_400), &node("n1", "True"));
    assert_eq!(cut.judge(10_400), Recovery::At(at(10_400)));
}

#[test]
fn no_probe_may_fail_for_a_steady_second() {
    let mut made = made(DrillKind::ContainerKill);
    made.see(80, running(pod("a", "n1", "Ready"), 1));
    let mut status = DrillTaskStatus {
        healthy: Some(false),
        first_failed_at: Some(MicroTime(at(10))),
        last_failed_at: Some(MicroTime(at(150))),
        ..DrillTaskStatus::default()
    };
    made.probe = Some(status.clone());
    assert_eq!(made.missing(), "the probes fail");
    status.healthy = Some(true);
    status.healthy_since = Some(MicroTime(at(250)));
    made.probe = Some(status);
    // A second, and the time that an answer may take.
    assert_eq!(made.judge(300), Recovery::Settling(at(2250)));
    // The agent has been silent since: it may not have told of a failure yet.
    assert_eq!(made.judge(2300), Recovery::Settling(at(2250)));
    made.seen = 2260;
    assert_eq!(made.judge(2300), Recovery::At(at(250)));
}

#[test]
fn every_victim_counts_but_those_that_were_refused() {
    let mut made = made(DrillKind::PodEvict);
    made.faults.clear();
    let mut second = made.plan.victims[0].clone();
    if let Some(pod) = &mut second.pod {
        pod.name = "b".into();
        pod.uid = "uid-b".into();
    }
    made.plan.victims.push(second);
    made.see(5, running(pod("a", "n1", "Terminating"), 0));
    made.see(50, running(pod("c", "n1", "Ready"), 0));
    assert_eq!(made.missing(), "pod/b is still there");
    made.plan.victims.pop();
    assert_eq!(made.judge(50), Recovery::At(at(50)));
}
