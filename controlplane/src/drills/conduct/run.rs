//! Running: the fault is brought about, and watched.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use skiff_dev::{DrillKind, DrillPhase, DrillResult, PodRef, TaskPhase, Victim};

use super::{BEGINNING, Conductor, GIVEN_UP, Scene, Step, until};
use crate::controllers::informer::{Index, ObjectKey};
use crate::controllers::pod_state::is_active;
use crate::controllers::runner::Next;
use crate::drills::observe::Act;
use crate::drills::plan::{self, Needs};
use crate::drills::recovery::{self, Recovery};
use crate::drills::{acts, now, tasks};

/// How soon an eviction that a budget refused is tried again, as `kubectl drain` does.
const AGAIN: Duration = Duration::from_secs(5);

impl Conductor {
    pub(super) async fn run(&self, scene: Scene<'_>) -> Result<Step, kube::Error> {
        if let Some(why) = scene.called_off() {
            return self.call_off(&scene, DrillResult::Cancelled, why).await;
        }
        match Needs::of(scene.kind()) {
            Needs::Tasks => self.assign(&scene).await?,
            Needs::Api => {
                if scene.status.injected_at.is_none() {
                    // Should this process end in the middle of the request, this is when it was.
                    let mut status = scene.status.clone();
                    status.injected_at = Some(MicroTime(scene.now));
                    return self.write(scene.drill, status).await;
                }
                self.act(&scene).await?;
            }
        }
        if let Some(why) = self.failure(&scene) {
            return self.call_off(&scene, DrillResult::Refused, why).await;
        }
        let scene = Scene {
            now: now(),
            tasks: self.tasks_of(scene.drill),
            ..scene
        };
        let known = self.observer.with(scene.name, |active| {
            let mut facts = scene.facts(active);
            let injected = facts.injected?;
            let hit = scene.hit(active);
            let recovery = match facts.recovered {
                Some(at) => Recovery::At(at),
                None => recovery::judge(&scene.situation(active, injected, &hit)),
            };
            if let Recovery::At(at) = recovery {
                facts.recovered = Some(at);
            }
            Some((injected, recovery, facts.status()))
        });
        let Some((injected, recovery, mut status)) = known.flatten() else {
            return self.await_beginning(&scene).await;
        };
        let deadline = scene.deadline(injected);
        let end = match (scene.duration(), &recovery) {
            (Some(lasts), _) => (injected + lasts).min(deadline),
            (None, Recovery::At(_)) => scene.now,
            (None, _) => deadline,
        };
        if scene.now >= end {
            status.phase = DrillPhase::Healing;
            return self.write(scene.drill, status).await;
        }
        if let Some(step) = self.note_progress(&scene, status).await? {
            return Ok(step);
        }
        let mut look = end;
        if let Recovery::Settling(at) = recovery {
            look = look.min(at);
        }
        if scene.kind() == DrillKind::NodeDrain {
            look = look.min(scene.now + AGAIN);
        }
        Ok(Step::Rest(until(look, scene.now)))
    }

    /// Makes the fault's tasks, those that are not there yet.
    async fn assign(&self, scene: &Scene<'_>) -> Result<(), kube::Error> {
        let hooks = self.hooks.clone();
        let is_own = move |node: &str| hooks.as_ref().is_some_and(|hooks| hooks.has_node(node));
        // The plan was made only if this succeeds.
        let faults = plan::faults(scene.drill, &scene.plan, is_own).unwrap_or_default();
        if scene.tasks.faults.len() >= faults.len() {
            return Ok(());
        }
        let lasts = scene.duration().unwrap_or_else(|| scene.timeout());
        for (at, fault) in faults.into_iter().enumerate() {
            let task = tasks::fault_task(scene.drill, at, fault, now() + lasts);
            tasks::create(&self.client, &task).await?;
        }
        Ok(())
    }

    /// Why the fault could not be brought about, if it could not.
    fn failure(&self, scene: &Scene<'_>) -> Option<String> {
        let failed = scene.tasks.faults.iter().find_map(|task| {
            let status = tasks::status(task);
            let is_failed = status.phase == TaskPhase::Failed;
            is_failed.then(|| status.message.unwrap_or_else(|| "it failed".into()))
        });
        failed.or_else(|| {
            let all_refused = self.observer.with(scene.name, |active| {
                let acts = &active.acts;
                let mut refused = acts.values().filter_map(|act| act.refused.clone());
                let is_all = !acts.is_empty() && acts.values().all(|act| act.refused.is_some());
                is_all.then(|| refused.next()).flatten()
            });
            all_refused.flatten()
        })
    }

