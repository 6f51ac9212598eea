//! Requests to a shim, their answers, and the news it tells.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::record::ContainerRecord;

/// The socket in a pod's run directory.
pub const SOCKET_FILE: &str = "shim.sock";
/// The pinned network namespace in a pod's run directory.
pub const NETNS_FILE: &str = "net";
/// The pod's `/dev/shm`, in its run directory.
pub const SHM_DIR: &str = "shm";
/// Where a container's root is mounted, in a mount namespace of its own.
pub const ROOTFS_DIR: &str = "rootfs";
/// What the shim is started with, in the pod's run directory.
pub const SPEC_FILE: &str = "shim.json";

/// What a shim is started with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SandboxSpec {
    pub uid: String,
    /// `/run/skiff/<id>/pods/<uid>`: socket, pinned namespaces. Exists.
    pub run_dir: PathBuf,
    /// `<root>/pods/<namespace>_<pod>_<uid>`: records of containers. Exists.
    pub pod_dir: PathBuf,
    /// `None` keeps the host's UTS namespace.
    pub hostname: Option<String>,
    pub host_network: bool,
    pub host_ipc: bool,
    /// The containers share one pid namespace, whose first process is the shim's.
    pub share_process_namespace: bool,
    pub sysctls: BTreeMap<String, String>,
    /// The cgroups that the shim itself joins, one directory for each hierarchy.
    pub cgroups: Vec<PathBuf>,
}

/// One request. Its answer carries the same number.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub seq: u64,
    pub call: Call,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Call {
    /// Answer: [`Reply::State`].
    State,
    /// As `State`; from the answer on, every change is told on this connection.
    Subscribe,
    /// Sets a container up; its process waits. Answer: [`Reply::Container`].
    Create(Box<Create>),
    /// Lets a created container's process run. Answer: [`Reply::Container`].
    Start { id: String },
    /// Sends a signal to a container's init. Answer: [`Reply::Done`], also when it has ended.
    Signal { id: String, signal: i32 },
    /// Forgets an ended container and its record; its files are the caller's to delete.
    Remove { id: String },
    /// Runs a command in a container. Without a terminal three descriptors come with it: stdin,
    /// stdout, stderr. Answer: [`Reply::Exec`], with the terminal's descriptor if there is one;
    /// later [`Message::Ended`]. The command is killed when the connection closes.
    Exec(Exec),
    /// Copies a container's output from now on to the two descriptors that come with it.
    /// Answer: [`Reply::Attached`], with the descriptor to write input to, if it has one; later
    /// [`Message::Ended`]. It lasts until the connection closes.
    /// With `stdinOnce`, the first client that wants the input gets the only descriptor of it.
    Attach { id: String, stdin: bool },
    /// Kills every container and ends the shim. Answer: [`Reply::Done`], once all have ended.
    Shutdown,
}

/// A container to set up.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Create {
    pub id: String,
    pub name: String,
    pub attempt: u32,
    pub image: String,
    pub image_id: String,
    pub log_path: PathBuf,
    /// `<pod dir>/containers/<id>`: holds `config.json` (the OCI specification); the record
    /// is written here.
    pub state_dir: PathBuf,
    pub rootfs: Overlay,
    /// The container's cgroups, made and limited; one directory for each hierarchy.
    pub cgroups: Vec<PathBuf>,
    pub tty: bool,
    pub stdin: bool,
    /// The first attached client's end of input is the container's.
    pub stdin_once: bool,
    pub log_limits: LogLimits,
}

/// An overlay mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Overlay {
    /// Lowest first.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
}

/// When a log file is rotated, and how many files are kept, the current one included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogLimits {
    pub max_bytes: u64,
    pub max_files: usize,
}

impl Default for LogLimits {
    /// The kubelet's `containerLogMaxSize` and `containerLogMaxFiles`.
    fn default() -> Self {
        Self {
            max_bytes: 10 * 1024 * 1024,
            max_files: 5,
        }
    }
}

/// A command to run in a container, with everything else as the container's own process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exec {
    pub id: String,
    pub args: Vec<String>,
    pub tty: bool,
}

/// What a shim sends.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Message {
    Answer {
        seq: u64,
        result: Result<Reply, Failure>,
    },
    /// A container changed; told to subscribers.
    Changed(Box<ContainerRecord>),
    /// A container was removed; told to subscribers.
    Removed { id: String },
    /// The command of this connection's [`Call::Exec`] (or the container attached to) ended.
    Ended {
        /// 128 + signal when a signal ended it.
        exit_code: i32,
    },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    State(PodState),
    Container(Box<ContainerRecord>),
    Exec {
        /// As the host sees it.
        pid: i32,
    },
    Attached,
    Done,
}

/// Everything that a shim knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PodState {
    /// The shim's own process.
    pub pid: i32,
    pub containers: Vec<ContainerRecord>,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    pub kind: FailureKind,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailureKind {
    /// No such container.
    NotFound,
    /// The container's state does not allow it.
    Conflict,
    /// The container or command could not be set up or started: the runtime's own words.
    Start,
    /// The request could not be understood or lacks its descriptors.
    Invalid,
    /// Something else went wrong.
    Internal,
}

impl Failure {
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}
