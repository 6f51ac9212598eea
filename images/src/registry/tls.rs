//! TLS towards registries: the system's CAs and own ones, client certificates, or no check at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::hosts_file::ClientCertificate;

/// What is trusted, and what is shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct TlsSettings {
    /// Trusted beside the system's.
    pub(super) ca: Vec<PathBuf>,
    pub(super) client: Vec<ClientCertificate>,
    pub(super) skip_verify: bool,
}

/// The system's CAs, some hundred kilobytes: loaded for the first server that needs them, shared,
/// and let go with the last.
#[derive(Debug, Default)]
pub(super) struct SystemRoots(Mutex<Weak<RootCertStore>>);

impl SystemRoots {
    fn get(&self) -> Arc<RootCertStore> {
        let mut roots = self.0.lock();
        if let Some(loaded) = roots.upgrade() {
            return loaded;
        }
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "a CA certificate of this system can't be used");
        }
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(found.certs);
        let store = Arc::new(store);
        *roots = Arc::downgrade(&store);
        store
    }
}

impl TlsSettings {
    /// Reads every file: not for a runtime's thread. The error names the file and its fault.
    pub(super) fn load(&self, system: &SystemRoots) -> Result<ClientConfig, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("TLS can't be set up: {error}"))?;
        let builder = match self.skip_verify {
            true => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
            false => builder.with_root_certificates(self.roots(system)?),
        };
        match self.client.first() {
            None => Ok(builder.with_no_client_auth()),
            Some(shown) => {
                let (chain, key) = load_client_certificate(shown)?;
                builder.with_client_auth_cert(chain, key).map_err(|error| {
                    let path = shown.certificate.display();
                    format!("client certificate {path} can't be used: {error}")
                })
            }
        }
    }

    fn roots(&self, system: &SystemRoots) -> Result<Arc<RootCertStore>, String> {
        let system = system.get();
        if self.ca.is_empty() {
            return match system.is_empty() {
                true => Err("this system has no CA certificates: install them \
                             (ca-certificates), or name one in hosts.toml with 'ca'"
                    .to_owned()),
                false => Ok(system),
            };
        }
        let mut roots = RootCertStore::clone(&system);
        for path in &self.ca {
            for certificate in certificates(path, "CA certificate")? {
                roots.add(certificate).map_err(|error| {
                    format!("CA certificate {} can't be used: {error}", path.display())
                })?;
            }
        }
        Ok(Arc::new(roots))
    }
}

fn load_client_certificate(
    shown: &ClientCertificate,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), String> {
    let chain = certificates(&shown.certificate, "client certificate")?;
    let path = shown.key.as_ref().unwrap_or(&shown.certificate);
    let text = read(path, "client key")?;
    let key = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|error| format!("client key {} can't be used: {error}", path.display()))?;
    Ok((chain, key))
}

/// The PEM certificates in a file: at least one.
fn certificates(path: &Path, what: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = read(path, what)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!(
            "{what} {}: no PEM certificate in it",
            path.display()
        )),
        Err(error) => Err(format!("{what} {}: {error}", path.display())),
    }
}

fn read(path: &Path, what: &str) -> Result<Vec<u8>, String> {
    fs::read(path).map_err(|error| format!("cannot read {what} {}: {error}", path.display()))
}

/// `skip_verify`: whoever answers is believed to be the registry. Signatures are still checked,
/// so that it is at least one and the same.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
