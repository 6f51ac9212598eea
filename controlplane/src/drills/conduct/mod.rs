//! Takes a drill from one phase to the next.
//!
//! | phase | what is done | what ends it |
//! |---|---|---|
//! | Pending | victims are chosen, and written down | the plan (or a refusal, or a dry run: Completed) |
//! | Preparing | probe and stream of writes begin | a steady second: the baseline is written down |
//! | Running | the fault is brought about | it lasted as long as it was to, or the target recovered, or the time is up |
//! | Healing | the fault is undone, recovery awaited, then the probe ends | everything over: the report |
//! | Completed | tasks are let go, the finalizer too | |
//!
//! Each step looks at the drill and its tasks, does what is missing, and either writes the drill's next status and goes on
//! with that, or waits. A status is only ever written over the version that the step saw: a step that saw an old one fails,
//! and is tried again with the new one.

mod begin;
mod heal;
mod run;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use skiff_dev::{
    Drill, DrillKind, DrillPhase, DrillPlan, DrillResult, DrillStatus, GoDuration, Victim,
};
use tokio::time::Instant;

use super::observe::{Active, Observer};
use super::plan::{self, Needs};
use super::recovery::{Probed, Situation};
use super::report::Facts;
use super::tasks::TaskSet;
use crate::controllers::Informers;
use crate::controllers::informer::{Index, ObjectKey};
use crate::controllers::runner::{Controller, Next};
use crate::drill_hooks::DrillHooks;
use crate::drills::now;

/// How long recovery may take when nobody says.
const TIMEOUT: GoDuration = GoDuration::from_secs(120);
/// What happens is written into the status no more often than this.
const WRITES_APART: Duration = Duration::from_millis(200);
/// How long an executor may take to begin with a task.
const BEGINNING: Duration = Duration::from_secs(15);
/// How long after the end of its time a task may go without a word before it is given up.
const GIVEN_UP: Duration = Duration::from_secs(60);

pub(super) struct Conductor {
    pub(super) client: Client,
    pub(super) informers: Informers,
    pub(super) observer: Observer,
    pub(super) hooks: Option<Arc<dyn DrillHooks>>,
}

/// What a step came to.
enum Step {
    /// The drill is now so; go on.
    On(Box<Drill>),
    /// Nothing can be done before something changes.
    Rest(Next),
}

impl Controller for Conductor {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "drill-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        self.synced().await;
        let Some(drill) = self.informers.drills.get(key) else {
            self.observer.forget(&key.name);
            return Ok(Next::Wait);
        };
        let mut drill = Drill::clone(&drill);
        loop {
            match self.step(&drill).await? {
                Step::On(next) => drill = *next,
                Step::Rest(next) => return Ok(next),
            }
        }
    }
}

impl Conductor {
    async fn synced(&self) {
        self.informers.drills.synced().await;
        self.informers.drill_tasks.synced().await;
        self.informers.pods.synced().await;
        self.informers.replica_sets.synced().await;
        self.informers.deployments.synced().await;
        self.informers.nodes.synced().await;
        self.informers.services.synced().await;
        self.informers.endpoint_slices.synced().await;
    }

    async fn step(&self, drill: &Drill) -> Result<Step, kube::Error> {
        let status = drill.status.clone().unwrap_or_default();
        let phase = status.phase;
        if phase == DrillPhase::Completed {
            return self.tidy(drill).await;
        }
        if phase == DrillPhase::Pending {
            return self.begin(drill, status).await;
        }
        let Some(plan) = status.plan.clone() else {
            let message = "the notes on this drill are gone from its status".to_owned();
            return self
                .complete(drill, status, DrillResult::Refused, message)
                .await;
        };
        self.observer.follow(drill, &plan);
        let scene = Scene {
            drill,
            name: drill.metadata.name.as_deref().unwrap_or_default(),
            tasks: self.tasks_of(drill),
            status,
            plan,
            now: now(),
        };
        match phase {
            DrillPhase::Preparing => self.prepare(scene).await,
            DrillPhase::Running => self.run(scene).await,
            _ => self.heal(scene).await,
        }
    }

    fn tasks_of(&self, drill: &Drill) -> TaskSet {
        let name = drill.metadata.name.as_deref().unwrap_or_default();
        let tasks = self.informers.drill_tasks.by_index(Index::Drill, name);
        TaskSet::of(drill, tasks)
    }

    /// Writes a status over the one that was seen.
    async fn write(&self, drill: &Drill, status: DrillStatus) -> Result<Step, kube::Error> {
        let name = drill.metadata.name.as_deref().unwrap_or_default();
        let mut written = drill.clone();
        written.status = Some(status);
        let api: Api<Drill> = Api::all(self.client.clone());
        let written = api
            .replace_status(name, &PostParams::default(), &written)
            .await?;
        self.observer.with(name, |active| {
            active.written = Some(Instant::now());
        });
        Ok(Step::On(Box::new(written)))
    }

    /// Ends a drill that has touched nothing.
    async fn complete(
        &self,
        drill: &Drill,
        mut status: DrillStatus,
        result: DrillResult,
        message: String,
    ) -> Result<Step, kube::Error> {
        status.phase = DrillPhase::Completed;
        status.result = Some(result);
        status.message = Some(message);
        status.plan = None;
        status.completed_at = Some(MicroTime(now()));
        self.write(drill, status).await
    }

    /// Undoes what there is, without waiting for a recovery.
    async fn call_off(
        &self,
        scene: &Scene<'_>,
        result: DrillResult,
        message: String,
    ) -> Result<Step, kube::Error> {
        let mut status = scene.status.clone();
        status.phase = DrillPhase::Healing;
        status.result = Some(result);
        status.message = Some(message);
        self.write(scene.drill, status).await
    }

