//! What a worker has done beside its loop: each function is one task with one result.
//!
//! They touch no state of the worker. Whatever they find out comes back as [`Done`] and is judged
//! against what is true by then.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::sync::watch;

use super::etc_files::{self, EtcFiles};
use super::events::Severity;
use super::last_words::termination_log;
use super::launch::LaunchResult;
use super::pull::ImageFailure;
use super::seams::{PodSandbox, ResolvedImage, SeamError, SeamResult, WriteError};
use super::status::Attempt;
use super::{NodeContext, hooks, resources};
use crate::runtime::types::{ContainerRecord, SandboxConfig, SandboxState};
use crate::volume::{self, VolumeError, Volumes};

/// The result of a task. Short-lived and moved once: its size does not matter.
#[allow(clippy::large_enum_variant)]
pub(super) enum Done {
    Sandbox(SeamResult<Live>),
    Volumes(Result<Volumes, VolumeError>),
    Image(usize, Result<Box<ResolvedImage>, ImageFailure>),
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
                .start_sandbox(sandbox_config(&pod, &pod_dir)?)
                .await?
        }
    };
    let ips = match sandbox.network_namespace() {
        Some(namespace) => node.network.attach(&pod, &namespace).await?,
        None => node.facts.host_ips.clone(),
    };
    let (written, addresses, dns) = (pod.clone(), ips.clone(), node.dns.clone());
    let files = EtcFiles::at(&pod_dir);
    let left_out = blocking(move || files.write(&written, &addresses, &dns)).await?;
    for message in left_out {
        let events = &node.events;
        events.pod(&pod, Severity::Warning, "DNSConfigForming", message);
    }
    Ok(Live {
        state: sandbox.state(),
        sandbox,
        ips,
    })
}

fn sandbox_config(pod: &Pod, pod_dir: &Path) -> SeamResult<SandboxConfig> {
    let hostname = etc_files::kernel_hostname(pod).map_err(SeamError)?;
    let spec = pod.spec.clone().unwrap_or_default();
    let host_network = etc_files::host_network(pod);
    let sysctls = spec.security_context.and_then(|c| c.sysctls);
    Ok(SandboxConfig {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        hostname: (!host_network).then_some(hostname),
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
    })
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
    let done = done.map_err(SeamError::from_display)?;
    done.map_err(SeamError::from_display)
}
