//! The work queue of a controller: which keys wait to be reconciled.
//!
//! A key is in the queue at most once, and with at most one worker: a key that is added while
//! a worker has it waits until that worker is done, and is then given out again. Keys can be
//! added after a delay, or after a backoff that doubles each time until the key is forgotten.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Backoff of a key that fails: 5 ms, doubling up to 1,000 s, as client-go's controllers.
const BACKOFF_BASE: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(1000);

/// A deduplicating queue of keys. Clones share the queue.
pub struct WorkQueue<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

struct Shared<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys that need work: those in `ready`, and those being processed that were added again.
    dirty: HashSet<K>,
    processing: HashSet<K>,
    delayed: BinaryHeap<Reverse<Delayed<K>>>,
    failures: HashMap<K, u32>,
    sequence: u64,
}

struct Delayed<K> {
    at: Instant,
    /// Breaks ties in the order of insertion, so that keys need no order.
    sequence: u64,
    key: K,
}

impl<K> PartialEq for Delayed<K> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}
impl<K> Eq for Delayed<K> {}
impl<K> PartialOrd for Delayed<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Delayed<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

impl<K: Hash + Eq + Clone> Default for WorkQueue<K> {
    fn default() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    ready: VecDeque::new(),
                    dirty: HashSet::new(),
                    processing: HashSet::new(),
                    delayed: BinaryHeap::new(),
                    failures: HashMap::new(),
                    sequence: 0,
                }),
                changed: Notify::new(),
            }),
        }
    }
}

impl<K: Hash + Eq + Clone> WorkQueue<K> {
    /// Asks for the key to be reconciled as soon as a worker is free.
    pub fn add(&self, key: K) {
        if self.state().add(key) {
            self.shared.changed.notify_one();
        }
    }

    /// Asks for the key to be reconciled once `delay` has passed.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.state().delay(key, Instant::now() + delay);
        self.shared.changed.notify_one();
    }

    /// Asks for the key to be reconciled after its backoff, which doubles with each call.
    pub fn add_rate_limited(&self, key: K) {
        let delay = {
            let mut state = self.state();
            let failures = state.failures.entry(key.clone()).or_default();
            let delay = backoff(*failures);
            *failures = failures.saturating_add(1);
            delay
        };
        self.add_after(key, delay);
    }

    /// Ends the key's backoff, because it was reconciled without an error.
    pub fn forget(&self, key: &K) {
        self.state().failures.remove(key);
    }

    /// How often the key has failed since it was last forgotten.
    pub fn failures(&self, key: &K) -> u32 {
        self.state().failures.get(key).copied().unwrap_or_default()
    }

    /// The next key, once there is one. The caller hands it back with [`done`](Self::done).
    pub async fn next(&self) -> K {
        loop {
            let wake_at = {
                let mut state = self.state();
                state.promote_due(Instant::now());
                if let Some(key) = state.take() {
                    // One wake-up may stand for several added keys: pass it on.
                    if !state.ready.is_empty() || !state.delayed.is_empty() {
                        self.shared.changed.notify_one();
                    }
                    return key;
                }
                state.delayed.peek().map(|Reverse(delayed)| delayed.at)
            };
            match wake_at {
                Some(at) => {
                    tokio::select! {
                        () = self.shared.changed.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.shared.changed.notified().await,
            }
        }
    }

    /// Hands back a key that [`next`](Self::next) gave out. If it was added meanwhile, it is
    /// ready again.
    pub fn done(&self, key: &K) {
        let mut state = self.state();
        state.processing.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
            self.shared.changed.notify_one();
        }
    }

    /// How many keys are ready and not yet taken.
    pub fn len(&self) -> usize {
        self.state().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        // No code panics while it holds the lock; the data is whole even if some did.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone> State<K> {
    /// True when a worker has something new to take.
    fn add(&mut self, key: K) -> bool {
        if !self.dirty.insert(key.clone()) || self.processing.contains(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    fn delay(&mut self, key: K, at: Instant) {
        self.sequence += 1;
        let sequence = self.sequence;
        self.delayed.push(Reverse(Delayed { at, sequence, key }));
    }

    fn promote_due(&mut self, now: Instant) {
        while self
            .delayed
            .peek()
            .is_some_and(|Reverse(delayed)| delayed.at <= now)
        {
            if let Some(Reverse(delayed)) = self.delayed.pop() {
                self.add(delayed.key);
            }
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.processing.insert(key.clone());
        Some(key)
    }
}

fn backoff(failures: u32) -> Duration {
    BACKOFF_BASE
        .saturating_mul(2u32.saturating_pow(failures.min(20)))
        .min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_a_thousand_seconds() {
        assert_eq!(backoff(0), Duration::from_millis(5));
        assert_eq!(backoff(3), Duration::from_millis(40));
        assert_eq!(backoff(18), Duration::from_secs(1000));
        assert_eq!(backoff(u32::MAX), Duration::from_secs(1000));
    }

    #[tokio::test]
    async fn a_key_is_given_out_once_however_often_it_was_added() {
        let queue = WorkQueue::default();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.len(), 2);
        assert_eq!(queue.next().await, "a");
        assert_eq!(queue.next().await, "b");
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn a_key_added_while_processed_comes_back_only_when_done() {
        let queue = WorkQueue::default();
        queue.add("a");
        let key = queue.next().await;
        queue.add("a");
        assert!(queue.is_empty());
        queue.done(&key);
        assert_eq!(queue.next().await, "a");
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn delayed_keys_come_in_the_order_of_their_time() {
        let queue = WorkQueue::default();
        queue.add_after("late", Duration::from_secs(20));
        queue.add_after("early", Duration::from_secs(10));
        let start = Instant::now();
        assert_eq!(queue.next().await, "early");
        assert_eq!(start.elapsed(), Duration::from_secs(10));
        assert_eq!(queue.next().await, "late");
        assert_eq!(start.elapsed(), Duration::from_secs(20));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_key_waits_longer_until_it_is_forgotten() {
        let queue = WorkQueue::default();
        let mut waits = Vec::new();
        for round in 0..4 {
            if round == 3 {
                queue.forget(&"a");
            }
            let start = Instant::now();
            queue.add_rate_limited("a");
            let key = queue.next().await;
            waits.push(start.elapsed().as_millis());
            queue.done(&key);
        }
        assert_eq!(waits, [5, 10, 20, 5]);
    }

    #[tokio::test]
    async fn two_sleeping_workers_both_wake_for_two_keys() {
        let queue = WorkQueue::default();
        let first = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next().await }
        });
        let second = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next().await }
        });
        tokio::task::yield_now().await;
        queue.add(1);
        queue.add(2);
        let mut got = [first.await.unwrap(), second.await.unwrap()];
        got.sort();
        assert_eq!(got, [1, 2]);
    }
}
