//! Ending everything that a node has on its host, with no agent and no API.

use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::drill;
use crate::identity::Identity;
use crate::net::{Network, NetworkError};
use crate::pod::record;
use crate::runtime::{self, Runtime, RuntimeError, Sandbox};
use crate::volume;

/// The most that containers get to end by themselves, whatever their grace period.
const LONGEST_GRACE: Duration = Duration::from_secs(5);

/// Why something may be left on the host.
#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    #[error("the containers: {0}")]
    Runtime(#[from] RuntimeError),
    #[error("the pod network: {0}")]
    Network(#[from] NetworkError),
    #[error("the volumes: {0}")]
    Volumes(#[source] std::io::Error),
    #[error("what drills did: {0}")]
    Drills(#[from] drill::HealError),
}

/// Stops every pod of a node and removes what the node made on the host: processes, mounts,
/// cgroups, links, run-time state. Works after a crash or a start that was cut short. Images,
/// logs and records stay in the data directory; pods start again with the next agent, unless
/// they are gone from the API by then.
///
/// # Errors
/// What could not be removed; everything else is tried first.
pub async fn purge(identity: &Identity) -> Result<(), PurgeError> {
    // First: a process that a drill has stopped can't end when it is asked to.
    let healed = drill::heal_in_place(identity).await;
    let stopped = stop_pods(identity).await;
    if let Err(error) = &stopped {
        tracing::warn!(%error, "pods are ended without being asked");
    }
    let containers = runtime::purge(identity.clone()).await;
    let network = Network::purge(identity.clone()).await;
    let pods_dir = identity.pods_dir();
    let volumes = tokio::task::spawn_blocking(move || tear_down_volumes(&pods_dir)).await;
    containers?;
    network?;
    match volumes {
        Ok(result) => result.map_err(PurgeError::Volumes)?,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
    Ok(healed.map(drop)?)
}

/// Asks every container to end and waits a bounded time.
async fn stop_pods(identity: &Identity) -> Result<(), RuntimeError> {
    // Nothing ever ran here: making a runtime would only leave things to remove.
    if !identity.run_dir().exists() {
        return Ok(());
    }
    let runtime = Runtime::new(identity.clone()).await?;
    let mut pods = JoinSet::new();
    for sandbox in runtime.sandboxes().await? {
        let identity = identity.clone();
        pods.spawn(async move {
            let config = sandbox.config();
            let pod_dir = identity.pod_dir(&config.namespace, &config.name, &config.uid);
            let pod = record::load(&pod_dir).ok();
            stop_pod(&sandbox, grace(pod.as_ref())).await;
        });
    }
    while pods.join_next().await.is_some() {}
    Ok(())
}

fn grace(pod: Option<&Pod>) -> Duration {
    let spec = pod.and_then(|p| p.spec.as_ref());
    let declared = spec.and_then(|s| s.termination_grace_period_seconds);
    let declared = declared.and_then(|s| u64::try_from(s).ok());
    Duration::from_secs(declared.unwrap_or(30)).min(LONGEST_GRACE)
}

async fn stop_pod(sandbox: &Sandbox, grace: Duration) {
    let deadline = Instant::now() + grace;
    for container in sandbox.containers() {
        if !container.has_exited() {
            let asked = sandbox.signal(&container.id, libc::SIGTERM).await;
            if let Err(error) = asked {
                tracing::warn!(container = container.id, %error, "container not asked to end");
            }
        }
    }
    let mut state = sandbox.watch();
    let ended = state.wait_for(|s| !s.alive || s.containers.values().all(|c| c.has_exited()));
    // What has not ended by then is killed with its sandbox.
    let _ = tokio::time::timeout_at(deadline, ended).await;
    if let Err(error) = sandbox.destroy().await {
        tracing::warn!(pod = sandbox.uid(), %error, "sandbox not destroyed");
    }
}

/// Unmounts the volumes of a node whose processes are gone. Blocking.
pub(crate) fn unmount_volumes(identity: &Identity) -> std::io::Result<()> {
    tear_down_volumes(&identity.pods_dir())
}

fn tear_down_volumes(pods_dir: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(pods_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        volume::unmount_below(&entry?.path())?;
    }
    Ok(())
}
