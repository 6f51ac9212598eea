//! What is deleted with an owner, and what isn't.

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, PostParams, PropagationPolicy};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::cluster::{Cluster, wait_for};

async fn started() -> (Cluster, Api<ReplicaSet>) {
    let cluster = Cluster::start(1).await;
    cluster.apply_deployment(json!({})).await;
    cluster.rolled_out().await;
    let sets = Api::namespaced(cluster.client.clone(), "default");
    (cluster, sets)
}

async fn delete_deployment(cluster: &Cluster, policy: PropagationPolicy) {
    let params = DeleteParams {
        propagation_policy: Some(policy),
        ..Default::default()
    };
    cluster.deployments().delete("web", &params).await.unwrap();
}

async fn count<K>(api: &Api<K>) -> usize
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    api.list(&ListParams::default()).await.unwrap().items.len()
}

#[tokio::test]
async fn background_deletion_takes_everything_along() {
    let (cluster, sets) = started().await;
    delete_deployment(&cluster, PropagationPolicy::Background).await;
    assert!(
        cluster
            .deployments()
            .get_opt("web")
            .await
            .unwrap()
            .is_none()
    );
    wait_for("sets and pods to go", || async {
        (count(&sets).await == 0 && count(&cluster.pods()).await == 0).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn foreground_deletion_ends_with_the_owner() {
    let (cluster, sets) = started().await;
    delete_deployment(&cluster, PropagationPolicy::Foreground).await;
    wait_for("the deployment to go", || async {
        let deployment = cluster.deployments().get_opt("web").await.unwrap();
        if let Some(deployment) = &deployment {
            assert_eq!(deployment.finalizers(), ["foregroundDeletion"]);
        }
        deployment.is_none().then_some(())
    })
    .await;
    assert_eq!((count(&sets).await, count(&cluster.pods()).await), (0, 0));
    cluster.stop().await;
}

#[tokio::test]
async fn orphaned_sets_stay_and_are_adopted_again() {
    let (cluster, sets) = started().await;
    let before: Vec<_> = sets.list(&ListParams::default()).await.unwrap().items;
    delete_deployment(&cluster, PropagationPolicy::Orphan).await;
    wait_for("the deployment to go", || async {
        cluster
            .deployments()
            .get_opt("web")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    let set = sets.get(&before[0].name_any()).await.unwrap();
    assert!(set.owner_references().is_empty());
    assert_eq!(count(&cluster.pods()).await, 3);

    cluster.apply_deployment(json!({})).await;
    cluster.rolled_out().await;
    let set = sets.get(&before[0].name_any()).await.unwrap();
    assert_eq!(set.uid(), before[0].uid());
    assert_eq!(set.owner_references()[0].kind, "Deployment");
    assert_eq!((count(&sets).await, count(&cluster.pods()).await), (1, 3));
    cluster.stop().await;
}

#[tokio::test]
async fn an_object_whose_owner_never_was_is_collected() {
    let cluster = Cluster::start(0).await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
    let map = json!({"metadata": {"name": "stray", "ownerReferences": [{
        "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "no-such-uid",
    }]}});
    let map = serde_json::from_value(map).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    wait_for("the stray to go", || async {
        maps.get_opt("stray").await.unwrap().is_none().then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_namespace_goes_with_all_that_is_in_it() {
    let cluster = Cluster::start(1).await;
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    namespaces
        .create(&PostParams::default(), &namespace)
        .await
        .unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), "team");
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "team");
    wait_for("its account and authority", || async {
        let account = accounts.get_opt("default").await.unwrap();
        let authority = maps.get_opt("kube-root-ca.crt").await.unwrap();
        let certificate = authority?.data?.remove("ca.crt")?;
        (account.is_some() && certificate.starts_with("-----BEGIN CERTIFICATE")).then_some(())
    })
    .await;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "team");
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]},
    });
    let pod = serde_json::from_value(pod).unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    wait_for("the pod to run", || async {
        let phase = pods.get("p").await.unwrap().status?.phase?;
        (phase == "Running").then_some(())
    })
    .await;
    namespaces
        .delete("team", &DeleteParams::default())
        .await
        .unwrap();
    wait_for("the namespace to go", || async {
        namespaces
            .get_opt("team")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    assert!(pods.get_opt("p").await.unwrap().is_none());
    assert!(maps.get_opt("kube-root-ca.crt").await.unwrap().is_none());
    cluster.stop().await;
}
