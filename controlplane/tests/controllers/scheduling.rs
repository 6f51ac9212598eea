//! Pods that find a node, and those that don't.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use crate::cluster::{Cluster, events, wait_for};

async fn create_pod(cluster: &Cluster, name: &str, spec: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "image": "nginx"}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    let pod = serde_json::from_value(pod).unwrap();
    cluster
        .pods()
        .create(&PostParams::default(), &pod)
        .await
        .unwrap()
}

async fn node_of(cluster: &Cluster, name: &str) -> String {
    wait_for(&format!("{name} to have a node"), || async {
        cluster.pods().get(name).await.unwrap().spec?.node_name
    })
    .await
}

async fn unschedulable(cluster: &Cluster, name: &str) -> String {
    wait_for(&format!("{name} to be unschedulable"), || async {
        let conditions = cluster.pods().get(name).await.unwrap().status?.conditions?;
        let condition = conditions.into_iter().find(|c| c.type_ == "PodScheduled")?;
        (condition.reason.as_deref() == Some("Unschedulable")).then_some(condition.message?)
    })
    .await
}

fn requests(cpu: &str) -> Value {
    json!({"containers": [{
        "name": "c", "image": "nginx", "resources": {"requests": {"cpu": cpu}},
    }]})
}

#[tokio::test]
async fn a_pod_waits_for_what_it_needs_and_then_gets_it() {
    let mut cluster = Cluster::start(0).await;
    create_pod(&cluster, "first", requests("3")).await;
    assert_eq!(
        unschedulable(&cluster, "first").await,
        "no nodes available to schedule pods"
    );
    cluster.add_node("only").await;
    assert_eq!(node_of(&cluster, "first").await, "only");

    create_pod(&cluster, "second", requests("3")).await;
    assert_eq!(
        unschedulable(&cluster, "second").await,
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 No \
         preemption victims found for incoming pod."
    );
    cluster
        .pods()
        .delete("first", &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(node_of(&cluster, "second").await, "only");
    wait_for("events", || async {
        let events = events(&cluster.client, "Pod").await;
        let assigned = "Scheduled: Successfully assigned default/second to only".to_string();
        let failed = events
            .iter()
            .any(|event| event.starts_with("FailedScheduling: 0/1 nodes"));
        (events.contains(&assigned) && failed).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn selectors_taints_and_cordons_are_honoured() {
    let cluster = Cluster::start(2).await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let params = PatchParams::default();
    let patch = json!({"metadata": {"labels": {"disk": "ssd"}}});
    nodes
        .patch("node-1", &params, &Patch::Merge(patch))
        .await
        .unwrap();
    create_pod(&cluster, "picky", json!({"nodeSelector": {"disk": "ssd"}})).await;
    assert_eq!(node_of(&cluster, "picky").await, "node-1");

    nodes.cordon("node-0").await.unwrap();
    let taints = json!({"spec": {"taints": [
        {"key": "gpu", "value": "yes", "effect": "NoSchedule"},
    ]}});
    nodes
        .patch("node-1", &params, &Patch::Merge(taints))
        .await
        .unwrap();
    wait_for("the cordon's taint", || async {
        let taints = nodes.get("node-0").await.unwrap().spec?.taints?;
        taints
            .iter()
            .any(|taint| taint.key == "node.kubernetes.io/unschedulable")
            .then_some(())
    })
    .await;
    create_pod(&cluster, "plain", json!({})).await;
    assert_eq!(
        unschedulable(&cluster, "plain").await,
        "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) were \
         unschedulable. preemption: 0/2 nodes are available: 2 Preemption is not helpful for \
         scheduling."
    );
    let tolerations = json!({"tolerations": [{"key": "gpu", "operator": "Exists"}]});
    create_pod(&cluster, "tolerant", tolerations).await;
    assert_eq!(node_of(&cluster, "tolerant").await, "node-1");
    nodes.uncordon("node-0").await.unwrap();
    assert_eq!(node_of(&cluster, "plain").await, "node-0");
    cluster.stop().await;
}

#[tokio::test]
async fn a_pod_that_does_not_tolerate_a_taint_is_evicted() {
    let cluster = Cluster::start(1).await;
    create_pod(&cluster, "guest", json!({})).await;
    node_of(&cluster, "guest").await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let taints = json!({"spec": {"taints": [{"key": "maintenance", "effect": "NoExecute"}]}});
    let params = PatchParams::default();
    nodes
        .patch("node-0", &params, &Patch::Merge(taints))
        .await
        .unwrap();
    wait_for("the pod to go", || async {
        cluster
            .pods()
            .get_opt("guest")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    wait_for("its event", || async {
        let events = events(&cluster.client, "Pod").await;
        let evicted = "TaintManagerEviction: Marking for deletion Pod default/guest".to_string();
        events.contains(&evicted).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn two_pods_cannot_have_one_host_port() {
    let cluster = Cluster::start(1).await;
    let spec = json!({"containers": [{
        "name": "c", "image": "nginx", "ports": [{"containerPort": 80, "hostPort": 8080}],
    }]});
    create_pod(&cluster, "a", spec.clone()).await;
    node_of(&cluster, "a").await;
    let second = create_pod(&cluster, "b", spec).await;
    let message = unschedulable(&cluster, &second.name_any()).await;
    assert!(message.contains("1 node(s) didn't have free ports for the requested pod ports"));
    cluster.stop().await;
}
