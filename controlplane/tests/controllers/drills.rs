//! Failure drills, with stand-ins for the agents that probe and break things.

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use skiff_controlplane::controllers;
use skiff_dev::{Drill, DrillPhase, DrillResult, DrillStatus, DrillTask};

use crate::cluster::{Cluster, wait_for};
use crate::drill_agents::{Manner, agents};

/// As many nodes as replicas of the Deployment `web`, all of them Ready.
async fn serving(nodes: usize) -> Cluster {
    let cluster = Cluster::start(nodes).await;
    let replicas = json!({"replicas": nodes});
    cluster.apply_deployment(replicas).await;
    cluster.rolled_out().await;
    cluster
}

/// A drill at that Deployment; `more` is what else its spec has.
fn at_web(drill: &str, more: Value) -> Value {
    let mut spec = more;
    spec["drill"] = drill.into();
    spec["target"] = json!({"kind": "Deployment", "name": "web"});
    spec
}

fn drills(cluster: &Cluster) -> Api<Drill> {
    Api::all(cluster.client.clone())
}

async fn create(cluster: &Cluster, name: &str, spec: Value) -> Drill {
    let drill = json!({"apiVersion": "skiff.dev/v1", "kind": "Drill",
        "metadata": {"name": name}, "spec": spec});
    let drill: Drill = serde_json::from_value(drill).unwrap();
    let created = drills(cluster).create(&PostParams::default(), &drill).await;
    created.unwrap()
}

async fn until(
    cluster: &Cluster,
    name: &str,
    what: &str,
    wanted: impl Fn(&Drill) -> bool,
) -> Drill {
    wait_for(what, || async {
        let drill = drills(cluster).get(name).await.unwrap();
        wanted(&drill).then_some(drill)
    })
    .await
}

fn phase(drill: &Drill) -> DrillPhase {
    drill.status.as_ref().map(|s| s.phase).unwrap_or_default()
}

async fn completed(cluster: &Cluster, name: &str) -> Drill {
    let is_over = |drill: &Drill| phase(drill) == DrillPhase::Completed;
    until(cluster, name, "the end of the drill", is_over).await
}

/// What is told of a drill in the end.
async fn outcome(cluster: &Cluster, name: &str) -> DrillStatus {
    completed(cluster, name).await.status.unwrap()
}

async fn cancel(cluster: &Cluster, name: &str) {
    let cancel = Patch::Merge(json!({"spec": {"cancel": true}}));
    drills(cluster)
        .patch(name, &PatchParams::default(), &cancel)
        .await
        .unwrap();
}

fn events(drill: &Drill) -> Vec<String> {
    let timeline = &drill.status.as_ref().unwrap().timeline;
    timeline.iter().map(|entry| entry.event.clone()).collect()
}

