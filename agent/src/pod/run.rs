//! Running a pod: sandbox, volumes, init containers in order, then the others; what ended is
//! started again as the policies say.

use std::time::Duration;

use tokio::time::Instant;

use super::backoff::go_seconds;
use super::events::Severity;
use super::launch::{Launch, LaunchResult};
use super::pull::{self, ImageFailure};
use super::seams::{ContainerError, PodSandbox, ResolvedImage, SeamResult};
use super::slot::{Activity, Role};
use super::status::Waiting;
use super::tasks::{self, Done, Live};
use super::worker::{SandboxStage, VolumeStage, Worker};
use crate::runtime::types::ContainerRecord;
use crate::volume::{self, VolumeError, Volumes};
use std::sync::Arc;

/// Between attempts at something that no backoff counts, as the kubelet's sync period.
const RETRY: Duration = Duration::from_secs(10);
/// Between looks at the objects that volumes are made from.
const REFRESH: Duration = Duration::from_secs(60);

impl Worker {
    /// Starts what is missing.
    pub(super) fn drive(&mut self) {
        self.drive_sandbox();
        self.drive_volumes();
        let initialized = self.is_initialized();
        let mut blocked = false;
        for index in 0..self.slots.len() {
            let slot = &self.slots[index];
            match slot.role {
                Role::Init if initialized || blocked => {}
                Role::Init => {
                    let done = slot.in_sandbox && slot.exit_code() == Some(0);
                    if !done || slot.closing.is_some() {
                        blocked = true;
                        self.drive_slot(index);
                    }
                }
                Role::Sidecar if blocked && !initialized => {}
                Role::Sidecar => {
                    self.drive_slot(index);
                    let slot = &self.slots[index];
                    let up = slot.running().is_some() && slot.started;
                    blocked |= !initialized && !up;
                }
                Role::Main if blocked && !initialized => {}
                Role::Main => self.drive_slot(index),
            }
        }
    }

    /// A main container of this sandbox was started once: the init containers are done.
    fn is_initialized(&self) -> bool {
        let mut main = self.slots.iter().filter(|s| s.role == Role::Main);
        main.any(|slot| slot.in_sandbox && slot.current.is_some())
    }

    fn drive_sandbox(&mut self) {
        if !matches!(self.sandbox, SandboxStage::Absent) {
            return;
        }
        match self.sandbox_retry.at {
            Some(at) if at > Instant::now() => self.wake_at(at),
            _ => self.connect_sandbox(None),
        }
    }

    /// Starts the sandbox, or takes over the one that runs.
    pub(super) fn connect_sandbox(&mut self, existing: Option<Arc<dyn PodSandbox>>) {
        self.sandbox = SandboxStage::Starting;
        let (node, pod, pod_dir) = (self.node.clone(), self.pod.clone(), self.pod_dir.clone());
        let start = tasks::start_sandbox(node, pod, pod_dir, existing);
        self.tasks.spawn(async move { Done::Sandbox(start.await) });
    }

    pub(super) fn take_sandbox(&mut self, result: SeamResult<Live>) {
        match result {
            Ok(live) => {
                self.sandbox = SandboxStage::Live(live);
                self.sandbox_retry.clear();
            }
            Err(error) => {
                self.sandbox = SandboxStage::Absent;
                self.sandbox_retry.failed(10.0);
                let message = format!("Failed to create pod sandbox: {error}");
                let events = &self.node.events;
                events.pod(
                    &self.pod,
                    Severity::Warning,
                    "FailedCreatePodSandBox",
                    message,
                );
            }
        }
    }

    /// The supervisor died, and its containers with it: the pod starts over.
    pub(super) fn sandbox_lost(&mut self) {
        self.sandbox = SandboxStage::Absent;
        for slot in &mut self.slots {
            slot.in_sandbox = false;
        }
        if self.ending.is_none() {
            let message = "Pod sandbox changed, it will be killed and re-created.";
            let events = &self.node.events;
            events.pod(&self.pod, Severity::Normal, "SandboxChanged", message);
        }
    }

    fn drive_volumes(&mut self) {
        let now = Instant::now();
        match &self.volumes {
            VolumeStage::Absent => match self.volumes_retry.at {
                Some(at) if at > now => self.wake_at(at),
                _ => {
                    self.volumes = VolumeStage::SettingUp;
                    let (node, pod) = (self.node.clone(), self.pod.clone());
                    let set_up = tasks::set_up_volumes(node, pod, self.pod_dir.clone());
                    self.tasks.spawn(async move { Done::Volumes(set_up.await) });
                }
            },
            VolumeStage::SettingUp => {}
            VolumeStage::Present(_) => match self.refresh_at {
                Some(at) if at > now => self.wake_at(at),
                Some(_) => {
                    self.refresh_at = Some(now + REFRESH);
                    self.wake_at(now + REFRESH);
                    let (node, pod) = (self.node.clone(), self.pod.clone());
                    let refresh = tasks::refresh_volumes(node, pod, self.pod_dir.clone());
                    self.tasks.spawn(async move {
                        refresh.await;
                        Done::Nothing
                    });
                }
                None => {}
            },
        }
    }

