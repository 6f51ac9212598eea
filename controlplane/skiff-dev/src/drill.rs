//! A drill: what is to be broken, how it is measured, and what came of it.

use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use serde::{Deserialize, Serialize};

use crate::object::object;
use crate::{DrillPlan, GoDuration};

/// A rehearsal of one failure. Cluster-scoped: a drill may touch nodes and several namespaces, so whoever
/// may create one is an operator of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
pub struct Drill {
    pub metadata: ObjectMeta,
    pub spec: DrillSpec,
    pub status: Option<DrillStatus>,
}

object!(Drill, "Drill", "drills", DrillSpec, DrillStatus);

impl Drill {
    /// The finalizer that keeps a drill until what it did is undone.
    pub const UNDO: &'static str = "skiff.dev/undo";
}

/// Which failure is rehearsed.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum DrillKind {
    /// SIGKILL to the main process of a container.
    #[default]
    ContainerKill,
    /// A container's memory is used up, so that the kernel kills it.
    ContainerOom,
    /// SIGSTOP to every process of a container.
    ContainerHang,
    PodDelete,
    PodEvict,
    NodeDrain,
    /// Agent, shims, containers and network of a node vanish together.
    NodeCrash,
    /// A node can't reach the control plane, and its pods run on.
    NodePartition,
    /// Two sets of pods can't talk with each other.
    PodPartition,
    /// Pods get no answer from the cluster's DNS.
    DnsOutage,
    /// A node can't reach image registries.
    RegistryOutage,
    DiskFull,
    CpuStress,
    MemoryPressure,
    PacketLoss,
    Latency,
    AgentRestart,
    ControlplaneRestart,
    /// The control plane ends at once, under a running stream of writes.
    ControlplaneKill,
}

impl DrillKind {
    pub const ALL: [Self; 19] = [
        Self::ContainerKill,
        Self::ContainerOom,
        Self::ContainerHang,
        Self::PodDelete,
        Self::PodEvict,
        Self::NodeDrain,
        Self::NodeCrash,
        Self::NodePartition,
        Self::PodPartition,
        Self::DnsOutage,
        Self::RegistryOutage,
        Self::DiskFull,
        Self::CpuStress,
        Self::MemoryPressure,
        Self::PacketLoss,
        Self::Latency,
        Self::AgentRestart,
        Self::ControlplaneRestart,
        Self::ControlplaneKill,
    ];

    /// As it is named on the command line and in manifests.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ContainerKill => "container-kill",
            Self::ContainerOom => "container-oom",
            Self::ContainerHang => "container-hang",
            Self::PodDelete => "pod-delete",
            Self::PodEvict => "pod-evict",
            Self::NodeDrain => "node-drain",
            Self::NodeCrash => "node-crash",
            Self::NodePartition => "node-partition",
            Self::PodPartition => "pod-partition",
            Self::DnsOutage => "dns-outage",
            Self::RegistryOutage => "registry-outage",
            Self::DiskFull => "disk-full",
            Self::CpuStress => "cpu-stress",
            Self::MemoryPressure => "memory-pressure",
            Self::PacketLoss => "packet-loss",
            Self::Latency => "latency",
            Self::AgentRestart => "agent-restart",
            Self::ControlplaneRestart => "controlplane-restart",
            Self::ControlplaneKill => "controlplane-kill",
        }
    }

    /// One line that says what it does to its victims.
    pub const fn summary(self) -> &'static str {
        match self {
            Self::ContainerKill => "kill the main process of a container",
            Self::ContainerOom => "use up a container's memory, so that the kernel kills it",
            Self::ContainerHang => "stop every process of a container with SIGSTOP",
            Self::PodDelete => "delete a pod",
            Self::PodEvict => "evict a pod, as its disruption budget allows",
            Self::NodeDrain => "cordon a node and evict its pods",
            Self::NodeCrash => "end a node's agent, containers and network at once",
            Self::NodePartition => "cut a node off from the control plane",
            Self::PodPartition => "cut two sets of pods off from each other",
            Self::DnsOutage => "let nobody answer the pods' DNS queries",
            Self::RegistryOutage => "let image registries be unreachable for a node",
            Self::DiskFull => "fill the file system that a node keeps its pods on",
            Self::CpuStress => "use up the CPU time of a container or a node",
            Self::MemoryPressure => "take most of the memory of a container or a node",
            Self::PacketLoss => "lose some of a pod's packets",
            Self::Latency => "delay a pod's packets",
            Self::AgentRestart => "restart a node's agent",
            Self::ControlplaneRestart => "restart the control plane in an orderly way",
            Self::ControlplaneKill => "end the control plane at once, while objects are written",
        }
    }

    /// Whether its victims are whole nodes.
    pub const fn hits_nodes(self) -> bool {
        matches!(
            self,
            Self::NodeDrain
                | Self::NodeCrash
                | Self::NodePartition
                | Self::RegistryOutage
                | Self::DiskFull
                | Self::AgentRestart
        )
    }

    /// Whether its only victim is the control plane; the target then says what is watched and probed.
    pub const fn hits_control_plane(self) -> bool {
        matches!(self, Self::ControlplaneRestart | Self::ControlplaneKill)
    }

    /// How long the fault lasts when nobody says; `None`: it is over the moment that it has happened.
    pub const fn default_duration(self) -> Option<GoDuration> {
        match self {
            Self::ContainerKill
            | Self::ContainerOom
            | Self::PodDelete
            | Self::PodEvict
            | Self::AgentRestart
            | Self::ControlplaneRestart
            | Self::ControlplaneKill => None,
            Self::NodeDrain | Self::NodeCrash | Self::NodePartition => {
                Some(GoDuration::from_secs(30))
            }
            _ => Some(GoDuration::from_secs(10)),
        }
    }
}

