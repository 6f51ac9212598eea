//! What a worker has done beside its loop: each function is one task with one result.
//!
//! They touch no state of the worker. Whatever they find out comes back as [`Done`] and is judged
//! against what is true by then.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use tokio::sync::watch;
use tokio::time::Instant;

use super::etc_files::{self, EtcFiles};
use super::events::Severity;
use super::seams::{ContainerError, PodSandbox, ResolvedImage, SeamResult, WriteError};
use super::status::{Attempt, Waiting};
use super::{NodeContext, env, hooks, resources};
use crate::runtime::types::{
    BindMount, ContainerConfig, ContainerRecord, ContainerState, MountPropagation, SandboxConfig,
    SandboxState,
};
use crate::volume::{self, VolumeError, Volumes};

/// The kubelet's bounds for a message of a terminated container.
const MAX_MESSAGE: usize = 4096;
const MAX_LOG_MESSAGE: usize = 2048;
const MAX_LOG_LINES: usize = 80;

/// The result of a task.
pub(super) enum Done {
    Sandbox(SeamResult<Live>),
    Volumes(Result<Volumes, VolumeError>),
    Image(usize, Result<ResolvedImage, ImageFailure>),
    Launched(usize, LaunchResult),
    Hooked(usize, String, Result<(), String>),
    Ended(usize, Attempt),
    /// The attempt with this id was ended.
    Stopped(usize, String),
    TornDown(SeamResult<()>),
    Deleted(Result<(), WriteError>),
    Removed,
    /// Nothing is waiting for it.
    Nothing,
}

/// A sandbox that is connected.
#[derive(Clone)]
pub(super) struct Live {
    pub(super) sandbox: Arc<dyn PodSandbox>,
    pub(super) state: watch::Receiver<SandboxState>,
    pub(super) ips: Vec<IpAddr>,
}

/// Why there is no image, and whether that came from trying to fetch it.
pub(super) struct ImageFailure {
    pub(super) waiting: Waiting,
    pub(super) pulled: bool,
}

/// The container that runs, or why none does and the record that was left of it.
pub(super) type LaunchResult = Result<ContainerRecord, (ContainerError, Option<ContainerRecord>)>;

/// Starts the pod's sandbox, unless it has one, and connects it.
pub(super) async fn start_sandbox(
    node: Arc<NodeContext>,
    pod: Arc<Pod>,
    pod_dir: PathBuf,
    existing: Option<Arc<dyn PodSandbox>>,
) -> SeamResult<Live> {
    let sandbox = match existing {
        Some(sandbox) => sandbox,
        None => {
            node.runtime
                .start_sandbox(sandbox_config(&pod, &pod_dir))
                .await?
        }
    };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let ips = match sandbox.network_namespace() {
        Some(namespace) => node.network.attach(uid, &namespace).await?,
        None => node.facts.host_ips.clone(),
    };
    let (written, addresses) = (pod.clone(), ips.clone());
    let files = EtcFiles::at(&pod_dir);
    blocking(move || files.write(&written, &addresses)).await?;
    Ok(Live {
        state: sandbox.state(),
        sandbox,
        ips,
    })
}

fn sandbox_config(pod: &Pod, pod_dir: &Path) -> SandboxConfig {
    let spec = pod.spec.clone().unwrap_or_default();
    let host_network = etc_files::host_network(pod);
    let sysctls = spec.security_context.and_then(|c| c.sysctls);
    SandboxConfig {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        hostname: (!host_network).then(|| etc_files::hostname(pod)),
        host_network,
        host_ipc: spec.host_ipc == Some(true),
        host_pid: spec.host_pid == Some(true),
        share_process_namespace: spec.share_process_namespace == Some(true),
        pod_dir: pod_dir.to_owned(),
        sysctls: sysctls
            .into_iter()
            .flatten()
            .map(|s| (s.name, s.value))
            .collect(),
        qos: resources::qos_class(pod),
        resources: resources::pod_cgroup(pod),
    }
}

