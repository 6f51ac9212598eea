//! One of the servers that stand for a registry, and what was learnt about it in this pull.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::Uri;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::error::Failure;
use super::hosts::{Host, Protocol};
use super::transport::Transport;
use crate::Reference;

/// A server that may be asked, and what was learnt about it.
pub(super) struct Endpoint {
    host: Host,
    pub(super) transport: Arc<Transport>,
    /// It turned out not to speak TLS.
    pub(super) plain: AtomicBool,
    /// There was no connection to it.
    pub(super) unreachable: AtomicBool,
    /// Which account it let in, or the first not refused yet.
    pub(super) account: AtomicUsize,
}

impl Endpoint {
    pub(super) fn new(transport: Arc<Transport>, host: Host) -> Self {
        Self {
            host,
            transport,
            plain: AtomicBool::new(false),
            unreachable: AtomicBool::new(false),
            account: AtomicUsize::new(0),
        }
    }

    /// Whether it is trusted with such a request.
    pub(super) fn may(&self, resolves: bool) -> bool {
        let capabilities = self.host.capabilities;
        capabilities.pull && (capabilities.resolve || !resolves)
    }

    pub(super) fn falls_back(&self) -> bool {
        self.host.protocol == Protocol::HttpsOrHttp && !self.plain.load(Ordering::Relaxed)
    }

    fn scheme(&self) -> &'static str {
        match self.host.protocol {
            Protocol::Https => "https",
            Protocol::Http => "http",
            Protocol::HttpsOrHttp if self.plain.load(Ordering::Relaxed) => "http",
            Protocol::HttpsOrHttp => "https",
        }
    }

    pub(super) fn server(&self) -> String {
        format!("{}://{}", self.scheme(), self.host.authority)
    }

    pub(super) fn headers(&self) -> HeaderMap {
        let headers = self.host.headers.iter();
        // They were checked when they were read.
        let parsed = headers.filter_map(|(name, value)| {
            let name = HeaderName::try_from(name).ok()?;
            Some((name, HeaderValue::try_from(value).ok()?))
        });
        let mut headers = HeaderMap::new();
        for (name, value) in parsed {
            headers.append(name, value);
        }
        headers
    }

    /// Where something of an image's repository is: `path` is `manifests/latest` or the like.
    pub(super) fn url(&self, reference: &Reference, path: &str) -> Result<Uri, Failure> {
        let url = format!(
            "{}{}/{}/{}{}",
            self.server(),
            self.host.path,
            reference.repository(),
            path,
            self.namespace(reference.registry())
        );
        url.parse().map_err(|_| Failure::Answer {
            url: self.server(),
            reason: "this is not the URL of a registry".to_owned(),
        })
    }

    /// Mirrors are told whose images they are asked for, as containerd does.
    fn namespace(&self, registry: &str) -> String {
        let own = match registry {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        if self.host.authority == own || self.host.authority == registry {
            return String::new();
        }
        let registry: String = form_urlencoded::byte_serialize(registry.as_bytes()).collect();
        format!("?ns={registry}")
    }
}
