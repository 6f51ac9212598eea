//! Endpoints that services led to and lead to no more, and the connections that nobody there will answer.
//!
//! The kernel remembers where the first packet of a connection went, for two minutes when no answer came and for ten
//! seconds when it was refused. A client that repeats that packet, or one that comes from the same port again, would be led
//! to the endpoint that is gone, whatever the table says by then. After a crash these are as many as were sent until it was
//! noticed; and ports come round within seconds where a node asks much. So they are forgotten, and the table decides anew.
//!
//! Not at once: an endpoint that merely ends in good order may be about to answer the last ones. Whoever has not done so
//! after [`PATIENCE`] won't. It is shorter than the second after which TCP repeats its first packet.

use std::collections::{HashSet, VecDeque};
use std::net::SocketAddrV4;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

const PATIENCE: Duration = Duration::from_millis(500);

/// What was lost, until its connections are forgotten.
#[derive(Default)]
pub(in crate::net) struct Lost {
    /// In the order in which they are due.
    batches: Mutex<VecDeque<(Instant, HashSet<SocketAddrV4>)>>,
    added: Notify,
}

impl Lost {
    pub(super) fn add(&self, endpoints: HashSet<SocketAddrV4>) {
        if endpoints.is_empty() {
            return;
        }
        let due = Instant::now() + PATIENCE;
        self.batches().push_back((due, endpoints));
        self.added.notify_one();
    }

    /// Resolves when there are endpoints whose unanswered connections are to be forgotten, and hands them over.
    pub(in crate::net) async fn due(&self) -> HashSet<SocketAddrV4> {
        loop {
            let next = self.batches().front().map(|(due, _)| *due);
            match next {
                None => self.added.notified().await,
                Some(due) if due > Instant::now() => tokio::time::sleep_until(due).await,
                Some(_) => return self.take(Instant::now()),
            }
        }
    }

    fn take(&self, now: Instant) -> HashSet<SocketAddrV4> {
        let mut batches = self.batches();
        let due = batches.partition_point(|(due, _)| *due <= now);
        batches
            .drain(..due)
            .flat_map(|(_, endpoints)| endpoints)
            .collect()
    }

    fn batches(&self) -> MutexGuard<'_, VecDeque<(Instant, HashSet<SocketAddrV4>)>> {
        // Each use is one change.
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(text: &str) -> HashSet<SocketAddrV4> {
        text.split(' ').map(|one| one.parse().unwrap()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn each_batch_has_its_own_time() {
        let lost = Lost::default();
        let begun = Instant::now();
        lost.add(HashSet::new());
        lost.add(endpoints("10.42.0.2:80"));
        lost.add(endpoints("10.42.0.3:80"));
        tokio::time::sleep(PATIENCE / 2).await;
        lost.add(endpoints("10.42.0.4:80"));
        assert_eq!(lost.due().await, endpoints("10.42.0.2:80 10.42.0.3:80"));
        assert_eq!(begun.elapsed(), PATIENCE);
        assert_eq!(lost.due().await, endpoints("10.42.0.4:80"));
        assert_eq!(begun.elapsed(), PATIENCE + PATIENCE / 2);
    }
}
