//! Fetching images that are not here: the seam between the agent and a registry client.

use std::sync::Arc;

use futures::future::BoxFuture;

use crate::{Credentials, Error, Image, Reference};

/// What to fetch and as whom.
#[derive(Debug, Clone)]
pub struct PullRequest {
    pub reference: Reference,
    /// To be tried in order; without any, anonymously.
    pub credentials: Vec<Credentials>,
}

/// Why an image could not be fetched: the text behind a pod's ErrImagePull.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error(
        "failed to pull image \"{0}\": this node runs with --offline, which forbids fetching it: \
         add it with 'skiff image import'"
    )]
    Offline(Reference),
    #[error(
        "failed to pull image \"{0}\": no registry client: this version of skiff does not fetch \
         from registries: add it with 'skiff image import'"
    )]
    NoRegistryClient(Reference),
    #[error("failed to pull image \"{reference}\": {source}")]
    Store { reference: Reference, source: Error },
}

/// Brings images into the store.
pub trait Puller: Send + Sync + std::fmt::Debug {
    /// Fetches an image, whether or not some version of it is here already.
    fn pull(&self, request: PullRequest) -> BoxFuture<'_, Result<Arc<Image>, PullError>>;
}

/// Fetches nothing, and says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRegistry {
    /// The operator forbids it.
    Offline,
    /// There is nothing to fetch with.
    NoClient,
}

impl Puller for NoRegistry {
    fn pull(&self, request: PullRequest) -> BoxFuture<'_, Result<Arc<Image>, PullError>> {
        let error = match self {
            Self::Offline => PullError::Offline(request.reference),
            Self::NoClient => PullError::NoRegistryClient(request.reference),
        };
        Box::pin(std::future::ready(Err(error)))
    }
}
