//! Which Services a change of a pod concerns.

use std::collections::{BTreeMap, HashSet};

use k8s_openapi::api::core::v1::{Pod, Service};

use super::endpoint::address;
use crate::controllers::Informers;
use crate::controllers::informer::{Change, Index, Informer, ObjectKey};
use crate::controllers::pod_state::{is_finished, is_ready};
use crate::controllers::queue::WorkQueue;

/// Puts every Service into the queue that a change of a Service or of a pod concerns.
pub(super) fn watch(informers: &Informers, queue: &WorkQueue<ObjectKey>) {
    let services = queue.clone();
    informers
        .services
        .subscribe(move |change| services.add(ObjectKey::of(&**change.object())));
    let (pods, services) = (queue.clone(), informers.services.clone());
    informers.pods.subscribe(move |change| {
        for key in concerned(&services, change) {
            pods.add(key);
        }
    });
}

fn concerned(services: &Informer<Service>, change: &Change<Pod>) -> HashSet<ObjectKey> {
    match change {
        Change::Added(pod) | Change::Deleted(pod) => selecting(services, pod).collect(),
        Change::Updated { old, new } => {
            let relabelled = old.metadata.labels != new.metadata.labels;
            if relabelled {
                let before = selecting(services, old);
                return before.chain(selecting(services, new)).collect();
            }
            match is_the_same_endpoint(old, new) {
                true => HashSet::new(),
                false => selecting(services, new).collect(),
            }
        }
    }
}

/// The Services whose selectors select the pod.
fn selecting(services: &Informer<Service>, pod: &Pod) -> impl Iterator<Item = ObjectKey> {
    let labels = pod.metadata.labels.iter().flatten();
    // A Service is found by the first value of its selector.
    labels
        .flat_map(|(_, value)| services.by_index(Index::Selector, value))
        .filter(|service| {
            service.metadata.namespace == pod.metadata.namespace
                && selector(service).is_some_and(|selector| selects(selector, pod))
        })
        .map(|service| ObjectKey::of(&*service))
}

/// The labels that a Service's pods have; `None` when nobody looks for its pods.
pub(super) fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|labels| !labels.is_empty())
}

pub(super) fn selects(selector: &BTreeMap<String, String>, pod: &Pod) -> bool {
    let labels = pod.metadata.labels.as_ref();
    selector
        .iter()
        .all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// The pods behind a Service, by name.
pub(super) fn selected(
    pods: &Informer<Pod>,
    namespace: &str,
    selector: &BTreeMap<String, String>,
) -> Vec<std::sync::Arc<Pod>> {
    let mut selected = pods.by_index(Index::Namespace, namespace);
    selected.retain(|pod| selects(selector, pod));
    selected.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    selected
}

/// Whether nothing has changed that endpoints tell of.
fn is_the_same_endpoint(old: &Pod, new: &Pod) -> bool {
    let place = |pod: &Pod| {
        let spec = pod.spec.as_ref()?;
        let spec = (&spec.node_name, &spec.hostname, &spec.subdomain);
        Some((spec.0.clone(), spec.1.clone(), spec.2.clone()))
    };
    is_ready(old) == is_ready(new)
        && is_finished(old) == is_finished(new)
        && old.metadata.deletion_timestamp.is_some() == new.metadata.deletion_timestamp.is_some()
        && address(old) == address(new)
        && place(old) == place(new)
}
