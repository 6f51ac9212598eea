//! The layers of an image: those that are not here, a few at a time.
//!
//! Each layer that is fetched has a staging directory of its own, so that it belongs to no pull:
//! whoever needs the same layer at the same time takes part in the one download.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;

use super::download::{self, Ended};
use super::error::FetchError;
use super::feed;
use super::flight::{Flights, Landed};
use super::progress::{LayerStage, Progress};
use crate::registry::Repository;
use crate::store::disk::Disk;
use crate::store::image::Parsed;
use crate::store::ingest::Ingest;
use crate::unpack::Budget;
use crate::{Digest, Error, import};

/// Layers that one pull fetches at the same time, as many as Docker and containerd do.
const AT_ONCE: usize = 3;
/// Layers that all pulls of a node fetch at the same time. Each costs two threads, a connection
/// and some MiB.
const AT_ONCE_ON_NODE: usize = 6;

/// A layer, fetched and unpacked in its staging directory.
type Fetched = Result<Arc<Part>, Arc<FetchError>>;

/// The staging directory of a layer that is unpacked.
pub(super) struct Part(Option<Arc<Ingest>>);

impl Part {
    /// For a commit, which may share it with others.
    pub(super) fn ingest(&self) -> Option<Arc<Ingest>> {
        self.0.clone()
    }
}

impl Drop for Part {
    /// What was not committed is removed by a thread that may block.
    fn drop(&mut self) {
        let ingest = self.0.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(ingest));
        }
    }
}

/// Fetches layers for all pulls of a process.
pub(super) struct Layers {
    disk: Arc<Disk>,
    flights: Flights<Layer, Fetched>,
    permits: Arc<Semaphore>,
}

/// A layer by its blob and what that unpacks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Layer {
    blob: Digest,
    /// Of the blob, in bytes.
    size: u64,
    diff_id: Digest,
}

/// What all layers of one pull have in common.
#[derive(Clone)]
struct Pull {
    repository: Repository,
    image: String,
    budget: Arc<Budget>,
    progress: Progress,
}

impl Layers {
    pub(super) fn new(disk: Arc<Disk>) -> Self {
        Self {
            disk,
            flights: Flights::default(),
            permits: Arc::new(Semaphore::new(AT_ONCE_ON_NODE)),
        }
    }

