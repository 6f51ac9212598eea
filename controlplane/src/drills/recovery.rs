//! When a drill's target counts as recovered.
//!
//! Whatever the drill: as many pods of the target are Ready and in its Service as before, and no probe has failed since.
//! Beyond that it depends on the kind:
//!
//! | kind | recovered takes also |
//! |---|---|
//! | container-kill, container-oom | that each victim's container runs anew and its pod is Ready, or that the pod has left |
//! | container-hang | the same, or that the fault is undone |
//! | pod-delete, pod-evict | that each victim has left |
//! | node-drain | that the target's pods have left the node |
//! | node-crash | that the node's loss was noticed, and that all of this came before the node was started again |
//! | every other | that the fault is over, and a node that was hit is Ready and under no pressure |
//!
//! A crashed node that is started again brings its pods back with it. That is the doing of the drill, and no recovery of the
//! cluster: [`Recovery::ByUndo`].

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use skiff_dev::{DrillKind, DrillPlan, DrillTask, DrillTaskStatus, TaskPhase, Victim};

use super::course::Course;
use super::plan;

/// How long no probe may have failed.
pub(super) const STEADY: Duration = Duration::from_secs(1);

/// What the judgement rests on.
pub(super) struct Situation<'a> {
    pub(super) kind: DrillKind,
    pub(super) plan: &'a DrillPlan,
    /// The victims whose fault was not refused.
    pub(super) hit: &'a [Victim],
    pub(super) injected: Timestamp,
    pub(super) course: &'a Course,
    pub(super) faults: &'a [Arc<DrillTask>],
    pub(super) probe: Option<Probed<'a>>,
    pub(super) now: Timestamp,
}

/// A probe, as its agent last told.
pub(super) struct Probed<'a> {
    pub(super) status: &'a DrillTaskStatus,
    /// When that arrived.
    pub(super) seen: Option<Timestamp>,
    /// How long a request may be out before it counts as failed.
    pub(super) timeout: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Recovery {
    /// Not yet, and why.
    Missing(String),
    /// It looks so; the probe has to stay good until then, and say so.
    Settling(Timestamp),
    /// Since then.
    At(Timestamp),
    /// The target is whole since `at`, but was not before the fault was undone.
    ByUndo { at: Timestamp, why: String },
}

pub(super) fn judge(situation: &Situation<'_>) -> Recovery {
    let conditions = [
        over(situation),
        victims(situation),
        pods(situation),
        probe(situation),
    ];
    let mut at = situation.injected;
    for condition in conditions {
        match condition {
            Ok(since) => at = at.max(since),
            Err(why) => return Recovery::Missing(why),
        }
    }
    if let Some(probe) = &situation.probe {
        // Requests that were sent in the steady second have been answered by then, or have failed.
        let settled = at + STEADY + probe.timeout.min(STEADY);
        let is_told = probe.seen.is_some_and(|seen| seen >= settled);
        if situation.now < settled || !is_told {
            return Recovery::Settling(settled);
        }
    }
    match too_late(situation, at) {
        Some(why) => Recovery::ByUndo { at, why },
        None => Recovery::At(at),
    }
}

/// What was not as it should be before the undo, if the cluster was to recover before it and did only afterwards.
fn too_late(situation: &Situation<'_>, at: Timestamp) -> Option<String> {
    if situation.kind != DrillKind::NodeCrash {
        return None;
    }
    let undone = first_undone(situation.faults).filter(|undone| *undone <= at)?;
    let unnoticed = situation.hit.iter().find(|victim| {
        let noticed = loss_noticed(situation, victim);
        noticed.is_none_or(|noticed| noticed >= undone)
    });
    Some(match unnoticed {
        Some(victim) => format!("nobody had noticed that node/{} was gone", victim.node),
        None => "the target was not whole".to_owned(),
    })
}

/// When the undoing of the first of these began.
pub(super) fn first_undone(faults: &[Arc<DrillTask>]) -> Option<Timestamp> {
    let undone = faults.iter().filter_map(|task| {
        let status = task.status.as_ref();
        let ended = status.filter(|status| status.phase == TaskPhase::Ended)?;
        let told = ended.ended_at.as_ref()?.0;
        // An agent that crashed with its node tells of it only once it is back.
        let is_back = task.spec.node_name.is_some();
        Some(if is_back {
            told.min(task.spec.until.0)
        } else {
            told
        })
    });
    undone.min()
}

type Condition = Result<Timestamp, String>;

fn pods(situation: &Situation<'_>) -> Condition {
    let course = situation.course;
    course.whole_since().ok_or_else(|| {
        let (ready, baseline) = (course.ready(), course.baseline());
        match situation.plan.probe.as_ref().map(|p| p.service.as_str()) {
            Some(service) if !service.is_empty() => {
                format!("{ready} of {baseline} pods are Ready and in the service {service}")
            }
            _ => format!("{ready} of {baseline} pods are Ready"),
        }
    })
}

fn probe(situation: &Situation<'_>) -> Condition {
    let Some(probe) = &situation.probe else {
        return Ok(situation.injected);
    };
    let status = probe.status;
    if status.healthy != Some(true) {
        return Err("the probes fail".into());
    }
    let since = status
        .healthy_since
        .as_ref()
        .or(status.last_failed_at.as_ref());
    Ok(since.map_or(situation.injected, |since| since.0))
}

