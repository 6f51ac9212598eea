//! Waiting for conditions.

use std::time::{Duration, Instant};

/// Ends a test that can't succeed any more; far beyond what a healthy one needs on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

/// The first `Some` that `probe` gives.
///
/// # Panics
/// When none has come within [`DEADLINE`].
pub(crate) fn until<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(begin.elapsed() < DEADLINE, "never came true: {what}");
        std::thread::sleep(Duration::from_millis(30));
    }
}
