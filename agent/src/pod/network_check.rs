//! HTTP and TCP requests to a pod, for probes and lifecycle hooks, with Go's error texts.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Resolves a port that may be given by name.
///
/// # Errors
/// When the container declares no such port, or the number is none of a port.
pub(super) fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let mut declared = container.ports.iter().flatten();
            match declared.find(|p| p.name.as_ref() == Some(name)) {
                Some(found) => found.container_port,
                None => name
                    .parse()
                    .map_err(|_| format!("couldn't find port: {name:?} in container"))?,
            }
        }
    };
    u16::try_from(number)
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("invalid port number: {number}"))
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
) -> Result<(), String> {
    let host = action
        .host
        .as_deref()
        .filter(|h| !h.is_empty())
        .unwrap_or(pod_ip);
    let port = port(container, &action.port)?;
    let address = join(host, port);
    match timeout(limit, TcpStream::connect((host, port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(dial_error(&address, &error)),
        Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
    }
}

/// Sends a GET request; gives the answer's status code.
///
/// # Errors
/// Why there is no answer.
pub(super) async fn http_get(
    container: &Container,
    action: &HTTPGetAction,
    pod_ip: &str,
    limit: Duration,
) -> Result<u16, String> {
    let host = action
        .host
        .as_deref()
        .filter(|h| !h.is_empty())
        .unwrap_or(pod_ip);
    let port = port(container, &action.port)?;
    let scheme = action
        .scheme
        .as_deref()
        .unwrap_or("HTTP")
        .to_ascii_lowercase();
    let path = match action.path.as_deref().unwrap_or("/") {
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    let url = format!("{scheme}://{}{path}", join(host, port));
    let exchange = async {
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(|e| dial_error(&join(host, port), &e))?;
        if scheme == "https" {
            let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
            let connector = tokio_rustls::TlsConnector::from(unverified_tls());
            let stream = connector
                .connect(name, stream)
                .await
                .map_err(|e| e.to_string())?;
            request(stream, action, &path, &join(host, port)).await
        } else {
            request(stream, action, &path, &join(host, port)).await
        }
    };
    let failed = |cause: String| format!("Get {url:?}: {cause}");
    match timeout(limit, exchange).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(failed(
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into(),
        )),
    }
}

async fn request<S>(
    stream: S,
    action: &HTTPGetAction,
    path: &str,
    authority: &str,
) -> Result<u16, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut request = http::Request::get(path).version(http::Version::HTTP_11);
    let mut named = Vec::new();
    for header in action.http_headers.iter().flatten() {
        named.push(header.name.to_ascii_lowercase());
        request = request.header(&header.name, &header.value);
    }
    for (name, value) in [
        ("host", authority),
        ("user-agent", "kube-probe/1.37"),
        ("accept", "*/*"),
        ("connection", "close"),
    ] {
        if !named.iter().any(|n| n == name) {
            request = request.header(name, value);
        }
    }
    let request = request
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|e| e.to_string())?;
        Ok(response.status().as_u16())
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        _ = connection => exchange.await,
    }
}

fn join(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn dial_error(address: &str, error: &std::io::Error) -> String {
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
fn unverified_tls() -> Arc<ClientConfig> {
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

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
        assert!(named("none").is_err());
        assert!(port(&container(), &IntOrString::Int(0)).is_err());
    }

    #[tokio::test]
    async fn gets_an_answer_and_names_a_refusal() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            let reply = b"HTTP/1.1 503 no\r\ncontent-length: 4\r\n\r\nbusy";
            stream.write_all(reply).await.unwrap();
            String::from_utf8(request[..read].to_vec()).unwrap()
        });
        let action: HTTPGetAction =
            serde_json::from_value(json!({"path": "/health", "port": port})).unwrap();
        let limit = Duration::from_secs(5);
        let status = http_get(&container(), &action, "127.0.0.1", limit).await;
        assert_eq!(status, Ok(503));
        let request = server.await.unwrap();
        assert!(request.starts_with("GET /health HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("user-agent: kube-probe/1.37"), "{request}");
        let error = http_get(&container(), &action, "127.0.0.1", limit)
            .await
            .err();
        assert_eq!(
            error.unwrap(),
            format!(
                "Get \"http://127.0.0.1:{port}/health\": dial tcp 127.0.0.1:{port}: connect: connection refused"
            )
        );
    }
}
