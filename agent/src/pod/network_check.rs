//! Connections to a pod, for probes and lifecycle hooks, with Go's error texts. HTTP is in [`super::http_check`], gRPC in
//! [`super::grpc_check`].

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Why a check did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum CheckError {
    /// The pod failed it.
    #[error("{0}")]
    Failed(String),
    /// It can't be made at all, and says nothing of the pod.
    #[error("{0}")]
    Invalid(String),
}

/// Resolves a port that may be given by name.
///
/// # Errors
/// When the container declares no such port, or the number is none of a port.
pub(super) fn port(container: &Container, port: &IntOrString) -> Result<u16, CheckError> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut declared = container.ports.iter().flatten();
            match declared.find(|p| p.name.as_ref() == Some(name)) {
                Some(found) => found.container_port,
                // Maybe a number that is written as text.
                None => name.parse().map_err(|_| {
                    let message = format!("strconv.Atoi: parsing {name:?}: invalid syntax");
                    CheckError::Invalid(message)
                })?,
            }
        }
    };
    let port = u16::try_from(number).ok().filter(|n| *n > 0);
    port.ok_or_else(|| CheckError::Invalid(format!("invalid port number: {number}")))
}

/// Opens a connection and closes it.
///
/// # Errors
/// Why it can't be opened.
pub(super) async fn tcp(
    container: &Container,
    action: &TCPSocketAction,
    pod_ip: &str,
    limit: Duration,
) -> Result<(), CheckError> {
    let host = action
        .host
        .as_deref()
        .filter(|h| !h.is_empty())
        .unwrap_or(pod_ip);
    let port = port(container, &action.port)?;
    let address = join(host, port);
    match timeout(limit, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(CheckError::Failed(dial_error(&address, &error))),
        Err(_) => Err(CheckError::Failed(format!(
            "dial tcp {address}: i/o timeout"
        ))),
    }
}

pub(super) fn join(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

pub(super) fn dial_error(address: &str, error: &std::io::Error) -> String {
    let cause = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        std::io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        std::io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        std::io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {address}: {cause}")
}

/// Kubernetes' probes do not check certificates.
pub(super) fn unverified_tls() -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(AcceptAny(provider.clone()));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring supports the default protocol versions");
    let config = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Arc::new(config)
}

#[derive(Debug)]
struct AcceptAny(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container() -> Container {
        serde_json::from_value(
            json!({"name": "c", "ports": [{"name": "web", "containerPort": 80}]}),
        )
        .unwrap()
    }

    #[test]
    fn ports_by_name_and_number() {
        let named = |n: &str| port(&container(), &IntOrString::String(n.into()));
        assert_eq!(named("web"), Ok(80));
        assert_eq!(named("8080"), Ok(8080));
        assert_eq!(
            named("none").unwrap_err().to_string(),
            "strconv.Atoi: parsing \"none\": invalid syntax"
        );
        assert!(port(&container(), &IntOrString::Int(0)).is_err());
    }
}