/// Makes the Service of the Deployment's pods, and waits until it leads to so many.
async fn expose(cluster: &Cluster, pods: usize) {
    let service = json!({"metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    let api: Api<Service> = Api::namespaced(cluster.client.clone(), "default");
    let service = serde_json::from_value(service).unwrap();
    api.create(&PostParams::default(), &service).await.unwrap();
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client.clone(), "default");
    let of_web = ListParams::default().labels("kubernetes.io/service-name=web");
    wait_for("the endpoints", || async {
        let slices = slices.list(&of_web).await.unwrap().items;
        let endpoints = slices
            .iter()
            .flat_map(|slice| slice.endpoints.iter().flatten());
        let is_ready = |e: &&Endpoint| e.conditions.as_ref().and_then(|c| c.ready) == Some(true);
        (endpoints.filter(is_ready).count() == pods).then_some(())
    })
    .await;
}

async fn no_tasks(cluster: &Cluster) {
    let tasks: Api<DrillTask> = Api::all(cluster.client.clone());
    wait_for("the end of all tasks", || async {
        let left = tasks.list(&ListParams::default()).await.unwrap();
        left.items.is_empty().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_deleted_pod_is_replaced_and_the_report_says_how() {
    let cluster = serving(3).await;
    let expect = ["recovery<30s", "restarts=0", "moved<=1"];
    let spec = at_web("pod-delete", json!({"seed": 5, "expect": expect}));
    create(&cluster, "d", spec).await;
    let drill = completed(&cluster, "d").await;
    let status = drill.status.clone().unwrap();
    assert_eq!(status.result, Some(DrillResult::Passed), "{status:#?}");
    assert_eq!((status.victims.len(), status.seed), (1, Some(5)));
    let (detect, recover) = (
        status.time_to_detect.unwrap(),
        status.time_to_recover.unwrap(),
    );
    assert!(0.0 <= detect && detect <= recover, "{status:#?}");
    let seen = events(&drill);
    for event in [
        "injected",
        "detected",
        "terminating",
        "created",
        "scheduled",
        "ready",
        "recovered",
        "healed",
    ] {
        assert!(seen.iter().any(|e| e == event), "no {event} in {seen:?}");
    }
    assert!(status.timeline.is_sorted_by_key(|entry| entry.at));
    assert!(
        status.expectations.iter().all(|e| e.met),
        "{:?}",
        status.expectations
    );
    assert!(
        status
            .spans
            .iter()
            .any(|span| span.state == "Ready" && span.from < 0.0)
    );
    assert!(status.plan.is_none() && status.requests.is_none());
    wait_for("the finalizer to go", || async {
        let drill = drills(&cluster).get("d").await.unwrap();
        drill
            .metadata
            .finalizers
            .is_none_or(|f| f.is_empty())
            .then_some(())
    })
    .await;

    // The same seed among the same candidates would hit the same.
    let dry = at_web("pod-delete", json!({"seed": 3, "count": 2, "dryRun": true}));
    create(&cluster, "dry-1", dry.clone()).await;
    create(&cluster, "dry-2", dry).await;
    let first = outcome(&cluster, "dry-1").await;
    let second = outcome(&cluster, "dry-2").await;
    assert_eq!(first.victims.len(), 2);
    assert_eq!((&first.victims, first.result), (&second.victims, None));
    assert_eq!(
        cluster
            .pods()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        3
    );
    cluster.stop().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_before_anything_is_touched() {
    let cluster = serving(2).await;
    let cases = [
        (
            json!({"drill": "pod-delete", "target": {"kind": "Deployment", "name": "nothing"}}),
            "there is no deployment/nothing in the namespace default",
        ),
        (
            json!({"drill": "pod-delete", "target": {"kind": "Selector", "selector": "app=no"}}),
            "selector/app=no has no running pod",
        ),
        (
            json!({"drill": "node-drain", "target": {"kind": "Node", "name": "n9"}}),
            "there is no node/n9",
        ),
        (
            at_web("pod-delete", json!({"count": 3})),
            "3 victims are wanted, and there are 2 candidates",
        ),
        (
            at_web("container-kill", json!({"container": "sidecar"})),
            "has no container \"sidecar\"; it has web",
        ),
        (
            at_web("pod-delete", json!({"probe": {"service": "web"}})),
            "there is no Service default/web to probe",
        ),
    ];
    for (at, (spec, why)) in cases.into_iter().enumerate() {
        let name = format!("refused-{at}");
        create(&cluster, &name, spec).await;
        let status = outcome(&cluster, &name).await;
        assert_eq!(status.result, Some(DrillResult::Refused), "{why}");
        let message = status.message.unwrap();
        assert!(message.contains(why), "{message:?} should say {why:?}");
    }
    no_tasks(&cluster).await;
    cluster.stop().await;
}

#[tokio::test]
async fn a_budget_refuses_an_eviction_and_the_report_says_so() {
    let cluster = serving(2).await;
    let budgets: Api<k8s_openapi::api::policy::v1::PodDisruptionBudget> =
        Api::namespaced(cluster.client.clone(), "default");
    let budget = json!({"metadata": {"name": "web"},
        "spec": {"minAvailable": 2, "selector": {"matchLabels": {"app": "web"}}}});
    let budget = serde_json::from_value(budget).unwrap();
    budgets
        .create(&PostParams::default(), &budget)
        .await
        .unwrap();
    wait_for("the budget's status", || async {
        let budget = budgets.get("web").await.unwrap();
        let status = budget.status.filter(|s| s.current_healthy == Some(2));
        status.map(drop)
    })
    .await;
    let spec = at_web("pod-evict", json!({}));
    create(&cluster, "d", spec).await;
    let status = outcome(&cluster, "d").await;
    assert_eq!(status.result, Some(DrillResult::Refused));
    let message = status.message.unwrap();
    assert!(
        message.contains("The disruption budget web needs 2 healthy pods"),
        "{message}"
    );
    cluster.stop().await;
}

#[tokio::test]
async fn a_drained_node_is_schedulable_again() {
    let cluster = serving(3).await;
    create(
        &cluster,
        "d",
        json!({"drill": "node-drain", "target": {"kind": "Node", "name": "node-1"}, "duration": "2s"}),
    )
    .await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    wait_for("the cordon", || async {
        let node = nodes.get("node-1").await.unwrap();
        (node.spec?.unschedulable == Some(true)).then_some(())
    })
    .await;
    let drill = completed(&cluster, "d").await;
    let status = drill.status.clone().unwrap();
    assert_eq!(status.result, Some(DrillResult::Passed), "{status:#?}");
    assert_eq!(status.victims, ["node/node-1"]);
    assert_eq!(status.pods_moved, Some(1), "{status:#?}");
    let node = nodes.get("node-1").await.unwrap();
    assert_ne!(node.spec.unwrap().unschedulable, Some(true));
    let pods = cluster.pods().list(&ListParams::default()).await.unwrap();
    let here = |pod: &Pod| pod.spec.as_ref().unwrap().node_name.as_deref() == Some("node-1");
    assert!(!pods.items.iter().any(here));
    // A node that was cordoned before stays so.
    let cordon = Patch::Merge(json!({"spec": {"unschedulable": true}}));
    nodes
        .patch("node-2", &PatchParams::default(), &cordon)
        .await
        .unwrap();
    create(
        &cluster,
        "again",
        json!({"drill": "node-drain", "target": {"kind": "Node", "name": "node-2"}, "duration": "1s"}),
    )
    .await;
    completed(&cluster, "again").await;
    let node = nodes.get("node-2").await.unwrap();
    assert_eq!(node.spec.unwrap().unschedulable, Some(true));
    cluster.stop().await;
}

#[tokio::test]
async fn a_target_that_is_not_healthy_is_left_alone() {
    let cluster = serving(2).await;
    expose(&cluster, 2).await;
    let agents = agents(&cluster, Manner::Unanswered);
    let spec = at_web("pod-delete", json!({}));
    create(&cluster, "d", spec).await;
    let status = outcome(&cluster, "d").await;
    assert_eq!(status.result, Some(DrillResult::Refused));
    let message = status.message.unwrap();
    assert!(
        message.starts_with("the target is not healthy before the drill:"),
        "{message}"
    );
    assert!(message.contains("connection refused"), "{message}");
    assert_eq!(status.injected_at, None);
    no_tasks(&cluster).await;
    agents.abort();
    cluster.stop().await;
}

#[tokio::test]
async fn a_fault_that_fails_is_a_refusal_and_one_that_lasts_is_stopped() {
    let cluster = serving(2).await;
    expose(&cluster, 2).await;
    let failing = agents(&cluster, Manner::Fails);
    let spec = json!({"drill": "disk-full", "target": {"kind": "Node", "name": "node-0"}});
    create(&cluster, "failing", spec).await;
    let status = outcome(&cluster, "failing").await;
    assert_eq!(status.result, Some(DrillResult::Refused));
    assert_eq!(status.message.as_deref(), Some("the disk is shared"));
    failing.abort();

    let agents = agents(&cluster, Manner::Well);
    create(
        &cluster,
        "lasting",
        at_web("cpu-stress", json!({"duration": "1s"})),
    )
    .await;
    let drill = completed(&cluster, "lasting").await;
    let status = drill.status.clone().unwrap();
    assert_eq!(status.result, Some(DrillResult::Passed), "{status:#?}");
    assert!(status.time_to_recover.unwrap() >= 1.0);
    let requests = status.requests.unwrap();
    assert!(
        requests.sent > 0 && requests.target.starts_with("http://"),
        "{requests:?}"
    );
    assert!(events(&drill).contains(&"undone".to_owned()));
    no_tasks(&cluster).await;
    agents.abort();
    cluster.stop().await;
}

#[tokio::test]
async fn a_drill_that_is_cancelled_or_deleted_is_undone() {
    let cluster = serving(2).await;
    let agents = agents(&cluster, Manner::Well);
    let spec = at_web("container-hang", json!({"duration": "1h", "timeout": "2h"}));
    let is_running = |drill: &Drill| {
        let status = drill.status.as_ref();
        status.is_some_and(|s| s.phase == DrillPhase::Running && s.injected_at.is_some())
    };
    create(&cluster, "d", spec.clone()).await;
    until(&cluster, "d", "the fault", is_running).await;

    // Nobody else may hit what is hit.
    let mut second = spec.clone();
    second["count"] = json!(2);
    create(&cluster, "second", second).await;
    let status = outcome(&cluster, "second").await;
    assert!(
        status
            .message
            .unwrap()
            .contains("is a victim of the drill d, which is not over")
    );

    cancel(&cluster, "d").await;
    let status = outcome(&cluster, "d").await;
    assert_eq!(status.result, Some(DrillResult::Cancelled));
    no_tasks(&cluster).await;

    create(&cluster, "e", spec).await;
    until(&cluster, "e", "the fault", is_running).await;
    drills(&cluster)
        .delete("e", &DeleteParams::default())
        .await
        .unwrap();
    no_tasks(&cluster).await;
    wait_for("the drill to go", || async {
        drills(&cluster)
            .get_opt("e")
            .await
            .unwrap()
            .is_none()
            .then_some(())
    })
    .await;
    agents.abort();
    cluster.stop().await;
}

#[tokio::test]
async fn another_controller_goes_on_where_one_ended() {
    let cidr = "10.42.0.0/16".parse().unwrap();
    let config = controllers::Config::new(String::new(), cidr);
    let mut cluster = Cluster::start_with(2, Some(config.clone())).await;
    cluster.apply_deployment(json!({"replicas": 2})).await;
    expose(&cluster, 2).await;
    cluster.rolled_out().await;
    let agents = agents(&cluster, Manner::Well);
    let spec = at_web("container-hang", json!({"duration": "4s", "seed": 9}));
    create(&cluster, "d", spec).await;
    let mut injected = None;
    for wanted in [
        DrillPhase::Preparing,
        DrillPhase::Running,
        DrillPhase::Healing,
    ] {
        let seen = until(&cluster, "d", "a phase", |drill| phase(drill) >= wanted).await;
        cluster.restart_workers(config.clone()).await;
        let at = seen.status.unwrap().injected_at;
        injected = injected.or(at);
    }
    let status = outcome(&cluster, "d").await;
    assert_eq!(status.result, Some(DrillResult::Passed), "{status:#?}");
    assert_eq!(status.seed, Some(9));
    assert!(injected.is_some_and(|at| Some(at) == status.injected_at));
    let recover = status.time_to_recover.unwrap();
    assert!((4.0..20.0).contains(&recover), "{recover}");
    let count = |event: &str| status.timeline.iter().filter(|e| e.event == event).count();
    assert_eq!(
        (count("injected"), count("recovered"), count("undone")),
        (1, 1, 1)
    );
    no_tasks(&cluster).await;
    agents.abort();
    cluster.stop().await;
}

#[tokio::test]
async fn a_node_that_is_gone_for_good_holds_nobody_up() {
    let mut cluster = serving(2).await;
    let agents = agents(&cluster, Manner::NeverEnds);
    let spec = json!({"drill": "cpu-stress", "target": {"kind": "Node", "name": "node-1"}, "duration": "1s"});
    create(&cluster, "d", spec).await;
    until(&cluster, "d", "the undoing", |drill| {
        phase(drill) == DrillPhase::Healing
    })
    .await;
    cluster.silence("node-1");
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    nodes
        .delete("node-1", &DeleteParams::default())
        .await
        .unwrap();
    cancel(&cluster, "d").await;
    completed(&cluster, "d").await;
    no_tasks(&cluster).await;
    agents.abort();
    cluster.stop().await;
}
