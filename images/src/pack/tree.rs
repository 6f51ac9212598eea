//! A directory as a tar stream: sorted by path, without what changes from one copy to the next.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use tar::EntryType;

use super::holes::{self, Segment};
use crate::Error;

/// All files below a directory, in the order of their paths.
pub(super) struct Tree {
    root: PathBuf,
    files: BTreeMap<PathBuf, Metadata>,
}

impl Tree {
    pub(super) fn read(root: &Path) -> Result<Self, Error> {
        let of_root = fs::metadata(root).map_err(Error::io(format!("read {}", root.display())))?;
        let mut files = BTreeMap::from([(PathBuf::new(), of_root)]);
        let mut open = vec![PathBuf::new()];
        while let Some(directory) = open.pop() {
            let path = root.join(&directory);
            let read = || Error::io(format!("read {}", path.display()));
            for entry in fs::read_dir(&path).map_err(read())? {
                let entry = entry.map_err(read())?;
                let metadata = entry.metadata().map_err(read())?;
                let relative = directory.join(entry.file_name());
                if metadata.is_dir() {
                    open.push(relative.clone());
                }
                files.insert(relative, metadata);
            }
        }
        Ok(Self {
            root: root.to_owned(),
            files,
        })
    }

    /// The time of the newest file; directories' times say when they were last rearranged.
    pub(super) fn newest(&self) -> i64 {
        self.files
            .values()
            .filter(|metadata| metadata.is_file())
            .map(MetadataExt::mtime)
            .max()
            .unwrap_or(0)
    }

    pub(super) fn write(
        &self,
        to: &mut tar::Builder<impl Write>,
        latest: i64,
    ) -> Result<(), Error> {
        // Later names of a file become hard links to the first.
        let mut inodes: HashMap<(u64, u64), &Path> = HashMap::new();
        for (path, metadata) in &self.files {
            if metadata.file_type().is_socket() {
                continue;
            }
            let first = match metadata.nlink() > 1 && !metadata.is_dir() {
                true => inodes.get(&(metadata.dev(), metadata.ino())).copied(),
                false => None,
            };
            self.write_entry(to, path, metadata, first, latest)
                .map_err(Error::io(format!(
                    "pack {}",
                    self.root.join(path).display()
                )))?;
            inodes
                .entry((metadata.dev(), metadata.ino()))
                .or_insert(path);
        }
        Ok(())
    }

    fn write_entry(
        &self,
        to: &mut tar::Builder<impl Write>,
        path: &Path,
        metadata: &Metadata,
        link_to: Option<&Path>,
        latest: i64,
    ) -> io::Result<()> {
        let source = self.root.join(path);
        let kind = entry_type(metadata, link_to);
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_mtime(u64::try_from(metadata.mtime().min(latest)).unwrap_or(0));
        header.set_size(0);
        let mut name = match path.as_os_str().is_empty() {
            true => b".".to_vec(),
            false => path.as_os_str().as_bytes().to_vec(),
        };
        let link = match (kind, link_to) {
            (EntryType::Symlink, _) => fs::read_link(&source)?.into_os_string(),
            (_, Some(first)) => first.as_os_str().to_owned(),
            (_, None) => OsString::new(),
        };
        match kind {
            EntryType::Directory => name.push(b'/'),
            EntryType::Char | EntryType::Block => {
                let part = |part: u64| u32::try_from(part).map_err(io::Error::other);
                header.set_device_major(part(major(metadata.rdev()))?)?;
                header.set_device_minor(part(minor(metadata.rdev()))?)?;
            }
            _ => {}
        }
        let mut records = match link_to {
            Some(_) => BTreeMap::new(),
            None => attributes(&source)?,
        };
        let content = match kind {
            EntryType::Regular => Some(Content::open(&source, metadata.size())?),
            _ => None,
        };
        if let Some(content) = &content {
            header.set_size(content.stored());
            if content.map.is_some() {
                // What an unpacker that knows no sparse files calls it (GNU tar's manual).
                let plain = std::mem::replace(&mut name, b"GNUSparseFile.0/".to_vec());
                name.extend(path.file_name().unwrap_or_default().as_bytes());
                name.truncate(100);
                records.extend([
                    ("GNU.sparse.major".to_owned(), b"1".to_vec()),
                    ("GNU.sparse.minor".to_owned(), b"0".to_vec()),
                    ("GNU.sparse.name".to_owned(), plain),
                    (
                        "GNU.sparse.realsize".to_owned(),
                        metadata.size().to_string().into_bytes(),
                    ),
                ]);
            }
        }
        set_names(&mut header, &mut records, &name, link.as_bytes());
        to.append_pax_extensions(
            records
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_slice())),
        )?;
        header.set_cksum();
        match content {
            Some(content) => to.append(&header, content),
            None => to.append(&header, io::empty()),
        }
    }
}

