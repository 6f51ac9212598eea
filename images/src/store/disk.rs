//! The blocking side of the store: its paths, its lock and the cache of parsed images.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::image::{self, Image, Loaded};
use super::index::{self, Named};
use super::lock::{Exclusive, Shared};
use super::sweep;
use super::turn;
use crate::{Digest, Error, Limits};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Manifests, indexes and configurations. containerd allows 8 MiB too.
pub(crate) const JSON_MAX: u64 = 8 << 20;

#[derive(Debug)]
pub(crate) struct Disk {
    root: PathBuf,
    limits: Limits,
    cache: Mutex<Option<Cache>>,
    /// One commit at a time in this process; between processes there is [`Disk::lock`].
    pub(super) committing: Mutex<()>,
}

#[derive(Debug)]
struct Cache {
    of: Stamp,
    loaded: Arc<Loaded>,
}

/// Tells one `index.json` from the next: each is a new file.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

impl Disk {
    pub(super) fn open(root: &Path, limits: Limits) -> Result<Self, Error> {
        let disk = Self {
            root: root.to_owned(),
            limits,
            cache: Mutex::new(None),
            committing: Mutex::new(()),
        };
        // Layers hold setuid programs of other systems: nobody else may reach them.
        for directory in [
            disk.root.clone(),
            disk.blobs_dir(),
            disk.layers_dir(),
            disk.parents_dir(),
            disk.leases_dir(),
            disk.ingest_dir(),
            disk.turns_dir(),
        ] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(Error::io(format!("make {}", directory.display())))?;
        }
        let lock = disk.lock()?;
        if !disk.root.join("oci-layout").exists() {
            disk.replace("oci-layout", LAYOUT)?;
        }
        if !disk.index_path().exists() {
            disk.write_index(&lock, &[])?;
        }
        turn::sweep(&disk).map_err(Error::io("clear away locks of pulls"))?;
        let trash = sweep::abandoned(&disk, &lock)?.and(sweep::unreachable(&disk, &lock)?);
        drop(lock);
        trash.empty();
        Ok(disk)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("index.json")
    }

    pub(super) fn blobs_dir(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    pub(super) fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    pub(super) fn parents_dir(&self) -> PathBuf {
        self.root.join("parents")
    }

    pub(super) fn leases_dir(&self) -> PathBuf {
        self.root.join("leases")
    }

    pub(super) fn ingest_dir(&self) -> PathBuf {
        self.root.join("ingest")
    }

    pub(super) fn turns_dir(&self) -> PathBuf {
        self.root.join("turns")
    }

    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.blobs_dir().join(digest.hex())
    }

    /// The directory of an unpacked layer; `fs` and `layer.json` are in it.
    pub(crate) fn layer_path(&self, diff_id: Digest) -> PathBuf {
        self.layers_dir().join(diff_id.hex())
    }

    pub(super) fn parents_path(&self, chain_id: Digest) -> PathBuf {
        self.parents_dir().join(chain_id.hex())
    }

    /// Whether content that is in its place can be used: somebody may have taken parts of it away.
    pub(super) fn is_whole(&self, path: &Path) -> bool {
        if path.starts_with(self.layers_dir()) {
            path.join("fs").is_dir() && path.join("layer.json").is_file()
        } else if path.starts_with(self.parents_dir()) {
            path.join("fs").is_dir() || path.join("graft").is_dir()
        } else {
            path.exists()
        }
    }

    pub(crate) fn has_blob(&self, digest: Digest) -> bool {
        self.blob_path(digest).exists()
    }

    pub(crate) fn has_layer(&self, diff_id: Digest) -> bool {
        self.is_whole(&self.layer_path(diff_id))
    }

    /// Waits for its turn to change the store.
    pub(crate) fn lock(&self) -> Result<Exclusive, Error> {
        Exclusive::take(&self.root.join("lock"))
    }

    /// The images that are here now. Costs one `stat` as long as nothing has changed.
    pub(crate) fn images(&self) -> Result<Arc<[Arc<Image>]>, Error> {
        Ok(Arc::clone(&self.loaded()?.images))
    }

    /// As [`Disk::images`], with those that are damaged.
    pub(crate) fn loaded(&self) -> Result<Arc<Loaded>, Error> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.stamp()?;
        if let Some(cache) = &*cache
            && cache.of == stamp
        {
            return Ok(Arc::clone(&cache.loaded));
        }
        let _lock = Shared::take(&self.root.join("lock"))?;
        let stamp = self.stamp()?;
        let loaded = Arc::new(image::load_all(self, &self.read_index()?));
        *cache = Some(Cache {
            of: stamp,
            loaded: Arc::clone(&loaded),
        });
        Ok(loaded)
    }

    pub(crate) fn read_index(&self) -> Result<Vec<Named>, Error> {
        index::read(&self.index_path())
    }

    pub(super) fn write_index(&self, _lock: &Exclusive, names: &[Named]) -> Result<(), Error> {
        self.replace("index.json", &index::encode(names)?)
    }

    fn stamp(&self) -> Result<Stamp, Error> {
        let path = self.index_path();
        let metadata =
            fs::metadata(&path).map_err(Error::io(format!("read {}", path.display())))?;
        Ok(Stamp {
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.len(),
        })
    }

    /// Reads a manifest, an index or a configuration.
    pub(crate) fn read_json(&self, digest: Digest) -> Result<Vec<u8>, Error> {
        let path = self.blob_path(digest);
        let doing = format!("read {}", path.display());
        let size = fs::metadata(&path).map_err(Error::io(&doing))?.len();
        if size > JSON_MAX {
            return Err(Error::malformed(
                &digest.to_string(),
                format!("{size} bytes are more than the {JSON_MAX} allowed"),
            ));
        }
        let bytes = fs::read(&path).map_err(Error::io(doing))?;
        let actual = Digest::of(&bytes);
        match actual == digest {
            true => Ok(bytes),
            false => Err(Error::Mismatch {
                image: path.display().to_string(),
                what: "its content".to_owned(),
                expected: digest,
                actual,
            }),
        }
    }

    /// Replaces a file of the store's root by a new one, durably. Only under the lock.
    pub(super) fn replace(&self, name: &str, content: &[u8]) -> Result<(), Error> {
        let path = self.root.join(name);
        let write = || -> io::Result<()> {
            let directory = path.parent().unwrap_or(&self.root);
            let mut file = tempfile::NamedTempFile::new_in(self.ingest_dir())?;
            file.write_all(content)?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            sync_directory(directory)
        };
        write().map_err(Error::io(format!("write {}", path.display())))
    }
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
