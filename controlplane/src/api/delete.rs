//! Delete: at once, after a grace period, or when the last finalizer goes.

use http::StatusCode;
use serde_json::{Value, json};

use super::Api;
use super::answer::Answer;
use super::call::{Call, object_of, stored_bytes};
use super::decode;
use super::object::{self, Object};
use super::read::{list_of, selector};
use super::status::{self, ApiError};
use crate::admission;
use crate::cache::Entry;
use crate::resources::{FieldError, Resource};
use crate::store::{CommitError, Expect, Op};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// `DeleteOptions`, from the body or the query.
#[derive(Debug, Clone, Default)]
pub(super) struct DeleteOptions {
    grace: Option<i64>,
    propagation: Option<Propagation>,
    uid: Option<String>,
    version: Option<String>,
    dry_run: bool,
}

/// What happens to the objects that the deleted one owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// What a delete does to an object.
#[derive(Debug)]
enum Plan {
    /// It goes now; this is how it looked.
    Remove(Value),
    /// It stays, marked.
    Mark(Value),
    /// It is on its way out already, and nothing changes.
    Pending,
}

/// How far a delete got.
struct Deleted {
    object: Value,
    gone: bool,
}

impl Api {
    pub(super) async fn delete(&self, call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
        let options = DeleteOptions::read(call, body)?;
        let deleted = self.delete_object(call, &options).await?;
        if deleted.gone && !returns_object(&call.stored) {
            let status = status::success(&call.resource, &call.name, deleted.object.uid());
            return Ok(Answer::json(StatusCode::OK, &status));
        }
        let stored = serde_json::to_vec(&deleted.object).map_err(ApiError::internal)?;
        Answer::object(call, StatusCode::OK, &stored.into())
    }

    /// Deletes the selected objects of a collection. Returns the list of them.
    pub(super) async fn delete_collection(
        &self,
        call: &mut Call,
        body: &[u8],
    ) -> Result<Answer, ApiError> {
        let options = DeleteOptions::read(call, body)?;
        let selector = selector(call)?;
        let shelf = self.cache.shelf(&call.resource.storage_id());
        let mut items = Vec::new();
        for entry in shelf.all(&call.scope()) {
            if !selector.matches(&entry) {
                continue;
            }
            call.name = entry.name().to_string();
            match self.delete_object(call, &options).await {
                Ok(deleted) => items.push(deleted.object),
                // Somebody else was quicker.
                Err(error) if error.reason == "NotFound" => {}
                Err(error) => return Err(error),
            }
        }
        let metadata = json!({"resourceVersion": self.cache.revision().to_string()});
        let list = list_of(call, items, metadata);
        Ok(Answer::json(StatusCode::OK, &list))
    }

    /// Deletes a pod as an eviction does.
    ///
    /// # Errors
    /// As a client sees them.
    pub(super) async fn evict(&self, call: &Call, options: &Value) -> Result<(), ApiError> {
        let options = DeleteOptions::of(call, options)?;
        self.delete_object(call, &options).await.map(|_| ())
    }

    async fn delete_object(
        &self,
        call: &Call,
        options: &DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        let key = call.key(&call.name);
        loop {
            let entry = self.cache.get(&key).ok_or_else(|| call.not_found())?;
            let current = object_of(&entry)?;
            let write = admission::NodeWrite::Delete;
            admission::restrict(&call.user, &call.stored, write, &current)?;
            options.check_preconditions(call, &current)?;
            let now = jiff::Timestamp::now();
            let plan = plan(&call.stored, &current, options, now);
            let (next, op, gone) = match plan {
                Plan::Pending => {
                    return Ok(Deleted {
                        object: current,
                        gone: false,
                    });
                }
                Plan::Mark(next) => {
                    let value = object::encode(&next);
                    (next, Op::Put(value), false)
                }
                Plan::Remove(last) => {
                    let value = object::encode(&last);
                    (last, Op::Delete { last: Some(value) }, true)
                }
            };
            if options.dry_run {
                return Ok(Deleted { object: next, gone });
            }
            if let Some(revision) = self.commit_delete(call, &entry, op).await? {
                let object = super::call::parse(&stored_bytes(&next, revision))?;
                return Ok(Deleted { object, gone });
            }
        }
    }

