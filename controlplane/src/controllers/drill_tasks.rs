//! Carries out the drill tasks that no agent can: to end the control plane and start it again, and to end
//! and start the nodes that this process keeps on its own host.
//!
//!     a DrillTask without a node -> claim (its time, durably) -> act -> Active, Ended or Failed
//!         -> stop, until or deletion -> undo -> Ended -> the finalizer goes
//!
//! The claim is the journal: `status.startedAt` is in the store before anything is broken. A control
//! plane that finds a claimed restart that nobody settled is the one that was started by it.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_dev::{Action, DrillTask, DrillTaskStatus, TaskPhase};

use super::Informers;
use super::informer::{Change, Informer, ObjectKey};
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next};
use super::tasks::Tasks;
use crate::drill_hooks::{DrillHooks, HookError, Restart};

pub(super) fn start(
    client: Client,
    informers: &Informers,
    hooks: Option<Arc<dyn DrillHooks>>,
    tasks: &Tasks,
) {
    let queue = WorkQueue::default();
    let changed = queue.clone();
    informers.drill_tasks.subscribe(move |change| {
        let is_ours = change.object().spec.node_name.is_none();
        if is_ours && !matches!(change, Change::Deleted(_)) {
            changed.add(ObjectKey::of(&**change.object()));
        }
    });
    let controller = Arc::new(DrillTaskController {
        api: Api::all(client),
        tasks: informers.drill_tasks.clone(),
        hooks,
    });
    runner::run(controller, &queue, 1, tasks);
}

struct DrillTaskController {
    api: Api<DrillTask>,
    tasks: Informer<DrillTask>,
    hooks: Option<Arc<dyn DrillHooks>>,
}

/// What is to be done about a task.
#[derive(Debug, Clone, PartialEq)]
enum Step {
    /// Nothing, until it changes or its time is over.
    Watch,
    /// Claim it, and bring it about.
    Begin,
    /// It was claimed, and nobody said what became of it.
    Resume,
    /// Undo it.
    Undo,
    /// It is over; nothing keeps the object any more.
    Release,
    /// It is over.
    Leave,
}

impl Controller for DrillTaskController {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "drill-task-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        let Some(task) = self.tasks.get(key) else {
            return Ok(Next::Wait);
        };
        let now = Timestamp::now();
        match step(&task, now) {
            Step::Watch => {
                let left = task.spec.until.0.duration_since(now);
                return Ok(Next::After(left.unsigned_abs()));
            }
            Step::Begin => self.begin(&task, now).await?,
            Step::Resume => self.resume(&task, now).await?,
            Step::Undo => self.undo(&task, now).await?,
            Step::Release => self.release(&task).await?,
            Step::Leave => {}
        }
        Ok(Next::Wait)
    }
}

fn step(task: &DrillTask, now: Timestamp) -> Step {
    let status = task.status.clone().unwrap_or_default();
    let is_deleted = task.metadata.deletion_timestamp.is_some();
    let is_to_end = is_deleted || task.spec.stop || task.spec.until.0 <= now;
    match status.phase {
        TaskPhase::Ended | TaskPhase::Failed if is_deleted && has_finalizer(task) => Step::Release,
        TaskPhase::Ended | TaskPhase::Failed => Step::Leave,
        TaskPhase::Active if is_to_end => Step::Undo,
        TaskPhase::Active => Step::Watch,
        TaskPhase::Pending if status.started_at.is_some() => Step::Resume,
        TaskPhase::Pending if is_to_end => Step::Undo,
        TaskPhase::Pending => Step::Begin,
    }
}

fn has_finalizer(task: &DrillTask) -> bool {
    let finalizers = task.metadata.finalizers.iter().flatten();
    finalizers.into_iter().any(|f| f == DrillTask::UNDO)
}

