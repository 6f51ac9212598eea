//! Which pods go first when a ReplicaSet has too many.
//!
//! In this order: not bound to a node; pending, then unknown, then running; not ready; with
//! the lower deletion cost; on the node with more pods of the same owner; ready for a shorter
//! time; with more restarts; younger. Times count on a logarithmic scale, so that pods of
//! about the same age are told apart by chance (their uid) and not always the youngest goes.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::controllers::pod_state::{self, Phase};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// `count` of the active pods, the least wanted. `per_node` counts the pods on each node of
/// the set and its siblings.
pub(super) fn pods_to_delete(
    active: &[Arc<Pod>],
    per_node: &HashMap<String, usize>,
    count: usize,
    now: Timestamp,
) -> Vec<Arc<Pod>> {
    let mut pods = active.to_vec();
    if count < pods.len() {
        pods.sort_by(|a, b| less_wanted(a, b, per_node, now));
        pods.truncate(count);
    }
    pods
}

fn less_wanted(a: &Pod, b: &Pod, per_node: &HashMap<String, usize>, now: Timestamp) -> Ordering {
    let on_same_node = |pod: &Pod| {
        let node = pod_state::node_name(pod);
        node.and_then(|node| per_node.get(node))
            .copied()
            .unwrap_or(0)
    };
    pod_state::node_name(a)
        .is_some()
        .cmp(&pod_state::node_name(b).is_some())
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| pod_state::is_ready(a).cmp(&pod_state::is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| on_same_node(b).cmp(&on_same_node(a)))
        .then_with(|| match (pod_state::is_ready(a), pod_state::is_ready(b)) {
            (true, true) => younger_first(
                pod_state::ready_since(a),
                pod_state::ready_since(b),
                a,
                b,
                now,
            ),
            _ => Ordering::Equal,
        })
        .then_with(|| restarts(b).cmp(&restarts(a)))
        .then_with(|| younger_first(created(a), created(b), a, b, now))
}

fn phase_rank(pod: &Pod) -> u8 {
    match pod_state::phase(pod) {
        Phase::Pending => 0,
        Phase::Unknown => 1,
        _ => 2,
    }
}

/// An annotation that isn't a number costs nothing, as if it were absent.
fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations
        .and_then(|annotations| annotations.get(DELETION_COST))
        .and_then(|cost| cost.parse().ok())
        .unwrap_or(0)
}

fn restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|s| s.container_statuses.as_ref());
    statuses
        .into_iter()
        .flatten()
        .map(|status| status.restart_count)
        .max()
        .unwrap_or(0)
}

fn created(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.creation_timestamp.as_ref().map(|time| time.0)
}

fn younger_first(
    a_time: Option<Timestamp>,
    b_time: Option<Timestamp>,
    a: &Pod,
    b: &Pod,
    now: Timestamp,
) -> Ordering {
    if a_time == b_time {
        return Ordering::Equal;
    }
    match (a_time, b_time) {
        (None, _) => Ordering::Less,
        (_, None) => Ordering::Greater,
        (Some(a_time), Some(b_time)) => magnitude(now, a_time)
            .cmp(&magnitude(now, b_time))
            .then_with(|| a.metadata.uid.cmp(&b.metadata.uid)),
    }
}

/// The binary logarithm of an age in nanoseconds, rounded down; -1 for none.
fn magnitude(now: Timestamp, time: Timestamp) -> i64 {
    match u128::try_from(now.as_nanosecond() - time.as_nanosecond()) {
        Ok(age) if age > 0 => i64::from(age.ilog2()),
        _ => -1,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ContainerStatus, PodCondition, PodSpec, PodStatus};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    const NOW: i64 = 1_000_000;

    /// A running, ready pod on node `n1` that is as old as `age` seconds.
    fn pod(name: &str, age: i64) -> Pod {
        let at = Time(Timestamp::from_second(NOW - age).unwrap());
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(name.into());
        pod.metadata.creation_timestamp = Some(at.clone());
        pod.spec = Some(PodSpec {
            node_name: Some("n1".into()),
            ..Default::default()
        });
        pod.status = Some(PodStatus {
            phase: Some("Running".into()),
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: "True".into(),
                last_transition_time: Some(at),
                ..Default::default()
            }]),
            ..Default::default()
        });
        pod
    }

    fn changed(mut pod: Pod, change: impl FnOnce(&mut Pod)) -> Pod {
        change(&mut pod);
        pod
    }

    fn order(pods: Vec<Pod>, per_node: &[(&str, usize)]) -> Vec<String> {
        let mut pods: Vec<Arc<Pod>> = pods.into_iter().map(Arc::new).collect();
        let per_node = per_node.iter().map(|(n, c)| (n.to_string(), *c)).collect();
        let now = Timestamp::from_second(NOW).unwrap();
        pods.sort_by(|a, b| less_wanted(a, b, &per_node, now));
        pods.iter()
            .filter_map(|p| p.metadata.name.clone())
            .collect()
    }

    #[test]
    fn pods_go_in_the_documented_order() {
        let pods = vec![
            pod("old", 100_000),
            pod("young", 10),
            changed(pod("restarted", 100_000), |p| {
                p.status.as_mut().unwrap().container_statuses = Some(vec![ContainerStatus {
                    restart_count: 3,
                    ..Default::default()
                }]);
            }),
            changed(pod("cheap", 100_000), |p| {
                p.metadata.annotations =
                    Some([(DELETION_COST.to_string(), "-5".to_string())].into());
            }),
            changed(pod("not-ready", 100_000), |p| {
                p.status.as_mut().unwrap().conditions = None;
            }),
            changed(pod("pending", 100_000), |p| {
                let status = p.status.as_mut().unwrap();
                status.phase = Some("Pending".into());
                status.conditions = None;
            }),
            changed(pod("unbound", 100_000), |p| {
                p.spec.as_mut().unwrap().node_name = None;
                p.status = None;
            }),
        ];
        let expected = [
            "unbound",
            "pending",
            "not-ready",
            "cheap",
            "young",
            "old",
            "restarted",
        ];
        let sorted = order(pods, &[]);
        // `old` and `restarted` have been ready for the same time: the restarts decide.
        let mut expected = expected.map(String::from).to_vec();
        expected.swap(5, 6);
        assert_eq!(sorted, expected);
    }

    #[test]
    fn the_crowded_node_gives_first() {
        let elsewhere = changed(pod("a-elsewhere", 50), |p| {
            p.spec.as_mut().unwrap().node_name = Some("n2".into());
        });
        let pods = vec![elsewhere, pod("z-crowded", 50)];
        assert_eq!(
            order(pods, &[("n1", 2), ("n2", 1)]),
            ["z-crowded", "a-elsewhere"]
        );
    }

    #[test]
    fn pods_of_about_the_same_age_are_told_apart_by_uid() {
        let pods = vec![pod("b", 1000), pod("a", 1001)];
        assert_eq!(order(pods, &[]), ["a", "b"]);
    }

    #[test]
    fn as_many_as_asked_are_chosen() {
        let active: Vec<Arc<Pod>> = (0..5)
            .map(|i| Arc::new(pod(&i.to_string(), 1 << i)))
            .collect();
        let now = Timestamp::from_second(NOW).unwrap();
        let names: Vec<_> = pods_to_delete(&active, &HashMap::new(), 2, now)
            .iter()
            .filter_map(|p| p.metadata.name.clone())
            .collect();
        assert_eq!(names, ["0", "1"]);
        assert_eq!(pods_to_delete(&active, &HashMap::new(), 9, now).len(), 5);
    }
}
