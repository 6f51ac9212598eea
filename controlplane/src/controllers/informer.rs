//! An informer: one list and watch of a kind, and one copy of it in memory, shared by all
//! controllers and the scheduler.
//!
//!     watch stream -> trim -> store (+ indexes) -> handlers -> work queues
//!
//! The handlers of a kind run one after the other in the informer's task, in the order of the
//! watch, after the store has the change. They only look at what changed and add keys to work
//! queues, so an event reaches its reconcile without a pause. A handler that subscribes late
//! is first told of everything that is in the store.

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use futures::{StreamExt, pin_mut};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_resource};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::debug;

/// The name of an object within its kind. Clones are cheap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Empty for an object that belongs to the whole cluster.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ObjectKey {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    pub fn cluster(name: &str) -> Self {
        Self::new("", name)
    }

    pub fn of<K: Resource>(object: &K) -> Self {
        let meta = object.meta();
        Self::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What happened to an object.
pub enum Change<K> {
    Added(Arc<K>),
    Updated { old: Arc<K>, new: Arc<K> },
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The object as it is now, or as it was last.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Added(object) | Change::Deleted(object) => object,
            Change::Updated { new, .. } => new,
        }
    }
}

/// Which objects an [`Index`] puts together.
pub type IndexKey<K> = fn(&K) -> Option<&str>;

/// The ways in which a store can be asked, beside by name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Index {
    Namespace,
    /// By the uid of the controller that owns the object.
    Controller,
    /// Those that no controller owns, by namespace.
    Orphan,
    /// By the node that a pod is bound to.
    Node,
    /// Services by the first value of their selector.
    Selector,
    /// EndpointSlices by the name of their Service, whatever its namespace.
    Service,
    /// DrillTasks by the name of their drill.
    Drill,
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

/// The shared view of all objects of one kind. Clones share it.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self {
            shared: self.shared.clone(),
        }
    }
}

struct Shared<K> {
    store: RwLock<Store<K>>,
    /// Held while a change is told, so that a late subscriber misses and repeats nothing.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

struct Store<K> {
    objects: HashMap<ObjectKey, Arc<K>>,
    indexes: Vec<IndexTable<K>>,
}

struct IndexTable<K> {
    index: Index,
    key: IndexKey<K>,
    members: HashMap<Arc<str>, HashMap<ObjectKey, Arc<K>>>,
}

impl<K> Informer<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// An informer that nothing feeds yet: see [`run`](Self::run).
    pub fn new(indexes: &[(Index, IndexKey<K>)]) -> Self {
        Self {
            shared: Arc::new(Shared {
                store: RwLock::new(Store {
                    objects: HashMap::new(),
                    indexes: indexes
                        .iter()
                        .map(|(index, key)| IndexTable {
                            index: *index,
                            key: *key,
                            members: HashMap::new(),
                        })
                        .collect(),
                }),
                handlers: Mutex::new(Vec::new()),
                synced: watch::Sender::new(false),
            }),
        }
    }

