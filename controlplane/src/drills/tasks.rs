//! The tasks of a drill: how they are named, made, stopped, and let go.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use skiff_dev::{
    Action, Drill, DrillTask, DrillTaskSpec, DrillTaskStatus, PlannedProbe, TaskPhase,
};

use super::plan::Fault;
use crate::controllers::ownership::new_controller_ref;
use crate::controllers::writes::unless_gone;

/// Longer names of drills are cut in the names of their tasks.
const NAME: usize = 200;

/// The tasks of one drill, by what they are for.
#[derive(Debug, Default)]
pub(super) struct TaskSet {
    pub(super) probe: Option<Arc<DrillTask>>,
    pub(super) writes: Option<Arc<DrillTask>>,
    /// In the order of their numbers.
    pub(super) faults: Vec<Arc<DrillTask>>,
}

impl TaskSet {
    /// Those of `drill` among `all`.
    pub(super) fn of(drill: &Drill, all: Vec<Arc<DrillTask>>) -> Self {
        let mut set = Self::default();
        let mut faults = Vec::new();
        for task in all.into_iter().filter(|task| is_of(drill, task)) {
            match task.spec.action {
                Action::Probe { .. } => set.probe = Some(task),
                Action::Write { .. } => set.writes = Some(task),
                _ => faults.push(task),
            }
        }
        faults.sort_by_key(|task| number(task));
        set.faults = faults;
        set
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<DrillTask>> {
        self.faults.iter().chain(&self.probe).chain(&self.writes)
    }
}

fn is_of(drill: &Drill, task: &DrillTask) -> bool {
    let owners = task.metadata.owner_references.iter().flatten();
    let mut uids = owners.map(|owner| Some(&owner.uid));
    uids.any(|uid| uid == drill.metadata.uid.as_ref())
}

fn number(task: &DrillTask) -> usize {
    let name = task.metadata.name.as_deref().unwrap_or_default();
    let number = name.rsplit_once('-').map(|(_, number)| number);
    number.and_then(|n| n.parse().ok()).unwrap_or(usize::MAX)
}

/// What a task hits, as the report names it.
pub(super) fn objects_of(task: &DrillTask) -> Vec<String> {
    let pod = |pod: &skiff_dev::PodRef| format!("pod/{}", pod.name);
    let node = || {
        let node = task.spec.node_name.as_deref().unwrap_or_default();
        vec![format!("node/{node}")]
    };
    match &task.spec.action {
        Action::KillContainer { pod: hit, .. }
        | Action::ExhaustMemory { pod: hit, .. }
        | Action::StopContainer { pod: hit, .. }
        | Action::BurnCpu { pod: Some(hit), .. }
        | Action::TakeMemory { pod: Some(hit), .. } => vec![pod(hit)],
        Action::CutPods { pods, .. }
        | Action::SilenceDns { pods }
        | Action::LosePackets { pods, .. }
        | Action::DelayPackets { pods, .. } => pods.iter().map(pod).collect(),
        Action::CrashNode { node } => vec![format!("node/{node}")],
        Action::RestartControlPlane { .. } => vec!["controlplane".into()],
        _ => node(),
    }
}

/// The name of a drill's task.
fn task_name(drill: &Drill, part: &str) -> String {
    let name = drill.metadata.name.as_deref().unwrap_or_default();
    if name.len() <= NAME {
        return format!("{name}-{part}");
    }
    let uid = drill.metadata.uid.as_deref().unwrap_or_default();
    let uid = uid.get(..8).unwrap_or(uid);
    let cut = name.get(..NAME).unwrap_or(name);
    format!("{cut}-{uid}-{part}")
}

pub(super) fn probe_task(drill: &Drill, probe: &PlannedProbe, until: Timestamp) -> DrillTask {
    let action = Action::Probe {
        target: probe.target.clone(),
        rate: probe.rate,
        timeout: probe.timeout,
    };
    task(drill, "probe", Some(probe.node.clone()), action, until)
}

pub(super) fn write_task(
    drill: &Drill,
    node: String,
    action: Action,
    until: Timestamp,
) -> DrillTask {
    task(drill, "writes", Some(node), action, until)
}

/// The name of the task that keeps up a stream of writes, and of the account that it writes as.
pub(super) fn writer_name(drill: &Drill) -> String {
    task_name(drill, "writes")
}

pub(super) fn fault_task(drill: &Drill, at: usize, fault: Fault, until: Timestamp) -> DrillTask {
    let part = format!("fault-{at}");
    task(drill, &part, fault.node, fault.action, until)
}

fn task(
    drill: &Drill,
    part: &str,
    node: Option<String>,
    action: Action,
    until: Timestamp,
) -> DrillTask {
    DrillTask {
        metadata: ObjectMeta {
            name: Some(task_name(drill, part)),
            owner_references: Some(vec![new_controller_ref(drill)]),
            finalizers: Some(vec![DrillTask::UNDO.to_owned()]),
            ..ObjectMeta::default()
        },
        spec: DrillTaskSpec {
            drill: drill.metadata.name.clone().unwrap_or_default(),
            node_name: node,
            action,
            until: MicroTime(until),
            stop: false,
        },
        status: None,
    }
}

/// Makes a task, unless it is there.
pub(super) async fn create(client: &Client, task: &DrillTask) -> Result<(), kube::Error> {
    let api: Api<DrillTask> = Api::all(client.clone());
    match api.create(&PostParams::default(), task).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        other => other.map(drop),
    }
}

/// Has a task end, if it was not told yet.
pub(super) async fn stop(client: &Client, task: &DrillTask) -> Result<(), kube::Error> {
    if task.spec.stop {
        return Ok(());
    }
    let api: Api<DrillTask> = Api::all(client.clone());
    let name = task.metadata.name.as_deref().unwrap_or_default();
    let patch = Patch::Merge(json!({"spec": {"stop": true}}));
    unless_gone(api.patch(name, &PatchParams::default(), &patch).await)
}

/// Lets go of a task that nobody is left to undo.
pub(super) async fn release(client: &Client, task: &DrillTask) -> Result<(), kube::Error> {
    let kept = task.metadata.finalizers.iter().flatten();
    let kept: Vec<&String> = kept.filter(|name| *name != DrillTask::UNDO).collect();
    let api: Api<DrillTask> = Api::all(client.clone());
    let name = task.metadata.name.as_deref().unwrap_or_default();
    let patch = Patch::Merge(json!({"metadata": {
        "uid": task.metadata.uid,
        "resourceVersion": task.metadata.resource_version,
        "finalizers": kept,
    }}));
    unless_gone(api.patch(name, &PatchParams::default(), &patch).await)
}

pub(super) fn status(task: &DrillTask) -> DrillTaskStatus {
    task.status.clone().unwrap_or_default()
}

/// Whether nothing of it is left: it has ended, or never came about.
pub(super) fn is_over(task: &DrillTask) -> bool {
    matches!(status(task).phase, TaskPhase::Ended | TaskPhase::Failed)
}

/// Whether it should have ended by itself so long ago.
pub(super) fn is_overdue(task: &DrillTask, by: Duration, now: Timestamp) -> bool {
    task.spec.until.0 + by < now
}
