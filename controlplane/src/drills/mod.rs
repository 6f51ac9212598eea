//! Failure drills: breaks the cluster on purpose, watches what happens, and says how long it took to recover.
//!
//!     Drill -> plan: victims by seed, what has to recover, what is probed (or a refusal, before anything is touched)
//!           -> conduct: Pending -> Preparing -> Running -> Healing -> Completed
//!                |  DrillTasks -> agents (faults, probes, writes), or the control plane's own process
//!                |  pods deleted and evicted, nodes drained, by the controller itself
//!           -> observe -> course: what happened to pods and nodes, at the arrival of watch events
//!           -> recovery: is the target whole again, since when
//!           -> report -> Drill.status
//!
//! The controller is level-triggered like every other. What it has decided, and how it was before, is in the drill's
//! status ([`skiff_dev::DrillPlan`]) before anything is broken, so that a control plane that ends in the middle (some drills
//! end it) goes on when it is back: only what happened to pods meanwhile is seen late.

mod acts;
mod conduct;
mod course;
mod history;
#[cfg(test)]
mod made_up;
mod membership;
mod observe;
mod plan;
mod recovery;
mod report;
mod tasks;
mod writer;

use std::sync::Arc;

use jiff::Timestamp;
use kube::Client;
use skiff_dev::DrillTask;

use crate::controllers::Informers;
use crate::controllers::informer::{Change, ObjectKey};
use crate::controllers::queue::WorkQueue;
use crate::controllers::runner;
use crate::controllers::tasks::Tasks;
use crate::drill_hooks::DrillHooks;
use conduct::Conductor;
use observe::Observer;

/// Drills that go on at one time.
const WORKERS: usize = 4;

/// Starts the drill controller. Without hooks, it has no nodes of its own to crash.
pub(crate) fn start(
    client: Client,
    informers: &Informers,
    hooks: Option<Arc<dyn DrillHooks>>,
    tasks: &Tasks,
) {
    let queue: WorkQueue<ObjectKey> = WorkQueue::default();
    let observer = Observer::start(client.clone(), informers, &queue, tasks);
    let drills = queue.clone();
    informers
        .drills
        .subscribe(move |change| drills.add(ObjectKey::of(&**change.object())));
    let of_tasks = queue.clone();
    informers.drill_tasks.subscribe(move |change| {
        let task = change.object();
        if !matches!(change, Change::Updated { old, new } if is_idle_talk(old, new)) {
            of_tasks.add(ObjectKey::cluster(&task.spec.drill));
        }
    });
    let conductor = Arc::new(Conductor {
        client,
        informers: informers.clone(),
        observer,
        hooks,
    });
    runner::run(conductor, &queue, WORKERS, tasks);
}

/// The time, as exact as objects tell it: what is read back from a status is then what was written.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}

/// Whether a probe, or a stream of writes, says no more than that it goes on.
fn is_idle_talk(old: &DrillTask, new: &DrillTask) -> bool {
    let (Some(old), Some(new)) = (&old.status, &new.status) else {
        return false;
    };
    let news = |status: &skiff_dev::DrillTaskStatus| {
        (
            status.phase,
            status.healthy,
            status.healthy_since.clone(),
            status.first_failed_at.clone(),
            status.started_at.clone(),
        )
    };
    new.requests.is_some() && news(old) == news(new)
}
