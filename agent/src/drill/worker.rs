//! One task, from the moment that it is seen until nothing of it is left.
//!
//! ```text
//! no entry -> (refused: status Failed)
//!          -> entry Open -> injected -> held -> undone -> entry Closed -> told, released -> no entry
//! ```
//!
//! Whatever the stage, an agent that starts goes on from what the journal says.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use skiff_dev::{DrillTask, DrillTaskStatus, TaskPhase};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::fault::{self, AnyFault, FaultError, Order};
use super::helper::blocking;
use super::journal::{Entry, Journal, Stage};
use super::report::{self, Progress, Tasks, Told};
use super::site::Scene;

/// How long the API may take to hear of something after which it hears nothing for a while.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Between attempts to undo something.
const RETRY: Duration = Duration::from_secs(1);
/// The clock may be set while a task lasts: it is looked at this often.
const CLOCK: Duration = Duration::from_secs(5);

/// What is wanted of a task.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) object: Object,
    /// Somebody on this host wants it undone, whatever the API says.
    pub(super) heal: bool,
}

/// The task in the API.
#[derive(Debug, Clone)]
pub(super) enum Object {
    /// The API has not said yet.
    Unknown,
    Here(Arc<DrillTask>),
    Gone,
}

/// Why a task ends before it is over by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It is to stop, or to be deleted.
    Asked,
    /// Its time is over.
    Due,
    Gone,
    Healed,
    AgentStops,
}

impl End {
    /// What there is to say of it that the API does not know.
    fn message(self) -> Option<&'static str> {
        match self {
            Self::Asked | Self::Due | Self::Gone => None,
            Self::Healed => Some("undone on the node, by `skiff drill heal`"),
            Self::AgentStops => Some("undone because the node's agent stopped"),
        }
    }
}

/// Carries out one task.
pub(super) struct Worker {
    pub(super) scene: Arc<Scene>,
    pub(super) journal: Journal,
    pub(super) tasks: Arc<dyn Tasks>,
    pub(super) wanted: watch::Receiver<Wanted>,
    /// The agent stops.
    pub(super) stop: CancellationToken,
}

impl Worker {
    /// Goes on with a task of the journal.
    pub(super) async fn resume(mut self, entry: Entry) {
        let fault = fault::of(&entry.task.spec.action);
        self.go_on(entry, fault).await;
    }

    /// Begins a task that the journal does not know.
    pub(super) async fn begin(mut self, task: Arc<DrillTask>) {
        let stop = self.stop.clone();
        let phase = task.status.as_ref().map(|status| status.phase);
        let refusal = match phase.unwrap_or_default() {
            TaskPhase::Ended | TaskPhase::Failed => {
                let released = report::release(&*self.tasks, &task);
                let _ = stop.run_until_cancelled(released).await;
                return;
            }
            TaskPhase::Active => {
                let message = "this node's record of it is lost, and with it what it did";
                ended(TaskPhase::Ended, Some(message.to_owned()))
            }
            TaskPhase::Pending => {
                let fault = fault::of(&task.spec.action);
                match self.open(&task, fault.as_deref()).await {
                    Ok(entry) => return self.go_on(entry, fault).await,
                    Err(message) => ended(TaskPhase::Failed, Some(message)),
                }
            }
        };
        let told = async {
            if Progress::new(refusal).tell_now(&*self.tasks, &task).await == Told::Done {
                report::release(&*self.tasks, &task).await;
            }
        };
        let _ = stop.run_until_cancelled(told).await;
    }

    /// Looks whether the task can be done, and writes down what there will be to undo; or says why not.
    async fn open(
        &mut self,
        task: &DrillTask,
        fault: Option<&dyn AnyFault>,
    ) -> Result<Entry, String> {
        let order = Order::of(task);
        if self.is_over(&order).is_some() {
            return Err("it was to end before it had begun".to_owned());
        }
        let fault = fault.ok_or("this node's agent does not know how to do that")?;
        let prepared = fault.prepare(&self.scene, &order).await;
        let undo = prepared.map_err(|error| error.to_string())?;
        let entry = Entry {
            task: remembered(task),
            stage: Stage::Open,
            undo,
            status: DrillTaskStatus::default(),
        };
        let written = self.write(&entry).await;
        written.map_err(|error| format!("it can't be written down what would have to be undone, so nothing was done: {error}"))?;
        Ok(entry)
    }

