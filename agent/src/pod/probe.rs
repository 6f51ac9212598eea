//! Probes: is a container started, alive, ready?
//!
//! One task runs one probe of one container from its start to its end. It sends a verdict when
//! the probe's thresholds are crossed; the worker draws the consequences. Timings are the
//! kubelet's: the first probe right after `initialDelaySeconds`, then one every `periodSeconds`. So are the
//! events: a probe that could not be made at all is told, but counts neither way.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::backoff::go_seconds;
use super::events::{Events, Severity};
use super::grpc_check;
use super::http_check::{self, Purpose};
use super::network_check::{self, CheckError};
use super::seams::{ExecOutcome, PodSandbox};

/// What a probe is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Startup,
    Liveness,
    Readiness,
}

impl Kind {
    /// As events and messages name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }

    /// The container's probe of this kind.
    pub fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Self::Startup => container.startup_probe.as_ref(),
            Self::Liveness => container.liveness_probe.as_ref(),
            Self::Readiness => container.readiness_probe.as_ref(),
        }
    }
}

/// A threshold was crossed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub container_id: String,
    pub kind: Kind,
    pub success: bool,
}

/// One container under probe.
pub(super) struct Subject {
    pub(super) pod: Arc<Pod>,
    pub(super) container: Container,
    /// Path in the pod's declaration, for events.
    pub(super) field: String,
    pub(super) container_id: String,
    pub(super) sandbox: Arc<dyn PodSandbox>,
    pub(super) pod_ip: String,
    pub(super) started: Instant,
    pub(super) events: Events,
    /// What holds before the first verdict.
    pub(super) ready: bool,
}

/// Probes until the receiver of verdicts is gone, or the probe's work is done: a startup probe
/// ends with its first verdict, a liveness probe with its failure.
pub(super) async fn run(kind: Kind, subject: Subject, verdicts: mpsc::Sender<Verdict>) {
    let Some(probe) = kind.of(&subject.container).cloned() else {
        return;
    };
    let seconds = |value: Option<i32>, default: u64| {
        let value = value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0);
        Duration::from_secs(value.unwrap_or(default))
    };
    let initial = seconds(probe.initial_delay_seconds, 0);
    let mut ticks =
        tokio::time::interval_at(subject.started + initial, seconds(probe.period_seconds, 10));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tally = Tally::new(kind, &probe, subject.ready);
    loop {
        ticks.tick().await;
        let outcome = attempt(&probe, &subject, seconds(probe.timeout_seconds, 1)).await;
        subject.tell(kind, &outcome);
        let Some(success) = outcome.succeeded().and_then(|success| tally.count(success)) else {
            continue;
        };
        let verdict = Verdict {
            container_id: subject.container_id.clone(),
            kind,
            success,
        };
        let done = kind == Kind::Startup || (kind == Kind::Liveness && !success);
        if verdicts.send(verdict).await.is_err() || done {
            return;
        }
    }
}

/// Counts results in a row against the thresholds.
struct Tally {
    success_threshold: u32,
    failure_threshold: u32,
    last: Option<bool>,
    in_a_row: u32,
    verdict: Option<bool>,
}

impl Tally {
    fn new(kind: Kind, probe: &Probe, ready: bool) -> Self {
        let threshold = |value: Option<i32>, default| {
            let value = value.and_then(|v| u32::try_from(v).ok());
            value.filter(|v| *v > 0).unwrap_or(default)
        };
        Self {
            success_threshold: threshold(probe.success_threshold, 1),
            failure_threshold: threshold(probe.failure_threshold, 3),
            last: None,
            in_a_row: 0,
            verdict: match kind {
                Kind::Startup => None,
                Kind::Liveness => Some(true),
                Kind::Readiness => Some(ready),
            },
        }
    }

    /// The new verdict, if this result changes it.
    fn count(&mut self, success: bool) -> Option<bool> {
        self.in_a_row = if self.last == Some(success) {
            self.in_a_row.saturating_add(1)
        } else {
            1
        };
        self.last = Some(success);
        let threshold = if success {
            self.success_threshold
        } else {
            self.failure_threshold
        };
        if self.in_a_row < threshold || self.verdict == Some(success) {
            return None;
        }
        self.verdict = Some(success);
        Some(success)
    }
}

/// Attempts at a probe that can't be made, each right after the other.
const TRIES: usize = 3;

