//! Events about pods and the node, as the kubelet records them.
//!
//! Recording never waits: events go through a bounded queue to one task, which writes core/v1
//! events the way client-go's recorder does. A repeated event (same object, container, reason and
//! message) raises the count of the one that exists, so `kubectl describe` says `x3 over 5m`.
//! When the queue is full or the API is away, events are dropped: they are advice, not state.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

use super::status::seconds;

/// Events that may wait to be written.
const QUEUE: usize = 1024;
/// Events remembered to count repetitions, as many as client-go keeps.
const REMEMBERED: usize = 4096;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Occurrence {
    pub about: ObjectReference,
    pub severity: Severity,
    pub reason: &'static str,
    pub message: String,
}

/// Where events are handed in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Occurrence>,
}

impl Events {
    /// A queue, and the end that [`write`] takes events from.
    pub fn queue() -> (Self, mpsc::Receiver<Occurrence>) {
        let (queue, events) = mpsc::channel(QUEUE);
        (Self { queue }, events)
    }

    /// Records an event about a pod.
    pub fn pod(
        &self,
        pod: &Pod,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.record(pod_reference(pod, None), severity, reason, message.into());
    }

    /// Records an event about one of a pod's containers; `field` is its path in the pod's
    /// declaration, such as `spec.containers{web}`.
    pub fn container(
        &self,
        pod: &Pod,
        field: &str,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.record(
            pod_reference(pod, Some(field)),
            severity,
            reason,
            message.into(),
        );
    }

    /// Records an event about any object.
    pub fn record(
        &self,
        about: ObjectReference,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        let occurrence = Occurrence {
            about,
            severity,
            reason,
            message,
        };
        if self.queue.try_send(occurrence).is_err() {
            tracing::debug!(reason, "event dropped: the queue is full");
        }
    }
}

fn pod_reference(pod: &Pod, field: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: field.map(str::to_owned),
    }
}

/// Writes queued events until every [`Events`] is dropped.
pub async fn write(client: Client, node_name: String, mut queue: mpsc::Receiver<Occurrence>) {
    let mut known: HashMap<Key, Known> = HashMap::new();
    while let Some(occurrence) = queue.recv().await {
        if known.len() >= REMEMBERED {
            forget_oldest(&mut known);
        }
        let namespace = occurrence.about.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(client.clone(), namespace);
        let key = Key::of(&occurrence);
        if let Err(error) = put(&api, &node_name, &occurrence, known.entry(key.clone())).await {
            known.remove(&key);
            tracing::debug!(%error, reason = occurrence.reason, "event not written");
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    uid: Option<String>,
    field: Option<String>,
    severity: Severity,
    reason: &'static str,
    message: String,
}

impl Key {
    fn of(it: &Occurrence) -> Self {
        Self {
            uid: it.about.uid.clone(),
            field: it.about.field_path.clone(),
            severity: it.severity,
            reason: it.reason,
            message: it.message.clone(),
        }
    }
}

struct Known {
    name: String,
    count: i32,
    last: Timestamp,
}

fn forget_oldest(known: &mut HashMap<Key, Known>) {
    let mut times: Vec<_> = known.values().map(|k| k.last).collect();
    times.sort_unstable();
    let middle = times[times.len() / 2];
    known.retain(|_, k| k.last > middle);
}

async fn put(
    api: &Api<Event>,
    node_name: &str,
    it: &Occurrence,
    entry: std::collections::hash_map::Entry<'_, Key, Known>,
) -> Result<(), kube::Error> {
    use std::collections::hash_map::Entry;
    let now = Timestamp::now();
    match entry {
        Entry::Occupied(mut entry) => {
            let known = entry.get_mut();
            known.count += 1;
            known.last = now;
            let patch = json!({"count": known.count, "lastTimestamp": seconds(now)});
            let name = known.name.clone();
            api.patch(&name, &PatchParams::default(), &Patch::Merge(patch))
                .await?;
        }
        Entry::Vacant(entry) => {
            let event = new_event(node_name, it, seconds(now), now);
            let name = event.metadata.name.clone().unwrap_or_default();
            entry.insert(Known {
                name,
                count: 1,
                last: now,
            });
            api.create(&PostParams::default(), &event).await?;
        }
    }
    Ok(())
}

fn new_event(node_name: &str, it: &Occurrence, at: Time, now: Timestamp) -> Event {
    let about = &it.about;
    let name = about.name.as_deref().unwrap_or_default();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(about.namespace.clone().unwrap_or_else(|| "default".into())),
            ..ObjectMeta::default()
        },
        involved_object: about.clone(),
        reason: Some(it.reason.to_owned()),
        message: Some(it.message.clone()),
        type_: Some(format!("{:?}", it.severity)),
        source: Some(EventSource {
            component: Some("kubelet".into()),
            host: Some(node_name.to_owned()),
        }),
        reporting_component: Some("kubelet".into()),
        reporting_instance: Some(node_name.to_owned()),
        count: Some(1),
        first_timestamp: Some(at.clone()),
        last_timestamp: Some(at),
        ..Event::default()
    }
}
