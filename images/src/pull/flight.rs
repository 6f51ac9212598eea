//! Work that several want at the same time, done once.
//!
//! Nothing runs by itself here: the work is driven by those who wait for it, so it ends when the
//! last of them is gone, and as long as one is left it goes on.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

/// Work under way, by what it is for.
pub(super) struct Flights<K, T: Clone> {
    under_way: Mutex<HashMap<K, WeakShared<BoxFuture<'static, T>>>>,
}

/// A result, and how it was come by.
pub(super) struct Landed<T> {
    pub(super) result: T,
    /// Somebody else had begun the work.
    pub(super) joined: bool,
}

impl<K, T: Clone> Default for Flights<K, T> {
    fn default() -> Self {
        Self {
            under_way: Mutex::new(HashMap::new()),
        }
    }
}

impl<K: Eq + Hash, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// The result of the work for `key`: of that under way, else of `work`, begun now.
    pub(super) async fn join(
        &self,
        key: K,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Landed<T> {
        let (flight, joined) = self.board(key, work.boxed());
        Landed {
            result: flight.await,
            joined,
        }
    }

    fn board(&self, key: K, work: BoxFuture<'static, T>) -> (Shared<BoxFuture<'static, T>>, bool) {
        // The map is whole between any two statements.
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = under_way.get(&key).and_then(WeakShared::upgrade);
        // What has ended may have ended long ago for someone who is slow to look.
        if let Some(flight) = known.filter(|flight| flight.peek().is_none()) {
            return (flight, true);
        }
        under_way.retain(|_, flight| flight.upgrade().is_some());
        let flight = work.shared();
        if let Some(weak) = flight.downgrade() {
            under_way.insert(key, weak);
        }
        (flight, false)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn work_is_done_once_for_all_who_wait() {
        let flights = Arc::new(Flights::<&str, u32>::default());
        let (begun, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let join = || {
            let (flights, begun, go) = (flights.clone(), begun.clone(), go.clone());
            tokio::spawn(async move {
                let work = async move {
                    begun.fetch_add(1, Ordering::SeqCst);
                    go.notified().await;
                    begun.load(Ordering::SeqCst)
                };
                let landed = flights.join("a", work).await;
                (landed.result, landed.joined)
            })
        };
        let first = join();
        tokio::task::yield_now().await;
        let second = join();
        tokio::task::yield_now().await;
        // The one who began it leaves; the work goes on for the other.
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        go.notify_one();
        assert_eq!(second.await.unwrap(), (1, true));
        // What is over is begun anew.
        let third = join();
        tokio::task::yield_now().await;
        go.notify_one();
        assert_eq!(third.await.unwrap(), (2, false));
    }

    #[tokio::test]
    async fn work_ends_when_nobody_waits() {
        struct Ends(Arc<AtomicU32>);
        impl Drop for Ends {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let flights = Flights::<&str, ()>::default();
        let ended = Arc::new(AtomicU32::new(0));
        let guard = Ends(ended.clone());
        let work = async move {
            let _guard = guard;
            std::future::pending::<()>().await;
        };
        let waiting = flights.join("a", work);
        assert!(futures::poll!(std::pin::pin!(waiting)).is_pending());
        assert_eq!(ended.load(Ordering::SeqCst), 1);
    }
}
