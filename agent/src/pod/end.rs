//! Ending a pod: because its object was deleted or is gone, because it is done, or because the
//! node gives up on it.
//!
//! Containers are stopped (sidecars last, the last one first), the final status is written, the
//! sandbox, network and volumes are taken down, and then a deleted pod's object is removed from
//! the API. A pod that is done keeps its directory, for its logs, until its object is deleted.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;

use super::seams::{SeamResult, WriteError};
use super::slot::{Activity, Role};
use super::status::Failure;
use super::tasks::{self, Done};
use super::worker::{Retry, SandboxStage, VolumeStage, Worker};

/// A pod on its way out.
pub(super) struct Ending {
    /// When containers are killed at the latest.
    deadline: watch::Sender<Instant>,
    /// The grace period that `deadline` was made from, in seconds.
    grace: i64,
    /// The node gave up on the pod.
    pub(super) failure: Option<Failure>,
    /// No container runs any more, and none will.
    pub(super) all_stopped: bool,
    teardown: Step,
    deletion: Step,
    retry: Retry,
}

/// A thing to be done once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    ToDo,
    Doing,
    Done,
}

impl Ending {
    fn new(grace: i64, failure: Option<Failure>) -> Self {
        Self {
            deadline: watch::channel(after(grace)).0,
            grace,
            failure,
            all_stopped: false,
            teardown: Step::ToDo,
            deletion: Step::ToDo,
            retry: Retry::default(),
        }
    }

    /// A shorter grace period takes effect at once.
    fn shorten(&mut self, grace: i64) {
        if grace < self.grace {
            self.grace = grace;
            let deadline = after(grace);
            self.deadline.send_if_modified(|at| {
                let sooner = deadline < *at;
                *at = deadline.min(*at);
                sooner
            });
        }
    }
}

