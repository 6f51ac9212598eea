use k8s_openapi::api::core::v1::Pod;
use skiff_dev::{
    Baseline, DrillKind, DrillSpec, PlannedProbe, PodRef, ProbeBucket, ProbeTarget, Scope,
    TaskPhase, Victim,
};

use super::*;
use crate::drills::made_up::{at, node, pod, running};

const NOBODY: fn(&str, &str) -> Option<String> = |_, _| None;

fn plan() -> DrillPlan {
    DrillPlan {
        victims: vec![Victim {
            pod: Some(PodRef {
                namespace: "default".into(),
                name: "a".into(),
                uid: "uid-a".into(),
                ip: String::new(),
            }),
            container: "main".into(),
            node: "n1".into(),
        }],
        scope: Scope {
            controllers: vec!["rs".into()],
            ..Scope::default()
        },
        probe: Some(PlannedProbe {
            node: "n2".into(),
            target: ProbeTarget {
                host: "10.43.0.7".into(),
                port: 80,
                path: "/".into(),
                ..ProbeTarget::default()
            },
            ..PlannedProbe::default()
        }),
        ..DrillPlan::default()
    }
}

fn see(course: &mut Course, millis: i64, seen: &Pod) {
    course.see_pod(at(millis), seen, &NOBODY);
}

/// A drill that deleted `a` at 1000; it was replaced by `c` on another node by 1090, healthy at 1234.5.
fn made() -> (Drill, DrillPlan, Active, DrillTaskStatus) {
    let mut plan = plan();
    let mut course = Course::new(&plan, Vec::new(), Vec::new());
    course.take_in(at(0), |course| {
        see(course, 0, &running(pod("a", "n1", "Ready"), 3));
        see(course, 0, &running(pod("b", "n2", "Ready"), 0));
        course.see_node(at(0), &node("n1", "True"));
        course.see_node(at(0), &node("n3", "True"));
    });
    plan.baseline = Some(course.set_baseline(at(900)));
    see(
        &mut course,
        1002,
        &running(pod("a", "n1", "Terminating"), 3),
    );
    see(&mut course, 1010, &pod("c", "n2", "Pending"));
    see(&mut course, 1090, &running(pod("c", "n2", "Ready"), 0));
    let mut active = Active::made_up(course);
    active.acts.insert(
        "pod/a".into(),
        Act {
            at: at(1000),
            refused: None,
        },
    );
    let micro = |millis| Some(MicroTime(at(millis)));
    let probe = DrillTaskStatus {
        phase: TaskPhase::Ended,
        first_failed_at: micro(1001),
        last_failed_at: micro(1201),
        requests: Some(Requests {
            sent: 20,
            failed: 3,
            buckets: vec![ProbeBucket {
                at: at(950).as_microsecond() as f64 / 1e6,
                sent: 1,
                ..ProbeBucket::default()
            }],
            ..Requests::default()
        }),
        ..DrillTaskStatus::default()
    };
    let drill = Drill {
        spec: DrillSpec {
            drill: DrillKind::PodDelete,
            expect: vec!["recovery<200ms".into(), "failed<=3".into()],
            ..DrillSpec::default()
        },
        status: Some(DrillStatus {
            plan: Some(plan.clone()),
            ..DrillStatus::default()
        }),
        ..Drill::default()
    };
    (drill, plan, active, probe)
}

fn facts<'a>(made: &'a (Drill, DrillPlan, Active, DrillTaskStatus)) -> Facts<'a> {
    Facts {
        drill: &made.0,
        plan: &made.1,
        active: &made.2,
        faults: &[],
        probe: Some(&made.3),
        injected: Some(at(1000)),
        recovered: Some(at(1234)),
        healed: Some(at(1234)),
    }
}

