//! Who may talk to the node.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

/// The server's own certificate, and the authority that clients' certificates come from.
pub struct Credentials {
    /// The server's first.
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
    pub client_authority: CertificateDer<'static>,
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
        .with_single_cert(credentials.chain, credentials.key)
        .map_err(TlsError::Serving)?;
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