    /// `None` when somebody else wrote first.
    async fn commit_delete(
        &self,
        call: &Call,
        entry: &Entry,
        op: Op,
    ) -> Result<Option<u64>, ApiError> {
        let expected = Expect::Revision(entry.revision);
        match self.store.commit(entry.key.clone(), expected, op).await {
            Ok(revision) => Ok(Some(revision)),
            Err(CommitError::Conflict { current: Some(_) }) => Ok(None),
            Err(CommitError::Conflict { current: None }) => Err(call.not_found()),
            Err(error) => Err(ApiError::internal(error)),
        }
    }
}

/// What deleting this object means now.
fn plan(
    resource: &Resource,
    current: &Value,
    options: &DeleteOptions,
    now: jiff::Timestamp,
) -> Plan {
    let mut next = current.clone();
    let graceful = match grace(resource, current, options) {
        Grace::Pending => return Plan::Pending,
        Grace::None => false,
        Grace::Set(seconds) => {
            set_grace(&mut next, seconds, now);
            true
        }
    };
    options.set_finalizers(&mut next);
    let held = !next.finalizers().is_empty() || is_held_namespace(resource, &next);
    if held && !graceful {
        mark(&mut next, now);
    }
    if resource.plural == "namespaces" && resource.group.is_empty() && held {
        object::set_at(&mut next, "status.phase", json!("Terminating"));
    }
    let waits = graceful && next.deletion_grace() != Some(0);
    if !held && !waits {
        return Plan::Remove(next);
    }
    if next == *current {
        return Plan::Pending;
    }
    Plan::Mark(next)
}

enum Grace {
    /// The kind knows no grace, or it is over.
    None,
    /// A grace period runs, and this request does not shorten it.
    Pending,
    Set(i64),
}

fn grace(resource: &Resource, current: &Value, options: &DeleteOptions) -> Grace {
    // Negative values are treated as one second.
    let asked = options.grace.map(|g| if g < 0 { 1 } else { g });
    if current.is_terminating() {
        return match (current.deletion_grace(), asked) {
            (None | Some(0), _) => Grace::None,
            (Some(running), Some(asked)) if asked < running => Grace::Set(asked),
            (Some(_), _) => Grace::Pending,
        };
    }
    let Some(default) = (resource.hooks.default_grace_period)(current) else {
        return Grace::None;
    };
    let is_pod = resource.plural == "pods" && resource.group.is_empty();
    // A pod that nobody runs, or that has ended, has nothing to wait for.
    let idle = object::at(current, "spec.nodeName")
        .and_then(Value::as_str)
        .is_none_or(str::is_empty)
        || matches!(
            object::at(current, "status.phase").and_then(Value::as_str),
            Some("Failed" | "Succeeded")
        );
    let seconds = if is_pod && idle {
        0
    } else {
        asked.unwrap_or(default)
    };
    Grace::Set(if seconds < 0 { 1 } else { seconds })
}

/// Sets the time at which the grace period ends, or moves it closer.
fn set_grace(next: &mut Value, seconds: i64, now: jiff::Timestamp) {
    let running = next.deletion_grace().unwrap_or_default();
    let asked_at = next
        .meta_text("deletionTimestamp")
        .parse::<jiff::Timestamp>()
        .ok()
        .map(|ends| ends - jiff::SignedDuration::from_secs(running));
    if asked_at.is_none() && next.generation() > 0 {
        next.set_meta("generation", next.generation() + 1);
    }
    let ends = asked_at.unwrap_or(now) + jiff::SignedDuration::from_secs(seconds);
    next.set_meta("deletionTimestamp", object::timestamp(ends));
    next.set_meta("deletionGracePeriodSeconds", seconds);
}

/// Marks an object that only its finalizers keep.
fn mark(next: &mut Value, now: jiff::Timestamp) {
    if next.deletion_grace().is_none() && next.generation() > 0 {
        next.set_meta("generation", next.generation() + 1);
    }
    if !next.is_terminating() {
        next.set_meta("deletionTimestamp", object::timestamp(now));
    }
    next.set_meta("deletionGracePeriodSeconds", 0);
}

fn is_held_namespace(resource: &Resource, object: &Value) -> bool {
    resource.plural == "namespaces"
        && resource.group.is_empty()
        && object::at(object, "spec.finalizers")
            .and_then(Value::as_array)
            .is_some_and(|finalizers| !finalizers.is_empty())
}

/// Kinds whose delete answers with the object as it went, instead of a Status.
fn returns_object(resource: &Resource) -> bool {
    resource.group.is_empty()
        && matches!(
            resource.plural,
            "pods"
                | "services"
                | "serviceaccounts"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "podtemplates"
                | "limitranges"
                | "resourcequotas"
        )
}