    /// An executor that says nothing is waited for; one that the fault itself may have silenced, for long.
    async fn await_beginning(&self, scene: &Scene<'_>) -> Result<Step, kube::Error> {
        let is_silenced = matches!(
            scene.kind(),
            DrillKind::NodeCrash
                | DrillKind::NodePartition
                | DrillKind::AgentRestart
                | DrillKind::ControlplaneRestart
                | DrillKind::ControlplaneKill
        );
        let first = scene.tasks.faults.iter().map(|task| {
            let made = task.metadata.creation_timestamp.as_ref();
            // Objects' times are whole seconds.
            let made = made.map_or(scene.now, |at| at.0) + Duration::from_secs(1);
            match is_silenced {
                true => task.spec.until.0 + GIVEN_UP,
                false => made + BEGINNING,
            }
        });
        let Some(by) = first.max() else {
            return Ok(Step::Rest(Next::After(BEGINNING)));
        };
        if scene.now < by {
            return Ok(Step::Rest(until(by, scene.now)));
        }
        let silent = scene.tasks.faults.first();
        let node = silent.and_then(|task| task.spec.node_name.clone());
        let who = node.map_or("the control plane".into(), |n| {
            format!("the agent of node/{n}")
        });
        let why = format!("{who} did not bring about the fault");
        self.call_off(scene, DrillResult::Refused, why).await
    }

    /// Does to the victims what the controller does itself, where it has not yet.
    async fn act(&self, scene: &Scene<'_>) -> Result<(), kube::Error> {
        for victim in &scene.plan.victims {
            let object = plan::object_of(victim);
            match &victim.pod {
                Some(pod) if self.act_of(scene, &object).is_none() => {
                    self.act_on_pod(scene, object, pod).await?;
                }
                Some(_) => {}
                None => self.drain(scene, object, victim).await?,
            }
        }
        Ok(())
    }

    async fn act_on_pod(
        &self,
        scene: &Scene<'_>,
        object: String,
        pod: &PodRef,
    ) -> Result<(), kube::Error> {
        let at = now();
        let key = ObjectKey::new(&pod.namespace, &pod.name);
        let current = self.informers.pods.get(&key);
        let is_there = current.is_some_and(|current| {
            current.metadata.uid.as_deref() == Some(pod.uid.as_str()) && is_active(&current)
        });
        if !is_there {
            // Another process of the control plane has done it, and ended before it could say when exactly.
            let noted = scene.status.injected_at.as_ref().map_or(at, |at| at.0);
            self.note_act(scene, object, noted, None);
            return Ok(());
        }
        let refused = match scene.kind() {
            DrillKind::PodEvict => acts::evict(&self.client, pod).await?,
            _ => {
                acts::delete(&self.client, pod).await?;
                None
            }
        };
        self.note_act(scene, object, at, refused);
        Ok(())
    }

    /// Cordons a node and evicts what is on it; evictions that a budget refuses are tried again later.
    async fn drain(
        &self,
        scene: &Scene<'_>,
        object: String,
        victim: &Victim,
    ) -> Result<(), kube::Error> {
        if self.act_of(scene, &object).is_none() {
            let at = now();
            acts::set_cordoned(&self.client, &victim.node, true).await?;
            self.note_act(scene, object, at, None);
        }
        let pods = self.informers.pods.by_index(Index::Node, &victim.node);
        let pods: Vec<Arc<Pod>> = pods.into_iter().filter(acts::is_drained).collect();
        for pod in pods {
            let object = plan::pod_object(&pod);
            let before = self.act_of(scene, &object);
            let is_early = before
                .as_ref()
                .is_some_and(|act| scene.now < act.at + AGAIN);
            if is_early {
                continue;
            }
            let at = now();
            let refused = acts::evict(&self.client, &plan::pod_ref(&pod)).await?;
            self.note_act(scene, object, at, refused);
        }
        Ok(())
    }

    fn act_of(&self, scene: &Scene<'_>, object: &str) -> Option<Act> {
        let act = |active: &mut crate::drills::observe::Active| active.acts.get(object).cloned();
        self.observer.with(scene.name, act).flatten()
    }

    fn note_act(&self, scene: &Scene<'_>, object: String, at: Timestamp, refused: Option<String>) {
        self.observer.with(scene.name, |active| {
            active.acts.insert(object, Act { at, refused });
        });
    }
}
