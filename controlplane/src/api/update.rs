//! Updates: read, change, check, and write if nobody else wrote in between; else once more.
//!
//! Replace, every kind of patch and the subresources that write differ only in how they make a
//! [`Proposal`] out of the present object.

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use super::Api;
use super::answer::Answer;
use super::call::{Call, object_of, stored_bytes};
use super::decode;
use super::object::{self, Object};
use super::patch;
use super::status::ApiError;
use crate::admission;
use crate::allocation::Reservation;
use crate::cache::Entry;
use crate::resources::{FieldError, Resource};
use crate::store::{CommitError, Expect, Key, Op};

/// How often a write that asked for no certain version is tried against newer ones.
const TRIES: usize = 64;

/// Which rules apply to a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Surface {
    /// The main resource: everything but status.
    Object,
    /// The status subresource: status, and the metadata that people may set.
    Status,
    /// The approval subresource: the conditions that approve or deny.
    Approval,
    /// A change that the server itself makes (binding, finalizers): nothing is filled in or
    /// checked.
    Internal,
}

impl Surface {
    /// The surface that a client's request works on.
    pub(super) fn of(call: &Call) -> Self {
        match call.subresource.as_str() {
            "status" => Self::Status,
            "approval" => Self::Approval,
            _ => Self::Object,
        }
    }
}

/// What the present object should become.
pub(super) struct Proposal {
    /// As the storing resource has it.
    pub object: Value,
    /// Whether `managedFields` are already as they should be (server-side apply).
    pub managed: bool,
}

/// What is stored next, with what it takes.
struct Next {
    object: Value,
    reservation: Option<Reservation>,
}

impl Api {
    pub(super) async fn update(&self, call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
        let validation = call.field_validation()?;
        let decoded = decode::object(&call.resource, call.content_type(), body, validation)?;
        let mut object = decoded.object;
        check_addressed(call, &mut object)?;
        let surface = Surface::of(call);
        if !self.exists(call) && surface == Surface::Object && creates_on_update(&call.stored) {
            let stored = self.create_object(call, object).await?;
            return Answer::written(call, StatusCode::CREATED, &stored, decoded.warnings);
        }
        call.inward(&mut object);
        let stored = self
            .write(call, surface, |_| {
                Ok(Proposal {
                    object: object.clone(),
                    managed: false,
                })
            })
            .await?;
        Answer::written(call, StatusCode::OK, &stored, decoded.warnings)
    }

    fn exists(&self, call: &Call) -> bool {
        self.cache.get(&call.key(&call.name)).is_some()
    }

    /// Changes the call's object, as often as it takes. Returns it as it is stored then.
    ///
    /// # Errors
    /// As a client sees them; 409 when the proposal names a version that is no longer current.
    pub(super) async fn write(
        &self,
        call: &Call,
        surface: Surface,
        propose: impl Fn(&Value) -> Result<Proposal, ApiError> + Send,
    ) -> Result<Bytes, ApiError> {
        let key = call.key(&call.name);
        for _ in 0..TRIES {
            let entry = self.cache.get(&key).ok_or_else(|| call.not_found())?;
            let current = object_of(&entry)?;
            let write = admission::NodeWrite::Update;
            admission::restrict(&call.user, &call.stored, write, &current)?;
            let proposal = propose(&current)?;
            check_preconditions(call, &current, &proposal.object)?;
            let next = self.finish(call, surface, &current, proposal)?;
            if same(&next.object, &current) {
                return Ok(entry.bytes.clone());
            }
            if let Some(stored) = self.put(call, &key, &entry, &current, next).await? {
                return Ok(stored);
            }
        }
        Err(ApiError::modified(&call.resource, &call.name))
    }

    /// Stores `next`, or removes the object when this change was the last thing it waited for.
    /// `None` when somebody else wrote first.
    async fn put(
        &self,
        call: &Call,
        key: &Key,
        entry: &Entry,
        current: &Value,
        next: Next,
    ) -> Result<Option<Bytes>, ApiError> {
        let Next {
            object: next,
            reservation,
        } = next;
        if call.dry_run()? {
            return Ok(Some(stored_bytes(&next, entry.revision)));
        }
        let value = object::encode(&next);
        let op = if is_released(current, &next) {
            Op::Delete { last: Some(value) }
        } else {
            Op::Put(value)
        };
        let expected = Expect::Revision(entry.revision);
        match self.commit(key.clone(), expected, op, reservation).await {
            Ok(revision) => Ok(Some(stored_bytes(&next, revision))),
            Err(CommitError::Conflict { current: Some(_) }) => Ok(None),
            Err(CommitError::Conflict { current: None }) => Err(call.not_found()),
            Err(error) => Err(ApiError::internal(error)),
        }
    }

    /// Brings a proposal into the form that may be stored.
    fn finish(
        &self,
        call: &Call,
        surface: Surface,
        current: &Value,
        proposal: Proposal,
    ) -> Result<Next, ApiError> {
        let resource = &*call.stored;
        let mut next = proposal.object;
        let mut reservation = None;
        match surface {
            Surface::Internal => {
                next.set_meta("resourceVersion", current.resource_version());
                return Ok(Next {
                    object: next,
                    reservation,
                });
            }
            Surface::Status | Surface::Approval => {
                next = with_status(current, &next);
                keep_system_metadata(&mut next, current);
                (resource.hooks.default)(&mut next);
                admission::restrict_change(&call.user, resource, current, &next)?;
                if resource.has_approval {
                    self.settle_approval(call, surface, &mut next, current)?;
                }
                let errors = (resource.hooks.validate_status)(&next);
                if !errors.is_empty() {
                    return Err(call.invalid(&call.name, &errors));
                }
            }
            Surface::Object => {
                keep_system_metadata(&mut next, current);
                (resource.hooks.default)(&mut next);
                admission::restrict_change(&call.user, resource, current, &next)?;
                let request = admission::Request {
                    resource,
                    user: &call.user,
                    namespace: call.namespace(),
                    old: Some(current),
                    cache: &self.cache,
                    tolerations: self.settings.tolerations,
                };
                admission::admit(&request, &mut next)?;
                (resource.hooks.prepare_update)(&mut next, current);
                count_generation(resource, &mut next, current);
                let mut errors = immutable_metadata(&next, current);
                errors.extend((resource.hooks.validate)(&next));
                errors.extend((resource.hooks.validate_update)(&next, current));
                if !errors.is_empty() {
                    return Err(call.invalid(&call.name, &errors));
                }
                reservation = self.allocate(call, Some(current), &mut next)?;
            }
        }
        if !proposal.managed {
            patch::record_update(resource, Some(current), &mut next, &call.field_manager());
        }
        Ok(Next {
            object: next,
            reservation,
        })
    }
}

