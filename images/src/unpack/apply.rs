//! Makes one entry of a layer after the other.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, futimens, makedev, mkdirat, mknodat};
use nix::sys::time::TimeSpec;
use nix::unistd::{LinkatFlags, UnlinkatFlags, linkat, symlinkat, unlinkat};
use tar::EntryType;

use super::metadata::{Metadata, Node};
use super::name::{Components, Name};
use super::stream::Entry;
use super::tree::{Tree, Unreachable, is_whiteout, kind, lstat};
use super::{Budget, UnpackError, Unpacked};

const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const COPY_BUFFER: usize = 128 * 1024;
/// Of directories' paths, in bytes: that of the largest images in use is a tenth of it.
const REMEMBERED_MAX: usize = 128 << 20;
/// The file system's block: a shorter run of zeros is no hole.
const HOLE_MIN: usize = 4096;

/// A layer that is being unpacked.
pub(super) struct Layer<'a> {
    tree: Tree,
    budget: &'a Budget,
    done: Unpacked,
    /// Set at the end: making a file in a directory changes the directory's time.
    directory_times: Vec<(PathBuf, TimeSpec)>,
    /// Bytes of directories' paths that are kept.
    remembered: usize,
    buffer: Vec<u8>,
}

/// What goes wrong with one entry, before its name is added.
enum Problem {
    Refused(String),
    Write(&'static str, io::Error),
    Read(io::Error),
    TooLarge,
    TooMany,
}

impl From<Unreachable> for Problem {
    fn from(unreachable: Unreachable) -> Self {
        match unreachable {
            Unreachable::Refused(reason) => Self::Refused(reason),
            Unreachable::Io(source) => Self::Write("open its directory", source),
        }
    }
}

fn write<E: Into<io::Error>>(doing: &'static str) -> impl FnOnce(E) -> Problem {
    move |error| Problem::Write(doing, error.into())
}

impl<'a> Layer<'a> {
    pub(super) fn new(tree: Tree, budget: &'a Budget) -> Self {
        Self {
            tree,
            budget,
            done: Unpacked {
                bare_root: true,
                ..Unpacked::default()
            },
            directory_times: Vec::new(),
            remembered: 0,
            buffer: vec![0; COPY_BUFFER],
        }
    }

    /// `content` gives the bytes of a regular file's segments.
    pub(super) fn apply(
        &mut self,
        entry: &Entry,
        content: &mut impl Read,
    ) -> Result<(), UnpackError> {
        let limits = self.budget.limits();
        self.budget.take_entry().map_err(|_| UnpackError::TooMany {
            entry: entry.shown(),
            limit: limits.entries,
        })?;
        self.done.entries += 1;
        self.apply_named(entry, content).map_err(|problem| {
            let entry = entry.shown();
            match problem {
                Problem::Refused(reason) => UnpackError::Refused { entry, reason },
                Problem::Write(doing, source) => UnpackError::Write {
                    entry,
                    doing,
                    source,
                },
                Problem::Read(source) => UnpackError::Read(source),
                Problem::TooMany => UnpackError::TooMany {
                    entry,
                    limit: limits.entries,
                },
                Problem::TooLarge => UnpackError::TooLarge {
                    entry,
                    limit: limits.bytes,
                },
            }
        })
    }

    fn apply_named(&mut self, entry: &Entry, content: &mut impl Read) -> Result<(), Problem> {
        match Name::parse(&entry.name).map_err(Problem::Refused)? {
            Name::Ignored => Ok(()),
            Name::Root => self.root(entry),
            Name::Opaque { directory } => self.opaque(&directory),
            Name::Whiteout { parent, file } => self.whiteout(&parent, &file),
            Name::Path { parent, file } => {
                let directory = self.ensure(&parent)?;
                let metadata = Metadata::of(entry).map_err(Problem::Refused)?;
                match entry.kind {
                    EntryType::Directory => self.directory(&parent, &directory, &file, &metadata),
                    _ => {
                        make_way(&directory, &file)?;
                        self.node(&directory, &file, &metadata, entry, content)
                    }
                }
            }
        }
    }

    /// The directory that an entry belongs into. What is missing on the way counts as entries too.
    fn ensure(&mut self, path: &Components) -> Result<Rc<OwnedFd>, Problem> {
        let before = self.tree.made();
        let directory = self.tree.ensure(path)?;
        let made = self.tree.made();
        for _ in before.count..made.count {
            self.budget.take_entry().map_err(|_| Problem::TooMany)?;
            self.done.entries += 1;
        }
        self.remember(made.paths - before.paths)?;
        Ok(directory)
    }

