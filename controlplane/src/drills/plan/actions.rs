//! From a plan to what each node, or the control plane, has to do.

use std::collections::BTreeMap;

use skiff_dev::{Action, Drill, DrillKind, DrillPlan, GoDuration, Parameters, PodRef, Victim};

use super::{Refusal, hits_whole_nodes, object_of};
use crate::resources::quantity::Quantity;

/// Packets of a hundred that `packet-loss` loses.
const LOSS: i32 = 30;
/// How long `latency` holds a packet.
const DELAY: GoDuration = GoDuration(std::time::Duration::from_millis(100));
/// Percent of memory that `memory-pressure` brings into use.
const MEMORY: i32 = 90;

/// One fault, for one executor.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::drills) struct Fault {
    /// Whose agent brings it about; `None`: the control plane.
    pub(in crate::drills) node: Option<String>,
    pub(in crate::drills) action: Action,
    /// What it hits, as the report names it.
    pub(in crate::drills) objects: Vec<String>,
}

/// Who does what a kind of drill needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::drills) enum Needs {
    /// Executors of tasks.
    Tasks,
    /// The drill controller itself, through the API.
    Api,
}

impl Needs {
    pub(in crate::drills) fn of(kind: DrillKind) -> Self {
        match kind {
            DrillKind::PodDelete | DrillKind::PodEvict | DrillKind::NodeDrain => Self::Api,
            _ => Self::Tasks,
        }
    }
}

/// The tasks of a drill, in a stable order. `crashed_here` tells nodes that the control plane's own process
/// runs, which it can end and start again itself.
///
/// # Errors
/// When a parameter is out of what can be carried out.
pub(in crate::drills) fn faults(
    drill: &Drill,
    plan: &DrillPlan,
    crashed_here: impl Fn(&str) -> bool,
) -> Result<Vec<Fault>, Refusal> {
    use DrillKind as Kind;
    let none = Parameters::default();
    let parameters = drill.spec.parameters.as_ref().unwrap_or(&none);
    let leave = leave(parameters)?;
    let down = parameters.down.unwrap_or_default();
    let whole = hits_whole_nodes(drill);
    let each = |action: &dyn Fn(&Victim) -> Action| each(plan, action);
    let grouped = |action: &dyn Fn(Vec<PodRef>) -> Action| grouped(plan, action);
    Ok(match drill.spec.drill {
        Kind::ContainerKill => each(&|victim| Action::KillContainer {
            pod: pod(victim),
            container: victim.container.clone(),
        }),
        Kind::ContainerOom => each(&|victim| Action::ExhaustMemory {
            pod: pod(victim),
            container: victim.container.clone(),
        }),
        Kind::ContainerHang => each(&|victim| Action::StopContainer {
            pod: pod(victim),
            container: victim.container.clone(),
        }),
        Kind::CpuStress => each(&|victim| Action::BurnCpu {
            pod: victim.pod.clone(),
            container: (!whole).then(|| victim.container.clone()),
            workers: parameters.workers,
        }),
        Kind::MemoryPressure => each(&|victim| Action::TakeMemory {
            pod: victim.pod.clone(),
            container: (!whole).then(|| victim.container.clone()),
            percent: parameters.memory.unwrap_or(MEMORY),
        }),
        Kind::DiskFull => each(&|_| Action::FillDisk {
            leave,
            shared_disk: parameters.shared_disk,
        }),
        Kind::NodeCrash => {
            let mut faults = each(&|victim| Action::CrashNode {
                node: victim.node.clone(),
            });
            for fault in &mut faults {
                fault.node = fault.node.take().filter(|node| !crashed_here(node));
            }
            faults
        }
        Kind::NodePartition => each(&|_| Action::CutControlPlane {}),
        Kind::RegistryOutage => each(&|_| Action::RefuseRegistries {
            registries: Vec::new(),
        }),
        Kind::AgentRestart => each(&|_| Action::RestartAgent {}),
        Kind::PodPartition => grouped(&|pods| Action::CutPods {
            pods,
            peers: plan.peers.clone(),
        }),
        Kind::DnsOutage => grouped(&|pods| Action::SilenceDns { pods }),
        Kind::PacketLoss => grouped(&|pods| Action::LosePackets {
            pods,
            percent: parameters.loss.unwrap_or(LOSS),
        }),
        Kind::Latency => grouped(&|pods| Action::DelayPackets {
            pods,
            delay: parameters.delay.unwrap_or(DELAY),
        }),
        Kind::ControlplaneRestart | Kind::ControlplaneKill => vec![Fault {
            node: None,
            action: Action::RestartControlPlane {
                kill: drill.spec.drill == Kind::ControlplaneKill,
                down,
            },
            objects: vec!["controlplane".into()],
        }],
        Kind::PodDelete | Kind::PodEvict | Kind::NodeDrain => Vec::new(),
    })
}

/// One task for each victim.
fn each(plan: &DrillPlan, action: &dyn Fn(&Victim) -> Action) -> Vec<Fault> {
    let victims = plan.victims.iter();
    victims
        .map(|victim| Fault {
            node: Some(victim.node.clone()),
            action: action(victim),
            objects: vec![object_of(victim)],
        })
        .collect()
}

/// One task for each node, with its victims.
fn grouped(plan: &DrillPlan, action: &dyn Fn(Vec<PodRef>) -> Action) -> Vec<Fault> {
    let mut nodes: BTreeMap<&str, Vec<&Victim>> = BTreeMap::new();
    for victim in &plan.victims {
        nodes.entry(&victim.node).or_default().push(victim);
    }
    let nodes = nodes.into_iter();
    nodes
        .map(|(node, victims)| Fault {
            node: Some(node.to_owned()),
            action: action(victims.iter().map(|victim| pod(victim)).collect()),
            objects: victims.iter().map(|victim| object_of(victim)).collect(),
        })
        .collect()
}

fn pod(victim: &Victim) -> PodRef {
    victim.pod.clone().unwrap_or_default()
}

fn leave(parameters: &Parameters) -> Result<i64, Refusal> {
    let Some(leave) = &parameters.leave else {
        return Ok(0);
    };
    let bytes = Quantity::parse(&leave.0).ok().map(|q| q.units());
    let bytes = bytes.filter(|bytes| *bytes >= 0);
    bytes.ok_or_else(|| Refusal::Parameter(format!("{:?} is no amount of space to leave", leave.0)))
}
