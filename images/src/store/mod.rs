//! The images of one node: a content-addressed store that several processes may use at once.
//!
//! ```text
//! <root>/oci-layout, index.json, blobs/sha256/<hex>   an OCI image layout, as any tool reads it
//! <root>/layers/<diff id>/fs                          each layer unpacked once, for overlayfs
//! <root>/layers/<diff id>/layer.json                  what was found while unpacking
//! <root>/parents/<chain id>/fs                        directories' metadata (see `parents`)
//! <root>/parents/<chain id>/graft                     in place of a layer (see `graft`)
//! <root>/leases/<holder>                              images in use, by the digest of their manifest
//! <root>/ingest/<random>/                             what is not finished, locked by who makes it
//! <root>/turns/<manifest>                             locked by who fetches that image
//! <root>/lock                                         flock: shared to read the index, exclusive to change
//! ```
//!
//! Content is staged in a directory of its own under `ingest`, which its maker holds locked. A
//! commit, under the exclusive lock, syncs the file system, renames the content into place and
//! replaces `index.json`. So at every instant what the index names is complete. Opening a store
//! removes staging directories that nobody holds, and content that nothing names.
//!
//! [`Store`] is asynchronous: its work happens on tokio's blocking threads, in [`disk::Disk`].

pub(crate) mod disk;
mod graft;
pub(crate) mod image;
pub(crate) mod index;
pub(crate) mod ingest;
pub(crate) mod layer;
mod lease;
mod lock;
mod parents;
mod removal;
pub(crate) mod sweep;
pub(crate) mod turn;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use image::{Damaged, Image};
pub use removal::{Prune, Pruned, Removal, Removed};

use crate::{Digest, Error, Limits, Reference, export, import};
use disk::Disk;

/// A handle on a store; clones share the cache of parsed images.
#[derive(Debug, Clone)]
pub struct Store {
    disk: Arc<Disk>,
}

impl Store {
    /// Opens the store in a directory, which is made if needed, and clears away what a killed
    /// process left half done.
    ///
    /// # Errors
    /// When the directory can't be written, or holds an index that is not valid.
    pub async fn open(root: impl Into<PathBuf>) -> Result<Self, Error> {
        Self::open_with(root, Limits::default()).await
    }

    /// As [`Store::open`], with bounds on what one image may unpack to.
    pub async fn open_with(root: impl Into<PathBuf>, limits: Limits) -> Result<Self, Error> {
        let root = root.into();
        let disk = blocking(move || Disk::open(&root, limits)).await?;
        Ok(Self {
            disk: Arc::new(disk),
        })
    }

    pub(crate) fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    pub fn root(&self) -> &Path {
        self.disk.root()
    }

    /// The image that a reference names, if it is here. With a digest, the image must have it
    /// and come from the same repository; a tag beside it is not looked at.
    pub async fn get(&self, reference: &Reference) -> Result<Option<Arc<Image>>, Error> {
        let reference = reference.clone();
        self.run(move |disk| {
            Ok(disk
                .images()?
                .iter()
                .find(|image| image.is(&reference))
                .cloned())
        })
        .await
    }

    /// The image that a person means: a reference, or some first digits of its id or digest.
    ///
    /// # Errors
    /// [`Error::NotFound`], and [`Error::Ambiguous`] when several ids start so.
    pub async fn find(&self, name: &str) -> Result<Arc<Image>, Error> {
        let name = name.to_owned();
        self.run(move |disk| image::find(&*disk.loaded()?, &name))
            .await
    }

    /// All images, ordered by their first reference.
    pub async fn list(&self) -> Result<Vec<Arc<Image>>, Error> {
        self.run(|disk| Ok(disk.images()?.to_vec())).await
    }

    /// Images that can't be used because somebody changed files of the store.
    pub async fn damaged(&self) -> Result<Vec<Damaged>, Error> {
        self.run(|disk| Ok(disk.loaded()?.damaged.clone())).await
    }

