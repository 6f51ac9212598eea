//! Directories that a layer has entries in but says nothing about.
//!
//! A layer may hold `usr/bin/tool` without entries for `usr` and `usr/bin`. Their owner, mode and
//! times are those of the layers below, yet overlayfs shows those of the topmost layer that has
//! the directory. Layers are unpacked alone (each once, for every image that has it), so such an
//! image gets one more directory on top of the layer: only the implied directories, with the
//! metadata that they have below. It is named by the chain id, which stands for a layer and all
//! below it (image-spec, config.md).

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

use super::disk::Disk;
use super::graft;
use super::ingest::Ingest;
use crate::unpack::Unpacked;
use crate::{Digest, Error};

/// The name of a layer on top of those below.
pub(super) fn chain_id(below: Option<Digest>, diff_id: Digest) -> Digest {
    match below {
        None => diff_id,
        Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
    }
}

/// One layer of an image, and what its place in the image makes of it.
pub(super) struct Step {
    pub(super) diff_id: Digest,
    pub(super) chain_id: Digest,
    /// Nothing of the layers below is seen.
    pub(super) hides_below: bool,
    /// It needs directories with the metadata from below on top.
    pub(super) needs_parents: bool,
    unpacked: Unpacked,
}

/// How an image's layers lie on each other, lowest first.
pub(super) fn steps(
    diff_ids: &[Digest],
    read: impl Fn(Digest) -> Result<Unpacked, Error>,
) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    let mut chain = None;
    let mut below = false;
    // Whether some layer says what the root is like.
    let mut described = false;
    for (number, diff_id) in diff_ids.iter().enumerate() {
        let unpacked = read(*diff_id)?;
        let chain_id = chain_id(chain, *diff_id);
        chain = Some(chain_id);
        // Of all roots, only the topmost is seen.
        let top = number + 1 == diff_ids.len();
        let bare = unpacked.bare_root && described && top;
        described |= !unpacked.bare_root;
        below &= !unpacked.opaque_root;
        steps.push(Step {
            diff_id: *diff_id,
            chain_id,
            hides_below: unpacked.opaque_root,
            needs_parents: bare || (below && !unpacked.implied.is_empty()),
            unpacked,
        });
        below = true;
    }
    Ok(steps)
}

/// What is made of a layer for its place in an image.
pub(super) enum Made {
    /// Directories on top of it.
    Parents(PathBuf),
    /// Another one in its place (see `graft`).
    Graft(PathBuf),
}

/// What was made for a chain of layers, if it is complete.
pub(super) fn find(disk: &Disk, chain_id: Digest) -> Option<Made> {
    let path = disk.parents_path(chain_id);
    [
        Made::Parents(path.join("fs")),
        Made::Graft(path.join("graft")),
    ]
    .into_iter()
    .find(|made| made.path().is_dir())
}

impl Made {
    fn path(&self) -> &Path {
        match self {
            Self::Parents(path) | Self::Graft(path) => path,
        }
    }

    /// Adds the layer with what was made of it to the directories below.
    pub(super) fn put_on(self, layer: PathBuf, below: &mut Vec<PathBuf>) {
        match self {
            Self::Parents(parents) => below.extend([layer, parents]),
            Self::Graft(graft) => below.push(graft),
        }
    }
}

/// Makes what an image's layers need. Gives pairs of staged and final paths.
pub(super) fn stage(
    disk: &Disk,
    ingest: &Ingest,
    image: &str,
    diff_ids: &[Digest],
) -> Result<Vec<(PathBuf, PathBuf)>, Error> {
    let mut moves = Vec::new();
    // Lowest first, as far up as the current layer.
    let mut below: Vec<PathBuf> = Vec::new();
    // The topmost layer that describes the root.
    let mut root: Option<PathBuf> = None;
    for step in steps(diff_ids, |diff_id| ingest.unpacked(diff_id))? {
        if step.hides_below {
            below.clear();
        }
        let layer = ingest.layer_fs(step.diff_id);
        if root.is_none() || !step.unpacked.bare_root {
            root = Some(layer.clone());
        }
        if !step.needs_parents {
            below.push(layer);
            continue;
        }
        let staged = ingest.parents_directory(step.chain_id);
        let moved =
            graft::moved(&below, &step.unpacked.implied).map_err(|source| Error::Layer {
                image: image.to_owned(),
                layer: step.diff_id,
                source,
            })?;
        let made = match moved.is_empty() {
            true => Made::Parents(staged.join("fs")),
            false => Made::Graft(staged.join("graft")),
        };
        // Another of the images, or the same by another name, may have made it.
        if !staged.exists() {
            let root = root.as_deref().unwrap_or(&layer);
            let implied = &step.unpacked.implied;
            fs::create_dir_all(made.path())
                .and_then(|()| match &made {
                    Made::Parents(to) => copy_all(&below, &layer, implied, to),
                    Made::Graft(to) => {
                        let undescribed = graft::copy(&layer, &moved, implied, to)?;
                        describe(&below, &undescribed, to)
                    }
                })
                .and_then(|()| copy_metadata(root, made.path()))
                .map_err(Error::io(format!("make {}", made.path().display())))?;
            moves.push((staged, disk.parents_path(step.chain_id)));
        }
        made.put_on(layer, &mut below);
    }
    Ok(moves)
}