impl DrillTaskController {
    async fn begin(&self, task: &DrillTask, now: Timestamp) -> Result<(), kube::Error> {
        let hooks = match self.hooks_for(&task.spec.action) {
            Ok(hooks) => hooks,
            Err(error) => return self.fail(task, &error).await,
        };
        let claim = DrillTaskStatus {
            started_at: Some(MicroTime(now)),
            ..DrillTaskStatus::default()
        };
        // Refused if what was seen is not what there is: nothing is brought about twice.
        let task = self.replace_status(task, claim).await?;
        match &task.spec.action {
            Action::RestartControlPlane { kill, down } => {
                let (kill, down) = (*kill, down.0);
                tracing::warn!(
                    drill = task.spec.drill,
                    kill,
                    ?down,
                    "a drill restarts the control plane"
                );
                let error = hooks.restart(Restart { kill, down }).await;
                self.fail(&task, &error).await
            }
            Action::CrashNode { node } => self.crash(&task, hooks, node).await,
            // `hooks_for` lets no other pass.
            _ => Ok(()),
        }
    }

    async fn crash(
        &self,
        task: &DrillTask,
        hooks: &dyn DrillHooks,
        node: &str,
    ) -> Result<(), kube::Error> {
        tracing::warn!(drill = task.spec.drill, node, "a drill ends a node");
        match hooks.crash_node(node).await {
            Ok(()) => self.patch_status(task, json!({"phase": "Active"})).await,
            Err(error) => {
                if let Err(error) = hooks.start_node(node).await {
                    tracing::warn!(node, %error, "the node does not come back");
                }
                self.fail(task, &error).await
            }
        }
    }

    /// After a restart: of the control plane, by the task itself; of anything else, in the middle of it.
    async fn resume(&self, task: &DrillTask, now: Timestamp) -> Result<(), kube::Error> {
        match &task.spec.action {
            Action::RestartControlPlane { .. } => self.end(task, now, None).await,
            Action::CrashNode { node } => match self.hooks_for(&task.spec.action) {
                Ok(hooks) => self.crash(task, hooks, node).await,
                Err(error) => self.fail(task, &error).await,
            },
            _ => self.end(task, now, None).await,
        }
    }

    async fn undo(&self, task: &DrillTask, now: Timestamp) -> Result<(), kube::Error> {
        let is_active = task.status.as_ref().is_some_and(|s| s.started_at.is_some());
        if !is_active {
            let why = "it was to end before it had begun";
            return self.end(task, now, Some(why)).await;
        }
        if let (Action::CrashNode { node }, Some(hooks)) = (&task.spec.action, &self.hooks)
            && let Err(error) = hooks.start_node(node).await
        {
            // A node that does not exist any more needs no undoing.
            return self.end(task, now, Some(&error.to_string())).await;
        }
        self.end(task, now, None).await
    }

