//! Content on its way into the store: staged apart, then committed all at once.
//!
//! An archive is staged in one [`Ingest`]. A pull has one for each layer, because layers come at
//! the same time and one that several images have is fetched once: [`Ingest::include`] puts them
//! together before the commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use super::disk::{Disk, sync_directory};
use super::image::Parsed;
use super::index::Named;
use super::layer::{self, Passed};
use super::parents;
use crate::unpack::{Budget, UnpackError, Unpacked};
use crate::{Digest, Error};

/// A staging directory. Dropping it removes what was not committed.
pub(crate) struct Ingest {
    disk: Arc<Disk>,
    directory: TempDir,
    /// Tells others that somebody is still at work here.
    _lock: Flock<File>,
    blobs: BTreeSet<Digest>,
    layers: BTreeMap<Digest, Unpacked>,
    /// What is in the store already and must still be when this is committed.
    reused: BTreeSet<PathBuf>,
    budget: Arc<Budget>,
    pinned: bool,
    /// Finished staging directories, whose content is committed with this one's.
    included: Vec<Arc<Ingest>>,
    temporary: u64,
}

/// A layer that was read to its end.
pub(crate) struct StagedLayer {
    pub(crate) blob: Digest,
    pub(crate) size: u64,
    pub(crate) diff_id: Digest,
}

/// How a commit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Commit {
    Done,
    /// Another process removed what this one relied on: stage it again.
    Raced,
}

impl Ingest {
    pub(crate) fn begin(disk: &Arc<Disk>) -> Result<Self, Error> {
        let doing = || format!("stage in {}", disk.ingest_dir().display());
        // Under the store's lock, so that nobody takes it for abandoned before it is locked.
        let _store = disk.lock()?;
        let directory = TempDir::new_in(disk.ingest_dir()).map_err(Error::io(doing()))?;
        let lock = lock_directory(directory.path())
            .and_then(|lock| lock.ok_or_else(|| io::ErrorKind::WouldBlock.into()))
            .map_err(Error::io(doing()))?;
        Ok(Self {
            disk: Arc::clone(disk),
            directory,
            _lock: lock,
            blobs: BTreeSet::new(),
            layers: BTreeMap::new(),
            reused: BTreeSet::new(),
            budget: Arc::new(Budget::new(disk.limits())),
            pinned: false,
            included: Vec::new(),
            temporary: 0,
        })
    }

    /// A new path in the staging directory.
    fn temporary(&mut self, kind: &str) -> PathBuf {
        self.temporary += 1;
        self.directory
            .path()
            .join(format!("{kind}-{}", self.temporary))
    }

    /// A file that goes away with the staging directory.
    pub(crate) fn scratch_file(&mut self) -> Result<(PathBuf, File), Error> {
        let path = self.temporary("scratch");
        let file = File::options()
            .create_new(true)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(Error::io(format!("make {}", path.display())))?;
        Ok((path, file))
    }

    /// Commits what is staged there too. Another commit may do the same: whichever is first
    /// moves the content, and it serves both.
    pub(crate) fn include(&mut self, other: Arc<Ingest>) {
        self.included.push(other);
    }

    /// This staging directory and those included.
    fn all(&self) -> impl Iterator<Item = &Self> {
        std::iter::once(self).chain(self.included.iter().map(Arc::as_ref))
    }

    /// Whether a blob needs not be staged again.
    pub(crate) fn has_blob(&mut self, digest: Digest) -> bool {
        self.has_staged_blob(digest) || self.reuse(self.disk.blob_path(digest))
    }

    /// Whether a layer needs not be unpacked again.
    pub(crate) fn has_layer(&mut self, diff_id: Digest) -> bool {
        let path = self.disk.layer_path(diff_id);
        self.all().any(|part| part.layers.contains_key(&diff_id))
            || (self.disk.is_whole(&path) && self.reuse(path))
    }

    /// The images come from a file and could not be fetched again: they are not collected.
    pub(crate) fn pin(&mut self) {
        self.pinned = true;
    }

    /// Counts what is unpacked from now on as one image's.
    pub(crate) fn begin_image(&mut self) {
        self.budget = Arc::new(Budget::new(self.disk.limits()));
    }

    /// Counts what is unpacked here as that image's whose budget this is: its layers may come in
    /// several staging directories.
    pub(crate) fn share_budget(&mut self, budget: &Arc<Budget>) {
        self.budget = Arc::clone(budget);
    }

    fn has_staged_blob(&self, digest: Digest) -> bool {
        self.all().any(|part| part.blobs.contains(&digest))
    }

    fn reuse(&mut self, path: PathBuf) -> bool {
        let there = path.exists();
        if there {
            self.reused.insert(path);
        }
        there
    }

