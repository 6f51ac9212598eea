//! One container of a pod, as its worker sees it.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};
use k8s_openapi::jiff::Timestamp;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::backoff::Backoff;
use super::probe;
use super::resources::is_sidecar;
use super::seams::ResolvedImage;
use super::status::{Attempt, Waiting};
use crate::runtime::types::{ContainerRecord, ContainerState};

/// What a container is in its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container that keeps running.
    Sidecar,
    Main,
}

/// What is being done for a container.
#[derive(Debug)]
pub(super) enum Activity {
    Idle,
    /// Its image is looked for, or fetched.
    Resolving(AbortHandle),
    /// It is created and started.
    Launching,
    /// It runs, its postStart hook too.
    Hooking(AbortHandle),
    /// It is being ended.
    Stopping,
}

/// A container's declaration, attempts and prospects.
pub(super) struct Slot {
    pub(super) spec: Container,
    pub(super) role: Role,
    pub(super) current: Option<Attempt>,
    pub(super) previous: Option<Attempt>,
    /// `current` belongs to the sandbox that is, not to one that was lost.
    pub(super) in_sandbox: bool,
    pub(super) activity: Activity,
    /// The attempt whose end was seen and whose last words are being read.
    pub(super) closing: Option<String>,
    /// For the next attempt.
    pub(super) image: Option<ResolvedImage>,
    pub(super) restart: Backoff,
    pub(super) pull: Backoff,
    /// Nothing is tried before.
    pub(super) retry_at: Option<Instant>,
    pub(super) waiting: Option<Waiting>,
    /// When `waiting` gives way to the reason of the backoff.
    pub(super) waiting_until: Option<Instant>,
    pub(super) ended_at: Instant,
    pub(super) started: bool,
    pub(super) ready: bool,
    /// Running probes, and the attempt that they are for.
    pub(super) probes: JoinSet<()>,
    /// Those of them that may have the container ended.
    pub(super) vital_probes: Vec<AbortHandle>,
    pub(super) probed: Option<String>,
    /// The attempt number to go on from when no record is left.
    pub(super) attempts_before: u32,
}

impl Slot {
    /// Slots of a pod, in the order of its declaration, init containers first.
    pub(super) fn of(pod: &Pod) -> Vec<Self> {
        let spec = pod.spec.as_ref();
        let init = spec
            .into_iter()
            .flat_map(|s| s.init_containers.iter().flatten());
        let init = init.map(|c| {
            let role = if is_sidecar(c) {
                Role::Sidecar
            } else {
                Role::Init
            };
            Self::new(c.clone(), role)
        });
        let main = spec.into_iter().flat_map(|s| &s.containers);
        init.chain(main.map(|c| Self::new(c.clone(), Role::Main)))
            .collect()
    }

    fn new(spec: Container, role: Role) -> Self {
        Self {
            spec,
            role,
            current: None,
            previous: None,
            in_sandbox: false,
            activity: Activity::Idle,
            closing: None,
            image: None,
            restart: Backoff::default(),
            pull: Backoff::default(),
            retry_at: None,
            waiting: None,
            waiting_until: None,
            ended_at: Instant::now(),
            started: false,
            ready: false,
            probes: JoinSet::new(),
            vital_probes: Vec::new(),
            probed: None,
            attempts_before: 0,
        }
    }

    /// The container's path in the pod's declaration, for events.
    pub(super) fn field(&self) -> String {
        let list = match self.role {
            Role::Main => "containers",
            Role::Init | Role::Sidecar => "initContainers",
        };
        format!("spec.{list}{{{}}}", self.spec.name)
    }

    /// The id of the attempt that runs.
    pub(super) fn running(&self) -> Option<&str> {
        let record = &self.current.as_ref()?.record;
        let runs = matches!(record.state, ContainerState::Running { .. });
        (runs && self.in_sandbox).then_some(record.id.as_str())
    }

    /// The exit code of the current attempt, if it ended.
    pub(super) fn exit_code(&self) -> Option<i32> {
        match self.current.as_ref()?.record.state {
            ContainerState::Exited { exit_code, .. } => Some(exit_code),
            _ => None,
        }
    }

    /// Nothing of it runs, or is about to.
    pub(super) fn is_at_rest(&self) -> bool {
        matches!(self.activity, Activity::Idle)
            && self.running().is_none()
            && self.closing.is_none()
    }

