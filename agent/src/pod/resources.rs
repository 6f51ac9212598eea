//! From requests and limits to the kernel's numbers, as the kubelet computes them.
//!
//! QoS class, cgroup limits of each container and of the pod, and the OOM score.
//! Sources: kubelet `qos`, `cm/helpers_linux.go` (ResourceConfigForPod),
//! `kuberuntime_container_linux.go`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::quantity;
use crate::runtime::types::{CgroupResources, QosClass};

/// Microseconds in one period of the CPU quota.
const QUOTA_PERIOD: i64 = 100_000;
const MIN_QUOTA: i64 = 1_000;
const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;
const SHARES_PER_CPU: i64 = 1024;

/// Which list of a container's resources is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    Request,
    Limit,
}

/// The container's request or limit of a resource: thousandths for `cpu`, units else. A missing
/// request is the limit, as the API server defaults it.
pub fn amount(container: &Container, bound: Bound, resource: &str) -> Option<i64> {
    let resources = container.resources.as_ref()?;
    let limit = lookup(resources.limits.as_ref(), resource);
    match bound {
        Bound::Limit => limit,
        Bound::Request => lookup(resources.requests.as_ref(), resource).or(limit),
    }
}

fn lookup(list: Option<&BTreeMap<String, Quantity>>, resource: &str) -> Option<i64> {
    let quantity = list?.get(resource)?;
    if resource == "cpu" {
        quantity::milli(quantity)
    } else {
        quantity::units(quantity)
    }
}

