//! Patch: the update loop around the four kinds of patches.

use http::StatusCode;
use serde_json::Value;

use super::Api;
use super::answer::Answer;
use super::call::Call;
use super::decode;
use super::negotiate::media_type;
use super::object::Object;
use super::patch::{self, Patch};
use super::query::FieldValidation;
use super::status::ApiError;
use super::update::{Proposal, Surface};
use crate::resources::FieldError;

impl Api {
    pub(super) async fn patch(&self, call: &Call, body: &[u8]) -> Result<Answer, ApiError> {
        let patch = Patch::read(media_type(call.content_type()), body)?;
        let surface = Surface::of(call);
        let mut warnings = Vec::new();
        if let Patch::Apply(applied) = &patch {
            return self.apply(call, surface, applied).await;
        }
        let validation = call.field_validation()?;
        let found = parking_lot::Mutex::new(Vec::new());
        let stored = self
            .write(call, surface, |current| {
                let shown = shown(call, current);
                let mut object = patch::apply(&patch, &call.resource, &shown)?;
                let unknown = decode::patched(&call.resource, &mut object)?;
                *found.lock() = check_unknown(call, &patch, unknown, validation)?;
                check_name(call, &object)?;
                call.inward(&mut object);
                Ok(Proposal {
                    object,
                    managed: false,
                })
            })
            .await?;
        if validation == FieldValidation::Warn {
            warnings = found.into_inner();
        }
        Answer::written(call, StatusCode::OK, &stored, warnings)
    }

    /// Server-side apply, which creates what is not there.
    async fn apply(
        &self,
        call: &Call,
        surface: Surface,
        applied: &Value,
    ) -> Result<Answer, ApiError> {
        if call.query.text("fieldManager").is_empty() {
            let error = FieldError {
                reason: "FieldValueRequired",
                field: "fieldManager".to_string(),
                message: "Required value: is required for apply patch".to_string(),
            };
            let mut invalid = ApiError::invalid(&call.resource, "", std::slice::from_ref(&error));
            invalid.message = format!(
                "PatchOptions.meta.k8s.io \"\" is invalid: {}: {}",
                error.field, error.message
            );
            return Err(invalid);
        }
        let validation = call.field_validation()?;
        let force = call.query.flag("force");
        let manager = call.field_manager();
        let mut applied = applied.clone();
        let unknown = decode::patched(&call.resource, &mut applied)?;
        let found = check_unknown(call, &Patch::Apply(Value::Null), unknown, validation)?;
        let warnings = match validation {
            FieldValidation::Warn => found,
            _ => Vec::new(),
        };
        if applied.name().is_empty() {
            applied.set_meta("name", call.name.as_str());
        }
        check_name(call, &applied)?;
        loop {
            if self.cache.get(&call.key(&call.name)).is_none() && surface == Surface::Object {
                let object =
                    patch::server_side_apply(&call.resource, None, &applied, &manager, force)?;
                match self.create_object(call, object).await {
                    Err(error) if error.reason == "AlreadyExists" => continue,
                    stored => {
                        let stored = stored?;
                        return Answer::written(call, StatusCode::CREATED, &stored, warnings);
                    }
                }
            }
            let stored = self
                .write(call, surface, |current| {
                    let shown = shown(call, current);
                    let mut object = patch::server_side_apply(
                        &call.resource,
                        Some(&shown),
                        &applied,
                        &manager,
                        force,
                    )?;
                    call.inward(&mut object);
                    Ok(Proposal {
                        object,
                        managed: true,
                    })
                })
                .await?;
            return Answer::written(call, StatusCode::OK, &stored, warnings);
        }
    }
}

/// The stored object as the call's resource shows it.
fn shown(call: &Call, current: &Value) -> Value {
    let mut shown = current.clone();
    if let Some(view) = &call.resource.stored_as {
        (view.from_stored)(&mut shown);
    }
    shown
}

/// A patch does not rename.
fn check_name(call: &Call, object: &Value) -> Result<(), ApiError> {
    if object.name() == call.name {
        return Ok(());
    }
    Err(ApiError::bad_request(format!(
        "the name of the object ({}) does not match the name on the URL ({})",
        object.name(),
        call.name
    )))
}

/// What to warn of; with `Strict`, unknown fields are refused.
fn check_unknown(
    call: &Call,
    patch: &Patch,
    unknown: Vec<String>,
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    let findings: Vec<String> = unknown
        .into_iter()
        .map(|path| format!("unknown field {path:?}"))
        .collect();
    if validation != FieldValidation::Strict || findings.is_empty() {
        return Ok(findings);
    }
    let said = findings.join(", ");
    let document = match patch {
        Patch::Json(document) | Patch::Merge(document) | Patch::Strategic(document) => document,
        Patch::Apply(_) => {
            return Err(ApiError::bad_request(format!(
                "failed to create typed patch object ({}/{}; {}): {said}",
                call.namespace(),
                call.name,
                call.resource.api_version(),
            )));
        }
    };
    let error = FieldError {
        reason: "FieldValueInvalid",
        field: "patch".to_string(),
        message: format!(
            "Invalid value: {:?}: strict decoding error: {said}",
            document.to_string()
        ),
    };
    Err(call.invalid(&call.name, &[error]))
}
