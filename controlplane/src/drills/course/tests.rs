use k8s_openapi::api::core::v1::Event;
use serde_json::json;
use skiff_dev::{PlannedProbe, PodRef, Scope, Victim};

use super::*;
use crate::drills::made_up::{at, node, pod, running};

fn alone(_: &str, _: &str) -> Option<String> {
    None
}

fn plan(service: &str) -> DrillPlan {
    let victim = |name: &str| Victim {
        pod: Some(PodRef {
            namespace: "default".into(),
            name: name.into(),
            uid: format!("uid-{name}"),
            ip: String::new(),
        }),
        container: "main".into(),
        node: "n1".into(),
    };
    DrillPlan {
        victims: vec![victim("a")],
        scope: Scope {
            controllers: vec!["rs".into()],
            ..Scope::default()
        },
        probe: (!service.is_empty()).then(|| PlannedProbe {
            service: service.into(),
            selector: [("app".to_owned(), "web".to_owned())].into(),
            ..PlannedProbe::default()
        }),
        ..DrillPlan::default()
    }
}

/// A record of the pods `a` on n1 and `b` on n2, both Ready, with their baseline.
fn begun(service: &str) -> Course {
    let mut course = Course::new(&plan(service), Vec::new(), Vec::new());
    course.take_in(at(0), |course| {
        course.see_pod(at(0), &running(pod("a", "n1", "Ready"), 0), &alone);
        course.see_pod(at(0), &running(pod("b", "n2", "Ready"), 0), &alone);
        course.see_node(at(0), &node("n1", "True"));
        course.see_node(at(0), &node("n2", "True"));
        course.see_service(at(0), ["uid-a".to_owned(), "uid-b".to_owned()].into());
    });
    assert_eq!(course.set_baseline(at(100)).ready, 2);
    course
}

fn told(course: &Course) -> Vec<String> {
    let moments = course.moments().iter();
    moments
        .map(|m| {
            format!("{} {} {}", m.event, m.object, m.detail)
                .trim_end()
                .to_owned()
        })
        .collect()
}

#[test]
fn what_was_there_is_nothing_that_happened() {
    let course = begun("default/web");
    assert_eq!(told(&course), [""; 0]);
    assert_eq!(course.whole_since(), Some(at(100)));
    let states: Vec<_> = course
        .stays()
        .map(|s| (s.object.as_str(), s.state.as_str()))
        .collect();
    assert!(states.contains(&("pod/a", "Ready")) && states.contains(&("node/n1", "Ready")));
}

#[test]
fn a_pod_is_followed_from_its_end_to_its_replacement() {
    let mut course = begun("default/web");
    assert!(course.see_pod(at(200), &running(pod("a", "n1", "Terminating"), 0), &alone));
    assert_eq!((course.whole_since(), course.ready()), (None, 1));
    assert!(course.see_service(at(205), ["uid-b".to_owned()].into()));
    course.see_pod(at(210), &pod("c", "", "Pending"), &alone);
    course.see_pod(at(220), &pod("c", "n2", "Pending"), &alone);
    course.see_pod(at(300), &running(pod("c", "n2", "Running"), 0), &alone);
    course.see_pod(at(400), &running(pod("c", "n2", "Ready"), 0), &alone);
    // Ready is not enough: the service has to lead there.
    assert_eq!(course.whole_since(), None);
    course.see_service(at(410), ["uid-b".to_owned(), "uid-c".to_owned()].into());
    assert_eq!(course.whole_since(), Some(at(410)));
    course.lose_pod(at(1200), "uid-a");
    assert_eq!(
        told(&course),
        [
            "terminating pod/a",
            "outOfService pod/a",
            "created pod/c",
            "scheduled pod/c node/n2",
            "started pod/c main",
            "ready pod/c",
            "inService pod/c",
            "deleted pod/a",
        ]
    );
    let of = |object: &str| {
        let stays = course.stays().filter(|s| s.object == object);
        stays
            .map(|s| (s.state.as_str(), s.from, s.to))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        of("pod/a"),
        [
            ("Ready", at(0), Some(at(200))),
            ("Terminating", at(200), Some(at(1200)))
        ]
    );
    assert_eq!(
        of("pod/c"),
        [
            ("Pending", at(210), Some(at(220))),
            ("ContainerCreating", at(220), Some(at(300))),
            ("Running", at(300), Some(at(400))),
            ("Ready", at(400), None)
        ]
    );
}

#[test]
fn an_end_and_a_new_start_that_come_as_one_change_are_both_told() {
    let mut course = begun("");
    assert!(course.see_pod(at(200), &running(pod("a", "n1", "Ready"), 1), &alone));
    assert_eq!(
        told(&course),
        [
            "terminated pod/a main: OOMKilled, exit code 137",
            "started pod/a main"
        ]
    );
    let track = course.pod("uid-a").unwrap();
    assert_eq!(
        (track.restarts, track.restarted_at("main")),
        (1, Some(at(200)))
    );
    // The same again is no news.
    assert!(!course.see_pod(at(300), &running(pod("a", "n1", "Ready"), 1), &alone));
}

#[test]
fn strangers_have_no_place() {
    let mut course = begun("");
    let mut stranger = pod("x", "n1", "Ready");
    stranger.metadata.owner_references = None;
    assert!(!course.see_pod(at(200), &stranger, &alone));
    assert!(!course.lose_pod(at(200), "uid-x"));
    // Owned through a replica set that the scope does not name itself.
    let mut theirs = pod("y", "n1", "Ready");
    theirs.metadata.owner_references.as_mut().unwrap()[0].uid = "rs-2".into();
    assert!(!course.see_pod(at(200), &theirs, &alone));
    assert!(course.see_pod(at(200), &theirs, &|_, _| Some("rs".into())));
}

