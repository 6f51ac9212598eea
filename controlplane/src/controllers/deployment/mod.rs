//! The Deployment controller: moves pods from one template to the next by scaling
//! ReplicaSets, one for each template.
//!
//!     claim the sets -> find the new one and the old ones -> paused or scaled? resize in
//!     proportion : one step of the strategy -> history -> status
//!
//! A reconcile takes one step; the changes that the step causes bring the next. The sizes
//! come from pure functions ([`rolling`], [`proportional`]), the conditions from [`status`].

mod proportional;
mod revision;
mod rolling;
mod sets;
mod status;
mod watch;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::PostParams;
use kube::core::Selector;
use kube::{Api, Client};

use super::Informers;
use super::events::{EventRecorder, Severity};
use super::informer::{Index, Informer, ObjectKey};
use super::ownership::{self, Owner, new_controller_ref, parse_selector};
use super::pod_state::{self, Phase};
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next};
use super::tasks::Tasks;

const WORKERS: usize = 5;

pub(super) fn start(client: Client, informers: &Informers, events: &EventRecorder, tasks: &Tasks) {
    let queue = WorkQueue::default();
    let controller = Arc::new(DeploymentController {
        client,
        deployments: informers.deployments.clone(),
        replica_sets: informers.replica_sets.clone(),
        pods: informers.pods.clone(),
        events: events.named(DeploymentController::NAME),
    });
    controller.watch(&queue);
    runner::run(controller, &queue, WORKERS, tasks);
}

struct DeploymentController {
    client: Client,
    deployments: Informer<Deployment>,
    replica_sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    events: EventRecorder,
}

/// One reconcile's view: the deployment as it is being changed, and its sets.
struct Rollout {
    deployment: Deployment,
    /// The status that the API server has; `deployment.status` runs ahead of it.
    stored_status: DeploymentStatus,
    new: Option<ReplicaSet>,
    old: Vec<ReplicaSet>,
    now: Timestamp,
}

impl Rollout {
    fn all(&self) -> Vec<&ReplicaSet> {
        self.old.iter().chain(&self.new).collect()
    }
}

/// The replicas that a set's spec asks for.
fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

/// The pods that it has, those that are ending not counted.
fn present(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

fn available(set: &ReplicaSet) -> i32 {
    let status = set.status.as_ref();
    status.and_then(|s| s.available_replicas).unwrap_or(0)
}

fn wanted_replicas(deployment: &Deployment) -> i32 {
    deployment.spec.replicas.unwrap_or(1)
}

impl Controller for DeploymentController {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "deployment-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        self.deployments.synced().await;
        self.replica_sets.synced().await;
        self.pods.synced().await;
        let Some(deployment) = self.deployments.get(key) else {
            return Ok(Next::Wait);
        };
        let Some(selector) = parse_selector(&deployment.spec.selector) else {
            return Ok(Next::Wait);
        };
        if selector.selects_all() {
            return self.refuse_selecting_all(&deployment).await;
        }
        let sets = self.claim_sets(&deployment, &selector).await?;
        let (new, old) = revision::split(&deployment, sets);
        // Kubernetes' times are whole seconds; finer ones would differ from what is stored.
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        let mut rollout = Rollout {
            stored_status: deployment.status.clone().unwrap_or_default(),
            deployment: Deployment::clone(&deployment),
            new,
            old,
            now,
        };
        if deployment.metadata.deletion_timestamp.is_some() {
            return self.write_plain_status(&mut rollout).await;
        }
        status::note_pause(&mut rollout.deployment, now);
        self.keep_revision(&mut rollout).await?;
        if deployment.spec.paused == Some(true) || proportional::was_scaled(&rollout) {
            return self.resize(&mut rollout).await;
        }
        match deployment
            .spec
            .strategy
            .as_ref()
            .and_then(|s| s.type_.as_deref())
        {
            Some("Recreate") => self.recreate(&mut rollout).await,
            _ => self.roll(&mut rollout).await,
        }
    }
}

/// The strategies.
impl DeploymentController {
    /// RollingUpdate: grow the new set, or shrink the old ones, as far as the limits allow.
    async fn roll(&self, rollout: &mut Rollout) -> Result<Next, kube::Error> {
        self.ensure_new_set(rollout).await?;
        if let Some(new) = &rollout.new {
            let size = rolling::new_set_size(&rollout.deployment, &rollout.all(), new);
            if size != replicas(new) {
                self.scale_new(rollout, size).await?;
                return self.write_rollout_status(rollout).await;
            }
        }
        let steps = rolling::old_set_sizes(&rollout.deployment, rollout.new.as_ref(), &rollout.old);
        if !steps.is_empty() {
            for (index, size) in steps {
                self.scale_old(rollout, index, size).await?;
            }
            return self.write_rollout_status(rollout).await;
        }
        self.finish(rollout).await
    }

