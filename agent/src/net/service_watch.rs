//! The cluster's Services and EndpointSlices, watched once for everything on this node that needs them.
//!
//! Observers are told of each change in the order in which the API has it, and of what is gone also when it vanished
//! while the watch was interrupted. They are called from one task: what they do has to be quick.

use std::collections::HashSet;
use std::hash::Hash;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt};
use serde::{Deserialize, Serialize};

use crate::reconnect::Reconnect;

/// A namespace and a name in it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
}

impl ObjectName {
    pub fn of<K: Resource>(object: &K) -> Self {
        Self {
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
        }
    }
}

/// Something is, or is not any more.
#[derive(Debug)]
pub enum Change {
    Service(Box<Service>),
    ServiceGone(ObjectName),
    Slice(Box<EndpointSlice>),
    SliceGone(ObjectName),
    /// All services and slices have been told at least once; comes again after each interruption.
    Complete,
}

/// Is told of changes.
pub type Observer = Box<dyn FnMut(&Change) + Send>;

/// Watches until it is dropped.
pub async fn run(client: Client, mut observers: Vec<Observer>) {
    let services = watch(
        Api::<Service>::all(client.clone()),
        watcher::Config::default(),
    );
    let slices = watch(
        Api::<EndpointSlice>::all(client),
        watcher::Config::default(),
    );
    let services = services.backoff(Reconnect::default()).map(Either::Service);
    let slices = slices.backoff(Reconnect::default()).map(Either::Slice);
    follow(stream::select(services, slices), |change| {
        for observer in &mut observers {
            observer(change);
        }
    })
    .await;
}

// Short-lived and moved once: its size does not matter.
#[allow(clippy::large_enum_variant)]
enum Either {
    Service(Result<Event<Service>, watcher::Error>),
    Slice(Result<Event<EndpointSlice>, watcher::Error>),
}

async fn follow(events: impl Stream<Item = Either>, mut tell: impl FnMut(&Change)) {
    let mut events = std::pin::pin!(events);
    let (mut services, mut slices) = (Known::new("services"), Known::new("endpointslices"));
    while let Some(event) = events.next().await {
        let listed = match event {
            Either::Service(event) => services.take(event, |change| {
                tell(&match change {
                    Seen::Present(service) => Change::Service(Box::new(service)),
                    Seen::Gone(name) => Change::ServiceGone(name),
                });
            }),
            Either::Slice(event) => slices.take(event, |change| {
                tell(&match change {
                    Seen::Present(slice) => Change::Slice(Box::new(slice)),
                    Seen::Gone(name) => Change::SliceGone(name),
                });
            }),
        };
        if listed && services.complete && slices.complete {
            tell(&Change::Complete);
        }
    }
}

enum Seen<K> {
    Present(K),
    Gone(ObjectName),
}

/// The names of one kind, to tell what is gone after a new list.
struct Known {
    kind: &'static str,
    names: HashSet<ObjectName>,
    listing: Option<HashSet<ObjectName>>,
    complete: bool,
    reported: bool,
}

impl Known {
    fn new(kind: &'static str) -> Self {
        Self {
            kind,
            names: HashSet::new(),
            listing: None,
            complete: false,
            reported: false,
        }
    }

    /// Whether a list was completed.
    fn take<K: Resource>(
        &mut self,
        event: Result<Event<K>, watcher::Error>,
        mut tell: impl FnMut(Seen<K>),
    ) -> bool {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if !std::mem::replace(&mut self.reported, true) {
                    tracing::warn!(kind = self.kind, %error, "lost a watch, trying again");
                }
                return false;
            }
        };
        // It begins to list before anybody has answered.
        self.reported &= matches!(event, Event::Init);
        match event {
            Event::Init => self.listing = Some(HashSet::new()),
            Event::InitApply(object) => {
                let name = ObjectName::of(&object);
                self.listing.get_or_insert_default().insert(name);
                tell(Seen::Present(object));
            }
            Event::InitDone => {
                let listed = self.listing.take().unwrap_or_default();
                for gone in self.names.difference(&listed) {
                    tell(Seen::Gone(gone.clone()));
                }
                self.names = listed;
                self.complete = true;
                return true;
            }
            Event::Apply(object) => {
                self.names.insert(ObjectName::of(&object));
                tell(Seen::Present(object));
            }
            Event::Delete(object) => {
                let name = ObjectName::of(&object);
                self.names.remove(&name);
                tell(Seen::Gone(name));
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str) -> Service {
        let object = json!({"metadata": {"namespace": "ns", "name": name}});
        serde_json::from_value(object).unwrap()
    }

    #[tokio::test]
    async fn tells_what_vanished_between_two_lists() {
        let events = [
            Event::Init,
            Event::InitApply(service("a")),
            Event::InitApply(service("b")),
            Event::InitDone,
            Event::Apply(service("c")),
            Event::Delete(service("a")),
            Event::Init,
            Event::InitApply(service("c")),
            Event::InitDone,
        ];
        let none = [Event::<EndpointSlice>::Init, Event::InitDone];
        let slices = stream::iter(none.map(|event| Either::Slice(Ok(event))));
        let services = stream::iter(events.map(|event| Either::Service(Ok(event))));
        let mut told = Vec::new();
        follow(slices.chain(services), |change| {
            told.push(match change {
                Change::Service(service) => format!("+{}", service.name_any()),
                Change::ServiceGone(name) => format!("-{}", name.name),
                other => format!("{other:?}"),
            });
        })
        .await;
        assert_eq!(
            told,
            ["+a", "+b", "Complete", "+c", "-a", "+c", "-b", "Complete"]
        );
    }
}
