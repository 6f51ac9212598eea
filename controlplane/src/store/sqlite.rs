//! The store on SQLite: one file, one writer thread.
//!
//! Writers queue up while a transaction is being synced; the thread then takes everything that
//! waits into the next transaction, so that one fsync serves many. Each write's precondition is
//! checked in the order of arrival against the thread's own map of revisions, which includes the
//! writes before it in the same transaction. After the fsync the observer is told, then
//! each writer gets his answer.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use async_trait::async_trait;
use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, params};
use tokio::sync::{mpsc, oneshot};

use super::{Change, CommitError, Expect, Key, Observer, Op, Revision, Snapshot, Store};

/// Writers that may wait in the queue; more wait before it.
const QUEUE: usize = 4096;
/// Writes that share one transaction at most.
const GROUP: usize = 512;

/// A store that has been opened and read, and does not take writes yet.
pub struct Opened {
    connection: Connection,
    revisions: HashMap<Key, Revision>,
    revision: Revision,
}

/// The store at work.
pub struct SqliteStore {
    queue: mpsc::Sender<Message>,
    writer: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{} is in use by another process: stop it, or choose another data directory", .0.display())]
    InUse(PathBuf),
    #[error("cannot create the store {}: {error}", path.display())]
    Create {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("cannot open the store {}: {error}", path.display())]
    Open {
        path: PathBuf,
        error: rusqlite::Error,
    },
    #[error("cannot start the store's thread: {0}")]
    Thread(std::io::Error),
}

enum Message {
    Write(Write),
    Close,
}

struct Write {
    key: Key,
    expected: Expect,
    op: Op,
    answer: oneshot::Sender<Result<Revision, CommitError>>,
}

impl SqliteStore {
    /// Opens the file, creating it when there is none, and reads all that it holds.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when another process has it open.
    pub fn open(path: &Path) -> Result<(Opened, Snapshot), OpenError> {
        // SQLite gives its other files the mode of this one.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(|error| OpenError::Create {
                path: path.to_path_buf(),
                error,
            })?;
        let failed = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                OpenError::InUse(path.to_path_buf())
            }
            _ => OpenError::Open {
                path: path.to_path_buf(),
                error,
            },
        };
        let connection = Connection::open(path).map_err(failed)?;
        prepare(&connection).map_err(failed)?;
        let snapshot = read_all(&connection).map_err(failed)?;
        let revisions = snapshot
            .entries
            .iter()
            .map(|(key, revision, _)| (key.clone(), *revision))
            .collect();
        let opened = Opened {
            connection,
            revisions,
            revision: snapshot.revision,
        };
        Ok((opened, snapshot))
    }

    /// Writes what waits, then closes the file. Writes that come later are refused.
    pub async fn close(&self) {
        // When the thread is gone already there is nothing left to close.
        let _ = self.queue.send(Message::Close).await;
        let writer = self.writer.lock().take();
        if let Some(writer) = writer {
            let _ = tokio::task::spawn_blocking(move || writer.join()).await;
        }
    }
}

impl Opened {
    /// Starts the writer thread, which tells `observer` of each write.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn serve(self, observer: impl Observer) -> Result<SqliteStore, OpenError> {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let writer = Writer {
            connection: self.connection,
            revisions: self.revisions,
            revision: self.revision,
            observer,
        };
        let thread = std::thread::Builder::new()
            .name("store".to_string())
            .spawn(move || writer.run(waiting))
            .map_err(OpenError::Thread)?;
        Ok(SqliteStore {
            queue,
            writer: parking_lot::Mutex::new(Some(thread)),
        })
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn commit(&self, key: Key, expected: Expect, op: Op) -> Result<Revision, CommitError> {
        let (answer, answered) = oneshot::channel();
        let write = Write {
            key,
            expected,
            op,
            answer,
        };
        self.queue
            .send(Message::Write(write))
            .await
            .map_err(|_| CommitError::Closed)?;
        answered.await.map_err(|_| CommitError::Closed)?
    }

    fn is_open(&self) -> bool {
        !self.queue.is_closed()
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::ZERO)?;
    // Exclusive before WAL: the index of the log is then in this process's memory, and nobody
    // else gets in. FULL makes each commit an fsync of the log.
    connection.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE;
         PRAGMA journal_mode = WAL;
         PRAGMA synchronous = FULL;
         CREATE TABLE IF NOT EXISTS objects (
             key TEXT PRIMARY KEY, revision INTEGER NOT NULL, value BLOB NOT NULL
         ) WITHOUT ROWID;
         CREATE TABLE IF NOT EXISTS head (
             one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL
         );
         INSERT OR IGNORE INTO head VALUES (1, 1);",
    )
}

