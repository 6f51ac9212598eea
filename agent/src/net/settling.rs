//! When the other nodes' tables have followed this one's.
//!
//! A pod may be ended when no node leads connections to it any more. Every node follows the EndpointSlices by a
//! watch of its own, so the node that ends a pod asks the others: does your table have what the slices were at this
//! revision? That is one datagram over the pod network to each Ready node, which answers as soon as it is so.
//! Nothing is written to the API, and nothing is sent at all unless a pod ends that services led to.
//!
//! ```text
//! question: "skiff-q1", revision (8 bytes, big-endian)      answer: "skiff-a1", revision
//! ```
//!
//! A node that does not answer (a firewall, an agent that is down) holds pods up by [`LONGEST`] once, and by
//! [`SHORT`] from then on until it answers again.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::services::Committed;

/// On each node's address of the pod network; beside the tunnel's.
const PORT: u16 = 8473;
/// Between two questions to a node that has not answered: a datagram may be lost.
const REPEAT: Duration = Duration::from_millis(50);
/// How long a node is waited for that has answered before, or was never asked.
const LONGEST: Duration = Duration::from_millis(1500);
/// How long a node is waited for that did not answer the last time: what tables take, and then some.
const SHORT: Duration = Duration::from_millis(150);
/// Questions that a node keeps until it can answer them.
const MOST_PENDING: usize = 4096;
const QUESTION: [u8; 8] = *b"skiff-q1";
const ANSWER: [u8; 8] = *b"skiff-a1";
const MESSAGE_LEN: usize = 16;

/// The other nodes, by their addresses in the pod network.
#[derive(Default)]
pub(super) struct Others {
    ready: watch::Sender<BTreeSet<Ipv4Addr>>,
    /// Those that did not answer the last time.
    silent: Mutex<HashSet<Ipv4Addr>>,
}

impl Others {
    /// Says which other nodes are Ready. One that is not can't be waited for.
    pub(super) fn set(&self, ready: BTreeSet<Ipv4Addr>) {
        self.ready.send_if_modified(|now| {
            let changed = *now != ready;
            *now = ready;
            changed
        });
    }

    /// Resolves when every other node's table has what the slices were at `revision`, or can't be waited for any
    /// longer; gives whether all have. `own` is this node's address in the pod network.
    pub(super) async fn settled(&self, own: Ipv4Addr, revision: u64) -> bool {
        let mut waiting = self.ready.borrow().clone();
        if waiting.is_empty() {
            return true;
        }
        let begun = Instant::now();
        if let Err(error) = self.ask(own, revision, &mut waiting).await {
            tracing::warn!(%error, "the other nodes can't be asked whether they have let go of a pod");
            tokio::time::sleep_until(begun + SHORT).await;
        }
        tracing::debug!(revision, took = ?begun.elapsed(), silent = ?waiting, "waited for the other nodes to let go");
        waiting.is_empty()
    }

    async fn ask(
        &self,
        own: Ipv4Addr,
        revision: u64,
        waiting: &mut BTreeSet<Ipv4Addr>,
    ) -> io::Result<()> {
        let socket = UdpSocket::bind((own, 0)).await?;
        let mut ready = self.ready.subscribe();
        let mut repeat = tokio::time::interval(REPEAT);
        repeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let begun = Instant::now();
        let mut buffer = [0; MESSAGE_LEN];
        while !waiting.is_empty() {
            tokio::select! {
                received = socket.recv_from(&mut buffer) => {
                    let (length, from) = received?;
                    let reached = read(ANSWER, &buffer[..length]);
                    if let (IpAddr::V4(node), Some(reached)) = (from.ip(), reached)
                        && reached >= revision
                        && waiting.remove(&node)
                    {
                        self.silent().remove(&node);
                    }
                }
                _ = repeat.tick() => {
                    if begun.elapsed() >= self.patience(waiting) {
                        self.silent().extend(waiting.iter());
                        return Ok(());
                    }
                    for node in waiting.iter() {
                        // Where there is no way at the moment, nobody will answer.
                        let _ = socket.send_to(&message(QUESTION, revision), (*node, PORT)).await;
                    }
                }
                // The sender lives as long as `self`.
                Ok(()) = ready.changed() => {
                    let ready = ready.borrow_and_update();
                    waiting.retain(|node| ready.contains(node));
                }
            }
        }
        Ok(())
    }