/// Makes the pod's volumes present.
pub(super) async fn set_up_volumes(
    node: Arc<NodeContext>,
    pod: Arc<Pod>,
    pod_dir: PathBuf,
) -> Result<Volumes, VolumeError> {
    volume::set_up(&volume::Context {
        api: &*node.api,
        pod: &pod,
        pod_dir: &pod_dir,
        pod_ips: &[],
        node: &node.facts,
    })
    .await
}

/// Writes the present content of the pod's volumes.
pub(super) async fn refresh_volumes(node: Arc<NodeContext>, pod: Arc<Pod>, pod_dir: PathBuf) {
    let refreshed = volume::refresh(&volume::Context {
        api: &*node.api,
        pod: &pod,
        pod_dir: &pod_dir,
        pod_ips: &[],
        node: &node.facts,
    })
    .await;
    if let Err(error) = refreshed {
        tracing::debug!(pod = pod.metadata.name, %error, "volume not refreshed");
    }
}

/// Finds a container's image, or fetches it as the policy says.
pub(super) async fn resolve_image(
    node: Arc<NodeContext>,
    pod: Arc<Pod>,
    container: Container,
    field: String,
) -> Result<ResolvedImage, ImageFailure> {
    let name = container.image.clone().unwrap_or_default();
    let event = |severity, reason, message: String| {
        node.events
            .container(&pod, &field, severity, reason, message);
    };
    let fail = |reason: &str, message: String, pulled: bool| {
        event(Severity::Warning, "Failed", format!("Error: {reason}"));
        ImageFailure {
            waiting: Waiting::new(reason, message),
            pulled,
        }
    };
    let present = match node.images.find(&name).await {
        Ok(present) => present,
        Err(error) => {
            let message = format!("Failed to apply default image tag \"{name}\": {error}");
            event(Severity::Warning, "InspectFailed", message.clone());
            return Err(fail("InvalidImageName", message, false));
        }
    };
    let policy = container
        .image_pull_policy
        .as_deref()
        .unwrap_or("IfNotPresent");
    match (present, policy) {
        // Offline, what is here is the newest that can be had.
        (Some(image), policy) if policy != "Always" || node.offline => {
            let message = format!(
                "Container image \"{name}\" already present on machine and can be accessed by the pod"
            );
            event(Severity::Normal, "Pulled", message);
            return Ok(image);
        }
        (None, "Never") => {
            let message =
                format!("Container image \"{name}\" is not present with pull policy of Never");
            event(Severity::Warning, "ErrImageNeverPull", message.clone());
            return Err(fail("ErrImageNeverPull", message, false));
        }
        _ => {}
    }
    event(
        Severity::Normal,
        "Pulling",
        format!("Pulling image \"{name}\""),
    );
    let begun = Instant::now();
    let pulled = node
        .images
        .pull(&name, &pull_secrets(&node, &pod).await)
        .await;
    match pulled {
        Ok((image, bytes)) => {
            let took = go_duration(begun.elapsed());
            let message = format!(
                "Successfully pulled image \"{name}\" in {took} ({took} including waiting). \
                 Image size: {bytes} bytes."
            );
            event(Severity::Normal, "Pulled", message);
            Ok(image)
        }
        Err(error) => {
            let message = format!("Failed to pull image \"{name}\": {error}");
            event(Severity::Warning, "Failed", message);
            Err(fail("ErrImagePull", error.to_string(), true))
        }
    }
}

/// Milliseconds below a second, else seconds with three decimals, as Go prints durations.
fn go_duration(duration: Duration) -> String {
    match duration.as_millis() {
        millis if millis < 1000 => format!("{millis}ms"),
        _ => format!("{:.3}s", duration.as_secs_f64()),
    }
}

