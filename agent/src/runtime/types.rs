//! What the pod worker and the runtime say to each other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1 as core;
use serde::{Deserialize, Serialize};
pub use skiff_shim::record::{
    ContainerRecord, ContainerState, LOST_EXIT_CODE, START_ERROR_EXIT_CODE,
};

/// A pod's sandbox: the namespaces, cgroup and supervisor that its containers share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxConfig {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Host name inside the pod; `None` with `hostNetwork` (the host's own UTS namespace).
    pub hostname: Option<String>,
    pub host_network: bool,
    pub host_ipc: bool,
    pub host_pid: bool,
    pub share_process_namespace: bool,
    /// `<root>/pods/<namespace>_<pod>_<uid>`; exists.
    pub pod_dir: PathBuf,
    pub sysctls: BTreeMap<String, String>,
    pub qos: QosClass,
    /// The pod's own cgroup limits (the sum of its containers', as the kubelet computes them).
    pub resources: CgroupResources,
}

/// Kubernetes' quality of service class: it names the cgroup's parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

/// Limits in the kernel's terms.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CgroupResources {
    /// Relative weight as cgroup v1's `cpu.shares` (2 to 262144).
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU time in each `cpu_period` (100 000 µs).
    pub cpu_quota: Option<i64>,
    pub memory_limit_bytes: Option<i64>,
    pub pids_limit: Option<i64>,
}

/// One attempt to run one container of a pod.
#[derive(Debug, Clone)]
pub struct ContainerConfig {
    /// 64 hexadecimal digits, unique on the node.
    pub id: String,
    pub name: String,
    /// 0 for the first start in the pod, then 1, 2 ...
    pub attempt: u32,
    pub pod: core::Pod,
    pub container: core::Container,
    /// The digest of the image's configuration, as the status reports it.
    pub image_id: String,
    /// The image's own configuration, which the pod's declaration overrides.
    pub image: oci_spec::image::ImageConfiguration,
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    /// The environment that the pod's declaration gives, resolved and in order; the image's
    /// own comes before it.
    pub env: Vec<(String, String)>,
    /// Bind mounts: volumes, `/etc/hosts`, `/etc/resolv.conf`, the termination log ...
    pub mounts: Vec<BindMount>,
    /// `<root>/pods/.../<container>/<attempt>.log`
    pub log_path: PathBuf,
    pub resources: CgroupResources,
    /// The kubelet's value for the QoS class; the runtime clamps what the host refuses.
    pub oom_score_adj: i32,
}

#[derive(Debug, Clone)]
pub struct BindMount {
    pub host_path: PathBuf,
    pub container_path: String,
    pub read_only: bool,
    pub propagation: MountPropagation,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MountPropagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// A command to run in a running container.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    pub command: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
}

/// An attachment to a running container's own process.
#[derive(Debug, Clone, Copy)]
pub struct AttachRequest {
    /// As the container is declared.
    pub tty: bool,
    pub stdin: bool,
}

/// What the agent knows of a sandbox at one moment.
#[derive(Debug, Clone, Default)]
pub struct SandboxState {
    /// Whether its shim runs. When it does not, every container has ended and the sandbox can
    /// only be destroyed.
    pub alive: bool,
    /// The shim's process.
    pub shim_pid: i32,
    /// By id.
    pub containers: BTreeMap<String, ContainerRecord>,
}

/// What a container (or a whole pod) uses right now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CgroupStats {
    /// CPU time used since the start, in nanoseconds.
    pub cpu_usage_ns: u64,
    /// Memory charged, in bytes.
    pub memory_usage_bytes: u64,
    /// Memory that can't be reclaimed easily: usage without inactive file pages.
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    pub memory_limit_bytes: Option<u64>,
    pub pids: u64,
}
