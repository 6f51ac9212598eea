//! Expectations: what must hold of a drill's report, as `recovery<5s`, `failed<1%`, `restarts=0`.
//!
//! `METRIC OP VALUE`. What was not measured meets nothing: a target that never recovered misses
//! `recovery>1s` too, so that an expectation can't be met by accident.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::{DrillStatus, ExpectationResult, GoDuration, Latency, Requests};

/// Numbers in reports are rounded to a millisecond: half of one is no difference.
const SAME_TIME: f64 = 0.000_5;

/// One thing that must hold of a report.
#[derive(Debug, Clone, PartialEq)]
pub struct Expectation {
    metric: Metric,
    comparison: Comparison,
    bound: Bound,
    text: String,
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metric {
    Recovery,
    Detect,
    Gap,
    LatencyP50,
    LatencyP99,
    LatencyMax,
    Failed,
    Sent,
    Restarts,
    Moved,
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bound {
    Time(GoDuration),
    Count(u32),
    /// Of the requests that were sent.
    Percent(f64),
}

/// Why a text is no expectation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidExpectation {
    #[error(
        "{0:?} is no expectation: write METRIC OP VALUE, as recovery<5s, with one of < <= > >= ="
    )]
    Form(String),
    #[error("nothing called {metric:?} is measured; there are {}", Metric::names())]
    Metric { metric: String },
    #[error("{value:?} can't be compared with {metric}: {wanted}")]
    Value {
        metric: &'static str,
        value: String,
        wanted: &'static str,
    },
}

impl Metric {
    const ALL: [Self; 11] = [
        Self::Recovery,
        Self::Detect,
        Self::Gap,
        Self::LatencyP50,
        Self::LatencyP99,
        Self::LatencyMax,
        Self::Failed,
        Self::Sent,
        Self::Restarts,
        Self::Moved,
        Self::Lost,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Recovery => "recovery",
            Self::Detect => "detect",
            Self::Gap => "gap",
            Self::LatencyP50 => "latency.p50",
            Self::LatencyP99 => "latency.p99",
            Self::LatencyMax => "latency.max",
            Self::Failed => "failed",
            Self::Sent => "sent",
            Self::Restarts => "restarts",
            Self::Moved => "moved",
            Self::Lost => "lost",
        }
    }

    fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    fn bound(self, value: &str) -> Result<Bound, InvalidExpectation> {
        let wrong = |wanted| InvalidExpectation::Value {
            metric: self.name(),
            value: value.to_owned(),
            wanted,
        };
        match self {
            Self::Recovery
            | Self::Detect
            | Self::Gap
            | Self::LatencyP50
            | Self::LatencyP99
            | Self::LatencyMax => {
                let duration = value.parse().map(Bound::Time);
                duration.map_err(|_| wrong("it takes a duration such as 5s or 250ms"))
            }
            Self::Failed => match value.strip_suffix('%') {
                Some(share) => percent(share)
                    .map(Bound::Percent)
                    .ok_or_else(|| wrong("a share is between 0% and 100%")),
                None => count(value)
                    .map(Bound::Count)
                    .ok_or_else(|| wrong("it takes a number of requests, or a share such as 1%")),
            },
            Self::Sent | Self::Restarts | Self::Moved | Self::Lost => count(value)
                .map(Bound::Count)
                .ok_or_else(|| wrong("it takes a whole number")),
        }
    }

    /// What the report says of it, as something to compare and to print; a sentence when it does
    /// not say.
    fn measured(self, report: &DrillStatus, bound: Bound) -> Result<Measured, &'static str> {
        let requests = report.requests.as_ref();
        let latency = |pick: fn(&Latency) -> f64| {
            let latency = requests.and_then(|requests| requests.latency.as_ref());
            let latency = latency.ok_or("no request was answered")?;
            Ok(Measured::time(pick(latency)))
        };
        let probed = requests.ok_or("nothing was probed");
        match self {
            Self::Recovery => match (report.recovered, report.time_to_recover) {
                (Some(false), _) | (_, None) => Err("it did not recover"),
                (_, Some(seconds)) => Ok(Measured::time(seconds)),
            },
            Self::Detect => report
                .time_to_detect
                .map(Measured::time)
                .ok_or("it was not detected"),
            Self::Gap => Ok(Measured::time(probed?.longest_gap)),
            Self::LatencyP50 => latency(|latency| latency.p50),
            Self::LatencyP99 => latency(|latency| latency.p99),
            Self::LatencyMax => latency(|latency| latency.max),
            Self::Failed => failed(probed?, bound),
            Self::Sent => Ok(Measured::count(probed?.sent)),
            Self::Restarts => report
                .restarts
                .map(Measured::count)
                .ok_or("restarts were not counted"),
            Self::Moved => report
                .pods_moved
                .map(Measured::count)
                .ok_or("moved pods were not counted"),
            Self::Lost => report
                .writes
                .as_ref()
                .map(|writes| Measured::count(writes.lost))
                .ok_or("nothing was written"),
        }
    }
}

