//! Entries below a name that is a symbolic link in the layers below.
//!
//! A layer may hold `lib/new.so` without an entry for `lib`, on top of a layer where `lib` is a link to
//! `usr/lib`. Unpackers that work on the whole tree follow the link. Layers are unpacked alone, where `lib` became a
//! directory, which would hide the link. Such an image gets a copy of the layer instead (its files
//! hard-linked, so that it takes no room) in which those directories are where the link leads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::parents::{Visible, copy_metadata, is_opaque, visible};
use crate::unpack::UnpackError;

/// As many as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

/// Where directories of a layer belong that have another place than their name says.
pub(super) type Moved = BTreeMap<PathBuf, PathBuf>;

/// Finds the undescribed directories of a layer (`implied`, parents first) that are links below.
///
/// # Errors
/// When a link leads out of the image, or to no directory.
pub(super) fn moved(below: &[PathBuf], implied: &[PathBuf]) -> Result<Moved, UnpackError> {
    let mut moved = Moved::new();
    for path in implied {
        let here = place(&moved, path);
        let to = follow(below, &here).map_err(|reason| match reason {
            Unfollowable::Refused(reason) => UnpackError::Refused {
                entry: path.display().to_string(),
                reason,
            },
            Unfollowable::Io(source) => UnpackError::Write {
                entry: path.display().to_string(),
                doing: "follow the links on its way",
                source,
            },
        })?;
        if to != *path {
            moved.insert(path.clone(), to);
        }
    }
    Ok(moved)
}

/// Where a path belongs, as far as is known from the directories above it.
fn place(moved: &Moved, path: &Path) -> PathBuf {
    for above in path.ancestors().skip(1) {
        if let (Some(to), Ok(rest)) = (moved.get(above), path.strip_prefix(above)) {
            return to.join(rest);
        }
    }
    path.to_owned()
}

enum Unfollowable {
    Refused(String),
    Io(io::Error),
}

/// The path itself, unless it is a link below.
fn follow(below: &[PathBuf], path: &Path) -> Result<PathBuf, Unfollowable> {
    let Visible::Link(first) = visible(below, path).map_err(Unfollowable::Io)? else {
        return Ok(path.to_owned());
    };
    let refused = |reason: &str| {
        let link = path.display();
        Unfollowable::Refused(format!(
            "'{link}' is a symbolic link in a layer below, {reason}"
        ))
    };
    let mut at = path.parent().unwrap_or(Path::new("")).to_owned();
    let mut left = VecDeque::new();
    let mut links = 1;
    push_front(&mut left, &mut at, &first);
    while let Some(part) = left.pop_front() {
        match part.as_bytes() {
            b"" | b"." => continue,
            b".." => {
                if !at.pop() {
                    return Err(refused("and leads out of the image"));
                }
                continue;
            }
            _ => at.push(&part),
        }
        match visible(below, &at).map_err(Unfollowable::Io)? {
            Visible::Directory(_) => {}
            Visible::Link(target) if links < LINKS_MAX => {
                links += 1;
                at.pop();
                push_front(&mut left, &mut at, &target);
            }
            Visible::Link(_) => return Err(refused("one of too many")),
            Visible::Nothing | Visible::Other => {
                return Err(refused("and leads to no directory there"));
            }
        }
    }
    Ok(at)
}

fn push_front(left: &mut VecDeque<OsString>, at: &mut PathBuf, target: &Path) {
    let target = target.as_os_str().as_bytes();
    if target.starts_with(b"/") {
        at.clear();
    }
    for part in target.rsplit(|byte| *byte == b'/') {
        left.push_front(OsStr::from_bytes(part).to_owned());
    }
}

/// Makes a copy of a layer in `to` (empty) with those directories moved. Gives the directories that
/// are still undescribed: the layers below say what they are like.
pub(super) fn copy(
    layer: &Path,
    moved: &Moved,
    implied: &[PathBuf],
    to: &Path,
) -> io::Result<BTreeSet<PathBuf>> {
    let mut copy = Copy {
        layer,
        moved,
        to,
        undescribed: implied.iter().map(|path| place_of(moved, path)).collect(),
        made: Vec::new(),
    };
    copy.directory(Path::new(""), Path::new(""))?;
    // Deepest first: making a file changes its directory's time.
    for (from, made) in copy.made.iter().rev() {
        copy_metadata(from, made)?;
        if is_opaque(from)? {
            xattr::set(made, "trusted.overlay.opaque", b"y")?;
        }
    }
    Ok(copy.undescribed)
}

fn place_of(moved: &Moved, path: &Path) -> PathBuf {
    moved
        .get(path)
        .cloned()
        .unwrap_or_else(|| place(moved, path))
}

struct Copy<'a> {
    layer: &'a Path,
    moved: &'a Moved,
    to: &'a Path,
    undescribed: BTreeSet<PathBuf>,
    /// Directories of the layer, and what was made of them.
    made: Vec<(PathBuf, PathBuf)>,
}

impl Copy<'_> {
    /// Copies what a directory holds; `at` is where it belongs.
    fn directory(&mut self, path: &Path, at: &Path) -> io::Result<()> {
        self.make(path, at)?;
        let mut entries: Vec<PathBuf> = fs::read_dir(self.layer.join(path))?
            .map(|entry| Ok(path.join(entry?.file_name())))
            .collect::<io::Result<_>>()?;
        entries.sort();
        for entry in entries {
            let name = entry.file_name().unwrap_or_default();
            let place = match self.moved.get(&entry) {
                Some(moved) => moved.clone(),
                None => at.join(name),
            };
            let source = self.layer.join(&entry);
            match fs::symlink_metadata(&source)?.is_dir() {
                true => self.directory(&entry, &place)?,
                false => fs::hard_link(&source, self.to.join(&place))?,
            }
        }
        Ok(())
    }

    fn make(&mut self, path: &Path, at: &Path) -> io::Result<()> {
        let mut missing: Vec<&Path> = at
            .ancestors()
            .take_while(|above| !self.to.join(above).is_dir())
            .collect();
        missing.reverse();
        for directory in missing {
            fs::create_dir(self.to.join(directory))?;
            if directory != at {
                self.undescribed.insert(directory.to_owned());
            }
        }
        self.made.push((self.layer.join(path), self.to.join(at)));
        Ok(())
    }
}
