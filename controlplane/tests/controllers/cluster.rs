//! A control plane in this process, and nodes that run no containers: they only say of each
//! pod that is bound to them what a node agent would, through the API.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use skiff_controlplane::controllers::{self, Informers};
use skiff_controlplane::{Config, ControlPlane, Running, scheduler};
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// The longest that a test waits for anything.
const DEADLINE: Duration = Duration::from_secs(30);
/// How often a node renews its lease.
const HEARTBEAT: Duration = Duration::from_millis(250);

pub(crate) struct Cluster {
    pub(crate) client: Client,
    running: Running,
    /// Controllers with a configuration of their own.
    workers: Option<(Informers, controllers::Running, scheduler::Running)>,
    nodes: HashMap<String, Vec<JoinHandle<()>>>,
    _data: TempDir,
}

impl Cluster {
    /// A control plane with this many nodes that are ready.
    pub(crate) async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, None).await
    }

    /// As [`start`](Self::start), with controllers that are configured otherwise.
    pub(crate) async fn start_with(nodes: usize, config: Option<controllers::Config>) -> Self {
        // With RUST_LOG, as `RUST_LOG=skiff_controlplane=debug`. Several tests may share a process.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let data = tempfile::tempdir().unwrap();
        let mut settings = Config::new(data.path(), None);
        settings.controllers = config.is_none();
        let running = ControlPlane::start(settings).await.unwrap();
        let client = running.client.clone();
        let workers = config.map(|config| work(&client, config));
        let mut cluster = Self {
            client,
            running,
            workers,
            nodes: HashMap::new(),
            _data: data,
        };
        for index in 0..nodes {
            cluster.add_node(&format!("node-{index}")).await;
        }
        cluster
    }

    /// Ends the controllers, and starts others over the same objects.
    pub(crate) async fn restart_workers(&mut self, config: controllers::Config) {
        if let Some((informers, controllers, scheduler)) = self.workers.take() {
            scheduler.stop().await;
            controllers.stop().await;
            informers.stop().await;
        }
        self.workers = Some(work(&self.client, config));
    }

    pub(crate) async fn add_node(&mut self, name: &str) {
        register(&self.client, name).await;
        let (client, owned) = (self.client.clone(), name.to_string());
        let pods = tokio::spawn(async move { tend_pods(client, owned).await });
        let (client, owned) = (self.client.clone(), name.to_string());
        let lease = tokio::spawn(async move {
            loop {
                renew_lease(&client, &owned).await;
                tokio::time::sleep(HEARTBEAT).await;
            }
        });
        self.nodes.insert(name.to_string(), vec![pods, lease]);
    }

    /// The node falls silent: nobody answers for its pods, nor renews its lease.
    pub(crate) fn silence(&mut self, name: &str) {
        for task in self.nodes.remove(name).unwrap_or_default() {
            task.abort();
        }
    }

    pub(crate) async fn stop(mut self) {
        for name in self.nodes.keys().cloned().collect::<Vec<_>>() {
            self.silence(&name);
        }
        if let Some((informers, controllers, scheduler)) = self.workers {
            scheduler.stop().await;
            controllers.stop().await;
            informers.stop().await;
        }
        self.running.shutdown().await;
    }

    /// A client with the rights of a node's agent.
    pub(crate) fn node_client(&self, node: &str) -> Client {
        self.running.node_client(node)
    }

    pub(crate) fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) fn deployments(&self) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn apply_deployment(&self, spec: serde_json::Value) -> Deployment {
        let mut deployment = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "web", "image": "nginx:1"}]},
                },
            },
        });
        json_merge(&mut deployment["spec"], &spec);
        let deployment: Deployment = serde_json::from_value(deployment).unwrap();
        self.deployments()
            .create(&PostParams::default(), &deployment)
            .await
            .unwrap()
    }

    pub(crate) async fn patch_deployment(&self, spec: serde_json::Value) -> Deployment {
        let patch = Patch::Strategic(json!({"spec": spec}));
        self.deployments()
            .patch("web", &PatchParams::default(), &patch)
            .await
            .unwrap()
    }

    /// Waits until the deployment's rollout is complete, as `kubectl rollout status` does.
    pub(crate) async fn rolled_out(&self) -> Deployment {
        wait_for("the rollout", || async {
            let deployment = self.deployments().get("web").await.unwrap();
            let status = deployment.status.clone().unwrap_or_default();
            let wanted = deployment.spec.replicas;
            let done = status.observed_generation == deployment.metadata.generation
                && status.updated_replicas.unwrap_or(0) == wanted.unwrap_or(1)
                && status.replicas == status.updated_replicas
                && status.available_replicas == status.updated_replicas;
            done.then_some(deployment)
        })
        .await
    }
}

