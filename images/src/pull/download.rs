//! One blob from a registry, to its end: where a connection breaks, the next goes on.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;

use super::error::FetchError;
use super::feed::{Feed, Refused};
use super::progress::{LayerStage, Progress};
use crate::Digest;
use crate::registry::Repository;

/// Connections in a row that bring less than [`PROGRESS`], before a download is given up.
const FRUITLESS: u32 = 5;
/// Bytes that count as having got on.
const PROGRESS: u64 = 64 * 1024;
/// Before a connection that follows one which brought something; each one that brings nothing
/// doubles it. What the registry answers before it sends anything has its own, longer patience.
const PAUSE: Duration = Duration::from_millis(200);

/// How a download ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Whole,
    /// The reader has found something wrong.
    Refused,
}

/// Feeds a blob to whoever unpacks it.
pub(super) async fn feed(
    repository: &Repository,
    digest: Digest,
    size: u64,
    feed: Feed,
    progress: &Progress,
) -> Result<Ended, FetchError> {
    let blob = Wanted {
        repository,
        digest,
        size,
        what: FetchError::blob(digest),
        progress,
    };
    match blob.fetch(&mut Sink::Feed(&feed)).await? {
        Ended::Refused => Ok(Ended::Refused),
        Ended::Whole => {
            progress.layer(digest, LayerStage::Unpacking);
            Ok(match feed.end().await {
                Ok(()) => Ended::Whole,
                Err(Refused) => Ended::Refused,
            })
        }
    }
}

/// A small blob in memory; the caller has seen to it that `size` is small.
pub(super) async fn whole(
    repository: &Repository,
    digest: Digest,
    size: u64,
    what: &str,
) -> Result<Vec<u8>, FetchError> {
    let mut bytes = Vec::new();
    let blob = Wanted {
        repository,
        digest,
        size,
        what: what.to_owned(),
        progress: &Progress::default(),
    };
    blob.fetch(&mut Sink::Memory(&mut bytes)).await?;
    Ok(bytes)
}

enum Sink<'a> {
    Feed(&'a Feed),
    Memory(&'a mut Vec<u8>),
}

impl Sink<'_> {
    async fn take(&mut self, chunk: Bytes) -> Result<(), Refused> {
        match self {
            Self::Feed(feed) => feed.send(chunk).await,
            Self::Memory(bytes) => {
                bytes.extend_from_slice(&chunk);
                Ok(())
            }
        }
    }
}

struct Wanted<'a> {
    repository: &'a Repository,
    digest: Digest,
    size: u64,
    what: String,
    progress: &'a Progress,
}

/// How one connection ended.
enum Leg {
    /// All bytes have come.
    Whole,
    Refused,
    BrokeOff(String),
}

impl Wanted<'_> {
    async fn fetch(&self, sink: &mut Sink<'_>) -> Result<Ended, FetchError> {
        let mut at = 0;
        let mut fruitless = 0;
        loop {
            let before = at;
            let reason = match self.leg(&mut at, sink).await? {
                Leg::Whole => return Ok(Ended::Whole),
                Leg::Refused => return Ok(Ended::Refused),
                Leg::BrokeOff(reason) => reason,
            };
            fruitless = match at - before >= PROGRESS {
                true => 0,
                false => fruitless + 1,
            };
            if fruitless == FRUITLESS {
                return Err(FetchError::BrokeOff {
                    what: self.what.clone(),
                    bytes: at,
                    size: self.size,
                    tries: fruitless,
                    reason,
                });
            }
            let after = PAUSE * (1 << fruitless);
            self.progress.layer(
                self.digest,
                LayerStage::Resuming {
                    bytes: at,
                    after,
                    reason,
                },
            );
            tokio::time::sleep(after).await;
        }
    }

    /// One connection, from `at` on.
    async fn leg(&self, at: &mut u64, sink: &mut Sink<'_>) -> Result<Leg, FetchError> {
        let mut blob = self.repository.blob(&self.digest, *at).await?;
        if let Some(total) = blob.total.filter(|total| *total != self.size) {
            return Err(self.wrong_size(total));
        }
        if blob.offset > *at {
            let reason = format!(
                "asked from byte {at} on, the registry sent it from {}",
                blob.offset
            );
            return Err(FetchError::invalid(&self.what, reason));
        }
        // A registry that knows no ranges begins anew: what came before is passed over.
        let mut passed_over = *at - blob.offset;
        while let Some(chunk) = blob.stream.next().await {
            let mut chunk = match chunk {
                Ok(chunk) => chunk,
                Err(_) if *at == self.size => return Ok(Leg::Whole),
                Err(error) => return Ok(Leg::BrokeOff(error.to_string())),
            };
            let known = passed_over.min(chunk.len() as u64);
            passed_over -= known;
            // At most a chunk's length, which is a usize.
            let chunk = chunk.split_off(known as usize);
            if chunk.is_empty() {
                continue;
            }
            *at += chunk.len() as u64;
            if *at > self.size {
                return Err(self.wrong_size(*at));
            }
            if sink.take(chunk).await == Err(Refused) {
                return Ok(Leg::Refused);
            }
            self.progress
                .layer(self.digest, LayerStage::Downloading { bytes: *at });
        }
        match *at == self.size {
            true => Ok(Leg::Whole),
            false => Ok(Leg::BrokeOff("the registry ended it early".to_owned())),
        }
    }

    fn wrong_size(&self, actual: u64) -> FetchError {
        FetchError::Size {
            what: self.what.clone(),
            expected: self.size,
            actual,
        }
    }
}
