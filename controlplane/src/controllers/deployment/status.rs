//! The status of a deployment: counts, and the conditions Available, Progressing and
//! ReplicaFailure.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rolling::max_unavailable;
use super::{Rollout, available, replicas, wanted_replicas};
use crate::controllers::runner::Next;

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// The counts and the condition Available; other conditions stay as they are.
pub(super) fn calculate(rollout: &Rollout) -> DeploymentStatus {
    let deployment = &rollout.deployment;
    let all = rollout.all();
    let sum = |count: &dyn Fn(&ReplicaSet) -> i32| all.iter().map(|set| count(set)).sum::<i32>();
    let total_available = sum(&available);
    let before = deployment.status.clone().unwrap_or_default();
    let nonzero = |number: i32| Some(number).filter(|number| *number != 0);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: nonzero(sum(&actual)),
        updated_replicas: nonzero(rollout.new.as_ref().map_or(0, actual)),
        ready_replicas: nonzero(sum(&|set| {
            set.status
                .as_ref()
                .and_then(|s| s.ready_replicas)
                .unwrap_or(0)
        })),
        available_replicas: nonzero(total_available),
        unavailable_replicas: nonzero((sum(&replicas) - total_available).max(0)),
        terminating_replicas: Some(sum(&|set| {
            set.status
                .as_ref()
                .and_then(|s| s.terminating_replicas)
                .unwrap_or(0)
        })),
        collision_count: before.collision_count,
        conditions: before.conditions,
    };
    let enough = total_available >= wanted_replicas(deployment) - max_unavailable(deployment);
    let availability = if enough {
        condition(
            AVAILABLE,
            "True",
            "MinimumReplicasAvailable",
            "Deployment has minimum availability.",
            rollout.now,
        )
    } else {
        condition(
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
            rollout.now,
        )
    };
    set(&mut status, availability);
    status
}

/// As [`calculate`], with the progress of the rollout.
pub(super) fn of_rollout(rollout: &Rollout) -> DeploymentStatus {
    let deployment = &rollout.deployment;
    let mut status = calculate(rollout);
    if deadline(deployment).is_none() {
        remove(&mut status, PROGRESSING);
    } else if !was_complete(&status) {
        note_progress(rollout, &mut status);
    }
    match replica_failure(rollout) {
        Some(failure) => set(&mut status, failure),
        None => remove(&mut status, REPLICA_FAILURE),
    }
    status
}

fn note_progress(rollout: &Rollout, status: &mut DeploymentStatus) {
    let deployment = &rollout.deployment;
    let subject = match &rollout.new {
        Some(new) => format!(
            "ReplicaSet {:?}",
            new.metadata.name.as_deref().unwrap_or_default()
        ),
        None => format!(
            "Deployment {:?}",
            deployment.metadata.name.as_deref().unwrap_or_default()
        ),
    };
    let now = rollout.now;
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set(
            status,
            condition(PROGRESSING, "True", NEW_SET_AVAILABLE, &message, now),
        );
    } else if has_progressed(deployment.status.as_ref(), status) {
        let message = format!("{subject} is progressing.");
        let mut progressing = condition(PROGRESSING, "True", "ReplicaSetUpdated", &message, now);
        if let Some(before) = get(status, PROGRESSING)
            && before.status == progressing.status
        {
            progressing.last_transition_time = before.last_transition_time.clone();
        }
        // Removed first, because each sign of progress moves the deadline.
        remove(status, PROGRESSING);
        set(status, progressing);
    } else if has_timed_out(deployment, status, now) {
        let message = format!("{subject} has timed out progressing.");
        set(
            status,
            condition(PROGRESSING, "False", TIMED_OUT, &message, now),
        );
    }
}

/// When to look again whether the rollout is stuck.
pub(super) fn next_progress_check(deployment: &Deployment, now: Timestamp) -> Next {
    let (Some(deadline), Some(status)) = (deadline(deployment), &deployment.status) else {
        return Next::Wait;
    };
    let Some(progressing) = get(status, PROGRESSING) else {
        return Next::Wait;
    };
    let reason = progressing.reason.as_deref();
    if is_complete(deployment, status) || reason == Some(TIMED_OUT) {
        return Next::Wait;
    }
    let since = progressing.last_update_time.as_ref().map_or(now, |t| t.0);
    let left = (since + deadline).duration_since(now);
    // A second more, so that the deadline has surely passed.
    let wait = Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1);
    Next::After(wait)
}

/// The whole deployment runs the current template, and nothing else runs.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = wanted_replicas(deployment);
    status.updated_replicas.unwrap_or(0) == wanted
        && status.replicas.unwrap_or(0) == wanted
        && status.available_replicas.unwrap_or(0) == wanted
        && status.observed_generation >= deployment.metadata.generation
}

/// The rollout had been completed before: what happens to pods since is no progress.
fn was_complete(status: &DeploymentStatus) -> bool {
    status.replicas == status.updated_replicas
        && get(status, PROGRESSING)
            .is_some_and(|progressing| progressing.reason.as_deref() == Some(NEW_SET_AVAILABLE))
}