/// The pod's class, from the containers that count for it (init containers do too).
pub fn qos_class(pod: &Pod) -> QosClass {
    let mut any = false;
    let mut guaranteed = true;
    for container in all_containers(pod) {
        for resource in ["cpu", "memory"] {
            let request = amount(container, Bound::Request, resource).filter(|v| *v != 0);
            let limit = amount(container, Bound::Limit, resource).filter(|v| *v != 0);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// The class as the API writes it.
pub fn qos_name(class: QosClass) -> &'static str {
    match class {
        QosClass::Guaranteed => "Guaranteed",
        QosClass::Burstable => "Burstable",
        QosClass::BestEffort => "BestEffort",
    }
}

/// Limits of one container's cgroup.
pub fn container_cgroup(container: &Container) -> CgroupResources {
    let cpu = amount(container, Bound::Request, "cpu").unwrap_or(0);
    CgroupResources {
        cpu_shares: Some(shares(cpu)),
        cpu_quota: amount(container, Bound::Limit, "cpu").and_then(quota),
        memory_limit_bytes: amount(container, Bound::Limit, "memory").filter(|v| *v > 0),
        pids_limit: None,
    }
}

/// Limits of the pod's own cgroup: sums of its containers' where every one has a limit.
pub fn pod_cgroup(pod: &Pod) -> CgroupResources {
    let request = pod_sum(pod, Bound::Request, "cpu").total;
    let cpu = pod_sum(pod, Bound::Limit, "cpu");
    let memory = pod_sum(pod, Bound::Limit, "memory");
    let class = qos_class(pod);
    CgroupResources {
        cpu_shares: Some(match class {
            QosClass::BestEffort => MIN_SHARES,
            _ => shares(request),
        }),
        cpu_quota: cpu.complete.then(|| quota(cpu.total)).flatten(),
        memory_limit_bytes: (memory.complete && memory.total > 0).then_some(memory.total),
        pids_limit: None,
    }
}

/// What the pod's containers need together: all that run at the same time, or the largest
/// init container with the sidecars before it, whichever is more (KEP-753).
pub struct PodSum {
    pub total: i64,
    /// Every container declares an amount.
    pub complete: bool,
}

/// Adds a resource up over the pod.
pub fn pod_sum(pod: &Pod, bound: Bound, resource: &str) -> PodSum {
    let mut complete = true;
    let mut take = |container: &Container| {
        let value = amount(container, bound, resource).filter(|v| *v > 0);
        complete &= value.is_some();
        value.unwrap_or(0)
    };
    let Some(spec) = &pod.spec else {
        return PodSum {
            total: 0,
            complete: false,
        };
    };
    let mut running: i64 = spec.containers.iter().map(&mut take).sum();
    let (mut sidecars, mut init_peak) = (0, 0);
    for container in spec.init_containers.iter().flatten() {
        let value = take(container);
        if is_sidecar(container) {
            sidecars += value;
            running += value;
            init_peak = init_peak.max(sidecars);
        } else {
            init_peak = init_peak.max(sidecars + value);
        }
    }
    let overhead = lookup(spec.overhead.as_ref(), resource).unwrap_or(0);
    PodSum {
        total: running.max(init_peak) + overhead,
        complete,
    }
}

/// An init container that keeps running beside the others.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The kubelet's OOM score adjustment of a container on a node with `memory_capacity` bytes.
pub fn oom_score_adj(pod: &Pod, container: &Container, memory_capacity: i64) -> i32 {
    let critical = pod
        .spec
        .as_ref()
        .and_then(|s| s.priority)
        .is_some_and(|p| p >= 2_000_000_000);
    match qos_class(pod) {
        _ if critical => -997,
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let request = amount(container, Bound::Request, "memory").unwrap_or(0);
            let per_mille = 1000_i128 * i128::from(request) / i128::from(memory_capacity.max(1));
            i32::try_from((1000 - per_mille).clamp(3, 999)).unwrap_or(999)
        }
    }
}

fn shares(milli_cpu: i64) -> u64 {
    let shares = milli_cpu.max(0).saturating_mul(SHARES_PER_CPU) / 1000;
    (shares.unsigned_abs()).clamp(MIN_SHARES, MAX_SHARES)
}

fn quota(milli_cpu: i64) -> Option<i64> {
    (milli_cpu > 0).then(|| (milli_cpu.saturating_mul(QUOTA_PERIOD) / 1000).max(MIN_QUOTA))
}

fn all_containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    pod.spec.iter().flat_map(|spec| {
        spec.containers
            .iter()
            .chain(spec.init_containers.iter().flatten())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(containers: serde_json::Value, init: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p"},
            "spec": {"containers": containers, "initContainers": init},
        }))
        .unwrap()
    }

    fn container(requests: serde_json::Value, limits: serde_json::Value) -> serde_json::Value {
        json!({"name": "c", "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn classes() {
        let both = json!({"cpu": "100m", "memory": "64Mi"});
        let cases = [
            (
                json!([container(json!({}), json!({}))]),
                QosClass::BestEffort,
            ),
            (
                json!([container(json!({}), both.clone())]),
                QosClass::Guaranteed,
            ),
            (
                json!([container(json!({"cpu": "50m"}), both.clone())]),
                QosClass::Burstable,
            ),
            (
                json!([container(json!({}), both), container(json!({}), json!({}))]),
                QosClass::Burstable,
            ),
        ];
        for (containers, class) in cases {
            assert_eq!(
                qos_class(&pod(containers.clone(), json!([]))),
                class,
                "{containers}"
            );
        }
    }

    #[test]
    fn container_numbers() {
        let pod = pod(
            json!([container(
                json!({"cpu": "250m", "memory": "32Mi"}),
                json!({"cpu": "1", "memory": "64Mi"})
            )]),
            json!([]),
        );
        let container = &pod.spec.as_ref().unwrap().containers[0];
        assert_eq!(
            container_cgroup(container),
            CgroupResources {
                cpu_shares: Some(256),
                cpu_quota: Some(100_000),
                memory_limit_bytes: Some(64 << 20),
                pids_limit: None,
            }
        );
        assert_eq!(oom_score_adj(&pod, container, 1 << 30), 1000 - 31);
    }

    #[test]
    fn tiny_amounts_are_raised_to_the_kernel_minimum() {
        assert_eq!(shares(0), 2);
        assert_eq!(shares(1_000_000_000), 262_144);
        assert_eq!(quota(1), Some(1000));
        assert_eq!(quota(0), None);
    }

    #[test]
    fn pod_limits_need_every_container_to_have_one() {
        let limited = container(json!({}), json!({"cpu": "500m", "memory": "64Mi"}));
        let free = container(json!({}), json!({}));
        let full = pod_cgroup(&pod(json!([limited, limited]), json!([])));
        assert_eq!(full.memory_limit_bytes, Some(128 << 20));
        assert_eq!(full.cpu_quota, Some(100_000));
        let part = pod_cgroup(&pod(json!([limited, free]), json!([])));
        assert_eq!(part.memory_limit_bytes, None);
        assert_eq!(part.cpu_quota, None);
    }

    #[test]
    fn init_containers_count_by_their_peak_and_sidecars_always() {
        let small = json!({"name": "m", "resources": {"requests": {"cpu": "100m"}}});
        let sidecar = json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}});
        let init = json!({"name": "i", "resources": {"requests": {"cpu": "200m"}}});
        let pod = pod(json!([small]), json!([sidecar, init]));
        assert_eq!(pod_sum(&pod, Bound::Request, "cpu").total, 250);
    }

    #[test]
    fn oom_scores() {
        let best_effort = pod(json!([container(json!({}), json!({}))]), json!([]));
        let guaranteed = pod(
            json!([container(json!({}), json!({"cpu": "1", "memory": "1Gi"}))]),
            json!([]),
        );
        let first = |pod: &Pod| pod.spec.as_ref().unwrap().containers[0].clone();
        assert_eq!(
            oom_score_adj(&best_effort, &first(&best_effort), 1 << 30),
            1000
        );
        assert_eq!(
            oom_score_adj(&guaranteed, &first(&guaranteed), 1 << 30),
            -997
        );
    }
}
