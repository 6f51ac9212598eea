//! The Service `kubernetes`, which leads to the API server: made at every start and whenever
//! it, its Endpoints or its EndpointSlice are missing or wrong.

use std::net::SocketAddrV4;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};

use super::mirror::SKIP;
use super::slices::SERVICE_NAME;
use crate::blocks;
use crate::controllers::Informers;
use crate::controllers::informer::{Informer, ObjectKey};
use crate::controllers::queue::WorkQueue;
use crate::controllers::runner::{self, Controller, Next};
use crate::controllers::tasks::Tasks;
use ipnet::Ipv4Net;

const NAMESPACE: &str = "default";
const NAME: &str = "kubernetes";

/// How the cluster's own parts and pods reach the API server.
#[derive(Debug, Clone, Copy)]
pub struct Advertised {
    /// Where it listens for them; `None` when pods can't reach it.
    pub address: Option<SocketAddrV4>,
    /// The Services' block: the first address is this one's.
    pub services: Ipv4Net,
}

impl Advertised {
    /// The Service itself.
    pub(crate) fn service(&self) -> Value {
        let address = blocks::nth(self.services, 1).map(|address| address.to_string());
        let target = self.address.map_or(6443, |address| address.port());
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": NAME,
                "namespace": NAMESPACE,
                "labels": {"component": "apiserver", "provider": "kubernetes"},
            },
            "spec": {
                "type": "ClusterIP",
                "clusterIP": address,
                "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": target}],
            },
        })
    }

    fn endpoints(&self, address: SocketAddrV4) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {SKIP: "true"}},
            "subsets": [{
                "addresses": [{"ip": address.ip()}],
                "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}],
            }],
        })
    }

    fn slice(&self, address: SocketAddrV4) -> Value {
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": {SERVICE_NAME: NAME}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address.ip()], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": address.port(), "protocol": "TCP"}],
        })
    }
}

pub(super) fn start(
    client: Client,
    informers: &Informers,
    advertised: Option<Advertised>,
    tasks: &Tasks,
) {
    let Some(advertised) = advertised else { return };
    let queue = WorkQueue::default();
    let add = |queue: &WorkQueue<()>, name: String| {
        if name == NAME {
            queue.add(());
        }
    };
    let (services, endpoints, slices) = (queue.clone(), queue.clone(), queue.clone());
    let changed = informers.services.clone();
    changed.subscribe(move |change| add(&services, change.object().name_any()));
    let changed = informers.endpoints.clone();
    changed.subscribe(move |change| add(&endpoints, change.object().name_any()));
    let changed = informers.endpoint_slices.clone();
    changed.subscribe(move |change| add(&slices, change.object().name_any()));
    queue.add(());
    let controller = Arc::new(KubernetesController {
        client,
        services: informers.services.clone(),
        endpoints: informers.endpoints.clone(),
        slices: informers.endpoint_slices.clone(),
        advertised,
    });
    runner::run(controller, &queue, 1, tasks);
}

struct KubernetesController {
    client: Client,
    services: Informer<Service>,
    endpoints: Informer<Endpoints>,
    slices: Informer<EndpointSlice>,
    advertised: Advertised,
}

impl Controller for KubernetesController {
    type Key = ();
    type Error = kube::Error;
    const NAME: &'static str = "kubernetes-service-controller";

    async fn reconcile(&self, (): &()) -> Result<Next, kube::Error> {
        self.services.synced().await;
        self.endpoints.synced().await;
        self.slices.synced().await;
        let key = ObjectKey::new(NAMESPACE, NAME);
        self.service(self.services.get(&key)).await?;
        let Some(address) = self.advertised.address else {
            return Ok(Next::Wait);
        };
        let wanted: Endpoints = object(self.advertised.endpoints(address));
        let now = self.endpoints.get(&key);
        let is_right = now.as_ref().is_some_and(|now| {
            now.subsets == wanted.subsets && now.metadata.labels == wanted.metadata.labels
        });
        if !is_right {
            self.put(wanted, now).await?;
        }
        let wanted: EndpointSlice = object(self.advertised.slice(address));
        let now = self.slices.get(&key);
        let is_right = now.as_ref().is_some_and(|now| {
            now.endpoints == wanted.endpoints
                && now.ports == wanted.ports
                && now.metadata.labels == wanted.metadata.labels
        });
        if !is_right {
            self.put(wanted, now).await?;
        }
        Ok(Next::Wait)
    }
}

impl KubernetesController {
    /// Its ports are ours; the rest of it may be changed.
    async fn service(&self, now: Option<Arc<Service>>) -> Result<(), kube::Error> {
        let wanted: Service = object(self.advertised.service());
        let api: Api<Service> = Api::namespaced(self.client.clone(), NAMESPACE);
        let params = PostParams::default();
        let Some(now) = now else {
            api.create(&params, &wanted).await?;
            return Ok(());
        };
        let ports = |service: &Service| service.spec.as_ref().and_then(|s| s.ports.clone());
        if ports(&now) == ports(&wanted) {
            return Ok(());
        }
        let mut next = Service::clone(&now);
        next.spec.get_or_insert_default().ports = ports(&wanted);
        api.replace(NAME, &params, &next).await?;
        Ok(())
    }

    async fn put<K>(&self, mut wanted: K, now: Option<Arc<K>>) -> Result<(), kube::Error>
    where
        K: kube::Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), NAMESPACE);
        let params = PostParams::default();
        match now {
            Some(now) => {
                wanted.meta_mut().resource_version = now.meta().resource_version.clone();
                api.replace(NAME, &params, &wanted).await?;
            }
            None => {
                api.create(&params, &wanted).await?;
            }
        }
        Ok(())
    }
}

/// One of the objects above.
fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    // They are written in this file, in the form of their kinds: the tests read each.
    serde_json::from_value(value).expect("an object of its kind")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_are_of_their_kinds() {
        let advertised = Advertised {
            address: Some("192.0.2.7:6443".parse().unwrap()),
            services: "10.43.0.0/16".parse().unwrap(),
        };
        let service: Service = object(advertised.service());
        assert_eq!(
            service.spec.unwrap().cluster_ip.as_deref(),
            Some("10.43.0.1")
        );
        let address = advertised.address.unwrap();
        let endpoints: Endpoints = object(advertised.endpoints(address));
        assert_eq!(
            endpoints.subsets.unwrap()[0].addresses.as_ref().unwrap()[0].ip,
            "192.0.2.7"
        );
        let slice: EndpointSlice = object(advertised.slice(address));
        assert_eq!(slice.ports.unwrap()[0].port, Some(6443));
    }
}
