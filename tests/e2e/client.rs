//! The Kubernetes API as a client library sees it.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{
    Api, AttachParams, DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams,
    PropagationPolicy, WatchEvent, WatchParams,
};
use kube::runtime::{WatchStreamExt, conditions, wait::await_condition, watcher};
use serde_json::json;
use tokio::io::AsyncReadExt;

use crate::cluster::{Cluster, SERVE, shell_pod};

#[test]
fn objects_are_created_watched_patched_and_deleted() {
    let mut cluster = Cluster::start_empty();
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    cluster.block_on(async {
        let begin = maps.list(&ListParams::default()).await.expect("a list");
        let version = begin.metadata.resource_version.expect("a version");
        let mut events = maps.watch(&WatchParams::default(), &version).await.expect("a watch").boxed();

        let map: ConfigMap = from(json!({"metadata": {"name": "settings"}, "data": {"a": "1"}}));
        let created = maps.create(&PostParams::default(), &map).await.expect("created");
        assert!(created.metadata.uid.is_some() && created.metadata.creation_timestamp.is_some());
        let again = maps.create(&PostParams::default(), &map).await.expect_err("it exists");
        let kube::Error::Api(status) = again else { panic!("{again}") };
        assert_eq!((status.code, status.reason.as_str()), (409, "AlreadyExists"));
        assert_eq!(status.message, "configmaps \"settings\" already exists");

        let patch = Patch::Merge(json!({"data": {"a": null, "b": "2"}}));
        let patched = maps.patch("settings", &PatchParams::default(), &patch).await.expect("patched");
        assert_eq!(serde_json::to_value(&patched.data).expect("JSON"), json!({"b": "2"}));
        let stale = maps.replace("settings", &PostParams::default(), &created).await.expect_err("a stale version");
        let kube::Error::Api(status) = stale else { panic!("{stale}") };
        assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));

        let apply = Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"c": "3"}}));
        let applied = maps.patch("settings", &PatchParams::apply("tester"), &apply).await.expect("applied");
        assert_eq!(serde_json::to_value(&applied.data).expect("JSON"), json!({"b": "2", "c": "3"}));
        assert!(applied.metadata.managed_fields.expect("managed fields").iter().any(|m| m.manager.as_deref() == Some("tester")));
        let conflicting = Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"c": "4"}}));
        let conflict = maps.patch("settings", &PatchParams::apply("another"), &conflicting).await.expect_err("c is tester's");
        let kube::Error::Api(status) = conflict else { panic!("{conflict}") };
        assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
        maps.patch("settings", &PatchParams::apply("another").force(), &conflicting).await.expect("forced");

        maps.delete("settings", &DeleteParams::default()).await.expect("deleted");
        let missing = maps.get("settings").await.expect_err("it is gone");
        assert!(matches!(missing, kube::Error::Api(status) if status.code == 404 && status.reason == "NotFound"));

        let mut seen = Vec::new();
        while let Some(event) = events.try_next().await.expect("an event") {
            let (kind, map) = match event {
                WatchEvent::Added(map) => ("added", map),
                WatchEvent::Modified(map) => ("modified", map),
                WatchEvent::Deleted(map) => ("deleted", map),
                _ => continue,
            };
            if map.metadata.name.as_deref() == Some("settings") {
                seen.push((kind, map.metadata.resource_version.expect("a version").parse::<u64>().expect("a number")));
            }
            if kind == "deleted" {
                break;
            }
        }
        assert_eq!(seen.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), ["added", "modified", "modified", "modified", "deleted"]);
        assert!(seen.is_sorted_by(|a, b| a.1 < b.1), "versions grow: {seen:?}");
    });
}

