//! The eyes of the drills: tells the record of each drill that runs what the informers see.
//!
//!     pods, nodes, EndpointSlices, Events -> record of each drill -> work queue, if that was news
//!
//! While no drill runs, a change costs one look at an empty map. The time of a change is that at which its watch event
//! arrived in this process, by the host's clock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::runtime::watcher::{self, Event as WatchEvent};
use kube::runtime::{WatchStreamExt, watcher as watch_resource};
use kube::{Api, Client};
use skiff_dev::{Drill, DrillPlan, DrillTask};
use tokio::time::Instant;
use tracing::debug;

use super::course::Course;
use super::plan::Needs;
use super::{now, report};
use crate::controllers::Informers;
use crate::controllers::informer::{Change, Index, ObjectKey};
use crate::controllers::ownership::controller_ref;
use crate::controllers::queue::WorkQueue;
use crate::controllers::tasks::Tasks;

/// Every drill that runs, by name.
type Drills = Arc<Mutex<HashMap<String, Active>>>;

/// What this process knows of a drill that runs, beyond the drill's status.
pub(super) struct Active {
    uid: String,
    pub(super) course: Course,
    /// What the controller itself did to victims, by the name that the report has for them.
    pub(super) acts: BTreeMap<String, Act>,
    /// When the status was last written.
    pub(super) written: Option<Instant>,
    /// When the probe's agent was last heard of.
    pub(super) probe_seen: Option<Timestamp>,
    /// When probe and writes were told to end.
    pub(super) concluding: Option<Timestamp>,
    /// The Service whose slices are read: namespace and name.
    service: Option<(String, String)>,
    events: Tasks,
}

/// One request of the controller against a victim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Act {
    /// Right before the request.
    pub(super) at: Timestamp,
    /// What the API server refused it with.
    pub(super) refused: Option<String>,
}

#[cfg(test)]
impl Active {
    /// Of a drill that nobody follows.
    pub(super) fn made_up(course: Course) -> Self {
        Self {
            uid: String::new(),
            course,
            acts: BTreeMap::new(),
            written: None,
            probe_seen: None,
            concluding: None,
            service: None,
            events: Tasks::default(),
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.events.cancel();
    }
}

#[derive(Clone)]
pub(super) struct Observer {
    drills: Drills,
    informers: Informers,
    client: Client,
    tasks: Tasks,
}

impl Observer {
    /// Subscribes to what drills are about.
    pub(super) fn start(
        client: Client,
        informers: &Informers,
        queue: &WorkQueue<ObjectKey>,
        tasks: &Tasks,
    ) -> Self {
        let observer = Self {
            drills: Drills::default(),
            informers: informers.clone(),
            client,
            tasks: tasks.clone(),
        };
        let (this, pods) = (observer.clone_for_handlers(), queue.clone());
        informers
            .pods
            .subscribe(move |change| this.pod(change, &pods));
        let (drills, nodes) = (observer.drills.clone(), queue.clone());
        informers.nodes.subscribe(move |change| {
            let node = change.object();
            tell(&drills, &nodes, |course, at| match change {
                Change::Deleted(_) => {
                    course.lose_node(at, node.metadata.name.as_deref().unwrap_or_default())
                }
                _ => course.see_node(at, node),
            });
        });
        let (this, slices) = (observer.clone_for_handlers(), queue.clone());
        informers.endpoint_slices.subscribe(move |change| {
            let name = change.object().metadata.labels.as_ref();
            let name = name.and_then(|l| l.get("kubernetes.io/service-name"));
            this.slices(name.map(String::as_str).unwrap_or_default(), &slices);
        });
        let drills = observer.drills.clone();
        informers.drill_tasks.subscribe(move |change| {
            // The list after a start tells nothing of when its probes were last heard of.
            if let Change::Updated { new, .. } = change {
                note_probe(&drills, new);
            }
        });
        observer
    }

    /// What the handlers need, which must not keep the tasks that run them.
    fn clone_for_handlers(&self) -> Eyes {
        Eyes {
            drills: self.drills.clone(),
            informers: self.informers.clone(),
        }
    }

