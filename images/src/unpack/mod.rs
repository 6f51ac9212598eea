//! A layer's tar stream becomes a directory that overlayfs can use as a lower layer.
//!
//! [`unpack`] reads entry by entry and never holds more than one buffer of content. [`stream`]
//! takes the tar stream apart, with [`pax`] and [`sparse`] for its extensions. [`name`] turns an
//! entry's name into components that can't leave the tree; [`tree`] resolves them against
//! directory descriptors, so that no name is ever interpreted by the kernel relative to anything
//! but the layer's own directory; [`apply`] makes each kind of entry with its metadata.
//!
//! Whiteouts become what overlayfs expects: a character device 0:0, and
//! `trusted.overlay.opaque=y` on opaque directories
//! (<https://docs.kernel.org/filesystems/overlayfs.html>). A whiteout speaks of the layers below
//! only (image-spec, layer.md), so one for a name that this layer has too makes it opaque.

mod apply;
mod budget;
mod metadata;
mod name;
mod pax;
mod sparse;
mod stream;
mod tree;

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use budget::Budget;
pub use budget::Limits;

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unpacked {
    pub bytes: u64,
    pub entries: u64,
    /// The layer hides everything below it. Overlayfs has no such mark for a root.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub opaque_root: bool,
    /// The layer has no entry for its root: a layer below says what its owner, mode and time are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bare_root: bool,
    /// Directories that hold entries but have none themselves: a layer below says what their
    /// owner, mode and times are. Relative to the layer's root, parents first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub implied: Vec<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream ended early, or is not a tar archive or not compressed as it claims.
    #[error("cannot read the layer: {0}")]
    Read(#[source] io::Error),
    /// Names the entry before the part that can't be understood.
    #[error("after entry '{after}': {source}")]
    Malformed { after: String, source: io::Error },
    #[error("entry '{entry}': {reason}")]
    Refused { entry: String, reason: String },
    #[error("entry '{entry}': cannot {doing}: {source}")]
    Write {
        entry: String,
        doing: &'static str,
        source: io::Error,
    },
    #[error("entry '{entry}': the image unpacks to more than the {limit} bytes allowed")]
    TooLarge { entry: String, limit: u64 },
    #[error("entry '{entry}': the image has more than the {limit} files allowed")]
    TooMany { entry: String, limit: u64 },
    /// Not by its files: by what is between or after them.
    #[error("the image's layers inflate to more than {limit} bytes")]
    Bomb { limit: u64 },
}

/// Unpacks a tar stream (already decompressed) into `root`, an empty directory.
///
/// Needs the right to make device nodes and to give files away. On an error the directory is
/// left as it is: the caller removes it.
///
/// # Errors
/// When the stream can't be read, holds what no honest layer holds, or exceeds `limits`.
pub fn unpack(stream: impl Read, root: &Path, limits: Limits) -> Result<Unpacked, UnpackError> {
    unpack_within(stream, root, &Budget::new(limits))
}

/// As [`unpack`], within what other layers of the image leave.
pub(crate) fn unpack_within(
    stream: impl Read,
    root: &Path,
    budget: &Budget,
) -> Result<Unpacked, UnpackError> {
    let tree = tree::Tree::open(root).map_err(|source| UnpackError::Write {
        entry: "/".to_owned(),
        doing: "open the layer's directory",
        source,
    })?;
    let mut layer = apply::Layer::new(tree, budget);
    let mut stream = stream::Stream::new(stream);
    let mut last = String::new();
    loop {
        match stream.next() {
            Ok(None) => return layer.finish(),
            Ok(Some(entry)) => {
                layer.apply(&entry, &mut stream)?;
                last = entry.shown();
            }
            Err(source) if !last.is_empty() && source.kind() == io::ErrorKind::InvalidData => {
                return Err(UnpackError::Malformed {
                    after: last,
                    source,
                });
            }
            Err(source) => return Err(UnpackError::Read(source)),
        }
    }
}
