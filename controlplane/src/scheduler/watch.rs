//! From changes in the cluster to the scheduler's state: what to count, what to try, and
//! which waiting pods a change can help.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use tokio::time::Instant;

use super::likeness::Likeness;
use super::needs::{Footprint, Stay};
use super::plugins::{self, Plugins};
use super::{SCHEDULER_NAME, Scheduler, State};
use crate::controllers::Informers;
use crate::controllers::informer::{Change, ObjectKey};
use crate::controllers::pod_state::{is_finished, node_name, nominated_node};

pub(super) fn subscribe(scheduler: &Arc<Scheduler>, informers: &Informers) {
    let this = Arc::downgrade(scheduler);
    informers.nodes.subscribe(move |change| {
        if let Some(this) = this.upgrade() {
            this.lock().node_changed(change);
            this.changed.notify_one();
        }
    });
    let this = Arc::downgrade(scheduler);
    informers.namespaces.subscribe(move |change| {
        if let Some(this) = this.upgrade()
            && this.lock().namespace_changed(change)
        {
            this.changed.notify_one();
        }
    });
    let this = Arc::downgrade(scheduler);
    informers.pods.subscribe(move |change| {
        if let Some(this) = this.upgrade()
            && this.lock().pod_changed(change)
        {
            this.changed.notify_one();
        }
    });
}

impl State {
    fn node_changed(&mut self, change: &Change<Node>) {
        let now = Instant::now();
        match change {
            Change::Added(node) => {
                self.cluster.set_node(node.clone());
                self.queue.wake(Plugins::ALL, now);
            }
            Change::Updated { old, new } => {
                self.cluster.set_node(new.clone());
                let helped = helped_by(old, new);
                if !helped.is_empty() {
                    self.queue.wake(helped, now);
                }
            }
            Change::Deleted(node) => {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                self.cluster.remove_node(name);
                // With it, the emptiest place may be gone.
                self.queue.wake(Plugins::SPREAD, now);
            }
        }
    }

    /// True when there may be a pod to schedule now.
    fn namespace_changed(&mut self, change: &Change<Namespace>) -> bool {
        let namespace = change.object();
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let labels = || namespace.metadata.labels.clone().unwrap_or_default();
        match change {
            Change::Updated { old, new } if old.metadata.labels == new.metadata.labels => {
                return false;
            }
            Change::Added(_) | Change::Updated { .. } => {
                self.cluster.set_namespace(name, labels());
            }
            Change::Deleted(_) => self.cluster.remove_namespace(name),
        }
        self.queue.wake(Plugins::POD_AFFINITY, Instant::now());
        true
    }

    /// True when there may be a pod to schedule now.
    fn pod_changed(&mut self, change: &Change<Pod>) -> bool {
        let pod = change.object();
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let is_gone = matches!(change, Change::Deleted(_)) || is_finished(pod);
        if is_gone {
            self.queue.remove(&ObjectKey::of(&**pod));
            let waited = self.cluster.nominations.remove(uid);
            return self.free(pod, uid) || waited;
        }
        if let Some(node) = node_name(pod) {
            self.queue.remove(&ObjectKey::of(&**pod));
            self.cluster.nominations.remove(uid);
            return match change {
                Change::Updated { old, new } if node_name(old).is_some() => {
                    self.placed_pod_changed(old, new, node)
                }
                _ => {
                    let footprint = Arc::new(Footprint::of(pod));
                    let likeness = footprint.likeness.clone();
                    self.cluster.set_pod(footprint, node);
                    self.wake_by_likeness(&likeness)
                }
            };
        }
        if is_for_us(pod) && !self.cluster.is_assumed(uid) {
            self.take_nomination(change);
            self.queue.add(pod.clone());
            return true;
        }
        if pod.metadata.deletion_timestamp.is_some() {
            self.queue.remove(&ObjectKey::of(&**pod));
            self.cluster.nominations.remove(uid);
        }
        false
    }

    /// Status changes often; what the scheduler sees of a pod, hardly ever.
    fn placed_pod_changed(&mut self, old: &Pod, new: &Pod, node: &str) -> bool {
        let started = |pod: &Pod| pod.status.as_ref().and_then(|s| s.start_time.clone());
        let same_labels = old.metadata.labels == new.metadata.labels;
        if old.spec == new.spec
            && same_labels
            && Stay::of(old) == Stay::of(new)
            && started(old) == started(new)
        {
            return false;
        }
        let footprint = Arc::new(Footprint::of(new));
        let likeness = footprint.likeness.clone();
        self.cluster.set_pod(footprint, node);
        if same_labels && Stay::of(old) == Stay::of(new) {
            return false;
        }
        self.wake_by_likeness(&Likeness::of(old)) | self.wake_by_likeness(&likeness)
    }

