//! One node, as it was last seen.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;

use crate::drills::plan::is_ready_node;

const PRESSURES: [&str; 3] = ["MemoryPressure", "DiskPressure", "PIDPressure"];

/// What is known of a node.
#[derive(Debug)]
pub(in crate::drills) struct NodeTrack {
    is_ready: bool,
    is_cordoned: bool,
    pressures: Vec<&'static str>,
    /// Since when it is Ready and under no pressure, or is not.
    since: Timestamp,
    /// Since when pods may be scheduled on it, or may not.
    open_since: Timestamp,
    /// Whether it has been seen yet.
    is_known: bool,
    /// When it was last seen to become not Ready.
    pub(in crate::drills) lost_at: Option<Timestamp>,
}

impl NodeTrack {
    pub(super) fn new(at: Timestamp) -> Self {
        Self {
            is_ready: false,
            is_cordoned: false,
            pressures: Vec::new(),
            since: at,
            open_since: at,
            is_known: false,
            lost_at: None,
        }
    }

    /// Since when it is Ready and under no pressure, if it is.
    pub(in crate::drills) fn whole_since(&self) -> Option<Timestamp> {
        (self.is_ready && self.pressures.is_empty()).then_some(self.since)
    }

    /// Since when pods may be scheduled on it, if they may.
    pub(in crate::drills) fn schedulable_since(&self) -> Option<Timestamp> {
        (!self.is_cordoned).then_some(self.open_since)
    }

    /// Takes over what the node is now, and tells what that changes.
    pub(super) fn update(&mut self, at: Timestamp, node: &Node) -> Vec<&'static str> {
        let is_ready = is_ready_node(node);
        let is_cordoned = node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true);
        let pressures = pressures(node);
        let mut events = Vec::new();
        if !self.is_known || self.is_ready != is_ready {
            events.push(if is_ready { "ready" } else { "notReady" });
        }
        if self.is_known && self.is_ready && !is_ready {
            self.lost_at = Some(at);
        }
        if self.is_cordoned != is_cordoned {
            self.open_since = at;
            events.push(if is_cordoned {
                "cordoned"
            } else {
                "uncordoned"
            });
        }
        if self.pressures != pressures {
            let grew = pressures.len() >= self.pressures.len();
            events.push(if grew { "pressure" } else { "relieved" });
        }
        let was_whole = self.whole_since().is_some();
        (self.is_ready, self.is_cordoned, self.pressures) = (is_ready, is_cordoned, pressures);
        let is_whole = self.is_ready && self.pressures.is_empty();
        if !self.is_known || was_whole != is_whole {
            self.since = at;
        }
        self.is_known = true;
        events
    }

    /// The state in words, as kubectl's column `STATUS`.
    pub(super) fn state(&self) -> String {
        let mut words = vec![if self.is_ready { "Ready" } else { "NotReady" }];
        words.extend(&self.pressures);
        if self.is_cordoned {
            words.push("SchedulingDisabled");
        }
        words.join(",")
    }
}

fn pressures(node: &Node) -> Vec<&'static str> {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let holds = |kind: &&str| {
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|c| c.type_ == *kind && c.status == "True")
    };
    PRESSURES.into_iter().filter(holds).collect()
}
