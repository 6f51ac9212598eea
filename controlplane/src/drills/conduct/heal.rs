//! Healing and Completed: the fault is undone, recovery awaited, the report written, and everything let go.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Api;
use skiff_dev::{Drill, DrillKind, DrillPhase, DrillResult, DrillTask};

use super::{Conductor, GIVEN_UP, Scene, Step, until};
use crate::controllers::informer::ObjectKey;
use crate::controllers::runner::Next;
use crate::controllers::writes::{only, unless_gone};
use crate::drills::recovery::{self, Recovery};
use crate::drills::{acts, history, report, tasks, writer};

/// How long the last word of a probe is waited for after it was told to end.
const LAST_WORD: Duration = Duration::from_secs(10);

impl Conductor {
    pub(super) async fn heal(&self, scene: Scene<'_>) -> Result<Step, kube::Error> {
        for task in &scene.tasks.faults {
            tasks::stop(&self.client, task).await?;
        }
        if scene.kind() == DrillKind::NodeDrain {
            self.uncordon(&scene).await?;
        }
        let mut open = Vec::new();
        for task in scene
            .tasks
            .faults
            .iter()
            .filter(|task| !tasks::is_over(task))
        {
            if !self.is_given_up(task, scene.now) {
                open.push(task.spec.until.0 + GIVEN_UP);
            }
        }
        let known = self.observer.with(scene.name, |active| {
            let mut facts = scene.facts(active);
            let Some(injected) = facts.injected else {
                return Outlook {
                    injected: None,
                    look: None,
                    is_over: true,
                    missing: None,
                    status: facts.status(),
                };
            };
            let hit = scene.hit(active);
            let situation = scene.situation(active, injected, &hit);
            let recovery = match facts.recovered {
                Some(at) => Recovery::At(at),
                None => recovery::judge(&situation),
            };
            let healed = recovery::healed(&situation);
            let (mut look, mut missing) = (None, None);
            match recovery {
                Recovery::At(at) => {
                    facts.recovered = Some(at);
                    missing = facts.heal(healed, at).map(Shortfall::Beyond);
                }
                Recovery::ByUndo { at, why } => {
                    let beyond = facts.heal(healed, at);
                    let undone = recovery::first_undone(situation.faults).unwrap_or(at);
                    missing = Some(Shortfall::OnlyByUndo {
                        why,
                        undone: report::seconds(undone, injected),
                        whole: report::seconds(at, injected),
                        beyond,
                    });
                }
                Recovery::Settling(at) => look = Some(at),
                Recovery::Missing(why) => missing = Some(Shortfall::Target(why)),
            }
            Outlook {
                injected: Some(injected),
                look,
                is_over: facts.healed.is_some(),
                missing,
                status: facts.status(),
            }
        });
        let Some(outlook) = known else {
            return Ok(Step::Rest(Next::Backoff));
        };
        if let Some(step) = self.note_progress(&scene, outlook.status.clone()).await? {
            return Ok(step);
        }
        if let Some(by) = open.into_iter().min() {
            return Ok(Step::Rest(until(by, scene.now)));
        }
        // A drill that was called off waits for nothing but its undoing.
        let is_called_off = scene.status.result.is_some() || scene.called_off().is_some();
        if let Some(injected) = outlook
            .injected
            .filter(|_| !is_called_off && !outlook.is_over)
        {
            let undone = recovery::ended(&scene.tasks.faults).unwrap_or(injected);
            let deadline = match scene.status.recovered {
                // Only what was hit beyond the target is missing, such as a node that starts again.
                Some(true) => scene.deadline(injected).max(undone + GIVEN_UP),
                _ => scene.deadline(injected),
            };
            if scene.now < deadline {
                let look = outlook.look.map_or(deadline, |at| at.min(deadline));
                return Ok(Step::Rest(until(look, scene.now)));
            }
        }
        self.conclude(scene, outlook.missing).await
    }

    /// Ends the measuring and writes the report.
    async fn conclude(
        &self,
        scene: Scene<'_>,
        missing: Option<Shortfall>,
    ) -> Result<Step, kube::Error> {
        let measuring = scene.tasks.probe.iter().chain(&scene.tasks.writes);
        let mut waiting = None;
        for task in measuring {
            tasks::stop(&self.client, task).await?;
            if !tasks::is_over(task) && !self.is_given_up(task, scene.now) {
                waiting = Some(task);
            }
        }
        if waiting.is_some() {
            let told = self.observer.with(scene.name, |active| {
                *active.concluding.get_or_insert(scene.now)
            });
            let by = told.unwrap_or(scene.now) + LAST_WORD;
            if scene.now < by {
                return Ok(Step::Rest(until(by, scene.now)));
            }
        }
        let writes = match &scene.tasks.writes {
            Some(task) => {
                Some(writer::account(&self.client, scene.drill, &tasks::status(task)).await?)
            }
            None => None,
        };
        let report = self.observer.with(scene.name, |active| {
            let mut scene_status = scene.status.clone();
            scene_status.phase = DrillPhase::Completed;
            scene_status.writes = writes;
            if scene_status.result.is_none() && scene.called_off().is_some() {
                scene_status.result = Some(DrillResult::Cancelled);
                scene_status.message = scene.called_off();
            }
            if scene_status.result.is_none() {
                scene_status.message = self.shortcoming(&scene, missing);
            }
            let mut drill = scene.drill.clone();
            drill.status = Some(scene_status);
            let mut facts = scene.facts(active);
            facts.drill = &drill;
            facts.report(scene.now)
        });
        match report {
            Some(report) => self.write(scene.drill, report).await,
            None => Ok(Step::Rest(Next::Backoff)),
        }
    }

