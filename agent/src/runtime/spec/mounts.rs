//! What is mounted into a container, in the order in which it is.

use std::path::Path;

use oci_spec::runtime::{Mount, MountBuilder};

use super::security::Security;
use super::{Place, invalid};
use crate::runtime::error::RuntimeError;
use crate::runtime::types::{BindMount, ContainerConfig, MountPropagation};

pub(super) fn generate(
    config: &ContainerConfig,
    place: &Place<'_>,
    security: &Security,
) -> Result<Vec<Mount>, RuntimeError> {
    let declared = |path: &str| {
        let mut mounts = config.mounts.iter();
        mounts.any(|mount| Path::new(&mount.container_path) == Path::new(path))
    };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        )?,
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        )?,
        mount("/sys", "sysfs", "sysfs", &sysfs_options(security))?,
    ];
    // cgroup v1 can't be shown read-only here: a container could raise its own limits.
    if place.unified_cgroups {
        mounts.push(mount(
            "/sys/fs/cgroup",
            "cgroup2",
            "cgroup",
            &sysfs_options(security),
        )?);
    }
    if !declared("/dev/shm") {
        mounts.push(shared_memory(place)?);
    }
    let mut volumes: Vec<&BindMount> = config.mounts.iter().collect();
    // A volume inside another is mounted after it, in whatever order they are declared.
    volumes.sort_by_key(|mount| Path::new(&mount.container_path).components().count());
    for volume in volumes {
        mounts.push(bind(volume)?);
    }
    Ok(mounts)
}

/// Read-only but for privileged containers.
fn sysfs_options(security: &Security) -> [&'static str; 4] {
    let access = if security.privileged { "rw" } else { "ro" };
    ["nosuid", "noexec", "nodev", access]
}

/// The containers of a pod share their `/dev/shm`.
fn shared_memory(place: &Place<'_>) -> Result<Mount, RuntimeError> {
    let source = if place.sandbox.host_ipc {
        "/dev/shm".to_owned()
    } else {
        place.shm.display().to_string()
    };
    mount(
        "/dev/shm",
        "bind",
        &source,
        &["rbind", "rprivate", "nosuid", "noexec", "nodev"],
    )
}

fn bind(volume: &BindMount) -> Result<Mount, RuntimeError> {
    let propagation = match volume.propagation {
        MountPropagation::Private => "rprivate",
        MountPropagation::HostToContainer => "rslave",
        MountPropagation::Bidirectional => "rshared",
    };
    let access = if volume.read_only { "ro" } else { "rw" };
    mount(
        &volume.container_path,
        "bind",
        &volume.host_path.display().to_string(),
        &["rbind", propagation, access],
    )
}

fn mount(
    destination: &str,
    typ: &str,
    source: &str,
    options: &[&str],
) -> Result<Mount, RuntimeError> {
    MountBuilder::default()
        .destination(destination)
        .typ(typ)
        .source(source)
        .options(options.iter().map(ToString::to_string).collect::<Vec<_>>())
        .build()
        .map_err(invalid)
}