#[test]
fn a_report_tells_the_story_in_the_order_of_time() {
    let made = made();
    let report = facts(&made).report(at(5000));
    let told: Vec<_> = report
        .timeline
        .iter()
        .map(|e| (e.at, e.event.as_str(), e.object.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (0.0, "injected", "pod/a"),
            (0.001, "firstFailedProbe", ""),
            (0.002, "terminating", "pod/a"),
            (0.002, "detected", "pod/a"),
            (0.01, "created", "pod/c"),
            (0.01, "scheduled", "pod/c"),
            (0.09, "started", "pod/c"),
            (0.09, "ready", "pod/c"),
            (0.201, "lastFailedProbe", ""),
            (0.234, "recovered", ""),
            (0.234, "healed", ""),
        ]
    );
    assert_eq!(
        (report.time_to_detect, report.time_to_recover),
        (Some(0.002), Some(0.234))
    );
    assert_eq!((report.restarts, report.pods_moved), (Some(0), Some(1)));
    let requests = report.requests.unwrap();
    assert_eq!(
        (requests.target.as_str(), requests.from.as_str()),
        ("http://10.43.0.7:80/", "n2")
    );
    assert_eq!(requests.buckets[0].at, -0.05);
    // The node that had nothing to do with it is not shown.
    assert!(
        report
            .spans
            .iter()
            .any(|s| s.object == "node/n1" && s.from == -1.0)
    );
    assert!(!report.spans.iter().any(|s| s.object == "node/n3"));
    assert_eq!(report.plan, None);
}

#[test]
fn a_missed_expectation_is_a_failure_and_says_so() {
    let made = made();
    let report = facts(&made).report(at(5000));
    assert_eq!(report.result, Some(DrillResult::Failed));
    let met: Vec<bool> = report.expectations.iter().map(|e| e.met).collect();
    assert_eq!(met, [false, true]);
    assert_eq!(
        report.message.as_deref(),
        Some("not as expected: recovery<200ms: 234ms")
    );
}

#[test]
fn who_never_recovered_failed() {
    let mut made = made();
    made.0.spec.expect.clear();
    let facts = Facts {
        recovered: None,
        healed: None,
        ..facts(&made)
    };
    let report = facts.report(at(5000));
    assert_eq!(
        (report.result, report.recovered),
        (Some(DrillResult::Failed), Some(false))
    );
    assert_eq!((report.time_to_recover, report.healed_at), (None, None));
}

#[test]
fn what_a_status_keeps_is_taken_up_again() {
    let made = made();
    let status = facts(&made).status();
    let (moments, stays) = remembered(&status);
    let course = &made.2.course;
    assert_eq!(moments, course.moments());
    assert_eq!(stays, course.stays().cloned().collect::<Vec<_>>());
    assert_eq!(acts(&status), made.2.acts);
    // Nothing is broken yet: nothing to remember.
    assert_eq!(remembered(&DrillStatus::default()), Default::default());
}

#[test]
fn restarts_and_moves_are_counted_against_the_baseline() {
    let plan = DrillPlan {
        baseline: Some(Baseline {
            ready: 1,
            pods: vec![skiff_dev::BaselinePod {
                uid: "uid-a".into(),
                node: "n1".into(),
                restarts: 2,
            }],
        }),
        ..plan()
    };
    let mut course = Course::new(&plan, Vec::new(), Vec::new());
    see(&mut course, 0, &running(pod("a", "n1", "Ready"), 5));
    see(&mut course, 1, &running(pod("new", "n1", "Ready"), 1));
    assert_eq!(restarts(&course, &plan), 4);
    // A pod more is no pod that moved.
    assert_eq!(moved(&course, &plan), 0);
    see(&mut course, 2, &running(pod("a", "n1", "Terminating"), 5));
    assert_eq!(moved(&course, &plan), 0);
    see(&mut course, 3, &running(pod("new", "n1", "Terminating"), 1));
    see(&mut course, 3, &running(pod("c", "n2", "Ready"), 0));
    assert_eq!(moved(&course, &plan), 1);
}

#[test]
fn a_drill_that_churns_stays_a_small_object() {
    let mut made = made();
    for step in 0..20_000_i64 {
        let name = format!("web-7d4b9c6f5d-{}", step % 40);
        let state = if step % 2 == 0 { "Running" } else { "Ready" };
        see(
            &mut made.2.course,
            1100 + step,
            &running(pod(&name, "node-1", state), 0),
        );
    }
    let requests = made.3.requests.as_mut().unwrap();
    let bucket = requests.buckets[0].clone();
    requests.buckets = vec![bucket; 600];
    let report = facts(&made).report(at(50_000));
    let size = serde_json::to_vec(&report).unwrap().len();
    assert!(size < 200_000, "{size} bytes");
}
