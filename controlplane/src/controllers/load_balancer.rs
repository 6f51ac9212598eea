//! Load balancers without a cloud: a Service of type LoadBalancer is answered on the nodes' own
//! addresses, which its status lists.
//!
//! Those of nodes that are Ready count; with `externalTrafficPolicy: Local`, those of nodes with
//! a ready endpoint. Two Services can't have the same port of the same nodes: the younger one
//! stays pending. One whose `loadBalancerClass` names somebody else is left alone.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use super::Informers;
use super::events::{EventRecorder, Severity};
use super::informer::{Change, Index, Informer, ObjectKey};
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next};
use super::tasks::Tasks;
use super::writes::unless_gone;

const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

pub(super) fn start(client: Client, informers: &Informers, events: &EventRecorder, tasks: &Tasks) {
    let queue = WorkQueue::default();
    let by_service = queue.clone();
    informers.services.subscribe(move |change| {
        let before = match change {
            Change::Updated { old, .. } => old,
            _ => change.object(),
        };
        if is_balanced(change.object()) || is_balanced(before) {
            by_service.add(());
        }
    });
    let by_node = queue.clone();
    informers.nodes.subscribe(move |change| match change {
        Change::Updated { old, new } if offer(old) == offer(new) => {}
        _ => by_node.add(()),
    });
    let (by_slice, services) = (queue.clone(), informers.services.clone());
    informers.endpoint_slices.subscribe(move |change| {
        let slice = change.object();
        let key = service_of(slice);
        let service = key.and_then(|key| services.get(&key));
        if service.is_some_and(|service| is_balanced(&service) && is_local(&service)) {
            by_slice.add(());
        }
    });
    let controller = Arc::new(LoadBalancerController {
        client,
        events: events.named("service-controller"),
        services: informers.services.clone(),
        nodes: informers.nodes.clone(),
        slices: informers.endpoint_slices.clone(),
    });
    runner::run(controller, &queue, 1, tasks);
}

struct LoadBalancerController {
    client: Client,
    events: EventRecorder,
    services: Informer<Service>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
}

impl Controller for LoadBalancerController {
    type Key = ();
    type Error = kube::Error;
    const NAME: &'static str = "service-lb-controller";

    /// All of them at once, since they compete for ports.
    async fn reconcile(&self, (): &()) -> Result<Next, kube::Error> {
        self.services.synced().await;
        self.nodes.synced().await;
        self.slices.synced().await;
        let mut services = self.services.list();
        services.retain(|service| is_balanced(service));
        services.sort_by_key(|service| precedence(service));
        let nodes = self.nodes.list();
        let offers: Vec<(String, String)> = nodes.iter().filter_map(|node| offer(node)).collect();
        let mut taken = HashSet::new();
        let mut failed = None;
        for service in services {
            let ports = ports(&service);
            let is_free = ports.iter().all(|port| !taken.contains(port));
            taken.extend(ports);
            let wanted = match is_free {
                true => self.addresses(&service, &offers),
                false => BTreeSet::new(),
            };
            // The next one does not wait for this one's retry.
            if let Err(error) = self.publish(&service, wanted).await {
                failed = Some(error);
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(Next::Wait),
        }
    }
}

impl LoadBalancerController {
    fn addresses(&self, service: &Service, offers: &[(String, String)]) -> BTreeSet<String> {
        let serving = is_local(service).then(|| self.nodes_with_endpoints(service));
        let offers = offers.iter().filter(|(node, _)| {
            let serving = serving.as_ref();
            serving.is_none_or(|serving| serving.contains(node))
        });
        offers.map(|(_, address)| address.clone()).collect()
    }

