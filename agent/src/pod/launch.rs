//! One attempt to run a container: its configuration, its creation, its start.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::etc_files::EtcFiles;
use super::events::Severity;
use super::last_words::termination_log;
use super::seams::{ContainerError, ResolvedImage};
use super::tasks::{Live, blocking};
use super::{NodeContext, env, resources, service_env};
use crate::runtime::types::{BindMount, ContainerConfig, ContainerRecord, MountPropagation};
use crate::volume::{self, Volumes};

/// The container that runs, or why none does and the record that was left of it.
pub(super) type LaunchResult = Result<ContainerRecord, (ContainerError, Option<ContainerRecord>)>;

/// Everything that one attempt is made of.
pub(super) struct Launch {
    pub(super) node: Arc<NodeContext>,
    pub(super) pod: Arc<Pod>,
    pub(super) pod_dir: PathBuf,
    pub(super) container: Container,
    pub(super) field: String,
    pub(super) attempt: u32,
    pub(super) image: ResolvedImage,
    pub(super) volumes: Volumes,
    pub(super) live: Live,
}

impl Launch {
    /// Creates the container and lets it run.
    pub(super) async fn run(self) -> LaunchResult {
        let id = new_id();
        let result = match self.config(&id).await {
            Ok(config) => self.create_and_start(&id, config).await,
            Err(message) => Err(ContainerError {
                reason: "CreateContainerConfigError",
                message,
            }),
        };
        let error = match result {
            Ok(record) => return Ok(record),
            Err(error) => error,
        };
        self.tell(Severity::Warning, "Failed", &format!("Error: {error}"));
        let left = self.live.state.borrow().containers.get(&id).cloned();
        let left = left.filter(ContainerRecord::has_exited);
        if left.is_none() {
            self.node.images.release(&id).await;
            let _ = tokio::fs::remove_file(termination_log(&self.pod_dir, &id)).await;
        }
        Err((error, left))
    }

    async fn create_and_start(
        &self,
        id: &str,
        config: ContainerConfig,
    ) -> Result<ContainerRecord, ContainerError> {
        let name = self.container.image.as_deref().unwrap_or_default();
        let sandbox = &self.live.sandbox;
        let (held, created) = tokio::join!(
            self.node.images.hold(id, name, &self.image),
            sandbox.create(config)
        );
        if let Err(error) = held {
            let pod = self.pod.metadata.name.as_deref();
            tracing::warn!(pod, %error, "image not protected from removal");
        }
        // A command that can't be executed is found out early, but the container was made.
        let failed = created.as_ref().err();
        if failed.is_none_or(|error| error.reason == "RunContainerError") {
            self.tell(Severity::Normal, "Created", "Container created");
        }
        created?;
        let record = sandbox.start(id).await?;
        self.tell(Severity::Normal, "Started", "Container started");
        Ok(record)
    }

    fn tell(&self, severity: Severity, reason: &'static str, message: &str) {
        let events = &self.node.events;
        events.container(&self.pod, &self.field, severity, reason, message);
    }

    async fn config(&self, id: &str) -> Result<ContainerConfig, String> {
        let Self {
            node,
            pod,
            container,
            ..
        } = self;
        let services = service_env::of(&*node.services, pod).await?;
        let ips = &self.live.ips;
        let env = env::resolve(&*node.api, pod, container, ips, &node.facts, &services).await?;
        let (log_dir, mounts) = {
            let (container, volumes, env) = (container.clone(), self.volumes.clone(), env.clone());
            let pod_dir = self.pod_dir.clone();
            let id = id.to_owned();
            let work = move || {
                let log_dir = pod_dir.join(&container.name);
                std::fs::create_dir_all(&log_dir)?;
                let mounts = volume::mounts::of(&container, &volumes, &env);
                let managed = managed_mounts(&pod_dir, &container, &id)?;
                Ok((log_dir, mounts.map(|m| [m, managed].concat())))
            };
            let (log_dir, mounts) = blocking(work).await.map_err(|e| e.to_string())?;
            (log_dir, mounts?)
        };
        Ok(ContainerConfig {
            id: id.to_owned(),
            name: container.name.clone(),
            attempt: self.attempt,
            pod: Pod::clone(pod),
            container: container.clone(),
            image: self.image.config.clone(),
            image_id: self.image.id.clone(),
            layers: self.image.layers.clone(),
            env,
            mounts,
            log_path: log_dir.join(format!("{}.log", self.attempt)),
            resources: resources::container_cgroup(container),
            oom_score_adj: resources::oom_score_adj(pod, container, node.memory_capacity),
        })
    }
}

/// 64 hexadecimal digits.
fn new_id() -> String {
    let bytes: [u8; 32] = rand::random();
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The files that Kubernetes manages, unless the container mounts something there itself, and
/// the termination log.
fn managed_mounts(
    pod_dir: &Path,
    container: &Container,
    id: &str,
) -> std::io::Result<Vec<BindMount>> {
    let files = EtcFiles::at(pod_dir);
    let log = termination_log(pod_dir, id);
    if let Some(dir) = log.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::File::create(&log)?;
    // Any user of the container may leave a message.
    std::fs::set_permissions(&log, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let mount = |host_path: PathBuf, container_path: &str| BindMount {
        host_path,
        container_path: container_path.to_owned(),
        read_only: false,
        propagation: MountPropagation::Private,
    };
    let path = container.termination_message_path.as_deref();
    let path = path
        .filter(|p| !p.is_empty())
        .unwrap_or("/dev/termination-log");
    let own = |path: &str| {
        let mut mounts = container.volume_mounts.iter().flatten();
        mounts.any(|m| m.mount_path == path)
    };
    let managed = [
        mount(files.hosts, "/etc/hosts"),
        mount(files.hostname, "/etc/hostname"),
        mount(files.resolv_conf, "/etc/resolv.conf"),
        mount(log, path),
    ];
    Ok(managed
        .into_iter()
        .filter(|m| !own(&m.container_path))
        .collect())
}
