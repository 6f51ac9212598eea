//! The scheduler: gives each pod a node.
//!
//!     informers -> cluster (nodes, and what runs on each) + queue (pods without a node)
//!         -> cycle: filter, score, choose -> assume -> bind (in parallel) -> API server
//!         -> or preemption: whom to end so that it fits -> nominate, delete -> queue
//!
//! One loop takes a pod at a time, chooses in memory and goes on while the binding is
//! written: an assumed pod counts on its node at once, and stops to count if the binding
//! fails. A pod that fits nowhere waits for a change that can help it, as told by the plugins
//! that refused it. A new rule is one file in [`plugins`].

mod cluster;
mod cycle;
mod diagnosis;
mod groups;
mod likeness;
mod needs;
mod nominations;
mod plugins;
mod preemption;
mod queue;
mod report;
mod resources;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Client;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;

use crate::controllers::Informers;
use crate::controllers::events::EventRecorder;
use crate::controllers::informer::Informer;
use crate::controllers::tasks::Tasks;

pub(crate) use plugins::tolerates;

use cluster::Cluster;
use cycle::{Choice, Profile};
use preemption::{Plan, Preemption};
use queue::SchedulingQueue;

/// The name by which pods ask for this scheduler, and under which it records events.
pub const SCHEDULER_NAME: &str = "default-scheduler";

/// Bindings under way at one time. The loop waits when there are more.
const BINDINGS_AT_ONCE: usize = 256;

/// A scheduler that runs until it is stopped.
pub struct Running {
    tasks: Tasks,
}

impl Running {
    /// Ends the scheduler and waits for the bindings that are under way.
    pub async fn stop(self) {
        self.tasks.stop().await;
    }
}

/// What the scheduler looks up beside nodes, pods and namespaces.
#[derive(Clone)]
struct Listers {
    services: Informer<Service>,
    replica_sets: Informer<ReplicaSet>,
    budgets: Informer<PodDisruptionBudget>,
}

impl Listers {
    fn of(informers: &Informers) -> Self {
        Self {
            services: informers.services.clone(),
            replica_sets: informers.replica_sets.clone(),
            budgets: informers.budgets.clone(),
        }
    }

    /// Of a cluster that has none of these.
    #[cfg(test)]
    fn empty() -> Self {
        Self {
            services: crate::controllers::informers::services(),
            replica_sets: Informer::new(&[]),
            budgets: Informer::new(&[]),
        }
    }
}

/// Starts the scheduler over the informers that it shares with the controllers.
pub fn start(client: Client, informers: &Informers) -> Running {
    let tasks = Tasks::default();
    let scheduler = Arc::new(Scheduler {
        events: EventRecorder::start(client.clone(), SCHEDULER_NAME, &tasks),
        client,
        pods: informers.pods.clone(),
        profile: Profile::new(&Listers::of(informers)),
        listers: Listers::of(informers),
        state: Mutex::default(),
        changed: Notify::new(),
        bindings: Arc::new(Semaphore::new(BINDINGS_AT_ONCE)),
        tasks: Tasks::child_of(&tasks),
    });
    watch::subscribe(&scheduler, informers);
    let informers = informers.clone();
    tasks.supervise("scheduler", move || {
        let (scheduler, informers) = (scheduler.clone(), informers.clone());
        async move {
            informers.nodes.synced().await;
            informers.pods.synced().await;
            informers.namespaces.synced().await;
            informers.services.synced().await;
            informers.replica_sets.synced().await;
            informers.budgets.synced().await;
            scheduler.run().await;
        }
    });
    Running { tasks }
}

struct Scheduler {
    client: Client,
    pods: Informer<Pod>,
    events: EventRecorder,
    profile: Profile,
    listers: Listers,
    state: Mutex<State>,
    /// Told when the queue may have a pod to give.
    changed: Notify,
    bindings: Arc<Semaphore>,
    tasks: Tasks,
}

/// What the loop and the informers' handlers share. It is locked for microseconds.
#[derive(Default)]
struct State {
    cluster: Cluster,
    queue: SchedulingQueue,
    /// Where the last search for nodes ended, so that the next goes on from there.
    next_node: usize,
}

impl Scheduler {
    async fn run(self: &Arc<Self>) {
        loop {
            // Not forgotten on an early exit: a permit comes back with its binding.
            let Ok(permit) = self.bindings.clone().acquire_owned().await else {
                return;
            };
            let attempt = self.next_attempt().await;
            let this = self.clone();
            self.tasks.spawn(async move {
                match attempt.outcome {
                    Outcome::Node(node) => this.bind(attempt.pod, &node).await,
                    Outcome::Nowhere(failure) => {
                        this.report_unschedulable(&attempt.pod, failure).await;
                    }
                }
                drop(permit);
            });
            // A burst of pods must not keep the informers from their threads.
            tokio::task::yield_now().await;
        }
    }

    /// Waits for a pod, chooses its node and assumes it there, in one step.
    async fn next_attempt(&self) -> Attempt {
        loop {
            let wake_at = {
                let mut state = self.lock();
                let now = Instant::now();
                if let Some(attempt) = state.attempt(&self.profile, &self.listers, now) {
                    return attempt;
                }
                state.queue.next_wake_up()
            };
            match wake_at {
                Some(at) => {
                    tokio::select! {
                        () = self.changed.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is whole before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One pod, and what was decided about it.
struct Attempt {
    pod: Arc<Pod>,
    outcome: Outcome,
}

enum Outcome {
    /// The name of its node.
    Node(Arc<str>),
    /// No node fits now.
    Nowhere(Failure),
}

/// Why a pod has no node, and what is done about it.
struct Failure {
    message: String,
    /// Where room is made for it, now or since an earlier attempt.
    nominated: Option<Arc<str>>,
    /// Whom to end so that it will fit.
    plan: Option<Plan>,
}

impl State {
    fn attempt(&mut self, profile: &Profile, listers: &Listers, now: Instant) -> Option<Attempt> {
        let pending = self.queue.pop(now)?;
        let needs = &pending.needs;
        let outcome = match cycle::choose(profile, &self.cluster, needs, &mut self.next_node) {
            Choice::Node(node) => {
                self.cluster.assume(needs, &node);
                Outcome::Node(node)
            }
            Choice::Nowhere(diagnosis) => {
                let mut message = diagnosis.message();
                let preemption =
                    preemption::search(profile, &self.cluster, needs, &diagnosis, listers);
                let plan = match preemption {
                    Preemption::Plan(plan) => {
                        let nominations = &mut self.cluster.nominations;
                        nominations.set(needs.footprint.clone(), &plan.node);
                        for other in &plan.outranked {
                            nominations.remove(&other.uid);
                            self.queue.nudge(&other.key, now);
                        }
                        Some(plan)
                    }
                    Preemption::Pointless(why) => {
                        if !why.is_empty() {
                            message.push_str(" preemption: ");
                            message.push_str(&why);
                        }
                        self.cluster.nominations.remove(&needs.footprint.uid);
                        None
                    }
                    Preemption::UnderWay(why) => {
                        message.push_str(" preemption: ");
                        message.push_str(&why);
                        None
                    }
                };
                self.queue.park(pending.clone(), diagnosis.refused_by, now);
                let nominations = &self.cluster.nominations;
                Outcome::Nowhere(Failure {
                    nominated: nominations.node_of(&needs.footprint.uid).cloned(),
                    message,
                    plan,
                })
            }
        };
        Some(Attempt {
            pod: pending.pod,
            outcome,
        })
    }
}
