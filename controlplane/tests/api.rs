//! The API through a client in the same process, over a real store.

// Helpers of tests are tests, which clippy can't see.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchParams};
use kube::core::WatchEvent;
use skiff_controlplane::{Config, ControlPlane, Running};

async fn start(dir: &tempfile::TempDir) -> Running {
    let config = Config {
        controllers: false,
        ..Config::new(dir.path(), None)
    };
    ControlPlane::start(config).await.unwrap()
}

fn config_map(name: &str, value: &str) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_string());
    map.metadata.labels = Some(BTreeMap::from([("app".to_string(), value.to_string())]));
    map.data = Some(BTreeMap::from([("key".to_string(), value.to_string())]));
    map
}

fn reason<T: std::fmt::Debug>(result: Result<T, kube::Error>) -> (u16, String, String) {
    match result.unwrap_err() {
        kube::Error::Api(status) => (status.code, status.reason, status.message),
        other => panic!("not a status: {other}"),
    }
}

#[tokio::test]
async fn objects_are_created_read_changed_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir).await;
    let maps: Api<ConfigMap> = Api::namespaced(running.client.clone(), "default");

    let created = maps
        .create(&PostParams::default(), &config_map("a", "1"))
        .await
        .unwrap();
    assert!(created.metadata.uid.is_some() && created.metadata.creation_timestamp.is_some());
    let again = maps
        .create(&PostParams::default(), &config_map("a", "1"))
        .await;
    assert_eq!(
        reason(again),
        (
            409,
            "AlreadyExists".into(),
            r#"configmaps "a" already exists"#.into()
        )
    );

    let mut changed = created.clone();
    changed.data = Some(BTreeMap::from([("key".to_string(), "2".to_string())]));
    let updated = maps
        .replace("a", &PostParams::default(), &changed)
        .await
        .unwrap();
    assert_ne!(
        updated.metadata.resource_version,
        created.metadata.resource_version
    );
    let stale = maps.replace("a", &PostParams::default(), &changed).await;
    assert_eq!(
        reason(stale),
        (
            409,
            "Conflict".into(),
            r#"Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the latest version and try again"#.into()
        )
    );
    let same = maps
        .replace("a", &PostParams::default(), &updated)
        .await
        .unwrap();
    assert_eq!(
        same.metadata.resource_version,
        updated.metadata.resource_version
    );

    let patch = serde_json::json!({"data": {"more": "3"}});
    let patched = maps
        .patch("a", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    assert_eq!(patched.data.unwrap().len(), 2);

    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(
        reason(maps.get("a").await),
        (404, "NotFound".into(), r#"configmaps "a" not found"#.into())
    );
    running.shutdown().await;
}

#[tokio::test]
async fn what_is_acknowledged_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir).await;
    let maps: Api<ConfigMap> = Api::namespaced(running.client.clone(), "default");
    let created = maps
        .create(&PostParams::default(), &config_map("a", "1"))
        .await
        .unwrap();
    running.shutdown().await;

    let running = start(&dir).await;
    let maps: Api<ConfigMap> = Api::namespaced(running.client.clone(), "default");
    assert_eq!(maps.get("a").await.unwrap(), created);
    running.shutdown().await;
}