    fn patience(&self, waiting: &BTreeSet<Ipv4Addr>) -> Duration {
        let silent = self.silent();
        match waiting.iter().all(|node| silent.contains(node)) {
            true => SHORT,
            false => LONGEST,
        }
    }

    fn silent(&self) -> std::sync::MutexGuard<'_, HashSet<Ipv4Addr>> {
        // Each use is one change.
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_known(&self, address: IpAddr) -> bool {
        matches!(address, IpAddr::V4(address) if self.ready.borrow().contains(&address))
    }

    /// Answers the other nodes' questions on this node's address, by what is committed here, until it is dropped.
    ///
    /// # Errors
    /// When the socket can't be had, or fails.
    pub(super) async fn answer(
        &self,
        own: Ipv4Addr,
        mut committed: watch::Receiver<Committed>,
    ) -> io::Result<()> {
        let socket = UdpSocket::bind((own, PORT)).await?;
        let mut pending: VecDeque<(SocketAddr, u64)> = VecDeque::new();
        let mut buffer = [0; MESSAGE_LEN];
        loop {
            tokio::select! {
                received = socket.recv_from(&mut buffer) => {
                    let (length, from) = received?;
                    let Some(wanted) = read(QUESTION, &buffer[..length]) else {
                        continue;
                    };
                    // Pods have no say here.
                    if !self.is_known(from.ip()) {
                        continue;
                    }
                    pending.retain(|(asker, _)| *asker != from);
                    pending.truncate(MOST_PENDING - 1);
                    pending.push_front((from, wanted));
                }
                changed = committed.changed() => if changed.is_err() {
                    return Ok(());
                },
            }
            let reached = committed.borrow_and_update().revision;
            let mut due = Vec::new();
            pending.retain(|(asker, wanted)| {
                let is_due = *wanted <= reached;
                due.extend(is_due.then_some(*asker));
                !is_due
            });
            for asker in due {
                // It asks again when this is lost.
                let _ = socket.send_to(&message(ANSWER, reached), asker).await;
            }
        }
    }
}

fn message(kind: [u8; 8], revision: u64) -> [u8; MESSAGE_LEN] {
    let mut message = [0; MESSAGE_LEN];
    message[..8].copy_from_slice(&kind);
    message[8..].copy_from_slice(&revision.to_be_bytes());
    message
}

/// The revision of a message of this kind.
fn read(kind: [u8; 8], datagram: &[u8]) -> Option<u64> {
    let (found, revision) = datagram.split_first_chunk::<8>()?;
    (*found == kind).then_some(())?;
    Some(u64::from_be_bytes(revision.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_and_others_are_not() {
        assert_eq!(read(QUESTION, &message(QUESTION, 77)), Some(77));
        assert_eq!(read(ANSWER, &message(QUESTION, 77)), None);
        for wrong in [&b""[..], b"skiff-q1", b"skiff-q1123456789", &[0; 16]] {
            assert_eq!(read(QUESTION, wrong), None, "{wrong:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn alone_nobody_is_asked() {
        let begun = Instant::now();
        assert!(Others::default().settled(Ipv4Addr::LOCALHOST, 5).await);
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_node_is_waited_for_once() {
        let others = Others::default();
        let silent = Ipv4Addr::new(127, 77, 77, 77);
        others.set(BTreeSet::from([silent]));
        let waits = async || {
            let begun = Instant::now();
            let all = others.settled(Ipv4Addr::LOCALHOST, 5).await;
            (all, begun.elapsed())
        };
        let (all, first) = waits().await;
        assert!(!all && first >= LONGEST, "{first:?}");
        let (all, again) = waits().await;
        assert!(!all && again >= SHORT && again < LONGEST, "{again:?}");
        // One that is not Ready any more is not waited for at all.
        others.set(BTreeSet::new());
        assert_eq!(waits().await, (true, Duration::ZERO));
    }
}
