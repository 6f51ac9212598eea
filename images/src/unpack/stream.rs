//! A tar stream, entry by entry: POSIX pax, ustar, GNU and V7 headers.
//!
//! Single fields of a header are decoded by the `tar` crate. The framing is our own, because that crate
//! splits PAX records at line feeds, and so loses file capabilities and names that hold one,
//! where the format gives each record its length (pax(1), "pax Header Block").

use std::io::{self, Read};
use std::path::Path;

use tar::{EntryType, Header};

use super::pax::{self, Records};
use super::sparse::{self, Segment};

const BLOCK: usize = 512;
/// Of a PAX header or a GNU long name; Go's archive/tar allows as much.
const EXTENSION_MAX: u64 = 1 << 20;

/// One file, directory, link or device.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: EntryType,
    /// As the file will be, holes included.
    pub(super) size: u64,
    /// Which parts of the file the stream holds, in order. One, unless the file is sparse.
    pub(super) segments: Vec<Segment>,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Seconds and nanoseconds since 1970.
    pub(super) mtime: (i64, i64),
    /// Major and minor number.
    pub(super) device: Option<(u32, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Gives entries; between two of them, reading gives the content of the first.
pub(super) struct Stream<R> {
    inner: R,
    /// Content of the current entry that was not read yet.
    left: u64,
    padding: u64,
}

/// What precedes an entry and belongs to it.
#[derive(Default)]
struct Extensions {
    pax: Records,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Stream<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            left: 0,
            padding: 0,
        }
    }

    /// The next entry, or nothing at the end. What was not read of the last one is passed over.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_content()?;
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            let header = Header::from_byte_slice(&block);
            check_sum(header)?;
            let size = header.entry_size()?;
            match header.entry_type() {
                EntryType::XHeader => extensions.pax = Records::parse(self.extension(size)?)?,
                // Of no use to a layer: the other unpackers pass them over too.
                EntryType::XGlobalHeader => self.begin_content(size)?,
                EntryType::GNULongName => {
                    extensions.name = Some(without_zeros(self.extension(size)?));
                }
                EntryType::GNULongLink => {
                    extensions.link = Some(without_zeros(self.extension(size)?));
                }
                _ => return self.entry(header, extensions).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> io::Result<Entry> {
        let Extensions { pax, name, link } = extensions;
        let kind = kind(header);
        let stored = match carries_content(kind) {
            true => pax
                .number("size")?
                .map_or_else(|| header.entry_size(), Ok)?,
            false => 0,
        };
        let mut entry = Entry {
            name: pax
                .text("path")?
                .or(name)
                .unwrap_or_else(|| header.path_bytes().into_owned()),
            link: pax
                .text("linkpath")?
                .or(link)
                .unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned()),
            kind,
            size: stored,
            segments: vec![Segment {
                offset: 0,
                length: stored,
            }],
            mode: header.mode()?,
            uid: pax.number("uid")?.map_or_else(|| header.uid(), Ok)?,
            gid: pax.number("gid")?.map_or_else(|| header.gid(), Ok)?,
            mtime: match pax.get("mtime") {
                Some(value) => {
                    pax::time(value).ok_or_else(|| bad("the PAX time is not a number"))?
                }
                // Before 1970 it is a negative number in GNU's base 256.
                None => (header.mtime()?.cast_signed(), 0),
            },
            device: header
                .device_major()
                .ok()
                .flatten()
                .zip(header.device_minor().ok().flatten()),
            xattrs: Vec::new(),
        };
        self.sparse(header, &pax, &mut entry, stored)?;
        entry.xattrs = pax.into_xattrs();
        Ok(entry)
    }

    /// Reads where the parts of a sparse file are, in whichever way it is written.
    fn sparse(
        &mut self,
        header: &Header,
        pax: &Records,
        entry: &mut Entry,
        stored: u64,
    ) -> io::Result<()> {
        if header.entry_type() == EntryType::GNUSparse {
            let gnu = header
                .as_gnu()
                .ok_or_else(|| bad("a sparse file without a GNU header"))?;
            entry.size = gnu.real_size()?;
            entry.segments = sparse::old_format(gnu, || {
                let block = self.block()?;
                block.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            })?;
            self.begin_content(stored)?;
        } else if let Some(size) = pax.sparse_size()? {
            if let Some(name) = pax.text("GNU.sparse.name")? {
                entry.name = name;
            }
            entry.size = size;
            self.begin_content(stored)?;
            entry.segments = match pax.sparse_map()? {
                Some(segments) => segments,
                None => sparse::map_in_content(self)?,
            };
        } else {
            return self.begin_content(stored);
        }
        sparse::check(&entry.segments, entry.size, self.left)
    }

    /// A header block; nothing at the end mark, or where the stream ends without one.
    fn block(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(block.iter().any(|byte| *byte != 0).then_some(block))
    }

    fn begin_content(&mut self, size: u64) -> io::Result<()> {
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        match size > i64::MAX as u64 {
            true => Err(bad("an entry is impossibly large")),
            false => Ok(()),
        }
    }

    fn skip_content(&mut self) -> io::Result<()> {
        let skip = self.left + std::mem::take(&mut self.padding);
        self.left = 0;
        let skipped = io::copy(&mut self.inner.by_ref().take(skip), &mut io::sink())?;
        match skipped == skip {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > EXTENSION_MAX {
            return Err(bad("a PAX header or a name is longer than 1 MiB"));
        }
        self.begin_content(size)?;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// The content of the current entry.
impl<R: Read> Read for Stream<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.inner.read(&mut buffer[..wanted])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

fn kind(header: &Header) -> EntryType {
    match header.entry_type() {
        // V7 had no type for directories.
        EntryType::Regular
            if header.as_old().linkflag == [0] && header.path_bytes().ends_with(b"/") =>
        {
            EntryType::Directory
        }
        kind => kind,
    }
}

/// Others have none, whatever size they claim (as Go's archive/tar reads them).
fn carries_content(kind: EntryType) -> bool {
    !matches!(
        kind,
        EntryType::Link
            | EntryType::Symlink
            | EntryType::Char
            | EntryType::Block
            | EntryType::Directory
            | EntryType::Fifo
    )
}

fn check_sum(header: &Header) -> io::Result<()> {
    let bytes = header.as_bytes();
    // The sum's own field counts as spaces.
    let sum: u32 = bytes[..148]
        .iter()
        .chain(&bytes[156..])
        .map(|byte| u32::from(*byte))
        .sum::<u32>()
        + 8 * u32::from(b' ');
    match header.cksum() {
        Ok(stored) if stored == sum => Ok(()),
        _ => Err(bad("not a tar archive: a header's checksum is wrong")),
    }
}

fn without_zeros(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0);
    bytes.truncate(end.unwrap_or(bytes.len()));
    bytes
}

pub(super) fn bad(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// For messages.
impl Entry {
    pub(super) fn shown(&self) -> String {
        Path::new(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&self.name))
            .to_string_lossy()
            .escape_default()
            .to_string()
    }
}
