//! The status of a ReplicaSet, from its pods.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::controllers::pod_state;

const REPLICA_FAILURE: &str = "ReplicaFailure";

/// What there is of a set's pods.
pub(super) struct Observed<'a> {
    pub(super) active: &'a [Arc<Pod>],
    pub(super) terminating: usize,
    pub(super) now: Timestamp,
}

/// The status to write. `failure` is why pods could not be created or deleted.
pub(super) fn compute(
    set: &ReplicaSet,
    observed: &Observed<'_>,
    failure: Option<&str>,
) -> ReplicaSetStatus {
    let spec = &set.spec;
    let template = spec.template.as_ref().and_then(|t| t.metadata.as_ref());
    let template_labels = template.and_then(|meta| meta.labels.as_ref());
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let count = |counts: &dyn Fn(&Pod) -> bool| {
        observed.active.iter().filter(|pod| counts(pod)).count() as i32
    };
    let fully_labeled = count(&|pod| {
        let labels = pod.metadata.labels.as_ref();
        template_labels
            .into_iter()
            .flatten()
            .all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
    });
    let ready = count(&pod_state::is_ready);
    let available =
        count(&|pod| pod_state::available_in(pod, min_ready, observed.now) == Some(Duration::ZERO));
    let before = set
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone());
    ReplicaSetStatus {
        replicas: observed.active.len() as i32,
        fully_labeled_replicas: Some(fully_labeled),
        ready_replicas: Some(ready),
        available_replicas: Some(available),
        terminating_replicas: Some(observed.terminating as i32),
        observed_generation: set.metadata.generation,
        conditions: conditions(
            before.unwrap_or_default(),
            failure,
            (observed.active.len() as i32) < spec.replicas.unwrap_or(1),
            observed.now,
        ),
    }
    .with_zeroes_omitted()
}

fn conditions(
    mut conditions: Vec<ReplicaSetCondition>,
    failure: Option<&str>,
    too_few: bool,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let has_failed = conditions
        .iter()
        .any(|c| c.type_.as_deref() == Some(REPLICA_FAILURE));
    match failure {
        Some(message) if !has_failed => conditions.push(ReplicaSetCondition {
            type_: Some(REPLICA_FAILURE.into()),
            status: Some("True".into()),
            reason: Some(
                if too_few {
                    "FailedCreate"
                } else {
                    "FailedDelete"
                }
                .into(),
            ),
            message: Some(message.into()),
            last_transition_time: Some(Time(now)),
        }),
        None => conditions.retain(|c| c.type_.as_deref() != Some(REPLICA_FAILURE)),
        Some(_) => {}
    }
    (!conditions.is_empty()).then_some(conditions)
}

trait OmitZeroes {
    fn with_zeroes_omitted(self) -> Self;
}

impl OmitZeroes for ReplicaSetStatus {
    /// Kubernetes leaves these numbers out when they are zero.
    fn with_zeroes_omitted(mut self) -> Self {
        for number in [
            &mut self.fully_labeled_replicas,
            &mut self.ready_replicas,
            &mut self.available_replicas,
        ] {
            *number = number.filter(|n| *n != 0);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodCondition, PodStatus};

    use super::*;

    fn pod(ready_for: Option<i64>, now: Timestamp) -> Arc<Pod> {
        let ready = |seconds| PodCondition {
            type_: "Ready".into(),
            status: "True".into(),
            last_transition_time: Some(Time(now - jiff::SignedDuration::from_secs(seconds))),
            ..Default::default()
        };
        Arc::new(Pod {
            status: ready_for.map(|seconds| PodStatus {
                conditions: Some(vec![ready(seconds)]),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    fn set(replicas: i32, min_ready: i32) -> ReplicaSet {
        let mut set = ReplicaSet::default();
        set.metadata.generation = Some(7);
        set.spec.replicas = Some(replicas);
        set.spec.min_ready_seconds = Some(min_ready);
        set
    }

    #[test]
    fn pods_are_counted() {
        let now = Timestamp::from_second(1_000).unwrap();
        let pods = [pod(Some(5), now), pod(Some(30), now), pod(None, now)];
        let observed = Observed {
            active: &pods,
            terminating: 2,
            now,
        };
        let status = compute(&set(3, 10), &observed, None);
        assert_eq!(status.replicas, 3);
        assert_eq!(status.fully_labeled_replicas, Some(3));
        assert_eq!(status.ready_replicas, Some(2));
        assert_eq!(status.available_replicas, Some(1));
        assert_eq!(status.terminating_replicas, Some(2));
        assert_eq!(status.observed_generation, Some(7));
        assert_eq!(status.conditions, None);
    }

    #[test]
    fn a_failure_is_a_condition_until_it_is_over() {
        let now = Timestamp::from_second(1_000).unwrap();
        let observed = Observed {
            active: &[],
            terminating: 0,
            now,
        };
        let mut set = set(3, 0);
        let status = compute(&set, &observed, Some("exceeded quota"));
        let condition = &status.conditions.as_ref().unwrap()[0];
        assert_eq!(condition.reason.as_deref(), Some("FailedCreate"));
        assert_eq!(condition.message.as_deref(), Some("exceeded quota"));
        set.status = Some(status);
        assert_eq!(compute(&set, &observed, None).conditions, None);
    }
}
