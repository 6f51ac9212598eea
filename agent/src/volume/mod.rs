//! A pod's volumes on this host.
//!
//! [`set_up`] makes every volume of a pod present under `<pod dir>/volumes/<name>` (a `hostPath` is
//! where it is) and gives back where each one is; [`mounts::of`] turns a container's `volumeMounts` into
//! bind mounts of them; [`refresh`] brings files that come from the API up to date; [`tear_down`]
//! unmounts and removes everything, also for a pod of which nothing but its directory is known.
//!
//! - `sources`: the content of configMap, secret, projected and downwardAPI volumes;
//! - `atomic`: shows a changed content all at once;
//! - `directory`: emptyDir and hostPath, mounts and ownership.

mod atomic;
mod directory;
pub mod mounts;
mod sources;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};

use crate::pod::fields::NodeFacts;
use crate::pod::seams::PodApi;

pub use directory::unmount_below;

/// Where a pod's volumes are, by name.
pub type Volumes = BTreeMap<String, PathBuf>;

/// Why a volume could not be made present, as the `FailedMount` event says it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {cause}")]
pub struct VolumeError {
    pub volume: String,
    pub cause: String,
}

/// What volumes are made from.
pub struct Context<'a> {
    pub api: &'a dyn PodApi,
    pub pod: &'a Pod,
    pub pod_dir: &'a Path,
    pub pod_ips: &'a [IpAddr],
    pub node: &'a NodeFacts,
}

impl Context<'_> {
    fn dir(&self, volume: &str) -> PathBuf {
        self.pod_dir.join("volumes").join(volume)
    }

    fn fs_group(&self) -> Option<u32> {
        let context = self.pod.spec.as_ref()?.security_context.as_ref()?;
        context.fs_group.and_then(|g| u32::try_from(g).ok())
    }
}

/// Makes every volume of the pod present; what is present already stays as it is.
///
/// # Errors
/// The first volume that can't be made, and why.
pub async fn set_up(context: &Context<'_>) -> Result<Volumes, VolumeError> {
    let mut volumes = Volumes::new();
    for volume in declared(context.pod) {
        let path = one(context, volume).await.map_err(|cause| VolumeError {
            volume: volume.name.clone(),
            cause,
        })?;
        volumes.insert(volume.name.clone(), path);
    }
    Ok(volumes)
}

/// Writes the present content of the volumes that come from the API.
///
/// # Errors
/// The first volume that can't be brought up to date, and why.
pub async fn refresh(context: &Context<'_>) -> Result<(), VolumeError> {
    for volume in declared(context.pod).filter(|v| sources::is_content(v)) {
        one(context, volume).await.map_err(|cause| VolumeError {
            volume: volume.name.clone(),
            cause,
        })?;
    }
    Ok(())
}

/// Whether any volume's content can change while the pod runs.
pub fn needs_refresh(pod: &Pod) -> bool {
    declared(pod).any(sources::is_content)
}

/// Unmounts and removes all volumes of a pod. Blocking.
///
/// # Errors
/// When a mount or a directory can't be removed.
pub fn tear_down(pod_dir: &Path) -> std::io::Result<()> {
    let dir = pod_dir.join("volumes");
    if !dir.exists() {
        return Ok(());
    }
    directory::unmount_below(&dir)?;
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn declared(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten())
}

async fn one(context: &Context<'_>, volume: &Volume) -> Result<PathBuf, String> {
    let dir = context.dir(&volume.name);
    let group = context.fs_group();
    if let Some(source) = &volume.host_path {
        let source = source.clone();
        return blocking(move || directory::host_path(&source)).await;
    }
    if let Some(source) = &volume.empty_dir {
        let source = source.clone();
        return blocking(move || directory::empty_dir(&dir, &source, group).map(|()| dir)).await;
    }
    if let Some(content) = sources::content(context, volume).await? {
        return blocking(move || {
            directory::content_dir(&dir, content.in_memory, group)?;
            atomic::write(&dir, &content.files, group).map_err(|e| e.to_string())?;
            Ok(dir)
        })
        .await;
    }
    Err(format!(
        "no volume plugin matched: {} volumes are not supported by this node; use emptyDir, hostPath, \
         configMap, secret, projected or downwardAPI",
        kind(volume)
    ))
}

/// The declared type's name in the API.
fn kind(volume: &Volume) -> String {
    let value = serde_json::to_value(volume).unwrap_or_default();
    let keys = value.as_object().into_iter().flatten();
    keys.map(|(key, _)| key.clone())
        .find(|key| key != "name")
        .unwrap_or_else(|| "untyped".to_owned())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(format!("interrupted: {e}")))
}
