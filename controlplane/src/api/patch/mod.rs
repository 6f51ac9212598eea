//! Patches: a document of one of four kinds and an object become a new object. Nothing is
//! stored here: the pipeline's update loop calls these with the current object, as often as
//! it must.

mod apply;
mod field_set;
mod json;
mod managers;
mod strategic;
mod typed;

use serde_json::Value;

use super::status::ApiError;
use crate::resources::Resource;
use crate::schema::{Type, schema};

/// What resources without a built-in type take: they have no merge keys.
const DYNAMIC_PATCHES: [&str; 3] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/apply-patch+yaml",
];

/// A patch that has been read.
#[derive(Debug, Clone)]
pub enum Patch {
    /// `application/json-patch+json`
    Json(Value),
    /// `application/merge-patch+json`
    Merge(Value),
    /// `application/strategic-merge-patch+json`
    Strategic(Value),
    /// `application/apply-patch+yaml`: the whole of what its manager wants.
    Apply(Value),
}

/// Who writes, as `managedFields` records it.
#[derive(Debug, Clone)]
pub struct FieldManager {
    /// `fieldManager` of the request, or what comes before the first `/` of its user agent.
    pub name: String,
    /// `status`, `scale`, or empty.
    pub subresource: &'static str,
    pub now: jiff::Timestamp,
}

impl Patch {
    /// Reads a patch's body.
    ///
    /// # Errors
    /// 415 when the media type is no patch's, 400 when the body is not what the type says.
    pub fn read(content_type: &str, body: &[u8]) -> Result<Self, ApiError> {
        let json = |kind: fn(Value) -> Self| {
            serde_json::from_slice(body)
                .map(kind)
                .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))
        };
        match content_type {
            "application/json-patch+json" => json(Self::Json),
            "application/merge-patch+json" => json(Self::Merge),
            "application/strategic-merge-patch+json" => json(Self::Strategic),
            "application/apply-patch+yaml" => serde_yaml_ng::from_slice(body)
                .map(Self::Apply)
                .map_err(|e| ApiError::bad_request(format!("error decoding YAML: {e}"))),
            _ => Err(ApiError::unsupported_media_type(&[
                "application/json-patch+json",
                "application/merge-patch+json",
                "application/apply-patch+yaml",
            ])),
        }
    }
}

/// The object that a JSON, merge or strategic merge patch makes of `current`.
///
/// # Errors
/// 422 or 400 in Kubernetes' words when the patch does not fit the object.
pub fn apply(patch: &Patch, resource: &Resource, current: &Value) -> Result<Value, ApiError> {
    let mut new = current.clone();
    match patch {
        Patch::Json(patch) => json::apply(&mut new, patch)?,
        Patch::Merge(patch) => json_patch::merge(&mut new, patch),
        Patch::Strategic(patch) => match schema().type_of(resource.schema) {
            Type::Any => return Err(ApiError::unsupported_media_type(&DYNAMIC_PATCHES)),
            ty => new = strategic::apply(schema(), &ty, new, patch.clone())?,
        },
        Patch::Apply(_) => {
            return Err(ApiError::bad_request(
                "an apply patch goes through server-side apply",
            ));
        }
    }
    Ok(new)
}

/// The object that server-side apply makes of `live` (`None`: it does not exist yet) and the
/// manager's `applied` configuration, with its `managedFields`.
///
/// # Errors
/// 409 with a cause for each field that another manager owns, unless `force`.
pub fn server_side_apply(
    resource: &Resource,
    live: Option<&Value>,
    applied: &Value,
    manager: &FieldManager,
    force: bool,
) -> Result<Value, ApiError> {
    apply::apply(resource, live, applied, manager, force)
}

/// Records in `new`'s `managedFields` what a create (`old` is `None`), an update or another
/// kind of patch changed, once the object has been applied server-side. Called after defaulting
/// and before validation; time stamps of managers whose fields did not change stay.
pub fn record_update(
    resource: &Resource,
    old: Option<&Value>,
    new: &mut Value,
    manager: &FieldManager,
) {
    apply::record_update(resource, old, new, manager);
}
