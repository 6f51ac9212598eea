//! Deployments from their first pod to their last.

use std::collections::HashMap;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::cluster::{Cluster, events, wait_for, watch_until};

async fn sets(cluster: &Cluster) -> Vec<ReplicaSet> {
    let api: Api<ReplicaSet> = Api::namespaced(cluster.client.clone(), "default");
    let mut sets = api.list(&ListParams::default()).await.unwrap().items;
    sets.sort_by_key(|set| set.annotations()["deployment.kubernetes.io/revision"].clone());
    sets
}

#[tokio::test]
async fn a_deployment_becomes_pods_on_nodes() {
    let cluster = Cluster::start(3).await;
    cluster.apply_deployment(json!({})).await;
    let deployment = cluster.rolled_out().await;
    assert_eq!(
        deployment.annotations()["deployment.kubernetes.io/revision"],
        "1"
    );

    let set = &sets(&cluster).await[0];
    let hash = &set.labels()["pod-template-hash"];
    assert_eq!(set.name_any(), format!("web-{hash}"));
    assert_eq!(
        set.annotations()["deployment.kubernetes.io/desired-replicas"],
        "3"
    );
    assert_eq!(
        set.annotations()["deployment.kubernetes.io/max-replicas"],
        "4"
    );

    let pods = cluster
        .pods()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    let nodes: std::collections::HashSet<_> = pods
        .iter()
        .map(|pod| pod.spec.as_ref().unwrap().node_name.clone().unwrap())
        .collect();
    assert_eq!((pods.len(), nodes.len()), (3, 3));
    let owner = &pods[0].owner_references()[0];
    assert_eq!(
        (owner.kind.as_str(), &owner.uid),
        ("ReplicaSet", &set.uid().unwrap())
    );

    let conditions: HashMap<_, _> = wait_for("the last condition", || async {
        let deployment = cluster.deployments().get("web").await.unwrap();
        let conditions: HashMap<_, _> = deployment
            .status
            .unwrap()
            .conditions
            .unwrap()
            .into_iter()
            .map(|c| (c.type_.unwrap(), (c.reason.unwrap(), c.message.unwrap())))
            .collect();
        (conditions["Progressing"].0 == "NewReplicaSetAvailable").then_some(conditions)
    })
    .await;
    assert_eq!(conditions["Available"].0, "MinimumReplicasAvailable");
    assert_eq!(
        conditions["Progressing"].1,
        format!("ReplicaSet \"web-{hash}\" has successfully progressed.")
    );
    wait_for("events", || async {
        let deployment = events(&cluster.client, "Deployment").await;
        let scaled = format!("ScalingReplicaSet: Scaled up replica set web-{hash} from 0 to 3");
        let created = events(&cluster.client, "ReplicaSet").await.len();
        let scheduled = events(&cluster.client, "Pod").await.len();
        (deployment == [scaled] && created == 3 && scheduled == 3).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_rolling_update_keeps_its_limits_and_can_be_undone() {
    let cluster = Cluster::start(2).await;
    let strategy = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}});
    cluster
        .apply_deployment(json!({"replicas": 4, "strategy": strategy}))
        .await;
    cluster.rolled_out().await;

    let pods = cluster.pods();
    let watching = tokio::spawn(async move {
        let mut alive: HashMap<String, bool> = HashMap::new();
        watch_until(pods, |pod: &Pod| {
            let name = pod.name_any();
            if pod.metadata.deletion_timestamp.is_some() {
                alive.remove(&name);
            } else {
                let conditions = pod.status.as_ref().and_then(|s| s.conditions.clone());
                let ready = conditions.is_some_and(|conditions| {
                    conditions
                        .iter()
                        .any(|c| c.type_ == "Ready" && c.status == "True")
                });
                alive.insert(name, ready);
            }
            assert!(alive.len() <= 5, "more than the surge: {alive:?}");
            let image = pod.spec.as_ref().unwrap().containers[0].image.as_deref();
            image == Some("nginx:2")
                && alive.values().filter(|ready| **ready).count() == 4
                && pod.metadata.deletion_timestamp.is_none()
        })
        .await;
    });
    cluster.patch_deployment(image("nginx:2")).await;
    cluster.rolled_out().await;
    watching.await.unwrap();
    let history = sets(&cluster).await;
    assert_eq!(history.len(), 2);
    assert_eq!(history[0].spec.replicas, Some(0));

    // As `kubectl rollout undo` does: the old template again.
    cluster.patch_deployment(image("nginx:1")).await;
    let deployment = cluster.rolled_out().await;
    wait_for("the revision", || async {
        let deployment = cluster.deployments().get("web").await.unwrap();
        (deployment.annotations()["deployment.kubernetes.io/revision"] == "3").then_some(())
    })
    .await;
    assert_eq!(deployment.metadata.generation, Some(3));
    let history = sets(&cluster).await;
    assert_eq!(history.len(), 2);
    let first = history
        .iter()
        .find(|set| set.spec.replicas == Some(4))
        .unwrap();
    assert_eq!(
        first.annotations()["deployment.kubernetes.io/revision-history"],
        "1"
    );
    cluster.stop().await;
}

