//! The report for people at a terminal.

use std::borrow::Cow;
use std::fmt::Write;
use std::io::IsTerminal;

use skiff_dev::{Drill, DrillStatus, EventCount, ExpectationResult, TimelineEntry};

use super::figures::{count, failures, first, mended, offset, span, words};
use super::verdict::{Verdict, status};
use super::{Entry, Report};
use crate::output::Table;

/// Before the text of an entry's line.
const INDENT: &str = "  ";

/// How a met expectation is told from one that is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    Ascii,
    Unicode,
}

impl Marks {
    /// Files and pipes get plain characters, since nobody knows what will read them.
    pub fn of_stdout() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = set("LC_ALL")
            .or_else(|| set("LC_CTYPE"))
            .or_else(|| set("LANG"));
        let utf8 = locale.is_some_and(|name| {
            let name = name.to_ascii_lowercase();
            name.contains("utf-8") || name.contains("utf8")
        });
        if utf8 && std::io::stdout().is_terminal() {
            Self::Unicode
        } else {
            Self::Ascii
        }
    }

    fn of(self, met: bool) -> &'static str {
        match (self, met) {
            (Self::Ascii, true) => "ok",
            (Self::Ascii, false) => "NOT MET",
            (Self::Unicode, true) => "✓",
            (Self::Unicode, false) => "✗",
        }
    }
}

pub fn report(report: &Report, marks: Marks) -> String {
    let mut text = String::new();
    for entry in &report.entries {
        if let Entry::Drill { drill, .. } = entry {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&of_drill(drill, marks));
        }
    }
    if report.single().is_none() {
        text.push('\n');
        text.push_str(&summary(report));
    }
    plain(&text).into_owned()
}

/// One line for each step.
fn summary(report: &Report) -> String {
    let mut table = Table::new([
        "STEP",
        "DRILL",
        "TARGET",
        "RESULT",
        "DETECTED",
        "RECOVERED",
        "FAILED",
        "EXPECTED",
    ]);
    for (index, entry) in report.entries.iter().enumerate() {
        let number = index + 1;
        match entry {
            Entry::Pause(time) => {
                let pause = format!("{number} (a pause of {time})");
                table.row([
                    pause,
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                ]);
            }
            Entry::NotRun {
                title,
                kind,
                target,
                why,
            } => {
                let result = if why.is_some() {
                    "NOT BEGUN"
                } else {
                    "NOT RUN"
                };
                table.row([
                    format!("{number} {title}"),
                    kind.to_string(),
                    target.to_string(),
                    result.to_owned(),
                    dash(),
                    dash(),
                    dash(),
                    dash(),
                ]);
            }
            Entry::Drill { title, drill } => {
                let status = status(drill);
                let requests = status.requests.as_ref();
                let failed =
                    requests.map(|requests| format!("{}/{}", requests.failed, requests.sent));
                let met = status
                    .expectations
                    .iter()
                    .filter(|result| result.met)
                    .count();
                let expected = status.expectations.len();
                table.row([
                    format!("{number} {title}"),
                    drill.spec.drill.to_string(),
                    drill.spec.target.to_string(),
                    Verdict::of(drill).word().to_owned(),
                    status.time_to_detect.map_or_else(dash, span),
                    status.time_to_recover.map_or_else(dash, span),
                    failed.unwrap_or_else(dash),
                    match expected {
                        0 => dash(),
                        _ => format!("{met} of {expected} met"),
                    },
                ]);
            }
        }
    }
    let mut text = match &report.title {
        Some(title) => format!("game day {title}: "),
        None => String::new(),
    };
    text.push_str(if report.passed() { "PASSED" } else { "FAILED" });
    let _ = write!(text, "\n\n{table}");
    for entry in &report.entries {
        if let Entry::NotRun {
            title,
            why: Some(why),
            ..
        } = entry
        {
            let _ = writeln!(text, "\n{title} could not be begun: {why}");
        }
    }
    text
}

fn dash() -> String {
    "-".to_owned()
}

fn of_drill(drill: &Drill, marks: Marks) -> String {
    let status = status(drill);
    let verdict = Verdict::of(drill);
    let mut text = String::new();
    let name = drill.metadata.name.as_deref().unwrap_or_default();
    let (kind, target) = (drill.spec.drill, &drill.spec.target);
    let _ = writeln!(
        text,
        "{kind} on {target}: {} (drill {name})",
        verdict.word()
    );
    if let Some(message) = &status.message {
        let _ = writeln!(text, "{INDENT}{message}");
    }
    text.push('\n');
    for (label, value) in facts(drill, &status, verdict) {
        let _ = writeln!(text, "{INDENT}{label:<12}{value}");
    }
    if !status.expectations.is_empty() {
        let _ = write!(
            text,
            "\n{}",
            indented(&expectations(&status.expectations, marks))
        );
    }
    if !status.timeline.is_empty() {
        let _ = write!(text, "\n{}", indented(&timeline(&status.timeline)));
    }
    text
}

