//! Mirrors Endpoints that somebody writes by hand into EndpointSlices, for a Service that
//! selects no pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Client, ResourceExt};

use super::packing::{self, Group};
use super::selection::selector;
use super::slices::{MANAGED_BY, SERVICE_NAME};
use super::trigger;
use super::written::{Written, service_name};
use crate::controllers::Informers;
use crate::controllers::informer::{Change, Index, Informer, ObjectKey};
use crate::controllers::ownership::new_controller_ref;
use crate::controllers::queue::WorkQueue;
use crate::controllers::runner::{self, Controller, Next};
use crate::controllers::tasks::Tasks;

const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
pub(super) const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Endpoints in one slice, as Kubernetes' `--mirroring-max-endpoints-per-subset`.
const MAX_ENDPOINTS: usize = 1000;
const WORKERS: usize = 2;

pub(super) fn start(client: Client, informers: &Informers, tasks: &Tasks) {
    let queue = WorkQueue::default();
    let controller = Arc::new(MirrorController {
        client,
        services: informers.services.clone(),
        endpoints: informers.endpoints.clone(),
        slices: informers.endpoint_slices.clone(),
        written: Written::default(),
    });
    let by_service = queue.clone();
    informers.services.subscribe(move |change| {
        by_service.add(ObjectKey::of(&**change.object()));
    });
    let by_endpoints = queue.clone();
    informers.endpoints.subscribe(move |change| {
        by_endpoints.add(ObjectKey::of(&**change.object()));
    });
    let (by_slice, this) = (queue.clone(), Arc::downgrade(&controller));
    informers.endpoint_slices.subscribe(move |change| {
        let Some(this) = this.upgrade() else { return };
        let slice = change.object();
        if matches!(change, Change::Deleted(_)) {
            this.written.forget(&ObjectKey::of(&**slice));
        } else if !this.written.is_news(slice) {
            return;
        }
        if let (true, Some(name), Some(namespace)) =
            (is_mirror(slice), service_name(slice), slice.namespace())
        {
            by_slice.add(ObjectKey::new(&namespace, name));
        }
    });
    runner::run(controller, &queue, WORKERS, tasks);
}

struct MirrorController {
    client: Client,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
    written: Written,
}

impl Controller for MirrorController {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "endpointslicemirroring-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        self.services.synced().await;
        self.endpoints.synced().await;
        self.slices.synced().await;
        let by_hand = self.services.get(key).is_some_and(|service| {
            let spec = service.spec.as_ref();
            spec.and_then(|s| s.selector.as_ref()).is_none() && selector(&service).is_none()
        });
        let mirrored = self
            .endpoints
            .get(key)
            .filter(|e| by_hand && is_mirrored(e));
        let existing = self.existing(key);
        let Some(endpoints) = mirrored else {
            self.written.delete(&self.client, &existing).await?;
            return Ok(Next::Wait);
        };
        for family in ["IPv4", "IPv6"] {
            let own = existing.iter().filter(|slice| slice.address_type == family);
            self.mirror(&endpoints, family, own.cloned().collect())
                .await?;
        }
        Ok(Next::Wait)
    }
}

impl MirrorController {
    fn existing(&self, key: &ObjectKey) -> Vec<Arc<EndpointSlice>> {
        let mut seen = self.slices.by_index(Index::Service, &key.name);
        seen.retain(|slice| slice.metadata.namespace.as_deref() == Some(&*key.namespace));
        let mut all = self.written.over(key, seen);
        all.retain(|slice| is_mirror(slice));
        all
    }

    async fn mirror(
        &self,
        endpoints: &Endpoints,
        family: &str,
        own: Vec<Arc<EndpointSlice>>,
    ) -> Result<(), kube::Error> {
        let groups = groups(endpoints, family);
        if groups.is_empty() {
            return self.written.delete(&self.client, &own).await;
        }
        let labels = labels(endpoints);
        let plan = packing::plan(groups, own, &labels, MAX_ENDPOINTS);
        let template = EndpointSlice {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", endpoints.name_any())),
                namespace: endpoints.namespace(),
                owner_references: Some(vec![new_controller_ref(endpoints)]),
                ..Default::default()
            },
            address_type: family.to_string(),
            ..Default::default()
        };
        let annotations = annotations(endpoints);
        for draft in plan.write {
            let amend = |metadata: &mut ObjectMeta| {
                metadata.labels = Some(labels.clone());
                metadata.annotations = annotations.clone();
            };
            self.written
                .write(&self.client, &template, draft, amend)
                .await?;
        }
        self.written.delete(&self.client, &plan.delete).await
    }
}

