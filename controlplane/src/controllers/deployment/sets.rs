//! What the Deployment controller writes to ReplicaSets: new ones, sizes, revisions, and the
//! end of old ones.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tracing::debug;

use super::revision::{self, HASH_LABEL};
use super::{DeploymentController, Rollout, replicas, rolling, status};
use crate::controllers::events::Severity;
use crate::controllers::ownership::{controller_ref, new_controller_ref};
use crate::controllers::writes::api_message;

impl DeploymentController {
    /// Makes the set of the current template if there is none.
    pub(super) async fn ensure_new_set(&self, rollout: &mut Rollout) -> Result<(), kube::Error> {
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
    pub(super) async fn keep_revision(&self, rollout: &mut Rollout) -> Result<(), kube::Error> {
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

    pub(super) async fn scale_new(
        &self,
        rollout: &mut Rollout,
        size: i32,
    ) -> Result<(), kube::Error> {
        if let Some(set) = rollout.new.take() {
            rollout.new = Some(self.scale(&rollout.deployment, set, size).await?);
        }
        Ok(())
    }

    pub(super) async fn scale_old(
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
    pub(super) async fn clean_history(&self, rollout: &Rollout) -> Result<(), kube::Error> {
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
