//! The kubelet's exponential backoff, for restarts and for image pulls.
//!
//! The first attempt after a quiet period is free and arms a wait of 10 s; each later one doubles
//! the wait up to 300 s. An entry that was not touched for twice the maximum is forgotten, so ten
//! minutes of running clear it (k8s.io/client-go/util/flowcontrol `Backoff`).

use std::time::Duration;

use tokio::time::Instant;

/// First wait.
pub const INITIAL: Duration = Duration::from_secs(10);
/// Longest wait.
pub const MAX: Duration = Duration::from_secs(300);

/// The wait between attempts at one thing.
#[derive(Debug, Clone, Default)]
pub struct Backoff {
    armed: Option<Armed>,
}

#[derive(Debug, Clone, Copy)]
struct Armed {
    wait: Duration,
    updated: Instant,
}

impl Backoff {
    /// When the next attempt may happen, for something that failed at `since`; `None` = now.
    pub fn until(&self, since: Instant) -> Option<Instant> {
        let armed = self.fresh(since)?;
        Some(since + armed.wait)
    }

    /// The wait as it stands; zero when nothing failed yet.
    pub fn wait(&self) -> Duration {
        self.armed.map_or(Duration::ZERO, |a| a.wait)
    }

    /// Notes an attempt after something that happened at `since`.
    pub fn next(&mut self, since: Instant) {
        let wait = match self.fresh(since) {
            Some(armed) => (armed.wait * 2).min(MAX),
            None => INITIAL,
        };
        self.armed = Some(Armed {
            wait,
            updated: Instant::now(),
        });
    }

    /// Forgets every failure.
    pub fn reset(&mut self) {
        self.armed = None;
    }

    fn fresh(&self, since: Instant) -> Option<Armed> {
        self.armed
            .filter(|a| since.saturating_duration_since(a.updated) <= MAX * 2)
    }
}

/// A duration as Go prints it, in whole seconds: `10s`, `1m20s`, `5m0s`.
pub fn go_seconds(duration: Duration) -> String {
    let secs = duration.as_secs();
    match (secs / 3600, secs / 60 % 60, secs % 60) {
        (0, 0, s) => format!("{s}s"),
        (0, m, s) => format!("{m}m{s}s"),
        (h, m, s) => format!("{h}h{m}m{s}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn doubles_from_ten_seconds_to_five_minutes() {
        let mut backoff = Backoff::default();
        let mut waits = Vec::new();
        for _ in 0..7 {
            let failed = Instant::now();
            if let Some(until) = backoff.until(failed) {
                tokio::time::sleep_until(until).await;
            }
            waits.push(failed.elapsed().as_secs());
            backoff.next(failed);
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300]);
    }

    #[tokio::test(start_paused = true)]
    async fn ten_minutes_of_running_clear_it() {
        let mut backoff = Backoff::default();
        backoff.next(Instant::now());
        backoff.next(Instant::now());
        tokio::time::advance(MAX * 2 + Duration::from_secs(1)).await;
        assert_eq!(backoff.until(Instant::now()), None);
        backoff.next(Instant::now());
        assert_eq!(backoff.wait(), INITIAL);
    }

    #[test]
    fn prints_durations_as_go_does() {
        for (secs, text) in [(10, "10s"), (80, "1m20s"), (300, "5m0s"), (3600, "1h0m0s")] {
            assert_eq!(go_seconds(Duration::from_secs(secs)), text);
        }
    }
}