fn is_mirror(slice: &EndpointSlice) -> bool {
    slice
        .labels()
        .get(MANAGED_BY)
        .is_some_and(|by| by == MANAGER)
}

/// Whether these Endpoints are meant to be mirrored: neither their writer makes slices of his
/// own, nor are they a lock.
fn is_mirrored(endpoints: &Endpoints) -> bool {
    endpoints
        .labels()
        .get(SKIP)
        .is_none_or(|skip| skip != "true")
        && !endpoints.annotations().contains_key(LEADER)
}

fn labels(endpoints: &Endpoints) -> BTreeMap<String, String> {
    let mut labels = endpoints.labels().clone();
    labels.remove(SKIP);
    labels.insert(SERVICE_NAME.to_string(), endpoints.name_any());
    labels.insert(MANAGED_BY.to_string(), MANAGER.to_string());
    labels
}

fn annotations(endpoints: &Endpoints) -> Option<BTreeMap<String, String>> {
    let mut annotations = endpoints.annotations().clone();
    for own in [LAST_APPLIED, trigger::ANNOTATION] {
        annotations.remove(own);
    }
    Some(annotations).filter(|annotations| !annotations.is_empty())
}

/// One group for each subset.
fn groups(endpoints: &Endpoints, family: &str) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<EndpointPort> = subset
            .ports
            .iter()
            .flatten()
            .map(|port| EndpointPort {
                app_protocol: port.app_protocol.clone(),
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_string())),
            })
            .collect();
        let ready = subset.addresses.iter().flatten().map(|a| mirrored(a, true));
        let others = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|a| mirrored(a, false));
        let members = ready.chain(others).filter(|e| is_of(e, family));
        let members: Vec<Endpoint> = members.take(MAX_ENDPOINTS).collect();
        match groups.iter_mut().find(|group| group.ports == ports) {
            Some(group) => group.endpoints.extend(members),
            None if members.is_empty() => {}
            None => groups.push(Group {
                ports,
                endpoints: members,
            }),
        }
    }
    groups
}

fn is_of(endpoint: &Endpoint, family: &str) -> bool {
    let address = endpoint
        .addresses
        .first()
        .and_then(|ip| ip.parse::<IpAddr>().ok());
    address.is_some_and(|address| address.is_ipv4() == (family == "IPv4"))
}

fn mirrored(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..Default::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn endpoints(object: serde_json::Value) -> Endpoints {
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn each_subset_is_a_group_of_its_family() {
        let endpoints = endpoints(json!({"metadata": {"name": "db"}, "subsets": [
            {"addresses": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}], "notReadyAddresses": [{"ip": "192.0.2.2"}], "ports": [{"port": 5432}]},
            {"addresses": [{"ip": "192.0.2.3"}], "ports": [{"port": 5433}]},
        ]}));
        let sizes = |family| -> Vec<usize> {
            groups(&endpoints, family)
                .iter()
                .map(|g| g.endpoints.len())
                .collect()
        };
        assert_eq!(sizes("IPv4"), [2, 1]);
        assert_eq!(sizes("IPv6"), [1]);
    }

    #[test]
    fn locks_and_what_says_so_are_not_mirrored() {
        assert!(is_mirrored(&endpoints(json!({"metadata": {"name": "a"}}))));
        assert!(!is_mirrored(&endpoints(
            json!({"metadata": {"labels": {SKIP: "true"}}})
        )));
        assert!(!is_mirrored(&endpoints(
            json!({"metadata": {"annotations": {LEADER: "{}"}}})
        )));
    }
}
