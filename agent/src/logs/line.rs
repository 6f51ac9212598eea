//! One line of a log file in the CRI format:
//! `<RFC 3339 time> <stdout|stderr> <F|P>[:more tags] <message>`.
//!
//! A message may hold any byte but the newline. `P` marks a part of a line that goes on in the
//! stream's next entry, `F` the last or only one.

use std::str::FromStr;

/// Which of a container's outputs an entry comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    Stdout,
    Stderr,
}

impl FromStr for OutputStream {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "stdout" => Ok(Self::Stdout),
            "stderr" => Ok(Self::Stderr),
            _ => Err(()),
        }
    }
}

/// An entry, borrowed from the file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    /// As it is written.
    pub(super) time: &'a str,
    pub(super) stream: OutputStream,
    /// More of the same line follows.
    pub(super) partial: bool,
    pub(super) message: &'a [u8],
}

impl<'a> Entry<'a> {
    /// `line` comes without its newline; `None` when it is not in the format.
    pub(super) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time = str::from_utf8(fields.next()?).ok()?;
        let stream = str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let tags = fields.next()?;
        let partial = match tags.split(|byte| *byte == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(Self {
            time,
            stream,
            partial,
            message: fields.next().unwrap_or_default(),
        })
    }

    pub(super) fn timestamp(&self) -> Option<jiff::Timestamp> {
        self.time.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: &str = "2026-11-22T10:00:00.123456789Z";

    #[test]
    fn parses_entries() {
        let line = format!("{TIME} stderr P:x a  b ");
        let entry = Entry::parse(line.as_bytes()).unwrap();
        assert_eq!(entry.time, TIME);
        assert_eq!(entry.stream, OutputStream::Stderr);
        assert!(entry.partial);
        assert_eq!(entry.message, b"a  b ");
        assert_eq!(entry.timestamp().unwrap().subsec_nanosecond(), 123_456_789);
    }

    #[test]
    fn keeps_empty_and_binary_messages() {
        let line = format!("{TIME} stdout F ");
        assert_eq!(Entry::parse(line.as_bytes()).unwrap().message, b"");
        let line = [TIME.as_bytes(), b" stdout F \0\xff\x80\r"].concat();
        assert_eq!(Entry::parse(&line).unwrap().message, b"\0\xff\x80\r");
    }

    #[test]
    fn refuses_what_is_not_an_entry() {
        for line in ["", "hello", "t stdout", "t stdin F x", "t stdout X x"] {
            assert_eq!(Entry::parse(line.as_bytes()), None, "{line}");
        }
    }
}