#[test]
fn nodes_are_lost_found_cordoned_and_under_pressure() {
    let mut course = begun("");
    assert!(!course.see_node(at(150), &node("n1", "True")));
    assert!(course.see_node(at(200), &node("n1", "Unknown")));
    let track = course.node("n1").unwrap();
    assert_eq!((track.lost_at, track.whole_since()), (Some(at(200)), None));
    let mut full = node("n1", "True");
    let conditions = full.status.as_mut().unwrap().conditions.as_mut().unwrap();
    conditions
        .push(serde_json::from_value(json!({"type": "DiskPressure", "status": "True"})).unwrap());
    course.see_node(at(300), &full);
    assert_eq!(course.node("n1").unwrap().whole_since(), None);
    let mut cordoned = node("n1", "True");
    cordoned.spec = Some(serde_json::from_value(json!({"unschedulable": true})).unwrap());
    course.see_node(at(400), &cordoned);
    assert_eq!(course.node("n1").unwrap().whole_since(), Some(at(400)));
    assert_eq!(
        told(&course),
        [
            "notReady node/n1",
            "ready node/n1",
            "pressure node/n1",
            "cordoned node/n1",
            "relieved node/n1"
        ]
    );
}

#[test]
fn another_process_goes_on_with_the_record() {
    let mut before = begun("");
    before.see_pod(at(200), &running(pod("a", "n1", "Ready"), 1), &alone);
    let mut plan = plan("");
    plan.baseline = Some(Baseline {
        ready: 2,
        pods: Vec::new(),
    });
    plan.whole_since = before
        .whole_since()
        .map(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime);
    let stays: Vec<Stay> = before.stays().cloned().collect();
    let mut course = Course::new(&plan, before.moments().to_vec(), stays);
    course.take_in(at(900), |course| {
        course.see_pod(at(900), &running(pod("a", "n1", "Ready"), 1), &alone);
        course.see_pod(at(900), &running(pod("b", "n2", "Ready"), 0), &alone);
        course.see_node(at(900), &node("n1", "True"));
    });
    assert_eq!(course.whole_since(), Some(at(100)));
    assert_eq!(told(&course), told(&before));
    let open = |object: &str| course.stays().any(|s| s.object == object && s.to.is_none());
    assert!(open("pod/a") && open("pod/b") && open("node/n1"));
    // The node that is gone is not there any more.
    assert!(!open("node/n2"));
    assert_eq!(course.stays().filter(|s| s.object == "pod/a").count(), 1);

    // With a pod less, it is whole no longer.
    let mut course = Course::new(&plan, Vec::new(), Vec::new());
    course.take_in(at(900), |course| {
        course.see_pod(at(900), &running(pod("a", "n1", "Ready"), 1), &alone);
    });
    assert_eq!(course.whole_since(), None);
}

#[test]
fn a_drill_that_churns_is_not_kept_whole() {
    let mut course = begun("");
    for step in 0..2000 {
        let state = if step % 2 == 0 { "Running" } else { "Ready" };
        course.see_pod(at(200 + step), &running(pod("a", "n1", state), 0), &alone);
    }
    assert_eq!(course.moments().len(), MOMENTS);
    assert!(course.stays().count() <= SPANS);
    assert_eq!(course.ready(), 2);
}

fn event(uid: &str, about: &str, count: i32) -> Event {
    serde_json::from_value(json!({
        "metadata": {"name": uid, "namespace": "default", "uid": uid},
        "involvedObject": {"kind": "Pod", "name": about, "uid": format!("uid-{about}")},
        "reason": "Unhealthy", "message": "x".repeat(500), "count": count,
    }))
    .unwrap()
}

#[test]
fn events_are_counted_from_the_drills_begin() {
    let mut course = begun("");
    course.see_event(at(100), &event("e1", "a", 7), true);
    course.see_event(at(200), &event("e1", "a", 9), false);
    // About a pod that is not known yet.
    course.see_event(at(210), &event("e2", "c", 1), false);
    course.see_event(at(220), &event("e3", "stranger", 1), false);
    course.see_pod(at(230), &pod("c", "n2", "Pending"), &alone);
    let counted: Vec<_> = course
        .events()
        .into_iter()
        .map(|e| (e.object, e.count))
        .collect();
    assert_eq!(counted, [("pod/a".to_owned(), 2), ("pod/c".to_owned(), 1)]);
    assert!(course.events()[0].message.chars().count() <= 201);
    assert_eq!(course.event_moments().len(), 2);
}

#[test]
fn pods_that_the_service_does_not_select_only_have_to_be_ready() {
    let mut course = Course::new(&plan("default/web"), Vec::new(), Vec::new());
    let mut other = running(pod("other", "n1", "Ready"), 0);
    other.metadata.labels = Some([("app".to_owned(), "other".to_owned())].into());
    let mut elsewhere = running(pod("elsewhere", "n1", "Ready"), 0);
    elsewhere.metadata.namespace = Some("shop".into());
    course.take_in(at(0), |course| {
        for seen in [
            &running(pod("a", "n1", "Ready"), 0),
            &running(pod("b", "n2", "Ready"), 0),
            &other,
            &elsewhere,
        ] {
            course.see_pod(at(0), seen, &alone);
        }
        course.see_service(at(0), ["uid-a".to_owned()].into());
    });
    // All but `b`, to which the Service should lead and does not.
    assert_eq!(course.set_baseline(at(100)).ready, 3);
    let mut ended = other.clone();
    ended.status = running(pod("other", "n1", "Running"), 0).status;
    course.see_pod(at(200), &ended, &alone);
    assert_eq!((course.ready(), course.whole_since()), (2, None));
    course.see_pod(at(300), &other, &alone);
    assert_eq!(course.whole_since(), Some(at(300)));
}
