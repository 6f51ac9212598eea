//! Content that nothing names any more, and what was never finished, goes away.
//!
//! Under the lock content is only renamed away, which is quick; it is deleted after that.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::Flock;
use oci_spec::image::{Descriptor, ImageIndex, MediaType};
use tempfile::TempDir;

use super::disk::Disk;
use super::image::{self, Kind};
use super::ingest::lock_directory;
use super::lock::Exclusive;
use super::{lease, parents};
use crate::{Digest, Error};

/// Renamed-away content, deleted by [`Trash::empty`] or, if that is not reached, at the next open.
#[must_use]
pub(super) struct Trash {
    directories: Vec<(TempDir, Option<Flock<File>>)>,
    files: Vec<PathBuf>,
}

impl Trash {
    pub(super) fn nothing() -> Self {
        Self {
            directories: Vec::new(),
            files: Vec::new(),
        }
    }

    pub(super) fn and(mut self, mut other: Self) -> Self {
        self.directories.append(&mut other.directories);
        self.files.append(&mut other.files);
        self
    }

    /// Bytes on the disk.
    pub(super) fn size(&self) -> u64 {
        let mut seen = BTreeSet::new();
        let directories = self.directories.iter().map(|(held, _)| held.path());
        let all = directories.chain(self.files.iter().map(PathBuf::as_path));
        all.map(|path| disk_usage(path, &mut seen)).sum()
    }

    /// Failures are left for the next open.
    pub(super) fn empty(self) {
        for file in self.files {
            let _ = fs::remove_file(file);
        }
        for (directory, _lock) in self.directories {
            let path = directory.path().to_owned();
            if let Err(error) = directory.close() {
                tracing::warn!(path = %path.display(), %error, "cannot remove old image content");
            }
        }
    }
}

/// Takes away the staging directories of processes that are gone.
pub(super) fn abandoned(disk: &Disk, _lock: &Exclusive) -> Result<Trash, Error> {
    let mut trash = Trash::nothing();
    for path in entries(&disk.ingest_dir())? {
        if !path.is_dir() {
            // Files here are only made under the lock, which is ours now.
            trash.files.push(path);
        } else if let Ok(Some(held)) = lock_directory(&path) {
            let holder = holding_directory(disk)?;
            let to = holder.path().join("abandoned");
            fs::rename(&path, &to).map_err(Error::io(format!("move {}", path.display())))?;
            trash.directories.push((holder, Some(held)));
        }
    }
    Ok(trash)
}

/// Takes away all content that no name and no lease needs.
pub(super) fn unreachable(disk: &Disk, _lock: &Exclusive) -> Result<Trash, Error> {
    let live = match Live::find(disk) {
        Ok(live) => live,
        // What a damaged image needs is not known, so nothing is safe to remove.
        Err(error) => {
            tracing::error!(%error, "old image content is kept: an image is damaged, remove it");
            return Ok(Trash::nothing());
        }
    };
    let mut dead = Vec::new();
    for (directory, live) in [
        (disk.blobs_dir(), &live.blobs),
        (disk.layers_dir(), &live.layers),
        (disk.parents_dir(), &live.parents),
    ] {
        dead.extend(
            entries(&directory)?
                .into_iter()
                .filter(|path| !is_live(path, live)),
        );
    }
    if dead.is_empty() {
        return Ok(Trash::nothing());
    }
    let holder = holding_directory(disk)?;
    let lock = lock_directory(holder.path()).map_err(Error::io("lock old image content"))?;
    for (number, path) in dead.iter().enumerate() {
        fs::rename(path, holder.path().join(number.to_string()))
            .map_err(Error::io(format!("remove {}", path.display())))?;
    }
    Ok(Trash {
        directories: vec![(holder, lock)],
        files: Vec::new(),
    })
}