fn read_all(connection: &Connection) -> rusqlite::Result<Snapshot> {
    let revision =
        connection.query_row("SELECT revision FROM head", [], |row| row.get::<_, i64>(0))?;
    let mut select = connection.prepare("SELECT key, revision, value FROM objects ORDER BY key")?;
    let mut rows = select.query([])?;
    let mut entries = Vec::new();
    while let Some(row) = rows.next()? {
        let key = Key::from_stored(row.get_ref(0)?.as_str()?);
        let value = Bytes::copy_from_slice(row.get_ref(2)?.as_blob()?);
        entries.push((key, row.get::<_, i64>(1)?.cast_unsigned(), value));
    }
    Ok(Snapshot {
        revision: revision.cast_unsigned(),
        entries,
    })
}

struct Writer<O> {
    connection: Connection,
    /// Every key that exists, with its last write.
    revisions: HashMap<Key, Revision>,
    revision: Revision,
    observer: O,
}

/// What a writer is told.
type Committed = Result<Revision, CommitError>;

/// A group of writes on its way into one transaction.
#[derive(Default)]
struct Group {
    changes: Vec<Change>,
    answers: Vec<(oneshot::Sender<Committed>, Committed)>,
    /// What the group's writes make of their keys; `None` is deleted.
    revisions: HashMap<Key, Option<Revision>>,
}

impl<O: Observer> Writer<O> {
    fn run(mut self, mut waiting: mpsc::Receiver<Message>) {
        let mut open = true;
        while open && let Some(message) = waiting.blocking_recv() {
            let mut group = Group::default();
            let mut next = Some(message);
            while let Some(message) = next {
                match message {
                    Message::Write(write) => self.admit(write, &mut group),
                    Message::Close => {
                        open = false;
                        break;
                    }
                }
                next = (group.answers.len() < GROUP)
                    .then(|| waiting.try_recv().ok())
                    .flatten();
            }
            self.commit(group);
        }
        if let Err(error) = self
            .connection
            .execute_batch("PRAGMA wal_checkpoint(TRUNCATE);")
        {
            tracing::debug!(%error, "the store's log stays until the next start");
        }
    }

    /// Decides on a write as if all before it had been committed.
    fn admit(&self, write: Write, group: &mut Group) {
        let current = match group.revisions.get(&write.key) {
            Some(pending) => *pending,
            None => self.revisions.get(&write.key).copied(),
        };
        let holds = match write.expected {
            Expect::Absent => current.is_none(),
            Expect::Revision(revision) => current == Some(revision),
            Expect::Present => current.is_some(),
        };
        if !holds {
            let conflict = Err(CommitError::Conflict { current });
            group.answers.push((write.answer, conflict));
            return;
        }
        let revision = self.revision + group.changes.len() as u64 + 1;
        let after = matches!(write.op, Op::Put(_)).then_some(revision);
        group.revisions.insert(write.key.clone(), after);
        group.changes.push(Change {
            key: write.key,
            revision,
            op: write.op,
        });
        group.answers.push((write.answer, Ok(revision)));
    }

    fn commit(&mut self, group: Group) {
        if !group.changes.is_empty() {
            if let Err(error) = self.write(&group.changes) {
                tracing::error!(%error, "the store could not write");
                let failed = CommitError::Failed(error.to_string());
                for (answer, _) in group.answers {
                    let _ = answer.send(Err(failed.clone()));
                }
                return;
            }
            self.revision += group.changes.len() as u64;
            for (key, revision) in group.revisions {
                match revision {
                    Some(revision) => self.revisions.insert(key, revision),
                    None => self.revisions.remove(&key),
                };
            }
            self.observer.committed(group.changes);
        }
        for (answer, result) in group.answers {
            // A client that went away does not wait for his answer.
            let _ = answer.send(result);
        }
    }

    fn write(&mut self, changes: &[Change]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for change in changes {
            match &change.op {
                Op::Put(value) => transaction
                    .prepare_cached(
                        "INSERT INTO objects VALUES (?1, ?2, ?3) ON CONFLICT (key)
                         DO UPDATE SET revision = excluded.revision, value = excluded.value",
                    )?
                    .execute(params![
                        change.key.as_str(),
                        change.revision.cast_signed(),
                        &value[..]
                    ])?,
                Op::Delete { .. } => transaction
                    .prepare_cached("DELETE FROM objects WHERE key = ?1")?
                    .execute(params![change.key.as_str()])?,
            };
        }
        let head = self.revision + changes.len() as u64;
        transaction
            .prepare_cached("UPDATE head SET revision = ?1")?
            .execute(params![head.cast_signed()])?;
        transaction.commit()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<(String, Revision)>>>);