#[test]
fn lists_come_in_pages() {
    let mut cluster = Cluster::start_empty();
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    cluster.block_on(async {
        for n in 0..25 {
            let map: ConfigMap = from(
                json!({"metadata": {"name": format!("page-{n:02}"), "labels": {"paged": "yes"}}}),
            );
            maps.create(&PostParams::default(), &map)
                .await
                .expect("created");
        }
        let mut names = Vec::new();
        let mut params = ListParams::default().labels("paged=yes").limit(10);
        loop {
            let page = maps.list(&params).await.expect("a page");
            assert!(page.items.len() <= 10);
            names.extend(page.items.into_iter().filter_map(|map| map.metadata.name));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
        assert_eq!(
            names,
            (0..25).map(|n| format!("page-{n:02}")).collect::<Vec<_>>()
        );
    });
}

#[test]
fn a_pod_is_run_followed_and_entered() {
    let mut cluster = Cluster::start();
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let script = format!("echo hello from inside; {SERVE}");
    let pod: Pod = serde_yaml_ng::from_str(&shell_pod("box", &script, "", "")).expect("a pod");
    cluster.block_on(async {
        pods.create(&PostParams::default(), &pod)
            .await
            .expect("created");
        await_condition(pods.clone(), "box", conditions::is_pod_running())
            .await
            .expect("running");
        let mut log = pods
            .log_stream(
                "box",
                &LogParams {
                    follow: true,
                    ..Default::default()
                },
            )
            .await
            .expect("a log");
        let mut line = [0; 18];
        futures::AsyncReadExt::read_exact(&mut log, &mut line)
            .await
            .expect("a line");
        assert_eq!(&line, b"hello from inside\n");

        let mut process = pods
            .exec(
                "box",
                ["sh", "-c", "echo out; exit 6"],
                &AttachParams::default(),
            )
            .await
            .expect("exec");
        let mut out = String::new();
        process
            .stdout()
            .expect("stdout")
            .read_to_string(&mut out)
            .await
            .expect("its output");
        assert_eq!(out, "out\n");
        let status = process
            .take_status()
            .expect("a status")
            .await
            .expect("an end");
        assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"));
        let causes = status.details.expect("details").causes.expect("causes");
        assert_eq!(
            (causes[0].reason.as_deref(), causes[0].message.as_deref()),
            (Some("ExitCode"), Some("6"))
        );

        let uid = pods
            .get("box")
            .await
            .expect("the pod")
            .metadata
            .uid
            .expect("a uid");
        pods.delete("box", &DeleteParams::default())
            .await
            .expect("deleted");
        await_condition(pods.clone(), "box", conditions::is_deleted(&uid))
            .await
            .expect("gone");
    });
}

#[test]
fn a_watcher_sees_a_deployment_through() {
    let mut cluster = Cluster::start();
    let deployments: Api<Deployment> = Api::default_namespaced(cluster.client());
    let deployment: Deployment = serde_yaml_ng::from_str(
        &std::fs::read_to_string(crate::images::nginx_demo()).expect("the manifest"),
    )
    .expect("a Deployment");
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    cluster.block_on(async {
        deployments
            .create(&PostParams::default(), &deployment)
            .await
            .expect("created");
        let mut stream = watcher(
            deployments.clone(),
            watcher::Config::default().fields("metadata.name=nginx-demo"),
        )
        .applied_objects()
        .boxed();
        while let Some(seen) = stream.try_next().await.expect("an event") {
            if seen.status.and_then(|status| status.available_replicas) == Some(3) {
                break;
            }
        }
        // Dry runs change nothing.
        let scale = Patch::Merge(json!({"spec": {"replicas": 9}}));
        let dry = PatchParams {
            dry_run: true,
            ..Default::default()
        };
        let answer = deployments
            .patch("nginx-demo", &dry, &scale)
            .await
            .expect("a dry run");
        assert_eq!(answer.spec.replicas, Some(9));
        assert_eq!(
            deployments
                .get_scale("nginx-demo")
                .await
                .expect("a scale")
                .spec
                .and_then(|s| s.replicas),
            Some(3)
        );

        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Foreground),
            ..Default::default()
        };
        deployments
            .delete("nginx-demo", &params)
            .await
            .expect("deleted");
        while let Ok(found) = deployments.get("nginx-demo").await {
            assert!(found.metadata.deletion_timestamp.is_some());
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert!(
            pods.list(&ListParams::default())
                .await
                .expect("a list")
                .items
                .is_empty()
        );
    });
}

#[test]
fn wrong_objects_are_refused_in_kubernetes_words() {
    let cluster = Cluster::start_empty();
    let refusal = |manifest: &str| {
        let file = cluster.scratch().join("wrong.yaml");
        std::fs::write(&file, manifest).expect("a file");
        let output = cluster
            .kubectl_command()
            .args(["create", "-f"])
            .arg(&file)
            .output()
            .expect("kubectl");
        assert_eq!(output.status.code(), Some(1), "{manifest} was accepted");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let named = shell_pod("Not_A_Name", "true", "", "");
    let error = refusal(&named);
    assert!(error.contains("Pod \"Not_A_Name\" is invalid: metadata.name: Invalid value: \"Not_A_Name\": a lowercase RFC 1123 subdomain"), "{error}");
    let error =
        refusal("apiVersion: v1\nkind: Pod\nmetadata: {name: empty}\nspec: {containers: []}\n");
    assert!(
        error.contains("The Pod \"empty\" is invalid: spec.containers: Required value"),
        "{error}"
    );
    let mismatch = std::fs::read_to_string(crate::images::nginx_demo())
        .expect("the manifest")
        .replacen("app: nginx\n  template", "app: other\n  template", 1);
    let error = refusal(&mismatch);
    assert!(
        error.contains("`selector` does not match template `labels`"),
        "{error}"
    );
    let error = refusal(&shell_pod("typo", "true", "restartPolise: Never", ""));
    assert!(
        error.contains("unknown field \"spec.restartPolise\""),
        "{error}"
    );
    let error = refusal("apiVersion: example.com/v1\nkind: Nothing\nmetadata: {name: x}\n");
    assert!(
        error.contains("no matches for kind \"Nothing\" in version \"example.com/v1\""),
        "{error}"
    );
    let error = refusal(&shell_pod("elsewhere", "true", "", "").replacen(
        "metadata:\n",
        "metadata:\n  namespace: nowhere\n",
        1,
    ));
    assert!(
        error.contains("namespaces \"nowhere\" not found"),
        "{error}"
    );
}

fn from<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).expect("an object")
}
