use std::sync::Arc;

use serde_json::{Value, json};

use super::super::{Preemption, Refusal, Supposition};
use super::*;
use crate::scheduler::cycle::tests::node;

/// Nodes with their zones; "" is none.
fn cluster(nodes: &[(&str, &str)]) -> Cluster {
    let mut cluster = Cluster::default();
    for (name, zone) in nodes {
        let mut node = node(name, &[]);
        let labels = node.metadata.labels.get_or_insert_default();
        labels.insert(HOSTNAME.into(), name.to_string());
        if !zone.is_empty() {
            labels.insert(ZONE.into(), zone.to_string());
        }
        cluster.set_node(Arc::new(node));
    }
    cluster
}

fn needs(name: &str, app: &str, spec: Value) -> Needs {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": app}},
        "spec": {"containers": []},
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    Needs::of(&serde_json::from_value(pod).unwrap())
}

fn constraint(key: &str, skew: i64, when: &str, more: Value) -> Value {
    let mut constraint = json!({
        "topologyKey": key, "maxSkew": skew, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": "web"}},
    });
    for (key, value) in more.as_object().unwrap() {
        constraint[key] = value.clone();
    }
    constraint
}

fn zoned(more: Value) -> Value {
    json!({"topologySpreadConstraints": [constraint(ZONE, 1, "DoNotSchedule", more)]})
}

fn place(cluster: &mut Cluster, app: &str, nodes: &[&str]) {
    for (index, node) in nodes.iter().enumerate() {
        let name = format!("{app}-{node}-{index}");
        cluster.assume(&needs(&name, app, json!({})), node);
    }
}

fn plugin() -> PodTopologySpread {
    PodTopologySpread::new(&Listers::empty())
}

fn check(cluster: &Cluster, pod: &Needs) -> Vec<Result<(), Refusal>> {
    let plugin = plugin();
    let filter = plugin.filter(pod, cluster).unwrap();
    let nodes = cluster.nodes().iter();
    nodes.map(|node| filter(node, Supposition::NONE)).collect()
}

fn feasible(cluster: &Cluster, pod: &Needs) -> Vec<bool> {
    check(cluster, pod).iter().map(Result::is_ok).collect()
}

#[test]
fn a_place_may_not_be_fuller_than_the_emptiest_by_more_than_the_skew() {
    let mut cluster = cluster(&[("n1", "a"), ("n2", "a"), ("n3", "b"), ("n4", "")]);
    let pod = needs("p", "web", zoned(json!({})));
    assert_eq!(feasible(&cluster, &pod), [true, true, true, false]);
    place(&mut cluster, "web", &["n1"]);
    place(&mut cluster, "other", &["n3", "n3"]);
    assert_eq!(feasible(&cluster, &pod), [false, false, true, false]);
    let refusals = check(&cluster, &pod);
    let refusal = refusals[0].as_ref().unwrap_err();
    assert_eq!(
        refusal.reasons,
        ["node(s) didn't match pod topology spread constraints"]
    );
    assert_eq!(refusal.preemption, Preemption::MayHelp);
    let refusal = refusals[3].as_ref().unwrap_err();
    assert_eq!(
        refusal.reasons,
        ["node(s) didn't match pod topology spread constraints (missing required label)"]
    );
    assert_eq!(refusal.preemption, Preemption::CannotHelp);
    place(&mut cluster, "web", &["n3"]);
    assert_eq!(feasible(&cluster, &pod), [true, true, true, false]);
}

#[test]
fn with_too_few_places_the_emptiest_has_none() {
    let mut cluster = cluster(&[("n1", "a"), ("n2", "b")]);
    place(&mut cluster, "web", &["n1", "n2"]);
    let pod = needs("p", "web", zoned(json!({"minDomains": 3})));
    assert_eq!(feasible(&cluster, &pod), [false, false]);
    let pod = needs("p", "web", zoned(json!({"minDomains": 2})));
    assert_eq!(feasible(&cluster, &pod), [true, true]);
}

