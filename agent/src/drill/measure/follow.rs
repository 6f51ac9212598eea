//! Telling how a measurement goes on while it lasts.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use skiff_dev::{DrillTaskStatus, Requests, Writes};
use tokio::time::Instant;

use super::course::Tally;
use super::samples::{SampleReader, stamp};
use crate::drill::fault::{FaultError, Order};
use crate::drill::helper::{self, blocking};
use crate::drill::report::Progress;
use crate::drill::site::Scene;
use crate::logs::Watcher;

/// Changes of counts alone are told this often.
const TELL: Duration = Duration::from_millis(250);
/// Samples that come this close to each other are read together.
const REST: Duration = Duration::from_millis(10);

/// What kind of requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::drill) enum Counted {
    Probes,
    Writes,
}

/// Reads what a helper appends to its file, and tells of it.
pub(in crate::drill) struct Follower {
    path: PathBuf,
    counted: Counted,
    /// How long an outcome may take to be known.
    timeout: Duration,
    reader: SampleReader,
    tally: Tally,
}

impl Follower {
    pub(in crate::drill) fn new(path: PathBuf, counted: Counted, timeout: Duration) -> Self {
        Self {
            path,
            counted,
            timeout,
            reader: SampleReader::default(),
            tally: Tally::default(),
        }
    }

    /// Until the task's helper has ended.
    ///
    /// # Errors
    /// When that is before its time, or what it measures can't be read.
    pub(in crate::drill) async fn until_ended(
        self,
        scene: &Scene,
        order: &Order,
        progress: &Progress,
    ) -> Result<(), FaultError> {
        let path = self.path.clone();
        tokio::select! {
            followed = self.follow(&scene.files, progress) => {
                followed.map_err(FaultError::io("following", path))
            }
            ended = helper::ended(&order.uid) => {
                ended?;
                if order.until > Timestamp::now() {
                    let message = "the process that measures ended before its time";
                    return Err(FaultError::NoEffect(message.to_owned()));
                }
                Ok(())
            }
        }
    }

    /// For as long as it is not dropped.
    ///
    /// # Errors
    /// When the file can't be watched or read.
    async fn follow(mut self, watcher: &Watcher, progress: &Progress) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let changes = watcher.watch(directory)?;
        let mut told = Instant::now();
        loop {
            let healthy = self.tally.healthy();
            let sent = self.tally.sent;
            self.read().await?;
            if self.tally.healthy() != healthy {
                self.tell(progress);
                told = Instant::now();
            } else if self.tally.sent != sent {
                tokio::time::sleep_until(told + TELL).await;
                self.read().await?;
                self.tell(progress);
                told = Instant::now();
            }
            changes.changed().await;
            tokio::time::sleep(REST).await;
        }
    }

    async fn read(&mut self) -> io::Result<()> {
        let path = self.path.clone();
        let mut reader = std::mem::take(&mut self.reader);
        let (reader, samples) = blocking(move || {
            let samples = reader.read(&path);
            (reader, samples)
        })
        .await;
        self.reader = reader;
        for sample in samples? {
            self.tally.take(&sample, self.timeout);
        }
        Ok(())
    }

    fn tell(&self, progress: &Progress) {
        progress.update(|status| counts(&self.tally, self.counted, status));
    }
}

/// Writes what is counted into a status. What it does not know of stays.
pub(in crate::drill) fn counts(tally: &Tally, counted: Counted, status: &mut DrillTaskStatus) {
    match counted {
        Counted::Probes => {
            status.healthy = tally.healthy();
            status.healthy_since = tally.healthy_since().map(stamp);
            status.first_failed_at = tally.first_failed_at().map(stamp);
            status.last_failed_at = tally.last_failed_at().map(stamp);
            let requests = status.requests.get_or_insert_with(Requests::default);
            requests.sent = tally.sent;
            requests.failed = tally.failed;
        }
        Counted::Writes => {
            let writes = status.writes.get_or_insert_with(Writes::default);
            writes.sent = tally.sent;
            writes.acknowledged = tally.sent - tally.failed;
        }
    }
}
