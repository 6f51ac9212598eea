//! A load generator: a request at each tick, on a new connection, whether or not earlier ones were answered.

use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{on_this_thread, seconds};
use crate::wait;

/// Requests a second, of the probe and of the observer.
pub(super) const RATE: u32 = 50;
/// In seconds.
pub(super) const INTERVAL: f64 = 1.0 / RATE as f64;
const TIMEOUT: Duration = Duration::from_secs(1);

/// When a request was sent, and whether it was answered well.
pub(super) type Asked = (f64, bool);

/// Asks again and again, from a network namespace, until it is stopped.
pub(super) struct Load {
    stop: oneshot::Sender<()>,
    good: Arc<Mutex<u64>>,
    thread: JoinHandle<Vec<Asked>>,
}

impl Load {
    pub(super) fn start(address: String, namespace: Option<PathBuf>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let good = Arc::new(Mutex::new(0));
        let counted = good.clone();
        let thread = std::thread::spawn(move || {
            if let Some(path) = namespace {
                let file = File::open(path).expect("the node's namespace");
                setns(file, CloneFlags::CLONE_NEWNET).expect("the tests run as root");
            }
            on_this_thread(ask_until(address, counted, stopped))
        });
        Self { stop, good, thread }
    }

    /// Waits until so many requests more were answered well.
    pub(super) fn until_good(&self, more: u64) {
        let good = || *self.good.lock().expect("no panic");
        let enough = good() + more;
        wait::until("answers", || (good() >= enough).then_some(()));
    }

    /// Every request, by when it was sent.
    pub(super) fn end(self) -> Vec<Asked> {
        let _ = self.stop.send(());
        let mut asked = self.thread.join().expect("the load");
        asked.sort_by(|a, b| a.0.total_cmp(&b.0));
        asked
    }
}

async fn ask_until(
    address: String,
    good: Arc<Mutex<u64>>,
    mut stopped: oneshot::Receiver<()>,
) -> Vec<Asked> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut under_way = JoinSet::new();
    let mut asked = Vec::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            _ = ticks.tick() => {
                let address = address.clone();
                under_way.spawn(async move {
                    let sent = seconds();
                    let answered = tokio::time::timeout(TIMEOUT, get(&address)).await;
                    (sent, answered.is_ok_and(|answered| answered.is_ok_and(|good| good)))
                });
            }
            Some(done) = under_way.join_next() => {
                let done: Asked = done.expect("a request");
                *good.lock().expect("no panic") += u64::from(done.1);
                asked.push(done);
            }
        }
    }
    while let Some(done) = under_way.join_next().await {
        asked.push(done.expect("a request"));
    }
    asked
}

async fn get(address: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}
