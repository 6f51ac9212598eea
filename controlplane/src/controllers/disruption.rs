//! The disruption controller: how many pods of each PodDisruptionBudget may be evicted now.
//!
//!     a budget, or a pod of its namespace, changed -> pods that it selects
//!         -> how many there should be, must be, are healthy -> status

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::PostParams;
use kube::core::{Selector, SelectorExt};
use kube::{Api, Client};

use super::Informers;
use super::informer::{Change, Index, Informer, ObjectKey};
use super::ownership::controller_ref;
use super::pod_state::{is_finished, is_ready, is_terminating};
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next};
use super::tasks::Tasks;

/// An eviction that its pod does not show by then did not happen.
const DISRUPTION_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) fn start(client: Client, informers: &Informers, tasks: &Tasks) {
    let queue = WorkQueue::default();
    let changed = queue.clone();
    informers.budgets.subscribe(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            changed.add(ObjectKey::of(&**change.object()));
        }
    });
    let (pods, budgets) = (queue.clone(), informers.budgets.clone());
    informers.pods.subscribe(move |change| {
        let namespace = change.object().metadata.namespace.as_deref();
        for budget in budgets.by_index(Index::Namespace, namespace.unwrap_or_default()) {
            pods.add(ObjectKey::of(&*budget));
        }
    });
    let controller = Arc::new(DisruptionController {
        client,
        budgets: informers.budgets.clone(),
        pods: informers.pods.clone(),
        replica_sets: informers.replica_sets.clone(),
        deployments: informers.deployments.clone(),
    });
    runner::run(controller, &queue, 1, tasks);
}

struct DisruptionController {
    client: Client,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    replica_sets: Informer<ReplicaSet>,
    deployments: Informer<Deployment>,
}

/// What a budget's pods come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    expected: i32,
    desired: i32,
    current: i32,
}

impl Controller for DisruptionController {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "disruption-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        self.pods.synced().await;
        self.replica_sets.synced().await;
        self.deployments.synced().await;
        let Some(budget) = self.budgets.get(key) else {
            return Ok(Next::Wait);
        };
        let pods = self.pods_of(&budget, &key.namespace);
        let now = Timestamp::now();
        let (disrupted, recheck) = still_disrupted(&budget, &pods, now);
        let healthy = |pod: &&Arc<Pod>| {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            is_ready(pod) && !is_terminating(pod) && !disrupted.contains_key(name)
        };
        let current = pods.iter().filter(healthy).count();
        let (expected, desired) = self.wanted(&budget, &pods);
        let counts = Counts {
            expected,
            desired,
            current: i32::try_from(current).unwrap_or(i32::MAX),
        };
        let status = status(&budget, counts, disrupted, now);
        if budget.status.as_ref() != Some(&status) {
            let mut written = PodDisruptionBudget::clone(&budget);
            written.status = Some(status);
            let api: Api<PodDisruptionBudget> =
                Api::namespaced(self.client.clone(), &key.namespace);
            api.replace_status(&key.name, &PostParams::default(), &written)
                .await?;
        }
        Ok(recheck.map_or(Next::Wait, Next::After))
    }
}

impl DisruptionController {
    fn pods_of(&self, budget: &PodDisruptionBudget, namespace: &str) -> Vec<Arc<Pod>> {
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
        // No selector selects nothing, an empty one everything.
        let selector = selector.and_then(|selector| Selector::try_from(selector).ok());
        let Some(selector) = selector else {
            return Vec::new();
        };
        let none = BTreeMap::new();
        let selected = |pod: &Arc<Pod>| {
            pod.metadata.namespace.as_deref() == Some(namespace)
                && !is_finished(pod)
                && selector.matches(pod.metadata.labels.as_ref().unwrap_or(&none))
        };
        self.pods.list().into_iter().filter(selected).collect()
    }

    /// How many pods there should be, and how many must be healthy.
    fn wanted(&self, budget: &PodDisruptionBudget, pods: &[Arc<Pod>]) -> (i32, i32) {
        let spec = budget.spec.as_ref();
        let least = spec.and_then(|spec| spec.min_available.as_ref());
        let most = spec.and_then(|spec| spec.max_unavailable.as_ref());
        match (least, most) {
            (Some(IntOrString::Int(least)), _) => (pods.len() as i32, *least),
            (Some(least), _) => {
                let expected = self.scale(pods);
                (expected, share(least, expected))
            }
            (None, Some(most)) => {
                let expected = self.scale(pods);
                (expected, (expected - share(most, expected)).max(0))
            }
            (None, None) => (pods.len() as i32, 1),
        }
    }

