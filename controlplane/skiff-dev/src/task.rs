//! What one node, or the control plane, does in a drill.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use serde::{Deserialize, Serialize};

use crate::object::object;
use crate::{GoDuration, ProbeScheme, Requests, Writes};

/// One part of a drill, carried out by one agent or by the control plane.
///
/// Whoever carries it out keeps its own record of what is to be undone, and undoes it when `stop` is set, when the
/// object is deleted or gone, or when `until` has passed, whichever comes first: also while it can't reach
/// the API, and after it was killed. The finalizer [`DrillTask::UNDO`] keeps the object until it is undone.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct DrillTask {
    pub metadata: ObjectMeta,
    pub spec: DrillTaskSpec,
    pub status: Option<DrillTaskStatus>,
}

object!(
    DrillTask,
    "DrillTask",
    "drilltasks",
    DrillTaskSpec,
    DrillTaskStatus
);

impl DrillTask {
    /// The finalizer that is removed when nothing is left to be undone.
    pub const UNDO: &'static str = "skiff.dev/undo";
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrillTaskSpec {
    /// The drill's name.
    pub drill: String,
    /// The node whose agent carries it out; without it, the control plane does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    pub action: Action,
    /// When it ends by itself at the latest.
    pub until: MicroTime,
    /// It is to end now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop: bool,
}

impl Default for DrillTaskSpec {
    fn default() -> Self {
        Self {
            drill: String::new(),
            node_name: None,
            action: Action::RestartAgent {},
            until: MicroTime(jiff::Timestamp::UNIX_EPOCH),
            stop: false,
        }
    }
}

/// A pod as an agent finds it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Its address, for what is done to packets.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ip: String,
}

/// What to do. Pods are on the task's own node unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all_fields = "camelCase")]
pub enum Action {
    /// SIGKILL to the container's main process.
    KillContainer { pod: PodRef, container: String },
    /// Use up the container's memory until the kernel has killed its main process.
    ExhaustMemory { pod: PodRef, container: String },
    /// SIGSTOP to all its processes; undone by SIGCONT.
    StopContainer { pod: PodRef, container: String },
    /// Spin in the container's control group, or in the node's (`pod` absent).
    BurnCpu {
        pod: Option<PodRef>,
        container: Option<String>,
        workers: Option<i32>,
    },
    /// Hold memory in the container's control group, or in the node's, until `percent` of the limit are in use.
    TakeMemory {
        pod: Option<PodRef>,
        container: Option<String>,
        percent: i32,
    },
    /// Fill the file system of the node's data until `leave` bytes are free.
    FillDisk { leave: i64, shared_disk: bool },
    /// End everything of a node at once. The control plane does it for nodes that it started itself, and starts them again;
    /// the agent of any other node comes back by itself at `until`.
    CrashNode { node: String },
    /// Let no packet pass between the agent and the API server.
    CutControlPlane {},
    /// Let no packet pass between two sets of addresses; `peers` empty: everybody else. Each node with a victim on it does its part.
    CutPods {
        pods: Vec<PodRef>,
        /// The API leaves out what is empty.
        #[serde(default)]
        peers: Vec<String>,
    },
    /// Drop the DNS queries of these pods.
    SilenceDns { pods: Vec<PodRef> },
    /// Refuse connections to registries, as `registry.example:5000`; empty: to all.
    RefuseRegistries {
        #[serde(default)]
        registries: Vec<String>,
    },
    /// Lose `percent` of a hundred packets from and to these pods.
    LosePackets { pods: Vec<PodRef>, percent: i32 },
    /// Hold each packet from and to these pods.
    DelayPackets {
        pods: Vec<PodRef>,
        delay: GoDuration,
    },
    /// End the agent and start it again.
    RestartAgent {},
    /// End the control plane, at once or in an orderly way, and start it again after `down`.
    RestartControlPlane { kill: bool, down: GoDuration },
    /// Ask `target` again and again, and count; survives a restart of the agent.
    Probe {
        target: ProbeTarget,
        /// Requests a second.
        rate: i32,
        timeout: GoDuration,
    },
    /// Create Events in `namespace`, one after the other, `rate` a second, and keep account of what was acknowledged.
    Write {
        namespace: String,
        rate: i32,
        /// Whom the writes are made as.
        token: String,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeTarget {
    pub scheme: ProbeScheme,
    /// An IP address or name.
    pub host: String,
    pub port: u16,
    /// Of HTTP; begins with `/`.
    #[serde(default)]
    pub path: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskPhase {
    #[default]
    Pending,
    /// It has been brought about; probes and writes run.
    Active,
    /// It is over, and what could be undone is undone.
    Ended,
    /// It could not be brought about; nothing of it is left. `message` says why.
    Failed,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DrillTaskStatus {
    pub phase: TaskPhase,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// The instant at which it was brought about, by the clock of whoever did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<MicroTime>,
    /// Of a probe: whether the last answer was good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy: Option<bool>,
    /// Of a probe that is healthy: when the first good request was sent after the last one that failed, or the
    /// first one at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthy_since: Option<MicroTime>,
    /// Of a probe: when the first and the last request that failed were sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_failed_at: Option<MicroTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failed_at: Option<MicroTime>,
    /// Of a probe: the course is there once it has ended, before that only the counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes: Option<Writes>,
    /// Of writes: the numbers of those that were acknowledged, in ascending ranges. Write number 7 of the
    /// task `t` makes the Event `t-7`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub acknowledged: Vec<NumberRange>,
}

/// Whole numbers from `first` to `last`, both included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NumberRange {
    pub first: i64,
    pub last: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_one_object_with_its_type() {
        let action = Action::StopContainer {
            pod: PodRef {
                namespace: "default".into(),
                name: "web-1".into(),
                uid: "u".into(),
                ip: String::new(),
            },
            container: "nginx".into(),
        };
        let written = serde_json::to_value(&action).unwrap();
        assert_eq!(written["type"], "StopContainer");
        assert_eq!(written["pod"]["name"], "web-1");
        assert_eq!(serde_json::from_value::<Action>(written).unwrap(), action);
    }
}