fn work(
    client: &Client,
    config: controllers::Config,
) -> (Informers, controllers::Running, scheduler::Running) {
    let informers = Informers::start(client);
    let controllers = controllers::start(client.clone(), &informers, config);
    let scheduler = scheduler::start(client.clone(), &informers);
    (informers, controllers, scheduler)
}

fn json_merge(target: &mut serde_json::Value, patch: &serde_json::Value) {
    for (key, value) in patch.as_object().unwrap() {
        if value.is_object() && target[key].is_object() {
            json_merge(&mut target[key], value);
        } else {
            target[key] = value.clone();
        }
    }
}

/// Looks again and again until `condition` gives something.
pub(crate) async fn wait_for<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let looking = async {
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let found = tokio::time::timeout(DEADLINE, looking).await;
    found.unwrap_or_else(|_| panic!("waited {DEADLINE:?} for {what}"))
}

async fn register(client: &Client, name: &str) {
    let nodes: Api<Node> = Api::all(client.clone());
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
    }))
    .unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let amounts = json!({"cpu": "4", "memory": "8Gi", "ephemeral-storage": "20Gi", "pods": "110"});
    let status = json!({"status": {
        "capacity": amounts,
        "allocatable": amounts,
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }],
    }});
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await
        .unwrap();
}

async fn renew_lease(client: &Client, name: &str) {
    let leases: Api<k8s_openapi::api::coordination::v1::Lease> =
        Api::namespaced(client.clone(), "kube-node-lease");
    let now = jiff::Timestamp::now().to_string();
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 10, "renewTime": now},
    });
    if leases.get_opt(name).await.unwrap().is_none() {
        let lease = serde_json::from_value(lease).unwrap();
        leases.create(&PostParams::default(), &lease).await.unwrap();
    } else {
        let patch = Patch::Merge(lease);
        leases
            .patch(name, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }
}

/// Says of each pod of the node that it runs, and lets it go when it is deleted.
async fn tend_pods(client: Client, node: String) {
    let pods: Api<Pod> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node}"));
    watcher(pods, config)
        .applied_objects()
        .try_for_each_concurrent(64, |pod| {
            let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
            async move {
                tend_pod(&api, &pod).await;
                Ok(())
            }
        })
        .await
        .unwrap();
}

async fn tend_pod(api: &Api<Pod>, pod: &Pod) {
    let name = pod.name_any();
    if pod.metadata.deletion_timestamp.is_some() {
        let _ = api
            .delete(&name, &DeleteParams::default().grace_period(0))
            .await;
        return;
    }
    let phase = pod.status.as_ref().and_then(|s| s.phase.clone());
    if phase.as_deref() != Some("Pending") || pod.annotations().contains_key("test/never-ready") {
        return;
    }
    let now = jiff::Timestamp::now().to_string();
    // Any address does, as long as no other pod has it.
    let uid = pod.uid().unwrap_or_default();
    let digits: Vec<u8> = uid.bytes().filter(u8::is_ascii_hexdigit).collect();
    let octet = |at: usize| {
        let pair = std::str::from_utf8(&digits[at..at + 2]).unwrap();
        u8::from_str_radix(pair, 16).unwrap()
    };
    let address = format!("10.{}.{}.{}", octet(0), octet(2), octet(4));
    let running = json!({"metadata": {"uid": pod.uid()}, "status": {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": now},
        ],
    }});
    let _ = api
        .patch_status(&name, &PatchParams::default(), &Patch::Strategic(running))
        .await;
}

/// The messages of the events about objects of one kind, in order.
pub(crate) async fn events(client: &Client, kind: &str) -> Vec<String> {
    let api: Api<k8s_openapi::api::core::v1::Event> = Api::namespaced(client.clone(), "default");
    let list = api.list(&Default::default()).await.unwrap();
    let mut events: Vec<_> = list
        .items
        .into_iter()
        .filter(|event| event.involved_object.kind.as_deref() == Some(kind))
        .collect();
    events.sort_by_key(|event| event.name_any().rsplit('.').next().map(String::from));
    events
        .into_iter()
        .map(|event| {
            let reason = event.reason.unwrap_or_default();
            format!("{reason}: {}", event.message.unwrap_or_default())
        })
        .collect()
}

/// Collects what a watch says until `enough`.
pub(crate) async fn watch_until<K, F>(api: Api<K>, mut enough: F)
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    F: FnMut(&K) -> bool,
{
    let mut changes = Box::pin(watcher(api, watcher::Config::default()).applied_objects());
    let watching = async {
        while let Some(change) = changes.next().await {
            if change.is_ok_and(|object| enough(&object)) {
                return;
            }
        }
    };
    tokio::time::timeout(DEADLINE, watching).await.unwrap();
}
