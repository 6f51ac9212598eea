//! From a container's `volumeMounts` to bind mounts.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, VolumeMount};

use super::Volumes;
use crate::pod::env::expand;
use crate::runtime::types::{BindMount, MountPropagation};

/// The bind mounts of a container's volumes. Makes sub-paths that do not exist. Blocking.
///
/// # Errors
/// The message of `CreateContainerConfigError`.
pub fn of(
    container: &Container,
    volumes: &Volumes,
    env: &[(String, String)],
) -> Result<Vec<BindMount>, String> {
    let mounts = container.volume_mounts.iter().flatten();
    mounts
        .map(|mount| one(container, mount, volumes, env))
        .collect()
}

fn one(
    container: &Container,
    mount: &VolumeMount,
    volumes: &Volumes,
    env: &[(String, String)],
) -> Result<BindMount, String> {
    let volume = volumes.get(&mount.name).ok_or_else(|| {
        format!(
            "cannot find volume {:?} to mount into container {:?}",
            mount.name, container.name
        )
    })?;
    let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => Some(path.clone()),
        (_, Some(text)) if !text.is_empty() => Some(expand(text, env)),
        _ => None,
    };
    let host_path = match sub_path {
        Some(sub) => sub_directory(volume, &sub).map_err(|e| {
            format!(
                "failed to prepare subPath for volumeMount {:?}: {e}",
                mount.name
            )
        })?,
        None => volume.clone(),
    };
    Ok(BindMount {
        host_path,
        container_path: mount.mount_path.clone(),
        read_only: mount.read_only == Some(true),
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::HostToContainer,
            Some("Bidirectional") => MountPropagation::Bidirectional,
            _ => MountPropagation::Private,
        },
    })
}

/// The path of a sub-path, made if absent, with its links followed as long as they stay inside
/// the volume.
fn sub_directory(volume: &Path, sub: &str) -> io::Result<PathBuf> {
    let sub = Path::new(sub);
    let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
    if !sub.components().all(plain) {
        return Err(io::Error::other("must be a relative path without '..'"));
    }
    let root = volume.canonicalize()?;
    let mut at = root.clone();
    for part in sub.components() {
        let next = at.join(part);
        if next.symlink_metadata().is_err() {
            fs::DirBuilder::new().mode(0o750).create(&next)?;
        }
        at = next.canonicalize()?;
        if !at.starts_with(&root) {
            return Err(io::Error::other("leaves the volume"));
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sub_paths_are_made_and_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        assert_eq!(sub_directory(&root, "a/b").unwrap(), root.join("a/b"));
        assert!(sub_directory(&root, "../x").is_err());
        std::os::unix::fs::symlink("/etc", root.join("out")).unwrap();
        assert!(sub_directory(&root, "out").is_err());
        std::os::unix::fs::symlink("a", root.join("in")).unwrap();
        assert_eq!(sub_directory(&root, "in").unwrap(), root.join("a"));
    }

    #[test]
    fn mounts_name_what_is_missing() {
        let container: Container = serde_json::from_value(json!({"name": "c",
            "volumeMounts": [{"name": "v", "mountPath": "/data"}]}))
        .unwrap();
        assert_eq!(
            of(&container, &Volumes::new(), &[]).unwrap_err(),
            "cannot find volume \"v\" to mount into container \"c\""
        );
    }
}