    /// What a drill that was carried out fell short of, in a sentence.
    fn shortcoming(&self, scene: &Scene<'_>, missing: Option<Shortfall>) -> Option<String> {
        let silent = scene.tasks.faults.iter().find(|task| !tasks::is_over(task));
        if let Some(task) = silent {
            let node = task
                .spec
                .node_name
                .as_deref()
                .unwrap_or("the control plane");
            return Some(format!(
                "{node} has not said that it undid its part; it does so as soon as it can"
            ));
        }
        Some(missing?.told(skiff_dev::GoDuration(scene.timeout())))
    }

    async fn uncordon(&self, scene: &Scene<'_>) -> Result<(), kube::Error> {
        for name in &scene.plan.uncordon {
            let node = self.informers.nodes.get(&ObjectKey::cluster(name));
            let spec = node.as_ref().and_then(|node| node.spec.as_ref());
            if spec.and_then(|spec| spec.unschedulable) == Some(true) {
                acts::set_cordoned(&self.client, name, false).await?;
            }
        }
        Ok(())
    }

    /// Whether nobody will say any more how a task went: its node is gone, or silent long after it was to end.
    fn is_given_up(&self, task: &DrillTask, now: Timestamp) -> bool {
        let node = task.spec.node_name.as_deref();
        let is_gone = node.is_some_and(|name| {
            let node = self.informers.nodes.get(&ObjectKey::cluster(name));
            node.is_none()
        });
        is_gone || tasks::is_overdue(task, GIVEN_UP, now)
    }

    /// Lets go of what a drill that is over held.
    pub(super) async fn tidy(&self, drill: &Drill) -> Result<Step, kube::Error> {
        let name = drill.metadata.name.as_deref().unwrap_or_default();
        self.observer.forget(name);
        let tasks = self.tasks_of(drill);
        if tasks.writes.is_some() {
            writer::remove(&self.client, drill).await?;
        }
        let api: Api<DrillTask> = Api::all(self.client.clone());
        for task in tasks.all() {
            self.let_go(&api, task).await?;
        }
        let finalizers = drill.metadata.finalizers.clone().unwrap_or_default();
        if finalizers.iter().any(|name| name == Drill::UNDO) {
            let kept = finalizers.into_iter().filter(|name| name != Drill::UNDO);
            unless_gone(self.set_finalizers(drill, kept.collect()).await)?;
        }
        history::trim(&self.client, self.informers.drills.list()).await?;
        Ok(Step::Rest(Next::Wait))
    }

    /// Deletes a task, which its executor lets go once nothing of it is left; where there is no executor any more,
    /// this does.
    async fn let_go(&self, api: &Api<DrillTask>, task: &Arc<DrillTask>) -> Result<(), kube::Error> {
        let name = task.metadata.name.as_deref().unwrap_or_default();
        if task.metadata.deletion_timestamp.is_none() {
            unless_gone(api.delete(name, &only(task.metadata.uid.as_deref())).await)?;
        }
        let node = task.spec.node_name.as_deref();
        let is_orphan = node.is_some_and(|node| {
            let node = self.informers.nodes.get(&ObjectKey::cluster(node));
            node.is_none()
        });
        let is_held = task
            .metadata
            .finalizers
            .iter()
            .flatten()
            .any(|f| f == DrillTask::UNDO);
        if is_orphan && is_held {
            tasks::release(&self.client, task).await?;
        }
        Ok(())
    }
}

/// How a drill stands while it heals.
struct Outlook {
    injected: Option<Timestamp>,
    /// When to look again.
    look: Option<Timestamp>,
    is_over: bool,
    /// What is not as it was, or was not in time.
    missing: Option<Shortfall>,
    status: skiff_dev::DrillStatus,
}

/// What a drill falls short of.
enum Shortfall {
    /// The target is not whole.
    Target(String),
    /// The target recovered, and something else is not as it was, such as a node that has to start again.
    Beyond(String),
    /// The target became whole only when the fault was undone; times are seconds from the injection.
    OnlyByUndo {
        why: String,
        undone: f64,
        whole: f64,
        beyond: Option<String>,
    },
}

impl Shortfall {
    fn told(&self, timeout: skiff_dev::GoDuration) -> String {
        match self {
            Self::Target(why) => format!("not recovered within {timeout}: {why}"),
            Self::Beyond(why) => format!("the target recovered, but {why}"),
            Self::OnlyByUndo {
                why,
                undone,
                whole,
                beyond,
            } => {
                let mut text = format!(
                    "not recovered before the undo after {undone}s: {why}; whole again after {whole}s, by the undo"
                );
                if let Some(beyond) = beyond {
                    text.push_str(&format!(", but {beyond}"));
                }
                text
            }
        }
    }
}
