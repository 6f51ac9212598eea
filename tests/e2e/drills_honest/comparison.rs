//! A report against what was seen of the same drill.

use std::collections::BTreeSet;

use serde_json::Value;

use super::load::{Asked, INTERVAL};
use super::record::{Record, Seen};
use super::time;
use super::watch::When;

mod recovery;
mod requests;
mod timeline;

/// A report, and what was seen.
pub(super) struct Comparison<'a> {
    pub(super) kind: &'a str,
    pub(super) report: Value,
    pub(super) asked: Vec<Asked>,
    pub(super) record: Record,
    /// By how much times may differ, in seconds.
    pub(super) uncertainty: f64,
    /// How long the fault was to last, in seconds.
    pub(super) duration: Option<f64>,
}

impl Comparison<'_> {
    pub(super) fn check(&self) {
        self.check_requests();
        self.check_timeline();
        self.check_events();
        self.check_detection();
        self.check_undoing();
        self.check_recovery();
        self.check_restarts();
        self.check_moves();
    }

    /// Seconds since 1970, like all times here.
    fn injected(&self) -> f64 {
        time(&self.report["injectedAt"])
    }

    fn completed(&self) -> f64 {
        time(&self.report["completedAt"])
    }

    /// Whether what was seen then was certainly within what the report is about.
    fn is_within(&self, when: When) -> bool {
        when.since > self.injected() + self.uncertainty
            && when.seen < self.completed() - self.uncertainty
    }

    /// Whether the control plane ended in this drill, and with it whoever measures: what happened until its
    /// successor looked is told as the state that came of it.
    fn is_of_control_plane(&self) -> bool {
        self.kind.starts_with("controlplane")
    }

    /// A time that the report tells against the span in which it was seen.
    fn agrees(&self, told: f64, when: When, more: f64) -> bool {
        let allowed = self.uncertainty + more;
        (when.since - allowed..=when.seen + allowed).contains(&told)
    }

    fn near(&self, what: &str, told: f64, when: When, more: f64) {
        assert!(
            self.agrees(told, when, more),
            "{}: {what}: told {:.3}, seen {:.3} to {:.3}, allowed ± {:.3}: {:#}\n{:#?}",
            self.kind,
            told - self.injected(),
            when.since - self.injected(),
            when.seen - self.injected(),
            self.uncertainty + more,
            self.report,
            self.record.seen
        );
    }

    /// The times at which something happened, by the report.
    fn told(&self, event: &str) -> Vec<f64> {
        let timeline = self.report["timeline"].as_array().expect("a timeline");
        let found = timeline.iter().filter(|entry| entry["event"] == event);
        found
            .map(|entry| entry["at"].as_f64().expect("a time") + self.injected())
            .collect()
    }

    /// What the observer saw of this kind since the injection, of some objects.
    fn seen<'s>(
        &'s self,
        event: &'s str,
        objects: &'s BTreeSet<String>,
    ) -> impl Iterator<Item = &'s Seen> {
        let since = self.injected() - self.uncertainty;
        let seen = self.record.seen.iter();
        seen.filter(move |seen| {
            seen.event == event && objects.contains(&seen.object) && seen.when.seen > since
        })
    }

    /// What was hit, as `pod/web-1`: behind it, a report tells the node.
    fn victims(&self) -> BTreeSet<String> {
        let victims = self.report["victims"].as_array().expect("victims").iter();
        let names = victims.filter_map(|victim| victim.as_str()?.split(' ').next());
        names.map(str::to_owned).collect()
    }

    /// The victims, and all pods of the nodes among them.
    fn hit(&self) -> BTreeSet<String> {
        let mut hit = self.victims();
        let pods = self.record.pods.values();
        let pods = pods.filter(|pod| hit.contains(&format!("node/{}", pod.node)));
        let pods: Vec<String> = pods.map(|pod| pod.object.clone()).collect();
        hit.extend(pods);
        hit
    }
}
