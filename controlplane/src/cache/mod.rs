//! The watch cache: every stored object in memory, one [`Shelf`] for each stored resource.
//!
//! The store's writer thread applies each durable write here, in the order of revisions, before
//! the write is acknowledged. Gets and lists read the shelf's objects; watches follow its
//! recent events with a cursor of their own, so a slow watcher costs nothing but his own
//! place: when the events he has not seen yet are dropped, he is told to list again.

pub mod entry;
pub mod list;
pub mod selector;
pub mod watch;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::watch as notify;

pub use entry::Entry;
pub use list::{ListError, Page, PageRequest};
pub use selector::Selector;
pub use watch::{Start, Watch, WatchError, WatchEvent};

use crate::resources::SelectableField;
use crate::store::{Change, Key, Observer, Op, Revision, Snapshot};

/// Events that a shelf remembers at most, and the bytes they may hold on to.
const RECENT_EVENTS: usize = 8192;
const RECENT_BYTES: usize = 4 << 20;
/// Older events go, except the last [`RECENT_KEPT`].
const RECENT_AGE: Duration = Duration::from_secs(300);
const RECENT_KEPT: usize = 128;

/// All shelves.
pub struct Cache {
    shelves: RwLock<HashMap<String, Arc<Shelf>>>,
    /// Every write up to this one has been applied.
    revision: AtomicU64,
}

/// The objects of one stored resource.
pub struct Shelf {
    selectable: &'static [SelectableField],
    state: RwLock<State>,
    /// The last revision applied to this shelf: wakes the watches.
    changed: notify::Sender<Revision>,
    /// Lists that clients are half-way through.
    pages: Mutex<Vec<list::Paged>>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Arc<Entry>>,
    recent: VecDeque<Event>,
    recent_bytes: usize,
    /// Events up to this revision are no longer known.
    floor: Revision,
    last: Revision,
}

/// What happened to one object.
#[derive(Clone)]
struct Event {
    /// The object after the event, or as it went.
    entry: Arc<Entry>,
    previous: Option<Arc<Entry>>,
    deleted: bool,
    at: Instant,
}

/// Which objects of a shelf: all, or those of one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope(Option<String>);

impl Scope {
    pub fn everything() -> Self {
        Self(None)
    }

    pub fn namespace(namespace: &str) -> Self {
        Self(Some(namespace.to_string()))
    }

    fn contains(&self, entry: &Entry) -> bool {
        self.0.as_deref().is_none_or(|ns| ns == entry.namespace())
    }
}

impl Cache {
    /// The cache of all that is stored. `selectable` tells the fields that selectors
    /// of a stored resource (`<group>/<plural>`) may name.
    pub fn load(
        snapshot: Snapshot,
        selectable: &HashMap<String, &'static [SelectableField]>,
    ) -> Arc<Self> {
        let mut shelves = HashMap::new();
        for (id, fields) in selectable {
            shelves.insert(id.clone(), Shelf::new(fields, snapshot.revision));
        }
        for (key, revision, value) in snapshot.entries {
            let shelf = shelves
                .entry(key.resource().to_string())
                .or_insert_with(|| Shelf::new(&[], snapshot.revision));
            let entry = Entry::new(key.clone(), revision, &value, shelf.selectable);
            shelf.state.write().objects.insert(key, Arc::new(entry));
        }
        Arc::new(Self {
            shelves: RwLock::new(shelves),
            revision: AtomicU64::new(snapshot.revision),
        })
    }

    /// The shelf of a stored resource, named `<group>/<plural>` as [`Key::resource`] does.
    pub fn shelf(&self, id: &str) -> Arc<Shelf> {
        if let Some(shelf) = self.shelves.read().get(id) {
            return shelf.clone();
        }
        let mut shelves = self.shelves.write();
        shelves
            .entry(id.to_string())
            .or_insert_with(|| Shelf::new(&[], self.revision()))
            .clone()
    }

    /// The last revision applied to all shelves.
    pub fn revision(&self) -> Revision {
        self.revision.load(Ordering::Acquire)
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.shelf(key.resource()).get(key)
    }

    fn apply(&self, change: Change) {
        let revision = change.revision;
        self.shelf(change.key.resource()).apply(change);
        self.revision.store(revision, Ordering::Release);
    }
}

/// Feeds the store's writes to the cache.
pub struct CacheWriter(pub Arc<Cache>);

impl Observer for CacheWriter {
    fn committed(&mut self, changes: Vec<Change>) {
        for change in changes {
            self.0.apply(change);
        }
    }
}

impl Shelf {
    fn new(selectable: &'static [SelectableField], revision: Revision) -> Arc<Self> {
        Arc::new(Self {
            selectable,
            state: RwLock::new(State {
                floor: revision,
                last: revision,
                ..State::default()
            }),
            changed: notify::Sender::new(revision),
            pages: Mutex::default(),
        })
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        self.state.read().objects.get(key).cloned()
    }

    /// Tells of every change: its revision.
    pub fn changes(&self) -> notify::Receiver<Revision> {
        self.changed.subscribe()
    }