    /// Fetches what is missing of an image. What comes back is to be committed with it.
    pub(super) async fn fetch(
        &self,
        repository: &Repository,
        image: &str,
        parsed: &Parsed,
        progress: &Progress,
    ) -> Result<Vec<Arc<Part>>, Arc<FetchError>> {
        let layers = each_once(parsed).map_err(Arc::new)?;
        let missing = self.missing(layers.clone()).await.map_err(Arc::new)?;
        for layer in layers.iter().filter(|layer| !missing.contains(layer)) {
            progress.layer(layer.blob, LayerStage::Present);
        }
        let pull = Pull {
            repository: repository.clone(),
            image: image.to_owned(),
            budget: Arc::new(Budget::new(self.disk.limits())),
            progress: progress.clone(),
        };
        stream::iter(missing)
            .map(|layer| self.one(pull.clone(), layer))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    /// The layers of which the store lacks the blob or the directory.
    async fn missing(&self, layers: Vec<Layer>) -> Result<Vec<Layer>, FetchError> {
        let disk = Arc::clone(&self.disk);
        let look = move || {
            let lacks =
                |layer: &Layer| !disk.has_blob(layer.blob) || !disk.has_layer(layer.diff_id);
            layers.into_iter().filter(lacks).collect()
        };
        let found = tokio::task::spawn_blocking(look).await;
        found.map_err(|error| Error::Interrupted(error.to_string()).into())
    }

    async fn one(&self, pull: Pull, layer: Layer) -> Fetched {
        let (blob, progress) = (layer.blob, pull.progress.clone());
        loop {
            let (disk, permits) = (Arc::clone(&self.disk), Arc::clone(&self.permits));
            let work = get(disk, permits, pull.clone(), layer);
            match self.flights.join(layer, work).await {
                // Another's failure may come from its repository, account or limits.
                Landed {
                    result: Err(error),
                    joined: true,
                } => {
                    tracing::debug!(layer = %blob, %error, "layer of another pull failed, trying here")
                }
                Landed { result, .. } => {
                    if result.is_ok() {
                        progress.layer(blob, LayerStage::Done);
                    }
                    return result;
                }
            }
        }
    }
}

/// An image may have the same layer several times.
fn each_once(parsed: &Parsed) -> Result<Vec<Layer>, FetchError> {
    let mut seen = BTreeSet::new();
    let mut layers = Vec::new();
    for (descriptor, diff_id) in parsed.manifest.layers().iter().zip(parsed.diff_ids()?) {
        let blob = Digest::try_from(descriptor.digest())?;
        if seen.insert((blob, diff_id)) {
            layers.push(Layer {
                blob,
                size: descriptor.size(),
                diff_id,
            });
        }
    }
    Ok(layers)
}

/// Digest and size of each layer, lowest first.
pub(super) fn sizes(parsed: &Parsed) -> Result<Vec<(Digest, u64)>, FetchError> {
    let layers = each_once(parsed)?;
    Ok(layers
        .iter()
        .map(|layer| (layer.blob, layer.size))
        .collect())
}

async fn get(disk: Arc<Disk>, permits: Arc<Semaphore>, pull: Pull, layer: Layer) -> Fetched {
    // Never closed.
    let _permit = permits.acquire_owned().await.ok();
    let got = match unpack_again(&disk, &pull, layer).await {
        Some(ingest) => Ok(ingest),
        None => download_and_unpack(disk, pull, layer).await,
    };
    got.map(|ingest| Arc::new(Part(Some(Arc::new(ingest)))))
        .map_err(Arc::new)
}

/// Unpacks a layer whose directory is gone and whose blob is here. Nothing when there is no blob, or one
/// that is of no use.
async fn unpack_again(disk: &Arc<Disk>, pull: &Pull, layer: Layer) -> Option<Ingest> {
    let (disk, image, budget) = (Arc::clone(disk), pull.image.clone(), pull.budget.clone());
    let unpack = move || {
        if !disk.has_blob(layer.blob) {
            return Ok(None);
        }
        let mut ingest = Ingest::begin(&disk)?;
        ingest.share_budget(&budget);
        let whole = ingest.has_blob(layer.blob)
            && ingest.unpack_stored(&image, layer.blob)? == layer.diff_id;
        Ok::<_, Error>(whole.then_some(ingest))
    };
    match tokio::task::spawn_blocking(unpack).await {
        Ok(Ok(ingest)) => ingest,
        Ok(Err(error)) => {
            tracing::warn!(layer = %layer.blob, %error, "stored layer is damaged, fetching it");
            None
        }
        Err(_) => None,
    }
}

/// One pass from the network to the directory. If this is dropped, the thread that unpacks finds
/// its source broken off, and removes what it staged.
async fn download_and_unpack(
    disk: Arc<Disk>,
    pull: Pull,
    layer: Layer,
) -> Result<Ingest, FetchError> {
    let Pull {
        repository,
        image,
        budget,
        progress,
    } = pull;
    let (feed, fed) = feed::channel();
    let staging = tokio::task::spawn_blocking(move || stage(&disk, &image, layer, &budget, fed));
    let downloaded = download::feed(&repository, layer.blob, layer.size, feed, &progress).await;
    let staged = staging
        .await
        .unwrap_or_else(|error| Err(Error::Interrupted(error.to_string())));
    match downloaded {
        Ok(Ended::Whole | Ended::Refused) => Ok(staged?),
        // What the unpacker makes of half a layer says nothing.
        Err(error) => Err(error),
    }
}

fn stage(
    disk: &Arc<Disk>,
    image: &str,
    layer: Layer,
    budget: &Arc<Budget>,
    source: feed::Fed,
) -> Result<Ingest, Error> {
    let mut ingest = Ingest::begin(disk)?;
    ingest.share_budget(budget);
    let unpacked_already = ingest.has_layer(layer.diff_id);
    let staged = ingest.put_layer(image, layer.blob, unpacked_already, source)?;
    import::check_layer(image, &staged, layer.blob, layer.diff_id)?;
    Ok(ingest)
}
