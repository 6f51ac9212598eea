//! What the agents of a fleet say, kept within bounds.
//!
//! An agent appends to its file itself, so that nothing is lost while nobody supervises. Once the
//! file is large, what is in it moves to a second one and it begins anew: the agent's descriptor
//! stays good, since it appends.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Bytes that a log may have, in each of its two files.
const LIMIT: u64 = 8 << 20;

/// Where the log of a node is.
pub(super) fn path(directory: &Path, node: &str) -> PathBuf {
    directory.join(format!("{node}.log"))
}

/// Whether a file of the fleet's directory is a node's log.
pub(super) fn is_log(file: &str) -> bool {
    file.ends_with(".log")
}

/// Puts a log aside that has become too large. Blocking.
pub(super) fn bound(path: &Path) -> io::Result<()> {
    bound_to(path, LIMIT)
}

fn bound_to(path: &Path, limit: u64) -> io::Result<()> {
    if fs::metadata(path)?.len() <= limit {
        return Ok(());
    }
    fs::copy(path, path.with_extension("log.1"))?;
    File::options().write(true).open(path)?.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_large_log_begins_anew_under_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let log = path(dir.path(), "node-1");
        let mut writer = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        writer.write_all(b"first\n").unwrap();
        bound_to(&log, 6).unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "first\n");
        writer.write_all(b"second\n").unwrap();
        bound_to(&log, 6).unwrap();
        writer.write_all(b"third\n").unwrap();
        assert_eq!(fs::read_to_string(&log).unwrap(), "third\n");
        let aside = fs::read_to_string(dir.path().join("node-1.log.1")).unwrap();
        assert_eq!(aside, "first\nsecond\n");
        assert!(is_log("node-1.log") && !is_log("node-1.log.1"));
    }
}
