//! What a drill is going to do, or why it is refused, before anything is touched.
//!
//!     target -> pods (or the nodes that host them), sorted by name -> victims by seed
//!            -> scope: what has to recover      -> the Service in front of it: what is probed, and from where

mod actions;
mod choose;
mod probe;
mod target;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use skiff_dev::{Drill, DrillKind, DrillPlan, PodRef, TargetKind, Victim};

use crate::controllers::Informers;
use crate::controllers::ownership::controller_ref;
use crate::controllers::pod_state::node_name;

pub(super) use actions::{Fault, Needs, faults};
pub(super) use target::is_ready_node;

/// What a drill is planned on.
pub(super) struct World {
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) replica_sets: Vec<Arc<ReplicaSet>>,
    pub(super) deployments: Vec<Arc<Deployment>>,
    pub(super) nodes: Vec<Arc<Node>>,
    pub(super) services: Vec<Arc<Service>>,
}

impl World {
    pub(super) fn of(informers: &Informers) -> Self {
        Self {
            pods: informers.pods.list(),
            replica_sets: informers.replica_sets.list(),
            deployments: informers.deployments.list(),
            nodes: informers.nodes.list(),
            services: informers.services.list(),
        }
    }

    fn node(&self, name: &str) -> Option<&Arc<Node>> {
        let mut nodes = self.nodes.iter();
        nodes.find(|node| node.metadata.name.as_deref() == Some(name))
    }

    /// The uid of the workload that controls a replica set.
    fn owner_of(&self, namespace: &str, name: &str) -> Option<String> {
        let set = self.replica_sets.iter().find(|set| {
            set.metadata.namespace.as_deref() == Some(namespace)
                && set.metadata.name.as_deref() == Some(name)
        })?;
        Some(controller_ref(&**set)?.uid.clone())
    }
}

/// Why a drill can't be carried out. Nothing was touched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    #[error("there is no {0}")]
    NoTarget(String),
    #[error("{0} has no running pod")]
    NoPods(String),
    #[error("{0} is not Ready")]
    NodeNotReady(String),
    #[error("{wanted} victims are wanted, and there are {candidates} candidates")]
    TooFew { wanted: usize, candidates: usize },
    #[error("{pod} has no container {container:?}; it has {known}")]
    NoContainer {
        pod: String,
        container: String,
        known: String,
    },
    #[error("the selector {selector:?} can't be used: {why}")]
    Selector { selector: String, why: String },
    #[error("the other side of the partition, {0}, has no running pod that is not a victim")]
    NoPeers(String),
    #[error("there is no Service {0} to probe")]
    NoService(String),
    #[error("the Service {service} can't be probed: {why}")]
    Unprobeable { service: String, why: &'static str },
    #[error("no node is Ready to probe from")]
    NoProber,
    #[error(
        "{node} can't be drained: these pods would not come back, as nothing controls them: {pods}"
    )]
    WouldBeLost { node: String, pods: String },
    #[error("{victim} is a victim of the drill {drill}, which is not over")]
    Busy { victim: String, drill: String },
    #[error("{0}")]
    Parameter(String),
}

/// Victims and what belongs to them, chosen by `seed`.
///
/// # Errors
/// With a sentence for whoever started the drill.
pub(super) fn plan(drill: &Drill, world: &World, seed: i64) -> Result<DrillPlan, Refusal> {
    let spec = &drill.spec;
    let found = target::resolve(&spec.target, world)?;
    let victims = victims(drill, &found, world, seed)?;
    let mut plan = DrillPlan {
        peers: target::peers(spec, &victims, world)?,
        scope: found.scope.clone(),
        ..DrillPlan::default()
    };
    if spec.drill == DrillKind::NodeDrain {
        for victim in &victims {
            target::refuse_loss(&victim.node, world)?;
        }
        let uncordon = victims.iter().map(|victim| victim.node.clone());
        plan.uncordon = uncordon
            .filter(|name| {
                !world
                    .node(name)
                    .is_some_and(|node| target::is_cordoned(node))
            })
            .collect();
    }
    plan.probe = probe::plan(spec, &found, &victims, world)?;
    plan.victims = victims;
    Ok(plan)
}