    /// Reads a small blob that was staged, or that the store has.
    pub(crate) fn read_json(&self, digest: Digest) -> Result<Vec<u8>, Error> {
        match self.blobs.contains(&digest) {
            true => {
                let path = self.staged_blob(digest);
                fs::read(&path).map_err(Error::io(format!("read {}", path.display())))
            }
            false => self.disk.read_json(digest),
        }
    }

    fn staged_blob(&self, digest: Digest) -> PathBuf {
        self.directory.path().join(format!("blob-{}", digest.hex()))
    }

    fn staged_layer(&self, diff_id: Digest) -> PathBuf {
        self.directory
            .path()
            .join(format!("layer-{}", diff_id.hex()))
    }

    /// Stages a manifest, an index or a configuration.
    pub(crate) fn put_json(&mut self, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::of(bytes);
        if !self.has_blob(digest) {
            let path = self.staged_blob(digest);
            fs::write(&path, bytes).map_err(Error::io(format!("write {}", path.display())))?;
            self.blobs.insert(digest);
        }
        Ok(digest)
    }

    /// Stages a layer: its bytes as they come, and the directory they unpack to, in one pass.
    ///
    /// The caller compares the digests with what it expects before it commits; nothing
    /// staged is visible to anyone.
    pub(crate) fn put_layer(
        &mut self,
        image: &str,
        label: Digest,
        unpacked_already: bool,
        source: impl Read,
    ) -> Result<StagedLayer, Error> {
        let blob_path = self.temporary("incoming");
        let tree_path = self.temporary("unpacking");
        let doing = format!("write {}", blob_path.display());
        let file = File::create_new(&blob_path).map_err(Error::io(&doing))?;
        let tree = match unpacked_already {
            true => None,
            false => Some(make_tree(&tree_path)?),
        };
        let Passed {
            blob: digest,
            size,
            diff_id,
            unpacked,
        } = layer::pass(source, Some(file), tree.as_deref(), &self.budget).map_err(|source| {
            Error::Layer {
                image: image.to_owned(),
                layer: label,
                source,
            }
        })?;
        if let Some(unpacked) = unpacked {
            self.keep_layer(diff_id, &tree_path, unpacked)?;
        }
        match self.has_blob(digest) {
            true => fs::remove_file(&blob_path),
            false => fs::rename(&blob_path, self.staged_blob(digest)).inspect(|()| {
                self.blobs.insert(digest);
            }),
        }
        .map_err(Error::io(doing))?;
        Ok(StagedLayer {
            blob: digest,
            size,
            diff_id,
        })
    }

    /// Unpacks a layer whose blob the store has.
    pub(crate) fn unpack_stored(&mut self, image: &str, digest: Digest) -> Result<Digest, Error> {
        let tree_path = self.temporary("unpacking");
        let blob_path = match self.blobs.contains(&digest) {
            true => self.staged_blob(digest),
            false => self.disk.blob_path(digest),
        };
        let tree = make_tree(&tree_path)?;
        let passed = File::open(&blob_path)
            .map_err(UnpackError::Read)
            .and_then(|blob| layer::pass(blob, None, Some(&tree), &self.budget))
            .map_err(|source| Error::Layer {
                image: image.to_owned(),
                layer: digest,
                source,
            })?;
        if let Some(unpacked) = passed.unpacked {
            self.keep_layer(passed.diff_id, &tree_path, unpacked)?;
        }
        Ok(passed.diff_id)
    }

    fn keep_layer(
        &mut self,
        diff_id: Digest,
        tree: &Path,
        unpacked: Unpacked,
    ) -> Result<(), Error> {
        if self.has_layer(diff_id) {
            return Ok(());
        }
        let doing = || format!("write {}", tree.display());
        let about = serde_json::to_vec(&unpacked).map_err(Error::json("layer.json"))?;
        fs::write(tree.join("layer.json"), about).map_err(Error::io(doing()))?;
        fs::rename(tree, self.staged_layer(diff_id)).map_err(Error::io(doing()))?;
        self.layers.insert(diff_id, unpacked);
        Ok(())
    }

    /// Where a layer is now, staged or in the store.
    pub(super) fn layer_fs(&self, diff_id: Digest) -> PathBuf {
        let staged = self
            .all()
            .filter(|part| part.layers.contains_key(&diff_id))
            .map(|part| part.staged_layer(diff_id))
            // Another commit that includes the same part may have moved it.
            .find(|path| path.exists());
        staged
            .unwrap_or_else(|| self.disk.layer_path(diff_id))
            .join("fs")
    }

    pub(super) fn unpacked(&self, diff_id: Digest) -> Result<Unpacked, Error> {
        match self.all().find_map(|part| part.layers.get(&diff_id)) {
            Some(unpacked) => Ok(unpacked.clone()),
            None => super::image::read_unpacked(&self.disk, diff_id),
        }
    }

