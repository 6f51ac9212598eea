//! The identity of every object in the cluster, of every kind that is served.
//!
//!     discovery -> one metadata-only watch a kind -> observers (garbage collector, namespaces)
//!
//! Kinds that appear while the control plane runs (custom resources) are found when their
//! definition is seen. Nothing but identities is kept here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::PartialObjectMeta;
use kube::core::discovery::{ApiCapabilities, ApiResource, Scope, verbs};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_resource};
use kube::{Api, Client, Discovery};
use tokio::sync::{Notify, watch};
use tracing::{debug, warn};

use super::informer::ObjectKey;
use super::tasks::Tasks;

const DISCOVERY_RETRY: Duration = Duration::from_secs(1);

/// The object of any kind, of which only the metadata is read.
pub(super) type AnyObject = PartialObjectMeta<kube::core::DynamicObject>;

/// A kind that is served and can be listed, watched and deleted.
#[derive(Debug, PartialEq)]
pub(super) struct Kind {
    pub(super) resource: ApiResource,
    pub(super) is_namespaced: bool,
}

impl Kind {
    /// As `deployments.apps`.
    pub(super) fn qualified(&self) -> String {
        if self.resource.group.is_empty() {
            self.resource.plural.clone()
        } else {
            format!("{}.{}", self.resource.plural, self.resource.group)
        }
    }

    /// Access to the objects of this kind in `namespace`, or of the cluster.
    pub(super) fn api(&self, client: &Client, namespace: &str) -> Api<AnyObject> {
        if self.is_namespaced && !namespace.is_empty() {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            Api::all_with(client.clone(), &self.resource)
        }
    }
}

/// Which object, for as long as it lives.
#[derive(Debug, PartialEq)]
pub(super) struct Identity {
    pub(super) kind: Arc<Kind>,
    pub(super) key: ObjectKey,
    pub(super) uid: Arc<str>,
}

/// What a watch says of an object.
pub(super) enum Observation<'a> {
    Seen(Arc<Identity>, &'a ObjectMeta),
    Gone(Arc<Identity>),
}

