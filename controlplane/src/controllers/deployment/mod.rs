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
mod status;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::Selector;
use kube::{Api, Client};
use serde_json::json;
use tracing::debug;

use super::Informers;
use super::events::{EventRecorder, Severity};
use super::informer::{Change, Index, Informer, ObjectKey};
use super::ownership::{self, Owner, controller_ref, new_controller_ref, parse_selector, selects};
use super::pod_state::{self, Phase};
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next, api_message};
use super::tasks::Tasks;
use revision::HASH_LABEL;

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

/// Writes to ReplicaSets.
impl DeploymentController {
    /// Makes the set of the current template if there is none.
    async fn ensure_new_set(&self, rollout: &mut Rollout) -> Result<(), kube::Error> {
        if rollout.new.is_some() {
            return Ok(());
        }
        let deployment = &rollout.deployment;
        let hash = revision::template_hash(
            &deployment.spec.template,
            deployment.status.as_ref().and_then(|s| s.collision_count),
        );
        let set = new_replica_set(rollout, &hash);
        let size = replicas(&set);
        let name = set.metadata.name.clone().unwrap_or_default();
        let api = self.sets_in(deployment);
        let revision = revision::of(&set.metadata);
        match api.create(&PostParams::default(), &set).await {
            Ok(created) => {
                status::note_new_set(&mut rollout.deployment, &name, rollout.now);
                if size > 0 {
                    self.tell_scaled(&rollout.deployment, &name, 0, size);
                }
                rollout.new = Some(created);
            }
            Err(kube::Error::Api(error)) if error.is_already_exists() => {
                let existing = api.get(&name).await?;
                let ours = controller_ref(&existing).map(|owner| &owner.uid)
                    == deployment.metadata.uid.as_ref();
                if !ours || !revision::same_template(&deployment.spec.template, &existing) {
                    return self.note_collision(rollout, error).await;
                }
                rollout.new = Some(existing);
            }
            Err(error) => {
                let reason = api_message(&error);
                let message = format!("Failed to create new replica set {name:?}: {reason}");
                if status::note_create_error(&mut rollout.deployment, &message, rollout.now) {
                    self.put_status(rollout).await?;
                }
                self.events.record(
                    &rollout.deployment,
                    Severity::Warning,
                    "ReplicaSetCreateError",
                    message,
                );
                return Err(error);
            }
        }
        self.set_revision(rollout, revision).await
    }

    /// Another set has the name that the hash gives: the next try hashes differently.
    async fn note_collision(
        &self,
        rollout: &mut Rollout,
        error: Box<kube::core::Status>,
    ) -> Result<(), kube::Error> {
        let status = rollout.deployment.status.get_or_insert_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
        debug!(
            deployment = rollout.deployment.metadata.name,
            collisions = status.collision_count,
            "the name of a new replica set is taken"
        );
        self.put_status(rollout).await?;
        Err(kube::Error::Api(error))
    }

    /// Brings the annotations of an existing new set up to date (a rollback makes an old
    /// revision the newest), and the deployment's own revision with them.
    async fn keep_revision(&self, rollout: &mut Rollout) -> Result<(), kube::Error> {
        let Some(new) = &rollout.new else {
            return Ok(());
        };
        let deployment = &rollout.deployment;
        let mut updated = new.clone();
        revision::annotate(
            &mut updated.metadata,
            deployment,
            revision::next(&rollout.old),
        );
        updated.spec.min_ready_seconds = deployment.spec.min_ready_seconds;
        let unchanged = updated.metadata.annotations == new.metadata.annotations
            && updated.spec.min_ready_seconds.unwrap_or(0)
                == new.spec.min_ready_seconds.unwrap_or(0);
        if !unchanged {
            let name = updated.metadata.name.clone().unwrap_or_default();
            let api = self.sets_in(deployment);
            updated = api.replace(&name, &PostParams::default(), &updated).await?;
        }
        let revision = revision::of(&updated.metadata);
        let name = updated.metadata.name.clone().unwrap_or_default();
        rollout.new = Some(updated);
        status::note_found_set(&mut rollout.deployment, &name, rollout.now);
        self.set_revision(rollout, revision).await
    }

    async fn set_revision(&self, rollout: &mut Rollout, revision: i64) -> Result<(), kube::Error> {
        let deployment = &mut rollout.deployment;
        if revision::of(&deployment.metadata) == revision {
            return Ok(());
        }
        let patch = json!({"metadata": {
            "uid": deployment.metadata.uid,
            "annotations": {revision::REVISION: revision.to_string()},
        }});
        let api = self.deployments_in(deployment);
        let name = deployment.metadata.name.clone().unwrap_or_default();
        let patched = api
            .patch(&name, &PatchParams::default(), &Patch::Merge(patch))
            .await?;
        deployment.metadata = patched.metadata;
        Ok(())
    }

    async fn scale_new(&self, rollout: &mut Rollout, size: i32) -> Result<(), kube::Error> {
        if let Some(set) = rollout.new.take() {
            rollout.new = Some(self.scale(&rollout.deployment, set, size).await?);
        }
        Ok(())
    }

    async fn scale_old(
        &self,
        rollout: &mut Rollout,
        index: usize,
        size: i32,
    ) -> Result<(), kube::Error> {
        let set = rollout.old[index].clone();
        rollout.old[index] = self.scale(&rollout.deployment, set, size).await?;
        Ok(())
    }

