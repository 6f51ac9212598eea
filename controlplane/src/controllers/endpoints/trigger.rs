//! When the change happened that endpoints tell of: the annotation by which the latency of the
//! network's programming is measured.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};

use crate::controllers::informer::ObjectKey;
use crate::controllers::pod_state::condition;

pub(super) const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// When each Service and its pods last changed, as of the last reconcile.
#[derive(Default)]
pub(super) struct TriggerTimes {
    services: Mutex<HashMap<ObjectKey, Times>>,
}

#[derive(Default, Clone, PartialEq)]
struct Times {
    service: Option<Timestamp>,
    pods: HashMap<Option<String>, Timestamp>,
}

impl TriggerTimes {
    /// The time of the first change since the last call; `None` when there was none that has a
    /// time (a pod's end has none).
    pub(super) fn observe(
        &self,
        key: &ObjectKey,
        service: &Service,
        pods: &[Arc<Pod>],
    ) -> Option<Timestamp> {
        let now = Times {
            service: service.metadata.creation_timestamp.as_ref().map(|t| t.0),
            pods: pods
                .iter()
                .filter_map(|pod| Some((pod.metadata.name.clone(), changed(pod)?)))
                .collect(),
        };
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        let before = services
            .insert(key.clone(), now.clone())
            .unwrap_or_default();
        let of_pods = now.pods.iter().filter(|(name, time)| {
            let before = before.pods.get(*name);
            before.is_none_or(|before| before < *time)
        });
        let of_service = now.service.filter(|_| now.service != before.service);
        of_pods.map(|(_, time)| *time).chain(of_service).min()
    }

    pub(super) fn forget(&self, key: &ObjectKey) {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        services.remove(key);
    }
}

fn changed(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, time: &str) -> Arc<Pod> {
        let pod = serde_json::json!({"metadata": {"name": name}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": time},
        ]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn the_first_of_the_new_changes_counts() {
        let times = TriggerTimes::default();
        let key = ObjectKey::new("default", "web");
        let service = Service::default();
        let at = |second: u32| format!("2026-01-01T00:00:0{second}Z");
        let seen = |pods: &[Arc<Pod>]| {
            let time = times.observe(&key, &service, pods);
            time.map(|time| time.to_string())
        };
        let (a, b) = (pod("a", &at(3)), pod("b", &at(2)));
        assert_eq!(seen(&[a.clone(), b.clone()]), Some(at(2)));
        assert_eq!(seen(&[a.clone(), b]), None);
        assert_eq!(seen(&[a.clone(), pod("b", &at(9))]), Some(at(9)));
        assert_eq!(seen(&[a]), None);
    }
}
