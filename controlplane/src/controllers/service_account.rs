//! What every namespace has from its start: the ServiceAccount `default`, and the ConfigMap
//! `kube-root-ca.crt` with the authority by which pods know the API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};

use super::Informers;
use super::informer::{Change, Informer, ObjectKey};
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next};
use super::tasks::Tasks;

const DEFAULT_ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when \
    using internal endpoints such as the internal service IP or kubernetes.default.svc. No other \
    usage is guaranteed across distributions of Kubernetes clusters.";

pub(super) fn start(client: Client, informers: &Informers, root_ca: String, tasks: &Tasks) {
    let queue = WorkQueue::default();
    let namespaces = queue.clone();
    informers.namespaces.subscribe(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            namespaces.add(ObjectKey::of(&**change.object()));
        }
    });
    let accounts = queue.clone();
    informers.service_accounts.subscribe(move |change| {
        let account = change.object();
        let is_default = account.metadata.name.as_deref() == Some(DEFAULT_ACCOUNT);
        if let (Change::Deleted(_), true) = (change, is_default) {
            accounts.add(ObjectKey::cluster(&ObjectKey::of(&**account).namespace));
        }
    });
    let maps = queue.clone();
    informers.root_cas.subscribe(move |change| {
        if !matches!(change, Change::Added(_)) {
            maps.add(ObjectKey::cluster(
                &ObjectKey::of(&**change.object()).namespace,
            ));
        }
    });
    let controller = Arc::new(ServiceAccountController {
        client,
        namespaces: informers.namespaces.clone(),
        service_accounts: informers.service_accounts.clone(),
        root_cas: informers.root_cas.clone(),
        root_ca,
    });
    runner::run(controller, &queue, 2, tasks);
}

struct ServiceAccountController {
    client: Client,
    namespaces: Informer<Namespace>,
    service_accounts: Informer<ServiceAccount>,
    root_cas: Informer<ConfigMap>,
    root_ca: String,
}

impl Controller for ServiceAccountController {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "service-account-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        self.service_accounts.synced().await;
        self.root_cas.synced().await;
        let is_active = self
            .namespaces
            .get(key)
            .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none());
        if is_active {
            // Pods wait for the account, and then mount the other.
            self.ensure_root_ca(&key.name).await?;
            self.ensure_account(&key.name).await?;
        }
        Ok(Next::Wait)
    }
}

impl ServiceAccountController {
    async fn ensure_account(&self, namespace: &str) -> Result<(), kube::Error> {
        let key = ObjectKey::new(namespace, DEFAULT_ACCOUNT);
        if self.service_accounts.get(&key).is_some() {
            return Ok(());
        }
        let account = ServiceAccount {
            metadata: meta(namespace, DEFAULT_ACCOUNT),
            ..Default::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        ignore_existing(api.create(&PostParams::default(), &account).await)
    }

    async fn ensure_root_ca(&self, namespace: &str) -> Result<(), kube::Error> {
        let wanted = root_ca_map(namespace, &self.root_ca);
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        match self.root_cas.get(&ObjectKey::new(namespace, ROOT_CA)) {
            None => ignore_existing(api.create(&PostParams::default(), &wanted).await),
            Some(current) if current.data == wanted.data => Ok(()),
            Some(current) => {
                let mut updated = ConfigMap::clone(&current);
                updated.data = wanted.data;
                api.replace(ROOT_CA, &PostParams::default(), &updated)
                    .await?;
                Ok(())
            }
        }
    }
}

/// How pods of a namespace know the API server.
pub(crate) fn root_ca_map(namespace: &str, root_ca: &str) -> ConfigMap {
    let mut metadata = meta(namespace, ROOT_CA);
    let description = (
        "kubernetes.io/description".to_string(),
        DESCRIPTION.to_string(),
    );
    metadata.annotations = Some(BTreeMap::from([description]));
    ConfigMap {
        metadata,
        data: Some(BTreeMap::from([(
            "ca.crt".to_string(),
            root_ca.to_string(),
        )])),
        ..Default::default()
    }
}

fn meta(namespace: &str, name: &str) -> ObjectMeta {
    ObjectMeta {
        name: Some(name.into()),
        namespace: Some(namespace.into()),
        ..Default::default()
    }
}

fn ignore_existing<K>(created: Result<K, kube::Error>) -> Result<(), kube::Error> {
    match created {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        other => other.map(|_| ()),
    }
}
