//! The pods that have no node.
//!
//! A pod is *active* (to be tried next, by priority, then by age), *backing off* (to be tried
//! once its backoff is over), or *parked*: no node fitted, and only a change that the plugins
//! that refused it wait for makes another try worthwhile.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use super::needs::Needs;
use super::plugins::Plugins;
use crate::controllers::informer::ObjectKey;

/// A pod's rest after its first failed attempt; it doubles with each more. Tries are brought
/// about by changes that can help, so a short one costs little and saves a new cluster time.
const BACKOFF_BASE: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// A pod without a node.
#[derive(Clone)]
pub(super) struct Pending {
    pub(super) pod: Arc<Pod>,
    pub(super) needs: Arc<Needs>,
    attempts: u32,
    sequence: u64,
}

#[derive(Default)]
pub(super) struct SchedulingQueue {
    /// Every pod in the queue, and where it is.
    pods: HashMap<ObjectKey, (Pending, Place)>,
    active: BTreeSet<ActiveKey>,
    parked: Parked,
    backoff: BinaryHeap<Reverse<(Instant, ObjectKey)>>,
    sequence: u64,
}

/// The parked pods, by the plugins that refused them: most changes concern nobody, and that
/// has to be known without asking everybody.
#[derive(Default)]
struct Parked {
    refused: [HashSet<ObjectKey>; Plugins::COUNT],
}

impl Parked {
    fn add(&mut self, key: &ObjectKey, plugins: Plugins) {
        for number in plugins.numbers() {
            self.refused[number].insert(key.clone());
        }
    }

    fn remove(&mut self, key: &ObjectKey, plugins: Plugins) {
        for number in plugins.numbers() {
            self.refused[number].remove(key);
        }
    }

    fn by(&self, plugins: Plugins) -> HashSet<&ObjectKey> {
        let numbers = plugins.numbers();
        numbers.flat_map(|number| &self.refused[number]).collect()
    }
}

/// The higher priority first, then who came first.
type ActiveKey = (Reverse<i32>, u64, ObjectKey);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Active,
    BackingOff { until: Instant },
    Parked { refused_by: Plugins, until: Instant },
}

impl SchedulingQueue {
    /// Adds a pod, or takes note of its new state if it is here.
    pub(super) fn add(&mut self, pod: Arc<Pod>) {
        let key = ObjectKey::of(&*pod);
        if let Some((known, place)) = self.pods.get_mut(&key)
            && known.pod.metadata.uid == pod.metadata.uid
        {
            let changed =
                known.pod.spec != pod.spec || known.pod.metadata.labels != pod.metadata.labels;
            if !changed {
                known.pod = pod;
                return;
            }
            // It may ask for something else now: try it again.
            match *place {
                Place::Active => drop(self.active.remove(&active_key(known))),
                Place::Parked { refused_by, .. } => self.parked.remove(&key, refused_by),
                Place::BackingOff { .. } => {}
            }
            known.needs = Arc::new(Needs::of(&pod));
            known.pod = pod;
            self.activate(&key);
            return;
        }
        self.remove(&key);
        self.sequence += 1;
        let pending = Pending {
            needs: Arc::new(Needs::of(&pod)),
            pod,
            attempts: 0,
            sequence: self.sequence,
        };
        self.active.insert(active_key(&pending));
        self.pods.insert(key, (pending, Place::Active));
    }

    pub(super) fn remove(&mut self, key: &ObjectKey) {
        match self.pods.remove(key) {
            Some((pending, Place::Active)) => drop(self.active.remove(&active_key(&pending))),
            Some((_, Place::Parked { refused_by, .. })) => self.parked.remove(key, refused_by),
            Some((_, Place::BackingOff { .. })) | None => {}
        }
        // An entry in `backoff` finds nothing when its time comes.
    }

    /// Puts back a pod whose binding failed, to be tried again after its backoff.
    pub(super) fn retry(&mut self, pod: Arc<Pod>, attempts: u32, now: Instant) {
        self.add(pod.clone());
        let key = ObjectKey::of(&*pod);
        if let Some((pending, place)) = self.pods.get_mut(&key) {
            self.active.remove(&active_key(pending));
            if let Place::Parked { refused_by, .. } = *place {
                self.parked.remove(&key, refused_by);
            }
            pending.attempts = attempts;
            let until = now + backoff(attempts);
            *place = Place::BackingOff { until };
            self.backoff.push(Reverse((until, key)));
        }
    }