    /// Lists and watches until it is dropped, through every interruption of the watch.
    pub async fn run(&self, api: Api<K>, config: watcher::Config) {
        let stream = watch_resource(api, config).default_backoff();
        pin_mut!(stream);
        let mut listed: Option<HashMap<ObjectKey, K>> = None;
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Init) => listed = Some(HashMap::new()),
                Ok(Event::InitApply(object)) => {
                    listed
                        .get_or_insert_default()
                        .insert(ObjectKey::of(&object), object);
                }
                Ok(Event::InitDone) => {
                    self.replace_all(listed.take().unwrap_or_default());
                    self.shared.synced.send_replace(true);
                }
                Ok(Event::Apply(object)) => self.apply(object),
                Ok(Event::Delete(object)) => self.delete(&ObjectKey::of(&object)),
                Err(error) => debug!(%error, "watch interrupted; it resumes after a backoff"),
            }
        }
    }

    /// Calls `handler` for every object that is there and every change to come. It runs in the
    /// informer's task: it must not block, nor subscribe.
    pub fn subscribe(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        let mut handlers = self.handlers();
        for object in self.list() {
            handler(&Change::Added(object));
        }
        handlers.push(Box::new(handler));
    }

    /// Waits until the first list is in the store.
    pub async fn synced(&self) {
        // The sender lives as long as `self`, so this can't fail.
        let _ = self.shared.synced.subscribe().wait_for(|done| *done).await;
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.read(|store| store.objects.get(key).cloned())
    }

    /// Everything, in no order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.read(|store| store.objects.values().cloned().collect())
    }

    pub fn len(&self) -> usize {
        self.read(|store| store.objects.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The objects whose `index` key is `key`, in no order.
    pub fn by_index(&self, index: Index, key: &str) -> Vec<Arc<K>> {
        self.read(|store| {
            let table = store.indexes.iter().find(|table| table.index == index);
            debug_assert!(table.is_some(), "no index {index:?} for this kind");
            table
                .and_then(|table| table.members.get(key))
                .map(|members| members.values().cloned().collect())
                .unwrap_or_default()
        })
    }

    /// Puts an object there as if it had been listed.
    #[cfg(test)]
    pub(crate) fn put(&self, object: K) {
        self.apply(object);
    }

    fn apply(&self, object: K) {
        let handlers = self.handlers();
        self.apply_and_tell(object, &handlers);
    }

    fn delete(&self, key: &ObjectKey) {
        let handlers = self.handlers();
        self.delete_and_tell(key, &handlers);
    }

    fn replace_all(&self, listed: HashMap<ObjectKey, K>) {
        let handlers = self.handlers();
        let gone: Vec<ObjectKey> = self.read(|store| {
            let known = store.objects.keys();
            known
                .filter(|key| !listed.contains_key(key))
                .cloned()
                .collect()
        });
        for key in gone {
            self.delete_and_tell(&key, &handlers);
        }
        for object in listed.into_values() {
            self.apply_and_tell(object, &handlers);
        }
    }

    fn apply_and_tell(&self, mut object: K, handlers: &[Handler<K>]) {
        // Nobody here reads who set which field, and it is the larger half of many objects.
        object.meta_mut().managed_fields = None;
        let key = ObjectKey::of(&object);
        let new = Arc::new(object);
        let old = self.write(|store| store.insert(key, new.clone()));
        let change = match old {
            None => Change::Added(new),
            Some(old) if old.meta().resource_version == new.meta().resource_version => return,
            Some(old) if old.meta().uid != new.meta().uid => {
                // Deleted and made again while the watch was interrupted.
                tell(handlers, &Change::Deleted(old));
                Change::Added(new)
            }
            Some(old) => Change::Updated { old, new },
        };
        tell(handlers, &change);
    }

    fn delete_and_tell(&self, key: &ObjectKey, handlers: &[Handler<K>]) {
        if let Some(old) = self.write(|store| store.remove(key)) {
            tell(handlers, &Change::Deleted(old));
        }
    }

    fn read<T>(&self, read: impl FnOnce(&Store<K>) -> T) -> T {
        read(
            &self
                .shared
                .store
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn write<T>(&self, write: impl FnOnce(&mut Store<K>) -> T) -> T {
        write(
            &mut self
                .shared
                .store
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    fn handlers(&self) -> MutexGuard<'_, Vec<Handler<K>>> {
        self.shared
            .handlers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell<K>(handlers: &[Handler<K>], change: &Change<K>) {
    for handler in handlers {
        handler(change);
    }
}

impl<K> Store<K> {
    fn insert(&mut self, key: ObjectKey, object: Arc<K>) -> Option<Arc<K>> {
        let old = self.objects.insert(key.clone(), object.clone());
        for table in &mut self.indexes {
            if let Some(old) = &old {
                table.remove(&key, old);
            }
            if let Some(value) = (table.key)(&object) {
                if let Some(members) = table.members.get_mut(value) {
                    members.insert(key.clone(), object.clone());
                } else {
                    let members = HashMap::from([(key.clone(), object.clone())]);
                    table.members.insert(value.into(), members);
                }
            }
        }
        old
    }

    fn remove(&mut self, key: &ObjectKey) -> Option<Arc<K>> {
        let old = self.objects.remove(key)?;
        for table in &mut self.indexes {
            table.remove(key, &old);
        }
        Some(old)
    }
}

impl<K> IndexTable<K> {
    fn remove(&mut self, key: &ObjectKey, old: &K) {
        let Some(value) = (self.key)(old) else { return };
        if let Some(members) = self.members.get_mut(value) {
            members.remove(key);
            if members.is_empty() {
                self.members.remove(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn namespace_of(map: &ConfigMap) -> Option<&str> {
        map.metadata.namespace.as_deref()
    }

    fn config_map(name: &str, version: &str, uid: &str) -> ConfigMap {
        ConfigMap {
            metadata: ObjectMeta {
                namespace: Some("default".into()),
                name: Some(name.into()),
                resource_version: Some(version.into()),
                uid: Some(uid.into()),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    fn recording(informer: &Informer<ConfigMap>) -> Arc<Mutex<Vec<String>>> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        informer.subscribe(move |change| {
            let name = change.object().metadata.name.clone().unwrap();
            let verb = match change {
                Change::Added(_) => "added",
                Change::Updated { .. } => "updated",
                Change::Deleted(_) => "deleted",
            };
            log.lock().unwrap().push(format!("{verb} {name}"));
        });
        seen
    }

    #[test]
    fn changes_are_told_in_order_and_late_subscribers_hear_what_is_there() {
        let informer = Informer::<ConfigMap>::new(&[(Index::Namespace, namespace_of)]);
        let early = recording(&informer);
        informer.apply(config_map("a", "1", "u1"));
        informer.apply(config_map("a", "2", "u1"));
        let late = recording(&informer);
        informer.delete(&ObjectKey::new("default", "a"));
        assert_eq!(
            *early.lock().unwrap(),
            ["added a", "updated a", "deleted a"]
        );
        assert_eq!(*late.lock().unwrap(), ["added a", "deleted a"]);
        assert!(informer.by_index(Index::Namespace, "default").is_empty());
    }

    #[test]
    fn a_list_after_an_interruption_tells_only_the_difference() {
        let informer = Informer::<ConfigMap>::new(&[(Index::Namespace, namespace_of)]);
        for (name, uid) in [("same", "u1"), ("gone", "u2"), ("remade", "u3")] {
            informer.apply(config_map(name, "1", uid));
        }
        let seen = recording(&informer);
        seen.lock().unwrap().clear();
        let listed = [
            config_map("same", "1", "u1"),
            config_map("remade", "9", "u4"),
        ];
        informer.replace_all(listed.into_iter().map(|o| (ObjectKey::of(&o), o)).collect());
        assert_eq!(
            *seen.lock().unwrap(),
            ["deleted gone", "deleted remade", "added remade"]
        );
        assert_eq!(informer.by_index(Index::Namespace, "default").len(), 2);
    }
}
