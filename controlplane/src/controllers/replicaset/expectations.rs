//! What a ReplicaSet's own writes will show in the informer.
//!
//! Between a write and the watch event about it, the store is stale: a reconcile in that
//! moment would create the same pods again. So each set's creates and deletes are expected,
//! and until all are seen its pods are left alone.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::controllers::informer::ObjectKey;

/// After this long an event is taken for lost, and the store for what is.
const TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Default)]
pub(super) struct Expectations {
    by_set: Mutex<HashMap<ObjectKey, Expected>>,
}

struct Expected {
    creations: usize,
    /// By uid, because a deletion is seen more than once.
    deletions: HashSet<String>,
    since: Instant,
}

impl Expectations {
    pub(super) fn are_met(&self, key: &ObjectKey) -> bool {
        self.lock().get(key).is_none_or(|expected| {
            expected.creations == 0 && expected.deletions.is_empty()
                || expected.since.elapsed() > TIMEOUT
        })
    }

    pub(super) fn expect_creations(&self, key: &ObjectKey, count: usize) {
        self.set(key, count, HashSet::new());
    }

    pub(super) fn expect_deletions(&self, key: &ObjectKey, uids: HashSet<String>) {
        self.set(key, 0, uids);
    }

    pub(super) fn creation_observed(&self, key: &ObjectKey) {
        if let Some(expected) = self.lock().get_mut(key) {
            expected.creations = expected.creations.saturating_sub(1);
        }
    }

    pub(super) fn deletion_observed(&self, key: &ObjectKey, uid: &str) {
        if let Some(expected) = self.lock().get_mut(key) {
            expected.deletions.remove(uid);
        }
    }

    pub(super) fn forget(&self, key: &ObjectKey) {
        self.lock().remove(key);
    }

    fn set(&self, key: &ObjectKey, creations: usize, deletions: HashSet<String>) {
        let expected = Expected {
            creations,
            deletions,
            since: Instant::now(),
        };
        self.lock().insert(key.clone(), expected);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, Expected>> {
        self.by_set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_waits_for_each_creation() {
        let (expectations, key) = (Expectations::default(), ObjectKey::new("ns", "set"));
        assert!(expectations.are_met(&key));
        expectations.expect_creations(&key, 2);
        expectations.creation_observed(&key);
        assert!(!expectations.are_met(&key));
        expectations.creation_observed(&key);
        assert!(expectations.are_met(&key));
        // A pod that someone else made is no debt.
        expectations.creation_observed(&key);
        assert!(expectations.are_met(&key));
    }

    #[test]
    fn a_deletion_seen_twice_counts_once() {
        let (expectations, key) = (Expectations::default(), ObjectKey::new("ns", "set"));
        expectations.expect_deletions(&key, ["a".to_string(), "b".to_string()].into());
        expectations.deletion_observed(&key, "a");
        expectations.deletion_observed(&key, "a");
        assert!(!expectations.are_met(&key));
        expectations.deletion_observed(&key, "b");
        assert!(expectations.are_met(&key));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_event_blocks_only_for_a_while() {
        let (expectations, key) = (Expectations::default(), ObjectKey::new("ns", "set"));
        expectations.expect_creations(&key, 1);
        tokio::time::advance(TIMEOUT + Duration::from_secs(1)).await;
        assert!(expectations.are_met(&key));
    }
}