    impl Observer for Seen {
        fn committed(&mut self, changes: Vec<Change>) {
            let seen = changes
                .into_iter()
                .map(|c| (c.key.as_str().to_string(), c.revision));
            self.0.lock().extend(seen);
        }
    }

    fn key(name: &str) -> Key {
        Key::new("", "pods", "default", name)
    }

    fn put(text: &'static str) -> Op {
        Op::Put(Bytes::from_static(text.as_bytes()))
    }

    fn open(dir: &Path) -> (SqliteStore, Snapshot, Seen) {
        let (opened, snapshot) = SqliteStore::open(&dir.join("store.db")).unwrap();
        let seen = Seen::default();
        (opened.serve(seen.clone()).unwrap(), snapshot, seen)
    }

    #[tokio::test]
    async fn writes_are_ordered_and_preconditions_hold() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _, seen) = open(dir.path());
        let a = store
            .commit(key("a"), Expect::Absent, put("1"))
            .await
            .unwrap();
        let exists = store.commit(key("a"), Expect::Absent, put("2")).await;
        assert_eq!(exists, Err(CommitError::Conflict { current: Some(a) }));
        let b = store
            .commit(key("a"), Expect::Revision(a), put("3"))
            .await
            .unwrap();
        assert_eq!(b, a + 1);
        let stale = store
            .commit(key("a"), Expect::Revision(a), Op::Delete { last: None })
            .await;
        assert_eq!(stale, Err(CommitError::Conflict { current: Some(b) }));
        store
            .commit(key("a"), Expect::Present, Op::Delete { last: None })
            .await
            .unwrap();
        let gone = store.commit(key("a"), Expect::Present, put("4")).await;
        assert_eq!(gone, Err(CommitError::Conflict { current: None }));
        let revisions: Vec<_> = seen.0.lock().iter().map(|(_, r)| *r).collect();
        assert_eq!(revisions, [a, a + 1, a + 2]);
    }

    #[tokio::test]
    async fn concurrent_writers_of_one_key_conflict_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _, seen) = open(dir.path());
        let store = Arc::new(store);
        let tasks: Vec<_> = (0..64)
            .map(|_| {
                let store = store.clone();
                tokio::spawn(
                    async move { store.commit(key("one"), Expect::Absent, put("x")).await },
                )
            })
            .collect();
        let mut won = 0;
        for task in tasks {
            won += usize::from(task.await.unwrap().is_ok());
        }
        assert_eq!(won, 1);
        assert_eq!(seen.0.lock().len(), 1);
    }

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_a_crash() {
        let dir = tempfile::tempdir().unwrap();
        let (store, first, _) = open(dir.path());
        let mut last = first.revision;
        for name in ["a", "b", "c"] {
            last = store
                .commit(key(name), Expect::Absent, put("v"))
                .await
                .unwrap();
        }
        last = store
            .commit(key("b"), Expect::Present, Op::Delete { last: None })
            .await
            .unwrap_or(last);
        // The files as a crash at this instant leaves them.
        let crashed = tempfile::tempdir().unwrap();
        for file in ["store.db", "store.db-wal"] {
            std::fs::copy(dir.path().join(file), crashed.path().join(file)).unwrap();
        }
        let (reopened, snapshot, _) = open(crashed.path());
        let keys: Vec<_> = snapshot.entries.iter().map(|(k, _, _)| k.name()).collect();
        assert_eq!(keys, ["a", "c"]);
        assert_eq!(snapshot.revision, last);
        let next = reopened.commit(key("d"), Expect::Absent, put("v")).await;
        assert_eq!(next, Ok(last + 1));
    }

    #[tokio::test]
    async fn a_second_process_is_refused_until_the_first_closes() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _, _) = open(dir.path());
        let second = SqliteStore::open(&dir.path().join("store.db"));
        assert!(matches!(second, Err(OpenError::InUse(_))));
        store.close().await;
        let late = store.commit(key("a"), Expect::Absent, put("v")).await;
        assert_eq!(late, Err(CommitError::Closed));
        SqliteStore::open(&dir.path().join("store.db")).unwrap();
    }
}
