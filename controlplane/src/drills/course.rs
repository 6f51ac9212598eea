//! What was seen of a drill's pods and nodes, and when.
//!
//!     watch event -> [`Course`]: moments (for the timeline), spans (for the picture),
//!                    how many pods are Ready in the service, since when
//!
//! Everything here is a function of what it is told, with the time at which it was told. It is told in the informers'
//! own tasks, so that nothing is lost between two looks at it.

mod events;
mod node;
mod pod;

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use skiff_dev::{Baseline, BaselinePod, DrillPlan};

use super::membership::Membership;
use super::plan;
use events::EventBook;
use node::NodeTrack;
pub(super) use pod::PodTrack;

/// More than this is not kept: a drill that churns for minutes would outgrow its object.
const MOMENTS: usize = 600;
const SPANS: usize = 800;

/// Something that happened to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) at: Timestamp,
    pub(super) event: String,
    pub(super) object: String,
    pub(super) detail: String,
}

/// A state that an object was in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stay {
    pub(super) object: String,
    pub(super) state: String,
    pub(super) from: Timestamp,
    pub(super) to: Option<Timestamp>,
}

/// The record of one drill.
#[derive(Debug, Default)]
pub(super) struct Course {
    members: Membership,
    /// Its pods by uid, also those that are gone.
    pods: BTreeMap<String, PodTrack>,
    /// All nodes by name.
    nodes: BTreeMap<String, NodeTrack>,
    /// As the report names them.
    victims: HashSet<String>,
    /// Nodes that are hit as a whole.
    hit_nodes: HashSet<String>,
    /// The uids of the pods that the Service leads to; `None` without a Service.
    served: Option<HashSet<String>>,
    /// The Service's namespace, and the labels of the pods that it selects.
    selector: (String, BTreeMap<String, String>),
    /// How many pods there were before the fault, Ready and in the service.
    baseline: Option<i64>,
    whole_since: Option<Timestamp>,
    moments: Vec<Moment>,
    stays: Vec<Stay>,
    events: EventBook,
    /// What is there already is taken in, which is nothing that happened.
    is_taking_in: bool,
}

impl Course {
    /// The record of a drill that begins, or of one that another process began, with what that one wrote down.
    pub(super) fn new(plan: &DrillPlan, moments: Vec<Moment>, stays: Vec<Stay>) -> Self {
        let probe = plan.probe.as_ref();
        let service = probe.and_then(|probe| Some((probe.service.split_once('/')?.0, probe)));
        let whole = plan.victims.iter().filter(|victim| victim.pod.is_none());
        Self {
            members: Membership::new(plan.scope.clone()),
            victims: plan.victims.iter().map(plan::object_of).collect(),
            hit_nodes: whole.map(|victim| victim.node.clone()).collect(),
            served: service.map(|_| HashSet::new()),
            selector: service.map_or_else(Default::default, |(namespace, probe)| {
                (namespace.to_owned(), probe.selector.clone())
            }),
            baseline: plan.baseline.as_ref().map(|baseline| baseline.ready),
            whole_since: plan.whole_since.as_ref().map(|since| since.0),
            moments,
            stays,
            ..Self::default()
        }
    }

    /// Takes in what is there when the record begins.
    pub(super) fn take_in(&mut self, at: Timestamp, take: impl FnOnce(&mut Self)) {
        let whole_since = self.whole_since;
        self.is_taking_in = true;
        take(self);
        self.is_taking_in = false;
        let alive: HashSet<String> = self.objects_there().collect();
        for stay in self.stays.iter_mut().filter(|stay| stay.to.is_none()) {
            if !alive.contains(&stay.object) {
                stay.to = Some(at);
            }
        }
        // What another process saw holds on, unless it holds no more.
        self.whole_since = whole_since;
        self.count(at);
    }

