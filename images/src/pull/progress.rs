//! What a pull tells of itself while it goes on.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::Digest;

/// Something happened in a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullEvent {
    /// Another pull of the same image is under way, in this process or another.
    Waiting,
    /// The name was looked up; these are the layers, each once, lowest first.
    Resolved {
        digest: Digest,
        /// Digest and compressed size in bytes.
        layers: Vec<(Digest, u64)>,
    },
    Layer {
        digest: Digest,
        stage: LayerStage,
    },
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LayerStage {
    /// Nothing of it need be fetched.
    Present,
    /// So many compressed bytes have come, and all but a few of them are unpacked.
    Downloading { bytes: u64 },
    /// The connection broke; it goes on where it broke off.
    Resuming {
        bytes: u64,
        after: Duration,
        reason: String,
    },
    /// All bytes have come, and the last of them are being unpacked.
    Unpacking,
    /// Unpacked and verified.
    Done,
}

/// Who is told. May be called from several tasks at once, often, and must not block.
pub type Observer = Arc<dyn Fn(&PullEvent) + Send + Sync>;

/// Tells the observer, if there is one.
#[derive(Clone, Default)]
pub(super) struct Progress(Option<Observer>);

impl Progress {
    pub(super) fn to(observer: Option<Observer>) -> Self {
        Self(observer)
    }

    pub(super) fn tell(&self, event: &PullEvent) {
        if let Some(observer) = &self.0 {
            observer(event);
        }
    }

    pub(super) fn layer(&self, digest: Digest, stage: LayerStage) {
        self.tell(&PullEvent::Layer { digest, stage });
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Progress").field(&self.0.is_some()).finish()
    }
}
