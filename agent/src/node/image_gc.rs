//! Images that nothing uses go when the disk fills up, as the kubelet has it.
//!
//! Every five minutes, and at once when the node comes under disk pressure, the collector looks at
//! the file system of the images. Above the high threshold it removes images until the low one is
//! reached, under disk pressure all that it may: those first that were not used for longest. One
//! that a container uses, one that is younger than the minimum age, and one that came from a file
//! (nothing could fetch it again) stay. If one was too young, the next look is when it no longer is.
//! The kubelet's `pkg/kubelet/images/image_gc_manager.go` is the specification.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use skiff_images::{Digest, Image};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::host::{self, Storage};
use super::{NodeImageList, tell};
use crate::pod::events::{Events, Severity};

/// Between looks at the disk, as the kubelet's `ImageGCPeriod`.
const PERIOD: Duration = Duration::from_secs(300);

/// When images are collected. The defaults are the kubelet's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageGcPolicy {
    /// Percent of the file system in use from which on images are removed; 100 is never.
    pub high_threshold: u8,
    /// Percent of the file system in use down to which images are removed.
    pub low_threshold: u8,
    /// An image that was found later than this before stays.
    pub minimum_age: Duration,
}

impl Default for ImageGcPolicy {
    fn default() -> Self {
        Self {
            high_threshold: 85,
            low_threshold: 80,
            minimum_age: Duration::from_secs(120),
        }
    }
}

impl ImageGcPolicy {
    /// Bytes that are to be freed; nothing below the high threshold.
    fn wanted(&self, disk: &Storage) -> Option<u64> {
        let total = u64::try_from(disk.total).ok().filter(|total| *total > 0)?;
        let available = u64::try_from(disk.available).unwrap_or(0).min(total);
        let part = |percent: u64| u128::from(total) * u128::from(percent) / 100;
        let used = 100 - u128::from(available) * 100 / u128::from(total);
        if used < u128::from(self.high_threshold) || self.high_threshold >= 100 {
            return None;
        }
        let free = part(100 - u64::from(self.low_threshold.min(100)));
        u64::try_from(free.saturating_sub(u128::from(available))).ok()
    }
}

/// Removes images. One for each node.
pub(crate) struct Collector {
    node: String,
    images: NodeImageList,
    policy: ImageGcPolicy,
    events: Events,
    /// The node has come under disk pressure.
    pressure: Arc<Notify>,
    records: Records,
    failed_before: bool,
}

/// What is remembered of each image, by its manifest.
type Records = HashMap<Digest, Record>;

#[derive(Debug, Clone, Copy)]
struct Record {
    /// Nothing for an image that was here when the agent started: it is old enough.
    found: Option<Instant>,
    used: Option<Instant>,
}

/// How much a collection got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Freed {
    wanted: u64,
    freed: u64,
    /// When too little was freed: how long it is until another unused image is old enough.
    ripe: Option<Duration>,
}

impl Collector {
    pub(crate) fn new(
        node: String,
        images: NodeImageList,
        policy: ImageGcPolicy,
        events: Events,
        pressure: Arc<Notify>,
    ) -> Self {
        Self {
            node,
            images,
            policy,
            events,
            pressure,
            records: Records::new(),
            failed_before: false,
        }
    }

