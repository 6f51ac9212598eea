//! Makes one entry of a layer after the other.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, futimens, makedev, mkdirat, mknodat};
use nix::sys::time::TimeSpec;
use nix::unistd::{LinkatFlags, UnlinkatFlags, linkat, symlinkat, unlinkat};
use tar::EntryType;

use super::metadata::Metadata;
use super::name::{Components, Name};
use super::tree::{Tree, Unreachable, is_whiteout, kind, lstat};
use super::{Limits, UnpackError, Unpacked};

const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
const COPY_BUFFER: usize = 128 * 1024;

/// A layer that is being unpacked.
pub(super) struct Layer {
    tree: Tree,
    limits: Limits,
    done: Unpacked,
    /// Set at the end: making a file in a directory changes the directory's time.
    directory_times: Vec<(PathBuf, TimeSpec)>,
    buffer: Vec<u8>,
}

/// What goes wrong with one entry, before its name is added.
enum Problem {
    Refused(String),
    Write(&'static str, io::Error),
    Read(io::Error),
    TooLarge,
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

impl Layer {
    pub(super) fn new(tree: Tree, limits: Limits) -> Self {
        Self {
            tree,
            limits,
            done: Unpacked::default(),
            directory_times: Vec::new(),
            buffer: vec![0; COPY_BUFFER],
        }
    }

    pub(super) fn apply<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
    ) -> Result<(), UnpackError> {
        let raw = entry.path_bytes().into_owned();
        let shown = || raw.escape_ascii().to_string();
        self.done.entries += 1;
        if self.done.entries > self.limits.entries {
            return Err(UnpackError::TooMany {
                entry: shown(),
                limit: self.limits.entries,
            });
        }
        self.apply_named(&raw, entry)
            .map_err(|problem| match problem {
                Problem::Refused(reason) => UnpackError::Refused {
                    entry: shown(),
                    reason,
                },
                Problem::Write(doing, source) => UnpackError::Write {
                    entry: shown(),
                    doing,
                    source,
                },
                Problem::Read(source) => UnpackError::Read(source),
                Problem::TooLarge => UnpackError::TooLarge {
                    entry: shown(),
                    limit: self.limits.bytes,
                },
            })
    }

    fn apply_named<R: Read>(
        &mut self,
        raw: &[u8],
        entry: &mut tar::Entry<'_, R>,
    ) -> Result<(), Problem> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        match Name::parse(raw).map_err(Problem::Refused)? {
            Name::Ignored => Ok(()),
            Name::Root => self.root(entry),
            Name::Opaque { directory } => self.opaque(&directory),
            Name::Whiteout { parent, file } => self.whiteout(&parent, &file),
            Name::Path { parent, file } => {
                let directory = self.tree.ensure(&parent)?;
                self.node(&parent, &directory, &file, kind, entry)
            }
        }
    }

    fn root<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<(), Problem> {
        if !entry.header().entry_type().is_dir() {
            return Err(Problem::Refused(
                "the layer's root must be a directory".to_owned(),
            ));
        }
        let metadata = Metadata::read(entry).map_err(Problem::Refused)?;
        let root = self
            .tree
            .root()
            .try_clone_to_owned()
            .map_err(write("open the root"))?;
        metadata
            .set_on(root.as_fd(), false)
            .map_err(write("set its owner and mode"))?;
        self.directory_times
            .push((PathBuf::new(), metadata.mtime()));
        Ok(())
    }

    fn opaque(&mut self, directory: &Components) -> Result<(), Problem> {
        if directory.is_root() {
            self.done.opaque_root = true;
            return Ok(());
        }
        let directory = self.tree.ensure(directory)?;
        set_opaque(&directory)
    }

