//! The connection to the API server.
//!
//! Dead connections are noticed by the kernel within seconds, so that an agent that was cut off is back
//! as soon as its network is. The certificate that the node shows can be replaced under way.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{Request, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ConfigExt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tower::Layer;

use super::certificate::KeyAndCertificate;

const CONNECT: Duration = Duration::from_secs(5);
/// How long a silent connection may be before it is probed.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
const PROBE_EVERY: Duration = Duration::from_secs(2);
const PROBES: u32 = 3;
/// How long what was sent may stay unacknowledged: shorter than a node's grace period.
const UNACKNOWLEDGED: Duration = Duration::from_secs(8);

/// Where the API is, and the authority (PEM) that its certificate comes from.
#[derive(Debug, Clone)]
pub(super) struct Server {
    pub(super) url: Uri,
    pub(super) authority: String,
}

impl Server {
    fn config(&self) -> kube::Config {
        let mut config = kube::Config::new(self.url.clone());
        let authority = CertificateDer::from_pem_slice(self.authority.as_bytes());
        // Without one nothing is trusted.
        config.root_cert = Some(authority.iter().map(|der| der.to_vec()).collect());
        config.connect_timeout = Some(CONNECT);
        config
    }

    /// A client that shows a bootstrap token.
    pub(super) fn with_token(&self, token: &str) -> kube::Result<Client> {
        let mut config = self.config();
        config.auth_info.token = Some(token.to_owned().into());
        Client::try_from(config)
    }

    /// A client that shows the node's certificate.
    pub(super) fn with_certificate(&self, pair: &KeyAndCertificate) -> kube::Result<Client> {
        let mut config = self.config();
        let certificate = BASE64_STANDARD.encode(&pair.certificate);
        config.auth_info.client_certificate_data = Some(certificate);
        config.auth_info.client_key_data = Some(BASE64_STANDARD.encode(&pair.key).into());
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_keepalive(Some(KEEP_ALIVE));
        tcp.set_keepalive_interval(Some(PROBE_EVERY));
        tcp.set_keepalive_retries(Some(PROBES));
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        let https = config.rustls_https_connector_with_connector(tcp)?;
        let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https);
        Ok(Client::new(config.base_uri_layer().layer(http), "default"))
    }
}

/// A client whose certificate can be replaced: what is under way goes on with the old one.
#[derive(Clone)]
pub(super) struct Replaceable {
    current: Arc<RwLock<Client>>,
}

impl Replaceable {
    pub(super) fn new(client: Client) -> Self {
        Self {
            current: Arc::new(RwLock::new(client)),
        }
    }

    pub(super) fn replace(&self, client: Client) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = client;
    }

    fn get(&self) -> Client {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The client that everybody uses.
    pub(super) fn client(&self) -> Client {
        let this = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let client = this.get();
            async move { client.send(request).await }
        });
        Client::new(service, "default")
    }
}
