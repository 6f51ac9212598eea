//! Events: what controllers tell people about objects, in `kubectl describe` and
//! `kubectl get events`.
//!
//! They are core/v1 events with a source, a count and the times of the first and last
//! occurrence, as kube-controller-manager writes them. kube-rs' `Recorder` is not used here: it
//! tells events apart without their message, so the steps of a rolling update (`Scaled up
//! replica set x from 0 to 1`, then `from 1 to 2`) would be counted as one and lost.
//!
//!     record() -> bounded channel -> one task -> API server
//!
//! Recording never waits: when the channel is full, the event is dropped and counted.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::debug;

use super::tasks::Tasks;

/// Events that wait to be written. More than this many at once are dropped.
const PENDING_LIMIT: usize = 8192;
/// Writes under way at one time.
const WRITES_AT_ONCE: usize = 16;
/// Events that a repetition is recognised of.
const REMEMBERED: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }
    }
}

/// Records events in the name of one component. Clones share the channel.
#[derive(Clone)]
pub struct EventRecorder {
    component: &'static str,
    pending: mpsc::Sender<Occurrence>,
    dropped: Arc<AtomicU64>,
}

struct Occurrence {
    component: &'static str,
    about: ObjectReference,
    severity: Severity,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

impl EventRecorder {
    /// Starts the task that writes events, and gives the recorder of `component`.
    pub fn start(client: Client, component: &'static str, tasks: &Tasks) -> Self {
        let (pending, occurrences) = mpsc::channel(PENDING_LIMIT);
        tasks.spawn(write_events(client, occurrences));
        Self {
            component,
            pending,
            dropped: Arc::default(),
        }
    }

    /// The recorder of another component, over the same task.
    pub fn named(&self, component: &'static str) -> Self {
        Self {
            component,
            ..self.clone()
        }
    }

    /// Records that something happened to `object`. Never waits.
    pub fn record<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.record_about(object.object_ref(&()), severity, reason, message);
    }

    /// As [`record`](Self::record), for an object that isn't at hand.
    pub fn record_about(
        &self,
        about: ObjectReference,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let occurrence = Occurrence {
            component: self.component,
            about,
            severity,
            reason,
            message: message.into(),
            at: Timestamp::now(),
        };
        if self.pending.try_send(occurrence).is_err() {
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            debug!(
                component = self.component,
                dropped, "too many events at once; dropped one"
            );
        }
    }
}

async fn write_events(client: Client, occurrences: mpsc::Receiver<Occurrence>) {
    let mut memory = Memory::default();
    ReceiverStream::new(occurrences)
        .map(|occurrence| (memory.count(&occurrence), occurrence))
        .map(|(seen, occurrence)| write_event(&client, seen, occurrence))
        .buffer_unordered(WRITES_AT_ONCE)
        .for_each(|()| async {})
        .await;
}

async fn write_event(client: &Client, seen: Seen, occurrence: Occurrence) {
    let namespace = event_namespace(&occurrence.about).to_string();
    let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
    if seen.count > 1 {
        let patch = json!({
            "count": seen.count,
            "lastTimestamp": Time(occurrence.at),
        });
        let patched = api
            .patch(&seen.name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match patched {
            // It has been removed for its age meanwhile, say: make it anew.
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            _ => return log_failure(patched.err(), &occurrence),
        }
    }
    let event = new_event(seen, namespace, &occurrence);
    let created = api.create(&PostParams::default(), &event).await;
    log_failure(created.err(), &occurrence);
}

fn log_failure(error: Option<kube::Error>, occurrence: &Occurrence) {
    if let Some(error) = error {
        debug!(
            %error,
            reason = occurrence.reason,
            object = occurrence.about.name,
            "could not record an event"
        );
    }
}

fn new_event(seen: Seen, namespace: String, occurrence: &Occurrence) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(seen.name),
            namespace: Some(namespace),
            ..Default::default()
        },
        involved_object: occurrence.about.clone(),
        reason: Some(occurrence.reason.into()),
        message: Some(occurrence.message.clone()),
        type_: Some(occurrence.severity.as_str().into()),
        count: Some(seen.count),
        first_timestamp: Some(Time(seen.first)),
        last_timestamp: Some(Time(occurrence.at)),
        source: Some(EventSource {
            component: Some(occurrence.component.into()),
            host: None,
        }),
        reporting_component: Some(occurrence.component.into()),
        ..Default::default()
    }
}

/// Events about objects of the whole cluster stand in the namespace `default`.
fn event_namespace(about: &ObjectReference) -> &str {
    about
        .namespace
        .as_deref()
        .filter(|namespace| !namespace.is_empty())
        .unwrap_or("default")
}

/// Which events were written lately, so that a repetition only raises a count.
#[derive(Default)]
struct Memory {
    seen: HashMap<Identity, Seen>,
}

#[derive(PartialEq, Eq, Hash)]
struct Identity {
    component: &'static str,
    kind: String,
    namespace: String,
    name: String,
    uid: String,
    severity: Severity,
    reason: &'static str,
    message: String,
}

#[derive(Clone, Debug, PartialEq)]
struct Seen {
    /// The event's own name.
    name: String,
    count: i32,
    first: Timestamp,
}

impl Memory {
    fn count(&mut self, occurrence: &Occurrence) -> Seen {
        if self.seen.len() >= REMEMBERED {
            // Forgetting all at once costs a few events that start to count from one again.
            self.seen.clear();
        }
        let about = &occurrence.about;
        let identity = Identity {
            component: occurrence.component,
            kind: about.kind.clone().unwrap_or_default(),
            namespace: about.namespace.clone().unwrap_or_default(),
            name: about.name.clone().unwrap_or_default(),
            uid: about.uid.clone().unwrap_or_default(),
            severity: occurrence.severity,
            reason: occurrence.reason,
            message: occurrence.message.clone(),
        };
        let seen = self.seen.entry(identity).or_insert_with(|| Seen {
            name: format!(
                "{}.{:x}",
                about.name.as_deref().unwrap_or_default(),
                occurrence.at.as_nanosecond()
            ),
            count: 0,
            first: occurrence.at,
        });
        seen.count += 1;
        seen.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(message: &str) -> Occurrence {
        Occurrence {
            component: "deployment-controller",
            about: ObjectReference {
                name: Some("web".into()),
                namespace: Some("default".into()),
                ..Default::default()
            },
            severity: Severity::Normal,
            reason: "ScalingReplicaSet",
            message: message.into(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn only_the_same_message_again_is_a_repetition() {
        let mut memory = Memory::default();
        let first = memory.count(&occurrence("Scaled up replica set web-1 from 0 to 1"));
        let other = memory.count(&occurrence("Scaled up replica set web-1 from 1 to 2"));
        let again = memory.count(&occurrence("Scaled up replica set web-1 from 0 to 1"));
        assert_eq!((first.count, other.count, again.count), (1, 1, 2));
        assert_eq!(first.name, again.name);
    }

    #[test]
    fn events_about_cluster_objects_stand_in_the_default_namespace() {
        let mut about = occurrence("").about;
        assert_eq!(event_namespace(&about), "default");
        about.namespace = Some(String::new());
        assert_eq!(event_namespace(&about), "default");
    }
}
