//! Fetching images that are not here: the seam between the agent and registries.
//!
//! ```text
//! name -> manifest (index, manifest, configuration)          what the image is made of
//!      -> layers that are missing, three at a time
//!         download -> | chunks | -> unpack, in a staging directory for each layer
//!      -> commit of all of them together, under the image's name
//! ```
//!
//! What several want at the same time is done once: a pull of the same image with the same
//! credentials is joined ([`flight`]), one with others waits for its turn at the image and then
//! finds everything here, and a layer that two images have is fetched for both. Between processes
//! there are the turns (`store::turn`).
//!
//! A pull that is dropped stops, unless others wait for it too, and what it staged is removed.

mod download;
mod error;
mod feed;
mod flight;
mod layers;
mod manifest;
mod progress;
mod registry;

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;

pub use error::{FetchError, PullError};
pub use progress::{LayerStage, Observer, PullEvent};
pub use registry::RegistryPuller;

use crate::registry::Outages;
use crate::{Credentials, Image, Platform, Reference};

/// What to fetch and as whom.
#[derive(Clone)]
pub struct PullRequest {
    pub reference: Reference,
    /// To be tried in order; without any, anonymously.
    pub credentials: Vec<Credentials>,
    /// Instead of the host's.
    pub platform: Option<Platform>,
    /// Is told how the pull goes on. One that joins another pull hears only of its end.
    pub observer: Option<Observer>,
}

impl PullRequest {
    /// For the host's platform, with nobody watching.
    pub fn new(reference: Reference, credentials: Vec<Credentials>) -> Self {
        Self {
            reference,
            credentials,
            platform: None,
            observer: None,
        }
    }
}

/// An image that is here now.
#[derive(Debug, Clone)]
pub struct Pulled {
    pub image: Arc<Image>,
    /// The time it took, without that spent waiting for other pulls.
    pub took: Duration,
}

/// Brings images into the store.
pub trait Puller: Send + Sync + std::fmt::Debug {
    /// Fetches an image. The registry is asked even if some version of it is here already.
    fn pull(&self, request: PullRequest) -> BoxFuture<'_, Result<Pulled, PullError>>;

    /// By which registries are made unreachable; `None` if none is ever asked.
    fn outages(&self) -> Option<&Outages> {
        None
    }
}

/// Fetches nothing, because the operator forbids it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offline;

impl Puller for Offline {
    fn pull(&self, request: PullRequest) -> BoxFuture<'_, Result<Pulled, PullError>> {
        let error = PullError::Offline(request.reference);
        Box::pin(std::future::ready(Err(error)))
    }
}