    /// A pod that was nominated by whoever scheduled before, or is so no longer.
    fn take_nomination(&mut self, change: &Change<Pod>) {
        let pod = change.object();
        let nominated = nominated_node(pod);
        if let Change::Updated { old, .. } = change
            && nominated_node(old) == nominated
        {
            return;
        }
        match nominated {
            Some(node) => {
                let footprint = Arc::new(Footprint::of(pod));
                self.cluster.nominations.set(footprint, node);
            }
            None => {
                let uid = pod.metadata.uid.as_deref().unwrap_or_default();
                self.cluster.nominations.remove(uid);
            }
        }
    }

    /// A pod came, went or changed its labels: those that wait for its like, or for its end.
    fn wake_by_likeness(&mut self, other: &Likeness) -> bool {
        let now = Instant::now();
        let namespaces = &self.cluster.namespaces;
        self.queue.wake_if(Plugins::POD_AFFINITY, now, |waiting| {
            plugins::affinity_is_helped_by(&waiting.footprint.likeness, other, namespaces)
        });
        self.queue.wake_if(Plugins::SPREAD, now, |waiting| {
            plugins::spread_is_helped_by(waiting, other)
        });
        true
    }

    fn free(&mut self, pod: &Pod, uid: &str) -> bool {
        let was_placed = self.cluster.remove_pod(uid);
        if was_placed {
            let helped = Plugins::FIT.with(Plugins::HOST_PORTS);
            self.queue.wake(helped, Instant::now());
            self.wake_by_likeness(&Likeness::of(pod));
        }
        was_placed
    }
}

/// A pod to schedule: ours by name, not being deleted, and behind no gate.
fn is_for_us(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let name = spec
        .scheduler_name
        .as_deref()
        .filter(|name| !name.is_empty());
    let is_gated = spec
        .scheduling_gates
        .as_ref()
        .is_some_and(|gates| !gates.is_empty());
    name.unwrap_or(SCHEDULER_NAME) == SCHEDULER_NAME
        && !is_gated
        && pod.metadata.deletion_timestamp.is_none()
}

/// The plugins that may now think better of a node.
fn helped_by(old: &Node, new: &Node) -> Plugins {
    let mut helped = Plugins::NONE;
    let (old_spec, new_spec) = (old.spec.as_ref(), new.spec.as_ref());
    if old_spec.and_then(|spec| spec.unschedulable) != new_spec.and_then(|spec| spec.unschedulable)
    {
        helped = helped.with(Plugins::UNSCHEDULABLE);
    }
    if old_spec.and_then(|spec| spec.taints.as_ref())
        != new_spec.and_then(|spec| spec.taints.as_ref())
    {
        helped = helped.with(Plugins::TAINTS).with(Plugins::SPREAD);
    }
    if old.metadata.labels != new.metadata.labels {
        let places = Plugins::POD_AFFINITY.with(Plugins::SPREAD);
        helped = helped.with(Plugins::NODE_AFFINITY).with(places);
    }
    let allocatable = |node: &Node| node.status.as_ref().and_then(|s| s.allocatable.clone());
    if allocatable(old) != allocatable(new) {
        helped = helped.with(Plugins::FIT);
    }
    // A node is refused by the first plugin only: behind a taint that goes, another may wait.
    helped
}

#[cfg(test)]
mod tests {
    use super::super::cycle::tests::{node, pod};
    use super::*;

    fn state_with_node() -> State {
        let mut state = State::default();
        let node = node("n1", &[("cpu", "1"), ("pods", "110")]);
        state.node_changed(&Change::Added(Arc::new(node)));
        state
    }

    fn bound(name: &str, cpu: &str) -> Arc<Pod> {
        let mut pod = pod(name, &[("cpu", cpu)]);
        pod.spec.as_mut().unwrap().node_name = Some("n1".into());
        Arc::new(pod)
    }