    async fn set_finalizers(
        &self,
        drill: &Drill,
        finalizers: Vec<String>,
    ) -> Result<Drill, kube::Error> {
        let api: Api<Drill> = Api::all(self.client.clone());
        let name = drill.metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(json!({"metadata": {
            "uid": drill.metadata.uid,
            "resourceVersion": drill.metadata.resource_version,
            "finalizers": finalizers,
        }}));
        api.patch(name, &PatchParams::default(), &patch).await
    }

    /// Writes what has happened since the last time, if anything did; waits a moment if that was just now.
    async fn note_progress(
        &self,
        scene: &Scene<'_>,
        status: DrillStatus,
    ) -> Result<Option<Step>, kube::Error> {
        if drill_status_is(scene.drill, &status) {
            return Ok(None);
        }
        let written = self
            .observer
            .with(scene.name, |active| active.written)
            .flatten();
        let apart = written.map(|at| WRITES_APART.saturating_sub(at.elapsed()));
        match apart.filter(|left| !left.is_zero()) {
            Some(left) => Ok(Some(Step::Rest(Next::After(left)))),
            None => self.write(scene.drill, status).await.map(Some),
        }
    }
}

fn drill_status_is(drill: &Drill, status: &DrillStatus) -> bool {
    drill.status.as_ref() == Some(status)
}

/// A drill that goes on, and everything that is known of it.
struct Scene<'a> {
    drill: &'a Drill,
    name: &'a str,
    tasks: TaskSet,
    status: DrillStatus,
    plan: DrillPlan,
    now: Timestamp,
}

impl Scene<'_> {
    fn kind(&self) -> DrillKind {
        self.drill.spec.drill
    }

    /// Why the drill is to end now, if somebody wants that.
    fn called_off(&self) -> Option<String> {
        if self.drill.metadata.deletion_timestamp.is_some() {
            return Some("the drill was deleted".into());
        }
        self.drill
            .spec
            .cancel
            .then(|| "the drill was cancelled".into())
    }

    /// How long the fault lasts; `None` if it is over at once.
    fn duration(&self) -> Option<Duration> {
        let usual = self.kind().default_duration()?;
        Some(self.drill.spec.duration.unwrap_or(usual).0)
    }

    fn timeout(&self) -> Duration {
        self.drill.spec.timeout.unwrap_or(TIMEOUT).0
    }

    /// Until when recovery is awaited. A fault that outlasts the timeout leaves it that long after its end.
    fn deadline(&self, injected: Timestamp) -> Timestamp {
        let lasts = self.duration().unwrap_or_default();
        if lasts < self.timeout() {
            injected + self.timeout()
        } else {
            injected + lasts + self.timeout()
        }
    }

    /// When the first fault came about.
    fn injected(&self, active: &Active) -> Option<Timestamp> {
        let acts = active.acts.values().filter(|act| act.refused.is_none());
        let tasks = self.tasks.faults.iter();
        let tasks = tasks.filter_map(|task| Some(task.status.as_ref()?.started_at.as_ref()?.0));
        let known = acts.map(|act| act.at).chain(tasks).min();
        // Another process wrote it, right before it acted.
        let noted = self.status.injected_at.as_ref().map(|at| at.0);
        match Needs::of(self.kind()) {
            Needs::Tasks => known,
            Needs::Api => known.or(noted.filter(|_| active.acts.is_empty())),
        }
    }

    /// The victims whose fault was not refused.
    fn hit(&self, active: &Active) -> Vec<Victim> {
        let is_hit = |victim: &&Victim| {
            let act = active.acts.get(&plan::object_of(victim));
            act.is_none_or(|act| act.refused.is_none())
        };
        self.plan.victims.iter().filter(is_hit).cloned().collect()
    }

    fn recovered(&self) -> Option<Timestamp> {
        let injected = self.status.injected_at.as_ref()?.0;
        let seconds = self.status.time_to_recover?;
        Some(super::report::after(injected, seconds))
    }

    fn facts<'b>(&'b self, active: &'b Active) -> Facts<'b> {
        let probe = self.tasks.probe.as_ref();
        Facts {
            drill: self.drill,
            plan: &self.plan,
            active,
            faults: &self.tasks.faults,
            probe: probe.and_then(|task| task.status.as_ref()),
            injected: self.injected(active),
            recovered: self.recovered(),
            healed: self.status.healed_at.as_ref().map(|at| at.0),
        }
    }

    fn situation<'b>(
        &'b self,
        active: &'b Active,
        injected: Timestamp,
        hit: &'b [Victim],
    ) -> Situation<'b> {
        let probe = self.plan.probe.as_ref().zip(self.tasks.probe.as_ref());
        Situation {
            kind: self.kind(),
            plan: &self.plan,
            hit,
            injected,
            course: &active.course,
            faults: &self.tasks.faults,
            probe: probe.map(|(plan, task)| Probed {
                status: task.status.as_ref().unwrap_or(&NOTHING_TOLD),
                seen: active.probe_seen,
                timeout: plan.timeout.0,
            }),
            now: self.now,
        }
    }
}

/// The status of a task whose executor has said nothing yet.
static NOTHING_TOLD: std::sync::LazyLock<skiff_dev::DrillTaskStatus> =
    std::sync::LazyLock::new(skiff_dev::DrillTaskStatus::default);

/// Waits until then, at least a moment: what is due and not told yet comes with a word of its executor, which
/// speaks four times a second.
fn until(at: Timestamp, now: Timestamp) -> Next {
    let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
    Next::After(left.max(Duration::from_millis(50)))
}
