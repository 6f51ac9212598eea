//! Containers: from a pod's declaration to processes, and back to exit codes.
//!
//! [`Runtime`] starts one shim for each pod sandbox and finds those that already run.
//! A [`Sandbox`] is the agent's client of one shim: it creates, starts, signals and removes
//! containers, runs commands in them, and tells of every exit. `spec` turns what Kubernetes
//! says of a container into an OCI runtime specification, `cgroup` speaks to the kernel's
//! cgroup files on v1, v2 and hybrid hosts.
//!
//! ```text
//! SandboxConfig -> Runtime::create_sandbox -> shim (namespaces, /dev/shm) -> Sandbox
//! ContainerConfig -> spec, cgroup -> shim -> libcontainer -> process
//! process ends -> shim (record.json) -> Sandbox::state (a watch) -> whoever looks
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::identity::Identity;

pub mod cgroup;
mod connection;
mod error;
mod launch;
pub mod preflight;
mod purge;
mod sandbox;
pub mod seccomp;
mod session;
pub mod spec;
pub mod types;

pub use error::RuntimeError;
pub use purge::purge;
pub(crate) use purge::purge_blocking;
pub use sandbox::Sandbox;
pub use session::{Session, Stream, Terminal};

use cgroup::Cgroups;
use types::{CgroupResources, ContainerRecord, ExecRequest, SandboxConfig};

/// What the agent keeps in a pod's run directory to know a sandbox again.
const CONFIG_FILE: &str = "sandbox.json";

/// Runs sandboxes on this node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    identity: Identity,
    cgroups: Cgroups,
    shim: PathBuf,
}

impl Runtime {
    /// Makes the node's run directory and cgroups and writes the shim's executable.
    ///
    /// # Errors
    /// When the host lacks usable cgroups or a file can't be written.
    pub async fn new(identity: Identity) -> Result<Self, RuntimeError> {
        blocking(move || {
            let cgroups = Cgroups::detect(identity.cgroup_root())?;
            cgroups.create(&cgroups.shims(), &CgroupResources::default())?;
            let run_dir = identity.run_dir();
            let pods = run_dir.join("pods");
            std::fs::create_dir_all(&pods).map_err(RuntimeError::io("making", &pods))?;
            make_private(&run_dir).map_err(RuntimeError::io("separating mounts in", &run_dir))?;
            let shim = launch::install(&identity.shims_dir())?;
            Ok(Self {
                inner: Arc::new(Inner {
                    identity,
                    cgroups,
                    shim,
                }),
            })
        })
        .await
    }

    /// Every sandbox of this node that is in the run directory, with a live shim or a dead one
    /// (see [`types::SandboxState::alive`]). To be called once, when the agent starts.
    ///
    /// # Errors
    /// When the run directory can't be read.
    pub async fn sandboxes(&self) -> Result<Vec<Sandbox>, RuntimeError> {
        let configs = {
            let pods = self.identity().run_dir().join("pods");
            blocking(move || read_configs(&pods)).await?
        };
        let mut sandboxes = Vec::with_capacity(configs.len());
        for config in configs {
            sandboxes.push(Sandbox::adopt(self.clone(), config).await?);
        }
        Ok(sandboxes)
    }

    /// Starts a pod's shim, with its namespaces and cgroup. What is left of an earlier sandbox
    /// of the same pod is destroyed first; records in its directory are taken over, and those of
    /// containers that nobody saw end are closed as lost.
    ///
    /// # Errors
    /// When the shim can't be started or a namespace or cgroup can't be made; nothing is left.
    pub async fn create_sandbox(&self, config: SandboxConfig) -> Result<Sandbox, RuntimeError> {
        let runtime = self.clone();
        let started = config.clone();
        blocking(move || runtime.launch(&started)).await?;
        Sandbox::adopt(self.clone(), config).await
    }

    /// The records of the containers in a pod's directory, whether or not a shim runs. Without
    /// one, those that seem to run have been lost.
    ///
    /// # Errors
    /// When the directory can't be read.
    pub async fn records(pod_dir: PathBuf) -> Result<Vec<ContainerRecord>, RuntimeError> {
        blocking(move || sandbox::read_records(&pod_dir)).await
    }

    pub fn identity(&self) -> &Identity {
        &self.inner.identity
    }

    pub fn cgroups(&self) -> &Cgroups {
        &self.inner.cgroups
    }

    fn run_dir(&self, uid: &str) -> PathBuf {
        self.identity().pod_run_dir(uid)
    }
}

/// Makes a directory a mount of its own from which no mount spreads: a pinned namespace that
/// spread into another mount namespace would live on there.
fn make_private(directory: &Path) -> std::io::Result<()> {
    use nix::mount::{MsFlags, mount};
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    let none = None::<&str>;
    if !points.any(|point| Path::new(point) == directory) {
        mount(Some(directory), directory, none, MsFlags::MS_BIND, none)?;
    }
    Ok(mount(none, directory, none, MsFlags::MS_PRIVATE, none)?)
}

/// Runs a command in a running container of this node, whether or not its agent runs: the shim
/// is asked directly. Returns once the command is executed.
///
/// # Errors
/// [`RuntimeError::Gone`] when the pod's shim does not run, [`RuntimeError::Start`] when the
/// command can't be executed.
pub async fn exec(
    identity: &Identity,
    pod_uid: &str,
    id: &str,
    request: ExecRequest,
) -> Result<Session, RuntimeError> {
    Session::exec(&shim_socket(identity, pod_uid), pod_uid, id, request).await
}

/// Whether a pod's shim runs. Blocking, but not for long: the kernel answers.
pub fn is_supervised(identity: &Identity, pod_uid: &str) -> bool {
    skiff_shim::wire::connect_to(&shim_socket(identity, pod_uid)).is_ok()
}

fn shim_socket(identity: &Identity, pod_uid: &str) -> PathBuf {
    identity
        .pod_run_dir(pod_uid)
        .join(skiff_shim::protocol::SOCKET_FILE)
}

/// The configurations of the sandboxes in a run directory. A directory without a readable one
/// is a start that was cut short: [`Runtime::create_sandbox`] or [`purge`] clears it away.
fn read_configs(pods: &Path) -> Result<Vec<SandboxConfig>, RuntimeError> {
    let entries = std::fs::read_dir(pods).map_err(RuntimeError::io("listing", pods))?;
    let mut configs = Vec::new();
    for entry in entries {
        let entry = entry.map_err(RuntimeError::io("listing", pods))?;
        let config = std::fs::read(entry.path().join(CONFIG_FILE))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok());
        match config {
            Some(config) => configs.push(config),
            None => tracing::warn!(path = %entry.path().display(), "not a sandbox: ignored"),
        }
    }
    Ok(configs)
}

/// Runs file system and process work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