fn has_progressed(before: Option<&DeploymentStatus>, now: &DeploymentStatus) -> bool {
    let before = before.cloned().unwrap_or_default();
    let updated = |status: &DeploymentStatus| status.updated_replicas.unwrap_or(0);
    let old = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - updated(status);
    updated(now) > updated(&before)
        || old(now) < old(&before)
        || now.ready_replicas > before.ready_replicas
        || now.available_replicas > before.available_replicas
}

fn has_timed_out(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> bool {
    let (Some(deadline), Some(progressing)) = (deadline(deployment), get(status, PROGRESSING))
    else {
        return false;
    };
    match progressing.reason.as_deref() {
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => progressing
            .last_update_time
            .as_ref()
            .is_some_and(|since| since.0 + deadline < now),
    }
}

fn deadline(deployment: &Deployment) -> Option<SignedDuration> {
    let seconds = deployment.spec.progress_deadline_seconds?;
    (seconds != i32::MAX).then(|| SignedDuration::from_secs(i64::from(seconds)))
}

/// A set's failure to make pods, the new set's first.
fn replica_failure(rollout: &Rollout) -> Option<DeploymentCondition> {
    rollout
        .new
        .iter()
        .chain(&rollout.old)
        .flat_map(|set| set.status.iter())
        .flat_map(|status| status.conditions.iter().flatten())
        .find(|condition| condition.type_.as_deref() == Some(REPLICA_FAILURE))
        .map(from_set_condition)
}

fn from_set_condition(condition: &ReplicaSetCondition) -> DeploymentCondition {
    DeploymentCondition {
        type_: condition.type_.clone(),
        status: condition.status.clone(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        last_transition_time: condition.last_transition_time.clone(),
        last_update_time: condition.last_transition_time.clone(),
    }
}

/// Says in the condition Progressing that the deployment was paused or resumed.
pub(super) fn note_pause(deployment: &mut Deployment, now: Timestamp) {
    if deadline(deployment).is_none() {
        return;
    }
    let reason = deployment
        .status
        .as_ref()
        .and_then(|status| get(status, PROGRESSING))
        .and_then(|progressing| progressing.reason.clone());
    let is_paused = deployment.spec.paused == Some(true);
    let noted = match (is_paused, reason.as_deref()) {
        (_, Some(TIMED_OUT)) | (true, Some(PAUSED)) => return,
        (true, _) => condition(PROGRESSING, "Unknown", PAUSED, "Deployment is paused", now),
        (false, Some(PAUSED)) => condition(
            PROGRESSING,
            "Unknown",
            "DeploymentResumed",
            "Deployment is resumed",
            now,
        ),
        (false, _) => return,
    };
    set(deployment.status.get_or_insert_default(), noted);
}

pub(super) fn note_new_set(deployment: &mut Deployment, name: &str, now: Timestamp) {
    if deadline(deployment).is_some() {
        let message = format!("Created new replica set {name:?}");
        let created = condition(PROGRESSING, "True", "NewReplicaSetCreated", &message, now);
        set(deployment.status.get_or_insert_default(), created);
    }
}

/// Starts the clock of the deadline when the controller first sees a rollout under way.
pub(super) fn note_found_set(deployment: &mut Deployment, name: &str, now: Timestamp) {
    let status = deployment.status.get_or_insert_default();
    let is_noted = get(status, PROGRESSING).is_some();
    if deadline(deployment).is_some() && !is_noted {
        let message = format!("Found new replica set {name:?}");
        let found = condition(PROGRESSING, "True", "FoundNewReplicaSet", &message, now);
        set(deployment.status.get_or_insert_default(), found);
    }
}

/// False when the deployment has no deadline, and so no condition to say it with.
pub(super) fn note_create_error(
    deployment: &mut Deployment,
    message: &str,
    now: Timestamp,
) -> bool {
    if deadline(deployment).is_none() {
        return false;
    }
    let failed = condition(PROGRESSING, "False", "ReplicaSetCreateError", message, now);
    set(deployment.status.get_or_insert_default(), failed);
    true
}

fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(kind.into()),
        status: Some(status.into()),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

fn get<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    let conditions = status.conditions.as_deref()?;
    conditions.iter().find(|c| c.type_.as_deref() == Some(kind))
}

/// Puts a condition in its place, unless status and reason are those it already has.
fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    let kind = condition.type_.clone().unwrap_or_default();
    if let Some(current) = get(status, &kind) {
        if current.status == condition.status && current.reason == condition.reason {
            return;
        }
        if current.status == condition.status {
            condition.last_transition_time = current.last_transition_time.clone();
        }
    }
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|c| c.type_ != condition.type_);
    conditions.push(condition);
}