    pub(super) fn take_volumes(&mut self, result: Result<Volumes, VolumeError>) {
        match result {
            Ok(volumes) => {
                self.volumes = VolumeStage::Present(volumes);
                self.volumes_retry.clear();
                if volume::needs_refresh(&self.pod) {
                    self.refresh_at = Some(Instant::now() + REFRESH);
                }
            }
            Err(error) => {
                self.volumes = VolumeStage::Absent;
                self.volumes_retry.failed(122.0);
                let events = &self.node.events;
                events.pod(
                    &self.pod,
                    Severity::Warning,
                    "FailedMount",
                    error.to_string(),
                );
            }
        }
    }

    /// Starts a container that should run and does not.
    fn drive_slot(&mut self, index: usize) {
        let slot = &self.slots[index];
        if !matches!(slot.activity, Activity::Idle) || slot.closing.is_some() {
            return;
        }
        if slot.running().is_some() {
            return self.tend(index);
        }
        if slot.current.is_some() && !self.may_restart(index) {
            return;
        }
        let now = Instant::now();
        let slot = &mut self.slots[index];
        if let Some(at) = slot.retry_at.filter(|at| *at > now) {
            if slot.waiting_until.is_some_and(|until| until <= now) {
                self.show_pull_backoff(index);
            }
            let until = self.slots[index].waiting_until;
            return self.wake_at(until.map_or(at, |until| at.min(until)));
        }
        let Some(image) = slot.image.clone() else {
            let (node, pod) = (self.node.clone(), self.pod.clone());
            let resolve = pull::resolve_image(node, pod, slot.spec.clone(), slot.field());
            let handle = self
                .tasks
                .spawn(async move { Done::Image(index, resolve.await.map(Box::new)) });
            self.slots[index].activity = Activity::Resolving(handle);
            return;
        };
        let (SandboxStage::Live(live), VolumeStage::Present(volumes)) =
            (&self.sandbox, &self.volumes)
        else {
            return;
        };
        if slot.current.is_some() {
            slot.restart.next(slot.ended_at);
        }
        slot.activity = Activity::Launching;
        let launch = Launch {
            node: self.node.clone(),
            pod: self.pod.clone(),
            pod_dir: self.pod_dir.clone(),
            container: slot.spec.clone(),
            field: slot.field(),
            attempt: slot.next_attempt(),
            image,
            volumes: volumes.clone(),
            live: live.clone(),
        };
        self.tasks
            .spawn(async move { Done::Launched(index, launch.run().await) });
    }

    /// Whether a container that ended may be started again now; otherwise says why it waits.
    fn may_restart(&mut self, index: usize) -> bool {
        let policy = self.restart_policy();
        let initialized = self.is_initialized();
        let now = Instant::now();
        let slot = &mut self.slots[index];
        // In a new sandbox, init containers run again from the first.
        let again = slot.role == Role::Init && !slot.in_sandbox && !initialized;
        if !again && !slot.restarts(&policy) {
            return false;
        }
        let Some(until) = slot.restart.until(slot.ended_at).filter(|at| *at > now) else {
            return true;
        };
        if let Some(shown) = slot.waiting_until.filter(|shown| *shown > now) {
            self.wake_at(shown.min(until));
            return false;
        }
        slot.waiting_until = None;
        let (name, wait) = (slot.spec.name.clone(), go_seconds(slot.restart.wait()));
        let pod = self.full_name();
        let message = format!("back-off {wait} restarting failed container={name} pod={pod}");
        let waiting = Waiting::new("CrashLoopBackOff", message);
        let slot = &mut self.slots[index];
        if slot.waiting.as_ref() != Some(&waiting) {
            slot.waiting = Some(waiting);
            let field = slot.field();
            let message = format!("Back-off restarting failed container {name} in pod {pod}");
            let events = &self.node.events;
            events.container(&self.pod, &field, Severity::Warning, "BackOff", message);
        }
        self.wake_at(until);
        false
    }

    pub(super) fn restart_policy(&self) -> String {
        let spec = self.pod.spec.as_ref();
        let policy = spec.and_then(|s| s.restart_policy.clone());
        policy.unwrap_or_else(|| "Always".to_owned())
    }