fn image(image: &str) -> serde_json::Value {
    json!({"template": {"spec": {"containers": [{"name": "web", "image": image}]}}})
}

#[tokio::test]
async fn a_paused_deployment_scales_but_does_not_roll() {
    let cluster = Cluster::start(1).await;
    cluster.apply_deployment(json!({})).await;
    cluster.rolled_out().await;
    cluster.patch_deployment(json!({"paused": true})).await;
    cluster.patch_deployment(image("nginx:2")).await;
    cluster.patch_deployment(json!({"replicas": 5})).await;
    wait_for("five pods of the old template", || async {
        let deployment = cluster.deployments().get("web").await.unwrap();
        (deployment.status.unwrap().available_replicas == Some(5)).then_some(())
    })
    .await;
    assert_eq!(sets(&cluster).await.len(), 1);
    cluster.patch_deployment(json!({"paused": null})).await;
    cluster.rolled_out().await;
    assert_eq!(sets(&cluster).await.len(), 2);
    cluster.stop().await;
}

#[tokio::test]
async fn recreate_ends_every_old_pod_first() {
    let cluster = Cluster::start(1).await;
    let strategy = json!({"type": "Recreate", "rollingUpdate": null});
    cluster
        .apply_deployment(json!({"strategy": strategy}))
        .await;
    cluster.rolled_out().await;
    cluster.patch_deployment(image("nginx:2")).await;
    cluster.rolled_out().await;
    let events = wait_for("events", || async {
        let events = events(&cluster.client, "Deployment").await;
        (events.len() == 3).then_some(events)
    })
    .await;
    assert!(events[1].contains("Scaled down replica set") && events[1].ends_with("from 3 to 0"));
    assert!(events[2].contains("Scaled up replica set") && events[2].ends_with("from 0 to 3"));
    cluster.stop().await;
}

#[tokio::test]
async fn a_deleted_pod_is_replaced_and_never_twice() {
    let cluster = Cluster::start(2).await;
    cluster.apply_deployment(json!({"replicas": 20})).await;
    cluster.rolled_out().await;
    let pods = cluster
        .pods()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    for pod in &pods[..10] {
        cluster
            .pods()
            .delete(&pod.name_any(), &DeleteParams::default())
            .await
            .unwrap();
    }
    wait_for("twenty pods again", || async {
        let now = cluster
            .pods()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items;
        let deployment = cluster.deployments().get("web").await.unwrap();
        let available = deployment.status.unwrap().available_replicas;
        let gone = pods[..10]
            .iter()
            .all(|old| now.iter().all(|pod| pod.uid() != old.uid()));
        (gone && now.len() == 20 && available == Some(20)).then_some(())
    })
    .await;
    wait_for("the events", || async {
        let events = events(&cluster.client, "ReplicaSet").await;
        let created = events
            .iter()
            .filter(|e| e.starts_with("SuccessfulCreate"))
            .count();
        assert!(created <= 30, "{created} pods were created");
        (created == 30).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn scaling_down_deletes_the_pods_that_are_least_wanted() {
    let cluster = Cluster::start(1).await;
    cluster.apply_deployment(json!({"replicas": 3})).await;
    cluster.rolled_out().await;
    let pods = cluster
        .pods()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    let cheap = pods[1].name_any();
    let patch = json!({"metadata": {"annotations": {
        "controller.kubernetes.io/pod-deletion-cost": "-10",
    }}});
    let params = kube::api::PatchParams::default();
    let patch = kube::api::Patch::Merge(patch);
    cluster.pods().patch(&cheap, &params, &patch).await.unwrap();
    cluster.patch_deployment(json!({"replicas": 2})).await;
    wait_for("the cheap pod to go", || async {
        let left = cluster
            .pods()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items;
        (left.len() == 2).then_some(left)
    })
    .await
    .iter()
    .for_each(|pod| assert_ne!(pod.name_any(), cheap));
    cluster.stop().await;
}
