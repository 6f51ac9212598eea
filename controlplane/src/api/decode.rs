//! Request bodies become objects of the resource's kind.

use serde_json::{Map, Value};

use super::negotiate::media_type;
use super::object::Object;
use super::query::FieldValidation;
use super::status::ApiError;
use crate::resources::Resource;
use crate::schema::{self, protobuf};

/// The largest body that is read, as in Kubernetes.
pub(super) const LIMIT: usize = 3 << 20;

const SUPPORTED: [&str; 3] = ["application/json", "application/yaml", protobuf::MEDIA_TYPE];

/// An object out of a body, and what to warn its sender of.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) object: Value,
    pub(super) warnings: Vec<String>,
}

/// Reads a body of JSON or YAML as an object of the resource's kind: the right `apiVersion` and
/// `kind`, fields of the right types, and none that the kind does not have.
///
/// # Errors
/// 415 for other media types, 400 for a body that is no such object.
pub(super) fn object(
    resource: &Resource,
    content_type: &str,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let (value, duplicates) = syntax(resource, content_type, body)?;
    check(resource, value, duplicates, validation)
}

/// Brings an object that was put together from a stored one and a patch to its kind's
/// structure. Returns its unknown fields.
///
/// # Errors
/// 400 when a value has a wrong type.
pub(super) fn patched(resource: &Resource, object: &mut Value) -> Result<Vec<String>, ApiError> {
    expect_kind(resource, object)?;
    conform(resource, object)
}

/// Reads a body of JSON or YAML as some value.
///
/// # Errors
/// 415 for other media types, 400 for malformed ones.
pub(super) fn any(content_type: &str, body: &[u8]) -> Result<Value, ApiError> {
    match media_type(content_type) {
        "" | "application/json" => {
            serde_json::from_slice(body).map_err(|e| ApiError::bad_request(e.to_string()))
        }
        "application/yaml" => {
            serde_yaml_ng::from_slice(body).map_err(|e| ApiError::bad_request(e.to_string()))
        }
        protobuf::MEDIA_TYPE => {
            schema::decode_protobuf(body).map_err(|e| ApiError::bad_request(e.to_string()))
        }
        _ => Err(ApiError::unsupported_media_type(&SUPPORTED)),
    }
}

fn syntax(
    resource: &Resource,
    content_type: &str,
    body: &[u8],
) -> Result<(Value, Vec<String>), ApiError> {
    let unrecognized = |why: String| {
        ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: {why}",
            resource.kind
        ))
    };
    match media_type(content_type) {
        "" | "application/json" => schema::decode(body)
            .map(|decoded| (decoded.value, decoded.duplicates))
            .map_err(|e| unrecognized(e.to_string())),
        "application/yaml" => serde_yaml_ng::from_slice(body)
            .map(|value| (value, Vec::new()))
            .map_err(|e| unrecognized(e.to_string())),
        protobuf::MEDIA_TYPE => schema::decode_protobuf(body)
            .map(|value| (value, Vec::new()))
            .map_err(|e| ApiError::bad_request(e.to_string())),
        _ => Err(ApiError::unsupported_media_type(&SUPPORTED)),
    }
}

fn check(
    resource: &Resource,
    mut object: Value,
    duplicates: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    expect_kind(resource, &mut object)?;
    let unknown = conform(resource, &mut object)?;
    let unknown = unknown
        .into_iter()
        .map(|path| format!("unknown field {path:?}"));
    let findings: Vec<String> = duplicates.into_iter().chain(unknown).collect();
    if validation == FieldValidation::Strict && !findings.is_empty() {
        return Err(ApiError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: strict decoding error: {}",
            findings.join(", "),
            kind = resource.kind,
            version = resource.version,
        )));
    }
    let warnings = match validation {
        FieldValidation::Warn => findings,
        _ => Vec::new(),
    };
    Ok(Decoded { object, warnings })
}

/// Fills in `apiVersion` and `kind`, or refuses others.
fn expect_kind(resource: &Resource, object: &mut Value) -> Result<(), ApiError> {
    let Some(fields) = object.as_object_mut() else {
        return Err(ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: json: cannot unmarshal into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
            resource.kind
        )));
    };
    let api_version = resource.api_version();
    let given = |fields: &Map<String, Value>, name: &str| {
        fields
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_string()
    };
    let (version, kind) = (given(fields, "apiVersion"), given(fields, "kind"));
    if !kind.is_empty() && kind != resource.kind {
        return Err(ApiError::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}: converting ({version}.{kind}) to ({api_version}.{}): unknown conversion",
            version.rsplit('/').next().unwrap_or_default(),
            resource.kind,
            resource.kind,
        )));
    }
    if !version.is_empty() && version != api_version {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({version}) does not match the expected API version ({api_version})"
        )));
    }
    fields.insert("apiVersion".to_string(), api_version.into());
    fields.insert("kind".to_string(), resource.kind.into());
    object.metadata_mut();
    Ok(())
}

fn conform(resource: &Resource, object: &mut Value) -> Result<Vec<String>, ApiError> {
    schema::conform(resource.schema, object).map_err(|why| {
        ApiError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {why}",
            kind = resource.kind,
            version = resource.version
        ))
    })
}