/// What was hit, and the numbers.
fn facts(drill: &Drill, status: &DrillStatus, verdict: Verdict) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    for (index, victim) in status.victims.iter().enumerate() {
        let label = match (index, verdict) {
            (0, Verdict::DryRun) => "would hit",
            (0, _) => "hit",
            _ => "",
        };
        facts.push((label, victim.clone()));
    }
    if let Some(seed) = status.seed {
        facts.push(("seed", seed.to_string()));
    }
    if let Some(at) = status
        .injected_at
        .as_ref()
        .filter(|_| verdict != Verdict::Refused)
    {
        facts.push(("injected", at.0.strftime("%F %T%.3f UTC").to_string()));
        facts.push((
            "detected",
            since(status.time_to_detect, "nothing showed it"),
        ));
        let never = match (status.recovered, mended(status)) {
            (Some(_), Some(healed)) => {
                format!("not by itself; the undo mended it after {}", span(healed))
            }
            (Some(_), None) => "never within the time it had".to_owned(),
            (None, _) => "not known yet".to_owned(),
        };
        facts.push(("recovered", since(status.time_to_recover, &never)));
    }
    if let Some(undone) = first(&status.timeline, "undone") {
        facts.push(("undone", format!("after {}", span(undone.at))));
    }
    facts.extend(probes(status));
    if let Some(writes) = &status.writes {
        let told = format!(
            "{} acknowledged, {} lost, longest gap {}",
            count(writes.acknowledged, "write"),
            writes.lost,
            span(writes.longest_gap)
        );
        facts.push(("writes", told));
    }
    if let Some(restarts) = status.restarts {
        facts.push(("restarts", restarts.to_string()));
    }
    if let Some(moved) = status.pods_moved {
        facts.push(("pods moved", moved.to_string()));
    }
    for event in counted(&status.events) {
        let label = if facts
            .last()
            .is_some_and(|(label, _)| ["events", ""].contains(label))
        {
            ""
        } else {
            "events"
        };
        let about = if event.object.is_empty() { "" } else { " of " };
        let told = format!("{}x {}{about}{}", event.count, event.reason, event.object);
        facts.push((label, told));
    }
    if facts.is_empty() && matches!(verdict, Verdict::Unfinished(_)) {
        facts.push((
            "",
            format!(
                "{:?}: nothing to tell yet",
                drill.status.as_ref().map(|s| s.phase).unwrap_or_default()
            ),
        ));
    }
    facts
}

/// Events of one reason and object, whatever they say, are one line.
fn counted(events: &[EventCount]) -> Vec<EventCount> {
    let mut counted: Vec<EventCount> = Vec::new();
    for event in events {
        let same = |known: &&mut EventCount| {
            (&known.reason, &known.object) == (&event.reason, &event.object)
        };
        match counted.iter_mut().find(same) {
            Some(known) => known.count += event.count,
            None => counted.push(event.clone()),
        }
    }
    counted
}

fn since(seconds: Option<f64>, never: &str) -> String {
    seconds.map_or_else(
        || never.to_owned(),
        |seconds| format!("after {}", span(seconds)),
    )
}

fn probes(status: &DrillStatus) -> Vec<(&'static str, String)> {
    let Some(requests) = &status.requests else {
        return Vec::new();
    };
    let mut asked = failures(requests);
    if requests.sent > 0 {
        let _ = write!(asked, ", longest gap {}", span(requests.longest_gap));
    }
    let mut facts = vec![("requests", asked)];
    if !requests.target.is_empty() {
        let from = match requests.from.as_str() {
            "" => String::new(),
            node => format!(" from {node}"),
        };
        facts.push(("", format!("to {}{from}", requests.target)));
    }
    if requests.late > 0 {
        let told = format!(
            "{} sent late: the node that asked was too busy",
            requests.late
        );
        facts.push(("", told));
    }
    if let Some(latency) = &requests.latency {
        let told = format!(
            "half within {}, 99% within {}, all within {}",
            span(latency.p50),
            span(latency.p99),
            span(latency.max)
        );
        facts.push(("answers", told));
    }
    for error in &requests.errors {
        facts.push(("", format!("{}x {}", error.count, error.reason)));
    }
    facts
}

fn expectations(results: &[ExpectationResult], marks: Marks) -> String {
    let mut table = Table::new(["", "EXPECTED", "MEASURED"]);
    for result in results {
        let actual = match result.actual.as_str() {
            "" => "-",
            actual => actual,
        };
        table.row([
            marks.of(result.met).to_owned(),
            result.text.clone(),
            actual.to_owned(),
        ]);
    }
    table.to_string()
}

