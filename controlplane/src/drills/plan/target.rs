//! From a target to its pods and nodes, and to what has to recover.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Resource;
use skiff_dev::{DrillSpec, Scope, Target, TargetKind, Victim};

use super::{Refusal, World};
use crate::cache::Selector;
use crate::controllers::ownership::controller_ref;
use crate::controllers::pod_state::{self, Phase, node_name};
use crate::drills::membership::Membership;

/// What a target comes to.
pub(super) struct Found {
    /// As `deployment/web`.
    pub(super) description: String,
    pub(super) namespace: String,
    /// Its running pods, by namespace and name.
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) scope: Scope,
    /// The node, if the target is one.
    node: Option<String>,
}

impl Found {
    /// The node that is the target, or those that host its pods, by name.
    pub(super) fn nodes(&self) -> Vec<String> {
        if let Some(node) = &self.node {
            return vec![node.clone()];
        }
        let nodes = self.pods.iter().filter_map(|pod| node_name(pod));
        let nodes: BTreeSet<String> = nodes.map(str::to_owned).collect();
        nodes.into_iter().collect()
    }
}

pub(super) fn resolve(target: &Target, world: &World) -> Result<Found, Refusal> {
    let namespace = target.namespace.as_deref().unwrap_or("default").to_owned();
    let name = target.name.as_deref().unwrap_or_default();
    let description = target.to_string();
    let missing = || match target.kind {
        TargetKind::Node => Refusal::NoTarget(description.clone()),
        _ => Refusal::NoTarget(format!("{description} in the namespace {namespace}")),
    };
    let (scope, node) = match target.kind {
        TargetKind::Node => {
            world.node(name).ok_or_else(missing)?;
            (on_node(name, world), Some(name.to_owned()))
        }
        TargetKind::Deployment => {
            let found = find(&world.deployments, &namespace, name).ok_or_else(missing)?;
            (controlled_by(&found.metadata.uid), None)
        }
        TargetKind::ReplicaSet => {
            let found = find(&world.replica_sets, &namespace, name).ok_or_else(missing)?;
            (controlled_by(&found.metadata.uid), None)
        }
        TargetKind::Pod => {
            let found = find(&world.pods, &namespace, name).ok_or_else(missing)?;
            (with_siblings(found), None)
        }
        TargetKind::Selector => {
            let selector = target.selector.clone().unwrap_or_default();
            Selector::parse(&selector, "", &[]).map_err(|error| Refusal::Selector {
                selector: selector.clone(),
                why: error.to_string(),
            })?;
            let scope = Scope {
                namespace: namespace.clone(),
                selector: Some(selector),
                ..Scope::default()
            };
            (scope, None)
        }
    };
    let pods = match target.kind {
        // Its siblings have to recover too, but only the pod itself is hit.
        TargetKind::Pod => {
            let found = find(&world.pods, &namespace, name).into_iter();
            found.filter(|pod| is_running(pod)).cloned().collect()
        }
        TargetKind::Node => {
            let here = |pod: &&Arc<Pod>| is_running(pod) && node_name(pod) == Some(name);
            world.pods.iter().filter(here).cloned().collect()
        }
        _ => {
            let members = Membership::new(scope.clone());
            let owner_of = |namespace: &str, name: &str| world.owner_of(namespace, name);
            let is_member = |pod: &&Arc<Pod>| is_running(pod) && members.has(pod, &owner_of);
            world.pods.iter().filter(is_member).cloned().collect()
        }
    };
    Ok(Found {
        description,
        namespace,
        pods: sorted(pods),
        scope,
        node,
    })
}

/// The addresses of the other side of a partition, which no victim is part of.
pub(super) fn peers(
    spec: &DrillSpec,
    victims: &[Victim],
    world: &World,
) -> Result<Vec<String>, Refusal> {
    let Some(peer) = &spec.peer else {
        return Ok(Vec::new());
    };
    let found = resolve(peer, world)?;
    let is_victim = |pod: &Pod| {
        let uid = pod.metadata.uid.as_deref();
        victims
            .iter()
            .any(|victim| victim.pod.as_ref().map(|pod| pod.uid.as_str()) == uid)
    };
    let others = found.pods.iter().filter(|pod| !is_victim(pod));
    let addresses: Vec<String> = others
        .filter_map(|pod| pod.status.as_ref()?.pod_ip.clone())
        .collect();
    if addresses.is_empty() {
        return Err(Refusal::NoPeers(found.description));
    }
    Ok(addresses)
}

/// Refuses to drain a node with pods that nothing would make anew, as `kubectl drain` does without `--force`.
pub(super) fn refuse_loss(node: &str, world: &World) -> Result<(), Refusal> {
    let lost = world.pods.iter().filter(|pod| {
        node_name(pod) == Some(node)
            && pod_state::is_active(pod)
            && controller_ref(&***pod).is_none()
    });
    let mut lost: Vec<String> = lost
        .map(|pod| {
            let meta = &pod.metadata;
            let namespace = meta.namespace.as_deref().unwrap_or_default();
            format!("{namespace}/{}", meta.name.as_deref().unwrap_or_default())
        })
        .collect();
    lost.sort_unstable();
    if lost.is_empty() {
        return Ok(());
    }
    Err(Refusal::WouldBeLost {
        node: format!("node/{node}"),
        pods: lost.join(", "),
    })
}

pub(in crate::drills) fn is_ready_node(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}

pub(super) fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

fn controlled_by(uid: &Option<String>) -> Scope {
    Scope {
        controllers: uid.iter().cloned().collect(),
        ..Scope::default()
    }
}

/// A pod recovers when its place is taken again, by itself or by another of the same workload.
fn with_siblings(pod: &Pod) -> Scope {
    match controller_ref(pod) {
        Some(owner) => controlled_by(&Some(owner.uid.clone())),
        None => Scope {
            pods: pod.metadata.uid.iter().cloned().collect(),
            ..Scope::default()
        },
    }
}

/// The workloads that have pods on a node, and its pods that nothing controls.
fn on_node(node: &str, world: &World) -> Scope {
    let mut controllers = BTreeSet::new();
    let mut pods = Vec::new();
    let here = |pod: &&Arc<Pod>| node_name(pod) == Some(node) && pod_state::is_active(pod);
    for pod in world.pods.iter().filter(here) {
        match controller_ref(&**pod) {
            Some(owner) => {
                controllers.insert(owner.uid.clone());
            }
            None => pods.extend(pod.metadata.uid.clone()),
        }
    }
    pods.sort_unstable();
    Scope {
        controllers: controllers.into_iter().collect(),
        pods,
        ..Scope::default()
    }
}

fn is_running(pod: &Pod) -> bool {
    pod_state::is_active(pod) && pod_state::phase(pod) == Phase::Running
}

fn find<'a, K: Resource>(objects: &'a [Arc<K>], namespace: &str, name: &str) -> Option<&'a Arc<K>> {
    objects.iter().find(|object| {
        let meta = object.meta();
        meta.namespace.as_deref() == Some(namespace) && meta.name.as_deref() == Some(name)
    })
}

fn sorted(mut pods: Vec<Arc<Pod>>) -> Vec<Arc<Pod>> {
    pods.sort_by(|a, b| {
        let key = |pod: &Arc<Pod>| (pod.metadata.namespace.clone(), pod.metadata.name.clone());
        key(a).cmp(&key(b))
    });
    pods
}
