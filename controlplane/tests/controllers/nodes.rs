//! Nodes that fall silent, come back, or are gone for good.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use skiff_controlplane::controllers::Config;

use crate::cluster::{Cluster, wait_for};

fn impatient() -> Config {
    let mut config = Config::new("a certificate".into(), skiff_controlplane::CLUSTER_CIDR);
    config.node_grace_period = Duration::from_secs(2);
    config.pod_quarantine = Duration::from_millis(500);
    config
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref());
    let mut conditions = conditions.unwrap_or_default().iter();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn node_of(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .unwrap()
        .node_name
        .as_deref()
        .unwrap_or_default()
}

async fn pods(cluster: &Cluster) -> Vec<Pod> {
    cluster
        .pods()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
}

async fn taints(cluster: &Cluster, node: &str) -> Vec<String> {
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let taints = nodes
        .get(node)
        .await
        .unwrap()
        .spec
        .unwrap_or_default()
        .taints;
    let taints = taints.unwrap_or_default().into_iter();
    taints
        .map(|taint| format!("{}:{}", taint.key, taint.effect))
        .collect()
}

const UNREACHABLE: [&str; 2] = [
    "node.kubernetes.io/unreachable:NoSchedule",
    "node.kubernetes.io/unreachable:NoExecute",
];

#[tokio::test]
async fn pods_of_a_silent_node_are_replaced_elsewhere() {
    let mut cluster = Cluster::start_with(3, Some(impatient())).await;
    let tolerations = json!([{
        "key": "node.kubernetes.io/unreachable", "operator": "Exists",
        "effect": "NoExecute", "tolerationSeconds": 0,
    }]);
    cluster
        .apply_deployment(json!({"template": {"spec": {"tolerations": tolerations}}}))
        .await;
    cluster.rolled_out().await;
    let lost = pods(&cluster)
        .await
        .into_iter()
        .find(|pod| node_of(pod) == "node-2")
        .unwrap();
    cluster.silence("node-2");
    wait_for("the node to be unreachable", || async {
        (taints(&cluster, "node-2").await == UNREACHABLE).then_some(())
    })
    .await;
    wait_for("a replacement", || async {
        let pods = pods(&cluster).await;
        let elsewhere = pods
            .iter()
            .filter(|pod| is_ready(pod) && node_of(pod) != "node-2");
        (elsewhere.count() == 3).then_some(())
    })
    .await;
    let lost = cluster.pods().get(&lost.name_any()).await.unwrap();
    assert!(lost.metadata.deletion_timestamp.is_some());
    assert!(!is_ready(&lost));
    cluster.stop().await;
}

#[tokio::test]
async fn nobody_is_evicted_when_every_node_is_silent() {
    let mut cluster = Cluster::start_with(1, Some(impatient())).await;
    cluster.apply_deployment(json!({})).await;
    cluster.rolled_out().await;
    cluster.silence("node-0");
    wait_for("the node to be unreachable", || async {
        (taints(&cluster, "node-0").await == UNREACHABLE[..1]).then_some(())
    })
    .await;
    wait_for("its pods to be not ready", || async {
        let pods = pods(&cluster).await;
        assert!(
            pods.iter()
                .all(|pod| pod.metadata.deletion_timestamp.is_none())
        );
        (!pods.iter().any(is_ready)).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn pods_of_a_removed_node_are_collected() {
    let mut cluster = Cluster::start_with(2, Some(impatient())).await;
    cluster.apply_deployment(json!({"replicas": 2})).await;
    cluster.rolled_out().await;
    cluster.silence("node-1");
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    nodes
        .delete("node-1", &DeleteParams::default())
        .await
        .unwrap();
    wait_for("two pods on the other node", || async {
        let pods = pods(&cluster).await;
        let stay = pods
            .iter()
            .filter(|pod| is_ready(pod) && node_of(pod) == "node-0");
        (stay.count() == 2 && pods.len() == 2).then_some(())
    })
    .await;
    cluster.stop().await;
}
