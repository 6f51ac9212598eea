//! Who owns whom: the graph of owner references between all objects.
//!
//! An owner that is named but wasn't seen is a *virtual* node: whether it exists has to be
//! asked before anything is concluded from its absence.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::controllers::monitor::Identity;

pub(super) const FOREGROUND: &str = "foregroundDeletion";
pub(super) const ORPHAN: &str = "orphan";

/// What an object's change calls for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// Find out whether the object with this uid has to go, and let it go.
    Delete(Arc<str>),
    /// Take the object with this uid out of its dependents' owners.
    Orphan(Arc<str>),
}

#[derive(Default)]
pub(super) struct Graph {
    nodes: HashMap<Arc<str>, Node>,
}

/// An object and its place in the graph.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// `None` while it is virtual.
    pub(super) identity: Option<Arc<Identity>>,
    /// How a virtual node was named, and in which namespace.
    named: Option<(OwnerReference, Arc<str>)>,
    owners: Vec<OwnerReference>,
    dependents: HashSet<Arc<str>>,
    pub(super) is_being_deleted: bool,
    /// It is being deleted in the foreground: it waits for its dependents to go.
    pub(super) waits_for_dependents: bool,
    /// It is being deleted and leaves its dependents behind.
    leaves_orphans: bool,
}

impl Node {
    fn virtual_owner(reference: &OwnerReference, namespace: Arc<str>) -> Self {
        Self {
            identity: None,
            named: Some((reference.clone(), namespace)),
            owners: Vec::new(),
            dependents: HashSet::new(),
            is_being_deleted: false,
            waits_for_dependents: false,
            leaves_orphans: false,
        }
    }

    /// How a virtual node was named, and in the namespace of which dependent.
    pub(super) fn named(&self) -> Option<&(OwnerReference, Arc<str>)> {
        self.named.as_ref()
    }
}

/// A dependent, as its owner sees it.
#[derive(Debug, Clone)]
pub(super) struct Dependent {
    pub(super) identity: Arc<Identity>,
    /// The owner may not go before it, if deleted in the foreground.
    pub(super) blocks: bool,
    pub(super) waits_for_dependents: bool,
}

