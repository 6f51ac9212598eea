//! Why an image could not be fetched: the text behind a pod's ErrImagePull.

use std::sync::Arc;

use crate::registry::RegistryError;
use crate::{Digest, Error, Reference};

/// A pull failed. Cheap to clone, because everyone who waited for it gets it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    #[error(
        "failed to pull image \"{0}\": this node runs with --offline, which forbids fetching it: \
         add it with 'skiff image import'"
    )]
    Offline(Reference),
    #[error("failed to pull and unpack image \"{reference}\": {reason}")]
    Failed {
        reference: Reference,
        reason: Arc<FetchError>,
    },
}

/// What was wrong with the registry, with what it gave, or with the store.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("{0}")]
    Registry(Box<RegistryError>),
    #[error("{0}")]
    Store(Error),
    #[error(
        "{what} is an image manifest of schema 1, which is not supported: push the image again \
         with a tool of this decade"
    )]
    Schema1 { what: String },
    #[error("it is not a container image but {what}")]
    NotAnImage { what: String },
    #[error(
        "layer {layer} is not distributed by the registry ({media_type}, to be had from {from}): \
         such layers are not fetched"
    )]
    ForeignLayer {
        layer: String,
        media_type: String,
        from: String,
    },
    #[error("layer {layer} has the type {media_type}, which can't be unpacked")]
    LayerType { layer: String, media_type: String },
    #[error("{what} is not valid: {reason}")]
    Invalid { what: String, reason: String },
    #[error("{what} has {actual} bytes, not the {expected} that its descriptor says")]
    Size {
        what: String,
        expected: u64,
        actual: u64,
    },
    #[error("{what} broke off at {bytes} of {size} bytes, {tries} times in a row: {reason}")]
    BrokeOff {
        what: String,
        bytes: u64,
        size: u64,
        tries: u32,
        reason: String,
    },
    #[error("the image is for {found}, not for {wanted}")]
    Platform { found: String, wanted: String },
}

impl FetchError {
    pub(super) fn invalid(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Invalid {
            what: what.into(),
            reason: reason.to_string(),
        }
    }

    /// The name of a blob in messages.
    pub(super) fn blob(digest: Digest) -> String {
        format!("layer {digest}")
    }
}

impl From<Error> for FetchError {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

impl From<crate::DigestError> for FetchError {
    fn from(error: crate::DigestError) -> Self {
        Self::Store(error.into())
    }
}

impl From<RegistryError> for FetchError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(Box::new(error))
    }
}