    /// `name_namespace(uid)`, as the kubelet's messages have it.
    fn full_name(&self) -> String {
        let meta = &self.pod.metadata;
        let text = |field: &Option<String>| field.clone().unwrap_or_default();
        format!(
            "{}_{}({})",
            text(&meta.name),
            text(&meta.namespace),
            text(&meta.uid)
        )
    }

    pub(super) fn take_image(
        &mut self,
        index: usize,
        result: Result<Box<ResolvedImage>, ImageFailure>,
    ) {
        let slot = &mut self.slots[index];
        slot.activity = Activity::Idle;
        slot.retry_at = None;
        match result {
            Ok(image) => {
                slot.image = Some(*image);
                slot.pull.reset();
                if slot.current.is_none() {
                    slot.waiting = None;
                }
            }
            Err(failure) if failure.pulled => {
                let now = Instant::now();
                slot.pull.next(now);
                slot.retry_at = Some(now + slot.pull.wait());
                slot.wait_with(failure.waiting);
            }
            Err(failure) => {
                slot.retry_at = Some(Instant::now() + RETRY);
                slot.waiting = Some(failure.waiting);
                slot.waiting_until = None;
            }
        }
    }

    /// After a while, an image that could not be fetched is said to be waited for.
    fn show_pull_backoff(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.waiting_until = None;
        let failed = slot.waiting.take();
        if failed.as_ref().is_none_or(|w| w.reason != "ErrImagePull") {
            slot.waiting = failed;
            return;
        }
        let cause = failed.and_then(|w| w.message).unwrap_or_default();
        let name = slot.spec.image.clone().unwrap_or_default();
        let message = format!("Back-off pulling image \"{name}\"");
        slot.waiting = Some(Waiting::new(
            "ImagePullBackOff",
            format!("{message}: ErrImagePull: {cause}"),
        ));
        let (events, field) = (&self.node.events, slot.field());
        events.container(&self.pod, &field, Severity::Normal, "BackOff", message);
        let message = "Error: ImagePullBackOff";
        events.container(&self.pod, &field, Severity::Warning, "Failed", message);
    }

    pub(super) fn take_launched(&mut self, index: usize, result: LaunchResult) {
        self.slots[index].activity = Activity::Idle;
        match result {
            Ok(record) => self.launched(index, record),
            Err((error, record)) => self.launch_failed(index, error, record),
        }
    }

    fn launched(&mut self, index: usize, record: ContainerRecord) {
        let id = record.id.clone();
        self.advance(index, record);
        let slot = &mut self.slots[index];
        let hook = slot
            .spec
            .lifecycle
            .as_ref()
            .and_then(|l| l.post_start.as_ref());
        let (Some(_), SandboxStage::Live(live)) = (hook, &self.sandbox) else {
            slot.waiting = None;
            slot.waiting_until = None;
            return;
        };
        // Until its hook is done, the container is shown as being created.
        slot.waiting.get_or_insert(Waiting {
            reason: "ContainerCreating".to_owned(),
            message: None,
        });
        let (node, pod) = (self.node.clone(), self.pod.clone());
        let (spec, field) = (slot.spec.clone(), slot.field());
        let hook = tasks::post_start(node, pod, spec, field, id.clone(), live.clone());
        let handle = self
            .tasks
            .spawn(async move { Done::Hooked(index, id, hook.await) });
        self.slots[index].activity = Activity::Hooking(handle);
    }

    fn launch_failed(
        &mut self,
        index: usize,
        error: ContainerError,
        record: Option<ContainerRecord>,
    ) {
        let waiting = Waiting::new(error.reason, error.message);
        let ended = record.is_some();
        if let Some(record) = record {
            self.advance(index, record);
            let slot = &mut self.slots[index];
            if let Some(attempt) = slot.current.take() {
                slot.close(attempt);
            }
        }
        let slot = &mut self.slots[index];
        slot.wait_with(waiting);
        slot.image = None;
        if !ended {
            // Nothing ended, so no backoff counts it.
            slot.retry_at = Some(Instant::now() + RETRY);
            slot.waiting_until = None;
        }
    }

    pub(super) fn take_hooked(&mut self, index: usize, id: &str, result: Result<(), String>) {
        let slot = &mut self.slots[index];
        slot.activity = Activity::Idle;
        slot.waiting = None;
        slot.waiting_until = None;
        if result.is_err() && slot.running() == Some(id) {
            slot.wait_with(Waiting::new("PostStartHookError", "PostStartHookError"));
            self.stop(index, "FailedPostStartHook".to_owned(), None);
        }
    }
}