    async fn go_on(&mut self, mut entry: Entry, fault: Option<Box<dyn AnyFault>>) {
        let stop = self.stop.clone();
        if entry.stage == Stage::Open {
            let Some(fault) = fault else {
                // An older agent after a newer one.
                tracing::error!(
                    task = entry.name(),
                    "this agent does not know how to undo what a drill did"
                );
                return;
            };
            match self.carry_out(&mut entry, &*fault).await {
                Carried::Done => {}
                Carried::Left => return,
            }
        }
        let told = self.tell_the_end(&entry);
        let _ = stop.run_until_cancelled(told).await;
    }

    /// From whatever there is of it to nothing.
    async fn carry_out(&mut self, entry: &mut Entry, fault: &dyn AnyFault) -> Carried {
        let order = Order::of(&entry.task);
        let progress = Progress::new(entry.status.clone());
        let (tasks, task) = (self.tasks.clone(), entry.task.clone());
        let telling = async {
            progress.tell(&*tasks, &task).await;
            // Its end is learnt by the watch.
            std::future::pending::<()>().await;
        };
        let done = tokio::select! {
            done = self.bring_about_and_undo(entry, fault, &order, &progress) => done,
            () = telling => Carried::Left,
        };
        if matches!(done, Carried::Left) {
            return done;
        }
        let mut status = progress.status();
        fault
            .conclude(&self.scene.site, &order, &entry.undo, &mut status)
            .await;
        status.ended_at.get_or_insert_with(now);
        entry.status = status;
        entry.stage = Stage::Closed;
        if let Err(error) = self.write(entry).await {
            // Undoing once more does no harm, if it comes to that.
            tracing::warn!(task = entry.name(), %error, "the end of a drill's task is not written down");
        }
        done
    }

    async fn bring_about_and_undo(
        &mut self,
        entry: &mut Entry,
        fault: &dyn AnyFault,
        order: &Order,
        progress: &Progress,
    ) -> Carried {
        let scene = self.scene.clone();
        // Never cut short: what works on threads of its own would go on, and after the undo.
        let outcome = match self.is_over(order) {
            // What is not wanted is not begun either.
            Some(end) => Err(end),
            None => match self.bring_about(entry, fault, order, progress).await {
                Ok(()) => tokio::select! {
                    biased;
                    end = self.end(order) => Err(end),
                    over = fault.hold(&scene, order, &entry.undo, progress) => Ok(over),
                },
                Err(error) => Ok(Err(error)),
            },
        };
        if matches!(outcome, Err(End::AgentStops)) && fault.outlives_agent() {
            return Carried::Left;
        }
        if !self.undo(entry, fault, order, progress).await {
            return Carried::Left;
        }
        let (phase, message) = match outcome {
            Ok(Ok(())) => (TaskPhase::Ended, None),
            Ok(Err(error)) => (TaskPhase::Failed, Some(error.to_string())),
            Err(end) => (TaskPhase::Ended, end.message().map(str::to_owned)),
        };
        progress.update(|status| {
            status.phase = phase;
            status.ended_at = Some(now());
            status.message = message.or(status.message.take());
        });
        Carried::Done
    }

    /// Does it, unless that was done and written down before.
    async fn bring_about(
        &self,
        entry: &mut Entry,
        fault: &dyn AnyFault,
        order: &Order,
        progress: &Progress,
    ) -> Result<(), FaultError> {
        if entry.status.started_at.is_some() {
            return Ok(());
        }
        if fault.silences_agent() {
            progress.update(|status| {
                status.phase = TaskPhase::Active;
                status.started_at = Some(now());
            });
            let told = progress.tell_now(&*self.tasks, &entry.task);
            let _ = tokio::time::timeout(LAST_WORDS, told).await;
        }
        let began = fault.inject(&self.scene, order, &entry.undo).await?;
        progress.update(|status| {
            status.phase = TaskPhase::Active;
            status.started_at = Some(MicroTime(began));
        });
        entry.status = progress.status();
        // With a full disk, say. Then a crash is followed by bringing it about once more.
        if let Err(error) = self.write(entry).await {
            tracing::debug!(task = entry.name(), %error, "the begin of a drill's task is not written down");
        }
        Ok(())
    }

