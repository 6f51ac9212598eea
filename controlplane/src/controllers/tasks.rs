//! Ownership of background tasks: who can stop them, and who notices when one dies.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

/// How long a task that ended by itself rests before it is started again.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// A set of tasks that live and stop together.
#[derive(Clone, Default)]
pub struct Tasks {
    cancel: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    /// A part of `parent` that can be cancelled alone. Stopping `parent` stops it, and waits
    /// for it.
    pub fn child_of(parent: &Tasks) -> Self {
        Self {
            cancel: parent.cancel.child_token(),
            tracker: parent.tracker.clone(),
        }
    }

    /// Asks every task to end, without waiting for it.
    pub fn cancel(&self) {
        self.cancel.cancel();
    }

    /// Runs one task to its end, or until the set stops.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Keeps a task running that is never meant to end: when it returns or panics before the
    /// set stops, that is logged and `start` is called again after a second.
    pub fn supervise<F, T>(&self, name: impl Into<String>, start: F)
    where
        F: Fn() -> T + Send + 'static,
        T: Future<Output = ()> + Send + 'static,
    {
        let name = name.into();
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            loop {
                let ended = tokio::select! {
                    () = cancel.cancelled() => return,
                    ended = AssertUnwindSafe(start()).catch_unwind() => ended,
                };
                match ended {
                    Ok(()) => warn!(
                        task = name,
                        "task ended before it was stopped; restarting it"
                    ),
                    Err(panic) => error!(
                        task = name,
                        panic = panic_message(&panic),
                        "task panicked; restarting it"
                    ),
                }
                tokio::select! {
                    () = cancel.cancelled() => return,
                    () = tokio::time::sleep(RESTART_DELAY) => {}
                }
            }
        });
    }

    /// Stops every task and waits for the last to end.
    pub async fn stop(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// What a caught panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again() {
        let tasks = Tasks::default();
        let starts = Arc::new(AtomicU32::new(0));
        let seen = starts.clone();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let sender = Arc::new(std::sync::Mutex::new(Some(sender)));
        tasks.supervise("test", move || {
            let starts = starts.clone();
            let sender = sender.clone();
            async move {
                if starts.fetch_add(1, Ordering::SeqCst) == 0 {
                    panic!("first");
                }
                if let Some(sender) = sender.lock().unwrap().take() {
                    sender.send(()).unwrap();
                }
                std::future::pending::<()>().await;
            }
        });
        receiver.await.unwrap();
        assert_eq!(seen.load(Ordering::SeqCst), 2);
        tasks.stop().await;
    }
}
