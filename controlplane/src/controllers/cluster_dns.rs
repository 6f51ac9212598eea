//! The Service `kube-dns` in `kube-system`: the one address by which every pod asks for names.
//!
//! It has no selector and no endpoints: each node leads the address to its own DNS server. It is made when it is missing,
//! and otherwise left as it is.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::PostParams;
use kube::{Api, Client};

use super::Informers;
use super::informer::{Change, Informer, ObjectKey};
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next};
use super::tasks::Tasks;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";
const PORT: i32 = 53;

pub(super) fn start(client: Client, informers: &Informers, address: Ipv4Addr, tasks: &Tasks) {
    let queue = WorkQueue::default();
    let key = ObjectKey::new(NAMESPACE, NAME);
    let (deleted, wanted) = (queue.clone(), key.clone());
    informers.services.subscribe(move |change| {
        let ours = ObjectKey::of(&**change.object()) == wanted;
        if matches!(change, Change::Deleted(_)) && ours {
            deleted.add(wanted.clone());
        }
    });
    queue.add(key);
    let controller = Arc::new(ClusterDns {
        client,
        services: informers.services.clone(),
        address,
    });
    runner::run(controller, &queue, 1, tasks);
}

struct ClusterDns {
    client: Client,
    services: Informer<Service>,
    address: Ipv4Addr,
}

impl Controller for ClusterDns {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "cluster-dns-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        self.services.synced().await;
        if self.services.get(key).is_some() {
            return Ok(Next::Wait);
        }
        let api: Api<Service> = Api::namespaced(self.client.clone(), NAMESPACE);
        match api
            .create(&PostParams::default(), &service(self.address))
            .await
        {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(Next::Wait),
            created => created.map(|_| Next::Wait),
        }
    }
}

fn service(address: Ipv4Addr) -> Service {
    let port = |name: &str, protocol: &str| ServicePort {
        name: Some(name.to_owned()),
        port: PORT,
        protocol: Some(protocol.to_owned()),
        target_port: Some(IntOrString::Int(PORT)),
        ..ServicePort::default()
    };
    let labels = [
        ("k8s-app", NAME),
        ("kubernetes.io/cluster-service", "true"),
        ("kubernetes.io/name", "CoreDNS"),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned()));
    Service {
        metadata: ObjectMeta {
            namespace: Some(NAMESPACE.to_owned()),
            name: Some(NAME.to_owned()),
            labels: Some(BTreeMap::from(labels)),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some(address.to_string()),
            cluster_ips: Some(vec![address.to_string()]),
            ports: Some(vec![port("dns", "UDP"), port("dns-tcp", "TCP")]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