#[tokio::test]
async fn names_and_namespaces_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir).await;
    let post = PostParams::default();
    let maps: Api<ConfigMap> = Api::namespaced(running.client.clone(), "nowhere");
    assert_eq!(
        reason(maps.create(&post, &config_map("a", "1")).await),
        (
            404,
            "NotFound".into(),
            r#"namespaces "nowhere" not found"#.into()
        )
    );
    let maps: Api<ConfigMap> = Api::namespaced(running.client.clone(), "default");
    let (code, _, message) = reason(maps.create(&post, &config_map("A_b", "1")).await);
    assert_eq!(code, 422);
    assert!(
        message.starts_with(r#"ConfigMap "A_b" is invalid: metadata.name: Invalid value: "A_b": a lowercase RFC 1123 subdomain"#),
        "{message}"
    );
    let mut generated = config_map("", "1");
    generated.metadata.name = None;
    generated.metadata.generate_name = Some("map-".to_string());
    let created = maps.create(&post, &generated).await.unwrap();
    assert_eq!(created.metadata.name.unwrap().len(), "map-".len() + 5);
    running.shutdown().await;
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_goes() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir).await;
    let maps: Api<ConfigMap> = Api::namespaced(running.client.clone(), "default");
    let mut held = config_map("held", "1");
    held.metadata.finalizers = Some(vec!["example.com/hold".to_string()]);
    maps.create(&PostParams::default(), &held).await.unwrap();
    maps.delete("held", &DeleteParams::default()).await.unwrap();
    let waiting = maps.get("held").await.unwrap();
    assert!(waiting.metadata.deletion_timestamp.is_some());
    assert_eq!(waiting.metadata.deletion_grace_period_seconds, Some(0));
    let release = serde_json::json!({"metadata": {"finalizers": null}});
    maps.patch("held", &PatchParams::default(), &Patch::Merge(release))
        .await
        .unwrap();
    assert_eq!(reason(maps.get("held").await).0, 404);

    maps.create(&PostParams::default(), &config_map("owner", "1"))
        .await
        .unwrap();
    maps.delete("owner", &DeleteParams::foreground())
        .await
        .unwrap();
    let owner = maps.get("owner").await.unwrap();
    assert_eq!(
        owner.metadata.finalizers,
        Some(vec!["foregroundDeletion".to_string()])
    );
    running.shutdown().await;
}

#[tokio::test]
async fn a_namespace_terminates_before_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir).await;
    let namespaces: Api<Namespace> = Api::all(running.client.clone());
    let mut team = Namespace::default();
    team.metadata.name = Some("team".to_string());
    team.spec = Some(k8s_openapi::api::core::v1::NamespaceSpec {
        finalizers: Some(vec!["kubernetes".to_string()]),
    });
    namespaces
        .create(&PostParams::default(), &team)
        .await
        .unwrap();
    namespaces
        .delete("team", &DeleteParams::default())
        .await
        .unwrap();
    let waiting = namespaces.get("team").await.unwrap();
    assert_eq!(
        waiting.status.unwrap().phase.as_deref(),
        Some("Terminating")
    );
    let maps: Api<ConfigMap> = Api::namespaced(running.client.clone(), "team");
    let refused = maps
        .create(&PostParams::default(), &config_map("late", "1"))
        .await;
    assert_eq!(
        reason(refused),
        (
            403,
            "Forbidden".into(),
            "configmaps is forbidden: unable to create new content in namespace team because it is being terminated".into()
        )
    );
    running.shutdown().await;
}

#[tokio::test]
async fn a_watch_sees_its_selection_change() {
    let dir = tempfile::tempdir().unwrap();
    let running = start(&dir).await;
    let maps: Api<ConfigMap> = Api::namespaced(running.client.clone(), "default");
    let listed = maps.list(&ListParams::default()).await.unwrap();
    let version = listed.metadata.resource_version.unwrap();
    let watch = maps
        .watch(&WatchParams::default().labels("app=web"), &version)
        .await
        .unwrap();
    pin_mut!(watch);
    let post = PostParams::default();
    maps.create(&post, &config_map("other", "db"))
        .await
        .unwrap();
    maps.create(&post, &config_map("a", "web")).await.unwrap();
    let patch = serde_json::json!({"metadata": {"labels": {"app": "db"}}});
    maps.patch("a", &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    let Some(Ok(WatchEvent::Added(added))) = watch.next().await else {
        panic!("not added");
    };
    assert_eq!(added.metadata.name.as_deref(), Some("a"));
    let Some(Ok(WatchEvent::Deleted(left))) = watch.next().await else {
        panic!("not deleted");
    };
    assert_eq!(left.metadata.labels.unwrap()["app"], "web");
    running.shutdown().await;
}
