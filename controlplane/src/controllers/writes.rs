//! How controllers write, and what they make of a refusal.

use kube::api::{DeleteParams, Preconditions};

/// An API error in the server's own words, as Kubernetes puts it into events.
pub(crate) fn api_message(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Deletes the object with this uid only, whatever has its name by then.
pub(crate) fn only(uid: Option<&str>) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: uid.map(String::from),
            resource_version: None,
        }),
        ..Default::default()
    }
}

/// Nothing is left to do when the object is gone, or another one has its name.
pub(crate) fn unless_gone<T>(result: Result<T, kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        other => other.map(drop),
    }
}
