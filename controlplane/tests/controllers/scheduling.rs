//! Pods that find a node, and those that don't.

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::scheduling::v1::PriorityClass;
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

async fn priority_class(cluster: &Cluster, name: &str, value: i32) {
    let classes: Api<PriorityClass> = Api::all(cluster.client.clone());
    let class = json!({"metadata": {"name": name}, "value": value});
    let class = serde_json::from_value(class).unwrap();
    classes
        .create(&PostParams::default(), &class)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_important_pod_makes_the_least_important_go() {
    let cluster = Cluster::start(1).await;
    priority_class(&cluster, "high", 1000).await;
    priority_class(&cluster, "middle", 500).await;
    for (name, class, cpu) in [("low", "", "2"), ("middle", "middle", "1")] {
        let mut spec = requests(cpu);
        spec["priorityClassName"] = json!(class);
        create_pod(&cluster, name, spec).await;
        node_of(&cluster, name).await;
    }
    let mut spec = requests("2");
    spec["priorityClassName"] = json!("high");
    let high = create_pod(&cluster, "high", spec).await;
    assert_eq!(high.spec.as_ref().unwrap().priority, Some(1000));
    assert_eq!(node_of(&cluster, "high").await, "node-0");
    let bound = cluster.pods().get("high").await.unwrap();
    assert_eq!(bound.status.unwrap().nominated_node_name, None);
    assert!(cluster.pods().get_opt("low").await.unwrap().is_none());
    let middle = cluster.pods().get("middle").await.unwrap();
    assert_eq!(middle.metadata.deletion_timestamp, None);
    wait_for("the events", || async {
        let events = events(&cluster.client, "Pod").await;
        let uid = high.metadata.uid.clone()?;
        let preempted = format!("Preempted: Preempted by pod {uid} on node node-0");
        let waited = "FailedScheduling: 0/1 nodes are available: 1 Insufficient cpu.".to_string();
        (events.contains(&preempted) && events.contains(&waited)).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn priorities_are_those_of_classes() {
    let cluster = Cluster::start(1).await;
    let create = |name: &'static str, spec: Value| {
        let pods = cluster.pods();
        async move {
            let mut pod = json!({"metadata": {"name": name}, "spec": {
                "containers": [{"name": "c", "image": "nginx"}]}});
            for (key, value) in spec.as_object().unwrap() {
                pod["spec"][key] = value.clone();
            }
            let pod = serde_json::from_value(pod).unwrap();
            let created = pods.create(&PostParams::default(), &pod).await;
            created
                .map(|pod: Pod| pod.spec.unwrap())
                .map_err(|error| error.to_string())
        }
    };
    let critical = json!({"priorityClassName": "system-node-critical"});
    let spec = create("critical", critical).await.unwrap();
    assert_eq!(spec.priority, Some(2_000_001_000));
    let refused = create("a", json!({"priorityClassName": "none"}))
        .await
        .unwrap_err();
    assert!(
        refused.contains(r#"pods "a" is forbidden: no PriorityClass with name none was found"#),
        "{refused}"
    );
    let refused = create("a", json!({"priority": 7})).await.unwrap_err();
    assert!(
        refused.contains("the integer value of priority (7) must not be provided in pod spec"),
        "{refused}"
    );
    let classes: Api<PriorityClass> = Api::all(cluster.client.clone());
    let class = |name: &str| -> PriorityClass {
        let class = json!({"metadata": {"name": name}, "value": 5, "globalDefault": true,
            "preemptionPolicy": "Never"});
        serde_json::from_value(class).unwrap()
    };
    let params = PostParams::default();
    classes.create(&params, &class("first")).await.unwrap();
    let second = classes.create(&params, &class("second")).await.unwrap_err();
    let why = "PriorityClass first is already marked as default. Only one default can exist";
    assert!(second.to_string().contains(why), "{second}");
    let spec = create("plain", json!({})).await.unwrap();
    assert_eq!(spec.priority_class_name.as_deref(), Some("first"));
    assert_eq!(spec.priority, Some(5));
    assert_eq!(spec.preemption_policy.as_deref(), Some("Never"));
    cluster.stop().await;
}

#[tokio::test]
async fn a_pod_waits_for_those_that_it_wants_near() {
    let cluster = Cluster::start(2).await;
    let term = json!({"topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": {"app": "db"}}});
    let near = json!({"affinity": {"podAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [term]}}});
    create_pod(&cluster, "web", near).await;
    assert_eq!(
        unschedulable(&cluster, "web").await,
        "0/2 nodes are available: 2 node(s) didn't match pod affinity rules. preemption: 0/2 \
         nodes are available: 2 Preemption is not helpful for scheduling."
    );
    let db = json!({"metadata": {"name": "db", "labels": {"app": "db"}},
        "spec": {"containers": [{"name": "c", "image": "db"}]}});
    let db = serde_json::from_value(db).unwrap();
    cluster
        .pods()
        .create(&PostParams::default(), &db)
        .await
        .unwrap();
    let node = node_of(&cluster, "db").await;
    assert_eq!(node_of(&cluster, "web").await, node);
    cluster.stop().await;
}

#[tokio::test]
async fn pods_spread_as_they_require() {
    let mut cluster = Cluster::start(2).await;
    let constraint = json!({"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "DoNotSchedule", "minDomains": 3,
        "labelSelector": {"matchLabels": {"app": "web"}}});
    cluster
        .apply_deployment(json!({"replicas": 3, "template": {"spec": {
            "topologySpreadConstraints": [constraint]}}}))
        .await;
    let list = || async {
        let pods = cluster.pods().list(&Default::default()).await.unwrap();
        let nodes = pods.items.into_iter().map(|pod| pod.spec?.node_name);
        nodes.collect::<Vec<_>>()
    };
    wait_for("two pods with a node", || async {
        (list().await.iter().flatten().count() == 2).then_some(())
    })
    .await;
    wait_for("why the third has none", || async {
        let events = events(&cluster.client, "Pod").await;
        let why = "FailedScheduling: 0/2 nodes are available: 2 node(s) didn't match pod topology \
                   spread constraints.";
        events
            .iter()
            .any(|event| event.starts_with(why))
            .then_some(())
    })
    .await;
    cluster.add_node("node-2").await;
    wait_for("a pod on every node", || async {
        let pods = cluster.pods().list(&Default::default()).await.unwrap();
        let mut nodes: Vec<String> = pods
            .items
            .into_iter()
            .filter_map(|pod| pod.spec?.node_name)
            .collect();
        nodes.sort();
        (nodes == ["node-0", "node-1", "node-2"]).then_some(())
    })
    .await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_node_does_not_choose_what_leads_pods_to_it() {
    let cluster = Cluster::start(2).await;
    let nodes: Api<Node> = Api::all(cluster.node_client("node-0"));
    let params = PatchParams::default();
    let patch = |patch: Value| {
        let nodes = nodes.clone();
        let params = params.clone();
        async move { nodes.patch("node-0", &params, &Patch::Merge(patch)).await }
    };
    let own = json!({"metadata": {"labels": {"disk": "ssd", "topology.kubernetes.io/zone": "a"}}});
    patch(own).await.unwrap();
    let trusted = "node-restriction.kubernetes.io/trusted";
    for (change, why) in [
        (
            json!({"metadata": {"labels": {trusted: "yes"}}}),
            format!("is not allowed to modify labels: {trusted}"),
        ),
        (
            json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
            r#"node "node-0" is not allowed to modify taints"#.to_string(),
        ),
    ] {
        let refused = patch(change).await.unwrap_err().to_string();
        assert!(refused.contains(&why), "{refused}");
    }
    let labels = json!({"metadata": {"labels": {trusted: "yes"}}});
    let status = nodes
        .patch_status("node-0", &params, &Patch::Merge(labels))
        .await;
    assert!(
        status
            .unwrap_err()
            .to_string()
            .contains("is not allowed to modify labels")
    );
    cluster.stop().await;
}