    fn objects_there(&self) -> impl Iterator<Item = String> {
        let pods = self.pods.values().filter(|pod| pod.gone_at.is_none());
        let pods = pods.map(|pod| pod.object.clone());
        let nodes = self.nodes.keys().map(|name| format!("node/{name}"));
        pods.chain(nodes)
    }

    /// Whether a pod has a place in the record.
    fn is_member(&self, pod: &Pod, owner_of: &dyn Fn(&str, &str) -> Option<String>) -> bool {
        self.members.has(pod, owner_of)
    }

    /// Notes a pod as it is now; true if that is news.
    pub(super) fn see_pod(
        &mut self,
        at: Timestamp,
        seen: &Pod,
        owner_of: &dyn Fn(&str, &str) -> Option<String>,
    ) -> bool {
        let uid = seen.metadata.uid.clone().unwrap_or_default();
        if !self.pods.contains_key(&uid) {
            if !self.is_member(seen, owner_of) {
                return false;
            }
            let object = plan::pod_object(seen);
            self.note(at, "created", &object, "");
            self.pods.insert(uid.clone(), PodTrack::new(object));
        }
        let is_selected = self.selects(seen);
        let Some(track) = self.pods.get_mut(&uid) else {
            return false;
        };
        track.is_selected = is_selected;
        let news = track.update(at, seen, self.is_taking_in);
        let (object, state) = (track.object.clone(), track.state.clone());
        for (event, detail) in &news.events {
            self.note(at, event, &object, detail);
        }
        self.stay(at, &object, &state);
        self.count(at);
        news.is_any
    }

    /// Whether the Service is to lead to a pod.
    fn selects(&self, pod: &Pod) -> bool {
        let (namespace, selector) = &self.selector;
        let labels = pod.metadata.labels.as_ref();
        let has = |(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value);
        !selector.is_empty()
            && pod.metadata.namespace.as_ref() == Some(namespace)
            && selector.iter().all(has)
    }

    /// Notes that a pod is gone.
    pub(super) fn lose_pod(&mut self, at: Timestamp, uid: &str) -> bool {
        let Some(track) = self.pods.get_mut(uid) else {
            return false;
        };
        track.lose(at);
        let object = track.object.clone();
        self.leave(at, &object);
        self.note(at, "deleted", &object, "");
        self.count(at);
        true
    }

    /// Notes which pods the Service leads to.
    pub(super) fn see_service(&mut self, at: Timestamp, served: HashSet<String>) -> bool {
        let Some(before) = self.served.replace(served) else {
            self.served = None;
            return false;
        };
        let after = self.served.clone().unwrap_or_default();
        let mut changes: Vec<(&str, String)> = Vec::new();
        for (uid, track) in &self.pods {
            match (before.contains(uid), after.contains(uid)) {
                (false, true) => changes.push(("inService", track.object.clone())),
                (true, false) => changes.push(("outOfService", track.object.clone())),
                _ => {}
            }
        }
        let is_news = !changes.is_empty();
        for (event, object) in changes {
            self.note(at, event, &object, "");
        }
        self.count(at);
        is_news
    }

    /// Notes a node as it is now; true if that is news.
    pub(super) fn see_node(&mut self, at: Timestamp, node: &Node) -> bool {
        let name = node.metadata.name.clone().unwrap_or_default();
        let object = format!("node/{name}");
        let is_quiet = self.is_taking_in;
        let track = self.nodes.entry(name).or_insert_with(|| NodeTrack::new(at));
        let events = track.update(at, node);
        let state = track.state();
        if !is_quiet {
            for event in &events {
                self.note(at, event, &object, "");
            }
        }
        self.stay(at, &object, &state);
        !events.is_empty()
    }

    pub(super) fn lose_node(&mut self, at: Timestamp, name: &str) -> bool {
        let object = format!("node/{name}");
        self.leave(at, &object);
        self.note(at, "deleted", &object, "");
        self.nodes.remove(name).is_some()
    }