impl DeleteOptions {
    fn read(call: &Call, body: &[u8]) -> Result<Self, ApiError> {
        let body = if body.iter().all(u8::is_ascii_whitespace) {
            Value::Null
        } else {
            decode::any(call.content_type(), body)?
        };
        Self::of(call, &body)
    }

    /// The options of a body; what it leaves out, the query may say.
    fn of(call: &Call, body: &Value) -> Result<Self, ApiError> {
        let number = |field: &str| body.get(field).and_then(Value::as_i64);
        let text = |path: &str| {
            let value = object::at(body, path).and_then(Value::as_str);
            value.map(str::to_string)
        };
        let grace = match number("gracePeriodSeconds") {
            Some(grace) => Some(grace),
            None => call.query.number("gracePeriodSeconds")?,
        };
        let policy = text("propagationPolicy");
        let policy = policy.as_deref().or(call.query.get("propagationPolicy"));
        let orphan = body
            .get("orphanDependents")
            .and_then(Value::as_bool)
            .or(call.query.optional_flag("orphanDependents"));
        let propagation = match (policy, orphan) {
            (Some(policy), _) => Some(Propagation::parse(call, policy)?),
            (None, Some(true)) => Some(Propagation::Orphan),
            (None, Some(false)) => Some(Propagation::Background),
            (None, None) => None,
        };
        let dry_run = body
            .get("dryRun")
            .and_then(Value::as_array)
            .is_some_and(|all| all.contains(&json!("All")));
        Ok(Self {
            grace,
            propagation,
            uid: text("preconditions.uid"),
            version: text("preconditions.resourceVersion"),
            dry_run: dry_run || call.dry_run()?,
        })
    }

    fn check_preconditions(&self, call: &Call, current: &Value) -> Result<(), ApiError> {
        let refuse = |why: String| Err(ApiError::conflict(&call.resource, &call.name, &why));
        match &self.uid {
            Some(uid) if uid != current.uid() => {
                return refuse(format!(
                    "the UID in the precondition ({uid}) does not match the UID in record ({}). The object might have been deleted and then recreated",
                    current.uid()
                ));
            }
            _ => {}
        }
        match &self.version {
            Some(version) if version != current.resource_version() => refuse(format!(
                "the ResourceVersion in the precondition ({version}) does not match the ResourceVersion in record ({}). The object might have been modified",
                current.resource_version()
            )),
            _ => Ok(()),
        }
    }

    /// The garbage collector's finalizers, as the propagation policy wants them; without a
    /// policy those that are there stay.
    fn set_finalizers(&self, object: &mut Value) {
        let Some(propagation) = self.propagation else {
            return;
        };
        let mut finalizers: Vec<String> = object
            .finalizers()
            .into_iter()
            .filter(|f| *f != ORPHAN && *f != FOREGROUND)
            .map(str::to_string)
            .collect();
        match propagation {
            Propagation::Orphan => finalizers.push(ORPHAN.to_string()),
            Propagation::Foreground => finalizers.push(FOREGROUND.to_string()),
            Propagation::Background => {}
        }
        if finalizers.is_empty() {
            object.remove_meta("finalizers");
        } else {
            object.set_meta("finalizers", finalizers);
        }
    }
}