    /// The replicas that the pods' owners want together.
    fn scale(&self, pods: &[Arc<Pod>]) -> i32 {
        let mut owners = HashSet::new();
        let mut total = 0;
        for pod in pods {
            let Some(owner) = controller_ref(&**pod) else {
                continue;
            };
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let Some(set) = self
                .replica_sets
                .get(&ObjectKey::new(namespace, &owner.name))
            else {
                continue;
            };
            let deployment = controller_ref(&*set).and_then(|owner| {
                self.deployments
                    .get(&ObjectKey::new(namespace, &owner.name))
            });
            let (uid, replicas) = match &deployment {
                Some(deployment) => (deployment.metadata.uid.clone(), deployment.spec.replicas),
                None => (set.metadata.uid.clone(), set.spec.replicas),
            };
            if owners.insert(uid) {
                total += replicas.unwrap_or(1);
            }
        }
        total
    }
}

/// A number, or a percentage rounded up.
fn share(value: &IntOrString, of: i32) -> i32 {
    match value {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let share = (i64::from(of) * percent + 99) / 100;
            i32::try_from(share).unwrap_or(i32::MAX)
        }
    }
}

/// Evictions whose pods don't show them yet, and when to look again.
fn still_disrupted(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let known = budget
        .status
        .as_ref()
        .and_then(|s| s.disrupted_pods.as_ref());
    let mut disrupted = BTreeMap::new();
    let mut recheck: Option<Duration> = None;
    for (name, since) in known.into_iter().flatten() {
        let pod = pods
            .iter()
            .find(|pod| pod.metadata.name.as_ref() == Some(name));
        if pod.is_none_or(|pod| is_terminating(pod)) {
            continue;
        }
        let age = Duration::try_from(now.duration_since(since.0)).unwrap_or(Duration::ZERO);
        let left = DISRUPTION_TIMEOUT.saturating_sub(age);
        if !left.is_zero() {
            disrupted.insert(name.clone(), since.clone());
            recheck = Some(recheck.map_or(left, |earliest| earliest.min(left)));
        }
    }
    (disrupted, recheck)
}

fn status(
    budget: &PodDisruptionBudget,
    counts: Counts,
    disrupted: BTreeMap<String, Time>,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    let allowed = match counts.expected {
        ..=0 => 0,
        _ => (counts.current - counts.desired).max(0),
    };
    let (reason, value) = match allowed {
        0 => ("InsufficientPods", "False"),
        _ => ("SufficientPods", "True"),
    };
    let before = budget.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut conditions = before.into_iter().flatten();
    let since = conditions
        .find(|c| c.type_ == "DisruptionAllowed" && c.status == value)
        .map(|c| c.last_transition_time.clone());
    PodDisruptionBudgetStatus {
        conditions: Some(vec![Condition {
            type_: "DisruptionAllowed".into(),
            status: value.into(),
            reason: reason.into(),
            message: String::new(),
            observed_generation: budget.metadata.generation,
            last_transition_time: since
                .unwrap_or_else(|| Time(Timestamp::from_second(now.as_second()).unwrap_or(now))),
        }]),
        current_healthy: Some(counts.current),
        desired_healthy: Some(counts.desired),
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        disruptions_allowed: Some(allowed),
        expected_pods: Some(counts.expected),
        observed_generation: budget.metadata.generation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_rounded_up() {
        let percent = |text: &str| IntOrString::String(text.into());
        assert_eq!(share(&percent("50%"), 3), 2);
        assert_eq!(share(&percent("0%"), 3), 0);
        assert_eq!(share(&percent("100%"), 3), 3);
        assert_eq!(share(&IntOrString::Int(2), 3), 2);
    }

    #[test]
    fn what_may_go_is_what_is_healthy_beyond_what_must_be() {
        let allowed = |expected, desired, current| {
            let counts = Counts {
                expected,
                desired,
                current,
            };
            let now = Timestamp::UNIX_EPOCH;
            let status = status(
                &PodDisruptionBudget::default(),
                counts,
                BTreeMap::new(),
                now,
            );
            status.disruptions_allowed.unwrap()
        };
        assert_eq!(allowed(3, 2, 3), 1);
        assert_eq!(allowed(3, 3, 3), 0);
        assert_eq!(allowed(3, 2, 1), 0);
        assert_eq!(allowed(0, 0, 0), 0);
    }

    #[test]
    fn an_eviction_that_nobody_sees_is_forgotten() {
        let pod = |name: &str| {
            let mut pod = Pod::default();
            pod.metadata.name = Some(name.into());
            Arc::new(pod)
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut budget = PodDisruptionBudget::default();
        let disrupted = [("a", 0), ("b", 100), ("gone", 100)];
        let disrupted = disrupted.map(|(name, second)| (name.to_string(), Time(at(second))));
        budget.status = Some(PodDisruptionBudgetStatus {
            disrupted_pods: Some(disrupted.into()),
            ..Default::default()
        });
        let (left, recheck) = still_disrupted(&budget, &[pod("a"), pod("b")], at(130));
        assert_eq!(left.keys().collect::<Vec<_>>(), ["b"]);
        assert_eq!(recheck, Some(Duration::from_secs(90)));
    }
}