async fn attempt(probe: &Probe, subject: &Subject, limit: Duration) -> Outcome {
    let mut outcome = attempt_once(probe, subject, limit).await;
    for _ in 1..TRIES {
        if !matches!(outcome, Outcome::Unknown(_)) {
            break;
        }
        outcome = attempt_once(probe, subject, limit).await;
    }
    outcome
}

async fn attempt_once(probe: &Probe, subject: &Subject, limit: Duration) -> Outcome {
    let (container, ip) = (&subject.container, subject.pod_ip.as_str());
    if let Some(action) = &probe.exec {
        let command = action.command.clone().unwrap_or_default();
        let (id, sandbox) = (&subject.container_id, &subject.sandbox);
        return match sandbox.exec(id, &command, Some(limit)).await {
            Ok(ExecOutcome::Exited { code: 0, .. }) => Outcome::Success,
            Ok(ExecOutcome::Exited { output, .. }) => Outcome::Failure(output),
            Ok(ExecOutcome::TimedOut) => Outcome::Failure(format!(
                "command timed out: {:?} timed out after {}",
                command.join(" "),
                go_seconds(limit)
            )),
            Err(error) => Outcome::Unknown(error.to_string()),
        };
    }
    if let Some(action) = &probe.http_get {
        let answer = http_check::get(container, action, ip, limit, Purpose::Probe).await;
        return match answer {
            Ok(answer) => match answer.status {
                200..300 => Outcome::Success,
                300..400 => Outcome::Warning(format!(
                    "Probe terminated redirects, Response body: {}",
                    answer.body
                )),
                status => Outcome::Failure(format!("HTTP probe failed with statuscode: {status}")),
            },
            Err(error) => error.into(),
        };
    }
    let checked = match (&probe.tcp_socket, &probe.grpc) {
        (Some(action), _) => network_check::tcp(container, action, ip, limit).await,
        (None, Some(action)) => grpc_check::check(action, ip, limit).await,
        (None, None) => Err(CheckError::Invalid("missing probe handler".to_owned())),
    };
    checked.map_or_else(Outcome::from, |()| Outcome::Success)
}

/// How one probe ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Success,
    /// Good enough.
    Warning(String),
    Failure(String),
    /// The probe could not be made.
    Unknown(String),
}

impl From<CheckError> for Outcome {
    fn from(error: CheckError) -> Self {
        match error {
            CheckError::Failed(message) => Self::Failure(message),
            CheckError::Invalid(message) => Self::Unknown(message),
        }
    }
}

impl Outcome {
    fn succeeded(&self) -> Option<bool> {
        match self {
            Self::Success | Self::Warning(_) => Some(true),
            Self::Failure(_) => Some(false),
            Self::Unknown(_) => None,
        }
    }
}

impl Subject {
    fn tell(&self, kind: Kind, outcome: &Outcome) {
        let kind = kind.name();
        let (reason, message) = match outcome {
            Outcome::Success => return,
            Outcome::Warning(text) => ("ProbeWarning", format!("{kind} probe warning: {text}")),
            Outcome::Failure(text) => ("Unhealthy", format!("{kind} probe failed: {text}")),
            Outcome::Unknown(text) => (
                "Unhealthy",
                format!("{kind} probe errored and resulted in unknown state: {text}"),
            ),
        };
        let (events, pod, field) = (&self.events, &self.pod, &self.field);
        events.container(pod, field, Severity::Warning, reason, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(kind: Kind, success: i32, failure: i32, results: &str) -> String {
        let probe = Probe {
            success_threshold: Some(success),
            failure_threshold: Some(failure),
            ..Probe::default()
        };
        let mut tally = Tally::new(kind, &probe, false);
        let one = |c: char| match tally.count(c == '+') {
            Some(true) => 'T',
            Some(false) => 'F',
            None => '.',
        };
        results.chars().map(one).collect()
    }

    #[test]
    fn thresholds() {
        assert_eq!(verdicts(Kind::Readiness, 1, 3, "--+--+---+"), "..T.....FT");
        assert_eq!(verdicts(Kind::Readiness, 2, 1, "+-++-"), "...TF");
        assert_eq!(verdicts(Kind::Liveness, 1, 3, "++---"), "....F");
        assert_eq!(verdicts(Kind::Startup, 1, 3, "--+"), "..T");
        assert_eq!(verdicts(Kind::Startup, 1, 2, "--"), ".F");
    }
}