impl Propagation {
    fn parse(call: &Call, text: &str) -> Result<Self, ApiError> {
        match text {
            "Orphan" => Ok(Self::Orphan),
            "Background" => Ok(Self::Background),
            "Foreground" => Ok(Self::Foreground),
            other => {
                let error = FieldError {
                    reason: "FieldValueNotSupported",
                    field: "propagationPolicy".to_string(),
                    message: format!(
                        "Unsupported value: {other:?}: supported values: \"Background\", \"Foreground\", \"Orphan\""
                    ),
                };
                let mut invalid = call.invalid("", std::slice::from_ref(&error));
                invalid.message = format!(
                    "DeleteOptions.meta.k8s.io \"\" is invalid: {}: {}",
                    error.field, error.message
                );
                Err(invalid)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn resource(plural: &str) -> Resource {
        let registry = crate::resources::registry();
        let group = if plural == "deployments" { "apps" } else { "" };
        let found = registry.get(group, "v1", plural);
        (**found.expect("declared")).clone()
    }

    fn pod(node: &str, phase: &str) -> Value {
        json!({
            "kind": "Pod",
            "metadata": {"name": "p", "generation": 1},
            "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30},
            "status": {"phase": phase},
        })
    }

    fn deleted(plural: &str, object: &Value, options: &DeleteOptions) -> Plan {
        plan(&resource(plural), object, options, NOW.parse().unwrap())
    }

    fn grace(seconds: i64) -> DeleteOptions {
        DeleteOptions {
            grace: Some(seconds),
            ..DeleteOptions::default()
        }
    }

    fn propagation(propagation: Propagation) -> DeleteOptions {
        DeleteOptions {
            propagation: Some(propagation),
            ..DeleteOptions::default()
        }
    }

    fn marked(plan: Plan) -> Value {
        match plan {
            Plan::Mark(object) => object,
            other => panic!("not marked: {other:?}"),
        }
    }

    #[test]
    fn a_running_pod_gets_its_grace_and_no_more() {
        let running = pod("n", "Running");
        let object = marked(deleted("pods", &running, &DeleteOptions::default()));
        assert_eq!(object.deletion_grace(), Some(30));
        assert_eq!(
            object.meta_text("deletionTimestamp"),
            "2026-01-01T00:00:30Z"
        );
        assert_eq!(object.generation(), 2);

        let again = deleted("pods", &object, &DeleteOptions::default());
        assert!(matches!(again, Plan::Pending));
        assert!(matches!(
            deleted("pods", &object, &grace(60)),
            Plan::Pending
        ));
        let sooner = marked(deleted("pods", &object, &grace(5)));
        assert_eq!(sooner.deletion_grace(), Some(5));
        assert_eq!(
            sooner.meta_text("deletionTimestamp"),
            "2026-01-01T00:00:05Z"
        );
        assert_eq!(sooner.generation(), 2);
        assert!(matches!(
            deleted("pods", &sooner, &grace(0)),
            Plan::Remove(_)
        ));
    }

    #[test]
    fn a_pod_that_nobody_runs_goes_at_once() {
        let options = DeleteOptions::default();
        for idle in [
            pod("", "Pending"),
            pod("n", "Succeeded"),
            pod("n", "Failed"),
        ] {
            let Plan::Remove(last) = deleted("pods", &idle, &options) else {
                panic!("not removed");
            };
            assert_eq!(last.deletion_grace(), Some(0));
        }
        let forced = deleted("pods", &pod("n", "Running"), &grace(0));
        assert!(matches!(forced, Plan::Remove(_)));
        // Negative values count as one second.
        let object = marked(deleted("pods", &pod("n", "Running"), &grace(-1)));
        assert_eq!(object.deletion_grace(), Some(1));
    }

    #[test]
    fn finalizers_keep_what_has_no_grace_left() {
        let mut held = pod("n", "Running");
        held.set_meta("finalizers", json!(["example.com/x"]));
        let object = marked(deleted("pods", &held, &grace(0)));
        assert_eq!(object.deletion_grace(), Some(0));
        assert!(matches!(deleted("pods", &object, &grace(0)), Plan::Pending));
    }

    #[test]
    fn dependents_are_dealt_with_first_where_asked() {
        let deployment = json!({"kind": "Deployment", "metadata": {"name": "d", "generation": 3}});
        let plain = deleted("deployments", &deployment, &DeleteOptions::default());
        assert!(matches!(plain, Plan::Remove(_)));
        let background = propagation(Propagation::Background);
        let options = propagation(Propagation::Foreground);
        let object = marked(deleted("deployments", &deployment, &options));
        assert_eq!(object.finalizers(), [FOREGROUND]);
        assert_eq!((object.deletion_grace(), object.generation()), (Some(0), 4));
        let orphan = marked(deleted(
            "deployments",
            &object,
            &propagation(Propagation::Orphan),
        ));
        assert_eq!(orphan.finalizers(), [ORPHAN]);
        let changed_mind = deleted("deployments", &object, &background);
        assert!(matches!(changed_mind, Plan::Remove(_)));
    }

    #[test]
    fn a_namespace_waits_for_its_content() {
        let namespace = json!({
            "kind": "Namespace", "metadata": {"name": "n"}, "spec": {"finalizers": ["kubernetes"]},
        });
        let object = marked(deleted("namespaces", &namespace, &DeleteOptions::default()));
        assert_eq!(object["status"]["phase"], "Terminating");
        let mut emptied = object;
        emptied["spec"]["finalizers"] = json!([]);
        let options = DeleteOptions::default();
        assert!(matches!(
            deleted("namespaces", &emptied, &options),
            Plan::Remove(_)
        ));
    }
}
