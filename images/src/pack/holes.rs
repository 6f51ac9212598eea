//! Which parts of a file hold data: long runs of zeros become holes in the archive.
//!
//! What counts is the content and not what the file system has allocated, so that a copy of a
//! directory packs to the same bytes.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

/// Of which runs are made.
const BLOCK: u64 = 4096;
/// The shortest run that is worth a hole: programs and archives have shorter ones, and stay plain
/// entries that every unpacker knows.
const RUN_MIN: u64 = 1 << 20;
const BUFFER: usize = 64 * 1024;

/// A part of a file that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The parts with data, when there are holes between them.
pub(super) fn find(file: &File, size: u64) -> io::Result<Option<Vec<Segment>>> {
    if size < RUN_MIN {
        return Ok(None);
    }
    let mut segments: Vec<Segment> = Vec::new();
    let mut buffer = vec![0; BUFFER];
    // Where the data that is not yet a segment begins, and where the last of its blocks ends.
    let mut open: Option<(u64, u64)> = None;
    let mut at = 0;
    while at < size {
        at = next_data(file, at, size)?;
        let wanted = usize::try_from(size - at).map_or(BUFFER, |left| left.min(BUFFER));
        let read = file.read_at(&mut buffer[..wanted], at)?;
        if read == 0 {
            break;
        }
        for (number, block) in buffer[..read].chunks(BLOCK as usize).enumerate() {
            if block.iter().all(|byte| *byte == 0) {
                continue;
            }
            let start = at + number as u64 * BLOCK;
            let end = start + block.len() as u64;
            open = match open {
                Some((from, to)) if start - to < RUN_MIN => Some((from, end)),
                Some((from, to)) => {
                    segments.push(Segment {
                        offset: from,
                        length: to - from,
                    });
                    Some((start, end))
                }
                // A run at the very beginning.
                None if start < RUN_MIN => Some((0, end)),
                None => Some((start, end)),
            };
        }
        // Short reads keep to blocks, but for the last.
        let whole = (read as u64 / BLOCK * BLOCK).max(1);
        at += if at + read as u64 == size {
            read as u64
        } else {
            whole
        };
    }
    let end = match open {
        Some((from, to)) if size - to < RUN_MIN => {
            segments.push(Segment {
                offset: from,
                length: size - from,
            });
            size
        }
        Some((from, to)) => {
            segments.push(Segment {
                offset: from,
                length: to - from,
            });
            to
        }
        None => 0,
    };
    let whole = segments.len() == 1 && segments[0].offset == 0 && end == size;
    Ok((!whole).then_some(segments))
}

/// The block where the next allocated data is, at or after an offset; the size when there is none.
fn next_data(file: &File, from: u64, size: u64) -> io::Result<u64> {
    let offset = i64::try_from(from).map_err(io::Error::other)?;
    match lseek(file.as_fd(), offset, Whence::SeekData) {
        Ok(data) => {
            Ok(u64::try_from(data).unwrap_or(from) / BLOCK * BLOCK).map(|d| d.clamp(from, size))
        }
        // Holes alone follow.
        Err(Errno::ENXIO) => Ok(size),
        // The file system does not tell.
        Err(_) => Ok(from),
    }
}

/// The map of a sparse file as PAX format 1.0 puts it before the content (GNU tar's manual,
/// "PAX 1.0 Sparse Files"): numbers in lines, in whole blocks of 512 bytes.
pub(super) fn map(segments: &[Segment], size: u64) -> Vec<u8> {
    let mut parts = segments.to_vec();
    // A hole at the end needs an empty part there.
    if parts
        .last()
        .is_none_or(|last| last.offset + last.length < size)
    {
        parts.push(Segment {
            offset: size,
            length: 0,
        });
    }
    let mut map = format!("{}\n", parts.len());
    for part in &parts {
        map.push_str(&format!("{}\n{}\n", part.offset, part.length));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(512), 0);
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn found(parts: &[(u64, &[u8])], size: u64) -> Option<Vec<(u64, u64)>> {
        let file = tempfile::tempfile().unwrap();
        for (offset, bytes) in parts {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file.set_len(size).unwrap();
        let sparse = find(&file, size).unwrap();
        // The same bytes without holes.
        let full = tempfile::tempfile().unwrap();
        let mut content = vec![0; usize::try_from(size).unwrap()];
        file.read_exact_at(&mut content, 0).unwrap();
        full.write_all_at(&content, 0).unwrap();
        assert_eq!(find(&full, size).unwrap(), sparse);
        let pairs = |parts: Vec<Segment>| parts.iter().map(|p| (p.offset, p.length)).collect();
        sparse.map(pairs)
    }

    #[test]
    fn long_runs_of_zeros_are_holes_however_they_are_stored() {
        assert_eq!(found(&[(0, b"x")], 5000), None);
        assert_eq!(found(&[(0, b"x"), (MIB - 1, b"x")], MIB), None);
        assert_eq!(found(&[], 3 * MIB), Some(vec![]));
        assert_eq!(found(&[(0, b"x")], 3 * MIB), Some(vec![(0, 4096)]));
        assert_eq!(
            found(&[(100, b"x"), (3 * MIB + 5, b"y")], 3 * MIB + 7),
            Some(vec![(0, 4096), (3 * MIB, 7)])
        );
        assert_eq!(
            found(&[(2 * MIB, b"x"), (2 * MIB + 9000, b"y")], 4 * MIB),
            Some(vec![(2 * MIB, 12_288)])
        );
    }

    #[test]
    fn a_map_names_the_end() {
        let map = map(
            &[Segment {
                offset: 0,
                length: 3,
            }],
            10,
        );
        assert_eq!(map.len(), 512);
        assert!(map.starts_with(b"2\n0\n3\n10\n0\n\0"));
    }
}
