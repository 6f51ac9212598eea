//! What a pod worker asks of the rest of the node.
//!
//! The worker decides, others do: the runtime keeps sandboxes and containers, the network gives
//! addresses, the image store gives root filesystems, the API gives the objects a pod refers to and
//! takes its status. Each is a small trait here, so that a worker can be tested against a script
//! under paused time; [`crate::agent`] wires the real ones.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodStatus, Secret};
use tokio::sync::watch;

use crate::net::dns::ServiceAddress;
use crate::runtime::types::{ContainerConfig, ContainerRecord, SandboxConfig, SandboxState};

/// A failure in the words of the part that failed; the worker puts them into events and statuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SeamError(pub String);

impl SeamError {
    /// The words of any error.
    pub fn from_display(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

/// Result of asking another part of the node.
pub type SeamResult<T> = Result<T, SeamError>;

/// Keeps pod sandboxes: namespaces, cgroup and supervisor.
#[async_trait]
pub trait ContainerRuntime: Send + Sync + 'static {
    /// Starts the sandbox of a pod that has none, and clears away what is left of an earlier one.
    async fn start_sandbox(&self, config: SandboxConfig) -> SeamResult<Arc<dyn PodSandbox>>;

    /// The records of containers in the directory of a pod without a sandbox; those that seem
    /// to run are lost.
    async fn records(&self, pod_dir: &Path) -> SeamResult<Vec<ContainerRecord>>;
}

/// One pod's sandbox.
#[async_trait]
pub trait PodSandbox: Send + Sync + 'static {
    /// Where the pod's network namespace is pinned; `None` with host networking.
    fn network_namespace(&self) -> Option<PathBuf>;

    /// What the sandbox is, at any moment: its containers (dead ones too) and whether its
    /// supervisor lives.
    fn state(&self) -> watch::Receiver<SandboxState>;

    /// Sets a container up; its process waits.
    async fn create(&self, config: ContainerConfig) -> Result<ContainerRecord, ContainerError>;

    /// Lets a created container's process run.
    async fn start(&self, id: &str) -> Result<ContainerRecord, ContainerError>;

    /// Sends a signal to a container's main process; no error if it is gone already. SIGKILL reaches
    /// every process of the container.
    async fn signal(&self, id: &str, signal: i32) -> SeamResult<()>;

    /// Removes a dead container: its root file system, cgroup and record.
    async fn remove(&self, id: &str) -> SeamResult<()>;

    /// Runs a command in a running container and collects at most 10 KiB of its output.
    async fn exec(
        &self,
        id: &str,
        command: &[String],
        timeout: Option<Duration>,
    ) -> SeamResult<ExecOutcome>;

    /// Kills what still runs and removes the sandbox with all its containers' mounts and cgroups.
    async fn destroy(&self) -> SeamResult<()>;
}

/// Why a container could not be set up or started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ContainerError {
    /// Kubernetes' reason: `CreateContainerError`, `RunContainerError` ...
    pub reason: &'static str,
    pub message: String,
}

/// How a command in a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecOutcome {
    Exited { code: i32, output: String },
    TimedOut,
}

/// Gives pods their addresses.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects a pod's network namespace and leads its ports of the host to it; the same address
    /// again for a pod that is connected.
    async fn attach(&self, pod: &Pod, namespace: &Path) -> SeamResult<Vec<IpAddr>>;

    /// Resolves when no service leads to the pod any more, and it has accepted what was led to its network
    /// namespace; at once when no service ever did.
    async fn withdrawn(&self, pod: &Pod, namespace: Option<&Path>);

    /// Takes the pod's link and address back; no error when it has none.
    async fn detach(&self, uid: &str) -> SeamResult<()>;
}

/// Knows the services that pods find in their environment.
#[async_trait]
pub trait ServiceDirectory: Send + Sync + 'static {
    /// Resolves once all services are known.
    async fn known(&self);

    /// The services of a namespace that have addresses, by name; `None` as long as not all are known.
    fn services(&self, namespace: &str) -> Option<Vec<ServiceAddress>>;
}

/// An image, ready to be a container's root.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedImage {
    /// As in `status.containerStatuses[].imageID`: the name with the digest it was pulled by, or
    /// the digest of its configuration.
    pub id: String,
    pub config: oci_spec::image::ImageConfiguration,
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
}

/// An image that was just fetched.
#[derive(Debug, Clone, PartialEq)]
pub struct FetchedImage {
    pub image: ResolvedImage,
    /// Bytes of its blobs, compressed as they are.
    pub size: u64,
    /// Without the time spent waiting for other pulls.
    pub took: Duration,
}

/// Finds images on this node and fetches the others.
#[async_trait]
pub trait ImageSource: Send + Sync + 'static {
    /// The full name of what a pod calls an image, as statuses show it:
    /// `docker.io/library/nginx:latest` for `nginx`. What is no name stays as it is.
    fn canonical(&self, image: &str) -> String;

    /// Keeps an image from being removed while a container made from it exists.
    async fn hold(&self, container_id: &str, name: &str, image: &ResolvedImage) -> SeamResult<()>;

    /// Ends [`ImageSource::hold`]; nothing happens when there is none.
    async fn release(&self, container_id: &str);

    /// An image that is here.
    ///
    /// # Errors
    /// When the name is none, or the store can't be read.
    async fn find(&self, image: &str) -> SeamResult<Option<ResolvedImage>>;

    /// Fetches an image from its registry, with the accounts that `secrets` hold for it.
    async fn pull(&self, image: &str, secrets: &[Secret]) -> SeamResult<FetchedImage>;
}

/// The API, as far as one pod is concerned.
#[async_trait]
pub trait PodApi: Send + Sync + 'static {
    /// `None` when there is no such object.
    async fn config_map(&self, namespace: &str, name: &str) -> SeamResult<Option<ConfigMap>>;

    /// `None` when there is no such object.
    async fn secret(&self, namespace: &str, name: &str) -> SeamResult<Option<Secret>>;

    /// A token of the pod's service account, bound to the pod, valid for `expiration` seconds.
    async fn service_account_token(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        expiration: i64,
    ) -> SeamResult<String>;

    /// Writes the pod's status.
    async fn write_status(&self, pod: &Pod, status: &PodStatus) -> Result<(), WriteError>;

    /// Removes the pod's object at once, provided it is still the one with this uid.
    async fn delete(&self, pod: &Pod) -> Result<(), WriteError>;
}

/// Why a write did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The object is gone, or another one has its name: nothing is left to write to.
    #[error("the pod's object is gone")]
    Gone,
    /// The API could not be reached or refused; the same write may succeed later.
    #[error("{0}")]
    Retry(String),
}