/// Whether the fault itself has to be over, and since when it is.
fn over(situation: &Situation<'_>) -> Condition {
    match situation.kind {
        DrillKind::ContainerKill
        | DrillKind::ContainerOom
        | DrillKind::ContainerHang
        | DrillKind::PodDelete
        | DrillKind::PodEvict
        | DrillKind::NodeDrain
        | DrillKind::NodeCrash => Ok(situation.injected),
        _ => ended(situation.faults),
    }
}

/// When the last of these was undone.
pub(super) fn ended(faults: &[Arc<DrillTask>]) -> Condition {
    let mut last = Timestamp::UNIX_EPOCH;
    for task in faults {
        let status = task.status.as_ref();
        let is_over =
            status.is_some_and(|s| matches!(s.phase, TaskPhase::Ended | TaskPhase::Failed));
        let at = status.and_then(|s| s.ended_at.as_ref()).filter(|_| is_over);
        last = last.max(at.ok_or("the fault is still there")?.0);
    }
    Ok(last)
}

fn victims(situation: &Situation<'_>) -> Condition {
    let mut last = situation.injected;
    for victim in situation.hit {
        let since = match situation.kind {
            DrillKind::ContainerKill | DrillKind::ContainerOom => runs_anew(situation, victim)?,
            DrillKind::ContainerHang => match ended(situation.faults) {
                Ok(undone) => undone.max(is_ready(situation, victim)?),
                Err(_) => runs_anew(situation, victim)?,
            },
            DrillKind::PodDelete | DrillKind::PodEvict => left(situation, victim)
                .ok_or_else(|| format!("{} is still there", plan::object_of(victim)))?,
            DrillKind::NodeDrain => drained(situation, victim)?,
            DrillKind::NodeCrash => match loss_noticed(situation, victim) {
                Some(at) => at,
                None => ended(situation.faults)
                    .map_err(|_| format!("nobody noticed that node/{} is gone", victim.node))?,
            },
            _ if victim.pod.is_some() => is_ready(situation, victim)?,
            _ => whole_node(situation, victim)?,
        };
        last = last.max(since);
    }
    Ok(last)
}

fn left(situation: &Situation<'_>, victim: &Victim) -> Option<Timestamp> {
    let uid = &victim.pod.as_ref()?.uid;
    match situation.course.pod(uid) {
        Some(track) => track.left_at,
        // It was gone before this process began to look.
        None => Some(situation.injected),
    }
}

fn runs_anew(situation: &Situation<'_>, victim: &Victim) -> Condition {
    if let Some(left) = left(situation, victim) {
        return Ok(left);
    }
    let object = plan::object_of(victim);
    let pod = victim.pod.as_ref();
    let track = pod.and_then(|pod| situation.course.pod(&pod.uid));
    let track = track.ok_or_else(|| format!("{object} is not known"))?;
    let restarted = track.restarted_at(&victim.container).or_else(|| {
        // Another process began this drill, and saw fewer restarts.
        let baseline = situation.plan.baseline.as_ref()?;
        let pods = &baseline.pods;
        let before = pods
            .iter()
            .find(|p| pod.is_some_and(|pod| pod.uid == p.uid))?;
        (track.restarts > before.restarts).then_some(situation.injected)
    });
    let restarted = restarted.ok_or_else(|| format!("{object} was not started anew"))?;
    let ready = track
        .ready_since
        .ok_or_else(|| format!("{object} is not Ready"))?;
    Ok(restarted.max(ready))
}

fn is_ready(situation: &Situation<'_>, victim: &Victim) -> Condition {
    if let Some(left) = left(situation, victim) {
        return Ok(left);
    }
    let uid = victim.pod.as_ref().map(|pod| pod.uid.as_str());
    let track = situation.course.pod(uid.unwrap_or_default());
    let since = track.and_then(|track| track.ready_since);
    since.ok_or_else(|| format!("{} is not Ready", plan::object_of(victim)))
}

/// When the last of the target's pods left the node.
fn drained(situation: &Situation<'_>, victim: &Victim) -> Condition {
    let mut last = situation.injected;
    let here = situation.course.pods().filter(|(uid, pod)| {
        let baseline = situation.plan.baseline.as_ref();
        pod.node == victim.node
            && baseline.is_none_or(|baseline| baseline.pods.iter().any(|b| b.uid == **uid))
    });
    for (_, pod) in here {
        let left = pod.left_at;
        last = last
            .max(left.ok_or_else(|| format!("{} is still on node/{}", pod.object, victim.node))?);
    }
    Ok(last)
}

fn loss_noticed(situation: &Situation<'_>, victim: &Victim) -> Option<Timestamp> {
    let node = situation.course.node(&victim.node)?;
    node.lost_at.filter(|at| *at >= situation.injected)
}

fn whole_node(situation: &Situation<'_>, victim: &Victim) -> Condition {
    let node = situation.course.node(&victim.node);
    let since = node.and_then(|node| node.whole_since());
    since.ok_or_else(|| format!("node/{} is not Ready, or under pressure", victim.node))
}

/// Since when everything is as it was, beyond the target: the fault undone, the nodes that were hit Ready.
pub(super) fn healed(situation: &Situation<'_>) -> Condition {
    let mut last = situation.injected.max(ended(situation.faults)?);
    for victim in situation.hit.iter().filter(|victim| victim.pod.is_none()) {
        last = last.max(whole_node(situation, victim)?);
    }
    for name in &situation.plan.uncordon {
        let node = situation.course.node(name);
        let since = node.and_then(|node| node.schedulable_since());
        last = last.max(since.ok_or_else(|| format!("node/{name} is cordoned"))?);
    }
    Ok(last)
}

#[cfg(test)]
mod tests;