impl fmt::Display for DrillKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No drill has this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownDrill(pub String);

impl fmt::Display for UnknownDrill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "there is no drill {:?}; `skiff drill list` shows them all",
            self.0
        )
    }
}

impl std::error::Error for UnknownDrill {}

impl FromStr for DrillKind {
    type Err = UnknownDrill;

    fn from_str(text: &str) -> Result<Self, UnknownDrill> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| UnknownDrill(text.to_owned()))
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DrillSpec {
    /// Which failure.
    pub drill: DrillKind,
    /// What is hit, and what has to recover.
    pub target: Target,
    /// The other side of a `pod-partition`; without it, everyone but the target's victims.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Target>,
    /// How many victims, 1 or more; 1 if neither this nor `percent` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i32>,
    /// How many of the candidates become victims, 1 to 100, rounded up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<i32>,
    /// Chooses the same victims among the same candidates again; chosen by chance, and told in the status, if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// How long the fault lasts; the kind's default if not given. Not for faults that are over at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<GoDuration>,
    /// How long recovery may take from the injection on before the drill counts as not recovered; 2 minutes if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
    /// Which container of a pod; its first one if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Parameters>,
    /// How the target is probed meanwhile; its Service, ten times a second, if not given and it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<ProbeSpec>,
    /// What must hold of the report, as `recovery<5s`, `failed<1%`, `restarts=0`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expect: Vec<String>,
    /// Choose victims and say who they would be; touch nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Undo what was done, and end. May be set at any time; never taken back.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancel: bool,
}

/// Numbers that some kinds of drill take.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Parameters {
    /// `packet-loss`: how many of a hundred packets are lost, 1 to 100; 30 if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<i32>,
    /// `latency`: how long each packet is held; 100 ms if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay: Option<GoDuration>,
    /// `cpu-stress`: how many threads spin; one for each CPU if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<i32>,
    /// `memory-pressure`: how many percent of the limit (of a node: of its memory) are to be in use, 1 to 99; 90 if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<i32>,
    /// `disk-full`: how much space is left; none if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leave: Option<Quantity>,
    /// `disk-full`: fill it although it holds other things than the node's data.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shared_disk: bool,
    /// `controlplane-restart`, `controlplane-kill`: how long it stays away; not longer than it takes if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down: Option<GoDuration>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TargetKind {
    #[default]
    Pod,
    Deployment,
    ReplicaSet,
    Node,
    /// The pods that `selector` matches.
    Selector,
}

/// A pod, workload or node, or the pods that have some labels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    pub kind: TargetKind,
    /// Not for nodes; `default` if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Not with a selector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A label selector as kubectl's `-l` takes it, with kind `Selector`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
}