    /// The objects of a scope in the order of their keys.
    pub fn all(&self, scope: &Scope) -> Vec<Arc<Entry>> {
        self.state.read().scoped(scope).cloned().collect()
    }

    fn apply(&self, change: Change) {
        let revision = change.revision;
        let entry = match &change.op {
            Op::Put(value) | Op::Delete { last: Some(value) } => {
                let entry = Entry::new(change.key.clone(), revision, value, self.selectable);
                Some(Arc::new(entry))
            }
            Op::Delete { last: None } => None,
        };
        self.state.write().apply(change, entry);
        self.changed.send_replace(revision);
        self.drop_old_pages();
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }
}

impl State {
    fn apply(&mut self, change: Change, entry: Option<Arc<Entry>>) {
        self.last = change.revision;
        let deleted = matches!(change.op, Op::Delete { .. });
        let previous = if deleted {
            self.objects.remove(&change.key)
        } else {
            entry
                .clone()
                .and_then(|entry| self.objects.insert(change.key, entry))
        };
        let entry = match (entry, &previous) {
            (Some(entry), _) => entry,
            (None, Some(previous)) => Arc::new(previous.restamped(change.revision)),
            // Nothing was there, so there is nothing to tell.
            (None, None) => return,
        };
        self.recent_bytes += entry.bytes.len();
        self.recent.push_back(Event {
            entry,
            previous,
            deleted,
            at: Instant::now(),
        });
        self.forget();
    }

    /// Drops the events that are too many, too large or too old.
    fn forget(&mut self) {
        while let Some(oldest) = self.recent.front() {
            let too_many = self.recent.len() > RECENT_EVENTS || self.recent_bytes > RECENT_BYTES;
            let too_old = self.recent.len() > RECENT_KEPT && oldest.at.elapsed() > RECENT_AGE;
            if self.recent.len() <= 1 || !(too_many || too_old) {
                return;
            }
            self.floor = oldest.entry.revision;
            self.recent_bytes -= oldest.entry.bytes.len();
            self.recent.pop_front();
        }
    }

    fn scoped(&self, scope: &Scope) -> Box<dyn Iterator<Item = &Arc<Entry>> + '_> {
        let Some(namespace) = &scope.0 else {
            return Box::new(self.objects.values());
        };
        let Some(first) = self.objects.keys().next() else {
            return Box::new(std::iter::empty());
        };
        let prefix = format!("{}/{namespace}/", first.resource());
        let from = Bound::Included(prefix.as_str());
        Box::new(
            self.objects
                .range::<str, _>((from, Bound::Unbounded))
                .take_while(move |(key, _)| key.as_str().starts_with(&prefix))
                .map(|(_, entry)| entry),
        )
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use bytes::Bytes;

    use super::*;

    /// A cache of pods whose writes a test makes itself.
    pub(crate) struct Pods {
        pub(crate) cache: Arc<Cache>,
        revision: Revision,
    }

    impl Pods {
        pub(crate) fn new() -> Self {
            let selectable: HashMap<_, &'static [SelectableField]> = HashMap::from([(
                "core/pods".to_string(),
                [const { SelectableField::text("spec.nodeName") }].as_slice(),
            )]);
            let snapshot = Snapshot {
                revision: 10,
                entries: Vec::new(),
            };
            Self {
                cache: Cache::load(snapshot, &selectable),
                revision: 10,
            }
        }

        pub(crate) fn shelf(&self) -> Arc<Shelf> {
            self.cache.shelf("core/pods")
        }

        pub(crate) fn put(&mut self, namespace: &str, name: &str, app: &str, node: &str) {
            let value = format!(
                r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","namespace":"{namespace}","labels":{{"app":"{app}"}}}},"spec":{{"nodeName":"{node}"}}}}"#
            );
            self.change(namespace, name, Op::Put(Bytes::from(value)));
        }

        pub(crate) fn delete(&mut self, namespace: &str, name: &str) {
            self.change(namespace, name, Op::Delete { last: None });
        }

        fn change(&mut self, namespace: &str, name: &str, op: Op) {
            self.revision += 1;
            CacheWriter(self.cache.clone()).committed(vec![Change {
                key: Key::new("", "pods", namespace, name),
                revision: self.revision,
                op,
            }]);
        }
    }

    #[test]
    fn a_scope_is_one_namespace_or_all() {
        let mut pods = Pods::new();
        for (namespace, name) in [("a", "x"), ("a-b", "x"), ("b", "x"), ("a", "y")] {
            pods.put(namespace, name, "web", "");
        }
        let names = |scope| {
            let entries = pods.shelf().all(&scope);
            entries
                .iter()
                .map(|e| format!("{}/{}", e.namespace(), e.name()))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(Scope::namespace("a")), ["a/x", "a/y"]);
        assert_eq!(names(Scope::namespace("c")), [""; 0]);
        assert_eq!(names(Scope::everything()).len(), 4);
        assert_eq!(pods.cache.revision(), 14);
    }
}
