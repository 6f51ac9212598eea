//! The real parts behind the pod worker's traits: runtime, network, images.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{Pod, Secret};
use skiff_images::{Image, PullRequest, Puller, Reference, Store};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Notify, watch};

use crate::identity::Identity;
use crate::leases::Leases;
use crate::net::dns::{Directory, ServiceAddress};
use crate::net::{Network, host_ports};
use crate::pod::dispatch::Pods;
use crate::pod::seams::{
    ContainerError, ContainerRuntime, ExecOutcome, FetchedImage, ImageSource, PodNetwork,
    PodSandbox, ResolvedImage, SeamError, SeamResult, ServiceDirectory,
};
use crate::pull_accounts::PullAccounts;
use crate::runtime::types::{
    ContainerConfig, ContainerRecord, ExecRequest, SandboxConfig, SandboxState,
};
use crate::runtime::{Runtime, RuntimeError, Sandbox, Session};
use crate::server::{NodePod, PodLookup};

/// Bytes of a probe's or hook's output that are kept.
const MAX_OUTPUT: usize = 10 * 1024;

/// The sandboxes of this node by the uids of their pods.
#[derive(Clone, Default)]
pub(crate) struct Sandboxes {
    by_uid: Arc<Mutex<HashMap<String, Sandbox>>>,
}

impl Sandboxes {
    pub(crate) fn get(&self, uid: &str) -> Option<Sandbox> {
        self.lock().get(uid).cloned()
    }

    pub(crate) fn put(&self, sandbox: Sandbox) {
        self.lock().insert(sandbox.uid().to_owned(), sandbox);
    }

    fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Sandbox>> {
        // The map is whole between any two statements, also after a panic elsewhere.
        self.by_uid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The runtime, which remembers the sandboxes it started.
pub(crate) struct NodeRuntime {
    pub(crate) runtime: Runtime,
    pub(crate) sandboxes: Sandboxes,
}

#[async_trait]
impl ContainerRuntime for NodeRuntime {
    async fn start_sandbox(&self, config: SandboxConfig) -> SeamResult<Arc<dyn PodSandbox>> {
        let created = self.runtime.create_sandbox(config).await;
        let sandbox = created.map_err(SeamError::from_display)?;
        self.sandboxes.put(sandbox.clone());
        Ok(Arc::new(NodeSandbox {
            sandbox,
            sandboxes: self.sandboxes.clone(),
        }))
    }

    async fn records(&self, pod_dir: &Path) -> SeamResult<Vec<ContainerRecord>> {
        let records = Runtime::records(pod_dir.to_owned()).await;
        records.map_err(SeamError::from_display)
    }
}

/// One sandbox of the runtime.
pub(crate) struct NodeSandbox {
    pub(crate) sandbox: Sandbox,
    pub(crate) sandboxes: Sandboxes,
}

impl From<RuntimeError> for ContainerError {
    fn from(error: RuntimeError) -> Self {
        Self {
            reason: error.reason(),
            message: error.to_string(),
        }
    }
}

#[async_trait]
impl PodSandbox for NodeSandbox {
    fn network_namespace(&self) -> Option<PathBuf> {
        self.sandbox.netns().map(Path::to_owned)
    }

    fn state(&self) -> watch::Receiver<SandboxState> {
        self.sandbox.watch()
    }

    async fn create(&self, config: ContainerConfig) -> Result<ContainerRecord, ContainerError> {
        Ok(self.sandbox.create_container(config).await?)
    }

    async fn start(&self, id: &str) -> Result<ContainerRecord, ContainerError> {
        Ok(self.sandbox.start_container(id).await?)
    }

    async fn signal(&self, id: &str, signal: i32) -> SeamResult<()> {
        let sent = self.sandbox.signal(id, signal).await;
        sent.map_err(SeamError::from_display)
    }

    async fn remove(&self, id: &str) -> SeamResult<()> {
        let removed = self.sandbox.remove_container(id).await;
        removed.map_err(SeamError::from_display)
    }

    async fn exec(
        &self,
        id: &str,
        command: &[String],
        timeout: Option<Duration>,
    ) -> SeamResult<ExecOutcome> {
        let request = ExecRequest {
            command: command.to_vec(),
            tty: false,
            stdin: false,
        };
        let work = async {
            let session = self.sandbox.exec(id, request).await;
            collect(session.map_err(SeamError::from_display)?).await
        };
        match timeout {
            // Dropping the session kills the command.
            Some(limit) => match tokio::time::timeout(limit, work).await {
                Ok(outcome) => outcome,
                Err(_) => Ok(ExecOutcome::TimedOut),
            },
            None => work.await,
        }
    }

    async fn destroy(&self) -> SeamResult<()> {
        self.sandbox
            .destroy()
            .await
            .map_err(SeamError::from_display)?;
        self.sandboxes.remove(self.sandbox.uid());
        Ok(())
    }
}

/// Waits for a command's end and gathers what it said on both streams.
async fn collect(mut session: Session) -> SeamResult<ExecOutcome> {
    let (stdout, stderr) = (session.stdout.take(), session.stderr.take());
    let (mut out, err, code) = tokio::join!(read(stdout), read(stderr), session.wait());
    out.extend(err);
    out.truncate(MAX_OUTPUT);
    Ok(ExecOutcome::Exited {
        code: code.map_err(SeamError::from_display)?,
        output: String::from_utf8_lossy(&out).into_owned(),
    })
}

/// The beginning of a stream; the rest is read too, so that the command is not held up.
async fn read(stream: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut stream) = stream else {
        return kept;
    };
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = MAX_OUTPUT.saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
    kept
}

#[async_trait]
impl PodNetwork for Network {
    async fn attach(&self, pod: &Pod, namespace: &Path) -> SeamResult<Vec<IpAddr>> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let attached = Network::attach(self, uid, namespace, host_ports(pod)).await;
        Ok(vec![attached.map_err(SeamError::from_display)?.ip.into()])
    }