    /// Begins the record of a drill, or takes up the one that its status tells of.
    pub(super) fn follow(&self, drill: &Drill, plan: &DrillPlan) {
        let name = drill.metadata.name.clone().unwrap_or_default();
        let uid = drill.metadata.uid.clone().unwrap_or_default();
        let mut drills = lock(&self.drills);
        if drills.get(&name).is_some_and(|active| active.uid == uid) {
            return;
        }
        let status = drill.status.clone().unwrap_or_default();
        let (moments, stays) = report::remembered(&status);
        let service = plan.probe.as_ref().and_then(|probe| {
            let (namespace, name) = probe.service.split_once('/')?;
            Some((namespace.to_owned(), name.to_owned()))
        });
        let mut course = Course::new(plan, moments, stays);
        let at = now();
        // The map is locked: whatever changes meanwhile waits, and is told afterwards.
        course.take_in(at, |course| {
            for pod in self.informers.pods.list() {
                course.see_pod(at, &pod, &|namespace, name| {
                    owner_of(&self.informers, namespace, name)
                });
            }
            for node in self.informers.nodes.list() {
                course.see_node(at, &node);
            }
            if let Some((namespace, name)) = &service {
                course.see_service(at, served(&self.informers, namespace, name));
            }
        });
        let events = Tasks::child_of(&self.tasks);
        let active = Active {
            uid,
            course,
            acts: match Needs::of(drill.spec.drill) {
                Needs::Api => report::acts(&status),
                Needs::Tasks => BTreeMap::new(),
            },
            written: None,
            probe_seen: None,
            concluding: None,
            service,
            events: events.clone(),
        };
        drills.insert(name.clone(), active);
        drop(drills);
        let (client, drills) = (self.client.clone(), Arc::downgrade(&self.drills));
        let began = status.started_at.map_or(at, |started| started.0);
        events.spawn(async move {
            let api: Api<Event> = Api::all(client);
            let changes = watch_resource(api, watcher::Config::default()).default_backoff();
            let mut changes = pin!(changes);
            while let Some(change) = changes.next().await {
                let (event, is_listed) = match change {
                    Ok(WatchEvent::InitApply(event)) => (event, true),
                    Ok(WatchEvent::Apply(event)) => (event, false),
                    Ok(_) => continue,
                    Err(error) => {
                        debug!(drill = name, %error, "the watch of events was interrupted");
                        continue;
                    }
                };
                let Some(drills) = drills.upgrade() else {
                    return;
                };
                if let Some(active) = lock(&drills).get_mut(&name) {
                    let is_old = is_listed && !is_after(&event, began);
                    active.course.see_event(now(), &event, is_old);
                }
            }
        });
    }

    /// Looks at, or notes something in, what is known of a drill; `None` if it is not followed.
    pub(super) fn with<T>(&self, name: &str, look: impl FnOnce(&mut Active) -> T) -> Option<T> {
        lock(&self.drills).get_mut(name).map(look)
    }

    /// Ends a record.
    pub(super) fn forget(&self, name: &str) {
        lock(&self.drills).remove(name);
    }
}

/// The part of the observer that the informers' handlers hold.
struct Eyes {
    drills: Drills,
    informers: Informers,
}

impl Eyes {
    fn pod(&self, change: &Change<Pod>, queue: &WorkQueue<ObjectKey>) {
        let pod = change.object();
        tell(&self.drills, queue, |course, at| match change {
            Change::Deleted(_) => {
                course.lose_pod(at, pod.metadata.uid.as_deref().unwrap_or_default())
            }
            _ => course.see_pod(at, pod, &|namespace, name| {
                owner_of(&self.informers, namespace, name)
            }),
        });
    }

    fn slices(&self, changed: &str, queue: &WorkQueue<ObjectKey>) {
        let at = now();
        for (drill, active) in lock(&self.drills).iter_mut() {
            let Some((namespace, service)) = &active.service else {
                continue;
            };
            if service != changed {
                continue;
            }
            let served = served(&self.informers, namespace, service);
            if active.course.see_service(at, served) {
                queue.add(ObjectKey::cluster(drill));
            }
        }
    }
}

/// Tells every record of a change, and has the drills looked at for which it was news.
fn tell(
    drills: &Drills,
    queue: &WorkQueue<ObjectKey>,
    see: impl Fn(&mut Course, Timestamp) -> bool,
) {
    let at = now();
    for (name, active) in lock(drills).iter_mut() {
        if see(&mut active.course, at) {
            queue.add(ObjectKey::cluster(name));
        }
    }
}

fn note_probe(drills: &Drills, task: &DrillTask) {
    if !matches!(task.spec.action, skiff_dev::Action::Probe { .. }) {
        return;
    }
    if let Some(active) = lock(drills).get_mut(&task.spec.drill) {
        active.probe_seen = Some(now());
    }
}

/// The pods to which a Service's slices lead.
fn served(informers: &Informers, namespace: &str, service: &str) -> HashSet<String> {
    let slices = informers.endpoint_slices.by_index(Index::Service, service);
    let here = slices
        .iter()
        .filter(|slice| slice.metadata.namespace.as_deref() == Some(namespace));
    let endpoints = here.flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|endpoint| {
        let conditions = endpoint.conditions.as_ref();
        conditions.and_then(|c| c.ready) != Some(false)
    });
    ready
        .filter_map(|endpoint| endpoint.target_ref.as_ref()?.uid.clone())
        .collect()
}

fn owner_of(informers: &Informers, namespace: &str, name: &str) -> Option<String> {
    let set = informers
        .replica_sets
        .get(&ObjectKey::new(namespace, name))?;
    Some(controller_ref(&*set)?.uid.clone())
}

fn is_after(event: &Event, began: Timestamp) -> bool {
    let created = event.metadata.creation_timestamp.as_ref();
    // Objects' times are whole seconds.
    created.is_some_and(|created| created.0.as_second() > began.as_second())
}

fn lock(drills: &Drills) -> MutexGuard<'_, HashMap<String, Active>> {
    // Each record is whole between any two statements, also after a panic elsewhere.
    drills.lock().unwrap_or_else(PoisonError::into_inner)
}
