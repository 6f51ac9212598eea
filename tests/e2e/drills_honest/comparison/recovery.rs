//! When the fault was noticed, undone, and recovered from; and what that cost: restarts, and pods that moved.

use std::collections::{BTreeMap, BTreeSet};

use super::{Comparison, INTERVAL, When};

/// The drill's own doing, which nobody notices.
const OWN_DOING: [&str; 3] = ["created", "cordoned", "uncordoned"];
/// What a workload recovers from although it still lasts, or that is over at once.
const RECOVERED_MEANWHILE: [&str; 7] = [
    "container-kill",
    "container-oom",
    "container-hang",
    "pod-delete",
    "pod-evict",
    "node-drain",
    "node-crash",
];

impl Comparison<'_> {
    /// Detected is the first change of what was hit.
    pub(super) fn check_detection(&self) {
        let hit = self.hit();
        let is_sign = |event: &str| !OWN_DOING.contains(&event);
        let signs = self.record.seen.iter();
        let mut signs = signs.filter(|s| is_sign(&s.event) && hit.contains(&s.object));
        let told = self.report["timeToDetect"].as_f64();
        match told.map(|told| told + self.injected()) {
            Some(told) => assert!(
                signs.any(|sign| self.agrees(told, sign.when, 0.0)) || self.is_of_control_plane(),
                "{}: noticed at {:.3}, when nothing was seen: {:#}",
                self.kind,
                told - self.injected(),
                self.report
            ),
            None => {
                let missed =
                    signs.find(|sign| self.is_within(sign.when) && !self.is_of_control_plane());
                assert!(
                    missed.is_none(),
                    "{}: {missed:?}: {:#}",
                    self.kind,
                    self.report
                );
                return;
            }
        }
        let told = told.unwrap_or_default() + self.injected();
        let mut earlier = signs_before(self, &hit, told);
        assert!(
            earlier.next().is_none() || self.is_of_control_plane(),
            "{}: noticed only at {:.3}: {:#}\n{:#?}",
            self.kind,
            told - self.injected(),
            self.report,
            self.record.seen
        );
    }

    /// A fault that lasts was there for as long as it was to, and no longer than until its executor said so.
    pub(super) fn check_undoing(&self) {
        let told = self.told("undone");
        let (Some(duration), [undone]) = (self.duration, told.as_slice()) else {
            return;
        };
        let said = self
            .record
            .ended
            .iter()
            .map(|when| when.seen)
            .fold(f64::MIN, f64::max);
        let is_cut_short = self.kind == "container-hang";
        assert!(
            (is_cut_short || *undone >= self.injected() + duration - self.uncertainty)
                && *undone <= said + self.uncertainty,
            "{}: undone at {:.3}, said at {:.3}: {:#}",
            self.kind,
            undone - self.injected(),
            said - self.injected(),
            self.report
        );
    }

    /// Recovered is when the last of all this was so: the target whole as the watch saw it, answering as the load saw it,
    /// what was hit no more as it had been, and a fault that has to be over before that undone.
    pub(super) fn check_recovery(&self) {
        let told = self.report["timeToRecover"].as_f64().expect("a time") + self.injected();
        let whole = self.record.whole_since(1).expect("whole at the end");
        let (mut least, mut most) = (self.injected(), self.injected());
        let mut after = |when: When| {
            least = least.max(when.since);
            most = most.max(when.seen);
        };
        after(whole);
        if let Some(good) = self.good_again() {
            after(When {
                since: good,
                seen: good,
            });
        }
        self.changes_of_victims().for_each(&mut after);
        if !RECOVERED_MEANWHILE.contains(&self.kind) {
            match self.told("undone").as_slice() {
                // Its executor says so some time after it was.
                [] => {
                    let said = self.record.ended.iter().map(|said| When {
                        since: self.injected(),
                        seen: said.seen,
                    });
                    said.for_each(&mut after);
                }
                // A node that is cut off says it late: this was compared by itself.
                [.., undone] => after(When {
                    since: *undone,
                    seen: *undone,
                }),
            }
        }
        let span = When {
            since: least,
            seen: most,
        };
        self.near("recovered", told, span, INTERVAL);
    }

    /// What has to have happened to those that were hit.
    fn changes_of_victims(&self) -> impl Iterator<Item = When> {
        let victims = self.victims();
        let hit = self.hit();
        let (events, objects): (&[&str], _) = match self.kind {
            "container-kill" | "container-oom" | "container-hang" => (&["started"], victims),
            "pod-delete" | "pod-evict" => (&["terminating"], victims),
            "node-drain" => {
                let pods = hit.difference(&victims).cloned();
                (&["terminating"], pods.collect())
            }
            "node-crash" => (&["notReady"], victims),
            _ => (&["ready", "relieved"], victims),
        };
        let seen = events.iter().flat_map(|event| {
            let seen = self.seen(event, &objects);
            seen.map(|seen| seen.when).collect::<Vec<_>>()
        });
        seen.collect::<Vec<_>>().into_iter()
    }

    pub(super) fn check_restarts(&self) {
        let restarted = self.record.pods.values().flat_map(|pod| &pod.restarted);
        let (mut least, mut most) = (0, 0);
        for (when, more) in restarted {
            most += more;
            least += if self.is_within(*when) { *more } else { 0 };
        }
        let told = self.report["restarts"].as_i64().expect("a number");
        assert!(
            (least..=most).contains(&told),
            "{}: {told} restarts told, {least} to {most} seen: {:#}",
            self.kind,
            self.report
        );
    }

    /// Moved are as many pods as nodes gained, of those that took the place of others.
    pub(super) fn check_moves(&self) {
        let (injected, completed) = (self.injected(), self.completed());
        let mut gain: BTreeMap<&str, i64> = BTreeMap::new();
        let mut lost = 0;
        for pod in self.record.pods.values().filter(|pod| !pod.node.is_empty()) {
            let is_there = |at: f64| {
                pod.created.is_none_or(|created| created.seen <= at)
                    && pod.left.is_none_or(|left| left.seen > at)
            };
            let (before, after) = (is_there(injected), is_there(completed));
            *gain.entry(&pod.node).or_default() += i64::from(after) - i64::from(before);
            lost += i64::from(before && !after);
        }
        let gained: i64 = gain.values().filter(|gain| **gain > 0).sum();
        let told = self.report["podsMoved"].as_i64().expect("a number");
        assert_eq!(told, gained.min(lost), "{}: {:#}", self.kind, self.report);
    }
}

/// Signs of what was hit that were there clearly before `told`, but not before the injection.
fn signs_before<'c>(
    comparison: &'c Comparison<'_>,
    hit: &'c BTreeSet<String>,
    told: f64,
) -> impl Iterator<Item = &'c super::Seen> {
    let since = comparison.injected() + comparison.uncertainty;
    comparison.record.seen.iter().filter(move |sign| {
        !OWN_DOING.contains(&&*sign.event)
            && hit.contains(&sign.object)
            && sign.when.since > since
            && sign.when.seen < told - comparison.uncertainty
    })
}