fn failed(requests: &Requests, bound: Bound) -> Result<Measured, &'static str> {
    if requests.sent == 0 {
        return Err("no request was sent");
    }
    if !matches!(bound, Bound::Percent(_)) {
        return Ok(Measured::count(requests.failed));
    }
    let share = requests.failed as f64 / requests.sent as f64 * 100.0;
    let text = format!("{:.2}", share);
    let text = text.trim_end_matches('0').trim_end_matches('.');
    Ok(Measured {
        value: share,
        text: format!("{text}% ({}/{})", requests.failed, requests.sent),
    })
}

/// A number of a report, and how it is told.
struct Measured {
    value: f64,
    text: String,
}

impl Measured {
    fn time(seconds: f64) -> Self {
        let milliseconds = (seconds.max(0.0) * 1000.0).round() as u64;
        Self {
            value: seconds,
            text: GoDuration(Duration::from_millis(milliseconds)).to_string(),
        }
    }

    fn count(count: i64) -> Self {
        Self {
            value: count as f64,
            text: count.to_string(),
        }
    }
}

fn count(text: &str) -> Option<u32> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_plain.then(|| text.parse().ok()).flatten()
}

fn percent(text: &str) -> Option<f64> {
    let is_plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let share: f64 = is_plain.then(|| text.parse().ok()).flatten()?;
    (0.0..=100.0).contains(&share).then_some(share)
}

impl Comparison {
    /// Splits a text at its operator.
    fn split(text: &str) -> Option<(&str, Self, &str)> {
        let at = text.find(['<', '>', '='])?;
        let (metric, rest) = text.split_at(at);
        let operators = [
            ("<=", Self::LessOrEqual),
            (">=", Self::GreaterOrEqual),
            ("<", Self::Less),
            (">", Self::Greater),
            ("=", Self::Equal),
        ];
        operators.into_iter().find_map(|(operator, comparison)| {
            let value = rest.strip_prefix(operator)?;
            Some((metric.trim(), comparison, value.trim()))
        })
    }

    const fn sign(self) -> &'static str {
        match self {
            Self::Less => "<",
            Self::LessOrEqual => "<=",
            Self::Greater => ">",
            Self::GreaterOrEqual => ">=",
            Self::Equal => "=",
        }
    }

    /// Whether it holds; values closer than `same` are equal.
    fn holds(self, value: f64, bound: f64, same: f64) -> bool {
        let equal = (value - bound).abs() < same;
        match self {
            Self::Less => value < bound && !equal,
            Self::LessOrEqual => value < bound || equal,
            Self::Greater => value > bound && !equal,
            Self::GreaterOrEqual => value > bound || equal,
            Self::Equal => equal,
        }
    }
}

