//! Looking after a container that runs: a changed declaration, probes, ending it to start it anew.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::probe::{self, Kind, Verdict};
use super::slot::{Activity, Role};
use super::status::Attempt;
use super::stop::Stop;
use super::tasks::Done;
use super::worker::{SandboxStage, Worker};

impl Worker {
    /// Looks after a container that runs: its declaration, its probes.
    pub(super) fn tend(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        let declared = slot.spec.image.as_deref().unwrap_or_default();
        let declared = self.node.images.canonical(declared);
        let runs = slot.current.as_ref().map(|a| a.record.image.as_str());
        if runs != Some(declared.as_str()) && slot.role != Role::Init {
            let name = &slot.spec.name;
            let message = format!("Container {name} definition changed, will be restarted");
            return self.stop(index, message, None);
        }
        slot.assume_unprobed();
        self.probe(index);
    }

    /// Starts the probes that are due: startup first, the others once it succeeded.
    fn probe(&mut self, index: usize) {
        let SandboxStage::Live(live) = &self.sandbox else {
            return;
        };
        let slot = &mut self.slots[index];
        let Some(id) = slot.running().map(str::to_owned) else {
            return;
        };
        // Probes change hands when the container has started up.
        let stage = format!("{id} {}", slot.started);
        if slot.role == Role::Init || slot.probed.as_ref() == Some(&stage) {
            return;
        }
        slot.probed = Some(stage);
        let kinds: &[Kind] = match slot.started {
            false => &[Kind::Startup],
            true => &[Kind::Liveness, Kind::Readiness],
        };
        for kind in kinds {
            if kind.of(&slot.spec).is_none() {
                continue;
            }
            let subject = probe::Subject {
                pod: self.pod.clone(),
                container: slot.spec.clone(),
                field: slot.field(),
                container_id: id.clone(),
                sandbox: live.sandbox.clone(),
                pod_ip: live
                    .ips
                    .first()
                    .map(ToString::to_string)
                    .unwrap_or_default(),
                started: slot.current.as_ref().map_or_else(Instant::now, started_at),
                events: self.node.events.clone(),
                ready: slot.ready,
            };
            let probe = slot
                .probes
                .spawn(probe::run(*kind, subject, self.verdicts.clone()));
            if *kind != Kind::Readiness {
                slot.vital_probes.push(probe);
            }
        }
    }

    /// Nobody asks any more whether containers live: they are about to end. Whether they are ready goes on to count.
    pub(super) fn end_vital_probes(&mut self) {
        for slot in &mut self.slots {
            for probe in slot.vital_probes.drain(..) {
                probe.abort();
            }
        }
    }

    /// Draws the consequence of a probe's verdict.
    pub(super) fn judge(&mut self, verdict: Verdict) {
        let found = self
            .slots
            .iter()
            .position(|s| s.running() == Some(verdict.container_id.as_str()));
        let Some(index) = found else { return };
        let policy = self.restart_policy();
        let slot = &mut self.slots[index];
        match (verdict.kind, verdict.success) {
            (Kind::Startup, true) => {
                slot.started = true;
                slot.assume_unprobed();
            }
            (Kind::Readiness, ready) => slot.ready = ready,
            (Kind::Liveness, true) => {}
            (kind @ (Kind::Startup | Kind::Liveness), false) => {
                let probe = kind.of(&slot.spec);
                let grace = probe.and_then(|p| p.termination_grace_period_seconds);
                let (name, kind) = (&slot.spec.name, kind.name().to_lowercase());
                let message = match (slot.role, policy.as_str()) {
                    (Role::Sidecar, _) => format!("Init container {name} failed {kind} probe"),
                    (_, "Never") => format!("Container {name} failed {kind} probe"),
                    _ => format!("Container {name} failed {kind} probe, will be restarted"),
                };
                if self.ending.is_none() {
                    self.stop(index, message, grace);
                }
            }
        }
    }

    /// Ends one container of a pod that goes on.
    pub(super) fn stop(&mut self, index: usize, message: String, grace: Option<i64>) {
        let spec = self.pod.spec.as_ref();
        let grace = grace.or_else(|| spec.and_then(|s| s.termination_grace_period_seconds));
        let grace = u64::try_from(grace.unwrap_or(30)).unwrap_or(0);
        let deadline = Instant::now() + Duration::from_secs(grace);
        let (_, deadline) = watch::channel(deadline);
        self.spawn_stop(index, message, deadline);
    }

    /// Starts ending a container that runs.
    pub(super) fn spawn_stop(
        &mut self,
        index: usize,
        message: String,
        deadline: watch::Receiver<Instant>,
    ) {
        let SandboxStage::Live(live) = &self.sandbox else {
            return;
        };
        let slot = &mut self.slots[index];
        let Some(id) = slot.running().map(str::to_owned) else {
            return;
        };
        if let Activity::Hooking(hook) = &slot.activity {
            hook.abort();
        }
        slot.activity = Activity::Stopping;
        let stop = Stop {
            node: self.node.clone(),
            pod: self.pod.clone(),
            container: slot.spec.clone(),
            field: slot.field(),
            id: id.clone(),
            live: live.clone(),
            deadline,
            message,
        };
        self.tasks.spawn(async move {
            stop.run().await;
            Done::Stopped(index, id)
        });
    }
}

/// When an attempt was started, on the monotonic clock.
fn started_at(attempt: &Attempt) -> Instant {
    let now = Instant::now();
    let started = attempt.record.started_at();
    let started = started.and_then(|at| at.parse::<Timestamp>().ok());
    let Some(started) = started else { return now };
    let ago = Timestamp::now().duration_since(started);
    now.checked_sub(Duration::try_from(ago).unwrap_or_default())
        .unwrap_or(now)
}
