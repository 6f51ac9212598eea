//! Who may talk to the node.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The server's own certificate, and the authority that clients' certificates come from.
pub struct Credentials {
    pub serving: Serving,
    pub client_authority: CertificateDer<'static>,
}

/// The certificate that the endpoint shows; it can be replaced while it serves. Clones share it.
#[derive(Debug, Clone)]
pub struct Serving {
    current: Arc<RwLock<Arc<CertifiedKey>>>,
}

impl Serving {
    /// `chain` begins with the server's own certificate.
    ///
    /// # Errors
    /// When the key is not the certificate's, or of a kind that is not supported.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, TlsError> {
        let current = Arc::new(RwLock::new(certified(chain, key)?));
        Ok(Self { current })
    }

    /// New connections get this certificate.
    ///
    /// # Errors
    /// As [`Serving::new`].
    pub fn replace(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<(), TlsError> {
        let certified = certified(chain, key)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = certified;
        Ok(())
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        Some(current.clone())
    }
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let provider = rustls::crypto::ring::default_provider();
    let certified = CertifiedKey::from_der(chain, key, &provider).map_err(TlsError::Serving)?;
    Ok(Arc::new(certified))
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the node's serving certificate: {0}")]
    Serving(#[source] rustls::Error),
    #[error("the authority of client certificates: {0}")]
    Authority(#[source] rustls::Error),
    #[error("the authority of client certificates: {0}")]
    Verifier(#[from] VerifierBuilderError),
}

/// Accepts only clients with a certificate of the authority.
pub(super) fn acceptor(credentials: Credentials) -> Result<TlsAcceptor, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots
        .add(credentials.client_authority)
        .map_err(TlsError::Authority)?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Serving)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(credentials.serving));
    // Sessions are upgraded from HTTP/1.1 connections.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Whom a certificate names: user and groups, as the API server reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Client {
    user: String,
    groups: Vec<String>,
}

impl Client {
    pub(super) fn of(connection: &ServerConnection) -> Self {
        connection
            .peer_certificates()
            .and_then(<[_]>::first)
            .and_then(|certificate| Self::named_in(certificate))
            .unwrap_or_else(|| Self {
                user: "system:anonymous".into(),
                groups: Vec::new(),
            })
    }

    fn named_in(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().ok().map(str::to_owned)
        };
        Some(Self {
            user: subject.iter_common_name().next().and_then(text)?,
            groups: subject.iter_organization().filter_map(text).collect(),
        })
    }

    /// Cluster administrators may do anything; the API server has asked its own authorizer.
    pub(super) fn may_use_node(&self) -> bool {
        self.groups.iter().any(|group| group == "system:masters")
            || self.user == "system:kube-apiserver"
    }

    pub(super) fn user(&self) -> &str {
        &self.user
    }
}
