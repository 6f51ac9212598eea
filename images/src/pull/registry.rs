//! Pulls from registries into this node's store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::Instant;

use super::error::{FetchError, PullError};
use super::flight::Flights;
use super::layers::{self, Layers};
use super::manifest::{self, Resolved};
use super::progress::{Progress, PullEvent};
use super::{PullRequest, Pulled, Puller};
use crate::registry::{Outages, Registries, Repository};
use crate::store::disk::Disk;
use crate::store::index::Named;
use crate::store::ingest::{Commit, Ingest};
use crate::store::sweep;
use crate::store::turn::{self, Turn};
use crate::{Credentials, Digest, Error, Image, Platform, Reference, Store};

/// How often a pull starts over because others removed what it relied on.
const ATTEMPTS: u32 = 5;

/// Fetches images from registries. Cheap to clone; clones know of each other's pulls.
#[derive(Clone)]
pub struct RegistryPuller(Arc<Shared>);

struct Shared {
    store: Store,
    registries: Registries,
    layers: Layers,
    pulls: Flights<Key, Result<Pulled, PullError>>,
}

/// Pulls that are alike: one serves for all.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    reference: Reference,
    accounts: Vec<Digest>,
    platform: Option<Platform>,
}

impl RegistryPuller {
    pub fn new(store: Store, registries: Registries) -> Self {
        Self(Arc::new(Shared {
            layers: Layers::new(Arc::clone(store.disk())),
            store,
            registries,
            pulls: Flights::default(),
        }))
    }
}

impl fmt::Debug for RegistryPuller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryPuller").finish_non_exhaustive()
    }
}

impl Puller for RegistryPuller {
    fn pull(&self, request: PullRequest) -> BoxFuture<'_, Result<Pulled, PullError>> {
        let key = Key {
            reference: request.reference.clone(),
            accounts: request
                .credentials
                .iter()
                .map(Credentials::fingerprint)
                .collect(),
            platform: request.platform.clone(),
        };
        let shared = Arc::clone(&self.0);
        let work = async move {
            let pulled = shared.pull(&request).await;
            pulled.map_err(|reason| PullError::Failed {
                reference: request.reference,
                reason,
            })
        };
        Box::pin(async move { self.0.pulls.join(key, work).await.result })
    }

    fn outages(&self) -> Option<&Outages> {
        Some(self.0.registries.outages())
    }
}

impl Shared {
    async fn pull(&self, request: &PullRequest) -> Result<Pulled, Arc<FetchError>> {
        let begun = Instant::now();
        let progress = Progress::to(request.observer.clone());
        let reference = &request.reference;
        let repository = self.registries.repository(reference, &request.credentials);
        let mut waited = Duration::ZERO;
        for _ in 0..ATTEMPTS {
            let resolved =
                manifest::resolve(&repository, self.store.disk(), request.platform.as_ref())
                    .await?;
            progress.tell(&PullEvent::Resolved {
                digest: Digest::try_from(resolved.target.digest()).map_err(FetchError::from)?,
                layers: layers::sizes(&resolved.parsed)?,
            });
            let waits = Instant::now();
            let _turn = self
                .turn(resolved.parsed.manifest_digest, &progress)
                .await?;
            waited += waits.elapsed();
            let image = self
                .get(&repository, reference, resolved, &progress)
                .await?;
            if let Some(image) = image {
                return Ok(Pulled {
                    image,
                    took: begun.elapsed().saturating_sub(waited),
                });
            }
        }
        Err(Arc::new(FetchError::Store(Error::Raced {
            image: reference.to_string(),
        })))
    }

    async fn turn(&self, manifest: Digest, progress: &Progress) -> Result<Turn, FetchError> {
        let taken = self
            .store
            .run(move |disk| turn::take(disk, manifest))
            .await?;
        match taken {
            Some(turn) => Ok(turn),
            None => {
                progress.tell(&PullEvent::Waiting);
                Ok(turn::wait(self.store.disk(), manifest).await?)
            }
        }
    }

    /// Fetches what is missing and gives the image its name. Nothing when others removed
    /// meanwhile what it relied on.
    async fn get(
        &self,
        repository: &Repository,
        reference: &Reference,
        resolved: Resolved,
        progress: &Progress,
    ) -> Result<Option<Arc<Image>>, Arc<FetchError>> {
        let target = Digest::try_from(resolved.target.digest()).map_err(FetchError::from)?;
        let manifest = resolved.parsed.manifest_digest;
        let is_it = |image: &Arc<Image>| image.digest == target && image.manifest == manifest;
        let here = self.store.get(reference).await.map_err(FetchError::from)?;
        if let Some(image) = here.filter(is_it) {
            return Ok(Some(image));
        }
        let fetched = self
            .layers
            .fetch(
                repository,
                &reference.to_string(),
                &resolved.parsed,
                progress,
            )
            .await?;
        let name = named(reference);
        let committed = self
            .store
            .run(move |disk| {
                let mut ingest = Ingest::begin(disk)?;
                for part in fetched.iter().filter_map(|part| part.ingest()) {
                    ingest.include(part);
                }
                commit(disk, ingest, name, resolved)
            })
            .await
            .map_err(FetchError::from)?;
        if committed == Commit::Raced {
            return Ok(None);
        }
        let image = self.store.get(reference).await.map_err(FetchError::from)?;
        Ok(image.filter(is_it))
    }
}

/// What an image is called that was pulled by this name: by a digest, it has no tag.
fn named(reference: &Reference) -> Reference {
    match reference.digest() {
        Some(digest) => reference.at_digest(digest),
        None => reference.clone(),
    }
}

/// Stages the documents and commits. What was replaced under this name is removed with it, if
/// nothing else needs it.
fn commit(
    disk: &Disk,
    mut ingest: Ingest,
    name: Reference,
    resolved: Resolved,
) -> Result<Commit, Error> {
    for bytes in resolved.documents.values() {
        ingest.put_json(bytes)?;
    }
    for (layer, diff_id) in resolved
        .parsed
        .manifest
        .layers()
        .iter()
        .zip(resolved.parsed.diff_ids()?)
    {
        let blob = Digest::try_from(layer.digest())?;
        if !(ingest.has_blob(blob) && ingest.has_layer(diff_id)) {
            return Ok(Commit::Raced);
        }
    }
    let named = Named {
        reference: name,
        target: resolved.target,
    };
    let replaces = disk.read_index()?.iter().any(|old| {
        old.reference == named.reference && old.target.digest() != named.target.digest()
    });
    let committed = ingest.commit(&[(named, resolved.parsed)])?;
    if replaces && committed == Commit::Done {
        sweep::collect(disk);
    }
    Ok(committed)
}