impl Expectation {
    /// Whether a report meets it, and what was measured.
    pub fn evaluate(&self, report: &DrillStatus) -> ExpectationResult {
        let (met, actual) = match self.metric.measured(report, self.bound) {
            Ok(measured) => (self.is_met_by(measured.value), measured.text),
            Err(why) => (false, why.to_owned()),
        };
        ExpectationResult {
            text: self.text.clone(),
            met,
            actual,
        }
    }

    fn is_met_by(&self, value: f64) -> bool {
        let (bound, same) = match self.bound {
            Bound::Time(duration) => (duration.0.as_secs_f64(), SAME_TIME),
            Bound::Count(count) => (f64::from(count), 0.5),
            Bound::Percent(share) => (share, 1e-9),
        };
        self.comparison.holds(value, bound, same)
    }
}

impl FromStr for Expectation {
    type Err = InvalidExpectation;

    fn from_str(text: &str) -> Result<Self, InvalidExpectation> {
        let form = || InvalidExpectation::Form(text.to_owned());
        let (metric, comparison, value) = Comparison::split(text).ok_or_else(form)?;
        if metric.is_empty() || value.is_empty() || value.starts_with(['<', '>', '=']) {
            return Err(form());
        }
        let named = Metric::ALL.into_iter().find(|known| known.name() == metric);
        let metric = named.ok_or_else(|| InvalidExpectation::Metric {
            metric: metric.to_owned(),
        })?;
        Ok(Self {
            metric,
            comparison,
            bound: metric.bound(value)?,
            text: text.to_owned(),
        })
    }
}

