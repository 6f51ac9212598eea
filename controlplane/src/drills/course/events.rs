//! The cluster's Events while a drill runs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Event;
use skiff_dev::EventCount;

use super::{Course, Moment};

/// Different Events that are kept of one drill.
const KEPT: usize = 1000;
/// Of them, those that the report tells.
const TOLD: usize = 100;
/// And those that have a place in the timeline.
const SHOWN: usize = 100;
/// Longer messages are cut.
const MESSAGE: usize = 200;

/// Every Event, whomever it is about: a pod's Event may come before the pod.
#[derive(Debug, Default)]
pub(super) struct EventBook {
    /// By the Event's own uid.
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// How often it had happened when the drill began.
    before: i64,
    count: i64,
    first: Timestamp,
    about: About,
    reason: String,
    message: String,
}

#[derive(Debug)]
struct About {
    uid: String,
    /// As `pod/web-1`.
    object: String,
}

impl Course {
    /// Notes an Event as it is now.
    pub(in crate::drills) fn see_event(&mut self, at: Timestamp, event: &Event, is_old: bool) {
        let Some(uid) = event.metadata.uid.clone() else {
            return;
        };
        let count = i64::from(event.count.unwrap_or(1).max(1));
        let entries = &mut self.events.entries;
        if let Some(entry) = entries.get_mut(&uid) {
            entry.count = entry.count.max(count);
        } else if entries.len() < KEPT {
            let before = if is_old { count } else { 0 };
            entries.insert(uid, entry(at, event, count, before));
        }
    }

    /// What happened to the drill's pods, workloads and nodes, most often first.
    pub(in crate::drills) fn events(&self) -> Vec<EventCount> {
        let mut counts: BTreeMap<(&str, &str, &str), i64> = BTreeMap::new();
        for entry in self.own_events() {
            let key = (&*entry.about.object, &*entry.reason, &*entry.message);
            *counts.entry(key).or_default() += entry.count - entry.before;
        }
        let mut told: Vec<EventCount> = counts
            .into_iter()
            .map(|((object, reason, message), count)| EventCount {
                reason: reason.to_owned(),
                object: object.to_owned(),
                message: message.to_owned(),
                count,
            })
            .collect();
        told.sort_by_key(|event| std::cmp::Reverse(event.count));
        told.truncate(TOLD);
        told
    }

    /// The same, each at its first time.
    pub(in crate::drills) fn event_moments(&self) -> Vec<Moment> {
        let mut moments: Vec<Moment> = self
            .own_events()
            .map(|entry| Moment {
                at: entry.first,
                event: "event".into(),
                object: entry.about.object.clone(),
                detail: format!("{}: {}", entry.reason, entry.message),
            })
            .collect();
        moments.sort_by_key(|moment| moment.at);
        moments.truncate(SHOWN);
        moments
    }

    fn own_events(&self) -> impl Iterator<Item = &Entry> {
        let entries = self.events.entries.values();
        entries.filter(|entry| entry.count > entry.before && self.concerns(&entry.about))
    }

    fn concerns(&self, about: &About) -> bool {
        self.pods.contains_key(&about.uid)
            || self.members.is_workload(&about.uid)
            || self.victims.contains(&about.object)
    }
}

fn entry(at: Timestamp, event: &Event, count: i64, before: i64) -> Entry {
    let about = &event.involved_object;
    let kind = about.kind.as_deref().unwrap_or_default().to_lowercase();
    let name = about.name.as_deref().unwrap_or_default();
    let mut message = event.message.clone().unwrap_or_default();
    if let Some((cut, _)) = message.char_indices().nth(MESSAGE) {
        message.truncate(cut);
        message.push('…');
    }
    Entry {
        before,
        count,
        first: at,
        about: About {
            uid: about.uid.clone().unwrap_or_default(),
            object: format!("{kind}/{name}"),
        },
        reason: event.reason.clone().unwrap_or_default(),
        message,
    }
}
