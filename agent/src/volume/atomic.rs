//! Writes a set of files so that readers see either the old set or the new one.
//!
//! The layout is the kubelet's: the files are in a directory named after the time, `..data` is a
//! symbolic link to it, and each top-level name is a link through `..data`. An update makes a new
//! directory and renames a new `..data` over the old one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use nix::unistd::{Gid, Uid, chown};

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// One file to be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    /// Permission bits.
    pub(super) mode: u32,
    /// Its owner, when it is not root.
    pub(super) uid: Option<u32>,
}

/// Files by their path relative to the volume.
pub(super) type Payload = BTreeMap<PathBuf, File>;

/// Makes `dir` show exactly `payload`. Does nothing when it does so already. Blocking.
///
/// # Errors
/// When a path leaves the volume, or a file can't be written.
pub(super) fn write(dir: &Path, payload: &Payload, fs_group: Option<u32>) -> io::Result<()> {
    for path in payload.keys() {
        check(path)?;
    }
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && same(&dir.join(current), payload)
    {
        return Ok(());
    }
    let fresh = fresh_name();
    let target = dir.join(&fresh);
    write_files(&target, payload, fs_group)?;
    let tmp = dir.join(DATA_TMP);
    let _ = fs::remove_file(&tmp);
    symlink(&fresh, &tmp)?;
    fs::rename(&tmp, dir.join(DATA))?;
    link_names(dir, payload)?;
    remove_stale(dir, payload, &fresh)
}

fn check(path: &Path) -> io::Result<()> {
    let inside = path.components().all(|c| matches!(c, Component::Normal(_)));
    let reserved = path.as_os_str().as_encoded_bytes().starts_with(b"..");
    if inside && !reserved && path.components().next().is_some() {
        return Ok(());
    }
    let message = format!(
        "invalid path {}: must stay inside the volume",
        path.display()
    );
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

fn fresh_name() -> String {
    let now = k8s_openapi::jiff::Timestamp::now();
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S.%f");
    format!("{stamp}.{:08x}", rand::random::<u32>())
}

fn write_files(target: &Path, payload: &Payload, fs_group: Option<u32>) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(target)?;
    give(target, None, fs_group)?;
    for (path, file) in payload {
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            let mut at = target.to_owned();
            for part in parent.components() {
                at.push(part);
                if !at.exists() {
                    fs::DirBuilder::new().mode(0o755).create(&at)?;
                    give(&at, None, fs_group)?;
                }
            }
        }
        let at = target.join(path);
        fs::write(&at, &file.content)?;
        give(&at, file.uid, fs_group)?;
        // The group reads what fsGroup gives it, as the kubelet arranges.
        let group = if fs_group.is_some() { 0o440 } else { 0 };
        fs::set_permissions(&at, fs::Permissions::from_mode(file.mode | group))?;
    }
    Ok(())
}

fn give(path: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    Ok(chown(path, uid.map(Uid::from_raw), gid.map(Gid::from_raw))?)
}

fn top_names(payload: &Payload) -> impl Iterator<Item = &std::ffi::OsStr> {
    payload
        .keys()
        .filter_map(|path| path.components().next())
        .map(Component::as_os_str)
}

fn link_names(dir: &Path, payload: &Payload) -> io::Result<()> {
    for name in top_names(payload) {
        let link = dir.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    Ok(())
}

/// Removes links of names that are gone and the directories of earlier sets.
fn remove_stale(dir: &Path, payload: &Payload, fresh: &str) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == DATA || name.as_encoded_bytes() == fresh.as_bytes() {
            continue;
        }
        if entry.file_type()?.is_symlink() {
            if !top_names(payload).any(|kept| kept == name) {
                fs::remove_file(entry.path())?;
            }
        } else if name.as_encoded_bytes().starts_with(b"..") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn same(dir: &Path, payload: &Payload) -> bool {
    let mut found = 0;
    let mut pending = vec![dir.to_owned()];
    while let Some(at) = pending.pop() {
        let Ok(entries) = fs::read_dir(&at) else {
            return false;
        };
        for entry in entries.flatten() {
            if entry.path().is_dir() {
                pending.push(entry.path());
            } else {
                found += 1;
            }
        }
    }
    found == payload.len()
        && payload
            .iter()
            .all(|(path, file)| fs::read(dir.join(path)).is_ok_and(|c| c == file.content))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(path, content)| {
                let file = File {
                    content: content.as_bytes().to_vec(),
                    mode: 0o644,
                    uid: None,
                };
                (PathBuf::from(path), file)
            })
            .collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| !n.starts_with("..2"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_update_replaces_the_whole_set() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        write(dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        assert_eq!(names(dir), ["..data", "a", "sub"]);
        let first = fs::read_link(dir.join(DATA)).unwrap();

        write(dir, &payload(&[("a", "3"), ("c", "4")]), None).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert_eq!(names(dir), ["..data", "a", "c"]);
        assert!(!dir.join(first).exists());
    }

    #[test]
    fn the_same_set_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let set = payload(&[("a", "1")]);
        write(dir.path(), &set, None).unwrap();
        let first = fs::read_link(dir.path().join(DATA)).unwrap();
        write(dir.path(), &set, None).unwrap();
        assert_eq!(fs::read_link(dir.path().join(DATA)).unwrap(), first);
    }

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../x", "/x", "a/../../x", "..data", ""] {
            assert!(
                write(dir.path(), &payload(&[(path, "")]), None).is_err(),
                "{path}"
            );
        }
    }

    #[test]
    fn modes_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut set = payload(&[("a", "1")]);
        set.get_mut(Path::new("a")).unwrap().mode = 0o400;
        write(dir.path(), &set, None).unwrap();
        let mode = fs::metadata(dir.path().join("a"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o400);
    }
}
