//! Keeps the Endpoints of every Service that selects pods, for clients that know no
//! EndpointSlices.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use super::endpoint::{
    address, hostname, is_addressable, is_headless, ports, publishes_not_ready, reference,
};
use super::selection::{self, selected, selector};
use super::slices::{HEADLESS, set_trigger};
use super::trigger::TriggerTimes;
use crate::controllers::Informers;
use crate::controllers::informer::{Change, Informer, ObjectKey};
use crate::controllers::pod_state::{is_ready, node_name};
use crate::controllers::queue::WorkQueue;
use crate::controllers::runner::{self, Controller, Next};
use crate::controllers::tasks::Tasks;
use crate::controllers::writes::{only, unless_gone};

const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const MANAGER: &str = "endpoint-controller";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// Addresses in one object; those above are left out, and an annotation says so.
const MAX_ADDRESSES: usize = 1000;
const WORKERS: usize = 5;

pub(super) fn start(client: Client, informers: &Informers, tasks: &Tasks) {
    let queue = WorkQueue::default();
    selection::watch(informers, &queue);
    let changed = queue.clone();
    informers.endpoints.subscribe(move |change| {
        let own = change.object();
        let is_own = own.labels().get(MANAGED_BY).is_some_and(|by| by == MANAGER);
        let is_left_or_lost = matches!(change, Change::Added(_) | Change::Deleted(_));
        if is_own && is_left_or_lost {
            changed.add(ObjectKey::of(&**own));
        }
    });
    let controller = Arc::new(EndpointsController {
        client,
        services: informers.services.clone(),
        pods: informers.pods.clone(),
        endpoints: informers.endpoints.clone(),
        triggers: TriggerTimes::default(),
    });
    runner::run(controller, &queue, WORKERS, tasks);
}

struct EndpointsController {
    client: Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    triggers: TriggerTimes,
}

impl Controller for EndpointsController {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "endpoint-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        self.services.synced().await;
        self.pods.synced().await;
        self.endpoints.synced().await;
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), &key.namespace);
        let current = self.endpoints.get(key);
        let Some(service) = self.services.get(key) else {
            self.triggers.forget(key);
            if let Some(current) = current {
                let params = only(current.metadata.uid.as_deref());
                unless_gone(api.delete(&key.name, &params).await)?;
            }
            return Ok(Next::Wait);
        };
        let Some(selector) = selector(&service) else {
            return Ok(Next::Wait);
        };
        let pods = selected(&self.pods, &key.namespace, selector);
        let trigger = self.triggers.observe(key, &service, &pods);
        let wanted = wanted(&service, &pods);
        if current.as_ref().is_some_and(|now| is_same(now, &wanted)) {
            return Ok(Next::Wait);
        }
        let mut next = wanted;
        let annotations = current
            .as_ref()
            .and_then(|now| now.metadata.annotations.clone());
        let mut annotations = annotations.unwrap_or_default();
        annotations.remove(OVER_CAPACITY);
        annotations.extend(next.metadata.annotations.take().unwrap_or_default());
        next.metadata.annotations = Some(annotations);
        set_trigger(&mut next.metadata, trigger);
        let params = PostParams::default();
        match current {
            Some(now) => {
                next.metadata.resource_version = now.metadata.resource_version.clone();
                api.replace(&key.name, &params, &next).await?;
            }
            None => {
                api.create(&params, &next).await?;
            }
        }
        Ok(Next::Wait)
    }
}

/// Whether the object says already what it should. Labels and annotations of others stay.
fn is_same(now: &Endpoints, wanted: &Endpoints) -> bool {
    let subsets = |endpoints: &Endpoints| endpoints.subsets.clone().unwrap_or_default();
    let truncated = |endpoints: &Endpoints| endpoints.annotations().contains_key(OVER_CAPACITY);
    subsets(now) == subsets(wanted)
        && now.metadata.labels == wanted.metadata.labels
        && truncated(now) == truncated(wanted)
}

fn wanted(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let mut labels = service.labels().clone();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_string(), String::new());
    }
    labels.insert(MANAGED_BY.to_string(), MANAGER.to_string());
    let (subsets, is_truncated) = truncate(subsets(service, pods));
    let annotations = is_truncated
        .then(|| BTreeMap::from([(OVER_CAPACITY.to_string(), "truncated".to_string())]));
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            annotations,
            ..Default::default()
        },
        subsets: Some(subsets).filter(|subsets| !subsets.is_empty()),
    }
}

/// Addresses by what identifies them, with whether each is ready.
type Addresses = BTreeMap<(String, Option<String>), (EndpointAddress, bool)>;

