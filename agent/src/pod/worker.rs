//! The worker of one pod: a task that moves what is to what should be.
//!
//! ```text
//! pod changed ──┐
//! container ended ─┤                                  ┌─> tasks: sandbox, volumes, image, launch,
//! task done ──────┼─> take it in ─> sync ─> decide ──┤   stop, tear down (results come back)
//! probe verdict ──┤                                  └─> status, if it differs from the last
//! timer ─────────┘
//! ```
//!
//! `sync` is level-triggered: it looks at everything the worker knows and starts what is missing,
//! and may run at any time. Deciding is quick and never waits; everything that takes time is a
//! task of its own ([`super::tasks`]). The worker can be dropped at any instant: containers go
//! on, and the next worker of the same pod finds them.
//!
//! Running the pod is in [`super::run`], looking after what runs in [`super::tend`], ending it in
//! [`super::end`].

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::NodeContext;
use super::conditions;
use super::end::Ending;
use super::last_words;
use super::probe::Verdict;
use super::seams::PodSandbox;
use super::slot::{Role, Slot};
use super::status::{self, Attempt, ContainerFacts};
use super::status_writer::StatusWriter;
use super::tasks::{self, Done, Live};
use crate::runtime::types::{ContainerRecord, ContainerState};
use crate::volume::Volumes;

/// What the API says of a pod.
#[derive(Debug, Clone)]
pub struct Desired {
    pub pod: Arc<Pod>,
    /// The object is gone.
    pub gone: bool,
}

/// The sandbox, from nothing to running.
pub(super) enum SandboxStage {
    Absent,
    Starting,
    Live(Live),
    /// Taken down for good.
    TornDown,
}

/// The volumes, from nothing to present.
pub(super) enum VolumeStage {
    Absent,
    SettingUp,
    Present(Volumes),
}

/// Tries again after a growing wait.
#[derive(Debug, Default)]
pub(super) struct Retry {
    pub(super) failures: u32,
    pub(super) at: Option<Instant>,
}

