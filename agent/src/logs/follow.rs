//! Going on at the end of a log file that may still grow, be rotated, or be finished.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::reader::Reader;
use super::watcher::{Watch, Watcher};
use super::{LogSource, blocking};
use crate::runtime::types::{ContainerRecord, ContainerState};

/// What is known of a log that is being followed.
///
/// The file's end is looked at again after each step, in this order: a file that has a successor
/// gets no more entries, so it is read to its end once more and left; when the container has
/// ended, so is everything that it wrote; otherwise something has to happen first.
pub(super) struct Following {
    source: LogSource,
    log: Watch,
    /// `None` when there is no record, so nothing to wait for.
    record: Option<Watch>,
    look_for_successor: bool,
    look_at_record: bool,
    ended: bool,
    successor: Option<File>,
}

impl Following {
    pub(super) fn begin(source: &LogSource, watcher: &Watcher) -> io::Result<Self> {
        let directory = source.log_path.parent().unwrap_or(Path::new("/"));
        let record = match watcher.watch(&source.state_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            watch => Some(watch?),
        };
        Ok(Self {
            log: watcher.watch(directory)?,
            ended: record.is_none(),
            record,
            source: source.clone(),
            look_for_successor: true,
            look_at_record: true,
            successor: None,
        })
    }

    /// Returns when there may be more to read; `false` when there never will be.
    pub(super) async fn go_on(&mut self, reader: &mut Reader) -> io::Result<bool> {
        if let Some(successor) = self.successor.take() {
            *reader = Reader::at_start(successor);
            // That one may have been rotated too before we came to it.
            self.look_for_successor = true;
            return Ok(true);
        }
        self.look_for_successor |= self.log.take_renamed() || self.ended;
        if std::mem::take(&mut self.look_for_successor) {
            self.successor = self.find_successor(reader).await?;
            if self.successor.is_some() {
                return Ok(true);
            }
        }
        if self.ended {
            return Ok(false);
        }
        if reader.rewind_if_truncated()? {
            return Ok(true);
        }
        self.look_at_record |= self.record.as_ref().is_some_and(Watch::take_renamed);
        if std::mem::take(&mut self.look_at_record) {
            self.ended = self.has_ended().await?;
            if self.ended {
                return Ok(true);
            }
        }
        match &self.record {
            Some(record) => tokio::select! {
                () = self.log.changed() => {}
                () = record.changed() => {}
            },
            None => self.log.changed().await,
        }
        Ok(true)
    }

    async fn find_successor(&self, reader: &Reader) -> io::Result<Option<File>> {
        let current = Inode::of(&reader.metadata()?);
        let log_path = self.source.log_path.clone();
        blocking(move || match successor(&log_path, current)? {
            Some(path) => match File::open(path) {
                // Rotated or deleted between the two looks: an event tells of it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                file => file.map(Some),
            },
            None => Ok(None),
        })
        .await
    }

    async fn has_ended(&self) -> io::Result<bool> {
        let path = self.source.state_dir.join("record.json");
        blocking(move || match fs::read(&path) {
            Ok(bytes) => {
                let record: ContainerRecord = serde_json::from_slice(&bytes)?;
                Ok(matches!(record.state, ContainerState::Exited { .. }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        })
        .await
    }
}

/// A file whatever its name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Inode {
    device: u64,
    number: u64,
}

impl Inode {
    fn of(file: &Metadata) -> Self {
        Self {
            device: file.dev(),
            number: file.ino(),
        }
    }
}

/// The file that was begun after `current`.
fn successor(log_path: &Path, current: Inode) -> io::Result<Option<PathBuf>> {
    let files = files_in_order(log_path)?;
    let next = match files.iter().position(|(_, inode)| *inode == current) {
        Some(place) => files.get(place + 1),
        // Deleted, as the oldest ones are: all that are left came after it.
        None => files.first(),
    };
    Ok(next.map(|(path, _)| path.clone()))
}

/// All files of one attempt's log, the oldest first: `0.log.<time>` in order, then `0.log`.
fn files_in_order(log_path: &Path) -> io::Result<Vec<(PathBuf, Inode)>> {
    loop {
        let rotated = rotated_files(log_path)?;
        let mut files = Vec::with_capacity(rotated.len() + 1);
        for path in rotated.iter().map(PathBuf::as_path).chain([log_path]) {
            match fs::metadata(path) {
                Ok(metadata) => files.push((path.to_owned(), Inode::of(&metadata))),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        // A rotation in between would make one file look as if it did not exist.
        if rotated_files(log_path)? == rotated {
            return Ok(files);
        }
    }
}

fn rotated_files(log_path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (log_path.parent(), log_path.file_name()) else {
        return Ok(Vec::new());
    };
    let prefix = [name.as_encoded_bytes(), b"."].concat();
    let mut paths = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(&prefix) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}
