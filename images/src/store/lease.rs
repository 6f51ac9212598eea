//! Leases: who uses which image. A file each, named by the holder, with the manifest's digest.

use std::fs;

use super::disk::{Disk, sync_directory};
use super::sweep;
use crate::{Digest, Error};

pub(super) fn take(disk: &Disk, holder: &str, manifest: Digest) -> Result<(), Error> {
    check(holder)?;
    let _lock = disk.lock()?;
    if !disk.blob_path(manifest).exists() {
        return Err(Error::NotFound(manifest.to_string()));
    }
    disk.replace(&format!("leases/{holder}"), manifest.to_string().as_bytes())
}

pub(super) fn release(disk: &Disk, holder: &str) -> Result<(), Error> {
    check(holder)?;
    let path = disk.leases_dir().join(holder);
    let doing = || format!("remove {}", path.display());
    let lock = disk.lock()?;
    let manifest = read(&path).ok();
    match fs::remove_file(&path) {
        Ok(()) => sync_directory(&disk.leases_dir()).map_err(Error::io(doing()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(doing())(error)),
    }
    if manifest.is_some_and(|manifest| sweep::is_kept(disk, manifest)) {
        return Ok(());
    }
    let trash = sweep::unreachable(disk, &lock)?;
    drop(lock);
    trash.empty();
    Ok(())
}

/// All leases; one that can't be read is an error, because what it keeps is not known.
pub(super) fn all(disk: &Disk) -> Result<Vec<(String, Digest)>, Error> {
    let directory = disk.leases_dir();
    let doing = || format!("read {}", directory.display());
    let mut leases = Vec::new();
    for entry in fs::read_dir(&directory).map_err(Error::io(doing()))? {
        let entry = entry.map_err(Error::io(doing()))?;
        let holder = entry.file_name().to_string_lossy().into_owned();
        leases.push((holder, read(&entry.path())?));
    }
    leases.sort();
    Ok(leases)
}

fn read(path: &std::path::Path) -> Result<Digest, Error> {
    let text = fs::read_to_string(path).map_err(Error::io(format!("read {}", path.display())))?;
    Ok(text.parse()?)
}

fn check(holder: &str) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    match !holder.is_empty() && holder.len() <= 128 && holder.chars().all(plain) {
        true => Ok(()),
        false => Err(Error::malformed(holder, "not a name for a lease")),
    }
}