fn remove(status: &mut DeploymentStatus, kind: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|c| c.type_.as_deref() != Some(kind));
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::ReplicaSetStatus;

    use super::super::rolling::tests::deployment;
    use super::*;

    const START: i64 = 1_000_000;

    fn counted(name: &str, size: i32, ready: i32) -> ReplicaSet {
        let mut set = ReplicaSet::default();
        set.metadata.name = Some(name.into());
        set.spec.replicas = Some(size);
        set.status = Some(ReplicaSetStatus {
            replicas: size,
            ready_replicas: Some(ready),
            available_replicas: Some(ready),
            ..Default::default()
        });
        set
    }

    fn rollout(ready: i32, second: i64, before: Option<DeploymentStatus>) -> Rollout {
        let mut deployment = deployment(3, "1", "0");
        deployment.metadata.name = Some("web".into());
        deployment.metadata.generation = Some(1);
        deployment.spec.progress_deadline_seconds = Some(600);
        deployment.status = before;
        Rollout {
            deployment,
            stored_status: Default::default(),
            new: Some(counted("web-1", 3, ready)),
            old: Vec::new(),
            now: Timestamp::from_second(START + second).unwrap(),
        }
    }

    fn progressing(status: &DeploymentStatus) -> (String, String, String) {
        let condition = get(status, PROGRESSING).unwrap().clone();
        (
            condition.status.unwrap(),
            condition.reason.unwrap(),
            condition.message.unwrap(),
        )
    }

    #[test]
    fn a_rollout_is_told_from_its_first_pod_to_its_last() {
        let mut first = rollout(0, 0, None);
        note_new_set(&mut first.deployment, "web-1", first.now);
        first.deployment.status.as_mut().unwrap().updated_replicas = Some(3);
        let status = of_rollout(&first);
        assert_eq!(
            progressing(&status),
            (
                "True".into(),
                "NewReplicaSetCreated".into(),
                "Created new replica set \"web-1\"".into()
            )
        );
        assert_eq!(
            get(&status, AVAILABLE).unwrap().status.as_deref(),
            Some("False")
        );
        assert_eq!(status.unavailable_replicas, Some(3));

        let status = of_rollout(&rollout(1, 5, Some(status)));
        assert_eq!(progressing(&status).1, "ReplicaSetUpdated");
        assert_eq!(
            progressing(&status).2,
            "ReplicaSet \"web-1\" is progressing."
        );
        let condition = get(&status, PROGRESSING).unwrap();
        assert_eq!(
            condition.last_transition_time,
            Some(Time(Timestamp::from_second(START).unwrap()))
        );
        assert_eq!(
            condition.last_update_time,
            Some(Time(Timestamp::from_second(START + 5).unwrap()))
        );

        let status = of_rollout(&rollout(3, 9, Some(status)));
        assert_eq!(
            progressing(&status),
            (
                "True".into(),
                NEW_SET_AVAILABLE.into(),
                "ReplicaSet \"web-1\" has successfully progressed.".into()
            )
        );
        assert_eq!(
            get(&status, AVAILABLE).unwrap().status.as_deref(),
            Some("True")
        );

        // A pod that dies later isn't a rollout.
        let status = of_rollout(&rollout(2, 5000, Some(status)));
        assert_eq!(progressing(&status).1, NEW_SET_AVAILABLE);
        assert_eq!(
            get(&status, AVAILABLE).unwrap().status.as_deref(),
            Some("False")
        );
    }

    #[test]
    fn a_rollout_without_progress_times_out() {
        let status = of_rollout(&rollout(1, 0, None));
        assert_eq!(progressing(&status).1, "ReplicaSetUpdated");
        let waiting = rollout(1, 300, Some(status.clone()));
        assert_eq!(progressing(&of_rollout(&waiting)).1, "ReplicaSetUpdated");
        assert_eq!(
            next_progress_check(&waiting.deployment, waiting.now),
            Next::After(Duration::from_secs(301))
        );
        let late = rollout(1, 601, Some(status));
        let status = of_rollout(&late);
        assert_eq!(
            progressing(&status),
            (
                "False".into(),
                TIMED_OUT.into(),
                "ReplicaSet \"web-1\" has timed out progressing.".into()
            )
        );
    }

    #[test]
    fn nothing_changes_when_nothing_happens() {
        let status = of_rollout(&rollout(3, 0, None));
        let later = of_rollout(&rollout(3, 100, Some(status.clone())));
        assert_eq!(status, later);
    }

    #[test]
    fn pausing_and_resuming_is_noted() {
        let mut rollout = rollout(1, 0, None);
        rollout.deployment.spec.paused = Some(true);
        note_pause(&mut rollout.deployment, rollout.now);
        let status = rollout.deployment.status.clone().unwrap();
        assert_eq!(progressing(&status).1, "DeploymentPaused");
        rollout.deployment.spec.paused = None;
        note_pause(&mut rollout.deployment, rollout.now);
        let status = rollout.deployment.status.clone().unwrap();
        assert_eq!(progressing(&status).1, "DeploymentResumed");
    }
}