    /// Puts all that is staged into the store and gives the images their names, or does nothing.
    pub(crate) fn commit(self, images: &[(Named, Parsed)]) -> Result<Commit, Error> {
        // Included parts may be another commit's too, and stay where they are until this ends.
        let _turn = self
            .disk
            .committing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut moves: Vec<(PathBuf, PathBuf)> = Vec::new();
        for (named, parsed) in images {
            match self.check_size(named, &parsed.diff_ids()?).and_then(|()| {
                parents::stage(
                    &self.disk,
                    &self,
                    &named.reference.to_string(),
                    &parsed.diff_ids()?,
                )
            }) {
                Ok(parents) => moves.extend(parents),
                Err(_) if self.lost() => return Ok(Commit::Raced),
                Err(error) => return Err(error),
            }
        }
        for part in self.all() {
            let layers = part.layers.keys();
            moves.extend(layers.map(|id| (part.staged_layer(*id), self.disk.layer_path(*id))));
            let blobs = part.blobs.iter();
            moves.extend(blobs.map(|id| (part.staged_blob(*id), self.disk.blob_path(*id))));
        }
        sync_file_system(self.directory.path())
            .map_err(Error::io("write the image to the disk"))?;

        let lock = self.disk.lock()?;
        if self.lost() {
            return Ok(Commit::Raced);
        }
        for (from, to) in &moves {
            if !self.disk.is_whole(to) {
                self.put_aside(to)?;
                fs::rename(from, to).map_err(Error::io(format!("make {}", to.display())))?;
            }
        }
        for directory in [
            self.disk.blobs_dir(),
            self.disk.layers_dir(),
            self.disk.parents_dir(),
        ] {
            sync_directory(&directory)
                .map_err(Error::io(format!("write {}", directory.display())))?;
        }
        let mut names = self.disk.read_index()?;
        for (new, _) in images {
            names.retain(|old| old.reference != new.reference);
            names.push(Named::new(new.reference.clone(), &new.target, self.pinned));
        }
        names.sort_by(|a, b| a.reference.cmp(&b.reference));
        self.disk.write_index(&lock, &names)?;
        Ok(Commit::Done)
    }

    /// All layers of an image together, also those that were here before.
    fn check_size(&self, named: &Named, diff_ids: &[Digest]) -> Result<(), Error> {
        let limits = self.disk.limits();
        let budget = Budget::new(limits);
        for diff_id in diff_ids {
            let unpacked = self.unpacked(*diff_id)?;
            budget
                .take_layer(unpacked.bytes, unpacked.entries)
                .map_err(|_| Error::TooLarge {
                    image: named.reference.to_string(),
                    bytes: limits.bytes,
                    entries: limits.entries,
                })?;
        }
        Ok(())
    }

    /// Takes away what somebody damaged, so that it can be put there again.
    fn put_aside(&self, damaged: &Path) -> Result<(), Error> {
        let Some(name) = damaged.file_name().filter(|_| damaged.exists()) else {
            return Ok(());
        };
        let to = self.directory.path().join("damaged").join(name);
        fs::create_dir_all(self.directory.path().join("damaged"))
            .and_then(|()| fs::rename(damaged, to))
            .map_err(Error::io(format!("replace {}", damaged.display())))
    }

    /// Whether something is gone that this relies on.
    fn lost(&self) -> bool {
        let moved = |staged: PathBuf, stored: PathBuf| !staged.exists() && !stored.exists();
        self.reused.iter().any(|path| !path.exists())
            || self.included.iter().any(|part| {
                let blob = |id: &Digest| moved(part.staged_blob(*id), self.disk.blob_path(*id));
                let layer = |id: &Digest| moved(part.staged_layer(*id), self.disk.layer_path(*id));
                part.blobs.iter().any(blob) || part.layers.keys().any(layer)
            })
    }

    /// Where the directories that a chain of layers needs are staged.
    pub(super) fn parents_directory(&self, chain_id: Digest) -> PathBuf {
        self.directory
            .path()
            .join(format!("parents-{}", chain_id.hex()))
    }
}

/// An empty directory for a layer's files, in a directory for all that belongs to the layer.
fn make_tree(layer: &Path) -> Result<PathBuf, Error> {
    let fs = layer.join("fs");
    make_directory(layer)
        .and_then(|()| make_directory(&fs))
        .and_then(|()| {
            fs::set_permissions(&fs, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        })
        .map_err(Error::io(format!("make {}", fs.display())))?;
    Ok(fs)
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Locks a staging directory; nothing when somebody else has it.
pub(super) fn lock_directory(path: &Path) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno.into()),
    }
}

/// One call for thousands of files; each on its own would wait for the disk.
fn sync_file_system(path: &Path) -> io::Result<()> {
    Ok(nix::unistd::syncfs(File::open(path)?)?)
}