/// `deployment/web`, `pod/web-1`, `node/n1`, `selector/app=web`; the namespace is not part of it.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, what) = match self.kind {
            TargetKind::Pod => ("pod", &self.name),
            TargetKind::Deployment => ("deployment", &self.name),
            TargetKind::ReplicaSet => ("replicaset", &self.name),
            TargetKind::Node => ("node", &self.name),
            TargetKind::Selector => ("selector", &self.selector),
        };
        write!(f, "{kind}/{}", what.as_deref().unwrap_or_default())
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeScheme {
    /// `GET` of a path: 200 to 399 is good.
    #[default]
    #[serde(rename = "HTTP")]
    Http,
    /// A connection that is made.
    #[serde(rename = "TCP")]
    Tcp,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProbeSpec {
    /// Don't probe, even if the target has a Service.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub off: bool,
    /// The Service to ask, in the target's namespace (of a node: `default`), or as `NAMESPACE/NAME`; the first one that
    /// selects the target's pods if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// An address to ask instead of a Service: an IP or name that the nodes can reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// 1 to 65535; the Service's first port if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<ProbeScheme>,
    /// `/` if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Requests a second, 1 to 1,000; 10 if not given. Each on a connection of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<i32>,
    /// How long an answer may take; 1 s if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<GoDuration>,
}

/// In the order in which a drill goes through them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum DrillPhase {
    /// Not begun.
    #[default]
    Pending,
    /// Probing began, nothing is broken yet.
    Preparing,
    /// The fault is there, or its consequences are.
    Running,
    /// What was done is being undone.
    Healing,
    Completed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrillResult {
    /// It recovered in time, and all expectations were met.
    Passed,
    /// It did not recover in time, or an expectation was not met.
    Failed,
    /// It could not be carried out; `message` says why. Whatever was done was undone.
    Refused,
    Cancelled,
}

/// The report. Times without a date are seconds from the injection.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DrillStatus {
    pub phase: DrillPhase,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<DrillResult>,
    /// Why it was refused, failed or cancelled, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// As `pod/web-1 (n1)`, `node/n1`, `controlplane`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub victims: Vec<String>,
    /// The seed that the victims were chosen with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<MicroTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub injected_at: Option<MicroTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healed_at: Option<MicroTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<MicroTime>,
    /// Whether the target recovered in time; of a crashed node: also before the node was started again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovered: Option<bool>,
    /// Until the first status that shows the fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_detect: Option<f64>,
    /// Until the target was whole again: as many Ready pods in the service as before, and no probe failing any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_recover: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests: Option<Requests>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub writes: Option<Writes>,
    /// Containers of the target that were started anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restarts: Option<i64>,
    /// Pods of the target that were replaced on another node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pods_moved: Option<i64>,
    /// What happened, in the order of time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub timeline: Vec<TimelineEntry>,
    /// From when to when each pod and node of the drill was in which state.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub spans: Vec<Span>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expectations: Vec<ExpectationResult>,
    /// The cluster's Events about the drill's pods and nodes meanwhile.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EventCount>,
    /// What the controller needs to go on; absent once the drill is over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<DrillPlan>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TimelineEntry {
    /// Seconds from the injection; negative before it.
    pub at: f64,
    /// Of the drill: `injected`, `refused`, `firstFailedProbe`, `detected`, `lastFailedProbe`, `recovered`, `undone`, `healed`.
    /// Of a pod: `created`, `scheduled`, `started`, `terminated` (a container), `ready`, `notReady`, `inService`,
    /// `outOfService`, `terminating`, `finished` (it ended by itself), `deleted`. Of a node: `ready`, `notReady`, `pressure`,
    /// `relieved`, `cordoned`, `uncordoned`. Of an Event: `event`, with its reason and message as the detail.
    pub event: String,
    /// As `pod/web-1`, `node/n1`; empty when it is about the target as a whole.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// A state that an object was in for a time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Span {
    pub object: String,
    /// `Pending`, `ContainerCreating`, `Running`, `Ready`, `Terminating`, `NotReady` ...
    pub state: String,
    pub from: f64,
    /// Without it, it still was when the drill ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<f64>,
}

/// What became of the probes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Requests {
    pub sent: i64,
    pub failed: i64,
    /// The longest time without a good answer, from the last one before to the first one after, in seconds.
    pub longest_gap: f64,
    /// Sent more than 10 ms after their time, because the host of the prober was too busy.
    #[serde(skip_serializing_if = "is_zero")]
    pub late: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// What was asked, as `http://10.43.0.7:80/`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub target: String,
    /// The node that asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// The different ways in which probes failed, and how often.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<EventCount>,
    /// The course of it; 600 entries at most.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub buckets: Vec<ProbeBucket>,
}

fn is_zero(count: &i64) -> bool {
    *count == 0
}

/// How long good answers took, in seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

/// The probes that were sent within one interval; intervals follow each other without holes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ProbeBucket {
    /// When it begins, in seconds: from the injection in a drill's status, since 1970 in a task's.
    pub at: f64,
    pub sent: i64,
    pub failed: i64,
    /// The longest time that an answer took, in seconds.
    pub slowest: f64,
}

/// What became of a stream of writes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Writes {
    pub sent: i64,
    pub acknowledged: i64,
    /// Acknowledged, and not there afterwards.
    pub lost: i64,
    /// The longest time without an acknowledgement, in seconds.
    pub longest_gap: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpectationResult {
    /// As it was given.
    pub text: String,
    pub met: bool,
    /// What was measured, with its unit.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub actual: String,
}

/// Something that happened a number of times.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventCount {
    /// An Event's reason, or the text of an error.
    pub reason: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub object: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    pub count: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_everywhere() {
        for kind in DrillKind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert!("container-hug".parse::<DrillKind>().is_err());
    }

    #[test]
    fn a_manifest_is_read() {
        let drill: Drill = serde_json::from_value(serde_json::json!({
            "apiVersion": "skiff.dev/v1", "kind": "Drill", "metadata": {"name": "d"},
            "spec": {"drill": "node-crash", "target": {"kind": "Deployment", "name": "web"}, "duration": "20s",
                     "expect": ["recovery<5s"]}
        }))
        .unwrap();
        assert_eq!(drill.spec.drill, DrillKind::NodeCrash);
        assert_eq!(drill.spec.target.to_string(), "deployment/web");
        let written = serde_json::to_value(&drill).unwrap();
        assert_eq!(written["kind"], "Drill");
        assert_eq!(written["spec"]["duration"], "20s");
        assert_eq!(written.get("status"), None);
    }
}