    /// Undoes it, however often that takes; whether it is undone.
    async fn undo(
        &self,
        entry: &Entry,
        fault: &dyn AnyFault,
        order: &Order,
        progress: &Progress,
    ) -> bool {
        let mut reported = false;
        loop {
            let undone = fault.undo(&self.scene.site, order, &entry.undo).await;
            let Err(error) = undone else {
                progress.update(|status| {
                    if reported {
                        status.message = None;
                    }
                });
                return true;
            };
            if !reported {
                tracing::error!(task = entry.name(), %error, "a drill's fault is not undone, trying again");
            }
            reported = true;
            progress.update(|status| status.message = Some(format!("not undone yet: {error}")));
            let pause = tokio::time::sleep(RETRY);
            if self.stop.run_until_cancelled(pause).await.is_none() {
                return false;
            }
        }
    }

    /// Returns when the task is no longer wanted.
    async fn end(&mut self, order: &Order) -> End {
        let stop = self.stop.clone();
        loop {
            if let Some(end) = self.is_over(order) {
                return end;
            }
            let left = Duration::try_from(order.until.duration_since(Timestamp::now()));
            tokio::select! {
                () = stop.cancelled() => return End::AgentStops,
                changed = self.wanted.changed() => if changed.is_err() {
                    return End::AgentStops;
                },
                () = tokio::time::sleep(left.unwrap_or_default().min(CLOCK)) => {}
            }
        }
    }

    fn is_over(&mut self, order: &Order) -> Option<End> {
        let wanted = self.wanted.borrow_and_update().clone();
        if wanted.heal {
            return Some(End::Healed);
        }
        match wanted.object {
            Object::Gone => return Some(End::Gone),
            Object::Here(task) => {
                if task.spec.stop || task.metadata.deletion_timestamp.is_some() {
                    return Some(End::Asked);
                }
            }
            Object::Unknown => {}
        }
        (order.until <= Timestamp::now()).then_some(End::Due)
    }

    /// Tells the API how it ended, and forgets it.
    async fn tell_the_end(&mut self, entry: &Entry) {
        let progress = Progress::new(entry.status.clone());
        let told = async {
            if progress.tell_now(&*self.tasks, &entry.task).await == Told::Done {
                report::release(&*self.tasks, &entry.task).await;
            }
        };
        let mut wanted = self.wanted.clone();
        tokio::select! {
            () = told => {}
            // Nobody is left to be told.
            _ = wanted.wait_for(|wanted| matches!(wanted.object, Object::Gone)) => {}
        }
        let (journal, uid) = (self.journal.clone(), entry.uid().to_owned());
        if let Err(error) = blocking(move || journal.remove(&uid)).await {
            tracing::warn!(task = entry.name(), %error, "a drill's entry is not removed");
        }
    }

    async fn write(&self, entry: &Entry) -> std::io::Result<()> {
        let (journal, entry) = (self.journal.clone(), entry.clone());
        blocking(move || journal.write(&entry)).await
    }
}

/// What became of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carried {
    /// Nothing is left to be undone.
    Done,
    /// The agent ends; the next one goes on.
    Left,
}

/// A status that says that there is nothing of a task here.
fn ended(phase: TaskPhase, message: Option<String>) -> DrillTaskStatus {
    DrillTaskStatus {
        phase,
        message,
        ended_at: Some(now()),
        ..DrillTaskStatus::default()
    }
}

/// What is needed of a task once it has begun.
fn remembered(task: &DrillTask) -> DrillTask {
    let mut kept = task.clone();
    kept.metadata = Default::default();
    kept.metadata.name.clone_from(&task.metadata.name);
    kept.metadata.uid.clone_from(&task.metadata.uid);
    kept.status = None;
    kept
}

fn now() -> MicroTime {
    MicroTime(Timestamp::now())
}
