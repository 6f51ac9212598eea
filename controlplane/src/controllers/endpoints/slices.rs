//! Keeps the EndpointSlices of every Service that selects pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, ResourceExt};

use super::endpoint::{endpoint, is_addressable, is_headless, ports, publishes_not_ready};
use super::packing::{self, Group};
use super::selection::{self, selected, selector};
use super::trigger::{self, TriggerTimes};
use super::written::{Written, service_name};
use crate::controllers::Informers;
use crate::controllers::informer::{Change, Index, Informer, ObjectKey};
use crate::controllers::ownership::new_controller_ref;
use crate::controllers::pod_state::node_name;
use crate::controllers::queue::WorkQueue;
use crate::controllers::runner::{self, Controller, Next};
use crate::controllers::tasks::Tasks;

pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(super) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Endpoints in one slice, as Kubernetes' `--max-endpoints-per-slice`.
const MAX_ENDPOINTS: usize = 100;
const WORKERS: usize = 5;

pub(super) fn start(client: Client, informers: &Informers, tasks: &Tasks) {
    let queue = WorkQueue::default();
    let controller = Arc::new(SliceController {
        client,
        services: informers.services.clone(),
        pods: informers.pods.clone(),
        nodes: informers.nodes.clone(),
        slices: informers.endpoint_slices.clone(),
        written: Written::default(),
        triggers: TriggerTimes::default(),
    });
    selection::watch(informers, &queue);
    let (changed, this) = (queue.clone(), Arc::downgrade(&controller));
    informers.endpoint_slices.subscribe(move |change| {
        if let Some(key) = this.upgrade().and_then(|this| this.slice_changed(change)) {
            changed.add(key);
        }
    });
    runner::run(controller, &queue, WORKERS, tasks);
}

struct SliceController {
    client: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    written: Written,
    triggers: TriggerTimes,
}

impl Controller for SliceController {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "endpointslice-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        self.services.synced().await;
        self.pods.synced().await;
        self.nodes.synced().await;
        self.slices.synced().await;
        let Some(service) = self.services.get(key) else {
            // Its slices go with it: they name it as their owner.
            self.triggers.forget(key);
            return Ok(Next::Wait);
        };
        let Some(selector) = selector(&service) else {
            return Ok(Next::Wait);
        };
        let pods = selected(&self.pods, &key.namespace, selector);
        let trigger = self.triggers.observe(key, &service, &pods);
        let (groups, is_whole) = self.groups(&service, &pods);
        let (own, foreign) = self.existing(key, &service);
        let labels = labels(&service);
        let plan = packing::plan(groups, own, &labels, MAX_ENDPOINTS);
        let template = new_slice(&service);
        for draft in plan.write {
            let amend = |metadata: &mut ObjectMeta| {
                metadata.labels = Some(labels.clone());
                set_trigger(metadata, trigger);
            };
            let writing = self.written.write(&self.client, &template, draft, amend);
            writing.await?;
        }
        self.written.delete(&self.client, &plan.delete).await?;
        self.written.delete(&self.client, &foreign).await?;
        Ok(match is_whole {
            true => Next::Wait,
            false => Next::Backoff,
        })
    }
}

impl SliceController {
    /// The Service to look at after a change of a slice that this controller keeps.
    fn slice_changed(&self, change: &Change<EndpointSlice>) -> Option<ObjectKey> {
        let slice = change.object();
        match change {
            Change::Deleted(_) => self.written.forget(&ObjectKey::of(&**slice)),
            Change::Added(_) | Change::Updated { .. } if !self.written.is_news(slice) => {
                return None;
            }
            _ => {}
        }
        let before = match change {
            Change::Updated { old, .. } => old,
            _ => slice,
        };
        // One that somebody has taken from its Service is missing there.
        let kept = [slice, before]
            .into_iter()
            .find(|slice| is_managed(slice))?;
        let name = service_name(kept)?;
        Some(ObjectKey::new(&kept.namespace()?, name))
    }

    /// The Service's slices, and those that an earlier Service of its name has left.
    fn existing(&self, key: &ObjectKey, service: &Service) -> SlicePair {
        let mut seen = self.slices.by_index(Index::Service, &key.name);
        seen.retain(|slice| slice.metadata.namespace.as_deref() == Some(&*key.namespace));
        let mut all = self.written.over(key, seen);
        all.retain(|slice| is_managed(slice));
        all.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        all.into_iter().partition(|slice| {
            let owners = slice.metadata.owner_references.iter().flatten();
            slice.address_type == "IPv4"
                && owners
                    .filter(|owner| owner.kind == "Service")
                    .any(|owner| Some(&owner.uid) == service.metadata.uid.as_ref())
        })
    }

    /// The endpoints by the ports that they serve, and whether those are all: a pod whose node
    /// is not known yet comes later.
    fn groups(&self, service: &Service, pods: &[Arc<Pod>]) -> (Vec<Group>, bool) {
        let mut groups: Vec<Group> = Vec::new();
        let mut is_whole = true;
        for pod in pods.iter().filter(|pod| is_addressable(pod)) {
            let node = node_name(pod).and_then(|name| self.nodes.get(&ObjectKey::cluster(name)));
            if node.is_none() && !publishes_not_ready(service) {
                is_whole = false;
                continue;
            }
            let ports = ports(service, pod);
            let endpoint = endpoint(service, pod, node.as_deref());
            match groups.iter_mut().find(|group| group.ports == ports) {
                Some(group) => group.endpoints.push(endpoint),
                None => groups.push(Group {
                    ports,
                    endpoints: vec![endpoint],
                }),
            }
        }
        (groups, is_whole)
    }
}

type SlicePair = (Vec<Arc<EndpointSlice>>, Vec<Arc<EndpointSlice>>);

fn is_managed(slice: &EndpointSlice) -> bool {
    slice
        .labels()
        .get(MANAGED_BY)
        .is_some_and(|by| by == MANAGER)
}

fn new_slice(service: &Service) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", service.name_any())),
            namespace: service.metadata.namespace.clone(),
            owner_references: Some(vec![new_controller_ref(service)]),
            ..Default::default()
        },
        address_type: "IPv4".to_string(),
        ..Default::default()
    }
}

/// The Service's own labels, and those that tell whose slice it is.
fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_string(), String::new());
    }
    labels.insert(SERVICE_NAME.to_string(), service.name_any());
    labels.insert(MANAGED_BY.to_string(), MANAGER.to_string());
    labels
}

pub(super) fn set_trigger(metadata: &mut ObjectMeta, trigger: Option<Timestamp>) {
    let annotations = metadata.annotations.get_or_insert_default();
    match trigger {
        Some(time) => annotations.insert(trigger::ANNOTATION.to_string(), time.to_string()),
        None => annotations.remove(trigger::ANNOTATION),
    };
    if annotations.is_empty() {
        metadata.annotations = None;
    }
}
