//! Clients that ask a service for a page again and again, and count every failure.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use nix::sched::{CloneFlags, setns};

use crate::{host, wait};

const CLIENTS: usize = 4;

/// Each request is a connection of its own; they go on until they are stopped.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    clients: Vec<JoinHandle<Vec<String>>>,
}

impl Load {
    /// From this host.
    pub(crate) fn on(address: &str) -> Self {
        Self::start(None, address)
    }

    /// From the network namespace that is pinned there.
    pub(crate) fn from(namespace: &Path, address: &str) -> Self {
        Self::start(Some(namespace.to_owned()), address)
    }

    fn start(namespace: Option<PathBuf>, address: &str) -> Self {
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let client = |_| {
            let (stop, answered) = (stop.clone(), Arc::clone(&answered));
            let (namespace, address) = (namespace.clone(), address.to_owned());
            std::thread::spawn(move || {
                if let Some(namespace) = namespace {
                    enter(&namespace);
                }
                ask(&address, &stop, &answered)
            })
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self {
            stop,
            answered,
            clients,
        }
    }

    /// Waits for so many more answers.
    pub(crate) fn more(&self, count: usize) {
        let goal = self.answered.load(Ordering::Relaxed) + count;
        wait::until("more answers", || {
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        });
    }

    /// What went wrong.
    pub(crate) fn failures(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.clients.into_iter().map(JoinHandle::join);
        ended
            .flat_map(|failures| failures.expect("a client"))
            .collect()
    }
}

/// Moves the calling thread into a network namespace, for good.
pub(crate) fn enter(namespace: &Path) {
    let pinned = File::open(namespace).expect("a pinned network namespace");
    setns(pinned, CloneFlags::CLONE_NEWNET).expect("tests run as root");
}

/// Does some work in a network namespace, on a thread of its own.
pub(crate) fn inside<T: Send>(namespace: &Path, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            enter(namespace);
            work()
        });
        worker
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn ask(address: &str, stop: &AtomicBool, answered: &AtomicUsize) -> Vec<String> {
    let mut failures = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        match host::http_get(address) {
            Ok(page) if page.starts_with("HTTP/1.1 200") => {
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(page) => failures.push(format!("{page:?}")),
            Err(error) => failures.push(error.to_string()),
        }
    }
    failures
}