    /// Takes the name away, and with an image's last name the content that no other image and
    /// no lease needs.
    ///
    /// # Errors
    /// [`Error::NotFound`] when nothing has this name.
    pub async fn remove(&self, reference: &Reference) -> Result<Removed, Error> {
        let name = reference.to_string();
        let removed = self.remove_named(&name, Removal::Forced).await?;
        removed.into_iter().next().ok_or(Error::NotFound(name))
    }

    /// Takes away what a person means: one name, the names of a repository with a digest, or an image with
    /// all its names by some first digits of its id.
    ///
    /// # Errors
    /// As [`Store::find`]; without force, [`Error::InUse`] when a container uses the image and no
    /// other name would stay, and [`Error::SeveralNames`] when an id has names in several
    /// repositories.
    pub async fn remove_named(&self, name: &str, how: Removal) -> Result<Vec<Removed>, Error> {
        let name = name.to_owned();
        self.run(move |disk| removal::remove(disk, &name, how))
            .await
    }

    /// Takes away what nothing uses, and tells how much that was.
    pub async fn prune(&self, what: Prune) -> Result<Pruned, Error> {
        self.run(move |disk| removal::prune(disk, what)).await
    }

    /// Removes an image with all its names, unless a container uses it: then nothing is removed.
    pub async fn collect(&self, image: &Arc<Image>) -> Result<Pruned, Error> {
        let image = Arc::clone(image);
        self.run(move |disk| removal::collect(disk, &image)).await
    }

    /// Lets an image that came from a file be collected as one of a registry is.
    ///
    /// # Errors
    /// [`Error::NotFound`] when nothing has this name.
    pub async fn unpin(&self, reference: &Reference) -> Result<(), Error> {
        let reference = reference.clone();
        self.run(move |disk| removal::unpin(disk, &reference)).await
    }

    /// The manifests of images that are in use.
    pub async fn used(&self) -> Result<BTreeSet<Digest>, Error> {
        self.run(|disk| removal::used(disk)).await
    }

    /// Takes in an OCI archive, an OCI layout directory or a `docker save` archive. `names`
    /// replace what the archive calls its (then only) image.
    ///
    /// # Errors
    /// When the file is no image, its content does not match its digests, or a layer holds what no
    /// honest layer holds. Nothing is added then.
    pub async fn import(
        &self,
        path: impl Into<PathBuf>,
        names: &[Reference],
    ) -> Result<Vec<Arc<Image>>, Error> {
        let (path, names) = (path.into(), names.to_vec());
        self.run(move |disk| import::import(disk, &path, &names))
            .await
    }

    /// Writes an OCI archive of the named images.
    ///
    /// # Errors
    /// [`Error::NotFound`], or when the file can't be written.
    pub async fn export(
        &self,
        references: &[Reference],
        to: impl Into<PathBuf>,
    ) -> Result<(), Error> {
        let (references, to) = (references.to_vec(), to.into());
        self.run(move |disk| export::export(disk, &references, &to))
            .await
    }

    /// Keeps an image's content for as long as `holder` (a container id) needs it, whoever
    /// removes its name meanwhile. Durable: it survives the process.
    pub async fn lease(&self, holder: &str, image: &Image) -> Result<(), Error> {
        let (holder, manifest) = (holder.to_owned(), image.manifest);
        self.run(move |disk| lease::take(disk, &holder, manifest))
            .await
    }

    /// Ends a lease, and removes what only it kept. A lease that is not there is no error.
    pub async fn release(&self, holder: &str) -> Result<(), Error> {
        let holder = holder.to_owned();
        self.run(move |disk| lease::release(disk, &holder)).await
    }

    /// Who holds leases.
    pub async fn leases(&self) -> Result<Vec<String>, Error> {
        self.run(|disk| {
            Ok(lease::all(disk)?
                .into_iter()
                .map(|(holder, _)| holder)
                .collect())
        })
        .await
    }

    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Disk>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let disk = Arc::clone(&self.disk);
        blocking(move || work(&disk)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(Error::Interrupted(error.to_string())))
}
