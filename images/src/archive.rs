//! Where images are imported from, and written to: directories and tar files of named parts.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::Error;
use crate::store::disk::JSON_MAX;
use crate::store::ingest::Ingest;

/// Parts of an image archive: blobs and the files that say what they are.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    parts: Parts,
}

#[derive(Debug)]
enum Parts {
    Directory(File),
    /// A tar file that is read out of order.
    Tar {
        file: File,
        members: HashMap<Vec<u8>, Member>,
    },
}

#[derive(Debug, Clone)]
enum Member {
    Content {
        offset: u64,
        size: u64,
    },
    /// `docker save` writes a layer that it has already as a link to it.
    Link(Vec<u8>),
}

impl Source {
    /// Opens a directory or a tar file; one that is compressed is first expanded into `scratch`.
    pub(crate) fn open(path: &Path, scratch: &mut Ingest) -> Result<Self, Error> {
        let read = || Error::io(format!("read {}", path.display()));
        let file = File::open(path).map_err(read())?;
        let parts = match file.metadata().map_err(read())?.is_dir() {
            true => Parts::Directory(file),
            false => {
                let file = plain_file(path, file, scratch)?;
                let members = members(&file).map_err(|error| {
                    Error::not_an_image(path, format!("it is no tar archive: {error}"))
                })?;
                Parts::Tar { file, members }
            }
        };
        Ok(Self {
            path: path.to_owned(),
            parts,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A part's content, or nothing if there is no such part.
    pub(crate) fn part(&self, name: &str) -> Result<Option<Box<dyn Read + '_>>, Error> {
        match &self.parts {
            Parts::Directory(directory) => match open_beneath(directory, name) {
                Ok(file) => Ok(Some(Box::new(file))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(Error::io(format!("read {}/{name}", self.path.display()))(
                    error,
                )),
            },
            Parts::Tar { file, members } => Ok(find(members, name).map(|(offset, size)| {
                Box::new(Section {
                    file,
                    offset,
                    left: size,
                }) as Box<dyn Read>
            })),
        }
    }

    /// A part that must be there.
    pub(crate) fn require(&self, name: &str) -> Result<Box<dyn Read + '_>, Error> {
        self.part(name)?
            .ok_or_else(|| Error::not_an_image(&self.path, format!("'{name}' is missing in it")))
    }

    /// A small part: JSON.
    pub(crate) fn json(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        let Some(part) = self.part(name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        part.take(JSON_MAX + 1)
            .read_to_end(&mut bytes)
            .map_err(Error::io(format!(
                "read '{name}' in {}",
                self.path.display()
            )))?;
        match bytes.len() as u64 > JSON_MAX {
            true => Err(Error::not_an_image(
                &self.path,
                format!("'{name}' is longer than the {JSON_MAX} bytes allowed"),
            )),
            false => Ok(Some(bytes)),
        }
    }
}

fn open_beneath(directory: &File, name: &str) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(directory, name, how)?.into())
}

fn plain_file(path: &Path, file: File, scratch: &mut Ingest) -> Result<File, Error> {
    let read = || Error::io(format!("read {}", path.display()));
    let mut reader = BufReader::with_capacity(128 * 1024, file);
    if Packing::of(reader.fill_buf().map_err(read())?) == Packing::Plain {
        return Ok(reader.into_inner());
    }
    let (_, mut plain) = scratch.scratch_file()?;
    io::copy(&mut decompress(reader).map_err(read())?, &mut plain).map_err(read())?;
    Ok(plain)
}

fn members(file: &File) -> io::Result<HashMap<Vec<u8>, Member>> {
    let mut members = HashMap::new();
    let mut file = file;
    file.seek(SeekFrom::Start(0))?;
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let name = clean(&entry.path_bytes());
        let member = match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => Member::Content {
                offset: entry.raw_file_position(),
                size: entry.size(),
            },
            tar::EntryType::Link => {
                Member::Link(clean(&entry.link_name_bytes().unwrap_or_default()))
            }
            tar::EntryType::Symlink => {
                let parent = Path::new(std::ffi::OsStr::from_bytes(&name)).parent();
                let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                let target = parent
                    .unwrap_or(Path::new(""))
                    .join(std::ffi::OsStr::from_bytes(&target));
                Member::Link(clean(target.as_os_str().as_bytes()))
            }
            _ => continue,
        };
        members.insert(name, member);
    }
    Ok(members)
}

/// `./a/../b` is `b`. Only for looking names up: nothing is opened by it.
fn clean(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

fn find(members: &HashMap<Vec<u8>, Member>, name: &str) -> Option<(u64, u64)> {
    let mut name = clean(name.as_bytes());
    for _ in 0..8 {
        match members.get(&name)? {
            Member::Content { offset, size } => return Some((*offset, *size)),
            Member::Link(target) => name = target.clone(),
        }
    }
    None
}

/// A part of a file, read without moving the file's own position.
struct Section<'a> {
    file: &'a File,
    offset: u64,
    left: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.file.read_at(&mut buffer[..wanted], self.offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// How bytes are packed, by their first few: media types are not always honest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

impl Packing {
    pub(crate) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame before the first one (RFC 8878, 3.1.2).
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// The largest zstd window that is accepted: 2^27 bytes are as much as `zstd --ultra -22` asks for,
/// and all the memory that a hostile layer can ask for.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Unpacks gzip and zstd while reading, and passes anything else on.
pub(crate) fn decompress<'a>(mut reader: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    // One read may give less: a network's first bytes come as they like.
    let mut start = Vec::with_capacity(4);
    reader.by_ref().take(4).read_to_end(&mut start)?;
    let packing = Packing::of(&start);
    let reader = io::Cursor::new(start).chain(reader);
    Ok(match packing {
        Packing::Plain => Box::new(reader),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    })
}

/// Writes a tar archive whose bytes depend on nothing but what it is given.
pub(crate) struct ArchiveWriter<W: Write>(tar::Builder<W>);

impl<W: Write> ArchiveWriter<W> {
    pub(crate) fn new(to: W) -> Self {
        Self(tar::Builder::new(to))
    }

    pub(crate) fn directory(&mut self, name: &str) -> io::Result<()> {
        let mut header = plain_header(tar::EntryType::Directory, 0o755, 0);
        self.0.append_data(&mut header, name, io::empty())
    }

    pub(crate) fn bytes(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.reader(name, content, content.len() as u64)
    }

    pub(crate) fn reader(&mut self, name: &str, content: impl Read, size: u64) -> io::Result<()> {
        let mut header = plain_header(tar::EntryType::Regular, 0o644, size);
        self.0.append_data(&mut header, name, content)
    }

    pub(crate) fn finish(self) -> io::Result<W> {
        self.0.into_inner()
    }
}

fn plain_header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}
