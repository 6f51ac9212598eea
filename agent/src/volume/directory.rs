//! Directories on the host: emptyDir, hostPath, tmpfs, ownership. Everything here blocks.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{Gid, chown};

use crate::quantity;

/// Makes an emptyDir present: a directory on disk, or a tmpfs.
pub(super) fn empty_dir(
    dir: &Path,
    source: &EmptyDirVolumeSource,
    group: Option<u32>,
) -> Result<(), String> {
    if is_present(dir) {
        return Ok(());
    }
    make_dir(dir, 0o777).map_err(|e| e.to_string())?;
    match source.medium.as_deref().unwrap_or_default() {
        "" => {}
        "Memory" => {
            let limit = source.size_limit.as_ref().and_then(quantity::units);
            tmpfs(dir, limit.filter(|l| *l > 0)).map_err(|e| e.to_string())?;
            fs::set_permissions(dir, fs::Permissions::from_mode(0o777))
                .map_err(|e| e.to_string())?;
        }
        other => return Err(format!("unknown storage medium {other:?}")),
    }
    mark_present(dir, group).map_err(|e| e.to_string())
}

/// Makes the directory of a volume whose files come from the API.
pub(super) fn content_dir(dir: &Path, in_memory: bool, group: Option<u32>) -> Result<(), String> {
    if is_present(dir) {
        return Ok(());
    }
    make_dir(dir, 0o777).map_err(|e| e.to_string())?;
    if in_memory {
        tmpfs(dir, None).map_err(|e| e.to_string())?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).map_err(|e| e.to_string())?;
    }
    mark_present(dir, group).map_err(|e| e.to_string())
}

/// Checks, or makes, what a hostPath names.
pub(super) fn host_path(source: &HostPathVolumeSource) -> Result<PathBuf, String> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let make = |result: io::Result<()>| result.map_err(|e| format!("{}: {e}", path.display()));
    match kind {
        "" if !path.exists() => make(make_dir(&path, 0o755))?,
        "DirectoryOrCreate" if !path.exists() => make(make_dir(&path, 0o755))?,
        "FileOrCreate" if !path.exists() => make(
            fs::File::create_new(&path)
                .and_then(|f| f.set_permissions(fs::Permissions::from_mode(0o644))),
        )?,
        _ => {}
    }
    let found = fs::metadata(&path).map(|m| m.file_type()).ok();
    let fits = match (kind, found) {
        ("", found) => found.is_some(),
        ("Directory" | "DirectoryOrCreate", Some(t)) => t.is_dir(),
        ("File" | "FileOrCreate", Some(t)) => t.is_file(),
        ("Socket", Some(t)) => t.is_socket(),
        ("CharDevice", Some(t)) => t.is_char_device(),
        ("BlockDevice", Some(t)) => t.is_block_device(),
        _ => false,
    };
    if fits {
        return Ok(path);
    }
    let wanted = match kind {
        "Directory" | "DirectoryOrCreate" => "directory",
        "File" | "FileOrCreate" => "file",
        "Socket" => "socket file",
        "CharDevice" => "character device",
        "BlockDevice" => "block device",
        other => other,
    };
    Err(format!(
        "hostPath type check failed: {} is not a {wanted}",
        path.display()
    ))
}

fn make_dir(dir: &Path, mode: u32) -> io::Result<()> {
    if let Some(parent) = dir.parent() {
        fs::create_dir_all(parent)?;
    }
    match fs::DirBuilder::new().mode(mode).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    // The umask does not apply to what Kubernetes promises.
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}

fn tmpfs(dir: &Path, size: Option<i64>) -> io::Result<()> {
    if is_mount_point(dir)? {
        return Ok(());
    }
    let options = size.map(|bytes| format!("size={bytes}"));
    mount(
        Some("tmpfs"),
        dir,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        options.as_deref(),
    )?;
    Ok(())
}

fn is_mount_point(dir: &Path) -> io::Result<bool> {
    let parent = dir.parent().unwrap_or(dir);
    Ok(fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev())
}

/// A file beside the volume says that it was set up once: an emptyDir keeps its content, and its
/// owner is not changed again.
fn marker(dir: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(dir.file_name().unwrap_or_default());
    name.push(".ready");
    dir.with_file_name(name)
}

fn is_present(dir: &Path) -> bool {
    // A tmpfs is gone after a reboot, its marker is not: the boot is part of it.
    let said = fs::read_to_string(marker(dir)).unwrap_or_default();
    match said.as_str() {
        "disk" => dir.is_dir(),
        "memory" => is_mount_point(dir).unwrap_or(false),
        _ => false,
    }
}

fn mark_present(dir: &Path, group: Option<u32>) -> io::Result<()> {
    if let Some(group) = group {
        give_to_group(dir, group)?;
    }
    let kind = if is_mount_point(dir)? {
        "memory"
    } else {
        "disk"
    };
    fs::write(marker(dir), kind)
}

/// `fsGroup`: the group owns the volume, may write, and owns what is made in it.
fn give_to_group(dir: &Path, group: u32) -> io::Result<()> {
    chown(dir, None, Some(Gid::from_raw(group)))?;
    let mode = fs::metadata(dir)?.permissions().mode();
    fs::set_permissions(dir, fs::Permissions::from_mode(mode | 0o2070))
}

/// Unmounts everything that is mounted at or below a directory, the deepest first.
///
/// # Errors
/// When a mount can't be detached.
pub fn unmount_below(dir: &Path) -> io::Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let mut points: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|field| PathBuf::from(unescape(field)))
        .filter(|point| point.starts_with(dir))
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    for point in points {
        match umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // It went with another one.
            Err(Errno::EINVAL | Errno::ENOENT) | Ok(()) => {}
            Err(error) => {
                let message = format!("unmount {}: {error}", point.display());
                return Err(io::Error::new(io::Error::from(error).kind(), message));
            }
        }
    }
    Ok(())
}

/// mountinfo writes space, tab, newline and backslash in octal (proc(5)).
fn unescape(field: &str) -> String {
    let mut out = String::new();
    let mut rest = field;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let code = rest
            .get(at + 1..at + 4)
            .and_then(|d| u8::from_str_radix(d, 8).ok());
        match code {
            Some(code) => {
                out.push(char::from(code));
                rest = &rest[at + 4..];
            }
            None => {
                out.push('\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_path_types() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let source = |name: &str, kind: &str| HostPathVolumeSource {
            path: at(name),
            type_: Some(kind.to_owned()),
        };
        assert!(host_path(&source("d", "Directory")).is_err());
        assert!(host_path(&source("d", "DirectoryOrCreate")).is_ok());
        assert!(host_path(&source("d", "Directory")).is_ok());
        assert!(host_path(&source("f", "FileOrCreate")).is_ok());
        assert!(host_path(&source("f", "File")).is_ok());
        let error = host_path(&source("f", "Directory")).unwrap_err();
        assert_eq!(
            error,
            format!("hostPath type check failed: {} is not a directory", at("f"))
        );
        assert!(host_path(&source("d", "Socket")).is_err());
    }

    #[test]
    fn an_empty_dir_keeps_its_content() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("volumes/cache");
        let source = EmptyDirVolumeSource::default();
        empty_dir(&dir, &source, None).unwrap();
        fs::write(dir.join("kept"), "x").unwrap();
        empty_dir(&dir, &source, None).unwrap();
        assert!(dir.join("kept").exists());
        assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o777);
    }

    #[test]
    fn mountinfo_escapes() {
        assert_eq!(unescape("/a\\040b\\134"), "/a b\\");
    }
}