async fn pull_secrets(node: &NodeContext, pod: &Pod) -> Vec<Secret> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut secrets = Vec::new();
    let references = pod
        .spec
        .iter()
        .flat_map(|s| s.image_pull_secrets.iter().flatten());
    for reference in references {
        // A secret that is missing is no error: the image may be public.
        if let Ok(Some(secret)) = node.api.secret(namespace, &reference.name).await {
            secrets.push(secret);
        }
    }
    secrets
}

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
        let Self {
            node, pod, field, ..
        } = &self;
        let failed = |error: ContainerError| {
            let message = format!("Error: {error}");
            node.events
                .container(pod, field, Severity::Warning, "Failed", message);
            error
        };
        let id = new_id();
        let config = self.config(&id).await.map_err(|message| {
            let reason = "CreateContainerConfigError";
            (failed(ContainerError { reason, message }), None)
        })?;
        let left = |error: ContainerError| {
            let left = self.live.state.borrow().containers.get(&id).cloned();
            (
                error,
                left.filter(|r| matches!(r.state, ContainerState::Exited { .. })),
            )
        };
        let name = self.container.image.as_deref().unwrap_or_default();
        let sandbox = &self.live.sandbox;
        let (held, created) = tokio::join!(
            node.images.hold(&id, name, &self.image),
            sandbox.create(config)
        );
        if let Err(error) = held {
            tracing::warn!(pod = pod.metadata.name, %error, "image not protected from removal");
        }
        // A command that can't be executed is found out early, but the container was made.
        let made = created
            .as_ref()
            .err()
            .is_none_or(|e| e.reason == "RunContainerError");
        if made {
            node.events
                .container(pod, field, Severity::Normal, "Created", "Container created");
        }
        created.map_err(|error| left(failed(error)))?;
        let started = sandbox.start(&id).await;
        let record = started.map_err(|error| left(failed(error)))?;
        node.events
            .container(pod, field, Severity::Normal, "Started", "Container started");
        Ok(record)
    }

    async fn config(&self, id: &str) -> Result<ContainerConfig, String> {
        let Self {
            node,
            pod,
            container,
            ..
        } = self;
        let env = env::resolve(&*node.api, pod, container, &self.live.ips, &node.facts).await?;
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

/// Where the last words of an attempt are.
fn termination_log(pod_dir: &Path, id: &str) -> PathBuf {
    pod_dir.join("termination").join(id)
}

/// Runs a postStart hook.
pub(super) async fn post_start(
    node: Arc<NodeContext>,
    pod: Arc<Pod>,
    container: Container,
    field: String,
    id: String,
    live: Live,
) -> Result<(), String> {
    let lifecycle = container.lifecycle.as_ref();
    let Some(handler) = lifecycle.and_then(|l| l.post_start.as_ref()) else {
        return Ok(());
    };
    let ip = live
        .ips
        .first()
        .map(ToString::to_string)
        .unwrap_or_default();
    let result = hooks::run(handler, &container, &id, &*live.sandbox, &ip).await;
    if let Err(message) = &result {
        let events = &node.events;
        events.container(
            &pod,
            &field,
            Severity::Warning,
            "FailedPostStartHook",
            message.clone(),
        );
    }
    result
}

/// Reads the last words of an attempt that ended.
pub(super) async fn close(
    node: Arc<NodeContext>,
    pod_dir: PathBuf,
    container: Container,
    mut record: ContainerRecord,
) -> Attempt {
    record.image = node.images.canonical(&record.image);
    let read = record.clone();
    let message = blocking(move || Ok(last_words(&pod_dir, &container, &read))).await;
    Attempt {
        record,
        message: message.unwrap_or_default(),
    }
}

fn last_words(pod_dir: &Path, container: &Container, record: &ContainerRecord) -> Option<String> {
    let said = std::fs::read(termination_log(pod_dir, &record.id)).unwrap_or_default();
    if !said.is_empty() {
        let end = said.len().min(MAX_MESSAGE);
        return Some(String::from_utf8_lossy(&said[..end]).into_owned());
    }
    let ContainerState::Exited {
        exit_code,
        error: None,
        ..
    } = &record.state
    else {
        return None;
    };
    let policy = container.termination_message_policy.as_deref();
    if *exit_code == 0 || policy != Some("FallbackToLogsOnError") {
        return None;
    }
    let log = std::fs::read(&record.log_path).ok()?;
    Some(tail(&log)).filter(|m| !m.is_empty())
}

/// The end of a log in the CRI format, without its time stamps.
fn tail(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let mut lines = Vec::new();
    let mut size = 0;
    for line in text.lines().rev().take(MAX_LOG_LINES) {
        // <time> <stream> <P|F> <text>
        let mut parts = line.splitn(4, ' ').skip(2);
        let end = if parts.next() == Some("P") { "" } else { "\n" };
        let line = format!("{}{end}", parts.next().unwrap_or_default());
        size += line.len();
        if size > MAX_LOG_MESSAGE {
            break;
        }
        lines.push(line);
    }
    lines.reverse();
    lines.concat()
}

/// How a container is to be ended.
pub(super) struct Stop {
    pub(super) node: Arc<NodeContext>,
    pub(super) pod: Arc<Pod>,
    pub(super) container: Container,
    pub(super) field: String,
    pub(super) id: String,
    pub(super) live: Live,
    /// When it is killed at the latest; may move while it ends.
    pub(super) deadline: watch::Receiver<Instant>,
    /// Of the `Killing` event.
    pub(super) message: String,
}

/// The least time between SIGTERM and SIGKILL, whatever a preStop hook took.
const LEAST_GRACE: Duration = Duration::from_secs(2);

impl Stop {
    /// preStop hook, stop signal, grace period, SIGKILL; returns when the container has ended.
    pub(super) async fn run(mut self) {
        self.node.events.container(
            &self.pod,
            &self.field,
            Severity::Normal,
            "Killing",
            self.message.clone(),
        );
        let mut state = self.live.state.clone();
        let id = self.id.clone();
        let ended = async {
            // An error means that the sandbox is gone, and the container with it.
            let _ = state
                .wait_for(|s| {
                    !s.alive
                        || s.containers
                            .get(&id)
                            .is_none_or(ContainerRecord::has_exited)
                })
                .await;
        };
        tokio::select! {
            () = ended => {}
            () = self.sequence() => {}
        }
    }

    async fn sequence(&mut self) {
        let lifecycle = self.container.lifecycle.clone();
        if let Some(handler) = lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref()) {
            let ip = self
                .live
                .ips
                .first()
                .map(ToString::to_string)
                .unwrap_or_default();
            let sandbox = self.live.sandbox.clone();
            let hook = hooks::run(handler, &self.container, &self.id, &*sandbox, &ip);
            let mut deadline = self.deadline.clone();
            let result = tokio::select! {
                result = hook => result,
                () = passed(&mut deadline) => Err("the grace period ended first".to_owned()),
            };
            if let Err(message) = result {
                let Self {
                    node, pod, field, ..
                } = self;
                node.events
                    .container(pod, field, Severity::Warning, "FailedPreStopHook", message);
            }
        }
        let signal = self.stop_signal().await;
        self.signal(signal).await;
        let least = tokio::time::sleep(LEAST_GRACE);
        tokio::join!(passed(&mut self.deadline), least);
        self.signal(libc::SIGKILL).await;
        std::future::pending().await
    }

    /// The declaration's stop signal, else the image's, else SIGTERM.
    async fn stop_signal(&self) -> i32 {
        let lifecycle = self.container.lifecycle.as_ref();
        if let Some(name) = lifecycle.and_then(|l| l.stop_signal.as_deref()) {
            return signal_number(name);
        }
        let image = self.container.image.as_deref().unwrap_or_default();
        let image = self.node.images.find(image).await.ok().flatten();
        let config = image.as_ref().and_then(|i| i.config.config().as_ref());
        let name = config.and_then(|c| c.stop_signal().as_deref());
        name.map_or(libc::SIGTERM, signal_number)
    }

    async fn signal(&self, signal: i32) {
        if let Err(error) = self.live.sandbox.signal(&self.id, signal).await {
            let pod = self.pod.metadata.name.as_deref();
            tracing::warn!(pod, container = self.id, signal, %error, "signal not sent");
        }
    }
}