fn entry_type(metadata: &Metadata, link_to: Option<&Path>) -> EntryType {
    let kind = metadata.file_type();
    match link_to {
        Some(_) => EntryType::Link,
        None if kind.is_dir() => EntryType::Directory,
        None if kind.is_symlink() => EntryType::Symlink,
        None if kind.is_fifo() => EntryType::Fifo,
        None if kind.is_char_device() => EntryType::Char,
        None if kind.is_block_device() => EntryType::Block,
        None => EntryType::Regular,
    }
}

/// Puts names into the header as they are; those that do not fit go into PAX records.
fn set_names(
    header: &mut tar::Header,
    records: &mut BTreeMap<String, Vec<u8>>,
    name: &[u8],
    link: &[u8],
) {
    let old = header.as_old_mut();
    for (field, key, bytes) in [
        (&mut old.name, "path", name),
        (&mut old.linkname, "linkpath", link),
    ] {
        let fits = bytes.len().min(field.len());
        field[..fits].copy_from_slice(&bytes[..fits]);
        if fits < bytes.len() {
            records.insert(key.to_owned(), bytes.to_vec());
        }
    }
}

/// Extended attributes as PAX records, sorted.
fn attributes(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {
            return Ok(BTreeMap::new());
        }
        Err(error) => return Err(error),
    };
    let mut attributes = BTreeMap::new();
    for name in names {
        if name.as_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        let Some(key) = name.to_str() else {
            return Err(io::Error::other(
                "an extended attribute's name is not UTF-8",
            ));
        };
        if let Some(value) = xattr::get(path, OsStr::new(key))? {
            attributes.insert(format!("SCHILY.xattr.{key}"), value);
        }
    }
    Ok(attributes)
}

/// What an archive holds of a file. Fails when the file shrinks while it is read: its header has
/// been written.
struct Content {
    file: File,
    /// Of a file with holes.
    map: Option<io::Cursor<Vec<u8>>>,
    /// What is still to be read, in order.
    segments: VecDeque<Segment>,
}

impl Content {
    fn open(path: &Path, size: u64) -> io::Result<Self> {
        let file = File::open(path)?;
        let holes = holes::find(&file, size)?;
        let whole = || {
            vec![Segment {
                offset: 0,
                length: size,
            }]
        };
        Ok(Self {
            file,
            map: holes
                .as_ref()
                .map(|segments| io::Cursor::new(holes::map(segments, size))),
            segments: holes.unwrap_or_else(whole).into(),
        })
    }

    /// Bytes in the archive.
    fn stored(&self) -> u64 {
        let map = self
            .map
            .as_ref()
            .map_or(0, |map| map.get_ref().len() as u64);
        let parts = self.segments.iter();
        map + parts.map(|segment| segment.length).sum::<u64>()
    }
}

impl Read for Content {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(map) = &mut self.map {
            let read = map.read(buffer)?;
            if read > 0 {
                return Ok(read);
            }
        }
        while let Some(segment) = self.segments.front_mut() {
            if segment.length == 0 {
                self.segments.pop_front();
                continue;
            }
            let wanted =
                usize::try_from(segment.length).map_or(buffer.len(), |left| left.min(buffer.len()));
            let read = self.file.read_at(&mut buffer[..wanted], segment.offset)?;
            if read == 0 && wanted > 0 {
                return Err(io::Error::other(
                    "the file became shorter while it was packed",
                ));
            }
            segment.offset += read as u64;
            segment.length -= read as u64;
            return Ok(read);
        }
        Ok(0)
    }
}
