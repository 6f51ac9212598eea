//! The one runner of all controllers: workers take keys from a controller's queue and
//! reconcile them.
//!
//! A controller is level-triggered: it is given a key and nothing else, looks at what is and
//! moves it to what should be. An error puts the key back after its backoff.

use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tracing::{debug, error, warn};

use super::queue::WorkQueue;
use super::tasks::{Tasks, panic_message};

/// Failures of one key in a row after which an operator should hear of it.
const FAILURES_WORTH_A_WARNING: u32 = 8;

/// What a controller wants done with a key that it reconciled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing, until something changes.
    Wait,
    /// Look again after this time.
    After(Duration),
    /// Look again after the key's backoff.
    Backoff,
}

/// A control loop over the keys of one queue.
pub trait Controller: Send + Sync + 'static {
    type Key: Hash + Eq + Clone + Debug + Send + Sync + 'static;
    type Error: Display + Send + IsExpected;

    /// Its name in logs and events, as `replicaset-controller`.
    const NAME: &'static str;

    /// Moves what `key` names towards its desired state.
    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Result<Next, Self::Error>> + Send;
}

/// Whether an error is part of normal work (a conflicting write, say), which a retry mends and
/// nobody needs to read about.
pub trait IsExpected {
    fn is_expected(&self) -> bool;
}

impl IsExpected for kube::Error {
    fn is_expected(&self) -> bool {
        matches!(self, kube::Error::Api(status)
            if status.is_conflict() || status.is_not_found() || status.is_already_exists())
    }
}

/// Runs `workers` workers of a controller until `tasks` stop. No two work on one key.
pub fn run<C: Controller>(
    controller: Arc<C>,
    queue: &WorkQueue<C::Key>,
    workers: usize,
    tasks: &Tasks,
) {
    for _ in 0..workers {
        let controller = controller.clone();
        let queue = queue.clone();
        tasks.supervise(C::NAME, move || work(controller.clone(), queue.clone()));
    }
}

async fn work<C: Controller>(controller: Arc<C>, queue: WorkQueue<C::Key>) {
    loop {
        let key = queue.next().await;
        let outcome = AssertUnwindSafe(controller.reconcile(&key))
            .catch_unwind()
            .await;
        match outcome {
            Ok(Ok(next)) => match next {
                Next::Backoff => queue.add_rate_limited(key.clone()),
                Next::After(delay) => {
                    queue.forget(&key);
                    queue.add_after(key.clone(), delay);
                }
                Next::Wait => queue.forget(&key),
            },
            Ok(Err(error)) => {
                queue.add_rate_limited(key.clone());
                let failures = queue.failures(&key);
                if error.is_expected() || failures < FAILURES_WORTH_A_WARNING {
                    debug!(controller = C::NAME, ?key, %error, "reconcile failed; trying again");
                } else {
                    warn!(controller = C::NAME, ?key, %error, failures, "reconcile keeps failing");
                }
            }
            Err(panic) => {
                let panic = panic_message(&*panic);
                error!(
                    controller = C::NAME,
                    ?key,
                    panic,
                    "reconcile panicked; trying again"
                );
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug)]
    struct Refused;
    impl Display for Refused {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("refused")
        }
    }
    impl IsExpected for Refused {
        fn is_expected(&self) -> bool {
            true
        }
    }

    /// Fails, then panics, then succeeds.
    struct Stumbling {
        attempts: Mutex<u32>,
        finished: tokio::sync::mpsc::Sender<u32>,
    }

    impl Controller for Stumbling {
        type Key = &'static str;
        type Error = Refused;
        const NAME: &'static str = "stumbling";

        async fn reconcile(&self, _: &Self::Key) -> Result<Next, Refused> {
            let attempt = {
                let mut attempts = self.attempts.lock().unwrap();
                *attempts += 1;
                *attempts
            };
            match attempt {
                1 => Err(Refused),
                2 => panic!("stumbled"),
                _ => {
                    self.finished.send(attempt).await.unwrap();
                    Ok(Next::Wait)
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_tried_again_after_an_error_and_after_a_panic() {
        let (finished, mut results) = tokio::sync::mpsc::channel(4);
        let controller = Arc::new(Stumbling {
            attempts: Mutex::new(0),
            finished,
        });
        let (queue, tasks) = (WorkQueue::default(), Tasks::default());
        run(controller, &queue, 2, &tasks);
        queue.add("key");
        assert_eq!(results.recv().await, Some(3));
        tasks.stop().await;
    }
}
