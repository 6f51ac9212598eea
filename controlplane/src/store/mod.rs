//! The store: a durable, revisioned key-value space.
//!
//! Every accepted write gets the next number of one sequence, its [`Revision`], which is the
//! object's `resourceVersion`. A write is acknowledged when it is durable, and the
//! [`Observer`] (the watch cache) has seen it by then: who has an answer reads his own write.
//! Reads never come here: all that is stored is loaded once, at the start, and then lives in
//! the cache.

pub mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

/// A position in the cluster's one sequence of writes.
pub type Revision = u64;

/// Where an object is stored: `<group>/<plural>/<namespace>/<name>`, the group `core` for the
/// core group, the namespace empty for cluster-scoped kinds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    pub fn new(group: &str, plural: &str, namespace: &str, name: &str) -> Self {
        let group = if group.is_empty() { "core" } else { group };
        Self(format!("{group}/{plural}/{namespace}/{name}").into())
    }

    /// A key as the store had it.
    pub fn from_stored(text: &str) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// `<group>/<plural>`: what the watch cache keeps together.
    pub fn resource(&self) -> &str {
        let mut slashes = self.0.match_indices('/').map(|(at, _)| at);
        let end = slashes.nth(1).unwrap_or(self.0.len());
        &self.0[..end]
    }

    /// `<namespace>/<name>`
    pub fn object(&self) -> &str {
        self.0.get(self.resource().len() + 1..).unwrap_or_default()
    }

    pub fn namespace(&self) -> &str {
        self.object().split_once('/').map_or("", |(ns, _)| ns)
    }

    pub fn name(&self) -> &str {
        self.object().split_once('/').map_or("", |(_, name)| name)
    }
}

/// Keys are looked up by their text.
impl std::borrow::Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// What must be true of a key for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Absent,
    /// It exists and this is its last write.
    Revision(Revision),
    /// It exists.
    Present,
}

/// What a write does.
#[derive(Debug, Clone)]
pub enum Op {
    Put(Bytes),
    /// `last` is what observers are told of the object as it went, when that differs from
    /// what was stored last; it is not stored.
    Delete {
        last: Option<Bytes>,
    },
}

/// A write that has become durable.
#[derive(Debug, Clone)]
pub struct Change {
    pub key: Key,
    pub revision: Revision,
    pub op: Op,
}

/// Everything stored, as it was when the store was opened.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub revision: Revision,
    pub entries: Vec<(Key, Revision, Bytes)>,
}

/// Is told of every write, in the order of revisions, after it is durable and before it is
/// acknowledged.
pub trait Observer: Send + 'static {
    fn committed(&mut self, changes: Vec<Change>);
}

/// The seam between the API and what keeps its objects.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes durably, if what is expected holds.
    ///
    /// # Errors
    /// [`CommitError::Conflict`] when it does not hold: nothing was written.
    async fn commit(&self, key: Key, expected: Expect, op: Op) -> Result<Revision, CommitError>;

    /// Whether writes are taken.
    fn is_open(&self) -> bool;
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// `current` is the key's last write, `None` when it does not exist.
    #[error("another write came first")]
    Conflict { current: Option<Revision> },
    #[error("the store could not write: {0}")]
    Failed(String),
    #[error("the store is closed")]
    Closed,
}