    async fn withdrawn(&self, pod: &Pod, namespace: Option<&Path>) {
        Network::withdrawn(self, pod, namespace).await;
    }

    async fn detach(&self, uid: &str) -> SeamResult<()> {
        let detached = Network::detach(self, uid).await;
        detached.map_err(SeamError::from_display)
    }
}

#[async_trait]
impl ServiceDirectory for Directory {
    async fn known(&self) {
        Directory::known(self).await;
    }

    fn services(&self, namespace: &str) -> Option<Vec<ServiceAddress>> {
        Directory::services(self, namespace)
    }
}

/// The image store, and what fetches into it.
pub(crate) struct NodeImages {
    pub(crate) store: Store,
    pub(crate) puller: Arc<dyn Puller>,
    pub(crate) leases: Leases,
    pub(crate) accounts: PullAccounts,
    /// Wakes whoever reports this node's images.
    pub(crate) changed: Arc<Notify>,
}

impl NodeImages {
    async fn get(&self, image: &str) -> SeamResult<Option<Arc<Image>>> {
        let reference: Reference = image.parse().map_err(SeamError::from_display)?;
        let found = self.store.get(&reference).await;
        found.map_err(SeamError::from_display)
    }
}

fn resolved(image: &Image) -> ResolvedImage {
    let pulled = image.repo_digests().first().map(ToString::to_string);
    ResolvedImage {
        id: pulled.unwrap_or_else(|| image.id.to_string()),
        config: image.config.clone(),
        layers: image.layers.clone(),
    }
}

#[async_trait]
impl ImageSource for NodeImages {
    fn canonical(&self, image: &str) -> String {
        match image.parse::<Reference>() {
            Ok(reference) => reference.to_string(),
            Err(_) => image.to_owned(),
        }
    }

    async fn hold(&self, container_id: &str, name: &str, image: &ResolvedImage) -> SeamResult<()> {
        let name = name.parse().map_err(SeamError::from_display)?;
        self.leases.hold(container_id, &image.id, name).await
    }

    async fn release(&self, container_id: &str) {
        self.leases.release(container_id).await;
    }

    async fn find(&self, image: &str) -> SeamResult<Option<ResolvedImage>> {
        Ok(self.get(image).await?.map(|image| resolved(&image)))
    }

    async fn pull(&self, image: &str, secrets: &[Secret]) -> SeamResult<FetchedImage> {
        let reference: Reference = image.parse().map_err(SeamError::from_display)?;
        let credentials = self.accounts.for_image(&reference, secrets).await?;
        let request = PullRequest::new(reference, credentials);
        let pulled = self.puller.pull(request).await;
        let pulled = pulled.map_err(SeamError::from_display)?;
        self.changed.notify_one();
        Ok(FetchedImage {
            image: resolved(&pulled.image),
            size: pulled.image.size,
            took: pulled.took,
        })
    }
}

/// What the node's server knows of pods.
pub(crate) struct Lookup {
    pub(crate) identity: Identity,
    pub(crate) pods: Pods,
    pub(crate) sandboxes: Sandboxes,
}

impl Lookup {
    fn node_pod(&self, pod: Arc<Pod>) -> NodePod {
        let meta = &pod.metadata;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        let uid = text(&meta.uid);
        let pod_dir = self
            .identity
            .pod_dir(&text(&meta.namespace), &text(&meta.name), &uid);
        NodePod {
            sandbox: self.sandboxes.get(&uid),
            pod_dir,
            pod,
        }
    }
}

impl PodLookup for Lookup {
    fn pod(&self, namespace: &str, name: &str) -> Option<NodePod> {
        let mut pods = self.pods.list().into_iter().filter(|pod| {
            let meta = &pod.metadata;
            meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
        });
        // A pod and its successor of the same name may both be here for a moment.
        let first = pods.next()?;
        let newest = pods.fold(first, |newest, pod| {
            let created = |pod: &Pod| pod.metadata.creation_timestamp.clone();
            if created(&pod) > created(&newest) {
                pod
            } else {
                newest
            }
        });
        Some(self.node_pod(newest))
    }

    fn pods(&self) -> Vec<NodePod> {
        let pods = self.pods.list().into_iter();
        pods.map(|pod| self.node_pod(pod)).collect()
    }
}