impl Retry {
    /// Notes a failure; the wait doubles from half a second to `longest` seconds.
    pub(super) fn failed(&mut self, longest: f64) {
        let wait = (0.5 * f64::from(1 << self.failures.min(10))).min(longest);
        self.failures += 1;
        self.at = Some(Instant::now() + std::time::Duration::from_secs_f64(wait));
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The worker of one pod.
pub struct Worker {
    pub(super) node: Arc<NodeContext>,
    desired: watch::Receiver<Desired>,
    pub(super) pod: Arc<Pod>,
    pub(super) gone: bool,
    /// Somebody else changed what the node says of this pod: it is to be said again.
    overruled: bool,
    pub(super) pod_dir: PathBuf,
    pub(super) slots: Vec<Slot>,
    pub(super) sandbox: SandboxStage,
    pub(super) sandbox_retry: Retry,
    pub(super) volumes: VolumeStage,
    pub(super) volumes_retry: Retry,
    pub(super) refresh_at: Option<Instant>,
    pub(super) tasks: JoinSet<Done>,
    pub(super) verdicts: mpsc::Sender<Verdict>,
    incoming: mpsc::Receiver<Verdict>,
    pub(super) writer: StatusWriter,
    /// The status that was computed last, or found in the API.
    pub(super) status: Option<PodStatus>,
    pub(super) ending: Option<Ending>,
    /// The sandbox while it is being destroyed.
    pub(super) torn: Option<Arc<dyn PodSandbox>>,
    /// The earliest moment at which time alone changes a decision.
    wake: Option<Instant>,
    pub(super) finished: bool,
}

impl Worker {
    /// A worker that has not looked at anything yet.
    pub fn new(node: Arc<NodeContext>, desired: watch::Receiver<Desired>) -> Self {
        let Desired { pod, gone } = desired.borrow().clone();
        let meta = &pod.metadata;
        let pod_dir = node.identity.pod_dir(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
            meta.uid.as_deref().unwrap_or_default(),
        );
        let (verdicts, incoming) = mpsc::channel(16);
        Self {
            writer: StatusWriter::new(node.api.clone(), pod_dir.clone()),
            slots: Slot::of(&pod),
            status: pod.status.clone().filter(|s| s.start_time.is_some()),
            node,
            desired,
            pod,
            gone,
            overruled: false,
            pod_dir,
            sandbox: SandboxStage::Absent,
            sandbox_retry: Retry::default(),
            volumes: VolumeStage::Absent,
            volumes_retry: Retry::default(),
            refresh_at: None,
            tasks: JoinSet::new(),
            verdicts,
            incoming,
            ending: None,
            torn: None,
            wake: None,
            finished: false,
        }
    }

    /// Runs until the pod is gone from this node, or the agent lets go of it.
    pub async fn run(mut self, sandbox: Option<Arc<dyn PodSandbox>>) {
        self.restore(sandbox).await;
        loop {
            self.wake = None;
            self.sync();
            if self.finished {
                return;
            }
            tokio::select! {
                changed = self.desired.changed() => match changed {
                    Ok(()) => self.take_desired(),
                    Err(_) => return,
                },
                () = changed(&mut self.sandbox) => {}
                Some(done) = self.tasks.join_next() => match done {
                    Ok(done) => self.take(done),
                    Err(error) if error.is_cancelled() => {}
                    // Unwinding takes the worker along; it is started anew and adopts the pod.
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                Some(verdict) = self.incoming.recv() => self.judge(verdict),
                () = sleep_until(self.wake) => {}
            }
        }
    }

    /// Finds out what an earlier worker of this pod left.
    async fn restore(&mut self, sandbox: Option<Arc<dyn PodSandbox>>) {
        let alive = sandbox.as_ref().filter(|s| s.state().borrow().alive);
        let (records, in_sandbox) = match alive {
            Some(sandbox) => {
                let state = sandbox.state().borrow().clone();
                (state.containers.into_values().collect(), true)
            }
            None => {
                let found = self.node.runtime.records(&self.pod_dir).await;
                (found.unwrap_or_default(), false)
            }
        };
        self.take_records(records, in_sandbox);
        let (pod_dir, pod) = (self.pod_dir.clone(), Pod::clone(&self.pod));
        let prepared = tasks::blocking(move || {
            std::fs::create_dir_all(&pod_dir)?;
            super::record::save(&pod_dir, &pod)
        });
        if let Err(error) = prepared.await {
            tracing::error!(pod = self.pod.metadata.name, %error, "the pod's directory can't be made");
        }
        if let Some(sandbox) = alive.cloned() {
            self.connect_sandbox(Some(sandbox));
        }
    }

    fn take_records(&mut self, records: Vec<ContainerRecord>, in_sandbox: bool) {
        let status = self.status.as_ref();
        let said: Vec<_> = status
            .iter()
            .flat_map(|s| [&s.init_container_statuses, &s.container_statuses])
            .flatten()
            .flatten()
            .cloned()
            .collect();
        for slot in &mut self.slots {
            let own = records.iter().filter(|r| r.name == slot.spec.name);
            // One that was never let run, because the agent died between: it is made again.
            let own = own.filter(|r| !matches!(r.state, ContainerState::Created));
            let own = own.cloned().map(|mut record| {
                record.image = self.node.images.canonical(&record.image);
                let now = format!("{:.6}", Timestamp::now());
                match in_sandbox {
                    true => record,
                    false => record.lost(now, "the sandbox of the pod is gone"),
                }
            });
            let own = own.collect();
            let said = said.iter().find(|s| s.name == slot.spec.name);
            slot.restore(own, in_sandbox, said);
        }
    }

    /// Takes in what the API says now.
    fn take_desired(&mut self) {
        let Desired { pod, gone } = self.desired.borrow_and_update().clone();
        let spec = pod.spec.as_ref();
        let declared = spec.into_iter().flat_map(|s| {
            let init = s.init_containers.iter().flatten();
            init.chain(&s.containers)
        });
        for container in declared {
            if let Some(slot) = self
                .slots
                .iter_mut()
                .find(|s| s.spec.name == container.name)
                && slot.spec != *container
            {
                slot.spec = container.clone();
                slot.image = None;
                slot.retry_at = None;
            }
        }
        let labels = |pod: &Pod| {
            (
                pod.metadata.labels.clone(),
                pod.metadata.annotations.clone(),
            )
        };
        if labels(&pod) != labels(&self.pod) && crate::volume::needs_refresh(&pod) {
            self.refresh_at = Some(Instant::now());
        }
        self.overruled |= conditions::were_overruled(self.status.as_ref(), pod.status.as_ref());
        self.pod = pod;
        self.gone |= gone;
    }

    /// Decides what is to be done, starts it, and reports.
    fn sync(&mut self) {
        self.observe();
        self.check_end();
        if self.ending.is_none() {
            self.drive();
        } else {
            self.drive_end();
        }
        self.report();
    }

    /// Compares the sandbox's state with what is known of the containers.
    fn observe(&mut self) {
        let SandboxStage::Live(live) = &self.sandbox else {
            return;
        };
        let state = live.state.borrow().clone();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(id) = slot.running().filter(|_| slot.closing.is_none()) else {
                continue;
            };
            let Some(record) = state.containers.get(id).filter(|r| r.has_exited()) else {
                continue;
            };
            slot.closing = Some(record.id.clone());
            let (node, pod_dir) = (self.node.clone(), self.pod_dir.clone());
            let closing = last_words::close(node, pod_dir, slot.spec.clone(), record.clone());
            self.tasks
                .spawn(async move { Done::Ended(index, closing.await) });
        }
        let resting = self
            .slots
            .iter()
            .all(|s| s.running().is_none() && s.closing.is_none());
        if !state.alive && resting {
            self.sandbox_lost();
        }
    }

    /// Takes in the result of a task.
    fn take(&mut self, done: Done) {
        match done {
            Done::Sandbox(result) => self.take_sandbox(result),
            Done::Volumes(result) => self.take_volumes(result),
            Done::Image(index, result) => self.take_image(index, result),
            Done::Launched(index, result) => self.take_launched(index, result),
            Done::Hooked(index, id, result) => self.take_hooked(index, &id, result),
            Done::Ended(index, attempt) => {
                self.slots[index].stopped(&attempt.record.id);
                self.slots[index].close(attempt);
            }
            Done::Stopped(index, id) => self.slots[index].stopped(&id),
            Done::TornDown(result) => self.take_torn_down(result),
            Done::Deleted(result) => self.take_deleted(result),
            Done::Removed => self.finished = true,
            Done::Nothing => {}
        }
    }

    /// Makes the attempt current and removes the one before the last.
    pub(super) fn advance(&mut self, index: usize, mut record: ContainerRecord) {
        record.image = self.node.images.canonical(&record.image);
        let attempt = Attempt {
            record,
            message: None,
        };
        let dropped = self.slots[index].advance(attempt);
        if let (Some(dropped), SandboxStage::Live(live)) = (dropped, &self.sandbox) {
            let (node, pod_dir) = (self.node.clone(), self.pod_dir.clone());
            let discard = tasks::discard(node, pod_dir, live.sandbox.clone(), dropped.record);
            self.tasks.spawn(async move {
                discard.await;
                Done::Nothing
            });
        }
    }

    /// Asks to be woken at a moment, if nothing happens before.
    pub(super) fn wake_at(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// The pod's status as things are.
    pub(super) fn compute(&self) -> PodStatus {
        let facts = |init: bool| {
            let slots = self
                .slots
                .iter()
                .filter(move |s| (s.role != Role::Main) == init);
            slots.map(|slot| ContainerFacts {
                spec: &slot.spec,
                current: slot.current.as_ref(),
                previous: slot.previous.as_ref(),
                waiting: slot.waiting.as_ref(),
                started: slot.started,
                ready: slot.ready,
            })
        };
        let live_ips = match &self.sandbox {
            SandboxStage::Live(live) => live.ips.clone(),
            _ => self.last_ips(),
        };
        status::compute(&status::Facts {
            pod: &self.pod,
            previous: self.status.as_ref(),
            init: facts(true).collect(),
            main: facts(false).collect(),
            sandbox_ready: matches!(self.sandbox, SandboxStage::Live(_)),
            pod_ips: &live_ips,
            host_ips: &self.node.facts.host_ips,
            now: Timestamp::now(),
            terminal: self.ending.as_ref().is_some_and(|e| e.all_stopped),
            failure: self.ending.as_ref().and_then(|e| e.failure.as_ref()),
        })
    }

    /// A pod that has ended keeps the addresses it had.
    fn last_ips(&self) -> Vec<std::net::IpAddr> {
        let last = self.status.as_ref().and_then(|s| s.pod_ips.as_ref());
        let last = last.into_iter().flatten();
        last.filter_map(|ip| ip.ip.parse().ok()).collect()
    }

    /// Sends the status if it is not the last one.
    fn report(&mut self) {
        if self.gone {
            return;
        }
        let status = self.compute();
        let is_news = self.status.as_ref().map(own_part).as_ref() != Some(&status);
        if is_news || std::mem::take(&mut self.overruled) {
            self.writer.put(self.pod.clone(), status.clone());
            self.status = Some(status);
        }
    }
}

/// A status without what others wrote into it.
fn own_part(status: &PodStatus) -> PodStatus {
    let mut own = status.clone();
    let all = own.conditions.take().unwrap_or_default();
    let named = conditions::OWNED.iter();
    let kept = named.filter_map(|type_| all.iter().find(|c| c.type_ == *type_).cloned());
    own.conditions = Some(kept.collect());
    own
}

/// Resolves when the sandbox's state has changed.
async fn changed(sandbox: &mut SandboxStage) {
    if let SandboxStage::Live(live) = sandbox
        && live.state.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
