//! Removes events an hour after they were last written.
//!
//! Only the events' names are kept here, with the time of each one's end.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use kube::api::DeleteParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event as WatchEvent};
use kube::runtime::{WatchStreamExt, watcher as watch_resource};
use kube::{Api, Client};
use tokio::time::Instant;
use tracing::debug;

use super::informer::ObjectKey;
use super::tasks::Tasks;

/// How long kube-apiserver keeps events by default.
const TIME_TO_LIVE: Duration = Duration::from_secs(3600);

pub(super) fn start(client: Client, tasks: &Tasks) {
    tasks.supervise("event-ttl", move || run(client.clone()));
}

async fn run(client: Client) {
    let api: Api<PartialObjectMeta<Event>> = Api::all(client.clone());
    let mut events = pin!(watch_resource(api, watcher::Config::default()).default_backoff());
    let mut ends = Ends::default();
    loop {
        let next = ends.next();
        let expired = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(event)) => ends.observe(event),
                Some(Err(error)) => debug!(%error, "watch of events interrupted"),
                None => return,
            },
            () = expired => {
                for key in ends.take_due(Instant::now()) {
                    remove(&client, &key).await;
                }
            }
        }
    }
}

async fn remove(client: &Client, key: &ObjectKey) {
    let api: Api<Event> = Api::namespaced(client.clone(), &key.namespace);
    match api.delete(&key.name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => {}
        Err(error) => debug!(event = %key, %error, "could not remove an old event"),
        Ok(_) => {}
    }
}

/// When each event ends.
#[derive(Default)]
struct Ends {
    at: HashMap<ObjectKey, Instant>,
    /// May hold outdated entries: `at` is what counts.
    queue: BinaryHeap<Reverse<(Instant, ObjectKey)>>,
}

impl Ends {
    fn observe(&mut self, event: WatchEvent<PartialObjectMeta<Event>>) {
        match event {
            WatchEvent::InitApply(event) => {
                // When it was last written isn't known: its age is that of its creation.
                let created = event.metadata.creation_timestamp.as_ref();
                let age =
                    created.map_or(0, |time| Timestamp::now().as_second() - time.0.as_second());
                let left = TIME_TO_LIVE.saturating_sub(Duration::from_secs(age.max(0) as u64));
                self.set(ObjectKey::of(&event), Instant::now() + left);
            }
            WatchEvent::Apply(event) => {
                self.set(ObjectKey::of(&event), Instant::now() + TIME_TO_LIVE);
            }
            WatchEvent::Delete(event) => {
                self.at.remove(&ObjectKey::of(&event));
            }
            WatchEvent::Init => {
                self.at.clear();
                self.queue.clear();
            }
            WatchEvent::InitDone => {}
        }
    }

    fn set(&mut self, key: ObjectKey, at: Instant) {
        self.at.insert(key.clone(), at);
        self.queue.push(Reverse((at, key)));
    }

    fn next(&self) -> Option<Instant> {
        self.queue.peek().map(|Reverse((at, _))| *at)
    }

    fn take_due(&mut self, now: Instant) -> Vec<ObjectKey> {
        let mut due = Vec::new();
        while self.next().is_some_and(|at| at <= now) {
            let Some(Reverse((at, key))) = self.queue.pop() else {
                break;
            };
            if self.at.get(&key) == Some(&at) {
                self.at.remove(&key);
                due.push(key);
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_event_that_is_written_again_lives_longer() {
        let mut ends = Ends::default();
        let event = |name: &str| {
            let mut event: PartialObjectMeta<Event> = PartialObjectMeta::default();
            event.metadata.name = Some(name.into());
            event
        };
        ends.observe(WatchEvent::Apply(event("once")));
        ends.observe(WatchEvent::Apply(event("twice")));
        tokio::time::advance(Duration::from_secs(1800)).await;
        ends.observe(WatchEvent::Apply(event("twice")));
        tokio::time::advance(Duration::from_secs(1801)).await;
        let due = ends.take_due(Instant::now());
        assert_eq!(due, [ObjectKey::cluster("once")]);
        assert!(ends.next().is_some());
    }
}
