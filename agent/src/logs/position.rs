//! Where in a log file to begin, without reading all of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use jiff::Timestamp;

use super::line::Entry;

const BLOCK: u64 = 64 * 1024;

/// The offset of the last `count` lines. Entries that are parts of one line count once.
pub(super) fn of_last_lines(file: &File, count: u64) -> io::Result<u64> {
    let end = file.metadata()?.len();
    if count == 0 {
        return Ok(end);
    }
    let mut lines = 0;
    let mut entries = EntriesBackwards::new(file, end);
    let mut start = end;
    while let Some((offset, line)) = entries.next()? {
        // Going backwards, an entry that is whole ends the line before the one seen last.
        let ends_a_line = Entry::parse(&line).is_none_or(|entry| !entry.partial);
        if ends_a_line || start == end {
            lines += 1;
        }
        if lines > count {
            return Ok(start);
        }
        start = offset;
    }
    Ok(0)
}

/// The offset of the first entry that is not older than `since`, give or take a block: entries
/// are written in the order of their times, so a search by halves finds it.
pub(super) fn near_time(file: &File, since: Timestamp) -> io::Result<u64> {
    let (mut low, mut high) = (0, file.metadata()?.len());
    while high - low > BLOCK {
        let middle = low + (high - low) / 2;
        match first_entry_after(file, middle)? {
            Some((offset, time)) if time < since && offset < high => low = offset,
            _ => high = middle,
        }
    }
    Ok(low)
}

/// The first entry with a time that begins after `offset`, within a block.
fn first_entry_after(file: &File, offset: u64) -> io::Result<Option<(u64, Timestamp)>> {
    let block = read_block(file, offset, BLOCK)?;
    let mut begins = block.iter().position(|byte| *byte == b'\n').map(|n| n + 1);
    while let Some(begin) = begins {
        let rest = &block[begin..];
        let Some(length) = rest.iter().position(|byte| *byte == b'\n') else {
            return Ok(None);
        };
        if let Some(time) = Entry::parse(&rest[..length]).and_then(|e| e.timestamp()) {
            return Ok(Some((offset + begin as u64, time)));
        }
        begins = Some(begin + length + 1);
    }
    Ok(None)
}

/// The complete entries before an offset, the last first.
struct EntriesBackwards<'a> {
    file: &'a File,
    /// Everything from here on was read.
    begin: u64,
    /// What was read and not yet returned.
    unread: Vec<u8>,
    at_end: bool,
}

impl<'a> EntriesBackwards<'a> {
    fn new(file: &'a File, end: u64) -> Self {
        Self {
            file,
            begin: end,
            unread: Vec::new(),
            at_end: true,
        }
    }

    /// An entry's offset and its bytes without the newline.
    fn next(&mut self) -> io::Result<Option<(u64, Vec<u8>)>> {
        if self.at_end {
            self.at_end = false;
            self.drop_unfinished()?;
        }
        if self.unread.is_empty() && !self.read_more()? {
            return Ok(None);
        }
        loop {
            // The last byte is the newline that ends the entry.
            let inner = &self.unread[..self.unread.len() - 1];
            if let Some(before) = inner.iter().rposition(|byte| *byte == b'\n') {
                return Ok(Some(self.take(before + 1)));
            }
            if !self.read_more()? {
                return Ok(Some(self.take(0)));
            }
        }
    }

    fn take(&mut self, at: usize) -> (u64, Vec<u8>) {
        let mut line = self.unread.split_off(at);
        line.pop();
        (self.begin + at as u64, line)
    }

    /// Leaves out an entry that is being written.
    fn drop_unfinished(&mut self) -> io::Result<()> {
        loop {
            if let Some(newline) = self.unread.iter().rposition(|byte| *byte == b'\n') {
                self.unread.truncate(newline + 1);
                return Ok(());
            }
            self.unread.clear();
            if !self.read_more()? {
                return Ok(());
            }
        }
    }

    fn read_more(&mut self) -> io::Result<bool> {
        if self.begin == 0 {
            return Ok(false);
        }
        let length = BLOCK.min(self.begin);
        self.begin -= length;
        let mut block = read_block(self.file, self.begin, length)?;
        block.append(&mut self.unread);
        self.unread = block;
        Ok(true)
    }
}

fn read_block(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut block = vec![0; length as usize];
    let mut filled = 0;
    while filled < block.len() {
        match file.read_at(&mut block[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    block.truncate(filled);
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn file(content: &[u8]) -> File {
        let named = tempfile::NamedTempFile::new().unwrap();
        fs::write(named.path(), content).unwrap();
        named.reopen().unwrap()
    }

    fn entry(second: i64, tag: &str, message: &str) -> String {
        let time = Timestamp::from_second(second).unwrap();
        format!("{time} stdout {tag} {message}\n")
    }

    fn tail(content: &str, count: u64) -> String {
        let start = of_last_lines(&file(content.as_bytes()), count).unwrap();
        content[start as usize..].to_owned()
    }

    #[test]
    fn finds_the_last_lines() {
        let lines: Vec<_> = (0..5)
            .map(|i| entry(i, "F", &format!("line {i}")))
            .collect();
        let content = lines.concat();
        assert_eq!(tail(&content, 0), "");
        assert_eq!(tail(&content, 2), lines[3..].concat());
        assert_eq!(tail(&content, 5), content);
        assert_eq!(tail(&content, 100), content);
        assert_eq!(tail("", 3), "");
    }

    #[test]
    fn counts_the_parts_of_a_line_once() {
        let parts = [
            entry(0, "F", "first"),
            entry(1, "P", "sec"),
            entry(2, "F", "ond"),
            entry(3, "P", "unfini"),
            entry(4, "P", "shed"),
        ];
        let content = parts.concat();
        assert_eq!(tail(&content, 1), parts[3..].concat());
        assert_eq!(tail(&content, 2), parts[1..].concat());
        assert_eq!(tail(&content, 3), content);
    }

    #[test]
    fn leaves_an_entry_that_is_being_written_out_of_the_count() {
        let content = [entry(0, "F", "a"), entry(1, "F", "b")].concat();
        let torn = format!("{content}1970-01-01T00:00:02Z stdou");
        assert_eq!(
            of_last_lines(&file(torn.as_bytes()), 1).unwrap(),
            content.len() as u64 / 2
        );
    }

    #[test]
    fn finds_lines_across_blocks() {
        let long = "x".repeat(BLOCK as usize);
        let lines: Vec<_> = (0..4).map(|i| entry(i, "F", &long)).collect();
        assert_eq!(tail(&lines.concat(), 2), lines[2..].concat());
    }

    #[test]
    fn finds_a_time_by_halves() {
        let content: String = (0..50_000).map(|i| entry(i, "F", "some message")).collect();
        let file = file(content.as_bytes());
        let since = Timestamp::from_second(30_000).unwrap();
        let offset = near_time(&file, since).unwrap() as usize;
        let found = Entry::parse(content[offset..].lines().next().unwrap().as_bytes());
        let found = found.unwrap().timestamp().unwrap().as_second();
        assert!((25_000..=30_000).contains(&found), "{found}");
    }
}
