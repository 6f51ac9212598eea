//! Drill tasks as a node sees them: its own, and of those the status and the finalizers.

// Helpers of tests are tests, which clippy can't see.
#![allow(clippy::unwrap_used)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use skiff_controlplane::{Config, ControlPlane};
use skiff_dev::{Action, Drill, DrillTask, DrillTaskSpec, TaskPhase};

fn task(name: &str, node: Option<&str>) -> DrillTask {
    let mut task = DrillTask {
        spec: DrillTaskSpec {
            drill: "d".into(),
            node_name: node.map(str::to_owned),
            action: Action::RestartAgent {},
            until: MicroTime(jiff::Timestamp::MAX),
            stop: false,
        },
        ..DrillTask::default()
    };
    task.metadata.name = Some(name.to_owned());
    task.metadata.finalizers = Some(vec![DrillTask::UNDO.to_owned(), "other/one".to_owned()]);
    task
}

fn code<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> (u16, String) {
    match result.unwrap_err() {
        kube::Error::Api(status) => (status.code, status.message),
        other => panic!("not a status: {other}"),
    }
}

async fn patch(tasks: &Api<DrillTask>, name: &str, patch: Value) -> Result<DrillTask, kube::Error> {
    let patch = Patch::Merge(patch);
    tasks.patch(name, &PatchParams::default(), &patch).await
}

async fn report(
    tasks: &Api<DrillTask>,
    name: &str,
    status: Value,
) -> Result<DrillTask, kube::Error> {
    let patch = Patch::Merge(json!({ "status": status }));
    tasks
        .patch_status(name, &PatchParams::default(), &patch)
        .await
}

#[tokio::test]
async fn a_node_reports_and_releases_its_own_tasks_alone() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        controllers: false,
        ..Config::new(dir.path(), None)
    };
    let running = ControlPlane::start(config).await.unwrap();
    let all: Api<DrillTask> = Api::all(running.client.clone());
    for (name, node) in [("mine", Some("a")), ("other", Some("b")), ("nobodys", None)] {
        all.create(&PostParams::default(), &task(name, node))
            .await
            .unwrap();
    }

    let own: Api<DrillTask> = Api::all(running.node_client("a"));
    let listed = own
        .list(&ListParams::default().fields("spec.nodeName=a"))
        .await
        .unwrap();
    let names: Vec<&str> = listed
        .iter()
        .filter_map(|t| t.metadata.name.as_deref())
        .collect();
    assert_eq!(names, ["mine"]);
    for fields in ["", "spec.nodeName=b", "spec.nodeName=", "spec.drill=d"] {
        let refused = own.list(&ListParams::default().fields(fields)).await;
        assert_eq!(code(refused).0, 403, "{fields}");
    }
    assert_eq!(own.get("mine").await.unwrap().spec.drill, "d");
    for others in ["other", "nobodys"] {
        assert_eq!(code(own.get(others).await).0, 403);
        assert_eq!(
            code(report(&own, others, json!({"phase": "Active"})).await).0,
            403
        );
        let release = json!({"metadata": {"finalizers": []}});
        assert_eq!(code(patch(&own, others, release).await).0, 403);
    }
    // Its agent is to know that it is gone.
    assert_eq!(code(own.get("gone").await).0, 404);

    let active = report(&own, "mine", json!({"phase": "Active", "healthy": true})).await;
    assert_eq!(active.unwrap().status.unwrap().phase, TaskPhase::Active);
    let (status, message) = code(report(&own, "mine", json!({"phase": "Bored"})).await);
    assert_eq!(status, 422, "{message}");
    assert!(message.contains("unknown variant `Bored`"), "{message}");

    for change in [
        json!({"spec": {"stop": true}}),
        json!({"metadata": {"labels": {"a": "b"}}}),
        json!({"metadata": {"finalizers": [DrillTask::UNDO, "other/one", "third/one"]}}),
    ] {
        let (status, message) = code(patch(&own, "mine", change).await);
        assert_eq!(status, 403);
        assert!(
            message.ends_with("node \"a\" can only remove finalizers of its drill tasks"),
            "{message}"
        );
    }
    assert_eq!(
        code(own.delete("mine", &DeleteParams::default()).await).0,
        403
    );
    let made = own
        .create(&PostParams::default(), &task("new", Some("a")))
        .await;
    assert_eq!(code(made).0, 403);

    all.delete("mine", &DeleteParams::default()).await.unwrap();
    let first = json!({"metadata": {"finalizers": ["other/one"]}});
    assert!(patch(&own, "mine", first).await.is_ok());
    assert!(
        patch(&own, "mine", json!({"metadata": {"finalizers": null}}))
            .await
            .is_ok()
    );
    assert_eq!(code(all.get("mine").await).0, 404);

    let drills: Api<Drill> = Api::all(running.node_client("a"));
    assert_eq!(code(drills.list(&ListParams::default()).await).0, 403);
    running.shutdown().await;
}