    /// Recreate: first end every old pod, then start the new ones.
    async fn recreate(&self, rollout: &mut Rollout) -> Result<Next, kube::Error> {
        let alive: Vec<usize> = (0..rollout.old.len())
            .filter(|index| replicas(&rollout.old[*index]) > 0)
            .collect();
        if !alive.is_empty() {
            for index in alive {
                self.scale_old(rollout, index, 0).await?;
            }
            return self.write_rollout_status(rollout).await;
        }
        if self.old_pods_run(rollout) {
            return self.write_rollout_status(rollout).await;
        }
        self.ensure_new_set(rollout).await?;
        self.scale_new(rollout, wanted_replicas(&rollout.deployment))
            .await?;
        self.finish(rollout).await
    }

    async fn finish(&self, rollout: &mut Rollout) -> Result<Next, kube::Error> {
        let deployment = &rollout.deployment;
        if deployment
            .status
            .as_ref()
            .is_some_and(|current| status::is_complete(deployment, current))
        {
            self.clean_history(rollout).await?;
        }
        self.write_rollout_status(rollout).await
    }

    /// Follows a new `spec.replicas` without moving the rollout on.
    async fn resize(&self, rollout: &mut Rollout) -> Result<Next, kube::Error> {
        for (name, size) in proportional::sizes(rollout) {
            let old = rollout.old.iter();
            match old
                .map(|set| &set.metadata.name)
                .position(|n| n.as_deref() == Some(&name))
            {
                Some(index) => self.scale_old(rollout, index, size).await?,
                None => self.scale_new(rollout, size).await?,
            }
        }
        if rollout.deployment.spec.paused == Some(true) {
            self.clean_history(rollout).await?;
        }
        self.write_plain_status(rollout).await
    }

    /// Whether a pod of an old template is still there, other than finished ones.
    fn old_pods_run(&self, rollout: &Rollout) -> bool {
        rollout.old.iter().any(|set| {
            let counted = set
                .status
                .as_ref()
                .is_some_and(|status| status.replicas > 0);
            let uid = set.metadata.uid.as_deref().unwrap_or_default();
            counted
                || self
                    .pods
                    .by_index(Index::Controller, uid)
                    .iter()
                    .any(|pod| !matches!(pod_state::phase(pod), Phase::Failed | Phase::Succeeded))
        })
    }
}

/// Writes to the deployment's status.
impl DeploymentController {
    async fn write_rollout_status(&self, rollout: &mut Rollout) -> Result<Next, kube::Error> {
        let status = status::of_rollout(rollout);
        rollout.deployment.status = Some(status);
        self.put_status(rollout).await?;
        Ok(status::next_progress_check(
            &rollout.deployment,
            rollout.now,
        ))
    }

    async fn write_plain_status(&self, rollout: &mut Rollout) -> Result<Next, kube::Error> {
        rollout.deployment.status = Some(status::calculate(rollout));
        self.put_status(rollout).await?;
        Ok(Next::Wait)
    }

    async fn put_status(&self, rollout: &mut Rollout) -> Result<(), kube::Error> {
        let deployment = &rollout.deployment;
        if deployment.status.as_ref() == Some(&rollout.stored_status) {
            return Ok(());
        }
        let name = deployment.metadata.name.as_deref().unwrap_or_default();
        let updated = self
            .deployments_in(deployment)
            .replace_status(name, &PostParams::default(), deployment)
            .await?;
        rollout.deployment.metadata = updated.metadata;
        rollout.stored_status = rollout.deployment.status.clone().unwrap_or_default();
        Ok(())
    }

    async fn refuse_selecting_all(&self, deployment: &Deployment) -> Result<Next, kube::Error> {
        self.events.record(
            deployment,
            Severity::Warning,
            "SelectingAll",
            "This deployment is selecting all pods. A non-empty selector is required.",
        );
        let mut deployment = deployment.clone();
        let status = deployment.status.get_or_insert_default();
        if status.observed_generation != deployment.metadata.generation {
            status.observed_generation = deployment.metadata.generation;
            let name = deployment.metadata.name.as_deref().unwrap_or_default();
            self.deployments_in(&deployment)
                .replace_status(name, &PostParams::default(), &deployment)
                .await?;
        }
        Ok(Next::Wait)
    }
}

/// Access to the objects of the API.
impl DeploymentController {
    async fn claim_sets(
        &self,
        deployment: &Deployment,
        selector: &Selector,
    ) -> Result<Vec<Arc<ReplicaSet>>, kube::Error> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        let mut candidates = self.replica_sets.by_index(Index::Controller, uid);
        candidates.extend(self.replica_sets.by_index(Index::Orphan, namespace));
        let owner = Owner {
            reference: new_controller_ref(deployment),
            selector,
            is_deleted: deployment.metadata.deletion_timestamp.is_some(),
        };
        let deployments = self.deployments_in(deployment);
        let sets = self.sets_in(deployment);
        ownership::claim(&sets, &owner, candidates, || async move {
            ownership::still_exists(&deployments, deployment).await
        })
        .await
    }

    fn deployments_in(&self, deployment: &Deployment) -> Api<Deployment> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.client.clone(), namespace)
    }

    fn sets_in(&self, deployment: &Deployment) -> Api<ReplicaSet> {
        let namespace = deployment.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.client.clone(), namespace)
    }
}
