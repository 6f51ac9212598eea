//! The scheduler: gives each pod a node.
//!
//!     informers -> cluster (nodes, and what runs on each) + queue (pods without a node)
//!         -> cycle: filter, score, choose -> assume -> bind (in parallel) -> API server
//!
//! One loop takes a pod at a time, chooses in memory and goes on while the binding is
//! written: an assumed pod counts on its node at once, and stops to count if the binding
//! fails. A pod that fits nowhere waits for a change that can help it, as told by the plugins
//! that refused it. A new rule is one file in [`plugins`].

mod cluster;
mod cycle;
mod needs;
mod plugins;
mod queue;
mod report;
mod resources;
mod watch;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Pod;
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

/// Starts the scheduler over the informers that it shares with the controllers.
pub fn start(client: Client, informers: &Informers) -> Running {
    let tasks = Tasks::default();
    let scheduler = Arc::new(Scheduler {
        events: EventRecorder::start(client.clone(), SCHEDULER_NAME, &tasks),
        client,
        pods: informers.pods.clone(),
        profile: Profile::default(),
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
            match attempt.choice {
                Choice::Node(node) => {
                    let this = self.clone();
                    self.tasks.spawn(async move {
                        this.bind(attempt.pod, &node).await;
                        drop(permit);
                    });
                }
                Choice::Nowhere(diagnosis) => {
                    let this = self.clone();
                    self.tasks.spawn(async move {
                        this.report_unschedulable(&attempt.pod, &diagnosis).await;
                        drop(permit);
                    });
                }
            }
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
                if let Some(attempt) = state.attempt(&self.profile, now) {
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

/// One pod, and what was chosen for it.
struct Attempt {
    pod: Arc<Pod>,
    choice: Choice,
}

impl State {
    fn attempt(&mut self, profile: &Profile, now: Instant) -> Option<Attempt> {
        let pending = self.queue.pop(now)?;
        let choice = cycle::choose(profile, &self.cluster, &pending.needs, &mut self.next_node);
        match &choice {
            Choice::Node(node) => self.cluster.assume(&pending.needs, node),
            Choice::Nowhere(diagnosis) => {
                self.queue.park(pending.clone(), diagnosis.refused_by, now);
            }
        }
        Some(Attempt {
            pod: pending.pod,
            choice,
        })
    }
}
