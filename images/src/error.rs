//! What can go wrong with images.

use std::io;
use std::path::{Path, PathBuf};

use crate::{Digest, DigestError, Reference, ReferenceError, UnpackError};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {doing}: {source}")]
    Io { doing: String, source: io::Error },
    #[error("{what} is not valid: {source}")]
    Json {
        what: String,
        source: serde_json::Error,
    },
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The file is none of the formats that can be imported, or one that is damaged.
    #[error("{} is not an image: {reason}", path.display())]
    NotAnImage { path: PathBuf, reason: String },
    #[error("{} does not say what its image is called: give a name with --name", .0.display())]
    Unnamed(PathBuf),
    #[error("{} holds {count} images: they can't all get the name given", path.display())]
    ManyImages { path: PathBuf, count: usize },
    #[error("{image}: {what} has the digest {actual}, not {expected}: the content was altered")]
    Mismatch {
        image: String,
        what: String,
        expected: Digest,
        actual: Digest,
    },
    #[error("{image}: {reason}")]
    Malformed { image: String, reason: String },
    #[error("{image} has nothing for {wanted}, only for {found}")]
    NoPlatform {
        image: String,
        wanted: String,
        found: String,
    },
    /// Names the image, the layer and (within the source) the entry.
    #[error("{image}: layer {layer}: {source}")]
    Layer {
        image: String,
        layer: Digest,
        source: UnpackError,
    },
    #[error(
        "{image}: its layers together unpack to more than the {bytes} bytes or {entries} files allowed"
    )]
    TooLarge {
        image: String,
        bytes: u64,
        entries: u64,
    },
    /// Somebody changed or removed files of the store by hand.
    #[error(
        "{image} is damaged: {problem}: add it again, or remove it with 'skiff image rm {image}'"
    )]
    Damaged { image: String, problem: String },
    #[error(
        "{} is damaged ({source}): it holds the names of the images: put it right, or remove it and add the images again",
        path.display()
    )]
    DamagedIndex {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(
        "{image} is in use by a container: end it first, or remove the name alone with --force"
    )]
    InUse { image: String },
    #[error("{image} has several names ({names}): remove them one by one, or all with --force")]
    SeveralNames { image: String, names: String },
    #[error("no such image: {0}")]
    NotFound(String),
    #[error("{0} could mean several images: give more digits")]
    Ambiguous(String),
    #[error("cannot pack {}: {reason}", rootfs.display())]
    Pack { rootfs: PathBuf, reason: String },
    #[error("{image}: content disappeared from the store again and again while it was added")]
    Raced { image: String },
    /// The runtime is shutting down, or the work panicked.
    #[error("work on the image store was interrupted: {0}")]
    Interrupted(String),
}

impl Error {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    pub(crate) fn json(what: impl Into<String>) -> impl FnOnce(serde_json::Error) -> Self {
        let what = what.into();
        move |source| Self::Json { what, source }
    }

    pub(crate) fn not_an_image(path: &Path, reason: impl Into<String>) -> Self {
        Self::NotAnImage {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn malformed(image: &str, reason: impl Into<String>) -> Self {
        Self::Malformed {
            image: image.to_owned(),
            reason: reason.into(),
        }
    }

    pub(crate) fn not_found(reference: &Reference) -> Self {
        Self::NotFound(reference.to_string())
    }
}
