//! How much one image may become: shared by its layers, which may be unpacked at the same time.

use std::sync::atomic::{AtomicU64, Ordering};

/// Of a tar stream, for each entry: a header, a PAX header with its records, padding.
const OVERHEAD: u64 = 4096;

/// What one image may become, all its layers together. Beyond it, unpacking stops with an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of file content, holes included.
    pub bytes: u64,
    /// Files, directories, links, devices and whiteouts.
    pub entries: u64,
}

impl Default for Limits {
    /// 64 GiB and two million entries: several times the largest images in use, which hold
    /// machine-learning frameworks with their models.
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            entries: 2_000_000,
        }
    }
}

impl Limits {
    /// Bytes of tar streams: more than the content and its headers can need. What a stream holds beside
    /// files (a global header, bytes after its end) costs no disk, but time.
    pub(crate) fn stream(&self) -> u64 {
        self.bytes
            .saturating_add(self.entries.saturating_mul(OVERHEAD))
            .saturating_add(1 << 20)
    }
}

/// What is left of an image's [`Limits`].
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    bytes: AtomicU64,
    entries: AtomicU64,
    stream: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            bytes: AtomicU64::new(limits.bytes),
            entries: AtomicU64::new(limits.entries),
            stream: AtomicU64::new(limits.stream()),
        }
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn take_entry(&self) -> Result<(), Exhausted> {
        take(&self.entries, 1)
    }

    pub(super) fn take_bytes(&self, bytes: u64) -> Result<(), Exhausted> {
        take(&self.bytes, bytes)
    }

    pub(crate) fn take_stream(&self, bytes: u64) -> Result<(), Exhausted> {
        take(&self.stream, bytes)
    }

    /// Counts a layer that was unpacked before.
    pub(crate) fn take_layer(&self, bytes: u64, entries: u64) -> Result<(), Exhausted> {
        take(&self.entries, entries)?;
        take(&self.bytes, bytes)
    }
}

/// More is asked for than is left.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

fn take(left: &AtomicU64, wanted: u64) -> Result<(), Exhausted> {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        left.checked_sub(wanted)
    })
    .map(drop)
    .map_err(|_| Exhausted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_takes_nothing() {
        let budget = Budget::new(Limits {
            bytes: 10,
            entries: 1,
        });
        assert_eq!(budget.take_bytes(11), Err(Exhausted));
        assert_eq!(budget.take_bytes(10), Ok(()));
        assert_eq!(budget.take_bytes(1), Err(Exhausted));
        assert_eq!(budget.take_entry(), Ok(()));
        assert_eq!(budget.take_entry(), Err(Exhausted));
    }
}
