//! The client of OCI and Docker v2 registries.
//!
//! [`Registries`] is made once for a process from a [`RegistryConfig`]. A pull takes a
//! [`Repository`] from it and asks that for manifests and blobs. Below:
//!
//! - `hosts` and `hosts_file` say which servers stand for a registry: mirrors, then the registry.
//! - `repository` asks them in turn, tries again what may pass, and tries the accounts given;
//!   `endpoint` is one of them, `content` what is fetched.
//! - `auth` and `challenge` answer a server's 401, and remember what it was content with.
//! - `transport` sends one request and follows redirects; `connect` and `tls` make connections.
//! - `outage` keeps requests from being sent, to rehearse that.
//!
//! Connections, and the system's CA certificates, live as long as a `Repository` that uses them:
//! a process that pulls nothing holds none. Tokens are kept until they expire.
//!
//! It is our own client over `hyper`, because the crates there are fetch whole blobs into a file
//! or a stream from their start: no ranges, no mirrors, no waiting as the registry asks.

mod auth;
mod challenge;
mod config;
mod connect;
mod content;
mod endpoint;
mod error;
mod hosts;
mod hosts_file;
mod outage;
mod repository;
mod tls;
mod transport;

pub use config::{RegistryConfig, RetryPolicy, Timeouts};
pub use content::{Blob, MANIFEST_LIMIT, Manifest, Target};
pub use error::{HostsError, RegistryError};
pub use outage::{Outage, Outages};
pub use repository::Repository;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::{Credentials, Reference};
use auth::Authorizer;
use endpoint::Endpoint;
pub(crate) use error::clean;
use tls::SystemRoots;
use transport::{PlainHttp, Transport, TransportSettings};

/// All registries, as this process reaches them. Cheap to clone; the clones share connections
/// and tokens.
#[derive(Clone)]
pub struct Registries(Arc<Shared>);

struct Shared {
    config: RegistryConfig,
    plain_http: PlainHttp,
    auth: Authorizer,
    system_roots: Arc<SystemRoots>,
    outages: Outages,
    /// Those in use, by their settings.
    transports: Mutex<HashMap<TransportSettings, Weak<Transport>>>,
}

impl Registries {
    pub fn new(config: RegistryConfig) -> Self {
        Self(Arc::new(Shared {
            plain_http: PlainHttp(config.plain_http.as_slice().into()),
            config,
            auth: Authorizer::default(),
            system_roots: Arc::default(),
            outages: Outages::default(),
            transports: Mutex::default(),
        }))
    }

    /// By which registries are made unreachable.
    pub fn outages(&self) -> &Outages {
        &self.0.outages
    }

    /// The repository of an image, to be read with the accounts given, tried in order; without
    /// any, anonymously. Nothing is read or sent before something is asked for. Keep it for as
    /// long as an image is fetched: it holds the connections.
    pub fn repository(&self, reference: &Reference, credentials: &[Credentials]) -> Repository {
        Repository::new(self.0.clone(), reference.clone(), credentials.into())
    }
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registries")
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// The servers of a registry. Reads files.
    async fn endpoints(self: &Arc<Self>, registry: &str) -> Result<Vec<Endpoint>, error::Failure> {
        let (shared, registry) = (self.clone(), registry.to_owned());
        let reading = tokio::task::spawn_blocking(move || hosts::hosts(&registry, &shared.config));
        let hosts = reading
            .await
            .map_err(|error| error::Failure::Interrupted(error.to_string()))??;
        let endpoint = |host: hosts::Host| Endpoint::new(self.transport(&host.transport), host);
        Ok(hosts.into_iter().map(endpoint).collect())
    }

    fn transport(&self, settings: &TransportSettings) -> Arc<Transport> {
        let mut transports = self.transports.lock();
        if let Some(transport) = transports.get(settings).and_then(Weak::upgrade) {
            return transport;
        }
        let transport = Arc::new(Transport::new(
            settings,
            self.system_roots.clone(),
            self.config.timeouts,
            self.plain_http.clone(),
            self.outages.clone(),
        ));
        transports.retain(|_, transport| transport.strong_count() > 0);
        transports.insert(settings.clone(), Arc::downgrade(&transport));
        transport
    }
}