    #[test]
    fn a_pod_is_queued_until_it_has_a_node() {
        let mut state = state_with_node();
        let waiting = Arc::new(pod("p", &[("cpu", "500m")]));
        assert!(state.pod_changed(&Change::Added(waiting.clone())));
        let bound = bound("p", "500m");
        state.pod_changed(&Change::Updated {
            old: waiting,
            new: bound,
        });
        assert!(state.queue.pop(Instant::now()).is_none());
        assert_eq!(state.cluster.node("n1").unwrap().requested.milli_cpu, 500);
    }

    #[test]
    fn pods_of_other_schedulers_and_gated_pods_are_left_alone() {
        let mut state = state_with_node();
        let mut other = pod("other", &[]);
        other.spec.as_mut().unwrap().scheduler_name = Some("mine".into());
        assert!(!state.pod_changed(&Change::Added(Arc::new(other))));
        let mut gated = pod("gated", &[]);
        gated.spec.as_mut().unwrap().scheduling_gates = Some(vec![Default::default()]);
        assert!(!state.pod_changed(&Change::Added(Arc::new(gated))));
    }

    #[test]
    fn the_end_of_a_pod_frees_its_node_and_wakes_who_waits() {
        let mut state = state_with_node();
        let first = bound("first", "800m");
        state.pod_changed(&Change::Added(first.clone()));
        state.pod_changed(&Change::Added(Arc::new(pod("second", &[("cpu", "500m")]))));
        let now = Instant::now();
        let second = state.queue.pop(now).unwrap();
        state.queue.park(second, Plugins::FIT, now);
        assert!(state.pod_changed(&Change::Deleted(first)));
        assert_eq!(state.cluster.node("n1").unwrap().requested.milli_cpu, 0);
        assert!(state.queue.next_wake_up().is_some());
    }

    #[test]
    fn a_node_change_helps_only_whom_it_concerns() {
        let old = node("n1", &[("cpu", "1")]);
        let mut new = old.clone();
        new.status.as_mut().unwrap().conditions = Some(Vec::new());
        assert!(helped_by(&old, &new).is_empty());
        new.metadata.labels = Some([("zone".to_string(), "a".to_string())].into());
        let helped = helped_by(&old, &new);
        assert!(helped.intersects(Plugins::NODE_AFFINITY));
        assert!(helped.intersects(Plugins::SPREAD));
        assert!(!helped.intersects(Plugins::FIT));
        assert_eq!(helped_by(&old, &node("n1", &[("cpu", "2")])), Plugins::FIT);
    }

    #[test]
    fn a_pod_keeps_its_nomination_while_room_is_made() {
        let mut state = state_with_node();
        let low = bound("low", "800m");
        state.pod_changed(&Change::Added(low.clone()));
        let mut high = pod("high", &[("cpu", "500m")]);
        high.spec.as_mut().unwrap().priority = Some(10);
        state.pod_changed(&Change::Added(Arc::new(high)));
        let listers = super::super::Listers::empty();
        let profile = super::super::cycle::Profile::new(&listers);
        // Each when the backoff of the one before is over.
        let start = Instant::now();
        let minute = |number: u64| start + std::time::Duration::from_secs(60 * number);
        let attempt = |state: &mut State, number: u64| {
            let later = minute(number);
            let attempt = state.attempt(&profile, &listers, later).unwrap();
            match attempt.outcome {
                super::super::Outcome::Nowhere(failure) => failure,
                super::super::Outcome::Node(node) => panic!("it fits on {node}"),
            }
        };
        let first = attempt(&mut state, 1);
        assert_eq!(first.plan.unwrap().victims.len(), 1);
        assert_eq!(first.nominated.as_deref(), Some("n1"));
        let mut leaving = Pod::clone(&low);
        leaving.metadata.deletion_timestamp = Some(
            k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH),
        );
        leaving.status = Some(
            serde_json::from_value(serde_json::json!({"conditions": [
                {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"},
            ]}))
            .unwrap(),
        );
        state.pod_changed(&Change::Updated {
            old: low,
            new: Arc::new(leaving.clone()),
        });
        state.queue.wake(Plugins::ALL, minute(2));
        let second = attempt(&mut state, 2);
        assert!(second.plan.is_none());
        assert_eq!(second.nominated.as_deref(), Some("n1"));
        assert!(
            second.message.ends_with(
                "preemption: not eligible due to a terminating pod on the nominated node."
            )
        );
        state.pod_changed(&Change::Deleted(Arc::new(leaving)));
        let last = state.attempt(&profile, &listers, minute(3)).unwrap();
        assert!(matches!(last.outcome, super::super::Outcome::Node(_)));
        assert!(state.cluster.nominations.is_empty());
    }
}
