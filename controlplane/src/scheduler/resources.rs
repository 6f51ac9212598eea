//! Amounts of resources, as integers that add and compare fast.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::resources::quantity::Quantity;

/// What a container counts for in scores when it names no request, so that pods without
/// requests still spread: a tenth of a core and 200 MB.
const DEFAULT_MILLI_CPU: i64 = 100;
const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// Amounts of each resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Resources {
    /// Thousandths of a core.
    pub(super) milli_cpu: i64,
    /// Bytes.
    pub(super) memory: i64,
    /// Bytes.
    pub(super) ephemeral_storage: i64,
    /// Number of pods; only a node has it.
    pub(super) pods: i64,
    /// Anything else (`example.com/gpu`, `hugepages-2Mi`), in whole units.
    pub(super) others: BTreeMap<String, i64>,
}

impl Resources {
    pub(super) fn parse(list: Option<&BTreeMap<String, Text>>) -> Self {
        let mut resources = Self::default();
        for (name, text) in list.into_iter().flatten() {
            // The API server refuses malformed quantities.
            let quantity = Quantity::parse(&text.0).unwrap_or(Quantity::ZERO);
            match name.as_str() {
                "cpu" => resources.milli_cpu = quantity.millis(),
                "memory" => resources.memory = quantity.units(),
                "ephemeral-storage" => resources.ephemeral_storage = quantity.units(),
                "pods" => resources.pods = quantity.units(),
                _ => {
                    resources.others.insert(name.clone(), quantity.units());
                }
            }
        }
        resources
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.combine(other, |a, b| a.saturating_add(b));
    }

    pub(super) fn subtract(&mut self, other: &Self) {
        self.combine(other, |a, b| a.saturating_sub(b));
    }

    fn raise_to(&mut self, other: &Self) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Self, with: impl Fn(i64, i64) -> i64) {
        self.milli_cpu = with(self.milli_cpu, other.milli_cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        self.pods = with(self.pods, other.pods);
        for (name, amount) in &other.others {
            let mine = self.others.entry(name.clone()).or_default();
            *mine = with(*mine, *amount);
        }
    }
}

/// What a pod asks for: all containers together or the largest step of its initialization,
/// whichever is more, and the pod's overhead.
pub(super) fn requested(pod: &Pod) -> Resources {
    total(pod, &|container| {
        let requests = container.resources.as_ref();
        Resources::parse(requests.and_then(|r| r.requests.as_ref()))
    })
}

/// As [`requested`], but containers that name no cpu or memory count for a default.
pub(super) fn requested_for_score(pod: &Pod) -> Resources {
    total(pod, &|container| {
        let requests = container.resources.as_ref();
        let requests = requests.and_then(|r| r.requests.as_ref());
        let has = |name| requests.is_some_and(|requests| requests.contains_key(name));
        let mut resources = Resources::parse(requests);
        if !has("cpu") {
            resources.milli_cpu = DEFAULT_MILLI_CPU;
        }
        if !has("memory") {
            resources.memory = DEFAULT_MEMORY;
        }
        resources
    })
}

fn total(pod: &Pod, of: &dyn Fn(&Container) -> Resources) -> Resources {
    let Some(spec) = &pod.spec else {
        return Resources::default();
    };
    let mut running = Resources::default();
    for container in &spec.containers {
        running.add(&of(container));
    }
    // Sidecars (init containers that restart always) stay beside everything after them.
    let mut sidecars = Resources::default();
    let mut initializing = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let mut step = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&step);
            step = sidecars.clone();
        } else {
            step.add(&sidecars);
        }
        initializing.raise_to(&step);
    }
    running.add(&sidecars);
    running.raise_to(&initializing);
    // Requests of the pod as a whole stand in for the sum of its containers'.
    if let Some(whole) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let stated = Resources::parse(Some(whole));
        if whole.contains_key("cpu") {
            running.milli_cpu = stated.milli_cpu;
        }
        if whole.contains_key("memory") {
            running.memory = stated.memory;
        }
        running.others.extend(stated.others);
    }
    running.add(&Resources::parse(spec.overhead.as_ref()));
    running
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{PodSpec, ResourceRequirements};

    use super::*;

    fn list(items: &[(&str, &str)]) -> BTreeMap<String, Text> {
        let items = items.iter();
        items
            .map(|(n, q)| (n.to_string(), Text(q.to_string())))
            .collect()
    }

    fn container(items: &[(&str, &str)]) -> Container {
        Container {
            resources: Some(ResourceRequirements {
                requests: Some(list(items)),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn initialization_counts_when_it_needs_more_than_running() {
        let mut sidecar = container(&[("cpu", "200m")]);
        sidecar.restart_policy = Some("Always".into());
        let pod = Pod {
            spec: Some(PodSpec {
                init_containers: Some(vec![
                    container(&[("cpu", "3"), ("memory", "64Mi")]),
                    sidecar,
                    container(&[("cpu", "100m")]),
                ]),
                containers: vec![
                    container(&[("cpu", "1"), ("memory", "1Gi"), ("example.com/gpu", "1")]),
                    container(&[("cpu", "500m")]),
                ],
                overhead: Some(list(&[("cpu", "50m")])),
                ..Default::default()
            }),
            ..Default::default()
        };
        let requested = requested(&pod);
        assert_eq!(requested.milli_cpu, 3050);
        assert_eq!(requested.memory, 1 << 30);
        assert_eq!(requested.others.get("example.com/gpu"), Some(&1));
        let scored = requested_for_score(&pod);
        assert_eq!(scored.memory, (1 << 30) + 2 * DEFAULT_MEMORY);
    }

    #[test]
    fn what_is_added_can_be_taken_away() {
        let mut sum = Resources::parse(Some(&list(&[("cpu", "2"), ("pods", "110")])));
        let before = sum.clone();
        let part = Resources::parse(Some(&list(&[("cpu", "1500m"), ("memory", "1k")])));
        sum.add(&part);
        assert_eq!((sum.milli_cpu, sum.memory), (3500, 1000));
        sum.subtract(&part);
        assert_eq!(sum, before);
    }
}