    fn nodes_with_endpoints(&self, service: &Service) -> HashSet<String> {
        let mut slices = self.slices.by_index(Index::Service, &service.name_any());
        slices.retain(|slice| slice.metadata.namespace == service.metadata.namespace);
        let endpoints = slices.iter().flat_map(|s| s.endpoints.iter().flatten());
        let ready = endpoints.filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|c| c.ready) != Some(false)
        });
        ready
            .filter_map(|endpoint| endpoint.node_name.clone())
            .collect()
    }

    async fn publish(
        &self,
        service: &Arc<Service>,
        wanted: BTreeSet<String>,
    ) -> Result<(), kube::Error> {
        let now: Vec<String> = published(service);
        if now.iter().eq(wanted.iter()) {
            return Ok(());
        }
        let ingress: Vec<LoadBalancerIngress> = wanted
            .iter()
            .map(|ip| LoadBalancerIngress {
                ip: Some(ip.clone()),
                ip_mode: Some("VIP".to_string()),
                ..Default::default()
            })
            .collect();
        let status = json!({
            "metadata": {"uid": service.uid(), "resourceVersion": service.resource_version()},
            "status": {"loadBalancer": {"ingress": ingress}},
        });
        let namespace = service.namespace().unwrap_or_default();
        let api: Api<Service> = Api::namespaced(self.client.clone(), &namespace);
        let params = PatchParams::default();
        let (name, patch) = (service.name_any(), Patch::Merge(status));
        unless_gone(api.patch_status(&name, &params, &patch).await)?;
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let message = format!(
            "Updated LoadBalancer with new IPs: [{}] -> [{}]",
            now.join(" "),
            wanted.join(" ")
        );
        let (about, reason) = (&**service, "UpdatedLoadBalancer");
        self.events.record(about, Severity::Normal, reason, message);
        Ok(())
    }
}

/// The older of two Services comes first; of the same second, the one that is answered already.
fn precedence(service: &Service) -> impl Ord + use<> {
    let created = service.creation_timestamp().map(|time| time.0);
    (created, published(service).is_empty(), service.uid())
}

/// Whether the Service is one of those that this controller answers for.
fn is_balanced(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|spec| {
        spec.type_.as_deref() == Some("LoadBalancer") && spec.load_balancer_class.is_none()
    }) && service.metadata.deletion_timestamp.is_none()
}

fn is_local(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    spec.and_then(|s| s.external_traffic_policy.as_deref()) == Some("Local")
}

fn ports(service: &Service) -> Vec<(String, i32)> {
    let ports = service.spec.iter().flat_map(|s| s.ports.iter().flatten());
    ports
        .map(|port| (port.protocol.clone().unwrap_or_default(), port.port))
        .collect()
}

/// The addresses that the status lists, in order.
fn published(service: &Service) -> Vec<String> {
    let status = service.status.as_ref();
    let balancer = status.and_then(|s| s.load_balancer.as_ref());
    let ingress = balancer.iter().flat_map(|b| b.ingress.iter().flatten());
    ingress.filter_map(|point| point.ip.clone()).collect()
}

/// A node that takes traffic, by name, and the address at which it does.
fn offer(node: &Node) -> Option<(String, String)> {
    let status = node.status.as_ref()?;
    let mut conditions = status.conditions.iter().flatten();
    let is_ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
    let is_going = node.metadata.deletion_timestamp.is_some();
    if !is_ready || is_going || node.labels().contains_key(EXCLUDED) {
        return None;
    }
    let of_type = |kind: &str| {
        let mut addresses = status.addresses.iter().flatten();
        addresses.find(|address| address.type_ == kind)
    };
    let address = of_type("ExternalIP").or_else(|| of_type("InternalIP"))?;
    Some((node.name_any(), address.address.clone()))
}

fn service_of(slice: &EndpointSlice) -> Option<ObjectKey> {
    let name = slice.labels().get("kubernetes.io/service-name")?;
    Some(ObjectKey::new(&slice.namespace()?, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_same_second_the_one_that_is_answered_keeps_its_addresses() {
        let service = |created: &str, uid: &str, ingress: serde_json::Value| -> Service {
            serde_json::from_value(json!({
                "metadata": {"creationTimestamp": created, "uid": uid},
                "status": {"loadBalancer": {"ingress": ingress}},
            }))
            .unwrap()
        };
        let first = service("2026-01-01T00:00:00Z", "c", json!([]));
        let answered = service("2026-01-01T00:00:01Z", "b", json!([{"ip": "192.0.2.1"}]));
        let waiting = service("2026-01-01T00:00:01Z", "a", json!([]));
        assert!(precedence(&first) < precedence(&answered));
        assert!(precedence(&answered) < precedence(&waiting));
    }

    #[test]
    fn nodes_that_are_ready_offer_their_address() {
        let node = |ready: &str, labels: serde_json::Value| -> Node {
            serde_json::from_value(json!({
                "metadata": {"name": "n", "labels": labels},
                "status": {"conditions": [{"type": "Ready", "status": ready}],
                    "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.1"}]},
            }))
            .unwrap()
        };
        let offered = Some(("n".to_string(), "192.0.2.1".to_string()));
        assert_eq!(offer(&node("True", json!({}))), offered);
        assert_eq!(offer(&node("Unknown", json!({}))), None);
        assert_eq!(offer(&node("True", json!({EXCLUDED: ""}))), None);
    }
}