    /// Collects until dropped.
    pub(crate) async fn run(mut self) {
        self.detect(None).await;
        let mut pause = PERIOD;
        loop {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.pressure.notified() => {}
            }
            pause = PERIOD;
            let dir = self.images.store.root().to_owned();
            let looked = tokio::task::spawn_blocking(move || host::storage(&dir)).await;
            let disk = looked.ok().flatten();
            let pressed = disk.as_ref().is_some_and(Storage::is_short);
            let wanted = match disk {
                // Anything that can go, goes, before pods have to.
                Some(_) if pressed => Some(u64::MAX),
                Some(disk) => self.policy.wanted(&disk),
                None => None,
            };
            let now = Instant::now();
            self.detect(Some(now)).await;
            let Some(wanted) = wanted else {
                self.failed_before = false;
                continue;
            };
            let freed = self.free(wanted, now).await;
            pause = freed.ripe.map_or(PERIOD, |ripe| ripe.min(PERIOD));
            self.tell(freed, pressed);
        }
    }

    /// Takes note of the images there are, and of those in use.
    async fn detect(&mut self, now: Option<Instant>) -> Vec<(Arc<Image>, bool)> {
        let found = tokio::try_join!(self.images.store.list(), self.images.store.used());
        let (images, used) = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(node = self.node, %error, "can't list the images to collect");
                return Vec::new();
            }
        };
        self.records
            .retain(|manifest, _| images.iter().any(|image| image.manifest == *manifest));
        let mut seen = Vec::new();
        for image in images {
            let new = Record {
                found: now,
                used: None,
            };
            let record = self.records.entry(image.manifest).or_insert(new);
            let in_use = used.contains(&image.manifest);
            if in_use {
                record.used = Some(now.unwrap_or_else(Instant::now));
            }
            seen.push((image, in_use));
        }
        seen
    }

    async fn free(&mut self, wanted: u64, now: Instant) -> Freed {
        let mut candidates: Vec<(Record, Arc<Image>)> = Vec::new();
        let mut ripe = None;
        for (image, in_use) in self.detect(Some(now)).await {
            let Some(record) = self.records.get(&image.manifest).copied() else {
                continue;
            };
            if in_use || image.pinned {
                continue;
            }
            let age = record.found.map(|found| now.duration_since(found));
            match age.and_then(|age| self.policy.minimum_age.checked_sub(age)) {
                Some(left) if !left.is_zero() => {
                    ripe = Some(ripe.map_or(left, |soonest: Duration| soonest.min(left)));
                }
                _ => candidates.push((record, image)),
            }
        }
        candidates.sort_by_key(|(record, _)| (record.used, record.found));
        let mut freed = 0;
        for (_, image) in candidates {
            if freed >= wanted {
                break;
            }
            match self.images.store.collect(&image).await {
                Ok(pruned) if pruned.removed.is_empty() => {}
                Ok(pruned) => {
                    freed += pruned.freed;
                    let image = &pruned.removed[0].reference;
                    tracing::info!(node = self.node, %image, bytes = pruned.freed, "unused image removed: the disk is full");
                }
                Err(error) => {
                    tracing::warn!(node = self.node, %error, "unused image not removed");
                }
            }
        }
        if freed > 0 {
            // The node's status lists its images.
            self.images.changed.notify_one();
        }
        let ripe = ripe.filter(|_| freed < wanted);
        Freed {
            wanted,
            freed,
            ripe,
        }
    }

    fn tell(&mut self, Freed { wanted, freed, .. }: Freed, pressed: bool) {
        let failed = !pressed && freed < wanted;
        if failed {
            let message = format!(
                "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, \
                 but only found {freed} bytes eligible to free."
            );
            let warn = Severity::Warning;
            tell(
                &self.events,
                &self.node,
                warn,
                "FreeDiskSpaceFailed",
                message.clone(),
            );
            // Once may be chance.
            if self.failed_before {
                tell(&self.events, &self.node, warn, "ImageGCFailed", message);
            }
        }
        self.failed_before = failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_images::{PackOptions, Reference, Store};
    use std::path::Path;

    const GIB: i64 = 1 << 30;

    fn disk(available: i64) -> Storage {
        Storage {
            total: 100 * GIB,
            available,
            inodes: 0,
            free_inodes: 0,
        }
    }

    #[test]
    fn thresholds_are_the_kubelets() {
        let policy = ImageGcPolicy::default();
        assert_eq!(policy.wanted(&disk(16 * GIB)), None);
        assert_eq!(policy.wanted(&disk(15 * GIB)), Some(5 << 30));
        assert_eq!(policy.wanted(&disk(0)), Some(20 << 30));
        assert_eq!(
            policy.wanted(&Storage {
                total: 0,
                ..disk(0)
            }),
            None
        );
        let never = ImageGcPolicy {
            high_threshold: 100,
            ..policy
        };
        assert_eq!(never.wanted(&disk(0)), None);
    }

    fn listed(store: &Store) -> NodeImageList {
        NodeImageList {
            store: store.clone(),
            changed: Arc::default(),
        }
    }

    /// Adds an image as if a registry had sent it.
    async fn add(store: &Store, dir: &Path, name: &str) -> Arc<Image> {
        let rootfs = dir.join(name);
        std::fs::create_dir(&rootfs).unwrap();
        std::fs::write(rootfs.join("file"), name.repeat(10_000)).unwrap();
        let reference: Reference = name.parse().unwrap();
        let options = PackOptions {
            references: vec![reference.clone()],
            ..PackOptions::default()
        };
        let archive = dir.join(format!("{name}.tar"));
        skiff_images::pack(&rootfs, &options, &archive).unwrap();
        store.import(&archive, &[]).await.unwrap();
        store.unpin(&reference).await.unwrap();
        store.get(&reference).await.unwrap().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_recently_used_goes_first_and_what_is_in_use_never() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).await.unwrap();
        let (events, _queue) = Events::queue();
        let mut collector = Collector::new(
            "n1".into(),
            listed(&store),
            ImageGcPolicy::default(),
            events,
            Arc::default(),
        );
        let names = async || {
            let images = store.list().await.unwrap();
            let names = images
                .iter()
                .map(|image| image.references[0].familiar_name());
            names.collect::<Vec<_>>()
        };
        let (recent, held) = (
            add(&store, dir.path(), "a-recent").await,
            add(&store, dir.path(), "b-held").await,
        );
        add(&store, dir.path(), "c-never").await;
        store.lease("container", &held).await.unwrap();
        store.lease("other", &recent).await.unwrap();
        collector.detect(None).await;
        tokio::time::advance(Duration::from_secs(60)).await;
        collector.detect(Some(Instant::now())).await;
        store.release("other").await.unwrap();
        add(&store, dir.path(), "d-young").await;

        let freed = collector.free(1, Instant::now()).await;
        assert!(freed.freed > 1 && freed.ripe.is_none(), "{freed:?}");
        assert_eq!(names().await, ["a-recent", "b-held", "d-young"]);
        let freed = collector.free(u64::MAX, Instant::now()).await;
        assert_eq!(names().await, ["b-held", "d-young"]);
        // The young one is worth another look, and not before it is old enough.
        assert_eq!(freed.ripe, Some(Duration::from_secs(120)));
        tokio::time::advance(Duration::from_secs(121)).await;
        let freed = collector.free(u64::MAX, Instant::now()).await;
        assert_eq!(names().await, ["b-held"]);
        assert!(freed.freed < freed.wanted && freed.ripe.is_none());
    }

    #[tokio::test]
    async fn images_of_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).await.unwrap();
        let image = add(&store, dir.path(), "from-file").await;
        store
            .import(dir.path().join("from-file.tar"), &[])
            .await
            .unwrap();
        let (events, _queue) = Events::queue();
        let policy = ImageGcPolicy::default();
        let mut collector =
            Collector::new("n1".into(), listed(&store), policy, events, Arc::default());
        collector.detect(None).await;
        assert_eq!(collector.free(u64::MAX, Instant::now()).await.freed, 0);
        assert!(store.get(&image.references[0]).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_second_failure_in_a_row_is_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).await.unwrap();
        let (events, mut queue) = Events::queue();
        let policy = ImageGcPolicy::default();
        let mut collector =
            Collector::new("n1".into(), listed(&store), policy, events, Arc::default());
        let short = Freed {
            wanted: 9,
            freed: 2,
            ripe: None,
        };
        collector.tell(short, false);
        collector.tell(short, false);
        collector.tell(
            Freed {
                wanted: 9,
                freed: 9,
                ripe: None,
            },
            false,
        );
        collector.tell(short, false);
        let mut reasons = Vec::new();
        while let Ok(event) = queue.try_recv() {
            assert!(
                event
                    .message
                    .ends_with("only found 2 bytes eligible to free."),
                "{event:?}"
            );
            reasons.push(event.reason);
        }
        let free = "FreeDiskSpaceFailed";
        assert_eq!(reasons, [free, free, "ImageGCFailed", free]);
    }
}
