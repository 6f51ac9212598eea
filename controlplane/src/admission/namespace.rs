//! Objects are created in namespaces that exist and stay.

use serde_json::Value;

use super::Request;
use crate::api::object::Object;
use crate::api::status::{ApiError, Details};
use crate::store::Key;

/// # Errors
/// 404 when a new object's namespace does not exist, 403 when it is being deleted.
pub(super) fn exists(request: &Request<'_>) -> Result<(), ApiError> {
    let namespace = request.namespace;
    if namespace.is_empty() || request.old.is_some() {
        return Ok(());
    }
    let key = Key::new("", "namespaces", "", namespace);
    let Some(entry) = request.cache.get(&key) else {
        return Err(no_such_namespace(namespace));
    };
    let object: Value = serde_json::from_slice(&entry.bytes).map_err(ApiError::internal)?;
    if !object.is_terminating() {
        return Ok(());
    }
    let why = format!(
        "unable to create new content in namespace {namespace} because it is being terminated"
    );
    Err(ApiError::forbidden(request.resource, "", &why).with_cause(
        "NamespaceTerminating",
        &format!("namespace {namespace} is being terminated"),
        "metadata.namespace",
    ))
}

fn no_such_namespace(name: &str) -> ApiError {
    ApiError {
        code: 404,
        reason: "NotFound",
        message: format!("namespaces {name:?} not found"),
        details: Some(Box::new(Details {
            name: name.to_string(),
            kind: "namespaces".to_string(),
            ..Details::default()
        })),
        continue_token: None,
    }
}