/// Takes away and deletes what no name and no lease needs. Failures are left for the next open.
pub(crate) fn collect(disk: &Disk) {
    let swept = disk.lock().and_then(|lock| unreachable(disk, &lock));
    match swept {
        Ok(trash) => trash.empty(),
        Err(error) => tracing::warn!(%error, "cannot remove old image content"),
    }
}

/// Whether an index entry or another lease keeps this manifest, so that a sweep would find nothing.
pub(super) fn is_kept(disk: &Disk, manifest: Digest) -> bool {
    let leased =
        lease::all(disk).is_ok_and(|leases| leases.iter().any(|(_, leased)| *leased == manifest));
    let named = || {
        disk.read_index().is_ok_and(|names| {
            names
                .iter()
                .any(|named| Digest::try_from(named.target.digest()) == Ok(manifest))
        })
    };
    leased || named()
}

/// Of a file or all of a directory, each inode once. What can't be read counts as nothing.
fn disk_usage(path: &Path, seen: &mut BTreeSet<(u64, u64)>) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return 0;
    };
    if metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert((metadata.dev(), metadata.ino()))
    {
        return 0;
    }
    // `st_blocks` counts 512 bytes, whatever the file system's block is (stat(2)).
    let own = metadata.blocks() * 512;
    let within: u64 = match metadata.is_dir() {
        true => entries(path).map_or(0, |entries| {
            entries.iter().map(|entry| disk_usage(entry, seen)).sum()
        }),
        false => 0,
    };
    own + within
}

fn is_live(path: &Path, live: &BTreeSet<OsString>) -> bool {
    path.file_name().is_some_and(|name| live.contains(name))
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let list = || -> io::Result<Vec<PathBuf>> {
        fs::read_dir(directory)?
            .map(|entry| Ok(entry?.path()))
            .collect()
    };
    list().map_err(Error::io(format!("read {}", directory.display())))
}

fn holding_directory(disk: &Disk) -> Result<TempDir, Error> {
    TempDir::new_in(disk.ingest_dir()).map_err(Error::io("make room for old image content"))
}

fn manifest_descriptor(digest: Digest) -> Descriptor {
    Descriptor::new(MediaType::ImageManifest, 0, digest)
}

/// File names of what must stay.
#[derive(Default)]
struct Live {
    blobs: BTreeSet<OsString>,
    layers: BTreeSet<OsString>,
    parents: BTreeSet<OsString>,
}

impl Live {
    fn find(disk: &Disk) -> Result<Self, Error> {
        let mut live = Self::default();
        for named in disk.read_index()? {
            // All that an index lists, for whatever platform, if it is here.
            live.add_listed(disk, &named.target)?;
            live.add_manifest(disk, &named.reference.to_string(), &named.target)?;
        }
        for (_, manifest) in lease::all(disk)? {
            live.add_manifest(disk, &manifest.to_string(), &manifest_descriptor(manifest))?;
        }
        Ok(live)
    }

    fn add_listed(&mut self, disk: &Disk, target: &Descriptor) -> Result<(), Error> {
        if Kind::of(target) != Some(Kind::Index) {
            return Ok(());
        }
        let digest = Digest::try_from(target.digest())?;
        let index: ImageIndex = serde_json::from_slice(&disk.read_json(digest)?)
            .map_err(Error::json(format!("the index {digest}")))?;
        for descriptor in index.manifests() {
            self.blobs
                .insert(Digest::try_from(descriptor.digest())?.hex().into());
        }
        Ok(())
    }

    fn add_manifest(&mut self, disk: &Disk, name: &str, target: &Descriptor) -> Result<(), Error> {
        let parsed = image::parse(name, target, &mut |digest| disk.read_json(digest))?;
        self.blobs
            .extend(parsed.blobs()?.into_iter().map(|id| id.hex().into()));
        let mut chain = None;
        for diff_id in parsed.diff_ids()? {
            let chain_id = parents::chain_id(chain, diff_id);
            chain = Some(chain_id);
            self.layers.insert(diff_id.hex().into());
            self.parents.insert(chain_id.hex().into());
        }
        Ok(())
    }
}