    /// Bounds what is kept in memory until the end.
    fn remember(&mut self, path: usize) -> Result<(), Problem> {
        self.remembered += path;
        match self.remembered > REMEMBERED_MAX {
            true => Err(Problem::Refused(format!(
                "the names of the layer's directories take more than {REMEMBERED_MAX} bytes"
            ))),
            false => Ok(()),
        }
    }

    fn root(&mut self, entry: &Entry) -> Result<(), Problem> {
        if !entry.kind.is_dir() {
            return Err(Problem::Refused(
                "the layer's root must be a directory".to_owned(),
            ));
        }
        let metadata = Metadata::of(entry).map_err(Problem::Refused)?;
        metadata
            .set_on(self.tree.root(), Node::Other)
            .map_err(write("set its owner, mode and attributes"))?;
        self.done.bare_root = false;
        self.directory_times
            .push((PathBuf::new(), metadata.mtime()));
        Ok(())
    }

    fn opaque(&mut self, directory: &Components) -> Result<(), Problem> {
        if directory.is_root() {
            self.done.opaque_root = true;
            return Ok(());
        }
        let directory = self.ensure(directory)?;
        set_opaque(&directory)
    }

    fn whiteout(&mut self, parent: &Components, file: &OsStr) -> Result<(), Problem> {
        let directory = self.ensure(parent)?;
        match lstat(&directory, file).map_err(write("look at it"))? {
            None => mknodat(
                &*directory,
                file,
                SFlag::S_IFCHR,
                Mode::empty(),
                makedev(0, 0),
            )
            .map_err(write("make a whiteout")),
            // This layer's own directory stays, without what the layers below have in it.
            Some(stat) if kind(&stat) == SFlag::S_IFDIR => {
                set_opaque(&open_directory(&directory, file)?)
            }
            Some(_) => Ok(()),
        }
    }

    fn directory(
        &mut self,
        parent: &Components,
        directory: &OwnedFd,
        file: &OsStr,
        metadata: &Metadata<'_>,
    ) -> Result<(), Problem> {
        let make = || mkdirat(directory, file, Mode::S_IRWXU);
        match make() {
            Ok(()) => {}
            Err(Errno::EEXIST) => match lstat(directory, file).map_err(write("look at it"))? {
                Some(stat) if kind(&stat) == SFlag::S_IFDIR => {}
                Some(stat) if is_whiteout(&stat) => {
                    make_way(directory, file)?;
                    make().map_err(write("make a directory"))?;
                    set_opaque(&open_directory(directory, file)?)?;
                }
                _ => return Err(twice()),
            },
            Err(errno) => return Err(Problem::Write("make a directory", errno.into())),
        }
        let made = open_directory(directory, file)?;
        metadata
            .set_on(made.as_fd(), Node::Other)
            .map_err(write("set its owner, mode and attributes"))?;
        let path = parent.to_path().join(file);
        self.remember(path.as_os_str().len())?;
        self.tree.declared(&path);
        self.directory_times.push((path, metadata.mtime()));
        Ok(())
    }