#[test]
fn nodes_that_the_pod_cannot_use_count_only_where_it_says_so() {
    let mut cluster = cluster(&[("n1", "a"), ("n2", "b")]);
    let mut tainted = node("n3", &[]);
    let labels = [(ZONE.to_string(), "c".to_string())];
    tainted.metadata.labels = Some(labels.into());
    tainted.spec.get_or_insert_default().taints = Some(vec![k8s_openapi::api::core::v1::Taint {
        key: "gpu".into(),
        effect: "NoSchedule".into(),
        ..Default::default()
    }]);
    cluster.set_node(Arc::new(tainted));
    place(&mut cluster, "web", &["n1", "n2"]);
    let pod = needs("p", "web", zoned(json!({})));
    assert_eq!(feasible(&cluster, &pod), [false, false, true]);
    let pod = needs("p", "web", zoned(json!({"nodeTaintsPolicy": "Honor"})));
    assert_eq!(feasible(&cluster, &pod), [true, true, true]);
    // By default, nodes that its selector rules out don't count.
    let mut spec = zoned(json!({}));
    spec["nodeSelector"] = json!({ZONE: "a"});
    assert!(feasible(&cluster, &needs("p", "web", spec.clone()))[0]);
    spec["topologySpreadConstraints"][0]["nodeAffinityPolicy"] = json!("Ignore");
    assert!(!feasible(&cluster, &needs("p", "web", spec))[0]);
}

#[test]
fn it_is_seen_what_would_be_if_pods_were_gone_or_came() {
    let mut cluster = cluster(&[("n1", "a"), ("n2", "b")]);
    place(&mut cluster, "web", &["n1"]);
    let there = needs("web-n1-0", "web", json!({})).footprint;
    let pod = needs("p", "web", zoned(json!({})));
    let plugin = plugin();
    let filter = plugin.filter(&pod, &cluster).unwrap();
    let (first, second) = (&cluster.nodes()[0], &cluster.nodes()[1]);
    let there = [there];
    let gone = Supposition {
        gone: &there,
        come: &[],
    };
    assert!(filter(first, Supposition::NONE).is_err());
    assert!(filter(first, gone).is_ok());
    let twice = [there[0].clone(), there[0].clone()];
    let come = Supposition {
        gone: &[],
        come: &twice,
    };
    assert!(filter(second, Supposition::NONE).is_ok());
    assert!(filter(second, come).is_err());
}

#[test]
fn preferences_rank_the_emptiest_place_highest() {
    let mut cluster = cluster(&[("n1", "a"), ("n2", "a"), ("n3", "b")]);
    place(&mut cluster, "web", &["n1", "n2"]);
    let soft = constraint(ZONE, 1, "ScheduleAnyway", json!({}));
    let pod = needs("p", "web", json!({"topologySpreadConstraints": [soft]}));
    assert!(plugin().filter(&pod, &cluster).is_none());
    let nodes: Vec<&NodeInfo> = cluster.nodes().iter().collect();
    let scores = plugin().score(&pod, &cluster, &nodes);
    assert_eq!(scores, Some(vec![0, 0, 100]));
}

#[test]
fn who_says_nothing_is_spread_by_what_selects_it() {
    let mut cluster = cluster(&[("n1", ""), ("n2", ""), ("n3", "")]);
    place(&mut cluster, "web", &["n1", "n1", "n2"]);
    let pod = needs("p", "web", json!({}));
    let nodes: Vec<&NodeInfo> = cluster.nodes().iter().collect();
    assert_eq!(plugin().score(&pod, &cluster, &nodes), None);
    let listers = Listers::empty();
    listers.services.put(
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"selector": {"app": "web"}},
        }))
        .unwrap(),
    );
    let plugin = PodTopologySpread::new(&listers);
    // ln(5) for each pod and two for the skew: 5, 4 and 2.
    assert_eq!(
        plugin.score(&pod, &cluster, &nodes),
        Some(vec![40, 60, 100])
    );
    assert_eq!(
        plugin.score(&needs("p", "db", json!({})), &cluster, &nodes),
        None
    );
}

#[test]
fn changes_help_only_whom_they_concern() {
    let waiting = needs("p", "web", zoned(json!({})));
    let likeness = |app| needs("q", app, json!({})).footprint.likeness.clone();
    assert!(is_helped_by(&waiting, &likeness("web")));
    assert!(!is_helped_by(&waiting, &likeness("db")));
}