    async fn scale(
        &self,
        deployment: &Deployment,
        mut set: ReplicaSet,
        size: i32,
    ) -> Result<ReplicaSet, kube::Error> {
        let before = replicas(&set);
        let annotated = revision::annotate_sizes(&mut set.metadata, deployment);
        if before == size && !annotated {
            return Ok(set);
        }
        set.spec.replicas = Some(size);
        let name = set.metadata.name.clone().unwrap_or_default();
        let api = self.sets_in(deployment);
        let updated = api.replace(&name, &PostParams::default(), &set).await?;
        if before != size {
            self.tell_scaled(deployment, &name, before, size);
        }
        Ok(updated)
    }

    fn tell_scaled(&self, deployment: &Deployment, set: &str, from: i32, to: i32) {
        let direction = if to > from { "up" } else { "down" };
        let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
        self.events
            .record(deployment, Severity::Normal, "ScalingReplicaSet", message);
    }

    /// Deletes the oldest of the empty old sets beyond `spec.revisionHistoryLimit`.
    async fn clean_history(&self, rollout: &Rollout) -> Result<(), kube::Error> {
        let api = self.sets_in(&rollout.deployment);
        for name in revision::superfluous(&rollout.deployment, &rollout.old) {
            match api.delete(&name, &DeleteParams::default()).await {
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                other => drop(other?),
            }
        }
        Ok(())
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

/// Which changes concern which deployment.
impl DeploymentController {
    fn watch(self: &Arc<Self>, queue: &WorkQueue<ObjectKey>) {
        let deployments = queue.clone();
        self.deployments
            .subscribe(move |change| deployments.add(ObjectKey::of(&**change.object())));
        let sets = queue.clone();
        let this = Arc::downgrade(self);
        self.replica_sets.subscribe(move |change| {
            if let Some(this) = this.upgrade() {
                this.set_changed(change, &sets);
            }
        });
        let pods = queue.clone();
        let this = Arc::downgrade(self);
        self.pods.subscribe(move |change| {
            if let (Change::Deleted(pod), Some(this)) = (change, this.upgrade()) {
                this.pod_deleted(pod, &pods);
            }
        });
    }

    fn set_changed(&self, change: &Change<ReplicaSet>, queue: &WorkQueue<ObjectKey>) {
        let set = change.object();
        let owner = deployment_of(&**set);
        if let Change::Updated { old, .. } = change
            && let Some(before) = deployment_of(&**old)
            && Some(&before) != owner.as_ref()
        {
            queue.add(before);
        }
        match owner {
            Some(key) => queue.add(key),
            None if matches!(change, Change::Deleted(_)) => {}
            None => self.enqueue_adopters(set, queue),
        }
    }

    fn enqueue_adopters(&self, set: &ReplicaSet, queue: &WorkQueue<ObjectKey>) {
        if controller_ref(set).is_some() || set.metadata.labels.is_none() {
            return;
        }
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        for deployment in self.deployments.by_index(Index::Namespace, namespace) {
            let selector = parse_selector(&deployment.spec.selector);
            if selector.is_some_and(|selector| !selector.selects_all() && selects(&selector, set)) {
                queue.add(ObjectKey::of(&*deployment));
            }
        }
    }

    /// Recreate waits for the last old pod to be gone; nothing else depends on single pods.
    fn pod_deleted(&self, pod: &Pod, queue: &WorkQueue<ObjectKey>) {
        let Some(owner) = controller_ref(pod).filter(|owner| owner.kind == "ReplicaSet") else {
            return;
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let set = self
            .replica_sets
            .get(&ObjectKey::new(namespace, &owner.name));
        let Some(key) = set.and_then(|set| deployment_of(&*set)) else {
            return;
        };
        let recreates = self.deployments.get(&key).is_some_and(|deployment| {
            let strategy = deployment.spec.strategy.as_ref();
            strategy.and_then(|s| s.type_.as_deref()) == Some("Recreate")
        });
        if recreates {
            queue.add(key);
        }
    }

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

fn deployment_of(set: &ReplicaSet) -> Option<ObjectKey> {
    let owner = controller_ref(set).filter(|owner| owner.kind == "Deployment")?;
    let namespace = set.metadata.namespace.as_deref()?;
    Some(ObjectKey::new(namespace, &owner.name))
}

/// The set of the deployment's current template, as it is first created.
fn new_replica_set(rollout: &Rollout, hash: &str) -> ReplicaSet {
    let deployment = &rollout.deployment;
    let mut template = deployment.spec.template.clone();
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.into());
    let labels = labels.clone();
    let mut selector = deployment.spec.selector.clone();
    let match_labels = selector.match_labels.get_or_insert_default();
    match_labels.insert(HASH_LABEL.into(), hash.into());
    let name = deployment.metadata.name.as_deref().unwrap_or_default();
    let mut set = ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{name}-{hash}")),
            namespace: deployment.metadata.namespace.clone(),
            owner_references: Some(vec![new_controller_ref(deployment)]),
            labels: Some(labels),
            ..Default::default()
        },
        spec: ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: deployment.spec.min_ready_seconds,
            selector,
            template: Some(template),
        },
        status: None,
    };
    let mut all = rollout.all();
    all.push(&set);
    let size = rolling::new_set_size(deployment, &all, &set);
    set.spec.replicas = Some(size);
    revision::annotate(&mut set.metadata, deployment, revision::next(&rollout.old));
    revision::annotate_sizes(&mut set.metadata, deployment);
    set
}