    fn node(
        &mut self,
        directory: &OwnedFd,
        file: &OsStr,
        metadata: &Metadata<'_>,
        entry: &Entry,
        content: &mut impl Read,
    ) -> Result<(), Problem> {
        match entry.kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return self.regular(directory, file, metadata, entry, content);
            }
            // It is the file that it links to, whose entry has set the metadata.
            EntryType::Link => return self.hard_link(directory, file, &entry.link),
            EntryType::Symlink if entry.link.is_empty() => {
                return Err(Problem::Refused(
                    "a symbolic link without a target".to_owned(),
                ));
            }
            EntryType::Symlink => symlinkat(OsStr::from_bytes(&entry.link), directory, file)
                .map_err(write("make a symbolic link"))?,
            EntryType::Fifo => mknodat(directory, file, SFlag::S_IFIFO, Mode::empty(), 0)
                .map_err(write("make a FIFO"))?,
            EntryType::Char => device(directory, file, SFlag::S_IFCHR, entry)?,
            EntryType::Block => device(directory, file, SFlag::S_IFBLK, entry)?,
            other => {
                return Err(Problem::Refused(format!(
                    "entries of type '{}' are not supported",
                    other.as_byte().escape_ascii()
                )));
            }
        }
        let node = match entry.kind {
            EntryType::Symlink => Node::Symlink,
            _ => Node::Other,
        };
        metadata
            .set(directory, file, node)
            .map_err(write("set its owner, mode and attributes"))?;
        metadata
            .set_time(directory, file)
            .map_err(write("set its time"))
    }

    fn regular(
        &mut self,
        directory: &OwnedFd,
        file: &OsStr,
        metadata: &Metadata<'_>,
        entry: &Entry,
        content: &mut impl Read,
    ) -> Result<(), Problem> {
        self.budget
            .take_bytes(entry.size)
            .map_err(|_| Problem::TooLarge)?;
        self.done.bytes += entry.size;
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made: File = openat(directory, file, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(write("make a file"))?
            .into();
        for segment in &entry.segments {
            self.copy(content, &made, segment.offset, segment.length)?;
        }
        made.set_len(entry.size).map_err(write("write it"))?;
        metadata
            .set_on(made.as_fd(), Node::Other)
            .map_err(write("set its owner, mode and attributes"))?;
        futimens(&made, &metadata.mtime(), &metadata.mtime()).map_err(write("set its time"))
    }

    /// Copies one part of a file. Blocks of zeros become holes.
    fn copy(
        &mut self,
        content: &mut impl Read,
        made: &File,
        mut offset: u64,
        length: u64,
    ) -> Result<(), Problem> {
        let end = offset + length;
        while offset < end {
            let wanted = usize::try_from(end - offset)
                .unwrap_or(COPY_BUFFER)
                .min(COPY_BUFFER);
            let read = match content.read(&mut self.buffer[..wanted]) {
                Ok(0) => return Err(Problem::Read(io::ErrorKind::UnexpectedEof.into())),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Problem::Read(error)),
            };
            let chunk = &self.buffer[..read];
            if chunk.len() < HOLE_MIN || chunk.iter().any(|byte| *byte != 0) {
                made.write_all_at(chunk, offset)
                    .map_err(write("write it"))?;
            }
            offset += read as u64;
        }
        Ok(())
    }

    fn hard_link(
        &mut self,
        directory: &OwnedFd,
        file: &OsStr,
        target: &[u8],
    ) -> Result<(), Problem> {
        let (parent, name) = Components::parse_link_target(target).map_err(Problem::Refused)?;
        let refused = |reason: &str| {
            Problem::Refused(format!(
                "hard link to '{}': {reason}",
                target.escape_ascii()
            ))
        };
        let from = self
            .tree
            .existing(&parent)
            .map_err(|unreachable| match unreachable {
                Unreachable::Refused(reason) => refused(&reason),
                Unreachable::Io(source) => Problem::Write("open the link's target", source),
            })?;
        match lstat(&from, &name).map_err(write("look at the link's target"))? {
            Some(stat) if kind(&stat) == SFlag::S_IFDIR => Err(refused("it is a directory")),
            Some(stat) if !is_whiteout(&stat) => linkat(
                &*from,
                name.as_os_str(),
                directory,
                file,
                LinkatFlags::empty(),
            )
            .map_err(write("make a hard link")),
            _ => Err(refused("the layer does not have it")),
        }
    }

    pub(super) fn finish(mut self) -> Result<Unpacked, UnpackError> {
        for (path, mtime) in &self.directory_times {
            self.tree
                .open_plain(path)
                .or_else(|_| self.tree.open_linked(path))
                .and_then(|directory| futimens(&directory, mtime, mtime))
                .map_err(|errno| UnpackError::Write {
                    entry: path.display().to_string(),
                    doing: "set its time",
                    source: errno.into(),
                })?;
        }
        self.done.implied = self.tree.into_implied();
        Ok(self.done)
    }
}

fn twice() -> Problem {
    Problem::Refused("the layer has this entry twice".to_owned())
}

/// Takes a whiteout away, and refuses to replace anything else.
fn make_way(directory: &OwnedFd, file: &OsStr) -> Result<(), Problem> {
    match lstat(directory, file).map_err(write("look at it"))? {
        None => Ok(()),
        Some(stat) if is_whiteout(&stat) => unlinkat(directory, file, UnlinkatFlags::NoRemoveDir)
            .map_err(write("replace a whiteout")),
        Some(_) => Err(twice()),
    }
}

fn open_directory(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Problem> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(parent, name, flags, Mode::empty()).map_err(write("open it"))
}

fn set_opaque(directory: &OwnedFd) -> Result<(), Problem> {
    use xattr::FileExt;
    let directory = File::from(directory.try_clone().map_err(write("open it"))?);
    directory
        .set_xattr(OPAQUE_XATTR, b"y")
        .map_err(write("make a directory opaque"))
}

fn device(directory: &OwnedFd, file: &OsStr, kind: SFlag, entry: &Entry) -> Result<(), Problem> {
    let (major, minor) = entry
        .device
        .ok_or_else(|| Problem::Refused("a device without a valid number".to_owned()))?;
    let number = makedev(major.into(), minor.into());
    mknodat(directory, file, kind, Mode::empty(), number).map_err(write("make a device"))
}
