//! Reads one log file forwards and turns its entries into what the user asked for.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek, SeekFrom};

use jiff::Timestamp;

use super::LogOptions;
use super::line::{Entry, OutputStream};
use super::position;

const CHUNK: usize = 64 * 1024;
/// No writer makes longer entries: a file with one is damaged.
const LONGEST_ENTRY: usize = 1024 * 1024;

/// A position in a log file. Reading goes on where it ended, so a file that grows can be followed.
pub(super) struct Reader {
    file: File,
    /// The beginning of an entry whose end is not yet written.
    torn: Vec<u8>,
}

impl Reader {
    pub(super) fn at_start(file: File) -> Self {
        Self {
            file,
            torn: Vec::new(),
        }
    }

    /// At the first entry that the options may want.
    pub(super) fn at(mut file: File, options: &LogOptions) -> io::Result<Self> {
        let tail = match options.tail {
            Some(count) => position::of_last_lines(&file, count)?,
            None => 0,
        };
        let since = match options.since {
            Some(since) => position::near_time(&file, since)?,
            None => 0,
        };
        file.seek(SeekFrom::Start(tail.max(since)))?;
        Ok(Self::at_start(file))
    }

    pub(super) fn metadata(&self) -> io::Result<Metadata> {
        self.file.metadata()
    }

    /// Reads on and appends to `out` what the format makes of it; `false` at the file's end.
    pub(super) fn read(&mut self, format: &mut Format, out: &mut Vec<u8>) -> io::Result<bool> {
        let mut bytes = std::mem::take(&mut self.torn);
        let kept = bytes.len();
        bytes.resize(kept + CHUNK, 0);
        let count = loop {
            match self.file.read(&mut bytes[kept..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result?,
            }
        };
        bytes.truncate(kept + count);
        let complete = bytes
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |newline| newline + 1);
        for line in bytes[..complete].split_inclusive(|byte| *byte == b'\n') {
            format.entry(&line[..line.len() - 1], out);
        }
        bytes.drain(..complete);
        if bytes.len() < LONGEST_ENTRY {
            self.torn = bytes;
        }
        Ok(count > 0)
    }

    /// Begins anew when the file was cut short under us, and tells whether it was.
    pub(super) fn rewind_if_truncated(&mut self) -> io::Result<bool> {
        let truncated = self.file.metadata()?.len() < self.file.stream_position()?;
        if truncated {
            self.file.rewind()?;
            self.torn.clear();
        }
        Ok(truncated)
    }
}

/// What is left out of the entries and what is added.
pub(super) struct Format {
    timestamps: bool,
    stream: Option<OutputStream>,
    since: Option<Timestamp>,
    /// Bytes that may still be given out.
    left: Option<u64>,
    at_line_start: bool,
}

impl Format {
    pub(super) fn new(options: &LogOptions) -> Self {
        Self {
            timestamps: options.timestamps,
            stream: options.stream,
            since: options.since,
            left: options.limit_bytes,
            at_line_start: true,
        }
    }

    /// Whether everything that may be given out has been.
    pub(super) fn is_exhausted(&self) -> bool {
        self.left == Some(0)
    }

    fn entry(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(entry) = Entry::parse(line) else {
            tracing::debug!(
                bytes = line.len(),
                "left out a log line in an unknown format"
            );
            return;
        };
        if self.stream.is_some_and(|wanted| wanted != entry.stream) || self.is_too_old(&entry) {
            return;
        }
        if self.timestamps && self.at_line_start {
            self.give(entry.time.as_bytes(), out);
            self.give(b" ", out);
        }
        self.give(entry.message, out);
        if !entry.partial {
            self.give(b"\n", out);
        }
        self.at_line_start = !entry.partial;
    }

    fn is_too_old(&mut self, entry: &Entry<'_>) -> bool {
        let Some(since) = self.since else {
            return false;
        };
        if entry.timestamp().is_some_and(|time| time < since) {
            return true;
        }
        // Times only grow: the rest need not be looked at.
        self.since = None;
        false
    }

    fn give(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        let bytes = match &mut self.left {
            None => bytes,
            Some(left) => {
                let allowed = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= allowed as u64;
                &bytes[..allowed]
            }
        };
        out.extend_from_slice(bytes);
    }
}