    fn whiteout(&mut self, parent: &Components, file: &OsStr) -> Result<(), Problem> {
        let directory = self.tree.ensure(parent)?;
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
                let made = openat(
                    &*directory,
                    file,
                    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
                    Mode::empty(),
                )
                .map_err(write("open it"))?;
                set_opaque(&made)
            }
            Some(_) => Ok(()),
        }
    }

    fn node<R: Read>(
        &mut self,
        parent: &Components,
        directory: &Rc<OwnedFd>,
        file: &OsStr,
        kind: EntryType,
        entry: &mut tar::Entry<'_, R>,
    ) -> Result<(), Problem> {
        let metadata = Metadata::read(entry).map_err(Problem::Refused)?;
        if kind.is_dir() {
            return self.directory(parent, directory, file, &metadata);
        }
        match lstat(directory, file).map_err(write("look at it"))? {
            None => {}
            Some(stat) if is_whiteout(&stat) => {
                unlinkat(&**directory, file, UnlinkatFlags::NoRemoveDir)
                    .map_err(write("replace a whiteout"))?;
            }
            Some(_) => {
                return Err(Problem::Refused(
                    "the layer has this entry twice".to_owned(),
                ));
            }
        }
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                return self.regular(directory, file, &metadata, entry);
            }
            EntryType::Link => return self.hard_link(directory, file, entry),
            EntryType::Symlink => {
                let target = entry
                    .link_name_bytes()
                    .filter(|target| !target.is_empty())
                    .ok_or_else(|| {
                        Problem::Refused("a symbolic link without a target".to_owned())
                    })?;
                let target: &OsStr = std::os::unix::ffi::OsStrExt::from_bytes(&*target);
                symlinkat(target, &**directory, file).map_err(write("make a symbolic link"))?;
            }
            EntryType::Fifo => {
                mknodat(&**directory, file, SFlag::S_IFIFO, Mode::empty(), 0)
                    .map_err(write("make a FIFO"))?;
            }
            EntryType::Char => device(directory, file, SFlag::S_IFCHR, entry)?,
            EntryType::Block => device(directory, file, SFlag::S_IFBLK, entry)?,
            other => {
                return Err(Problem::Refused(format!(
                    "entries of type '{}' are not supported",
                    other.as_byte().escape_ascii()
                )));
            }
        }
        metadata
            .set(directory, file, kind.is_symlink())
            .map_err(write("set its owner, mode and attributes"))?;
        metadata
            .set_times(directory, file)
            .map_err(write("set its time"))
    }

    fn directory(
        &mut self,
        parent: &Components,
        directory: &Rc<OwnedFd>,
        file: &OsStr,
        metadata: &Metadata,
    ) -> Result<(), Problem> {
        let make = || mkdirat(&**directory, file, Mode::S_IRWXU);
        match make() {
            Ok(()) => {}
            Err(Errno::EEXIST) => match lstat(directory, file).map_err(write("look at it"))? {
                Some(stat) if kind(&stat) == SFlag::S_IFDIR => {}
                Some(stat) if is_whiteout(&stat) => {
                    unlinkat(&**directory, file, UnlinkatFlags::NoRemoveDir)
                        .map_err(write("replace a whiteout"))?;
                    make().map_err(write("make a directory"))?;
                    set_opaque(&open_directory(directory, file)?)?;
                }
                _ => {
                    return Err(Problem::Refused(
                        "the layer has this entry twice".to_owned(),
                    ));
                }
            },
            Err(errno) => return Err(Problem::Write("make a directory", errno.into())),
        }
        let made = open_directory(directory, file)?;
        metadata
            .set_on(made.as_fd(), false)
            .map_err(write("set its owner, mode and attributes"))?;
        let path = parent.to_path().join(file);
        self.tree.declared(&path);
        self.directory_times.push((path, metadata.mtime()));
        Ok(())
    }

    fn regular<R: Read>(
        &mut self,
        directory: &Rc<OwnedFd>,
        file: &OsStr,
        metadata: &Metadata,
        entry: &mut tar::Entry<'_, R>,
    ) -> Result<(), Problem> {
        let size = entry.size();
        if size > self.limits.bytes.saturating_sub(self.done.bytes) {
            return Err(Problem::TooLarge);
        }
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let made = openat(&**directory, file, flags, Mode::S_IRUSR | Mode::S_IWUSR)
            .map_err(write("make a file"))?;
        let written = self.copy(entry, &made)?;
        if written != size {
            return Err(Problem::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        self.done.bytes += written;
        metadata
            .set_on(made.as_fd(), false)
            .map_err(write("set its owner, mode and attributes"))?;
        futimens(&made, &metadata.mtime(), &metadata.mtime()).map_err(write("set its time"))
    }

    /// Blocks of zeros become holes.
    fn copy<R: Read>(
        &mut self,
        entry: &mut tar::Entry<'_, R>,
        made: &OwnedFd,
    ) -> Result<u64, Problem> {
        use std::os::unix::fs::FileExt;
        let made = File::from(made.try_clone().map_err(write("write it"))?);
        let mut offset = 0;
        loop {
            let read = match entry.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Problem::Read(error)),
            };
            let chunk = &self.buffer[..read];
            if chunk.len() < 4096 || chunk.iter().any(|byte| *byte != 0) {
                made.write_all_at(chunk, offset)
                    .map_err(write("write it"))?;
            }
            offset += read as u64;
        }
        made.set_len(offset).map_err(write("write it"))?;
        Ok(offset)
    }

    fn hard_link<R: Read>(
        &mut self,
        directory: &Rc<OwnedFd>,
        file: &OsStr,
        entry: &tar::Entry<'_, R>,
    ) -> Result<(), Problem> {
        let target = entry.link_name_bytes().unwrap_or_default().into_owned();
        let (parent, name) = Components::parse_link_target(&target).map_err(Problem::Refused)?;
        let to = || format!("hard link to '{}'", target.escape_ascii());
        let from = self
            .tree
            .existing(&parent)
            .map_err(|unreachable| match unreachable {
                Unreachable::Refused(reason) => Problem::Refused(format!("{}: {reason}", to())),
                Unreachable::Io(source) => Problem::Write("open the link's target", source),
            })?;
        match lstat(&from, &name).map_err(write("look at the link's target"))? {
            Some(stat) if kind(&stat) == SFlag::S_IFDIR => {
                Err(Problem::Refused(format!("{}, which is a directory", to())))
            }
            Some(stat) if !is_whiteout(&stat) => linkat(
                &*from,
                name.as_os_str(),
                &**directory,
                file,
                LinkatFlags::empty(),
            )
            .map_err(write("make a hard link")),
            _ => Err(Problem::Refused(format!(
                "{}, which the layer does not have",
                to()
            ))),
        }
    }

    pub(super) fn finish(mut self) -> Result<Unpacked, UnpackError> {
        // The last entry of a directory is the one that holds.
        for (path, mtime) in &self.directory_times {
            let fd = match self.tree.open_plain(path) {
                Ok(fd) => fd,
                Err(errno) => {
                    return Err(UnpackError::Write {
                        entry: path.display().to_string(),
                        doing: "set its time",
                        source: errno.into(),
                    });
                }
            };
            futimens(&fd, mtime, mtime).map_err(|errno| UnpackError::Write {
                entry: path.display().to_string(),
                doing: "set its time",
                source: errno.into(),
            })?;
        }
        self.done.implied = self.tree.into_implied();
        Ok(self.done)
    }
}

fn open_directory(parent: &OwnedFd, name: &OsStr) -> Result<OwnedFd, Problem> {
    openat(
        parent,
        name,
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .map_err(write("open it"))
}

fn set_opaque(directory: &OwnedFd) -> Result<(), Problem> {
    use xattr::FileExt;
    let directory = File::from(directory.try_clone().map_err(write("open it"))?);
    directory
        .set_xattr(OPAQUE_XATTR, b"y")
        .map_err(write("make a directory opaque"))
}

fn device<R: Read>(
    directory: &OwnedFd,
    file: &OsStr,
    kind: SFlag,
    entry: &tar::Entry<'_, R>,
) -> Result<(), Problem> {
    let bad = || Problem::Refused("a device without a valid number".to_owned());
    let header = entry.header();
    let major = header.device_major().ok().flatten().ok_or_else(bad)?;
    let minor = header.device_minor().ok().flatten().ok_or_else(bad)?;
    mknodat(
        directory,
        file,
        kind,
        Mode::empty(),
        makedev(major.into(), minor.into()),
    )
    .map_err(write("make a device"))
}
