//! One layer in one pass, on two threads.
//!
//! ```text
//! source -> hash -> blob file
//!              \-> inflate -> | 1 MiB of chunks | -> hash -> unpack -> layers/<diff id>/fs
//! ```
//!
//! Inflating takes about as long as hashing and writing what comes out, so that each has a thread.
//! The chunks between them are few and go round: memory stays the same whatever a layer's size.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use crate::Digest;
use crate::archive::decompress;
use crate::digest::DigestReader;
use crate::unpack::{Budget, UnpackError, Unpacked, unpack_within};

/// Bytes that one thread hands to the other at once.
const CHUNK: usize = 256 * 1024;
/// Chunks that may be under way.
const CHUNKS: usize = 4;

/// A layer that was read to its end.
pub(crate) struct Passed {
    pub(crate) blob: Digest,
    /// Of the blob, in bytes.
    pub(crate) size: u64,
    pub(crate) diff_id: Digest,
    pub(crate) unpacked: Option<Unpacked>,
}

/// Reads a layer to its end; keeps its bytes in `copy`, and unpacks it into `tree` (empty).
///
/// # Errors
/// As [`crate::unpack()`], and when a file can't be written.
pub(crate) fn pass(
    source: impl Read,
    copy: Option<File>,
    tree: Option<&Path>,
    budget: &Budget,
) -> Result<Passed, UnpackError> {
    let mut blob = DigestReader::new(Tee { source, copy });
    let (diff_id, unpacked) = {
        let packed = BufReader::with_capacity(CHUNK, &mut blob);
        let plain = decompress(packed).map_err(UnpackError::Read)?;
        inflate_and_unpack(plain, tree, budget)?
    };
    let (digest, size) = blob.finish().map_err(UnpackError::Read)?;
    Ok(Passed {
        blob: digest,
        size,
        diff_id,
        unpacked,
    })
}

fn inflate_and_unpack(
    plain: impl Read,
    tree: Option<&Path>,
    budget: &Budget,
) -> Result<(Digest, Option<Unpacked>), UnpackError> {
    let (full, chunks) = sync_channel::<Chunk>(CHUNKS);
    let (emptied, free) = sync_channel(CHUNKS + 1);
    std::thread::scope(|scope| {
        let unpacking = scope.spawn(move || {
            let mut plain = DigestReader::new(Chunks {
                chunks,
                emptied,
                current: Vec::new(),
                at: 0,
            });
            let unpacked = match tree {
                Some(tree) => Some(unpack_within(&mut plain, tree, budget)?),
                None => None,
            };
            let (diff_id, _) = plain.finish().map_err(UnpackError::Read)?;
            Ok((diff_id, unpacked))
        });
        let inflated = inflate(plain, full, &free, budget);
        let unpacked = unpacking
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // The first thread's failure is the second's too, and says more.
        inflated.and(unpacked)
    })
}

type Chunk = io::Result<Vec<u8>>;

/// Hands chunk after chunk on. Ends early, without an error, when nobody takes them any more.
fn inflate(
    mut plain: impl Read,
    full: SyncSender<Chunk>,
    free: &Receiver<Vec<u8>>,
    budget: &Budget,
) -> Result<(), UnpackError> {
    loop {
        let mut chunk = free.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let read = match fill(&mut plain, &mut chunk) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) => {
                // The other thread must not take this for the end.
                let _ = full.send(Err(io::ErrorKind::BrokenPipe.into()));
                return Err(UnpackError::Read(error));
            }
        };
        if budget.take_stream(read as u64).is_err() {
            let _ = full.send(Err(io::ErrorKind::BrokenPipe.into()));
            return Err(UnpackError::Bomb {
                limit: budget.limits().stream(),
            });
        }
        chunk.truncate(read);
        if full.send(Ok(chunk)).is_err() {
            return Ok(());
        }
    }
}

/// Reads until the buffer is full or the source ends.
fn fill(source: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Reads what the other thread hands over.
struct Chunks {
    chunks: Receiver<Chunk>,
    emptied: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.current.len() {
            let Ok(next) = self.chunks.recv() else {
                return Ok(0);
            };
            // When the other side has ended it wants no chunk back.
            let _ = self
                .emptied
                .try_send(std::mem::replace(&mut self.current, next?));
            self.at = 0;
        }
        let rest = &self.current[self.at..];
        let read = rest.len().min(buffer.len());
        buffer[..read].copy_from_slice(&rest[..read]);
        self.at += read;
        Ok(read)
    }
}

/// Writes what is read to a file.
struct Tee<R> {
    source: R,
    copy: Option<File>,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        if let Some(copy) = &mut self.copy {
            copy.write_all(&buffer[..read])?;
        }
        Ok(read)
    }
}