/// The body's name and namespace are those of the path.
pub(super) fn check_addressed(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    if object.name().is_empty() {
        return Err(ApiError::bad_request("name must be provided"));
    }
    if object.name() != call.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({})",
            object.name(),
            call.name
        )));
    }
    if call.namespace.is_none() {
        object.remove_meta("namespace");
        return Ok(());
    }
    if !object.namespace().is_empty() && object.namespace() != call.namespace() {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    object.set_meta("namespace", call.namespace());
    Ok(())
}

/// Kinds whose writers need not know whether the object exists.
fn creates_on_update(resource: &Resource) -> bool {
    matches!(
        (resource.group, resource.plural),
        (
            "",
            "endpoints" | "events" | "limitranges" | "resourcequotas"
        ) | ("coordination.k8s.io", "leases")
            | ("rbac.authorization.k8s.io", _)
    )
}

/// A version or a uid that the writer names must be the present one.
fn check_preconditions(call: &Call, current: &Value, next: &Value) -> Result<(), ApiError> {
    let (resource, name) = (&call.resource, &call.name);
    let version = next.resource_version();
    if !version.is_empty() && version != "0" && version != current.resource_version() {
        return Err(ApiError::modified(resource, name));
    }
    let uid = next.uid();
    if !uid.is_empty() && uid != current.uid() {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            current.uid()
        );
        return Err(ApiError::conflict(resource, name, &why));
    }
    Ok(())
}

/// What no writer of an existing object decides.
fn keep_system_metadata(next: &mut Value, current: &Value) {
    let (Some(next), Some(current)) = (next.metadata_mut(), current.metadata()) else {
        return;
    };
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ] {
        match current.get(field) {
            Some(value) => next.insert(field.to_string(), value.clone()),
            None => next.remove(field),
        };
    }
    // A writer that knows nothing of managed fields does not take them away.
    if let (false, Some(fields)) = (
        next.contains_key("managedFields"),
        current.get("managedFields"),
    ) {
        next.insert("managedFields".to_string(), fields.clone());
    }
}

/// The present object with what the status subresource may change.
fn with_status(current: &Value, proposed: &Value) -> Value {
    let mut next = current.clone();
    object::carry_over(&mut next, proposed, "status");
    if let (Some(to), Some(from)) = (next.metadata_mut(), proposed.metadata()) {
        for field in ["labels", "annotations", "finalizers", "managedFields"] {
            match from.get(field) {
                Some(value) => to.insert(field.to_string(), value.clone()),
                None => to.remove(field),
            };
        }
    }
    next
}

/// The generation counts changes of what is wanted.
fn count_generation(resource: &Resource, next: &mut Value, current: &Value) {
    if !resource.has_generation {
        return;
    }
    let wanted = |object: &Value| {
        object.as_object().map(|fields| {
            fields
                .iter()
                .filter(|(name, _)| {
                    !matches!(name.as_str(), "metadata" | "status" | "apiVersion" | "kind")
                })
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect::<Vec<_>>()
        })
    };
    if wanted(next) != wanted(current) {
        next.set_meta("generation", current.generation() + 1);
    }
}

fn immutable_metadata(next: &Value, current: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let added: Vec<_> = next
        .finalizers()
        .into_iter()
        .filter(|f| !current.finalizers().contains(f))
        .map(str::to_string)
        .collect();
    if current.is_terminating() && !added.is_empty() {
        errors.push(FieldError {
            reason: "FieldValueForbidden",
            field: "metadata.finalizers".to_string(),
            message: format!(
                "Forbidden: no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>().join(", ")
            ),
        });
    }
    errors
}

/// Whether nothing keeps a terminating object any more.
fn is_released(current: &Value, next: &Value) -> bool {
    let held = object::at(next, "spec.finalizers")
        .and_then(Value::as_array)
        .is_some_and(|finalizers| !finalizers.is_empty());
    next.is_terminating()
        && next.finalizers().is_empty()
        && !(next["kind"] == "Namespace" && held)
        && current.deletion_grace().unwrap_or_default() == 0
}

/// Whether a write would change nothing but the times in `managedFields`.
fn same(next: &Value, current: &Value) -> bool {
    let without_managed = |object: &Value| {
        let mut object = object.clone();
        object.remove_meta("managedFields");
        object
    };
    let managers = |object: &Value| -> Vec<Value> {
        let list = object.metadata().and_then(|m| m.get("managedFields"));
        let list = list.and_then(Value::as_array).cloned().unwrap_or_default();
        list.into_iter()
            .map(|mut manager| {
                if let Some(manager) = manager.as_object_mut() {
                    manager.remove("time");
                }
                manager
            })
            .collect()
    };
    next == current
        || (managers(next) == managers(current)
            && without_managed(next) == without_managed(current))
}