/// Without blanks, as `recovery<5s`.
impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.metric.name(), self.comparison.sign())?;
        match self.bound {
            Bound::Time(duration) => write!(f, "{duration}"),
            Bound::Count(count) => write!(f, "{count}"),
            Bound::Percent(share) => write!(f, "{share}%"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Writes;

    fn report() -> DrillStatus {
        DrillStatus {
            recovered: Some(true),
            time_to_detect: Some(0.012),
            time_to_recover: Some(1.234),
            restarts: Some(0),
            pods_moved: Some(2),
            requests: Some(Requests {
                sent: 600,
                failed: 3,
                longest_gap: 0.3,
                latency: Some(Latency {
                    p50: 0.001,
                    p99: 0.02,
                    max: 0.9,
                }),
                ..Requests::default()
            }),
            writes: Some(Writes {
                lost: 0,
                ..Writes::default()
            }),
            ..DrillStatus::default()
        }
    }

    fn evaluated(text: &str, report: &DrillStatus) -> (bool, String) {
        let expectation: Expectation = text.parse().unwrap();
        let result = expectation.evaluate(report);
        assert_eq!(result.text, text);
        (result.met, result.actual)
    }

    #[test]
    fn reports_are_held_against_expectations() {
        for (text, met, actual) in [
            ("recovery<5s", true, "1.234s"),
            ("recovery < 1s", false, "1.234s"),
            ("recovery<1234ms", false, "1.234s"),
            ("recovery<=1234ms", true, "1.234s"),
            ("recovery=1.234s", true, "1.234s"),
            ("recovery>1s", true, "1.234s"),
            ("detect<=12ms", true, "12ms"),
            ("gap>=1m", false, "300ms"),
            ("latency.p50<5ms", true, "1ms"),
            ("latency.p99<5ms", false, "20ms"),
            ("latency.max<1s", true, "900ms"),
            ("failed<1%", true, "0.5% (3/600)"),
            ("failed<0.5%", false, "0.5% (3/600)"),
            ("failed=0", false, "3"),
            ("failed<=3", true, "3"),
            ("sent>=600", true, "600"),
            ("restarts=0", true, "0"),
            ("moved>2", false, "2"),
            ("lost=0", true, "0"),
        ] {
            assert_eq!(
                evaluated(text, &report()),
                (met, actual.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_was_not_measured_meets_nothing() {
        let nothing = DrillStatus::default();
        for (text, why) in [
            ("recovery<5s", "it did not recover"),
            ("recovery>0", "it did not recover"),
            ("detect<5s", "it was not detected"),
            ("failed=0", "nothing was probed"),
            ("failed<1%", "nothing was probed"),
            ("gap<1s", "nothing was probed"),
            ("latency.p99<1s", "no request was answered"),
            ("restarts=0", "restarts were not counted"),
            ("moved=0", "moved pods were not counted"),
            ("lost=0", "nothing was written"),
        ] {
            assert_eq!(evaluated(text, &nothing), (false, why.to_owned()), "{text}");
        }
        let unsent = DrillStatus {
            requests: Some(Requests::default()),
            ..DrillStatus::default()
        };
        let why = "no request was sent".to_owned();
        assert_eq!(evaluated("failed<1%", &unsent), (false, why.clone()));
        assert_eq!(evaluated("failed=0", &unsent), (false, why));
    }

    #[test]
    fn a_time_of_an_attempt_that_failed_is_none() {
        let report = DrillStatus {
            recovered: Some(false),
            time_to_recover: Some(1.0),
            ..DrillStatus::default()
        };
        assert!(!evaluated("recovery<5s", &report).0);
    }

    #[test]
    fn wrong_ones_are_refused_with_a_reason() {
        for text in [
            "",
            " ",
            "recovery",
            "recovery 5s",
            "recovery~5s",
            "recovery<",
            "<5s",
            "=",
            "recovery<<5s",
            "recovery==5s",
            "recovery=<5s",
            "recovery><5s",
            "recovery!5s",
        ] {
            let refused = text.parse::<Expectation>().unwrap_err();
            assert_eq!(refused, InvalidExpectation::Form(text.to_owned()), "{text}");
        }
        for text in [
            "recover<5s",
            "Recovery<5s",
            "latency<5s",
            "latency.p95<5s",
            "not recovery<5s",
            "recovery!=5s",
        ] {
            let refused = text.parse::<Expectation>().unwrap_err();
            assert!(
                matches!(refused, InvalidExpectation::Metric { .. }),
                "{text}"
            );
        }
        for text in [
            "recovery<5",
            "recovery<-5s",
            "recovery<5 s s",
            "recovery<1%",
            "recovery<fast",
            "gap<5d",
            "failed<1s",
            "failed<-1",
            "failed<1.5",
            "failed<101%",
            "failed<-1%",
            "failed<%",
            "failed<1%%",
            "failed<NaN%",
            "failed<inf%",
            "failed<1e1%",
            "restarts=none",
            "restarts=0%",
            "restarts=+1",
            "restarts<99999999999",
            "moved<1.0",
            "lost=0s",
            "sent>1%",
        ] {
            let refused = text.parse::<Expectation>().unwrap_err();
            assert!(
                matches!(refused, InvalidExpectation::Value { .. }),
                "{text}"
            );
        }
        let unknown = "recover<5s".parse::<Expectation>().unwrap_err();
        assert_eq!(
            unknown.to_string(),
            "nothing called \"recover\" is measured; there are recovery, detect, gap, latency.p50, \
             latency.p99, latency.max, failed, sent, restarts, moved, lost"
        );
        let share = "failed<101%".parse::<Expectation>().unwrap_err();
        assert_eq!(
            share.to_string(),
            "\"101%\" can't be compared with failed: a share is between 0% and 100%"
        );
    }

    #[test]
    fn they_are_printed_as_they_are_meant() {
        for (given, printed) in [
            (" recovery  <= 90s ", "recovery<=1m30s"),
            ("failed<0.50%", "failed<0.5%"),
            ("restarts=007", "restarts=7"),
            ("gap>0", "gap>0s"),
        ] {
            let expectation: Expectation = given.parse().unwrap();
            assert_eq!(expectation.to_string(), printed);
            assert_eq!(printed.parse::<Expectation>().unwrap().to_string(), printed);
        }
    }
}