/// `SIGQUIT`, `QUIT` or `3`; SIGTERM for what is none.
fn signal_number(name: &str) -> i32 {
    if let Ok(number) = name.parse() {
        return number;
    }
    let name = name.to_ascii_uppercase();
    let name = if name.starts_with("SIG") {
        name
    } else {
        format!("SIG{name}")
    };
    name.parse::<nix::sys::signal::Signal>()
        .map_or(libc::SIGTERM, |signal| signal as i32)
}

/// Resolves when a deadline has passed that may be moved.
async fn passed(deadline: &mut watch::Receiver<Instant>) {
    loop {
        let at = *deadline.borrow_and_update();
        tokio::select! {
            () = tokio::time::sleep_until(at) => return,
            changed = deadline.changed() => if changed.is_err() {
                return tokio::time::sleep_until(at).await;
            },
        }
    }
}

/// Removes an attempt that nothing needs any more: its container and its log.
pub(super) async fn discard(
    node: Arc<NodeContext>,
    pod_dir: PathBuf,
    sandbox: Arc<dyn PodSandbox>,
    record: ContainerRecord,
) {
    if let Err(error) = sandbox.remove(&record.id).await {
        tracing::warn!(container = record.id, %error, "ended container not removed");
    }
    node.images.release(&record.id).await;
    let removed = blocking(move || {
        let _ = std::fs::remove_file(termination_log(&pod_dir, &record.id));
        let Some(dir) = record.log_path.parent() else {
            return Ok(());
        };
        // The log itself and what rotation made of it: `3.log`, `3.log.20261122-101112.gz`.
        let prefix = record.log_path.file_name().unwrap_or_default();
        for entry in std::fs::read_dir(dir)?.flatten() {
            let name = entry.file_name();
            if name
                .as_encoded_bytes()
                .starts_with(prefix.as_encoded_bytes())
            {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(())
    });
    drop(removed.await);
}

/// Takes down what a pod has on the host, except its directory.
pub(super) async fn tear_down(
    node: Arc<NodeContext>,
    uid: String,
    pod_dir: PathBuf,
    sandbox: Option<Arc<dyn PodSandbox>>,
    held: Vec<String>,
) -> SeamResult<()> {
    if let Some(sandbox) = sandbox {
        sandbox.destroy().await?;
    }
    node.network.detach(&uid).await?;
    blocking(move || volume::tear_down(&pod_dir)).await?;
    for holder in held {
        node.images.release(&holder).await;
    }
    Ok(())
}

/// Removes a pod's directory.
pub(super) async fn remove_directory(pod_dir: PathBuf) {
    let path = pod_dir.clone();
    let removed = blocking(move || match std::fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    });
    if let Err(error) = removed.await {
        tracing::warn!(path = %pod_dir.display(), %error, "pod directory not removed");
    }
}

/// Runs file system work where it may block.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> SeamResult<T> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(super::seams::SeamError::from_display)?;
    done.map_err(super::seams::SeamError::from_display)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals() {
        for (name, number) in [
            ("SIGQUIT", libc::SIGQUIT),
            ("int", libc::SIGINT),
            ("9", 9),
            ("nonsense", libc::SIGTERM),
        ] {
            assert_eq!(signal_number(name), number, "{name}");
        }
    }

    #[test]
    fn log_tails_lose_their_stamps() {
        let log = b"2026-01-01T00:00:00.0Z stdout F one\n2026-01-01T00:00:00.0Z stderr P tw\n2026-01-01T00:00:00.0Z stderr F o\n";
        assert_eq!(tail(log), "one\ntwo\n");
        let long = format!("2026-01-01T00:00:00.0Z stdout F {}\n", "x".repeat(1000)).repeat(5);
        assert_eq!(tail(long.as_bytes()).len(), 2002);
    }
}