/// Makes directories look as they do below.
fn describe(below: &[PathBuf], paths: &BTreeSet<PathBuf>, to: &Path) -> io::Result<()> {
    for path in paths.iter().rev() {
        if let Visible::Directory(source) = visible(below, path)? {
            copy_metadata(&source, &to.join(path))?;
        }
    }
    Ok(())
}

fn copy_all(below: &[PathBuf], layer: &Path, implied: &[PathBuf], to: &Path) -> io::Result<()> {
    let mut made = Vec::new();
    for path in implied {
        let source = match visible(below, path)? {
            Visible::Directory(directory) => directory,
            _ => layer.join(path),
        };
        let target = to.join(path);
        make_with_parents(to, layer, path, &mut made)?;
        made.push((source, target));
    }
    // Deepest first: making a directory changes its parent's time.
    for (source, target) in made.iter().rev() {
        copy_metadata(source, target)?;
    }
    Ok(())
}

/// Makes a directory; parents that the layer declares itself keep the layer's metadata.
fn make_with_parents(
    root: &Path,
    layer: &Path,
    path: &Path,
    made: &mut Vec<(PathBuf, PathBuf)>,
) -> io::Result<()> {
    let mut missing: Vec<&Path> = path
        .ancestors()
        .take_while(|ancestor| !root.join(ancestor).exists())
        .collect();
    missing.reverse();
    for directory in missing {
        fs::create_dir(root.join(directory))?;
        if directory != path {
            made.push((layer.join(directory), root.join(directory)));
        }
    }
    Ok(())
}

/// What layers show under a name.
pub(super) enum Visible {
    /// The topmost of them.
    Directory(PathBuf),
    Link(PathBuf),
    /// A file, or what has a file on its way.
    Other,
    Nothing,
}

pub(super) fn visible(below: &[PathBuf], path: &Path) -> io::Result<Visible> {
    'layers: for layer in below.iter().rev() {
        let mut at = layer.clone();
        let mut opaque = false;
        for component in path.components() {
            at.push(component);
            match fs::symlink_metadata(&at) {
                Ok(metadata) if metadata.is_dir() => opaque |= is_opaque(&at)?,
                Ok(metadata) if metadata.is_symlink() && at == layer.join(path) => {
                    return Ok(Visible::Link(fs::read_link(&at)?));
                }
                // A whiteout: nothing below shows through.
                Ok(metadata) if metadata.file_type().is_char_device() && metadata.rdev() == 0 => {
                    return Ok(Visible::Nothing);
                }
                Ok(_) => return Ok(Visible::Other),
                Err(error) if error.kind() == io::ErrorKind::NotFound => match opaque {
                    true => return Ok(Visible::Nothing),
                    false => continue 'layers,
                },
                Err(error) => return Err(error),
            }
        }
        return Ok(Visible::Directory(at));
    }
    Ok(Visible::Nothing)
}

pub(super) fn is_opaque(directory: &Path) -> io::Result<bool> {
    Ok(xattr::get(directory, "trusted.overlay.opaque")?.is_some_and(|value| value == b"y"))
}

pub(super) fn copy_metadata(from: &Path, to: &Path) -> io::Result<()> {
    let metadata: Metadata = fs::symlink_metadata(from)?;
    chown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(to, PermissionsExt::from_mode(metadata.mode() & 0o7777))?;
    for name in xattr::list(from)? {
        if name.as_encoded_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        if let Some(value) = xattr::get(from, &name)? {
            xattr::set(to, &name, &value)?;
        }
    }
    utimensat(
        nix::fcntl::AT_FDCWD,
        to,
        &TimeSpec::new(metadata.atime(), metadata.atime_nsec()),
        &TimeSpec::new(metadata.mtime(), metadata.mtime_nsec()),
        UtimensatFlags::NoFollowSymlink,
    )?;
    Ok(())
}
