//! Registries that can't be reached, on purpose: the rehearsal of an outage.
//!
//! While an [`Outage`] lives, no request is sent to its registries, also not on connections that there are, and what
//! is being read from them breaks off. It is this process alone that can't reach them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use http::Uri;
use parking_lot::Mutex;

use super::error::ConnectError;

/// What is told to whoever asks for an image meanwhile.
const REFUSED: &str = "connect: connection refused (registry-outage drill)";
pub(super) const RESET: &str = "connection reset by peer (registry-outage drill)";

/// The outages of a process. Cheap to clone; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Outages(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: AtomicU64,
    /// How many there are: nearly always none, and then nothing more is looked at.
    count: AtomicUsize,
    current: Mutex<Vec<(u64, Vec<String>)>>,
}

/// An outage that lasts as long as this value.
#[derive(Debug)]
#[must_use = "the outage ends when this is dropped"]
pub struct Outage {
    outages: Outages,
    number: u64,
}

impl Outages {
    /// Makes registries unreachable: as references name them (`docker.io`) or as servers are named in URLs
    /// (`registry.example:5000`); all that there are if none is named.
    pub fn begin(&self, registries: Vec<String>) -> Outage {
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let mut current = self.0.current.lock();
        current.push((number, registries));
        self.0.count.store(current.len(), Ordering::Release);
        Outage {
            outages: self.clone(),
            number,
        }
    }

    /// Whether a registry or server can't be reached.
    pub(super) fn hit(&self, name: &str) -> bool {
        if self.0.count.load(Ordering::Acquire) == 0 {
            return false;
        }
        let current = self.0.current.lock();
        let mut outages = current.iter();
        outages.any(|(_, names)| names.is_empty() || names.iter().any(|hit| hit == name))
    }

    /// Why a request to a URL is not sent, if it is not.
    pub(super) fn refuse(&self, url: &Uri) -> Option<ConnectError> {
        let server = url.authority()?.as_str();
        self.hit(server).then(|| refused(url))
    }
}

pub(super) fn refused(url: &Uri) -> ConnectError {
    ConnectError::Tcp {
        address: super::connect::address(url),
        reason: REFUSED.to_owned(),
    }
}

impl Drop for Outage {
    fn drop(&mut self) {
        let mut current = self.outages.0.current.lock();
        current.retain(|(number, _)| *number != self.number);
        self.outages.0.count.store(current.len(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_hits_whom_it_names_while_it_lasts() {
        let outages = Outages::default();
        assert!(!outages.hit("r.io"));
        let one = outages.begin(vec!["r.io".into(), "localhost:5000".into()]);
        assert!(outages.hit("r.io") && outages.hit("localhost:5000"));
        assert!(!outages.hit("localhost:5001") && !outages.hit("sub.r.io"));
        let all = outages.clone().begin(Vec::new());
        assert!(outages.hit("localhost:5001"));
        drop(one);
        assert!(outages.hit("r.io"));
        drop(all);
        assert!(!outages.hit("r.io"));
    }

    #[test]
    fn it_says_that_it_is_a_drill() {
        let outages = Outages::default();
        let url = "https://r.io/v2/".parse().unwrap();
        assert!(outages.refuse(&url).is_none());
        let _outage = outages.begin(Vec::new());
        assert_eq!(
            outages.refuse(&url).unwrap().to_string(),
            "dial tcp r.io:443: connect: connection refused (registry-outage drill)"
        );
    }
}