fn victims(
    drill: &Drill,
    found: &target::Found,
    world: &World,
    seed: i64,
) -> Result<Vec<Victim>, Refusal> {
    let spec = &drill.spec;
    if spec.drill.hits_control_plane() {
        return Ok(Vec::new());
    }
    if hits_whole_nodes(drill) {
        let nodes = found.nodes();
        if nodes.is_empty() {
            return Err(Refusal::NoPods(found.description.clone()));
        }
        let wanted = choose::wanted(spec.count, spec.percent, nodes.len())?;
        let chosen = choose::choose(nodes.len(), wanted, seed);
        let victims = chosen.into_iter().map(|at| &nodes[at]);
        return victims
            .map(|name| {
                let is_ready = world.node(name).is_some_and(|node| is_ready_node(node));
                let ready = is_ready.then(|| Victim {
                    node: name.clone(),
                    ..Victim::default()
                });
                ready.ok_or_else(|| Refusal::NodeNotReady(format!("node/{name}")))
            })
            .collect();
    }
    if found.pods.is_empty() {
        return Err(Refusal::NoPods(found.description.clone()));
    }
    let wanted = choose::wanted(spec.count, spec.percent, found.pods.len())?;
    let chosen = choose::choose(found.pods.len(), wanted, seed);
    let victims = chosen.into_iter().map(|at| &found.pods[at]);
    victims
        .map(|pod| {
            Ok(Victim {
                pod: Some(pod_ref(pod)),
                container: container_of(pod, spec.container.as_deref())?,
                node: node_name(pod).unwrap_or_default().to_owned(),
            })
        })
        .collect()
}

/// Stress of a node is stress of the whole node; every other drill says by its kind whom it hits.
pub(super) fn hits_whole_nodes(drill: &Drill) -> bool {
    let is_stress = matches!(
        drill.spec.drill,
        DrillKind::CpuStress | DrillKind::MemoryPressure
    );
    drill.spec.drill.hits_nodes() || (is_stress && drill.spec.target.kind == TargetKind::Node)
}

pub(super) fn pod_ref(pod: &Pod) -> PodRef {
    let status = pod.status.as_ref();
    PodRef {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        ip: status.and_then(|s| s.pod_ip.clone()).unwrap_or_default(),
    }
}

/// The container that is named, or the pod's first.
fn container_of(pod: &Pod, wanted: Option<&str>) -> Result<String, Refusal> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let names: Vec<&str> = containers.map(|c| c.name.as_str()).collect();
    let found = match wanted {
        Some(wanted) => names.iter().find(|name| **name == wanted),
        None => names.first(),
    };
    let found = found.map(|name| (*name).to_owned());
    found.ok_or_else(|| Refusal::NoContainer {
        pod: pod_object(pod),
        container: wanted.unwrap_or_default().to_owned(),
        known: names.join(", "),
    })
}

/// As the report names a pod: `pod/web-1`.
pub(super) fn pod_object(pod: &Pod) -> String {
    format!("pod/{}", pod.metadata.name.as_deref().unwrap_or_default())
}

/// As the report names what a victim is: `pod/web-1`, `node/n1`.
pub(super) fn object_of(victim: &Victim) -> String {
    match &victim.pod {
        Some(pod) => format!("pod/{}", pod.name),
        None => format!("node/{}", victim.node),
    }
}

/// As the status lists victims: `pod/web-1 (n1)`, `node/n1`, `controlplane`.
pub(super) fn listed(drill: &Drill, plan: &DrillPlan) -> Vec<String> {
    if drill.spec.drill.hits_control_plane() {
        return vec!["controlplane".to_owned()];
    }
    let victims = plan.victims.iter();
    victims
        .map(|victim| match &victim.pod {
            Some(_) => format!("{} ({})", object_of(victim), victim.node),
            None => object_of(victim),
        })
        .collect()
}

/// Refuses to hit what another drill is hitting.
pub(super) fn refuse_overlap<'a>(
    plan: &DrillPlan,
    own: &Drill,
    others: impl Iterator<Item = &'a Drill>,
) -> Result<(), Refusal> {
    for other in others.filter(|other| other.metadata.uid != own.metadata.uid) {
        let theirs = other.status.as_ref().and_then(|s| s.plan.as_ref());
        let busy = |drill: &Drill| drill.spec.drill.hits_control_plane();
        let name = || other.metadata.name.clone().unwrap_or_default();
        if theirs.is_some() && busy(own) && busy(other) {
            return Err(Refusal::Busy {
                victim: "the control plane".into(),
                drill: name(),
            });
        }
        for victim in &plan.victims {
            let mut theirs = theirs.iter().flat_map(|theirs| &theirs.victims);
            if theirs.any(|taken| object_of(taken) == object_of(victim) && taken.pod == victim.pod)
            {
                return Err(Refusal::Busy {
                    victim: object_of(victim),
                    drill: name(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
