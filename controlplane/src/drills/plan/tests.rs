use serde_json::{Value, json};
use skiff_dev::{Action, DrillSpec, ProbeScheme};

use super::*;
use crate::drills::made_up::{node, pod};

/// Three nodes; the Deployment `web` with a pod on each, and `bare` on n3; a Service for `web`.
fn world() -> World {
    let web = json!({"metadata": {"name": "web", "namespace": "default", "uid": "dep"},
        "spec": {"selector": {}, "template": {}}});
    let set = json!({"metadata": {"name": "web-1", "namespace": "default", "uid": "rs",
        "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "dep",
            "controller": true}]}, "spec": {"selector": {}}});
    let service = json!({"metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": "10.43.0.7", "selector": {"app": "web"}, "ports": [{"port": 8000}]}});
    let mut bare = pod("bare", "n3", "Ready");
    bare.metadata.owner_references = None;
    bare.metadata.labels = None;
    let mut pods = vec![bare];
    // Not in the order of their names.
    pods.extend([("c", "n3"), ("a", "n1"), ("b", "n2")].map(|(name, on)| pod(name, on, "Ready")));
    World {
        pods: pods.into_iter().map(Arc::new).collect(),
        replica_sets: vec![Arc::new(serde_json::from_value(set).unwrap())],
        deployments: vec![Arc::new(serde_json::from_value(web).unwrap())],
        nodes: ["n1", "n2", "n3"]
            .map(|name| Arc::new(node(name, "True")))
            .into(),
        services: vec![Arc::new(serde_json::from_value(service).unwrap())],
    }
}

fn drill(spec: Value) -> Drill {
    let spec: DrillSpec = serde_json::from_value(spec).unwrap();
    Drill {
        spec,
        ..Drill::default()
    }
}

fn web(kind: &str, more: Value) -> Drill {
    let mut spec = json!({"drill": kind, "target": {"kind": "Deployment", "name": "web"}});
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    drill(spec)
}

fn refusal(drill: &Drill, world: &World) -> String {
    plan(drill, world, 1).unwrap_err().to_string()
}

#[test]
fn victims_are_the_deployments_pods_in_order() {
    let drill = web("pod-delete", json!({"count": 3}));
    let plan = plan(&drill, &world(), 1).unwrap();
    assert_eq!(
        listed(&drill, &plan),
        ["pod/a (n1)", "pod/b (n2)", "pod/c (n3)"]
    );
    assert_eq!(plan.victims[0].container, "main");
    assert_eq!(plan.scope.controllers, ["dep"]);
}

#[test]
fn a_seed_chooses_the_same_and_seeds_differ() {
    let world = world();
    let hit = |seed| {
        let drill = web("pod-delete", json!({}));
        listed(&drill, &plan(&drill, &world, seed).unwrap())
    };
    assert_eq!(hit(7), hit(7));
    assert!((0..20).any(|seed| hit(seed) != hit(7)));
}

#[test]
fn drills_of_nodes_hit_the_nodes_that_host_the_target() {
    let drill = web("node-crash", json!({"percent": 100}));
    let planned = plan(&drill, &world(), 1).unwrap();
    assert_eq!(listed(&drill, &planned), ["node/n1", "node/n2", "node/n3"]);
    let here = drill_of_node("agent-restart", "n2");
    let planned = plan(&here, &world(), 1).unwrap();
    assert_eq!(listed(&here, &planned), ["node/n2"]);
    assert_eq!(planned.scope.controllers, ["rs"]);
    assert_eq!(planned.probe, None);
    let tasks = faults(&here, &planned, |_| false).unwrap();
    assert_eq!(tasks[0].node.as_deref(), Some("n2"));
}

fn drill_of_node(kind: &str, name: &str) -> Drill {
    drill(json!({"drill": kind, "target": {"kind": "Node", "name": name}, "probe": {"off": true}}))
}

