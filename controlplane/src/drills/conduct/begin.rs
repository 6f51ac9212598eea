//! Pending and Preparing: everything before something is broken.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use skiff_dev::{
    Drill, DrillKind, DrillPhase, DrillResult, DrillStatus, DrillTask, PlannedProbe, TaskPhase,
};

use super::{BEGINNING, Conductor, GIVEN_UP, Scene, Step, until};
use crate::controllers::runner::Next;
use crate::drills::plan::{self, Refusal, World};
use crate::drills::recovery::STEADY;
use crate::drills::{now, tasks, writer};

/// How long a probe may fail at first: a Service that was just made takes a moment to reach every node.
const PATIENCE: Duration = Duration::from_secs(5);

impl Conductor {
    /// Chooses victims, and writes them down.
    pub(super) async fn begin(
        &self,
        drill: &Drill,
        mut status: DrillStatus,
    ) -> Result<Step, kube::Error> {
        if drill.metadata.deletion_timestamp.is_some() {
            return Ok(Step::Rest(Next::Wait));
        }
        if drill.spec.cancel {
            let message = "the drill was cancelled before it began".to_owned();
            return self
                .complete(drill, status, DrillResult::Cancelled, message)
                .await;
        }
        let seed = drill.spec.seed.unwrap_or_else(chance);
        status.seed = Some(seed);
        let world = World::of(&self.informers);
        let planned = plan::plan(drill, &world, seed).and_then(|plan| {
            let others = self.informers.drills.list();
            plan::refuse_overlap(&plan, drill, others.iter().map(|other| &**other))?;
            self.refuse_own_node(drill, &plan)?;
            plan::faults(drill, &plan, |_| true)?;
            Ok(plan)
        });
        let plan = match planned {
            Ok(plan) => plan,
            Err(refusal) => {
                let message = refusal.to_string();
                return self
                    .complete(drill, status, DrillResult::Refused, message)
                    .await;
            }
        };
        status.victims = plan::listed(drill, &plan);
        status.started_at = Some(MicroTime(now()));
        if drill.spec.dry_run {
            status.phase = DrillPhase::Completed;
            status.completed_at.clone_from(&status.started_at);
            status.message = Some("a dry run: nothing was touched".into());
            return self.write(drill, status).await;
        }
        status.phase = DrillPhase::Preparing;
        status.plan = Some(plan);
        self.write(drill, status).await
    }

    /// The node that runs in this process falls and rises with it.
    fn refuse_own_node(&self, drill: &Drill, plan: &skiff_dev::DrillPlan) -> Result<(), Refusal> {
        let own = self.hooks.as_ref().and_then(|hooks| hooks.own_node());
        let hit = plan
            .victims
            .iter()
            .find(|victim| Some(&*victim.node) == own);
        match (drill.spec.drill, hit) {
            (DrillKind::NodeCrash, Some(victim)) => Err(Refusal::Parameter(format!(
                "node/{} runs the control plane in its own process and can't be crashed alone",
                victim.node
            ))),
            _ => Ok(()),
        }
    }

    /// Begins to measure; when that has been steady, writes down how everything is.
    pub(super) async fn prepare(&self, mut scene: Scene<'_>) -> Result<Step, kube::Error> {
        if let Some(why) = scene.called_off() {
            return self.call_off(&scene, DrillResult::Cancelled, why).await;
        }
        let finalizers = scene.drill.metadata.finalizers.clone().unwrap_or_default();
        if !finalizers.iter().any(|name| name == Drill::UNDO) {
            let mut finalizers = finalizers;
            finalizers.push(Drill::UNDO.to_owned());
            let held = self.set_finalizers(scene.drill, finalizers).await?;
            return Ok(Step::On(Box::new(held)));
        }
        let measured = [
            self.measure(&scene).await?,
            self.keep_writing(&scene).await?,
        ];
        for readiness in measured {
            match readiness {
                Readiness::Steady => {}
                Readiness::Look(at) => return Ok(Step::Rest(until(at, scene.now))),
                Readiness::Unfit(why) => {
                    return self.call_off(&scene, DrillResult::Refused, why).await;
                }
            }
        }
        if let Err(why) = self.victims_are_there(&scene) {
            return self.call_off(&scene, DrillResult::Refused, why).await;
        }
        let baseline = self
            .observer
            .with(scene.name, |active| active.course.set_baseline(scene.now));
        let baseline = baseline.unwrap_or_default();
        if baseline.ready == 0 && !baseline.pods.is_empty() {
            let target = &scene.drill.spec.target;
            let why = format!("no pod of {target} is Ready before the drill");
            return self.call_off(&scene, DrillResult::Refused, why).await;
        }
        scene.plan.baseline = Some(baseline);
        scene.plan.whole_since = Some(MicroTime(scene.now));
        let mut status = scene.status;
        status.plan = Some(scene.plan);
        status.phase = DrillPhase::Running;
        self.write(scene.drill, status).await
    }

    async fn measure(&self, scene: &Scene<'_>) -> Result<Readiness, kube::Error> {
        let Some(planned) = &scene.plan.probe else {
            return Ok(Readiness::Steady);
        };
        match &scene.tasks.probe {
            Some(task) => Ok(readiness(task, planned, scene.now)),
            None => {
                let task = tasks::probe_task(scene.drill, planned, self.end_of_all(scene));
                tasks::create(&self.client, &task).await?;
                Ok(Readiness::Look(scene.now + BEGINNING))
            }
        }
    }