type Observer = Box<dyn Fn(&Observation<'_>) + Send + Sync>;

/// Watches every kind. Clones share the watches.
#[derive(Clone)]
pub(super) struct Monitor {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    kinds: Mutex<HashMap<String, Watched>>,
    observers: Vec<Observer>,
    /// Told when kinds may have come or gone.
    changed: Notify,
    /// The number of kinds whose first list is still missing; `None` before the discovery.
    missing: watch::Sender<Option<usize>>,
}

struct Watched {
    kind: Arc<Kind>,
    tasks: Tasks,
}

impl Monitor {
    /// Starts to watch everything, and tells each of `observers` of it.
    pub(super) fn start(client: Client, observers: Vec<Observer>, tasks: &Tasks) -> Self {
        let monitor = Self {
            shared: Arc::new(Shared {
                client,
                kinds: Mutex::default(),
                observers,
                changed: Notify::new(),
                missing: watch::Sender::new(None),
            }),
        };
        let (this, owner) = (monitor.clone(), tasks.clone());
        tasks.supervise("discovery of kinds", move || {
            let (this, owner) = (this.clone(), owner.clone());
            async move { this.discover(&owner).await }
        });
        monitor
    }

    /// Waits until every kind has been listed once.
    pub(super) async fn synced(&self) {
        let mut missing = self.shared.missing.subscribe();
        // The sender lives as long as `self`, so this can't fail.
        let _ = missing.wait_for(|missing| *missing == Some(0)).await;
    }

    /// Every kind that is watched.
    pub(super) fn kinds(&self) -> Vec<Arc<Kind>> {
        self.kinds_map().values().map(|w| w.kind.clone()).collect()
    }

    /// The kind that an owner reference names. Versions don't matter: an object is the same in
    /// each.
    pub(super) fn find(&self, api_version: &str, kind: &str) -> Option<Arc<Kind>> {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let kinds = self.kinds_map();
        let mut kinds = kinds.values().map(|watched| &watched.kind);
        kinds
            .find(|known| known.resource.group == group && known.resource.kind == kind)
            .cloned()
    }

    async fn discover(&self, tasks: &Tasks) {
        loop {
            match Discovery::new(self.shared.client.clone()).run().await {
                Ok(discovery) => {
                    let served = discovery
                        .groups()
                        .flat_map(|group| group.recommended_resources());
                    self.watch_kinds(served.filter_map(watchable).collect(), tasks);
                    self.shared.changed.notified().await;
                }
                Err(error) => {
                    warn!(%error, "could not discover what is served; trying again");
                    tokio::time::sleep(DISCOVERY_RETRY).await;
                }
            }
        }
    }

    fn watch_kinds(&self, served: Vec<Kind>, tasks: &Tasks) {
        let mut kinds = self.kinds_map();
        kinds.retain(|_, watched| {
            let is_served = served.contains(&watched.kind);
            if !is_served {
                watched.tasks.cancel();
            }
            is_served
        });
        let new: Vec<Kind> = served
            .into_iter()
            .filter(|kind| !kinds.contains_key(&kind.qualified()))
            .collect();
        self.shared.missing.send_modify(|missing| {
            missing.replace(missing.unwrap_or(0) + new.len());
        });
        for kind in new {
            let kind = Arc::new(kind);
            let watched = Watched {
                kind: kind.clone(),
                tasks: Tasks::child_of(tasks),
            };
            let this = self.clone();
            let name = format!("metadata of {}", kind.qualified());
            let key = kind.qualified();
            watched.tasks.supervise(name, move || {
                let (this, kind) = (this.clone(), kind.clone());
                async move { this.watch(kind).await }
            });
            kinds.insert(key, watched);
        }
    }

    async fn watch(&self, kind: Arc<Kind>) {
        let api = kind.api(&self.shared.client, "");
        let stream = watch_resource(api, watcher::Config::default()).default_backoff();
        pin_mut!(stream);
        let mut known: HashMap<Arc<str>, Arc<Identity>> = HashMap::new();
        let mut listed: HashMap<Arc<str>, Arc<Identity>> = HashMap::new();
        let mut is_first = true;
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(object)) => {
                    let identity = identify(&kind, &object.metadata, &known);
                    self.tell(&Observation::Seen(identity.clone(), &object.metadata));
                    listed.insert(identity.uid.clone(), identity);
                }
                Ok(Event::InitDone) => {
                    let before = std::mem::replace(&mut known, std::mem::take(&mut listed));
                    for (uid, identity) in before {
                        if !known.contains_key(&uid) {
                            self.tell(&Observation::Gone(identity));
                        }
                    }
                    if std::mem::take(&mut is_first) {
                        self.shared.missing.send_modify(|missing| {
                            *missing = missing.map(|missing| missing.saturating_sub(1));
                        });
                    }
                }
                Ok(Event::Apply(object)) => {
                    let identity = identify(&kind, &object.metadata, &known);
                    self.tell(&Observation::Seen(identity.clone(), &object.metadata));
                    known.insert(identity.uid.clone(), identity);
                    self.note_definition(&kind);
                }
                Ok(Event::Delete(object)) => {
                    let identity = identify(&kind, &object.metadata, &known);
                    known.remove(&identity.uid);
                    self.tell(&Observation::Gone(identity));
                    self.note_definition(&kind);
                }
                Err(error) => {
                    debug!(kind = kind.qualified(), %error, "watch interrupted");
                }
            }
        }
    }

    /// A definition that changes may bring or end a kind.
    fn note_definition(&self, kind: &Kind) {
        if kind.resource.kind == "CustomResourceDefinition" {
            self.shared.changed.notify_one();
        }
    }

    fn tell(&self, observation: &Observation<'_>) {
        for observer in &self.shared.observers {
            observer(observation);
        }
    }

    fn kinds_map(&self) -> MutexGuard<'_, HashMap<String, Watched>> {
        self.shared
            .kinds
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn watchable((resource, capabilities): (ApiResource, ApiCapabilities)) -> Option<Kind> {
    let can = |verb| capabilities.supports_operation(verb);
    // Events own nothing, are owned by nothing, and are many.
    let is_event = resource.kind == "Event";
    let is_useful = can(verbs::LIST) && can(verbs::WATCH) && can(verbs::DELETE) && !is_event;
    is_useful.then_some(Kind {
        is_namespaced: capabilities.scope == Scope::Namespaced,
        resource,
    })
}

fn identify(
    kind: &Arc<Kind>,
    meta: &ObjectMeta,
    known: &HashMap<Arc<str>, Arc<Identity>>,
) -> Arc<Identity> {
    let uid = meta.uid.as_deref().unwrap_or_default();
    if let Some(identity) = known.get(uid) {
        return identity.clone();
    }
    Arc::new(Identity {
        kind: kind.clone(),
        key: ObjectKey::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        ),
        uid: uid.into(),
    })
}