#[test]
fn stress_of_a_node_is_no_stress_of_its_pods() {
    let world = world();
    let whole = drill_of_node("cpu-stress", "n1");
    let tasks = faults(&whole, &plan(&whole, &world, 1).unwrap(), |_| false).unwrap();
    assert!(matches!(
        &tasks[0].action,
        Action::BurnCpu {
            pod: None,
            container: None,
            ..
        }
    ));
    let one = web("cpu-stress", json!({"parameters": {"workers": 2}}));
    let tasks = faults(&one, &plan(&one, &world, 1).unwrap(), |_| false).unwrap();
    assert!(
        matches!(&tasks[0].action, Action::BurnCpu { pod: Some(_), container: Some(c), workers: Some(2) } if c == "main")
    );
}

#[test]
fn a_node_of_this_process_is_crashed_by_the_control_plane() {
    let drill = web("node-crash", json!({"percent": 100}));
    let planned = plan(&drill, &world(), 1).unwrap();
    let tasks = faults(&drill, &planned, |node| node == "n2").unwrap();
    let nodes: Vec<_> = tasks.iter().map(|task| task.node.as_deref()).collect();
    assert_eq!(nodes, [Some("n1"), None, Some("n3")]);
}

#[test]
fn packets_are_dealt_with_by_each_node_at_once() {
    let peer = json!({"kind": "Pod", "name": "bare"});
    let drill = web("pod-partition", json!({"count": 3, "peer": peer}));
    let planned = plan(&drill, &world(), 1).unwrap();
    let tasks = faults(&drill, &planned, |_| false).unwrap();
    assert_eq!(tasks.len(), 3);
    let Action::CutPods { pods, peers } = &tasks[0].action else {
        panic!()
    };
    assert_eq!(
        (pods[0].name.as_str(), peers.as_slice()),
        ("a", ["10.0.0.1".to_owned()].as_slice())
    );
    let alone = web(
        "pod-partition",
        json!({"count": 3, "peer": {"kind": "Deployment", "name": "web"}}),
    );
    assert!(refusal(&alone, &world()).contains("has no running pod that is not a victim"));
}

#[test]
fn what_would_be_lost_is_not_drained() {
    let drill = drill_of_node("node-drain", "n3");
    assert_eq!(
        refusal(&drill, &world()),
        "node/n3 can't be drained: these pods would not come back, as nothing controls them: default/bare"
    );
    let drill = drill_of_node("node-drain", "n1");
    assert_eq!(plan(&drill, &world(), 1).unwrap().uncordon, ["n1"]);
}

#[test]
fn a_node_that_is_not_ready_is_left_alone() {
    let mut world = world();
    world.nodes[0] = Arc::new(node("n1", "Unknown"));
    assert_eq!(
        refusal(&drill_of_node("node-crash", "n1"), &world),
        "node/n1 is not Ready"
    );
}

#[test]
fn the_probe_goes_to_the_service_from_a_node_that_is_left_alone() {
    let drill = web("node-crash", json!({"count": 1}));
    for seed in 0..10 {
        let planned = plan(&drill, &world(), seed).unwrap();
        let probe = planned.probe.unwrap();
        assert_ne!(probe.node, planned.victims[0].node);
        assert_eq!((probe.service.as_str(), probe.rate), ("default/web", 10));
        assert_eq!(
            (probe.target.host.as_str(), probe.target.port),
            ("10.43.0.7", 8000)
        );
        assert_eq!(probe.target.scheme, ProbeScheme::Tcp);
    }
    // Everyone is hit: somebody has to probe all the same.
    let all = web("container-kill", json!({"count": 3}));
    assert_eq!(plan(&all, &world(), 1).unwrap().probe.unwrap().node, "n1");
}