    /// Of `controlplane-kill`: the stream of writes that it is done under.
    async fn keep_writing(&self, scene: &Scene<'_>) -> Result<Readiness, kube::Error> {
        if scene.kind() != DrillKind::ControlplaneKill {
            return Ok(Readiness::Steady);
        }
        let Some(task) = &scene.tasks.writes else {
            let probe = scene.plan.probe.as_ref().map(|probe| probe.node.clone());
            let Some(node) = probe.or_else(|| self.any_ready_node()) else {
                return Ok(Readiness::Unfit(Refusal::NoProber.to_string()));
            };
            let until = self.end_of_all(scene);
            let seconds = until.duration_since(scene.now).as_secs();
            let action = writer::prepare(&self.client, scene.drill, seconds).await?;
            let task = tasks::write_task(scene.drill, node, action, until);
            tasks::create(&self.client, &task).await?;
            return Ok(Readiness::Look(scene.now + BEGINNING));
        };
        let status = tasks::status(task);
        let acknowledged = status.writes.as_ref().map_or(0, |w| w.acknowledged);
        Ok(match begun(task, scene.now) {
            Begun::Yes(_) if acknowledged > 0 => Readiness::Steady,
            Begun::Yes(at) if scene.now >= at + PATIENCE => Readiness::Unfit(format!(
                "writes are not acknowledged before the drill{}",
                status.message.map(|m| format!(": {m}")).unwrap_or_default()
            )),
            Begun::Yes(at) => Readiness::Look(at + PATIENCE),
            Begun::NotYet(at) => Readiness::Look(at),
            Begun::Never(why) => Readiness::Unfit(why),
        })
    }

    fn any_ready_node(&self) -> Option<String> {
        let nodes = self.informers.nodes.list();
        let ready = nodes.iter().filter(|node| plan::is_ready_node(node));
        ready.filter_map(|node| node.metadata.name.clone()).min()
    }

    /// When probe and writes end by themselves, should nobody come to end them.
    fn end_of_all(&self, scene: &Scene<'_>) -> Timestamp {
        let lasts = scene.duration().unwrap_or_default();
        scene.deadline(scene.now + BEGINNING + PATIENCE) + lasts + GIVEN_UP * 2
    }

    /// The victims may have gone while the probe began.
    fn victims_are_there(&self, scene: &Scene<'_>) -> Result<(), String> {
        for victim in &scene.plan.victims {
            let is_there = self.observer.with(scene.name, |active| match &victim.pod {
                Some(pod) => {
                    let track = active.course.pod(&pod.uid);
                    track.is_some_and(|track| track.left_at.is_none())
                }
                None => active.course.node(&victim.node).is_some(),
            });
            if is_there != Some(true) {
                let object = plan::object_of(victim);
                return Err(format!("{object} was gone before the drill began"));
            }
        }
        Ok(())
    }
}

/// Whether measuring has begun well.
enum Readiness {
    Steady,
    /// Not known before then, if nothing changes.
    Look(Timestamp),
    Unfit(String),
}

enum Begun {
    Yes(Timestamp),
    /// By then it has to.
    NotYet(Timestamp),
    Never(String),
}

fn begun(task: &DrillTask, now: Timestamp) -> Begun {
    let status = tasks::status(task);
    let node = task.spec.node_name.as_deref().unwrap_or_default();
    let what = match task.spec.action {
        skiff_dev::Action::Probe { .. } => "to probe",
        _ => "to write",
    };
    let message = status.message.unwrap_or_default();
    match (status.phase, &status.started_at) {
        (TaskPhase::Failed, _) => Begun::Never(format!("node/{node} fails {what}: {message}")),
        (TaskPhase::Ended, _) => Begun::Never(format!("node/{node} ceased {what}: {message}")),
        (TaskPhase::Active, Some(at)) => Begun::Yes(at.0),
        _ => {
            let created = task.metadata.creation_timestamp.as_ref();
            // Objects' times are whole seconds.
            let by = created.map_or(now, |at| at.0) + Duration::from_secs(1) + BEGINNING;
            if now < by {
                Begun::NotYet(by)
            } else {
                Begun::Never(format!("the agent of node/{node} does not begin {what}"))
            }
        }
    }
}

/// A probe that has been good for a steady second; one that fails is given a little patience.
fn readiness(task: &DrillTask, planned: &PlannedProbe, now: Timestamp) -> Readiness {
    let at = match begun(task, now) {
        Begun::Yes(at) => at,
        Begun::NotYet(by) => return Readiness::Look(by),
        Begun::Never(why) => return Readiness::Unfit(why),
    };
    let status = tasks::status(task);
    if status.healthy == Some(true) {
        let failed = status.last_failed_at.as_ref().map(|at| at.0);
        let since = status.healthy_since.as_ref().map(|at| at.0);
        let good = since.or(failed).unwrap_or(at).max(at);
        // By then, what was sent in the steady second is known to have been answered.
        let steady = good + STEADY + planned.timeout.0.min(STEADY) / 4;
        return if now >= steady {
            Readiness::Steady
        } else {
            Readiness::Look(steady)
        };
    }
    let patience = at + PATIENCE + planned.timeout.0;
    if now < patience {
        return Readiness::Look(patience);
    }
    let requests = status.requests.unwrap_or_default();
    let error = requests
        .errors
        .first()
        .map(|error| format!(" ({})", error.reason));
    Readiness::Unfit(format!(
        "the target is not healthy before the drill: {} of {} probes of {}:{} failed{}",
        requests.failed,
        requests.sent,
        planned.target.host,
        planned.target.port,
        error.unwrap_or_default()
    ))
}

/// A seed that nobody gave; small enough for every JSON parser.
fn chance() -> i64 {
    rand::random_range(0..1 << 31)
}
