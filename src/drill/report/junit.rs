//! The report for CI systems: JUnit's XML, a test suite for each drill, in it a test case for the recovery
//! and one for each expectation.
//!
//! There is no specification; this is the part that Jenkins, GitLab and GitHub's reporters agree upon.

use skiff_dev::{Drill, DrillStatus};

use super::figures::span;
use super::markup::Markup;
use super::verdict::{Verdict, status};
use super::{Entry, Report};

/// How long recovery may take when a drill says nothing, in seconds.
const DEFAULT_TIMEOUT: f64 = 120.0;

struct Suite {
    name: String,
    /// When it began, as XML Schema's dateTime.
    timestamp: Option<String>,
    /// In seconds.
    time: f64,
    properties: Vec<(&'static str, String)>,
    cases: Vec<Case>,
}

struct Case {
    name: String,
    time: f64,
    outcome: Outcome,
}

enum Outcome {
    Passed,
    /// What was measured was not as wanted.
    Failed(String),
    /// It could not be found out.
    Error(String),
    Skipped(String),
}

pub fn document(report: &Report) -> String {
    let suites: Vec<Suite> = report.entries.iter().filter_map(suite).collect();
    let mut xml = Markup::default();
    xml.raw("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let name = report.title.as_deref().unwrap_or("skiff drill");
    let total = |count: fn(&Suite) -> usize| -> usize { suites.iter().map(count).sum() };
    xml.open(
        "testsuites",
        &[
            ("name", &name),
            ("tests", &total(Suite::tests)),
            ("failures", &total(Suite::failures)),
            ("errors", &total(Suite::errors)),
            ("skipped", &total(Suite::skipped)),
            (
                "time",
                &seconds(suites.iter().map(|suite| suite.time).sum()),
            ),
        ],
    );
    xml.raw("\n");
    for suite in &suites {
        suite.write(&mut xml);
    }
    xml.close("testsuites").raw("\n");
    xml.as_str().to_owned()
}

fn suite(entry: &Entry) -> Option<Suite> {
    match entry {
        Entry::Pause(_) => None,
        Entry::Drill { title, drill } => Some(of_drill(title, drill)),
        Entry::NotRun {
            title,
            kind,
            target,
            why,
        } => Some(Suite {
            name: title.clone(),
            timestamp: None,
            time: 0.0,
            properties: vec![("drill", kind.to_string()), ("target", target.to_string())],
            cases: vec![Case {
                name: "recovery".to_owned(),
                time: 0.0,
                outcome: match why {
                    Some(why) => Outcome::Error(why.clone()),
                    None => Outcome::Skipped("a step before it did not pass".to_owned()),
                },
            }],
        }),
    }
}

fn of_drill(title: &str, drill: &Drill) -> Suite {
    let status = status(drill);
    let began = status.started_at.as_ref().or(status.injected_at.as_ref());
    let ended = status.completed_at.as_ref();
    let time = began.zip(ended).map_or(0.0, |(began, ended)| {
        ended.0.duration_since(began.0).as_secs_f64()
    });
    let mut properties = vec![
        ("drill", drill.spec.drill.to_string()),
        ("target", drill.spec.target.to_string()),
        ("name", drill.metadata.name.clone().unwrap_or_default()),
        ("victims", status.victims.join(", ")),
    ];
    properties.extend(status.seed.map(|seed| ("seed", seed.to_string())));
    if let Some(requests) = &status.requests {
        properties.push(("requestsSent", requests.sent.to_string()));
        properties.push(("requestsFailed", requests.failed.to_string()));
    }
    Suite {
        name: title.to_owned(),
        timestamp: began.map(|at| at.0.strftime("%FT%T.%3f").to_string()),
        time,
        properties,
        cases: cases(drill, &status),
    }
}

fn cases(drill: &Drill, status: &DrillStatus) -> Vec<Case> {
    let verdict = Verdict::of(drill);
    let said = || status.message.clone().unwrap_or_default();
    let why_unknown = match verdict {
        Verdict::Refused => Some(format!("the drill was refused: {}", said())),
        Verdict::Cancelled => Some("the drill was cancelled".to_owned()),
        Verdict::Unfinished(phase) => Some(format!("the drill is not over: it is {phase:?}")),
        Verdict::Passed | Verdict::Failed | Verdict::DryRun => None,
    };
    let timeout = drill
        .spec
        .timeout
        .map_or(DEFAULT_TIMEOUT, |timeout| timeout.0.as_secs_f64());
    let recovery = Case {
        name: format!("recovery within {}", span(timeout)),
        time: status.time_to_recover.unwrap_or_default(),
        outcome: match (&why_unknown, verdict, status.recovered) {
            (Some(why), ..) => Outcome::Error(why.clone()),
            (None, Verdict::DryRun, _) => Outcome::Skipped("a dry run breaks nothing".to_owned()),
            (None, _, Some(true)) => Outcome::Passed,
            (None, ..) => Outcome::Failed(match said().as_str() {
                "" => "it did not recover".to_owned(),
                said => said.to_owned(),
            }),
        },
    };
    let results = status.expectations.iter().map(|result| Case {
        name: result.text.clone(),
        time: 0.0,
        outcome: match (&why_unknown, result.met) {
            (Some(why), _) => Outcome::Error(why.clone()),
            (None, true) => Outcome::Passed,
            (None, false) => Outcome::Failed(format!(
                "expected {}, measured {}",
                result.text,
                if result.actual.is_empty() {
                    "nothing"
                } else {
                    &result.actual
                }
            )),
        },
    });
    // Expectations that were never looked at are not forgotten.
    let judged = |text: &String| {
        status
            .expectations
            .iter()
            .any(|result| result.text == *text)
    };
    let unjudged = drill
        .spec
        .expect
        .iter()
        .filter(|text| !judged(text))
        .map(|text| Case {
            name: text.clone(),
            time: 0.0,
            outcome: Outcome::Skipped("nothing was measured".to_owned()),
        });
    std::iter::once(recovery)
        .chain(results)
        .chain(unjudged)
        .collect()
}

impl Suite {
    fn tests(&self) -> usize {
        self.cases.len()
    }

    fn failures(&self) -> usize {
        self.count(|outcome| matches!(outcome, Outcome::Failed(_)))
    }

    fn errors(&self) -> usize {
        self.count(|outcome| matches!(outcome, Outcome::Error(_)))
    }

    fn skipped(&self) -> usize {
        self.count(|outcome| matches!(outcome, Outcome::Skipped(_)))
    }

    fn count(&self, is: impl Fn(&Outcome) -> bool) -> usize {
        self.cases.iter().filter(|case| is(&case.outcome)).count()
    }

    fn write(&self, xml: &mut Markup) {
        let (tests, failures) = (self.tests(), self.failures());
        let (errors, skipped) = (self.errors(), self.skipped());
        let time = seconds(self.time);
        let mut attributes: Vec<(&'static str, &dyn std::fmt::Display)> = vec![
            ("name", &self.name),
            ("tests", &tests),
            ("failures", &failures),
            ("errors", &errors),
            ("skipped", &skipped),
            ("time", &time),
        ];
        if let Some(timestamp) = &self.timestamp {
            attributes.push(("timestamp", timestamp));
        }
        xml.raw("  ")
            .open("testsuite", &attributes)
            .raw("\n    <properties>\n");
        for (name, value) in &self.properties {
            xml.raw("      ")
                .empty("property", &[("name", name), ("value", value)])
                .raw("\n");
        }
        xml.raw("    </properties>\n");
        for case in &self.cases {
            case.write(&self.name, xml);
        }
        xml.raw("  ").close("testsuite").raw("\n");
    }
}

impl Case {
    fn write(&self, suite: &str, xml: &mut Markup) {
        let time = seconds(self.time);
        let attributes: [(&'static str, &dyn std::fmt::Display); 3] =
            [("classname", &suite), ("name", &self.name), ("time", &time)];
        xml.raw("    ");
        match &self.outcome {
            Outcome::Passed => {
                xml.empty("testcase", &attributes);
            }
            Outcome::Failed(why) => {
                xml.open("testcase", &attributes);
                xml.element(
                    "failure",
                    &[("message", why), ("type", &"expectation")],
                    why,
                );
                xml.close("testcase");
            }
            Outcome::Error(why) => {
                xml.open("testcase", &attributes);
                xml.element("error", &[("message", why), ("type", &"drill")], why);
                xml.close("testcase");
            }
            Outcome::Skipped(why) => {
                xml.open("testcase", &attributes)
                    .empty("skipped", &[("message", why)]);
                xml.close("testcase");
            }
        }
        xml.raw("\n");
    }
}

fn seconds(time: f64) -> String {
    format!("{time:.3}")
}

#[cfg(test)]
mod tests {
    use super::super::samples;
    use super::*;

    #[test]
    fn every_expectation_is_a_test_case() {
        let xml = document(&Report::of_one(samples::recovered()));
        for part in [
            "<testsuites name=\"skiff drill\" tests=\"3\" failures=\"0\" errors=\"0\" skipped=\"0\"",
            "<testsuite name=\"container-kill-x7k2p\" tests=\"3\"",
            "timestamp=\"2026-11-23T04:12:18.",
            "<property name=\"seed\" value=\"42\"/>",
            "name=\"recovery within 2 min 0.0 s\" time=\"0.411\"/>",
            "name=\"recovery&lt;5s\" time=\"0.000\"/>",
        ] {
            assert!(xml.contains(part), "no {part} in\n{xml}");
        }
    }

    #[test]
    fn what_was_not_met_is_a_failure_with_the_measure() {
        let xml = document(&Report::of_one(samples::never_recovered()));
        assert!(xml.contains("failures=\"2\""), "{xml}");
        assert!(
            xml.contains("expected recovery&lt;5s, measured never"),
            "{xml}"
        );
    }

    #[test]
    fn what_was_not_measured_is_an_error() {
        let xml = document(&Report::of_one(samples::refused()));
        assert!(xml.contains("errors=\"1\" skipped=\"1\""), "{xml}");
        assert!(xml.contains("the drill was refused: "), "{xml}");
    }

    #[test]
    fn a_game_day_has_a_suite_for_each_drill() {
        let xml = document(&samples::game_day());
        assert!(xml.contains("<testsuites name=\"friday\""), "{xml}");
        assert_eq!(xml.matches("<testsuite ").count(), 3);
        assert!(xml.contains("a step before it did not pass"), "{xml}");
    }

    #[test]
    fn hostile_names_stay_names() {
        let xml = document(&Report::of_one(samples::hostile()));
        assert!(!xml.contains("<script"), "{xml}");
    }
}
