//! What has to be undone on this node, durably: `<root>/drills/<task uid>.json`.
//!
//! An entry is written before anything is touched, closed when everything is undone, and removed once
//! the API knows how it ended. So a task is never begun twice, and no end is lost.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use skiff_dev::{DrillTask, DrillTaskStatus};

use crate::identity::Identity;

/// One task of this node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Entry {
    /// As it was last seen.
    pub(crate) task: DrillTask,
    pub(crate) stage: Stage,
    /// What the fault needs to be undone.
    pub(crate) undo: Value,
    /// What is to be told of it.
    pub(crate) status: DrillTaskStatus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Stage {
    /// Something may have been touched.
    Open,
    /// Nothing is left to be undone; the API may not know yet.
    Closed,
}

impl Entry {
    pub(crate) fn uid(&self) -> &str {
        self.task.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.task.metadata.name.as_deref().unwrap_or_default()
    }
}

/// A node's entries. Its methods block.
#[derive(Debug, Clone)]
pub(crate) struct Journal {
    directory: PathBuf,
}

impl Journal {
    pub(crate) fn of(identity: &Identity) -> Self {
        Self {
            directory: identity.drills_dir(),
        }
    }

    /// Makes its directory, for this node's agent alone.
    pub(crate) fn create(&self) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
    }

    /// Writes an entry in one step: when this returns, it survives a power cut.
    pub(crate) fn write(&self, entry: &Entry) -> io::Result<()> {
        let path = self.path(entry.uid())?;
        let draft = path.with_extension("new");
        let bytes = serde_json::to_vec(entry)?;
        let mut file = File::options()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(&self.directory)?.sync_all()
    }

    /// Removes an entry with everything that belongs to it.
    pub(crate) fn remove(&self, uid: &str) -> io::Result<()> {
        let own = self.path(uid)?;
        for path in self.files()? {
            // `<uid>.json` and whatever else has the task's name.
            if path != own && path.with_extension("") == own.with_extension("") {
                remove_file(&path)?;
            }
        }
        remove_file(&own)
    }

    /// All entries. What is no entry is left alone, and told of.
    pub(crate) fn entries(&self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for path in self.files()? {
            if path.extension().is_none_or(|kind| kind != "json") {
                continue;
            }
            match read(&path) {
                Ok(entry) => entries.push(entry),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a drill's entry can't be read: what it did is not undone");
                }
            }
        }
        Ok(entries)
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        match fs::read_dir(&self.directory) {
            Ok(files) => files.map(|file| Ok(file?.path())).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn path(&self, uid: &str) -> io::Result<PathBuf> {
        if !is_uid(uid) {
            let message = format!("{uid:?} is no uid of an object");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        Ok(self.directory.join(format!("{uid}.json")))
    }
}

/// Whether a text can be part of a file's name: what comes from the API names files here.
pub(crate) fn is_uid(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-';
    !text.is_empty() && text.len() <= 64 && text.chars().all(fits)
}

fn read(path: &Path) -> io::Result<Entry> {
    let entry: Entry = serde_json::from_slice(&fs::read(path)?)?;
    let named = path.file_stem().and_then(|name| name.to_str());
    if !is_uid(entry.uid()) || named != Some(entry.uid()) {
        return Err(io::Error::other("it is of another task"));
    }
    Ok(entry)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(uid: &str) -> Entry {
        let mut task = DrillTask::default();
        task.metadata.uid = Some(uid.to_owned());
        task.metadata.name = Some("d-1".to_owned());
        Entry {
            task,
            stage: Stage::Open,
            undo: serde_json::json!({"group": "g"}),
            status: DrillTaskStatus::default(),
        }
    }

    fn journal() -> (tempfile::TempDir, Journal) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal {
            directory: dir.path().join("drills"),
        };
        (dir, journal)
    }

    #[test]
    fn entries_are_kept_replaced_and_removed() {
        let (_dir, journal) = journal();
        assert_eq!(journal.entries().unwrap(), []);
        journal.create().unwrap();
        let mut one = entry("a-1");
        journal.write(&one).unwrap();
        journal.write(&entry("a-10")).unwrap();
        one.stage = Stage::Closed;
        journal.write(&one).unwrap();
        fs::write(journal.directory.join("a-1.samples"), "x").unwrap();
        let mut found = journal.entries().unwrap();
        found.sort_by_key(|entry| entry.uid().to_owned());
        assert_eq!(found, [one, entry("a-10")]);
        journal.remove("a-1").unwrap();
        journal.remove("a-1").unwrap();
        assert_eq!(journal.entries().unwrap(), [entry("a-10")]);
        assert_eq!(journal.files().unwrap().len(), 1);
    }

    #[test]
    fn what_is_no_entry_spoils_nothing() {
        let (_dir, journal) = journal();
        journal.create().unwrap();
        journal.write(&entry("good")).unwrap();
        for (name, text) in [
            ("half.json", "{\"task\":"),
            ("empty.json", ""),
            ("notes.txt", "hello"),
            ("heal", ""),
        ] {
            fs::write(journal.directory.join(name), text).unwrap();
        }
        // One that has another's name would undo the wrong thing and stay for ever.
        let other = serde_json::to_vec(&entry("other")).unwrap();
        fs::write(journal.directory.join("wrong.json"), other).unwrap();
        assert_eq!(journal.entries().unwrap(), [entry("good")]);
    }

    #[test]
    fn a_uid_can_not_leave_the_directory() {
        let (_dir, journal) = journal();
        journal.create().unwrap();
        for uid in ["", "../../etc/passwd", "a/b", "a.b", "a b", &"x".repeat(65)] {
            assert!(journal.write(&entry(uid)).is_err(), "{uid}");
            assert!(journal.remove(uid).is_err(), "{uid}");
        }
    }
}