fn after(seconds: i64) -> Instant {
    Instant::now() + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

impl Worker {
    /// Begins the end when there is a reason for it.
    pub(super) fn check_end(&mut self) {
        let grace = self.grace();
        if let Some(ending) = &mut self.ending {
            if self.gone || self.pod.metadata.deletion_timestamp.is_some() {
                ending.shorten(grace);
            }
            return;
        }
        let phase = || {
            let status = self.compute();
            let phase = status.phase.unwrap_or_default();
            matches!(phase.as_str(), "Succeeded" | "Failed")
        };
        if self.gone || self.pod.metadata.deletion_timestamp.is_some() || phase() {
            self.begin_end(grace, None);
        } else if let Some(failure) = self.deadline_exceeded() {
            self.begin_end(grace, Some(failure));
        }
    }

    fn begin_end(&mut self, grace: i64, failure: Option<Failure>) {
        self.ending = Some(Ending::new(grace, failure));
        self.end_vital_probes();
    }

    /// Seconds that containers get to end by themselves.
    fn grace(&self) -> i64 {
        let spec = self.pod.spec.as_ref();
        let declared = spec.and_then(|s| s.termination_grace_period_seconds);
        let asked = self.pod.metadata.deletion_grace_period_seconds;
        asked.or(declared).unwrap_or(30)
    }

    /// Checks `activeDeadlineSeconds`, and asks to be woken when it is over.
    fn deadline_exceeded(&mut self) -> Option<Failure> {
        let limit = self.pod.spec.as_ref()?.active_deadline_seconds?;
        let started = self.status.as_ref()?.start_time.as_ref()?.0;
        let left = limit - Timestamp::now().duration_since(started).as_secs();
        if left > 0 {
            self.wake_at(after(left));
            return None;
        }
        Some(Failure {
            reason: "DeadlineExceeded".to_owned(),
            message: "Pod was active on the node longer than the specified deadline".to_owned(),
        })
    }

    /// Does the next thing on the way out.
    pub(super) fn drive_end(&mut self) {
        self.stop_all();
        if !self.everything_stopped() {
            return;
        }
        let Some(ending) = &mut self.ending else {
            return;
        };
        ending.all_stopped = true;
        for slot in &mut self.slots {
            slot.waiting = None;
        }
        if let Some(at) = ending.retry.at.filter(|at| *at > Instant::now()) {
            return self.wake_at(at);
        }
        if ending.teardown == Step::ToDo {
            ending.teardown = Step::Doing;
            self.spawn_teardown();
        }
        if self
            .ending
            .as_ref()
            .is_some_and(|e| e.teardown == Step::Done)
        {
            self.leave();
        }
    }

    fn stop_all(&mut self) {
        for slot in &mut self.slots {
            if let Activity::Resolving(pull) = &slot.activity {
                pull.abort();
                slot.activity = Activity::Idle;
            }
        }
        let busy = |role: Role, w: &Self| {
            let mut slots = w.slots.iter().filter(|s| s.role == role);
            slots.any(|s| !s.is_at_rest())
        };
        for index in 0..self.slots.len() {
            if self.slots[index].role != Role::Sidecar {
                self.stop_at_end(index);
            }
        }
        if busy(Role::Main, self) || busy(Role::Init, self) {
            return;
        }
        // Sidecars end one after the other, the last one first.
        let last = (0..self.slots.len())
            .rev()
            .find(|i| self.slots[*i].role == Role::Sidecar && !self.slots[*i].is_at_rest());
        if let Some(index) = last {
            self.stop_at_end(index);
        }
    }

    fn stop_at_end(&mut self, index: usize) {
        let slot = &self.slots[index];
        let stoppable = matches!(slot.activity, Activity::Idle | Activity::Hooking(_));
        if !stoppable || slot.running().is_none() || slot.closing.is_some() {
            return;
        }
        let Some(ending) = &self.ending else { return };
        let deadline = ending.deadline.subscribe();
        let message = format!("Stopping container {}", slot.spec.name);
        self.spawn_stop(index, message, deadline);
    }

    fn everything_stopped(&self) -> bool {
        let starting = matches!(self.sandbox, SandboxStage::Starting)
            || matches!(self.volumes, VolumeStage::SettingUp);
        !starting && self.slots.iter().all(super::slot::Slot::is_at_rest)
    }

    fn spawn_teardown(&mut self) {
        let sandbox = match std::mem::replace(&mut self.sandbox, SandboxStage::TornDown) {
            SandboxStage::Live(live) => Some(live.sandbox),
            _ => None,
        };
        self.torn = sandbox.or(self.torn.take());
        self.volumes = VolumeStage::Absent;
        let attempts = self.slots.iter().flat_map(|s| [&s.current, &s.previous]);
        let held = attempts.flatten().map(|a| a.record.id.clone()).collect();
        let uid = self.pod.metadata.uid.clone().unwrap_or_default();
        let (node, pod_dir) = (self.node.clone(), self.pod_dir.clone());
        let teardown = tasks::tear_down(node, uid, pod_dir, self.torn.clone(), held);
        self.tasks
            .spawn(async move { Done::TornDown(teardown.await) });
    }

    pub(super) fn take_torn_down(&mut self, result: SeamResult<()>) {
        let Some(ending) = &mut self.ending else {
            return;
        };
        match result {
            Ok(()) => {
                ending.teardown = Step::Done;
                ending.retry.clear();
                self.torn = None;
            }
            Err(error) => {
                tracing::warn!(pod = self.pod.metadata.name, %error, "pod not taken down, trying again");
                ending.teardown = Step::ToDo;
                ending.retry.failed(10.0);
            }
        }
    }

    /// Removes the object, if it is being deleted, and then what is left here.
    fn leave(&mut self) {
        let deleted = self.pod.metadata.deletion_timestamp.is_some();
        let Some(ending) = &mut self.ending else {
            return;
        };
        if ending.deletion == Step::Done {
            return;
        }
        if self.gone {
            ending.deletion = Step::Done;
            let removal = tasks::remove_directory(self.pod_dir.clone());
            self.tasks.spawn(async move {
                removal.await;
                Done::Removed
            });
        } else if deleted && ending.deletion == Step::ToDo {
            ending.deletion = Step::Doing;
            let settled = self.writer.settled();
            let (api, pod) = (self.node.api.clone(), self.pod.clone());
            self.tasks.spawn(async move {
                settled.await;
                Done::Deleted(api.delete(&pod).await)
            });
        }
    }

    pub(super) fn take_deleted(&mut self, result: Result<(), WriteError>) {
        let Some(ending) = &mut self.ending else {
            return;
        };
        if ending.deletion == Step::Done {
            return;
        }
        match result {
            Ok(()) | Err(WriteError::Gone) => self.gone = true,
            Err(WriteError::Retry(error)) => {
                tracing::warn!(
                    pod = self.pod.metadata.name,
                    error,
                    "pod not deleted, trying again"
                );
                ending.deletion = Step::ToDo;
                ending.retry.failed(5.0);
            }
        }
    }
}