    /// Whether an attempt that ended is followed by another one.
    pub(super) fn restarts(&self, pod_policy: &str) -> bool {
        let failed = self.exit_code() != Some(0);
        match (self.role, pod_policy) {
            (Role::Sidecar, _) => true,
            (Role::Init, "Never") => false,
            (Role::Init, _) => failed,
            (Role::Main, "Never") => false,
            (Role::Main, "OnFailure") => failed,
            (Role::Main, _) => true,
        }
    }

    /// The number of the next attempt.
    pub(super) fn next_attempt(&self) -> u32 {
        match &self.current {
            Some(attempt) => attempt.record.attempt + 1,
            None => self.attempts_before,
        }
    }

    /// Takes the attempts that are on record, and what the last status said of them.
    pub(super) fn restore(
        &mut self,
        mut records: Vec<ContainerRecord>,
        in_sandbox: bool,
        status: Option<&ContainerStatus>,
    ) {
        records.sort_by_key(|r| r.attempt);
        let attempt = |record| Attempt {
            record,
            message: None,
        };
        self.current = records.pop().map(attempt);
        self.previous = records.pop().map(attempt);
        self.in_sandbox = in_sandbox && self.current.is_some();
        let Some(status) = status else { return };
        if status.container_id.is_some() {
            let count = u32::try_from(status.restart_count).unwrap_or(0);
            self.attempts_before = count + 1;
        }
        for attempt in [self.current.as_mut(), self.previous.as_mut()]
            .into_iter()
            .flatten()
        {
            let id = super::status::container_id(&attempt.record.id);
            let said = [status.state.as_ref(), status.last_state.as_ref()];
            let mut said = said
                .into_iter()
                .flatten()
                .filter_map(|s| s.terminated.as_ref());
            let ended = said.find(|ended| ended.container_id.as_deref() == Some(id.as_str()));
            attempt.message = ended.and_then(|ended| ended.message.clone());
        }
        if let Some(id) = self.running() {
            let same = status.container_id == Some(super::status::container_id(id));
            self.started = same && status.started == Some(true);
            self.ready = same && status.ready;
        }
    }

    /// Makes `attempt` the current one; gives back the one that is not needed any more.
    pub(super) fn advance(&mut self, attempt: Attempt) -> Option<Attempt> {
        self.in_sandbox = true;
        self.forget_probes();
        let last = self.current.replace(attempt)?;
        if self
            .current
            .as_ref()
            .is_some_and(|c| c.record.id == last.record.id)
        {
            return None;
        }
        self.previous.replace(last)
    }

    /// Notes that the attempt `id` needs no more ending.
    pub(super) fn stopped(&mut self, id: &str) {
        let current = self.current.as_ref().map(|c| c.record.id.as_str());
        if matches!(self.activity, Activity::Stopping) && current == Some(id) {
            self.activity = Activity::Idle;
        }
    }

    /// Notes that the current attempt ended.
    pub(super) fn close(&mut self, attempt: Attempt) {
        self.closing = None;
        self.ended_at = ended_at(&attempt.record);
        self.current = Some(attempt);
        self.image = None;
        self.forget_probes();
    }

    fn forget_probes(&mut self) {
        self.probes.abort_all();
        self.probes = JoinSet::new();
        self.vital_probes.clear();
        self.probed = None;
        self.started = false;
        self.ready = false;
    }

    /// What holds of a container that runs, before any probe of it ran.
    pub(super) fn assume_unprobed(&mut self) {
        self.started |= probe::Kind::Startup.of(&self.spec).is_none();
        self.ready |= self.started && probe::Kind::Readiness.of(&self.spec).is_none();
    }

    /// Waits with an error's reason; after a second the reason of the backoff takes its place.
    pub(super) fn wait_with(&mut self, waiting: Waiting) {
        self.waiting = Some(waiting);
        self.waiting_until = Some(Instant::now() + Duration::from_secs(1));
    }
}

/// The moment of an end, as far as the wall clock tells.
fn ended_at(record: &ContainerRecord) -> Instant {
    let now = Instant::now();
    let ContainerState::Exited { finished_at, .. } = &record.state else {
        return now;
    };
    let Ok(finished) = finished_at.parse::<Timestamp>() else {
        return now;
    };
    let ago = Timestamp::now().duration_since(finished);
    let ago = Duration::try_from(ago).unwrap_or_default();
    now.checked_sub(ago).unwrap_or(now)
}
