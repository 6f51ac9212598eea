//! Watches: what changes in a selection, from a revision on.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch as notify;

use super::{Cache, Entry, Event, Scope, Selector, Shelf};
use crate::store::Revision;

/// Events handed out at once at most.
const BATCH: usize = 256;

/// Where a watch starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// With the objects that exist, as `Added` events.
    Now,
    /// With what came after the revision.
    After(Revision),
}

/// What a watcher is told.
#[derive(Debug, Clone)]
pub enum WatchEvent {
    Added(Bytes),
    Modified(Bytes),
    /// The object went, or left the selection: its last selected state at the revision of that.
    Deleted(Bytes),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    #[error("too old resource version: {wanted} ({oldest})")]
    Expired { wanted: Revision, oldest: Revision },
}

/// One watcher's place in a shelf's events.
pub struct Watch {
    cache: Arc<Cache>,
    shelf: Arc<Shelf>,
    scope: Scope,
    selector: Selector,
    /// Everything up to here has been handed out.
    cursor: Revision,
    changed: notify::Receiver<Revision>,
}

impl Watch {
    /// Opens a watch, and returns the objects it starts with.
    ///
    /// # Errors
    /// When the events after the wanted revision are not all known any more.
    pub fn open(
        cache: &Arc<Cache>,
        shelf: &Arc<Shelf>,
        scope: Scope,
        selector: Selector,
        start: Start,
    ) -> Result<(Self, Vec<Arc<Entry>>), WatchError> {
        // Subscribed before the state is read: what comes in between wakes it.
        let changed = shelf.changed.subscribe();
        let state = shelf.read();
        let (cursor, initial) = match start {
            Start::After(wanted) if wanted < state.floor => {
                let oldest = state.floor;
                return Err(WatchError::Expired { wanted, oldest });
            }
            Start::After(wanted) => (wanted, Vec::new()),
            Start::Now => {
                let selected = state.scoped(&scope).filter(|e| selector.matches(e));
                (
                    cache.revision().max(state.last),
                    selected.cloned().collect(),
                )
            }
        };
        drop(state);
        let watch = Self {
            cache: cache.clone(),
            shelf: shelf.clone(),
            scope,
            selector,
            cursor,
            changed,
        };
        Ok((watch, initial))
    }

    /// Waits for changes of the selection and returns them, at least one.
    ///
    /// # Errors
    /// When this watcher was so slow that events it has not seen were dropped.
    pub async fn next(&mut self) -> Result<Vec<WatchEvent>, WatchError> {
        loop {
            self.changed.borrow_and_update();
            let (events, more) = self.read()?;
            if !events.is_empty() {
                return Ok(events);
            }
            if !more && self.changed.changed().await.is_err() {
                // The shelf holds the sender and we hold the shelf.
                std::future::pending::<()>().await;
            }
        }
    }