#[test]
fn a_nodes_service_may_be_of_any_namespace() {
    let mut world = world();
    let service = |namespace: &str, name: &str, app: &str| {
        let service = json!({"metadata": {"name": name, "namespace": namespace},
            "spec": {"clusterIP": "10.43.0.9", "selector": {"app": app}, "ports": [{"port": 9000}]}});
        Arc::new(serde_json::from_value::<Service>(service).unwrap())
    };
    let put = |world: &mut World, name: &str, namespace: &str| {
        let mut put = pod(name, "n1", "Ready");
        put.metadata.namespace = Some(namespace.into());
        world.pods.push(Arc::new(put));
    };
    // Only the one of its own namespace leads to a pod, whatever its labels are.
    world.pods.retain(|pod| node_name(pod) != Some("n1"));
    put(&mut world, "shop", "shop");
    put(&mut world, "system", "kube-system");
    world.services.extend([
        service("kube-system", "a", "web"),
        service("shop", "z", "web"),
        service("shop", "y", "web"),
        service("shop", "a", "else"),
    ]);
    let planned = |probe: Value| {
        let target = json!({"kind": "Node", "name": "n1"});
        let crash = drill(json!({"drill": "node-crash", "target": target, "probe": probe}));
        plan(&crash, &world, 1).map(|plan| plan.probe.unwrap())
    };
    let found = planned(json!({})).unwrap();
    assert_eq!(found.service, "shop/y");
    assert_eq!(found.selector["app"], "web");
    let named = |name: &str| planned(json!({"service": name})).map(|probe| probe.service);
    assert_eq!(named("shop/z").unwrap(), "shop/z");
    assert_eq!(named("kube-system/a").unwrap(), "kube-system/a");
    assert_eq!(named("web").unwrap(), "default/web");
    let missing = named("z").unwrap_err();
    assert_eq!(
        missing.to_string(),
        "there is no Service default/z to probe"
    );
}

#[test]
fn a_readiness_probe_tells_how_to_ask() {
    let mut world = world();
    let spec = json!({"nodeName": "n1", "containers": [{"name": "main",
        "ports": [{"name": "web", "containerPort": 3000}],
        "readinessProbe": {"httpGet": {"path": "/ready?full=1", "port": "web"}}}]});
    let mut asked = pod("a", "n1", "Ready");
    asked.spec = Some(serde_json::from_value(spec).unwrap());
    world.pods[2] = Arc::new(asked);
    let service = json!({"metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": "10.43.0.7", "selector": {"app": "web"},
            "ports": [{"port": 53, "protocol": "UDP"}, {"port": 9000, "targetPort": 3000}]}});
    world.services = vec![Arc::new(serde_json::from_value(service).unwrap())];
    let target = |more: Value| {
        plan(&web("pod-delete", more), &world, 1)
            .unwrap()
            .probe
            .unwrap()
            .target
    };
    let found = target(json!({}));
    assert_eq!(
        (found.scheme, found.port, found.path.as_str()),
        (ProbeScheme::Http, 9000, "/ready?full=1")
    );
    let told = target(json!({"probe": {"path": "/", "scheme": "TCP"}}));
    assert_eq!((told.scheme, told.path.as_str()), (ProbeScheme::Tcp, "/"));
    let elsewhere = target(json!({"probe": {"host": "example.net", "port": 8080}}));
    assert_eq!(
        (elsewhere.host.as_str(), elsewhere.scheme),
        ("example.net", ProbeScheme::Http)
    );
    let wrong = web(
        "pod-delete",
        json!({"probe": {"service": "web", "port": 1}}),
    );
    assert_eq!(
        refusal(&wrong, &world),
        "the Service default/web can't be probed: it has no such TCP port"
    );
}

#[test]
fn nobody_is_hit_twice_at_a_time() {
    let world = world();
    let mut running = web("pod-delete", json!({"count": 3}));
    running.metadata.name = Some("first".into());
    running.metadata.uid = Some("1".into());
    let planned = plan(&running, &world, 1).unwrap();
    running.status = Some(skiff_dev::DrillStatus {
        plan: Some(planned.clone()),
        ..Default::default()
    });
    let mut second = web("container-kill", json!({}));
    second.metadata.uid = Some("2".into());
    let mine = plan(&second, &world, 1).unwrap();
    let refused = refuse_overlap(&mine, &second, [&running].into_iter()).unwrap_err();
    assert!(
        refused
            .to_string()
            .ends_with("is a victim of the drill first, which is not over")
    );
    assert_eq!(
        refuse_overlap(&planned, &running, [&running].into_iter()),
        Ok(())
    );
    running.status = None;
    assert_eq!(
        refuse_overlap(&mine, &second, [&running].into_iter()),
        Ok(())
    );
}
