//! Tells when something changes in a directory.
//!
//! One inotify instance serves everybody: the kernel grants a user only 128 of them. What is told is
//! only that something changed; who asks looks for themselves at what there is.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

const INTEREST: AddWatchFlags = AddWatchFlags::IN_MODIFY
    .union(AddWatchFlags::IN_CREATE)
    .union(AddWatchFlags::IN_MOVED_TO)
    .union(AddWatchFlags::IN_DELETE)
    .union(AddWatchFlags::IN_DELETE_SELF);

/// Watches any number of directories. Clones share it; it ends with the last of them and of
/// their watches.
#[derive(Clone)]
pub struct Watcher {
    shared: Arc<Shared>,
    task: Arc<AbortOnDrop>,
}

struct Shared {
    inotify: AsyncFd<Instance>,
    watches: Mutex<HashMap<RawFd, Watched>>,
}

struct Watched {
    descriptor: WatchDescriptor,
    observers: Vec<Weak<Observer>>,
}

#[derive(Default)]
struct Observer {
    changed: Notify,
    /// A file came, went or was renamed since it was last asked.
    renamed: AtomicBool,
}

impl Watcher {
    /// # Errors
    /// When the host's limit of inotify instances is reached.
    pub fn new() -> io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        // SAFETY: the instance owns its descriptor, gives always the same one, and is never
        // taken out again.
        let inotify = unsafe { AsyncFd::register(Instance(inotify)) }?;
        let shared = Arc::new(Shared {
            inotify,
            watches: Mutex::default(),
        });
        let task = tokio::spawn(tell(shared.clone()));
        Ok(Self {
            shared,
            task: Arc::new(AbortOnDrop(task)),
        })
    }

    /// Watches a directory and the files right in it for as long as the result lives.
    ///
    /// # Errors
    /// When it does not exist, or the host's limit of watches is reached.
    pub fn watch(&self, directory: &Path) -> io::Result<Watch> {
        let mut watches = self.shared.watches();
        let instance = &self.shared.inotify.get_ref().0;
        let descriptor = instance.add_watch(directory, INTEREST)?;
        let observer = Arc::new(Observer::default());
        watches
            .entry(descriptor.as_raw())
            .or_insert_with(|| Watched {
                descriptor,
                observers: Vec::new(),
            })
            .observers
            .push(Arc::downgrade(&observer));
        Ok(Watch {
            key: descriptor.as_raw(),
            observer,
            shared: self.shared.clone(),
            _task: self.task.clone(),
        })
    }
}

/// One interest in a directory.
pub struct Watch {
    key: RawFd,
    observer: Arc<Observer>,
    shared: Arc<Shared>,
    _task: Arc<AbortOnDrop>,
}

impl Watch {
    /// Waits for a change since the watch began or since this last returned.
    pub async fn changed(&self) {
        self.observer.changed.notified().await;
    }

    /// Whether a file came, went or was renamed since this was last asked.
    pub fn take_renamed(&self) -> bool {
        self.observer.renamed.swap(false, Ordering::AcqRel)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut watches = self.shared.watches();
        let Some(watched) = watches.get_mut(&self.key) else {
            return;
        };
        let mine = Arc::downgrade(&self.observer);
        watched.observers.retain(|other| !other.ptr_eq(&mine));
        if watched.observers.is_empty() {
            let descriptor = watched.descriptor;
            watches.remove(&self.key);
            // Fails when the directory is gone, and the watch with it.
            let _ = self.shared.inotify.get_ref().0.rm_watch(descriptor);
        }
    }
}

impl Shared {
    fn watches(&self) -> MutexGuard<'_, HashMap<RawFd, Watched>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn deliver(&self, events: &[InotifyEvent]) {
        let mut watches = self.watches();
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                watches.values().for_each(|watched| watched.tell(true));
                continue;
            }
            let key = event.wd.as_raw();
            if let Some(watched) = watches.get(&key) {
                watched.tell(event.mask != AddWatchFlags::IN_MODIFY);
            }
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                watches.remove(&key);
            }
        }
    }
}

impl Watched {
    fn tell(&self, renamed: bool) {
        for observer in self.observers.iter().filter_map(Weak::upgrade) {
            if renamed {
                observer.renamed.store(true, Ordering::Release);
            }
            observer.changed.notify_one();
        }
    }
}

async fn tell(shared: Arc<Shared>) {
    loop {
        let Ok(mut ready) = shared.inotify.readable().await else {
            return;
        };
        match ready.get_inner().0.read_events() {
            Ok(events) => shared.deliver(&events),
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "reading file system events: logs are no longer followed");
                return;
            }
        }
    }
}

struct Instance(Inotify);

impl AsRawFd for Instance {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

struct AbortOnDrop(JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