    /// The next pod to try.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Pending> {
        self.end_backoffs(now);
        let (_, _, key) = self.active.pop_first()?;
        let (mut pending, _) = self.pods.remove(&key)?;
        pending.attempts += 1;
        Some(pending)
    }

    /// When a backoff ends, if nothing is active before.
    pub(super) fn next_wake_up(&self) -> Option<Instant> {
        self.backoff.peek().map(|Reverse((until, _))| *until)
    }

    /// Lets a pod wait for a change that one of the plugins that refused it waits for. Without
    /// nodes nobody refused it, and any change may help.
    pub(super) fn park(&mut self, pending: Pending, refused_by: Plugins, now: Instant) {
        let until = now + backoff(pending.attempts);
        let refused_by = match refused_by {
            Plugins::NONE => Plugins::ALL,
            some => some,
        };
        let key = pending.needs.key.clone();
        self.parked.add(&key, refused_by);
        let place = Place::Parked { refused_by, until };
        self.pods.insert(key, (pending, place));
    }

    /// Something changed that can help the pods which any of `plugins` refused.
    pub(super) fn wake(&mut self, plugins: Plugins, now: Instant) {
        self.wake_if(plugins, now, |_| true);
    }

    /// As [`wake`](Self::wake), but only those that the change concerns.
    pub(super) fn wake_if(
        &mut self,
        plugins: Plugins,
        now: Instant,
        concerns: impl Fn(&Needs) -> bool,
    ) {
        let parked = self.parked.by(plugins).into_iter();
        let helped: Vec<ObjectKey> = parked
            .filter(|key| {
                let pod = self.pods.get(*key);
                pod.is_some_and(|(pending, _)| concerns(&pending.needs))
            })
            .cloned()
            .collect();
        for key in helped {
            self.unpark(&key, now);
        }
    }

    /// Has a pod tried again after its backoff, whatever it waits for.
    pub(super) fn nudge(&mut self, key: &ObjectKey, now: Instant) {
        self.unpark(key, now);
    }

    fn unpark(&mut self, key: &ObjectKey, now: Instant) {
        let Some((_, place)) = self.pods.get_mut(key) else {
            return;
        };
        let Place::Parked { refused_by, until } = *place else {
            return;
        };
        self.parked.remove(key, refused_by);
        if until <= now {
            self.activate(key);
        } else {
            *place = Place::BackingOff { until };
            self.backoff.push(Reverse((until, key.clone())));
        }
    }

    fn end_backoffs(&mut self, now: Instant) {
        while let Some(Reverse((until, _))) = self.backoff.peek()
            && *until <= now
        {
            let Some(Reverse((until, key))) = self.backoff.pop() else {
                return;
            };
            let is_due = self.pods.get(&key).is_some_and(
                |(_, place)| matches!(place, Place::BackingOff { until: due } if *due == until),
            );
            if is_due {
                self.activate(&key);
            }
        }
    }

    fn activate(&mut self, key: &ObjectKey) {
        if let Some((pending, place)) = self.pods.get_mut(key) {
            *place = Place::Active;
            self.active.insert(active_key(pending));
        }
    }
}

fn active_key(pending: &Pending) -> ActiveKey {
    (
        Reverse(pending.needs.footprint.priority),
        pending.sequence,
        pending.needs.key.clone(),
    )
}

fn backoff(attempts: u32) -> Duration {
    BACKOFF_BASE
        .saturating_mul(2u32.saturating_pow(attempts.saturating_sub(1).min(20)))
        .min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::super::cycle::tests::pod;
    use super::*;

    fn pending(name: &str, priority: i32) -> Arc<Pod> {
        let mut pod = pod(name, &[]);
        pod.spec.as_mut().unwrap().priority = Some(priority);
        Arc::new(pod)
    }

    fn pop(queue: &mut SchedulingQueue, now: Instant) -> Option<String> {
        queue.pop(now).map(|p| p.needs.key.name.to_string())
    }

    #[test]
    fn the_more_important_go_first_then_the_older() {
        let mut queue = SchedulingQueue::default();
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.add(pending(name, priority));
        }
        let now = Instant::now();
        let order: Vec<String> = std::iter::from_fn(|| pop(&mut queue, now)).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn a_parked_pod_wakes_only_for_what_can_help() {
        let mut queue = SchedulingQueue::default();
        queue.add(pending("a", 0));
        let now = Instant::now();
        let first = queue.pop(now).unwrap();
        queue.park(first, Plugins::FIT, now);
        queue.wake(Plugins::TAINTS, now);
        assert!(queue.pop(now).is_none());
        assert_eq!(queue.next_wake_up(), None);
        queue.wake(Plugins::FIT, now);
        assert!(queue.pop(now).is_none(), "its backoff isn't over");
        assert_eq!(queue.next_wake_up(), Some(now + BACKOFF_BASE));
        assert!(queue.pop(now + BACKOFF_BASE).is_some());
    }

    #[test]
    fn a_change_of_the_pod_itself_brings_a_try_at_once() {
        let mut queue = SchedulingQueue::default();
        queue.add(pending("a", 0));
        let now = Instant::now();
        let first = queue.pop(now).unwrap();
        queue.park(first, Plugins::FIT, now);
        queue.add(pending("a", 5));
        assert_eq!(queue.pop(now).unwrap().needs.footprint.priority, 5);
    }

    #[test]
    fn a_removed_pod_is_not_given_out() {
        let mut queue = SchedulingQueue::default();
        queue.add(pending("a", 0));
        queue.retry(pending("b", 0), 1, Instant::now());
        queue.remove(&ObjectKey::new("default", "a"));
        queue.remove(&ObjectKey::new("default", "b"));
        assert!(queue.pop(Instant::now() + BACKOFF_MAX).is_none());
    }

    #[test]
    fn backoff_doubles_up_to_ten_seconds() {
        assert_eq!(backoff(1), BACKOFF_BASE);
        assert_eq!(backoff(3), BACKOFF_BASE * 4);
        assert_eq!(backoff(30), BACKOFF_MAX);
    }
}