    /// What is there to hand out now, without waiting.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub fn ready(&mut self) -> Result<Vec<WatchEvent>, WatchError> {
        let mut all = Vec::new();
        loop {
            let (events, more) = self.read()?;
            all.extend(events);
            if !more {
                return Ok(all);
            }
        }
    }

    /// A revision up to which this watcher has been told everything, together with what he had
    /// yet to be told: a bookmark.
    ///
    /// # Errors
    /// As [`Watch::next`].
    pub fn bookmark(&mut self) -> Result<(Vec<WatchEvent>, Revision), WatchError> {
        // Read first: all up to it has been applied, so the events include it.
        let revision = self.cache.revision();
        let events = self.ready()?;
        self.cursor = self.cursor.max(revision);
        Ok((events, self.cursor))
    }

    /// Up to where this watcher has been told everything.
    pub fn revision(&self) -> Revision {
        self.cursor
    }

    /// The next batch, and whether there may be more behind it.
    fn read(&mut self) -> Result<(Vec<WatchEvent>, bool), WatchError> {
        let events: Vec<Event> = {
            let state = self.shelf.read();
            if self.cursor < state.floor {
                return Err(WatchError::Expired {
                    wanted: self.cursor,
                    oldest: state.floor,
                });
            }
            let cursor = self.cursor;
            let from = state
                .recent
                .partition_point(|event| event.entry.revision <= cursor);
            state.recent.range(from..).take(BATCH).cloned().collect()
        };
        let more = events.len() == BATCH;
        if let Some(last) = events.last() {
            self.cursor = last.entry.revision;
        }
        let told = events.iter().filter_map(|event| self.tell(event)).collect();
        Ok((told, more))
    }

    /// What an event means for this selection.
    fn tell(&self, event: &Event) -> Option<WatchEvent> {
        if !self.scope.contains(&event.entry) {
            return None;
        }
        let selected = |entry: &Arc<Entry>| self.selector.matches(entry);
        let before = event.previous.as_ref().is_some_and(selected);
        let after = !event.deleted && selected(&event.entry);
        match (before, after) {
            (false, false) => None,
            (false, true) => Some(WatchEvent::Added(event.entry.bytes.clone())),
            (true, true) => Some(WatchEvent::Modified(event.entry.bytes.clone())),
            (true, false) if event.deleted => Some(WatchEvent::Deleted(event.entry.bytes.clone())),
            (true, false) => {
                let previous = event.previous.as_ref()?;
                let last = previous.restamped(event.entry.revision);
                Some(WatchEvent::Deleted(last.bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Pods;
    use super::*;

    fn said(events: &[WatchEvent]) -> Vec<String> {
        let describe = |what: &str, bytes: &Bytes| {
            let object: serde_json::Value = serde_json::from_slice(bytes).unwrap();
            format!(
                "{what} {} {} {}",
                object["metadata"]["name"].as_str().unwrap(),
                object["metadata"]["labels"]["app"].as_str().unwrap(),
                object["metadata"]["resourceVersion"].as_str().unwrap(),
            )
        };
        events
            .iter()
            .map(|event| match event {
                WatchEvent::Added(bytes) => describe("+", bytes),
                WatchEvent::Modified(bytes) => describe("~", bytes),
                WatchEvent::Deleted(bytes) => describe("-", bytes),
            })
            .collect()
    }

    fn watch(pods: &Pods, selector: &str, start: Start) -> Result<(Watch, usize), WatchError> {
        let selector = Selector::parse(selector, "", &[]).unwrap();
        Watch::open(
            &pods.cache,
            &pods.shelf(),
            Scope::namespace("ns"),
            selector,
            start,
        )
        .map(|(watch, initial)| (watch, initial.len()))
    }

    #[tokio::test]
    async fn a_selection_is_entered_changed_and_left() {
        let mut pods = Pods::new();
        pods.put("ns", "a", "web", "");
        let (mut watch, initial) = watch(&pods, "app=web", Start::Now).unwrap();
        assert_eq!(initial, 1);
        pods.put("ns", "b", "db", "");
        pods.put("ns", "b", "web", "");
        pods.put("other", "c", "web", "");
        pods.put("ns", "a", "web", "n");
        pods.put("ns", "a", "db", "n");
        pods.delete("ns", "a");
        pods.delete("ns", "b");
        let events = watch.next().await.unwrap();
        assert_eq!(
            said(&events),
            ["+ b web 13", "~ a web 15", "- a web 16", "- b web 18"]
        );
    }

    #[tokio::test]
    async fn a_watch_goes_on_from_a_revision() {
        let mut pods = Pods::new();
        pods.put("ns", "a", "web", "");
        pods.put("ns", "b", "web", "");
        let (mut watch, initial) = watch(&pods, "", Start::After(11)).unwrap();
        assert_eq!(initial, 0);
        assert_eq!(said(&watch.next().await.unwrap()), ["+ b web 12"]);
        let waiting = tokio::spawn(async move { watch.next().await });
        pods.put("ns", "c", "web", "");
        let events = waiting.await.unwrap().unwrap();
        assert_eq!(said(&events), ["+ c web 13"]);
    }

    #[tokio::test]
    async fn a_bookmark_covers_what_other_resources_did() {
        let mut pods = Pods::new();
        let (mut watch, _) = watch(&pods, "app=web", Start::Now).unwrap();
        pods.put("ns", "a", "web", "");
        pods.put("ns", "b", "db", "");
        let (events, revision) = watch.bookmark().unwrap();
        assert_eq!((said(&events), revision), (vec!["+ a web 11".into()], 12));
    }

    #[tokio::test]
    async fn what_was_forgotten_can_not_be_watched() {
        let mut pods = Pods::new();
        assert!(matches!(
            watch(&pods, "", Start::After(9)),
            Err(WatchError::Expired {
                wanted: 9,
                oldest: 10
            })
        ));
        let (mut slow, _) = watch(&pods, "", Start::Now).unwrap();
        for _ in 0..super::super::RECENT_EVENTS + 10 {
            pods.put("ns", "a", "web", "");
        }
        assert!(matches!(slow.next().await, Err(WatchError::Expired { .. })));
    }
}
