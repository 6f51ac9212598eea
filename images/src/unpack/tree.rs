//! A directory tree that is only ever reached through descriptors.
//!
//! The kernel resolves a plain path with `openat2` and RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS. Only when
//! a component is a symbolic link is the path walked component by component, and the link read
//! and followed as it would be inside a container: an absolute target starts at the layer's
//! root. A link that climbs above the root, or leads to nothing, is refused.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat};

use super::name::Components;

/// As many as the kernel follows (path_resolution(7)).
const LINKS_MAX: usize = 40;

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

pub(super) struct Tree {
    root: Rc<OwnedFd>,
    /// Entries come directory by directory, so the last parent is mostly the next one too.
    last: Option<(Components, Rc<OwnedFd>)>,
    implied: BTreeSet<PathBuf>,
    made: Made,
}

/// Directories that were made without an entry of their own.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Made {
    pub(super) count: u64,
    /// Of their paths, in bytes.
    pub(super) paths: usize,
}

/// Why a directory could not be reached.
pub(super) enum Unreachable {
    Refused(String),
    Io(io::Error),
}

impl From<Errno> for Unreachable {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl Tree {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let root: OwnedFd = File::open(root)?.into();
        Ok(Self {
            root: Rc::new(root),
            last: None,
            implied: BTreeSet::new(),
            made: Made::default(),
        })
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens a directory; what is missing on the way is made, and remembered as implied.
    pub(super) fn ensure(&mut self, path: &Components) -> Result<Rc<OwnedFd>, Unreachable> {
        if let Some((last, fd)) = &self.last
            && last == path
        {
            return Ok(Rc::clone(fd));
        }
        let fd = match self.open_plain(&path.to_path()) {
            Ok(fd) => Rc::new(fd),
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR | Errno::ENAMETOOLONG) => {
                self.walk(path, Missing::Make)?
            }
            Err(errno) => return Err(errno.into()),
        };
        self.last = Some((path.clone(), Rc::clone(&fd)));
        Ok(fd)
    }

    /// Opens a directory that must be there.
    pub(super) fn existing(&mut self, path: &Components) -> Result<Rc<OwnedFd>, Unreachable> {
        match self.open_plain(&path.to_path()) {
            Ok(fd) => Ok(Rc::new(fd)),
            Err(Errno::ENOENT | Errno::ELOOP | Errno::ENOTDIR | Errno::ENAMETOOLONG) => {
                self.walk(path, Missing::Refuse)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Opens a directory whose path has no symbolic link.
    pub(super) fn open_plain(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let path = match path.as_os_str().is_empty() {
            true => Path::new("."),
            false => path,
        };
        let how = OpenHow::new().flags(DIRECTORY).resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
        openat2(&*self.root, path, how)
    }

    /// Opens a directory that was made through a symbolic link, which stays inside the layer.
    pub(super) fn open_linked(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let how = OpenHow::new()
            .flags(DIRECTORY)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&*self.root, path, how)
    }

    /// This directory has an entry of its own after all.
    pub(super) fn declared(&mut self, path: &Path) {
        self.implied.remove(path);
    }

    pub(super) fn made(&self) -> Made {
        self.made
    }

    /// Directories that were made without an entry of their own, parents first.
    pub(super) fn into_implied(self) -> Vec<PathBuf> {
        self.implied.into_iter().collect()
    }

    fn walk(&mut self, path: &Components, missing: Missing) -> Result<Rc<OwnedFd>, Unreachable> {
        let mut left: VecDeque<OsString> = path.iter().map(OsStr::to_owned).collect();
        let mut stack = vec![Rc::clone(&self.root)];
        let mut at = PathBuf::new();
        let mut links = 0;
        while let Some(component) = left.pop_front() {
            let here = Rc::clone(stack.last().unwrap_or(&self.root));
            match component.as_bytes() {
                b"" | b"." => continue,
                b".." => {
                    if stack.len() == 1 {
                        return Err(Unreachable::Refused(
                            "a symbolic link on the way leads out of the layer".to_owned(),
                        ));
                    }
                    stack.pop();
                    at.pop();
                    continue;
                }
                _ => {}
            }
            match openat(&*here, component.as_os_str(), DIRECTORY, Mode::empty()) {
                Ok(fd) => {
                    stack.push(Rc::new(fd));
                    at.push(&component);
                }
                Err(Errno::ENOENT) if missing == Missing::Make && links == 0 => {
                    mkdirat(
                        &*here,
                        component.as_os_str(),
                        Mode::from_bits_truncate(0o755),
                    )?;
                    let fd = openat(&*here, component.as_os_str(), DIRECTORY, Mode::empty())?;
                    nix::sys::stat::fchmod(&fd, Mode::from_bits_truncate(0o755))?;
                    stack.push(Rc::new(fd));
                    at.push(&component);
                    self.made.count += 1;
                    self.made.paths += at.as_os_str().len();
                    self.implied.insert(at.clone());
                }
                Err(Errno::ENOENT) => {
                    at.push(&component);
                    return Err(Unreachable::Refused(format!(
                        "the layer has no directory '{}'",
                        at.display()
                    )));
                }
                Err(Errno::ELOOP | Errno::ENOTDIR) => {
                    let link = link_target(&here, &component)?.ok_or_else(|| {
                        Unreachable::Refused(format!(
                            "'{}' is not a directory in this layer",
                            at.join(&component).display()
                        ))
                    })?;
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Unreachable::Refused(
                            "too many symbolic links on the way".to_owned(),
                        ));
                    }
                    if link.as_bytes().starts_with(b"/") {
                        stack.truncate(1);
                        at.clear();
                    }
                    for part in link.as_bytes().rsplit(|byte| *byte == b'/') {
                        left.push_front(OsStr::from_bytes(part).to_owned());
                    }
                }
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(stack.pop().unwrap_or_else(|| Rc::clone(&self.root)))
    }
}

/// What to do about directories that are not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Refuse,
}

fn link_target(directory: &OwnedFd, name: &OsStr) -> Result<Option<OsString>, Errno> {
    match readlinkat(directory, name) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What a name in a directory is, not following it.
pub(super) fn lstat(directory: &OwnedFd, name: &OsStr) -> Result<Option<FileStat>, Errno> {
    match fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(super) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

pub(super) fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}