/// The addresses, together where they serve the same ports.
fn subsets(service: &Service, pods: &[Arc<Pod>]) -> Vec<EndpointSubset> {
    let unready = publishes_not_ready(service);
    let without_ports = is_headless(service)
        && service
            .spec
            .as_ref()
            .is_none_or(|s| s.ports.iter().flatten().next().is_none());
    // By port first, then ports that have the same addresses together.
    let mut by_port: Vec<(Option<EndpointPort>, Addresses)> = Vec::new();
    for pod in pods.iter().filter(|pod| is_addressable(pod)) {
        let is_leaving = pod.metadata.deletion_timestamp.is_some();
        let Some(ip) = address(pod).filter(|_| unready || !is_leaving) else {
            continue;
        };
        let address = EndpointAddress {
            hostname: hostname(service, pod).map(str::to_string),
            ip: ip.to_string(),
            node_name: node_name(pod).map(str::to_string),
            target_ref: Some(reference(pod)),
        };
        let ready = unready || is_ready(pod);
        let ports: Vec<Option<EndpointPort>> = match without_ports {
            true => vec![None],
            false => ports(service, pod)
                .into_iter()
                .map(|p| Some(legacy_port(p)))
                .collect(),
        };
        for port in ports {
            let key = (address.ip.clone(), pod.metadata.uid.clone());
            let entry = (address.clone(), ready);
            match by_port.iter_mut().find(|(known, _)| *known == port) {
                Some((_, addresses)) => {
                    addresses.insert(key, entry);
                }
                None => by_port.push((port, Addresses::from([(key, entry)]))),
            }
        }
    }
    let mut together: Vec<(Vec<EndpointPort>, Addresses)> = Vec::new();
    for (port, addresses) in by_port {
        match together.iter_mut().find(|(_, known)| *known == addresses) {
            Some((ports, _)) => ports.extend(port),
            None => together.push((port.into_iter().collect(), addresses)),
        }
    }
    let mut subsets: Vec<EndpointSubset> = together.into_iter().map(subset).collect();
    subsets.sort_by_cached_key(|subset| {
        let ports = subset.ports.iter().flatten();
        ports.map(|p| (p.port, p.name.clone())).collect::<Vec<_>>()
    });
    subsets
}

fn subset((mut ports, addresses): (Vec<EndpointPort>, Addresses)) -> EndpointSubset {
    ports.sort_by(|a, b| (&a.name, a.port).cmp(&(&b.name, b.port)));
    let (ready, not_ready): (Vec<_>, Vec<_>) =
        addresses.into_values().partition(|(_, is_ready)| *is_ready);
    let listed = |addresses: Vec<(EndpointAddress, bool)>| {
        let addresses: Vec<_> = addresses.into_iter().map(|(address, _)| address).collect();
        Some(addresses).filter(|addresses| !addresses.is_empty())
    };
    EndpointSubset {
        addresses: listed(ready),
        not_ready_addresses: listed(not_ready),
        ports: Some(ports).filter(|ports| !ports.is_empty()),
    }
}

fn legacy_port(port: k8s_openapi::api::discovery::v1::EndpointPort) -> EndpointPort {
    EndpointPort {
        app_protocol: port.app_protocol,
        name: port.name.filter(|name| !name.is_empty()),
        port: port.port.unwrap_or_default(),
        protocol: port.protocol,
    }
}

/// Leaves out what is more than one object may hold, those that are not ready first.
fn truncate(mut subsets: Vec<EndpointSubset>) -> (Vec<EndpointSubset>, bool) {
    let mut room = MAX_ADDRESSES;
    let mut is_truncated = false;
    let mut cut = |addresses: &mut Option<Vec<EndpointAddress>>| {
        if let Some(list) = addresses {
            is_truncated |= list.len() > room;
            list.truncate(room);
            room -= list.len();
            if list.is_empty() {
                *addresses = None;
            }
        }
    };
    for subset in &mut subsets {
        cut(&mut subset.addresses);
    }
    for subset in &mut subsets {
        cut(&mut subset.not_ready_addresses);
    }
    subsets.retain(|s| s.addresses.is_some() || s.not_ready_addresses.is_some());
    (subsets, is_truncated)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(number: usize, ready: bool, port: i32) -> Arc<Pod> {
        let pod = json!({
            "metadata": {"name": format!("p{number}"), "namespace": "default", "uid": number.to_string()},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": format!("10.42.{}.{}", number / 250, number % 250)}],
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    fn service(spec: Value) -> Service {
        let object = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec});
        serde_json::from_value(object).unwrap()
    }

    /// `(ready addresses, others, ports)` of each subset.
    fn shape(endpoints: &Endpoints) -> Vec<(usize, usize, Vec<i32>)> {
        let subsets = endpoints.subsets.iter().flatten();
        subsets
            .map(|s| {
                let ports = s.ports.iter().flatten().map(|p| p.port).collect();
                (
                    s.addresses.iter().flatten().count(),
                    s.not_ready_addresses.iter().flatten().count(),
                    ports,
                )
            })
            .collect()
    }

    #[test]
    fn ports_with_the_same_addresses_are_together() {
        let service = service(json!({"clusterIP": "10.43.0.9", "ports": [
            {"name": "a", "port": 80, "targetPort": "http"}, {"name": "b", "port": 443, "targetPort": 8443},
        ]}));
        let same = wanted(&service, &[pod(1, true, 8080), pod(2, false, 8080)]);
        assert_eq!(shape(&same), [(1, 1, vec![8080, 8443])]);
        let other = wanted(&service, &[pod(1, true, 8080), pod(2, true, 9090)]);
        assert_eq!(
            shape(&other),
            [(1, 0, vec![8080]), (2, 0, vec![8443]), (1, 0, vec![9090])]
        );
        assert_eq!(wanted(&service, &[]).subsets, None);
    }

    #[test]
    fn a_headless_service_may_have_no_ports() {
        let service = service(json!({"clusterIP": "None"}));
        let endpoints = wanted(&service, &[pod(1, true, 1)]);
        assert_eq!(shape(&endpoints), [(1, 0, vec![])]);
        assert!(endpoints.labels().contains_key(HEADLESS));
    }

    #[test]
    fn a_thousand_addresses_are_the_most() {
        let service = service(json!({"clusterIP": "10.43.0.9", "ports": [{"port": 80}]}));
        let pods: Vec<_> = (1..1100).map(|n| pod(n, n % 10 != 0, 80)).collect();
        let endpoints = wanted(&service, &pods);
        assert_eq!(shape(&endpoints), [(990, 10, vec![80])]);
        assert_eq!(endpoints.annotations()[OVER_CAPACITY], "truncated");
    }
}
