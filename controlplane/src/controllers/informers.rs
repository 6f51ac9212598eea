//! The kinds that controllers and the scheduler look at, and how each is indexed.

use std::fmt::Debug;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use skiff_dev::{Drill, DrillTask};

use super::informer::{Index, Informer};
use super::ownership::controller_ref;
use super::tasks::Tasks;
use crate::auth::bootstrap_tokens;

/// The informers that controllers and the scheduler share.
#[derive(Clone)]
pub struct Informers {
    pub deployments: Informer<Deployment>,
    pub replica_sets: Informer<ReplicaSet>,
    pub pods: Informer<Pod>,
    pub services: Informer<Service>,
    pub endpoints: Informer<Endpoints>,
    pub endpoint_slices: Informer<EndpointSlice>,
    pub nodes: Informer<Node>,
    /// Node heartbeats: those of the namespace `kube-node-lease`.
    pub node_leases: Informer<Lease>,
    pub namespaces: Informer<Namespace>,
    pub service_accounts: Informer<ServiceAccount>,
    /// Those named `kube-root-ca.crt`, one in each namespace.
    pub root_cas: Informer<ConfigMap>,
    pub certificate_requests: Informer<CertificateSigningRequest>,
    pub budgets: Informer<PodDisruptionBudget>,
    /// The Secrets behind bootstrap tokens.
    pub bootstrap_tokens: Informer<Secret>,
    pub drills: Informer<Drill>,
    pub drill_tasks: Informer<DrillTask>,
    tasks: Tasks,
}

impl Informers {
    /// Starts to list and watch everything that the controllers and the scheduler look at.
    pub fn start(client: &Client) -> Self {
        let informers = Self {
            deployments: Informer::new(&[(Index::Namespace, namespace_of)]),
            replica_sets: Informer::new(&[
                (Index::Namespace, namespace_of),
                (Index::Controller, controller_of),
                (Index::Orphan, orphan_namespace_of),
            ]),
            pods: Informer::new(&[
                (Index::Namespace, namespace_of),
                (Index::Controller, controller_of),
                (Index::Orphan, orphan_namespace_of),
                (Index::Node, |pod| {
                    let node = pod.spec.as_ref()?.node_name.as_deref();
                    node.filter(|name| !name.is_empty())
                }),
            ]),
            services: services(),
            endpoints: Informer::new(&[]),
            endpoint_slices: Informer::new(&[(Index::Service, |slice| {
                let labels = slice.metadata.labels.as_ref()?;
                labels.get("kubernetes.io/service-name").map(String::as_str)
            })]),
            nodes: Informer::new(&[]),
            node_leases: Informer::new(&[]),
            namespaces: Informer::new(&[]),
            service_accounts: Informer::new(&[]),
            root_cas: Informer::new(&[]),
            certificate_requests: Informer::new(&[]),
            budgets: Informer::new(&[(Index::Namespace, namespace_of)]),
            bootstrap_tokens: Informer::new(&[]),
            drills: Informer::new(&[]),
            drill_tasks: Informer::new(&[(Index::Drill, |task| Some(task.spec.drill.as_str()))]),
            tasks: Tasks::default(),
        };
        informers.feed(&informers.deployments, Api::all(client.clone()), "");
        informers.feed(&informers.replica_sets, Api::all(client.clone()), "");
        informers.feed(&informers.pods, Api::all(client.clone()), "");
        informers.feed(&informers.services, Api::all(client.clone()), "");
        informers.feed(&informers.endpoints, Api::all(client.clone()), "");
        informers.feed(&informers.endpoint_slices, Api::all(client.clone()), "");
        informers.feed(&informers.nodes, Api::all(client.clone()), "");
        informers.feed(
            &informers.node_leases,
            Api::namespaced(client.clone(), "kube-node-lease"),
            "",
        );
        informers.feed(&informers.namespaces, Api::all(client.clone()), "");
        informers.feed(&informers.service_accounts, Api::all(client.clone()), "");
        informers.feed(
            &informers.root_cas,
            Api::all(client.clone()),
            "metadata.name=kube-root-ca.crt",
        );
        informers.feed(&informers.budgets, Api::all(client.clone()), "");
        let requests = Api::all(client.clone());
        informers.feed(&informers.certificate_requests, requests, "");
        informers.feed(
            &informers.bootstrap_tokens,
            Api::namespaced(client.clone(), bootstrap_tokens::NAMESPACE),
            "type=bootstrap.kubernetes.io/token",
        );
        informers.feed(&informers.drills, Api::all(client.clone()), "");
        informers.feed(&informers.drill_tasks, Api::all(client.clone()), "");
        informers
    }

    /// Ends every watch. The stores keep what they had.
    pub async fn stop(&self) {
        self.tasks.stop().await;
    }

    fn feed<K>(&self, informer: &Informer<K>, api: Api<K>, fields: &str)
    where
        K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let mut config = watcher::Config::default();
        if !fields.is_empty() {
            config = config.fields(fields);
        }
        let informer = informer.clone();
        self.tasks
            .supervise(format!("informer of {}", K::plural(&())), move || {
                let (informer, api, config) = (informer.clone(), api.clone(), config.clone());
                async move { informer.run(api, config).await }
            });
    }
}

/// Of Services, which are found by what they select.
pub(crate) fn services() -> Informer<Service> {
    Informer::new(&[(Index::Selector, |service| {
        let selector = service.spec.as_ref()?.selector.as_ref()?;
        selector.values().next().map(String::as_str)
    })])
}

fn namespace_of<K: Resource>(object: &K) -> Option<&str> {
    object.meta().namespace.as_deref()
}

fn controller_of<K: Resource>(object: &K) -> Option<&str> {
    controller_ref(object).map(|owner| owner.uid.as_str())
}

fn orphan_namespace_of<K: Resource>(object: &K) -> Option<&str> {
    match controller_of(object) {
        Some(_) => None,
        None => namespace_of(object),
    }
}