impl Graph {
    pub(super) fn node(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// The objects that name `uid` as an owner.
    pub(super) fn dependents(&self, uid: &str) -> Vec<Dependent> {
        let Some(node) = self.nodes.get(uid) else {
            return Vec::new();
        };
        node.dependents
            .iter()
            .filter_map(|dependent| {
                let dependent = self.nodes.get(dependent)?;
                let reference = dependent.owners.iter().find(|owner| owner.uid == uid)?;
                Some(Dependent {
                    identity: dependent.identity.clone()?,
                    blocks: reference.block_owner_deletion == Some(true),
                    waits_for_dependents: dependent.waits_for_dependents,
                })
            })
            .collect()
    }

    /// Takes note of an object as it is now.
    pub(super) fn see(&mut self, identity: Arc<Identity>, meta: &ObjectMeta) -> Vec<Work> {
        let uid = identity.uid.clone();
        let namespace = identity.key.namespace.clone();
        let owners = meta.owner_references.clone().unwrap_or_default();
        let is_being_deleted = meta.deletion_timestamp.is_some();
        let has = |finalizer: &str| {
            let mut finalizers = meta.finalizers.iter().flatten();
            is_being_deleted && finalizers.any(|other| other == finalizer)
        };
        let node = self.nodes.entry(uid.clone()).or_insert_with(|| Node {
            identity: None,
            named: None,
            owners: Vec::new(),
            dependents: HashSet::new(),
            is_being_deleted: false,
            waits_for_dependents: false,
            leaves_orphans: false,
        });
        let waited = std::mem::replace(&mut node.waits_for_dependents, has(FOREGROUND));
        let orphaned = std::mem::replace(&mut node.leaves_orphans, has(ORPHAN));
        let (waits, orphans) = (node.waits_for_dependents, node.leaves_orphans);
        node.identity = Some(identity);
        node.named = None;
        node.is_being_deleted = is_being_deleted;
        let before = std::mem::replace(&mut node.owners, owners.clone());
        let dependents: Vec<Arc<str>> = node.dependents.iter().cloned().collect();

        let mut work = self.relink(&uid, &namespace, &before, &owners);
        if orphans && !orphaned {
            work.push(Work::Orphan(uid.clone()));
        }
        if waits && !waited {
            work.extend(dependents.into_iter().map(Work::Delete));
            work.push(Work::Delete(uid));
        }
        work
    }

    /// Takes note that an object is gone, or that a virtual one never was.
    pub(super) fn remove(&mut self, uid: &str) -> Vec<Work> {
        let Some(node) = self.nodes.remove(uid) else {
            return Vec::new();
        };
        let mut work: Vec<Work> = node.dependents.into_iter().map(Work::Delete).collect();
        for owner in &node.owners {
            work.extend(self.unlink(uid, &owner.uid));
        }
        work
    }

    /// Moves an object from the owners that it had to those that it has.
    fn relink(
        &mut self,
        uid: &Arc<str>,
        namespace: &Arc<str>,
        before: &[OwnerReference],
        after: &[OwnerReference],
    ) -> Vec<Work> {
        let mut work = Vec::new();
        for owner in before {
            match after.iter().find(|other| other.uid == owner.uid) {
                None => work.extend(self.unlink(uid, &owner.uid)),
                // An owner that waited for this object needn't any more.
                Some(now)
                    if owner.block_owner_deletion == Some(true)
                        && now.block_owner_deletion != Some(true) =>
                {
                    work.extend(self.waiting(&owner.uid));
                }
                Some(_) => {}
            }
        }
        for owner in after {
            if before.iter().any(|other| other.uid == owner.uid) {
                continue;
            }
            match self.nodes.get_mut(owner.uid.as_str()) {
                Some(node) => {
                    node.dependents.insert(uid.clone());
                    if node.waits_for_dependents {
                        work.push(Work::Delete(uid.clone()));
                    }
                }
                None => {
                    let owner_uid: Arc<str> = owner.uid.as_str().into();
                    let mut node = Node::virtual_owner(owner, namespace.clone());
                    node.dependents.insert(uid.clone());
                    self.nodes.insert(owner_uid.clone(), node);
                    work.push(Work::Delete(owner_uid));
                }
            }
        }
        work
    }

    fn unlink(&mut self, uid: &str, owner: &str) -> Option<Work> {
        let node = self.nodes.get_mut(owner)?;
        node.dependents.remove(uid);
        if node.identity.is_none() && node.dependents.is_empty() {
            self.nodes.remove(owner);
            return None;
        }
        self.waiting(owner)
    }

    fn waiting(&self, owner: &str) -> Option<Work> {
        let (uid, node) = self.nodes.get_key_value(owner)?;
        node.waits_for_dependents.then(|| Work::Delete(uid.clone()))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::core::discovery::ApiResource;

    use super::*;
    use crate::controllers::informer::ObjectKey;
    use crate::controllers::monitor::Kind;

    fn identity(uid: &str) -> Arc<Identity> {
        Arc::new(Identity {
            kind: Arc::new(Kind {
                resource: ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&()),
                is_namespaced: true,
            }),
            key: ObjectKey::new("default", uid),
            uid: uid.into(),
        })
    }

    fn owned_by(owners: &[(&str, bool)]) -> ObjectMeta {
        let owners = owners.iter().map(|(uid, blocks)| OwnerReference {
            uid: (*uid).into(),
            block_owner_deletion: Some(*blocks),
            ..Default::default()
        });
        ObjectMeta {
            owner_references: Some(owners.collect()),
            ..Default::default()
        }
    }

    fn deleted(finalizer: &str) -> ObjectMeta {
        ObjectMeta {
            deletion_timestamp: Some(Time(jiff::Timestamp::UNIX_EPOCH)),
            finalizers: Some(vec![finalizer.into()]),
            ..Default::default()
        }
    }

    fn delete(uid: &str) -> Work {
        Work::Delete(uid.into())
    }

    #[test]
    fn the_end_of_an_owner_concerns_its_dependents() {
        let mut graph = Graph::default();
        assert!(
            graph
                .see(identity("set"), &ObjectMeta::default())
                .is_empty()
        );
        assert!(
            graph
                .see(identity("pod"), &owned_by(&[("set", true)]))
                .is_empty()
        );
        assert_eq!(graph.remove("set"), [delete("pod")]);
        assert!(graph.node("set").is_none());
    }

    #[test]
    fn an_owner_that_was_not_seen_is_asked_for() {
        let mut graph = Graph::default();
        let work = graph.see(identity("pod"), &owned_by(&[("set", true)]));
        assert_eq!(work, [delete("set")]);
        assert!(graph.node("set").unwrap().identity.is_none());
        // It was only seen later: nothing is lost.
        graph.see(identity("set"), &ObjectMeta::default());
        assert_eq!(graph.dependents("set").len(), 1);
        assert!(graph.node("set").unwrap().identity.is_some());
        // It never was: the dependent is looked at.
        let mut graph = Graph::default();
        graph.see(identity("pod"), &owned_by(&[("set", true)]));
        assert_eq!(graph.remove("set"), [delete("pod")]);
    }

    #[test]
    fn a_foreground_deletion_goes_down_and_comes_back_up() {
        let mut graph = Graph::default();
        graph.see(identity("set"), &ObjectMeta::default());
        graph.see(identity("pod"), &owned_by(&[("set", true)]));
        let work = graph.see(identity("set"), &deleted(FOREGROUND));
        assert_eq!(work, [delete("pod"), delete("set")]);
        assert!(graph.see(identity("set"), &deleted(FOREGROUND)).is_empty());
        // A dependent that appears late goes too.
        let work = graph.see(identity("late"), &owned_by(&[("set", true)]));
        assert_eq!(work, [delete("late")]);
        // Each dependent that goes lets the owner look again.
        assert_eq!(graph.remove("pod"), [delete("set")]);
        // So does one that stops to block.
        let work = graph.see(identity("late"), &owned_by(&[("set", false)]));
        assert_eq!(work, [delete("set")]);
        assert!(!graph.dependents("set")[0].blocks);
    }

    #[test]
    fn an_owner_that_orphans_is_worked_on_once() {
        let mut graph = Graph::default();
        graph.see(identity("set"), &ObjectMeta::default());
        let work = graph.see(identity("set"), &deleted(ORPHAN));
        assert_eq!(work, [Work::Orphan("set".into())]);
        assert!(graph.see(identity("set"), &deleted(ORPHAN)).is_empty());
    }

    #[test]
    fn a_virtual_owner_that_nobody_names_is_forgotten() {
        let mut graph = Graph::default();
        graph.see(identity("pod"), &owned_by(&[("set", true)]));
        graph.see(identity("pod"), &ObjectMeta::default());
        assert!(graph.node("set").is_none());
    }
}
