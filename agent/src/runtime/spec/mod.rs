//! From what Kubernetes says of a container to an OCI runtime specification.
//!
//! Pure but for a few reads: the image's `/etc/passwd` and `/etc/group` (to resolve names), a
//! `Localhost` seccomp profile, and the host's devices for privileged containers.
//!
//! The specification has no cgroup in it: the agent makes and limits the container's cgroup
//! itself (see `cgroup`), and its process joins it before libcontainer runs. Network, IPC and
//! UTS namespaces are not in it either: the shim lives in the pod's, and its children inherit
//! them.

use std::path::PathBuf;

use k8s_openapi::api::core::v1 as core;
use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Linux, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, RootBuilder, Spec,
};

use super::error::RuntimeError;
use super::types::{ContainerConfig, MountPropagation, SandboxConfig};

mod devices;
mod expand;
mod mounts;
mod process;
mod security;
mod user;

pub use expand::expand;

/// The version of the runtime specification that is written.
const OCI_VERSION: &str = "1.0.2";

/// Where a container is put.
#[derive(Debug)]
pub struct Place<'a> {
    pub sandbox: &'a SandboxConfig,
    /// Where the shim mounts the container's root.
    pub rootfs: PathBuf,
    /// The pod's `/dev/shm` on the host.
    pub shm: PathBuf,
    pub unified_cgroups: bool,
}

/// A specification, and what else follows from the declaration.
#[derive(Debug)]
pub struct Generated {
    pub spec: Spec,
    pub privileged: bool,
}

/// The specification of one container.
///
/// # Errors
/// [`RuntimeError::Config`] for what Kubernetes refuses with `CreateContainerConfigError`,
/// [`RuntimeError::Create`] for what it refuses with `CreateContainerError`.
pub fn generate(config: &ContainerConfig, place: &Place<'_>) -> Result<Generated, RuntimeError> {
    let security = security::Security::of(&config.pod, &config.container)?;
    let user = user::resolve(config, &security)?;
    let process = process::generate(config, place.sandbox, &security, &user)?;
    let mounts = mounts::generate(config, place, &security)?;
    let linux = linux(config, place, &security)?;
    let root = RootBuilder::default()
        .path(&place.rootfs)
        .readonly(security.read_only_root)
        .build()
        .map_err(invalid)?;
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_hostname(None)
        .set_process(Some(process))
        .set_mounts(Some(mounts))
        .set_linux(Some(linux));
    Ok(Generated {
        spec,
        privileged: security.privileged,
    })
}

fn linux(
    config: &ContainerConfig,
    place: &Place<'_>,
    security: &security::Security,
) -> Result<Linux, RuntimeError> {
    let mut linux = Linux::default();
    linux
        .set_resources(None)
        .set_cgroups_path(None)
        .set_namespaces(Some(namespaces(place.sandbox)?))
        .set_masked_paths(Some(security.masked_paths()))
        .set_readonly_paths(Some(security.readonly_paths()))
        .set_seccomp(security.seccomp()?)
        .set_rootfs_propagation(Some(propagation(config).to_owned()));
    if security.privileged {
        linux.set_devices(Some(devices::of_host()));
    }
    Ok(linux)
}

/// The namespaces that are the container's own. That of processes is joined by path when the
/// pod shares one; the shim fills the path in, since it knows the process that holds it.
fn namespaces(sandbox: &SandboxConfig) -> Result<Vec<LinuxNamespace>, RuntimeError> {
    let mut types = vec![LinuxNamespaceType::Mount, LinuxNamespaceType::Cgroup];
    if !sandbox.host_pid {
        types.push(LinuxNamespaceType::Pid);
    }
    types
        .into_iter()
        .map(|typ| LinuxNamespaceBuilder::default().typ(typ).build())
        .collect::<Result<_, _>>()
        .map_err(invalid)
}

/// The root's propagation must allow what the widest of the mounts asks for.
fn propagation(config: &ContainerConfig) -> &'static str {
    let wants = |wanted| {
        config
            .mounts
            .iter()
            .any(|mount| mount.propagation == wanted)
    };
    if wants(MountPropagation::Bidirectional) {
        "shared"
    } else if wants(MountPropagation::HostToContainer) {
        "slave"
    } else {
        "private"
    }
}

/// `name_namespace(uid)`: how the kubelet writes a pod in its messages.
fn pod_name(pod: &core::Pod) -> String {
    let part = |value: &Option<String>| value.clone().unwrap_or_default();
    let meta = &pod.metadata;
    format!(
        "{}_{}({})",
        part(&meta.name),
        part(&meta.namespace),
        part(&meta.uid)
    )
}

fn invalid(error: OciSpecError) -> RuntimeError {
    RuntimeError::Create(format!("failed to generate the container's spec: {error}"))
}

#[cfg(test)]
mod tests;
