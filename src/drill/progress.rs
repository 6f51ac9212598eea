//! What a drill is doing, told on stderr while it runs.

use std::collections::HashSet;
use std::io::{Write, stderr};

use skiff_dev::{Drill, DrillPhase, GoDuration, TimelineEntry};

use super::plan::PlannedDrill;
use super::report::figures::{offset, words};
use super::report::text::plain;
use super::report::verdict::{Verdict, status};

/// One command's progress.
#[derive(Debug, Default)]
pub struct Progress {
    told: HashSet<String>,
    away: bool,
}

impl Progress {
    /// A drill begins that is one of `count` steps.
    pub fn begin(&mut self, drill: &Drill, planned: &PlannedDrill, step: usize, count: usize) {
        self.told.clear();
        self.away = false;
        let name = drill.metadata.name.as_deref().unwrap_or_default();
        let step = match count {
            1 => String::new(),
            _ => format!("step {step} of {count}: "),
        };
        let target = &planned.target;
        say(&format!("{step}drill {name}: {} on {target}", planned.kind));
    }

    pub fn pause(&self, time: GoDuration, step: usize, count: usize) {
        say(&format!("step {step} of {count}: a pause of {time}"));
    }

    /// Tells what is new in a drill.
    pub fn show(&mut self, drill: &Drill) {
        if self.away {
            self.away = false;
            say("the API answers again");
        }
        for line in self.news(drill) {
            say(&line);
        }
    }

    /// Tells once that the API is away.
    pub fn lost(&mut self, error: &str) {
        if !self.away {
            self.away = true;
            say(&format!(
                "the API does not answer ({error}); the drill goes on, and this waits"
            ));
        }
    }

    pub fn note(&self, text: &str) {
        say(text);
    }

    fn news(&mut self, drill: &Drill) -> Vec<String> {
        let status = status(drill);
        let mut lines = Vec::new();
        if let (false, Some(seed)) = (status.victims.is_empty(), status.seed) {
            let victims = status.victims.join(", ");
            lines.push(format!("victims, chosen by seed {seed}: {victims}"));
        }
        if status.phase == DrillPhase::Preparing {
            lines.push("watching it while nothing is broken yet".to_owned());
        }
        let mut timeline: Vec<&TimelineEntry> = status.timeline.iter().collect();
        timeline.sort_by(|a, b| a.at.total_cmp(&b.at));
        for happening in timeline {
            // What is known of it may grow; that it happened is told once.
            let known = format!("{} {} {}", happening.at, happening.event, happening.object);
            if self.told.insert(known) {
                lines.push(entry(happening));
            }
        }
        match status.phase {
            // One that was refused has nothing to undo.
            DrillPhase::Healing if !status.timeline.is_empty() => {
                lines.push("undoing what is left".to_owned());
            }
            DrillPhase::Completed => lines.push(Verdict::of(drill).word().to_lowercase()),
            _ => {}
        }
        lines.retain(|line| self.told.insert(line.clone()));
        lines
    }
}

fn entry(entry: &TimelineEntry) -> String {
    let mut line = format!("{} {}", offset(entry.at), words(&entry.event));
    for part in [&entry.object, &entry.detail] {
        if !part.is_empty() {
            line.push(' ');
            line.push_str(part);
        }
    }
    line
}

fn say(line: &str) {
    // Nobody may be listening any more; the drill has to be followed all the same.
    let _ = writeln!(stderr(), "{}", plain(line));
}

#[cfg(test)]
mod tests {
    use skiff_dev::DrillStatus;

    use super::*;

    fn seen(phase: DrillPhase, timeline: &[(f64, &str, &str)]) -> Drill {
        let entries = timeline.iter().map(|(at, event, object)| TimelineEntry {
            at: *at,
            event: (*event).to_owned(),
            object: (*object).to_owned(),
            ..TimelineEntry::default()
        });
        Drill {
            status: Some(DrillStatus {
                phase,
                victims: vec!["pod/web-1 (n1)".into()],
                seed: Some(7),
                timeline: entries.collect(),
                ..DrillStatus::default()
            }),
            ..Drill::default()
        }
    }

    #[test]
    fn everything_is_told_once_and_in_order() {
        let mut progress = Progress::default();
        let first = progress.news(&seen(DrillPhase::Preparing, &[]));
        assert_eq!(
            first,
            [
                "victims, chosen by seed 7: pod/web-1 (n1)",
                "watching it while nothing is broken yet"
            ]
        );
        let running = [(0.012, "detected", "pod/web-1"), (0.0, "injected", "")];
        let second = progress.news(&seen(DrillPhase::Running, &running));
        assert_eq!(second, ["+0.000s injected", "+0.012s detected pod/web-1"]);
        assert!(
            progress
                .news(&seen(DrillPhase::Running, &running))
                .is_empty()
        );
        let last = progress.news(&seen(DrillPhase::Healing, &running));
        assert_eq!(last, ["undoing what is left"]);
        let refused = Progress::default().news(&seen(DrillPhase::Healing, &[]));
        assert!(!refused.contains(&"undoing what is left".to_owned()));
    }

    #[test]
    fn nothing_of_a_drill_without_a_status() {
        assert!(Progress::default().news(&Drill::default()).is_empty());
    }
}
