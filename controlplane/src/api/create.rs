//! Create: a body becomes a stored object.

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::Api;
use super::answer::Answer;
use super::call::{Call, stored_bytes};
use super::decode;
use super::names;
use super::object::{self, Object};
use super::patch;
use super::status::ApiError;
use crate::admission;
use crate::allocation::Reservation;
use crate::resources::{FieldError, Resource};
use crate::store::{CommitError, Expect, Key, Op};

/// How often a generated name that is taken is made up anew.
const GENERATED_NAMES: usize = 8;
/// How long a pod in a new namespace waits for the namespace's service account.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(1);

impl Api {
    pub(super) async fn create(&self, call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
        let validation = call.field_validation()?;
        let decoded = decode::object(&call.resource, call.content_type(), body, validation)?;
        let stored = self.create_object(call, decoded.object).await?;
        Answer::written(call, StatusCode::CREATED, &stored, decoded.warnings)
    }

    /// Creates an object of the call's resource. Returns it as it is stored.
    ///
    /// # Errors
    /// As a client sees them.
    pub(super) async fn create_object(
        &self,
        call: &Call,
        mut object: Value,
    ) -> Result<Bytes, ApiError> {
        check_namespace(call, &mut object)?;
        if !object.resource_version().is_empty() {
            return Err(ApiError::internal_message(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        call.inward(&mut object);
        let generated = object.name().is_empty() && !object.meta_text("generateName").is_empty();
        let mut tries = if generated { GENERATED_NAMES } else { 1 };
        loop {
            tries -= 1;
            let created = self.try_create(call, object.clone(), generated).await;
            match created {
                Err(error) if error.reason == "AlreadyExists" && tries > 0 => {}
                created => return created,
            }
        }
    }

    async fn try_create(
        &self,
        call: &Call,
        mut object: Value,
        generated: bool,
    ) -> Result<Bytes, ApiError> {
        if generated {
            let name = names::generate(object.meta_text("generateName"));
            object.set_meta("name", name);
        }
        let resource = &*call.stored;
        let write = admission::NodeWrite::Create;
        admission::restrict(&call.user, resource, write, &object)?;
        fill_system_metadata(resource, &mut object);
        (resource.hooks.default)(&mut object);
        let request = admission::Request {
            resource,
            user: &call.user,
            namespace: call.namespace(),
            old: None,
            cache: &self.cache,
            tolerations: self.settings.tolerations,
        };
        if let Some(account) = admission::awaits(&request, &object) {
            self.appearance(&account).await;
        }
        admission::admit(&request, &mut object)?;
        (resource.hooks.prepare_create)(&mut object);
        let name = object.name().to_string();
        let errors = validate(resource, &object);
        if !errors.is_empty() {
            return Err(call.invalid(&name, &errors));
        }
        let reservation = self.allocate(call, None, &mut object)?;
        if !object.is_managed() {
            patch::record_update(resource, None, &mut object, &call.field_manager());
        }
        self.store_new(call, &name, object, reservation).await
    }

    /// Waits a moment for an object that somebody is about to create.
    async fn appearance(&self, key: &Key) {
        let shelf = self.cache.shelf(key.resource());
        let mut changes = shelf.changes();
        let appeared =
            async { while shelf.get(key).is_none() && changes.changed().await.is_ok() {} };
        // Whether it came in time, the caller sees.
        let _ = tokio::time::timeout(PATIENCE, appeared).await;
    }

    async fn store_new(
        &self,
        call: &Call,
        name: &str,
        object: Value,
        reservation: Option<Reservation>,
    ) -> Result<Bytes, ApiError> {
        let key = call.key(name);
        if call.dry_run()? {
            return match self.cache.get(&key) {
                Some(_) => Err(ApiError::already_exists(&call.resource, name)),
                None => serde_json::to_vec(&object)
                    .map(Bytes::from)
                    .map_err(ApiError::internal),
            };
        }
        let value = object::encode(&object);
        let op = Op::Put(value);
        match self.commit(key, Expect::Absent, op, reservation).await {
            Ok(revision) => Ok(stored_bytes(&object, revision)),
            Err(CommitError::Conflict { .. }) => {
                Err(ApiError::already_exists(&call.resource, name))
            }
            Err(error) => Err(ApiError::internal(error)),
        }
    }
}

/// The namespace of the path is the object's.
fn check_namespace(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    if !call.resource.namespaced {
        object.remove_meta("namespace");
        return Ok(());
    }
    let Some(namespace) = &call.namespace else {
        return Err(ApiError::bad_request(
            "an empty namespace may not be set during creation",
        ));
    };
    if !object.namespace().is_empty() && object.namespace() != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    object.set_meta("namespace", namespace.as_str());
    Ok(())
}

/// What the server alone decides of a new object.
pub(super) fn fill_system_metadata(resource: &Resource, object: &mut Value) {
    for field in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
        "resourceVersion",
    ] {
        object.remove_meta(field);
    }
    if resource.has_generation {
        object.set_meta("generation", 1);
    }
    object.set_meta("uid", uuid::Uuid::new_v4().to_string());
    object.set_meta(
        "creationTimestamp",
        object::timestamp(jiff::Timestamp::now()),
    );
}

fn validate(resource: &Resource, object: &Value) -> Vec<FieldError> {
    let name = object.name();
    let mut errors = if name.is_empty() {
        vec![FieldError {
            reason: "FieldValueRequired",
            field: "metadata.name".to_string(),
            message: "Required value: name or generateName is required".to_string(),
        }]
    } else {
        names::check(resource, name)
    };
    errors.extend((resource.hooks.validate)(object));
    errors
}

trait Managed {
    fn is_managed(&self) -> bool;
}

impl Managed for Value {
    /// Whether server-side apply has recorded who owns which field already.
    fn is_managed(&self) -> bool {
        self.metadata()
            .and_then(|m| m.get("managedFields"))
            .is_some_and(|fields| fields != &json!([]))
    }
}