    async fn release(&self, task: &DrillTask) -> Result<(), kube::Error> {
        let finalizers = task.metadata.finalizers.iter().flatten();
        let others: Vec<&String> = finalizers.filter(|f| *f != DrillTask::UNDO).collect();
        // The version makes sure that no other finalizer is lost.
        let version = &task.metadata.resource_version;
        let patch = json!({"metadata": {"finalizers": others, "resourceVersion": version}});
        let name = name(task);
        let params = PatchParams::default();
        self.api.patch(name, &params, &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// The hooks, if they can do what is asked for.
    fn hooks_for(&self, action: &Action) -> Result<&dyn DrillHooks, HookError> {
        let refused = |why: String| Err(HookError(why));
        let Some(hooks) = self.hooks.as_deref() else {
            return refused("this control plane has no process that drills could restart".into());
        };
        match action {
            Action::RestartControlPlane { .. } => Ok(hooks),
            Action::CrashNode { node } if hooks.has_node(node) => Ok(hooks),
            Action::CrashNode { node } if hooks.own_node() == Some(node) => refused(format!(
                "node {node} runs the control plane, which can't be taken from under the drill"
            )),
            Action::CrashNode { node } => refused(format!(
                "node {node} is not one of this host's: its own agent has to do it"
            )),
            _ => refused("only the agent of a node can do it: spec.nodeName is missing".into()),
        }
    }

    async fn end(
        &self,
        task: &DrillTask,
        now: Timestamp,
        message: Option<&str>,
    ) -> Result<(), kube::Error> {
        let status = DrillTaskStatus {
            phase: TaskPhase::Ended,
            message: message.map(str::to_owned),
            ended_at: Some(MicroTime(now)),
            ..task.status.clone().unwrap_or_default()
        };
        self.replace_status(task, status).await.map(drop)
    }

    async fn fail(&self, task: &DrillTask, error: &HookError) -> Result<(), kube::Error> {
        tracing::warn!(drill = task.spec.drill, %error, "a drill's task failed");
        let failed = json!({"phase": "Failed", "message": error.to_string(), "startedAt": null});
        self.patch_status(task, failed).await
    }

    /// Of the task as it was seen: a newer one is left alone.
    async fn replace_status(
        &self,
        task: &DrillTask,
        status: DrillTaskStatus,
    ) -> Result<DrillTask, kube::Error> {
        let mut written = task.clone();
        written.status = Some(status);
        let params = PostParams::default();
        self.api.replace_status(name(task), &params, &written).await
    }

    /// Whatever else was written meanwhile: it tells what has been done.
    async fn patch_status(&self, task: &DrillTask, status: Value) -> Result<(), kube::Error> {
        let patch = Patch::Merge(json!({ "status": status }));
        let params = PatchParams::default();
        self.api.patch_status(name(task), &params, &patch).await?;
        Ok(())
    }
}

fn name(task: &DrillTask) -> &str {
    task.metadata.name.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use skiff_dev::DrillTaskSpec;

    use super::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn task(phase: TaskPhase, claimed: bool) -> DrillTask {
        DrillTask {
            spec: DrillTaskSpec {
                until: MicroTime(NOW + jiff::SignedDuration::from_secs(10)),
                ..DrillTaskSpec::default()
            },
            status: Some(DrillTaskStatus {
                phase,
                started_at: claimed.then_some(MicroTime(NOW)),
                ..DrillTaskStatus::default()
            }),
            ..DrillTask::default()
        }
    }

    #[test]
    fn a_task_goes_through_its_steps_once() {
        use TaskPhase::{Active, Ended, Failed, Pending};
        let at = |task: &DrillTask| step(task, NOW);
        assert_eq!(at(&task(Pending, false)), Step::Begin);
        assert_eq!(at(&task(Pending, true)), Step::Resume);
        assert_eq!(at(&task(Active, true)), Step::Watch);
        assert_eq!(at(&task(Ended, true)), Step::Leave);
        assert_eq!(at(&task(Failed, false)), Step::Leave);
        let unseen = DrillTask {
            status: None,
            ..task(Pending, false)
        };
        assert_eq!(at(&unseen), Step::Begin);
    }

    #[test]
    fn it_is_undone_when_it_is_stopped_over_or_deleted() {
        let stop = |mut task: DrillTask| {
            task.spec.stop = true;
            task
        };
        let late = |mut task: DrillTask| {
            task.spec.until = MicroTime(NOW);
            task
        };
        let delete = |mut task: DrillTask| {
            task.metadata.deletion_timestamp = Some(Time(NOW));
            task.metadata.finalizers = Some(vec![DrillTask::UNDO.to_owned()]);
            task
        };
        for end in [stop, late, delete] {
            assert_eq!(step(&end(task(TaskPhase::Active, true)), NOW), Step::Undo);
            let never_begun = end(task(TaskPhase::Pending, false));
            assert_eq!(step(&never_begun, NOW), Step::Undo);
        }
        // What was claimed may have been brought about, whatever happened since.
        assert_eq!(
            step(&stop(task(TaskPhase::Pending, true)), NOW),
            Step::Resume
        );
        let gone = delete(task(TaskPhase::Ended, true));
        assert_eq!(step(&gone, NOW), Step::Release);
        let released = DrillTask {
            metadata: Default::default(),
            ..gone
        };
        assert_eq!(step(&released, NOW), Step::Leave);
    }
}
