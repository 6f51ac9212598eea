//! The timeline: whatever it tells was seen, and whatever was seen it tells, at the same times; and the Events of the
//! API, as often.

use std::collections::{BTreeMap, BTreeSet};

use super::{Comparison, When};

/// What is not seen of an object: checked elsewhere, each by itself.
const CONCLUDED: [&str; 8] = [
    "injected",
    "firstFailedProbe",
    "lastFailedProbe",
    "detected",
    "undone",
    "recovered",
    "healed",
    "event",
];

/// Event, object, detail.
type Key = (String, String, String);

#[derive(Default)]
struct Times {
    told: Vec<f64>,
    seen: Vec<When>,
}

impl Comparison<'_> {
    pub(super) fn check_timeline(&self) {
        let mut all: BTreeMap<Key, Times> = BTreeMap::new();
        for entry in self.report["timeline"].as_array().expect("a timeline") {
            let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
            let key = (text("event"), text("object"), text("detail"));
            if !CONCLUDED.contains(&&*key.0) {
                let at = entry["at"].as_f64().expect("a time") + self.injected();
                all.entry(key).or_default().told.push(at);
            }
        }
        for seen in &self.record.seen {
            let key = (seen.event.clone(), seen.object.clone(), seen.detail.clone());
            all.entry(key).or_default().seen.push(seen.when);
        }
        for (key, times) in all {
            self.check_times(&key, times);
        }
    }

    /// Both in the order in which they happened.
    fn check_times(&self, key: &Key, times: Times) {
        let mut told = times.told.into_iter().peekable();
        let mut seen = times.seen.into_iter().peekable();
        loop {
            match (told.peek(), seen.peek()) {
                (None, None) => return,
                (Some(at), Some(when)) if self.agrees(*at, *when, 0.0) => {
                    told.next();
                    seen.next();
                }
                (Some(at), when) if when.is_none_or(|when| *at < when.seen) => {
                    assert!(
                        self.may_be_unseen(*at),
                        "{}: {key:?} told at {:.3}, and not seen (next: {when:?}): {:#}\n{:#?}",
                        self.kind,
                        at - self.injected(),
                        self.report,
                        self.record.seen
                    );
                    told.next();
                }
                (_, Some(when)) => {
                    assert!(
                        self.may_be_untold(*when),
                        "{}: {key:?} seen at {:.3}, and not told: {:#}",
                        self.kind,
                        when.seen - self.injected(),
                        self.report
                    );
                    seen.next();
                }
                (Some(_), None) => unreachable!("the arm above takes it"),
            }
        }
    }

    /// Where the observer had to list anew, it saw what came of things, not everything that had happened.
    fn may_be_unseen(&self, at: f64) -> bool {
        let gaps = &self.record.gaps;
        gaps.iter().any(|gap| self.agrees(at, *gap, 0.0))
    }

    fn may_be_untold(&self, when: When) -> bool {
        let recovered = self.told("recovered").first().copied();
        let successor_looks = recovered.filter(|_| self.is_of_control_plane());
        !self.is_within(when)
            || successor_looks.is_some_and(|looks| when.since < looks + self.uncertainty)
    }

    /// Events of the API are told as often as they were seen, and in the timeline at their first time.
    pub(super) fn check_events(&self) {
        let mut counts: BTreeMap<Key, [i64; 3]> = BTreeMap::new();
        for entry in self.report["events"].as_array().into_iter().flatten() {
            let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
            let key = (text("object"), text("reason"), text("message"));
            counts.entry(key).or_default()[0] += entry["count"].as_i64().expect("a count");
        }
        let began = time_of(&self.report["startedAt"]);
        // Their own times are whole seconds, by which a report tells the old ones.
        let is_certain = |when: When| {
            when.since > began + 2.0 && when.seen < self.completed() - self.uncertainty
        };
        for told in self
            .record
            .told
            .iter()
            .filter(|told| self.is_about_us(told))
        {
            let key = (
                told.object.clone(),
                told.reason.clone(),
                told.message.clone(),
            );
            let [_, least, most] = counts.entry(key).or_default();
            if told.when.seen > began - 1.0 - self.uncertainty {
                *most += told.more;
            }
            if is_certain(told.when) && !self.is_untold_event(told.when) {
                *least += told.more;
            }
        }
        for (key, [told, least, most]) in counts {
            assert!(
                (least..=most).contains(&told),
                "{}: {key:?}: {told} told, {least} to {most} seen: {:#}",
                self.kind,
                self.report
            );
        }
        self.check_event_times();
    }

    fn check_event_times(&self) {
        for entry in self.report["timeline"].as_array().expect("a timeline") {
            if entry["event"] != "event" {
                continue;
            }
            let at = entry["at"].as_f64().expect("a time") + self.injected();
            let text = |field: &str| entry[field].as_str().unwrap_or_default();
            let mut seen = self.record.told.iter().filter(|told| {
                told.object == text("object")
                    && format!("{}: {}", told.reason, told.message) == text("detail")
            });
            // Its successor hears of the earlier ones when it begins.
            let is_late = |when: When| self.is_of_control_plane() && at > when.since;
            assert!(
                seen.any(|told| self.agrees(at, told.when, 0.0) || is_late(told.when)),
                "{}: {entry} was not seen then: {:#?}",
                self.kind,
                self.record.told
            );
        }
    }

    fn is_untold_event(&self, when: When) -> bool {
        self.is_of_control_plane() && self.may_be_untold(when)
    }

    /// Whether a report tells of whatever this Event is about: a pod of the target, its workload, a victim.
    fn is_about_us(&self, told: &super::super::record::Told) -> bool {
        let pod = self.record.pods.get(&told.about_uid);
        let began = time_of(&self.report["startedAt"]);
        let is_our_pod = pod.is_some_and(|pod| {
            pod.gone
                .is_none_or(|gone| gone.seen > began + self.uncertainty)
        });
        let victims: BTreeSet<String> = self.victims();
        is_our_pod || told.object == "deployment/web" || victims.contains(&told.object)
    }
}

fn time_of(value: &serde_json::Value) -> f64 {
    super::time(value)
}