fn timeline(timeline: &[TimelineEntry]) -> String {
    let mut sorted: Vec<&TimelineEntry> = timeline.iter().collect();
    sorted.sort_by(|a, b| a.at.total_cmp(&b.at));
    let times: Vec<String> = sorted.iter().map(|entry| offset(entry.at)).collect();
    let width = times.iter().map(String::len).max().unwrap_or_default();
    let mut table = Table::new(["TIME", "EVENT", "OBJECT", "DETAIL"]);
    for (entry, time) in sorted.into_iter().zip(times) {
        table.row([
            format!("{time:>width$}"),
            words(&entry.event),
            entry.object.clone(),
            entry.detail.clone(),
        ]);
    }
    table.to_string()
}

fn indented(text: &str) -> String {
    text.lines()
        .map(|line| format!("{INDENT}{line}\n"))
        .collect()
}

/// Without what would command a terminal: messages come from anywhere.
pub fn plain(text: &str) -> Cow<'_, str> {
    let commands = |letter: char| {
        let reorders = matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        (letter.is_control() && letter != '\n') || reorders
    };
    if text.contains(commands) {
        Cow::Owned(text.replace(commands, "?"))
    } else {
        Cow::Borrowed(text)
    }
}

#[cfg(test)]
mod tests {
    use skiff_dev::{DrillResult, GoDuration};

    use super::super::samples;
    use super::*;

    fn text_of(drill: Drill) -> String {
        report(&Report::of_one(drill), Marks::Ascii)
    }

    #[test]
    fn what_the_undo_mended_is_not_called_a_recovery() {
        let text = text_of(samples::mended());
        assert!(
            text.contains("recovered   not by itself; the undo mended it after 6.400 s"),
            "{text}"
        );
    }

    #[test]
    fn a_report_tells_what_was_hit_and_the_numbers() {
        let text = text_of(samples::recovered());
        for line in [
            "container-kill on deployment/web: PASSED (drill container-kill-x7k2p)",
            "  hit         pod/web-6f7b9c-4xk2p (node-1)",
            "  seed        42",
            "  injected    2026-11-23 04:12:20.123 UTC",
            "  detected    after 12 ms",
            "  recovered   after 411 ms",
            "  requests    2 of 63 failed (3.2%), longest gap 210 ms",
            "              to http://10.43.0.7:80/ from node-2",
            "  restarts    1",
            "  ok   recovery<5s   411ms",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no {line:?} in\n{text}"
            );
        }
        assert!(text.contains("+0.050s   first failed probe"), "{text}");
        assert!(text.is_ascii(), "{text}");
    }

    #[test]
    fn terminals_that_can_get_marks() {
        let text = report(&Report::of_one(samples::never_recovered()), Marks::Unicode);
        assert!(text.contains('✗') && !text.contains("NOT MET"), "{text}");
    }

    #[test]
    fn what_never_came_is_said_so() {
        let text = text_of(samples::never_recovered());
        assert!(
            text.contains("recovered   never within the time it had"),
            "{text}"
        );
        assert!(text.contains("NOT MET"), "{text}");
        let text = text_of(samples::refused());
        assert!(
            text.contains("REFUSED") && !text.contains("detected"),
            "{text}"
        );
        assert!(text_of(Drill::default()).contains("UNFINISHED"));
    }

    #[test]
    fn requests_that_nobody_sent_are_no_percentage() {
        let text = text_of(samples::nothing_sent());
        assert!(text.contains("requests    none was sent"), "{text}");
    }

    #[test]
    fn a_terminal_is_not_commanded() {
        let mut drill = samples::recovered();
        if let Some(status) = &mut drill.status {
            status.result = Some(DrillResult::Failed);
            status.message = Some("\u{1b}[2Jgone\u{202e}".into());
        }
        let text = text_of(drill);
        assert!(text.contains("?[2Jgone?"), "{text}");
    }

    #[test]
    fn a_game_day_ends_with_a_table_of_its_steps() {
        let text = report(&samples::game_day(), Marks::Ascii);
        let summary = text
            .split_once("game day friday: FAILED\n")
            .expect("a summary")
            .1;
        let lines: Vec<&str> = summary.lines().filter(|line| !line.is_empty()).collect();
        assert!(lines[0].starts_with("STEP"), "{summary}");
        assert!(
            lines[1].starts_with("1 crash") && lines[1].contains("PASSED"),
            "{summary}"
        );
        assert!(lines[2].contains(&format!("a pause of {}", GoDuration::from_secs(5))));
        assert!(lines[3].contains("FAILED"), "{summary}");
        assert!(lines[4].contains("NOT RUN"), "{summary}");
    }
}
