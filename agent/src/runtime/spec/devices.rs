//! The host's devices, for privileged containers.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType};

/// Directories of `/dev` that are file systems of their own, or links into `/proc`.
const SKIPPED: [&str; 6] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts"];

/// Every character and block device under `/dev`, but for the console.
pub(super) fn of_host() -> Vec<LinuxDevice> {
    let mut devices = Vec::new();
    collect(Path::new("/dev"), &mut devices);
    devices
}

/// A device that can't be looked at (it may be unplugged meanwhile) is left out.
fn collect(directory: &Path, devices: &mut Vec<LinuxDevice>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(metadata) = entry.path().symlink_metadata() else {
            continue;
        };
        let name = entry.file_name();
        let kind = metadata.file_type();
        if kind.is_dir() {
            if !SKIPPED.iter().any(|skipped| name == *skipped) {
                collect(&entry.path(), devices);
            }
        } else if (kind.is_char_device() || kind.is_block_device()) && name != "console" {
            let typ = if kind.is_block_device() {
                LinuxDeviceType::B
            } else {
                LinuxDeviceType::C
            };
            let device = LinuxDeviceBuilder::default()
                .path(entry.path())
                .typ(typ)
                .major(i64::from(nix::sys::stat::major(metadata.rdev()) as u32))
                .minor(i64::from(nix::sys::stat::minor(metadata.rdev()) as u32))
                .file_mode(metadata.mode() & 0o7777)
                .uid(metadata.uid())
                .gid(metadata.gid())
                .build();
            devices.extend(device.ok());
        }
    }
}
