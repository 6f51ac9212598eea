//! Container logs in the CRI format: `<RFC 3339 with nanoseconds> <stream> <F or P> <line>`.
//!
//! A line longer than 16 KiB, or one that ends without a newline when its stream does, is
//! written in parts marked `P`; the rest of a long line follows with the same or an `F` mark.
//! Bytes are written as they come. A full disk loses lines, never a container.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use skiff_shim::protocol::LogLimits;

use crate::clock::Moment;
use crate::{Result, context};

/// The longest part of a line (containerd's `max_container_log_line_size`).
const MAX_LINE: usize = 16 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Cuts a stream into lines.
pub(crate) struct Lines {
    stream: Stream,
    /// The line that has not ended yet; never longer than `MAX_LINE`.
    begun: Vec<u8>,
}

impl Lines {
    pub(crate) fn new(stream: Stream) -> Self {
        Self {
            stream,
            begun: Vec::new(),
        }
    }

    /// Adds what the bytes complete to `entries`.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], now: Moment, entries: &mut Vec<u8>) {
        let time = now.to_nanos();
        while !bytes.is_empty() {
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let (text, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            let mut text = text;
            while self.begun.len() + text.len() > MAX_LINE {
                let (fits, more) = text.split_at(MAX_LINE - self.begun.len());
                self.entry(&time, "P", fits, entries);
                text = more;
            }
            if end.is_some() {
                self.entry(&time, "F", text, entries);
                bytes = &rest[1..];
            } else {
                self.begun.extend_from_slice(text);
                bytes = rest;
            }
        }
        if self.begun.is_empty() {
            self.begun = Vec::new();
        }
    }

    /// The stream has ended: what is left is a partial line.
    pub(crate) fn finish(&mut self, now: Moment, entries: &mut Vec<u8>) {
        if !self.begun.is_empty() {
            self.entry(&now.to_nanos(), "P", b"", entries);
        }
    }

    fn entry(&mut self, time: &str, mark: &str, text: &[u8], entries: &mut Vec<u8>) {
        for part in [time, " ", self.stream.name(), " ", mark, " "] {
            entries.extend_from_slice(part.as_bytes());
        }
        entries.append(&mut self.begun);
        entries.extend_from_slice(text);
        entries.push(b'\n');
    }
}

/// A container's log file, rotated by size.
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
    size: u64,
    limits: LogLimits,
}

impl LogFile {
    pub(crate) fn open(path: &Path, limits: LogLimits) -> Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(context("making", directory))?;
        }
        let file = append_to(path).map_err(context("opening the log", path))?;
        let size = file.metadata().map_or(0, |metadata| metadata.len());
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
            limits,
        })
    }

    /// Writes whole entries. What can't be written is lost: the file never ends inside an entry.
    pub(crate) fn write(&mut self, entries: &[u8]) {
        if entries.is_empty() {
            return;
        }
        if self.size > 0 && self.size + entries.len() as u64 > self.limits.max_bytes {
            self.rotate();
        }
        match self.file.write_all(entries) {
            Ok(()) => self.size += entries.len() as u64,
            Err(_) => drop(self.file.set_len(self.size)),
        }
    }

    /// Renames the file to `<name>.<time>`, begins a new one and removes the oldest. A reader
    /// that has the old one open can still read it to its end.
    fn rotate(&mut self) {
        let now = Moment::now();
        let name = |suffix: String| {
            let mut name = self.path.clone().into_os_string();
            name.push(".");
            name.push(suffix);
            PathBuf::from(name)
        };
        let mut rotated = name(now.to_suffix());
        if rotated.exists() {
            // Sorts after the one of the same second.
            let suffix = format!("{}.{:09}", now.to_suffix(), now.nanoseconds());
            rotated = name(suffix);
        }
        if fs::rename(&self.path, &rotated).is_err() {
            return;
        }
        match append_to(&self.path) {
            Ok(file) => {
                self.file = file;
                self.size = 0;
                self.remove_oldest();
            }
            // Better a long file than none.
            Err(_) => drop(fs::rename(&rotated, &self.path)),
        }
    }

    fn remove_oldest(&self) {
        let (Some(directory), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return;
        };
        let prefix = format!("{}.", name.to_string_lossy());
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let mut rotated: Vec<_> = entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
            .map(|entry| entry.path())
            .collect();
        rotated.sort();
        let kept = self.limits.max_files.saturating_sub(1);
        for path in rotated.iter().rev().skip(kept) {
            let _ = fs::remove_file(path);
        }
    }
}

fn append_to(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    options.append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entries of some writes and the end of the stream, without their times.
    fn entries(writes: &[&[u8]]) -> Vec<String> {
        let mut lines = Lines::new(Stream::Stdout);
        let mut out = Vec::new();
        for bytes in writes {
            lines.feed(bytes, Moment::now(), &mut out);
        }
        lines.finish(Moment::now(), &mut out);
        let text = String::from_utf8(out).unwrap();
        text.lines().map(|line| line[31..].to_owned()).collect()
    }

    #[test]
    fn lines_are_cut_at_newlines() {
        assert_eq!(
            entries(&[b"one\ntw", b"o\n\nrest"]),
            ["stdout F one", "stdout F two", "stdout F ", "stdout P rest"]
        );
    }

    #[test]
    fn long_lines_come_in_parts() {
        let long = vec![b'x'; MAX_LINE + 1];
        let got = entries(&[&long, b"\n", &long[..MAX_LINE], b"\nz\n"]);
        let lengths: Vec<_> = got
            .iter()
            .map(|line| (&line[7..8], line.len() - 9))
            .collect();
        assert_eq!(
            lengths,
            [("P", MAX_LINE), ("F", 1), ("F", MAX_LINE), ("F", 1)]
        );
    }

    #[test]
    fn files_are_rotated_by_size() {
        let directory = std::env::temp_dir().join(format!("skiff-log-{}", std::process::id()));
        let path = directory.join("0.log");
        let limits = LogLimits {
            max_bytes: 100,
            max_files: 3,
        };
        let mut log = LogFile::open(&path, limits).unwrap();
        for index in 0..50 {
            log.write(format!("entry {index:03} {:030}\n", 0).as_bytes());
        }
        let mut names: Vec<_> = fs::read_dir(&directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        assert_eq!(names.len(), 3, "{names:?}");
        let text = |path: &Path| fs::read_to_string(path).unwrap();
        let all = [&names[1], &names[2], &names[0]]
            .map(|path| text(path))
            .concat();
        let numbers: Vec<_> = all.lines().map(|line| &line[6..9]).collect();
        assert!(numbers.is_sorted(), "{numbers:?}");
        assert_eq!(numbers.last(), Some(&"049"));
        fs::remove_dir_all(directory).unwrap();
    }
}