    /// What the fault will be measured against: how it is now.
    pub(super) fn set_baseline(&mut self, at: Timestamp) -> Baseline {
        let there = self.pods.iter().filter(|(_, pod)| pod.left_at.is_none());
        let pods = there.map(|(uid, pod)| BaselinePod {
            uid: uid.clone(),
            node: pod.node.clone(),
            restarts: pod.restarts,
        });
        let baseline = Baseline {
            ready: self.ready(),
            pods: pods.collect(),
        };
        self.baseline = Some(baseline.ready);
        self.count(at);
        baseline
    }

    /// How many pods are Ready and, if the Service selects them, in it.
    pub(super) fn ready(&self) -> i64 {
        let is_served = |uid: &String| {
            let served = self.served.as_ref();
            served.is_none_or(|served| served.contains(uid))
        };
        let ready = self.pods.iter().filter(|(uid, pod)| {
            pod.left_at.is_none()
                && pod.ready_since.is_some()
                && (!pod.is_selected || is_served(uid))
        });
        i64::try_from(ready.count()).unwrap_or(i64::MAX)
    }

    /// Since when as many pods as at the baseline are Ready and in the service, if they are.
    pub(super) fn whole_since(&self) -> Option<Timestamp> {
        self.whole_since
    }

    pub(super) fn baseline(&self) -> i64 {
        self.baseline.unwrap_or_default()
    }

    pub(super) fn pod(&self, uid: &str) -> Option<&PodTrack> {
        self.pods.get(uid)
    }

    pub(super) fn pods(&self) -> impl Iterator<Item = (&String, &PodTrack)> {
        self.pods.iter()
    }

    pub(super) fn node(&self, name: &str) -> Option<&NodeTrack> {
        self.nodes.get(name)
    }

    pub(super) fn moments(&self) -> &[Moment] {
        &self.moments
    }

    /// The states of the drill's pods, of its victims, and of the nodes that had pods of it.
    pub(super) fn stays(&self) -> impl Iterator<Item = &Stay> {
        let hosts = self.pods.values().map(|pod| format!("node/{}", pod.node));
        let shown: HashSet<String> = hosts.chain(self.victims.iter().cloned()).collect();
        let is_shown =
            move |stay: &&Stay| !stay.object.starts_with("node/") || shown.contains(&stay.object);
        self.stays.iter().filter(is_shown)
    }

    /// Whether a change of this object shows the fault.
    pub(super) fn is_hit(&self, object: &str) -> bool {
        self.victims.contains(object)
            || self
                .pods
                .values()
                .any(|pod| pod.object == object && self.hit_nodes.contains(&pod.node))
    }

    fn note(&mut self, at: Timestamp, event: &str, object: &str, detail: &str) {
        if !self.is_taking_in && self.moments.len() < MOMENTS {
            self.moments.push(Moment {
                at,
                event: event.to_owned(),
                object: object.to_owned(),
                detail: detail.to_owned(),
            });
        }
    }

    /// The object is in this state from now on, if it was not already.
    fn stay(&mut self, at: Timestamp, object: &str, state: &str) {
        let mut open = self.stays.iter_mut().rev();
        let open = open.find(|stay| stay.to.is_none() && stay.object == object);
        if let Some(open) = open {
            if open.state == state {
                return;
            }
            open.to = Some(at);
        }
        if self.stays.len() < SPANS {
            self.stays.push(Stay {
                object: object.to_owned(),
                state: state.to_owned(),
                from: at,
                to: None,
            });
        }
    }

    fn leave(&mut self, at: Timestamp, object: &str) {
        let open = self.stays.iter_mut().filter(|stay| stay.object == object);
        for stay in open.filter(|stay| stay.to.is_none()) {
            stay.to = Some(at);
        }
    }

    fn count(&mut self, at: Timestamp) {
        let Some(baseline) = self.baseline.filter(|_| !self.is_taking_in) else {
            return;
        };
        if self.ready() >= baseline {
            self.whole_since.get_or_insert(at);
        } else {
            self.whole_since = None;
        }
    }
}

#[cfg(test)]
mod tests;
