//! Sparse files: which parts of a file a tar stream holds; the rest are holes.
//!
//! GNU tar has written them in four ways (its manual, "Sparse Formats"): in its own header, and
//! as PAX records 0.0, 0.1 and 1.0.

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuHeader, GnuSparseHeader};

use super::pax::number;
use super::stream::bad;

/// As many parts as one file may have.
const SEGMENTS_MAX: usize = 1 << 20;

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The map in a GNU header and in the blocks that continue it.
pub(super) fn old_format(
    header: &GnuHeader,
    mut next_block: impl FnMut() -> io::Result<[u8; 512]>,
) -> io::Result<Vec<Segment>> {
    let mut segments = Vec::new();
    add(&mut segments, &header.sparse)?;
    let mut more = header.is_extended();
    while more {
        let mut block = GnuExtSparseHeader::new();
        block.as_mut_bytes().copy_from_slice(&next_block()?);
        add(&mut segments, block.sparse())?;
        more = block.is_extended();
    }
    Ok(segments)
}

fn add(segments: &mut Vec<Segment>, headers: &[GnuSparseHeader]) -> io::Result<()> {
    for header in headers.iter().filter(|header| !header.is_empty()) {
        segments.push(Segment {
            offset: header.offset()?,
            length: header.length()?,
        });
    }
    match segments.len() > SEGMENTS_MAX {
        true => Err(bad("a sparse file has too many parts")),
        false => Ok(()),
    }
}

/// The map of format 1.0: lines of decimal numbers at the start of the content, in whole blocks.
pub(super) fn map_in_content(content: &mut impl Read) -> io::Result<Vec<Segment>> {
    let mut lines = Lines {
        content,
        block: [0; 512],
        at: 512,
    };
    let count = usize::try_from(lines.next()?).unwrap_or(usize::MAX);
    if count > SEGMENTS_MAX {
        return Err(bad("a sparse file has too many parts"));
    }
    let mut segments = Vec::new();
    for _ in 0..count {
        segments.push(Segment {
            offset: lines.next()?,
            length: lines.next()?,
        });
    }
    Ok(segments)
}

struct Lines<'a, R> {
    content: &'a mut R,
    block: [u8; 512],
    at: usize,
}

impl<R: Read> Lines<'_, R> {
    fn next(&mut self) -> io::Result<u64> {
        let mut digits = Vec::new();
        loop {
            if self.at == self.block.len() {
                self.content.read_exact(&mut self.block)?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' if !digits.is_empty() => {
                    return number(&digits).ok_or_else(|| bad("a sparse file's map is malformed"));
                }
                b'0'..=b'9' if digits.len() < 20 => digits.push(byte),
                _ => return Err(bad("a sparse file's map is malformed")),
            }
        }
    }
}

/// Offsets and lengths in turn.
pub(super) fn pairs(numbers: &[u64]) -> io::Result<Vec<Segment>> {
    if !numbers.len().is_multiple_of(2) || numbers.len() / 2 > SEGMENTS_MAX {
        return Err(bad("a sparse file's map is malformed"));
    }
    let pairs = numbers.chunks(2);
    Ok(pairs
        .map(|pair| Segment {
            offset: pair[0],
            length: pair[1],
        })
        .collect())
}

/// Whether the parts come in order, do not overlap, fit, and are all of the content.
pub(super) fn check(segments: &[Segment], size: u64, content: u64) -> io::Result<()> {
    let mut end = 0u64;
    let mut total = 0u64;
    for segment in segments {
        let after = segment.offset.checked_add(segment.length);
        match after {
            Some(after) if segment.offset >= end && after <= size => end = after,
            _ => return Err(bad("the parts of a sparse file overlap or do not fit")),
        }
        total += segment.length;
    }
    match total == content {
        true => Ok(()),
        false => Err(bad("a sparse file's map does not match its content")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(offset: u64, length: u64) -> Segment {
        Segment { offset, length }
    }

    #[test]
    fn a_map_in_the_content_takes_whole_blocks() {
        let mut content = b"2\n0\n3\n10\n2\n".to_vec();
        content.resize(512, 0);
        content.extend(b"abcde");
        let mut content = &content[..];
        let segments = map_in_content(&mut content).unwrap();
        assert_eq!(segments, [segment(0, 3), segment(10, 2)]);
        assert_eq!(content, b"abcde");
        assert!(map_in_content(&mut &[b'1'; 512][..]).is_err());
    }

    #[test]
    fn impossible_maps_are_refused() {
        assert!(check(&[segment(0, 3), segment(10, 2)], 12, 5).is_ok());
        assert!(check(&[segment(0, 3), segment(10, 2)], 11, 5).is_err());
        assert!(check(&[segment(0, 3), segment(2, 2)], 12, 5).is_err());
        assert!(check(&[segment(u64::MAX, 3)], u64::MAX, 3).is_err());
        assert!(check(&[segment(0, 3)], 12, 4).is_err());
    }
}
