//! How soon watches are begun again when the API server does not answer.

use std::time::{Duration, Instant};

use kube::runtime::utils::Backoff;

const FIRST: Duration = Duration::from_millis(200);
/// A node is to be back within seconds of its network, and a few hundred nodes that try this often
/// are no load.
const LONGEST: Duration = Duration::from_secs(3);
/// A watch that held for this long is begun again at once.
const HELD: Duration = Duration::from_secs(6);

/// Doubles up to a few seconds; a random half of each wait keeps nodes from coming all at once.
///
/// It starts over by the time that has passed since the last failure: a watch tells that it begins to
/// list, which kube takes for a success, before it has reached anybody.
#[derive(Debug, Clone)]
pub(crate) struct Reconnect {
    next: Duration,
    failed: Option<Instant>,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            next: FIRST,
            failed: None,
        }
    }
}

impl Iterator for Reconnect {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let last = self.failed.replace(Instant::now());
        if last.is_some_and(|last| last.elapsed() > HELD) {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        Some(wait.mul_f64(0.5 + rand::random::<f64>() / 2.0))
    }
}

impl Backoff for Reconnect {
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_seconds_and_start_over() {
        let mut waits = Reconnect::default();
        let first = waits.next().unwrap();
        assert!(first <= FIRST && first >= FIRST / 2);
        let tenth = waits.nth(8).unwrap();
        assert!(tenth <= LONGEST && tenth >= LONGEST / 2);
        // What kube takes for a success is only an attempt ...
        waits.reset();
        assert!(waits.next().unwrap() >= LONGEST / 2);
        // ... unless nothing failed for a while.
        waits.failed = Instant::now().checked_sub(HELD * 2);
        assert!(waits.next().unwrap() <= FIRST);
    }
}
