//! Connections to registries: TCP, through a proxy or not, and TLS on top.

use std::error::Error as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tower::Service;

use super::error::ConnectError;
use super::hosts::is_loopback;
use super::tls::{SystemRoots, TlsSettings};
use super::transport::TransportSettings;

/// Makes connections for one set of settings. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connector(Arc<Inner>);

struct Inner {
    tcp: HttpConnector,
    connect_timeout: Duration,
    proxy: Proxy,
    settings: TlsSettings,
    system: Arc<SystemRoots>,
    /// Loaded for the first connection that needs it.
    tls: OnceCell<Arc<ClientConfig>>,
}

enum Proxy {
    /// As `hosts.toml` says.
    Always(Matcher),
    /// As the environment says; this machine is never reached through a proxy.
    Environment(Matcher),
}

impl Proxy {
    fn intercept(&self, url: &Uri) -> Option<Intercept> {
        match self {
            Self::Always(matcher) => matcher.intercept(url),
            Self::Environment(_) if is_loopback(url.authority()?.as_str()) => None,
            Self::Environment(matcher) => matcher.intercept(url),
        }
    }
}

impl Connector {
    pub(super) fn new(settings: &TransportSettings, system: Arc<SystemRoots>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        let proxy = match &settings.proxy {
            Some(proxy) => Proxy::Always(Matcher::builder().all(proxy.as_str()).build()),
            None => Proxy::Environment(Matcher::from_env()),
        };
        Self(Arc::new(Inner {
            tcp,
            connect_timeout: settings.connect_timeout,
            proxy,
            settings: settings.tls.clone(),
            system,
            tls: OnceCell::new(),
        }))
    }
}

impl Connector {
    /// What a proxy wants to see with a request that is handed to it; with the others, it saw it
    /// when their connections were made.
    pub(super) fn proxy_authorization(&self, url: &Uri) -> Option<HeaderValue> {
        let plain = url.scheme_str() == Some("http");
        let proxy = self.0.proxy.intercept(url).filter(|_| plain)?;
        proxy.basic_auth().cloned()
    }
}

impl Service<Uri> for Connector {
    type Response = RegistryConnection;
    type Error = ConnectError;
    type Future = BoxFuture<'static, Result<RegistryConnection, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            let limit = inner.connect_timeout;
            let connected = tokio::time::timeout(limit, inner.connect(&url)).await;
            connected.unwrap_or_else(|_| {
                Err(ConnectError::Timeout {
                    address: address(&url),
                    after: limit,
                })
            })
        })
    }
}

impl Inner {
    async fn connect(&self, url: &Uri) -> Result<RegistryConnection, ConnectError> {
        let secure = url.scheme_str() == Some("https");
        let proxy = self.proxy.intercept(url);
        // Plain requests are handed to the proxy itself, others pass through it.
        let (stream, proxied) = match &proxy {
            None => (self.tcp(url).await?, false),
            Some(proxy) if secure => (self.tunnel(proxy, url).await?, false),
            Some(proxy) => (self.proxy(proxy).await?, true),
        };
        let stream: Box<dyn Stream> = match secure {
            true => Box::new(self.handshake(url, stream).await?),
            false => Box::new(stream),
        };
        Ok(RegistryConnection {
            stream: TokioIo::new(stream),
            proxied,
        })
    }

    async fn tcp(&self, url: &Uri) -> Result<TcpStream, ConnectError> {
        let connected = self.tcp.clone().call(url.clone()).await;
        let stream = connected.map_err(|error| dial_error(url, &error))?;
        Ok(stream.into_inner())
    }

    async fn proxy(&self, proxy: &Intercept) -> Result<TcpStream, ConnectError> {
        let server = plain_proxy(proxy)?;
        self.tcp(&server)
            .await
            .map_err(|error| proxy_error(proxy, error))
    }

    /// A connection to a server through a proxy, by CONNECT.
    async fn tunnel(&self, proxy: &Intercept, url: &Uri) -> Result<TcpStream, ConnectError> {
        let server = plain_proxy(proxy)?;
        let mut tunnel = Tunnel::new(server, self.tcp.clone());
        if let Some(account) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(account.clone());
        }
        let connected = tunnel.call(url.clone()).await;
        let stream = connected.map_err(|error| {
            let cause = error.source().map(|cause| format!(": {cause}"));
            proxy_error(proxy, format!("{error}{}", cause.unwrap_or_default()))
        })?;
        Ok(stream.into_inner())
    }

    async fn handshake(
        &self,
        url: &Uri,
        stream: TcpStream,
    ) -> Result<impl Stream + use<>, ConnectError> {
        let host = url.host().unwrap_or_default();
        let name = host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let name = ServerName::try_from(name).map_err(|error| ConnectError::Tls {
            reason: error.to_string(),
        })?;
        let config = self.tls.get_or_try_init(|| self.load_tls()).await?.clone();
        let shaken = TlsConnector::from(config).connect(name, stream).await;
        shaken.map_err(|error| handshake_error(host, &error))
    }

    async fn load_tls(&self) -> Result<Arc<ClientConfig>, ConnectError> {
        let (settings, system) = (self.settings.clone(), self.system.clone());
        let loading = tokio::task::spawn_blocking(move || settings.load(&system));
        let loaded = loading
            .await
            .map_err(|error| ConnectError::Broken(error.to_string()))?;
        loaded.map(Arc::new).map_err(ConnectError::TlsSettings)
    }
}

fn plain_proxy(proxy: &Intercept) -> Result<Uri, ConnectError> {
    match proxy.uri().scheme_str() {
        Some("http") => Ok(proxy.uri().clone()),
        _ => Err(proxy_error(proxy, "only http:// proxies are supported")),
    }
}

fn proxy_error(proxy: &Intercept, reason: impl ToString) -> ConnectError {
    ConnectError::Proxy {
        // Without the account.
        proxy: proxy.uri().host().unwrap_or_default().to_owned(),
        reason: reason.to_string(),
    }
}

pub(super) fn address(url: &Uri) -> String {
    let port = match (url.port_u16(), url.scheme_str()) {
        (Some(port), _) => port,
        (None, Some("http")) => 80,
        (None, _) => 443,
    };
    format!("{}:{port}", url.host().unwrap_or_default())
}

fn dial_error(url: &Uri, error: &(dyn std::error::Error + 'static)) -> ConnectError {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if error.to_string().contains("dns") {
        return ConnectError::Lookup {
            host: url.host().unwrap_or_default().to_owned(),
            reason: match cause.to_string() {
                reason if reason.contains("not known") || reason.contains("No address") => {
                    "no such host".to_owned()
                }
                reason => reason,
            },
        };
    }
    let refused = cause
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    ConnectError::Tcp {
        address: address(url),
        reason: match refused {
            true => "connect: connection refused".to_owned(),
            false => cause.to_string(),
        },
    }
}

fn handshake_error(host: &str, error: &io::Error) -> ConnectError {
    let inner = error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => ConnectError::NotTls,
        Some(rustls::Error::InvalidCertificate(error)) => ConnectError::Certificate {
            reason: certificate_error(host, error),
        },
        Some(error) => ConnectError::Tls {
            reason: error.to_string(),
        },
        None => ConnectError::Broken(error.to_string()),
    }
}

fn certificate_error(host: &str, error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => {
            "x509: certificate signed by unknown authority (name its CA in hosts.toml with 'ca')"
                .to_owned()
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            "x509: certificate has expired or is not yet valid".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            format!("x509: certificate is not valid for {host}")
        }
        other => other.to_string(),
    }
}

/// A connection, with TLS or without.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection as the HTTP client wants it.
pub(super) struct RegistryConnection {
    stream: TokioIo<Box<dyn Stream>>,
    /// Whether requests on it go to a proxy, which needs their full URLs.
    proxied: bool,
}

impl Connection for RegistryConnection {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.proxied)
    }
}

impl Read for RegistryConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for RegistryConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_speaks_no_tls_is_told_from_one_with_a_wrong_certificate() {
        let wrap = |error: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, error);
        let plain = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        assert!(matches!(
            handshake_error("h", &wrap(plain)),
            ConnectError::NotTls
        ));
        let unknown = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let error = handshake_error("h", &wrap(unknown)).to_string();
        assert!(error.starts_with("tls: failed to verify certificate: x509: certificate signed"));
        // A registry that is just being started again is no registry without TLS.
        let hung_up = io::Error::from(io::ErrorKind::UnexpectedEof);
        assert!(matches!(
            handshake_error("h", &hung_up),
            ConnectError::Broken(_)
        ));
    }

    #[test]
    fn this_machine_is_not_reached_through_a_proxy() {
        let matcher = || Matcher::builder().all("http://proxy:3128").build();
        let proxied = |proxy: Proxy, url: &str| proxy.intercept(&url.parse().unwrap()).is_some();
        for (url, expected) in [
            ("https://r.io/v2/", true),
            ("https://localhost:5000/v2/", false),
            ("http://127.0.0.1:5000/v2/", false),
            ("https://[::1]/v2/", false),
        ] {
            assert_eq!(
                proxied(Proxy::Environment(matcher()), url),
                expected,
                "{url}"
            );
            assert!(proxied(Proxy::Always(matcher()), url), "{url}");
        }
    }

    #[test]
    fn addresses_have_ports() {
        for (url, expected) in [
            ("https://r.io/v2/", "r.io:443"),
            ("http://r.io/v2/", "r.io:80"),
            ("https://[::1]:5000/v2/", "[::1]:5000"),
        ] {
            assert_eq!(address(&url.parse().unwrap()), expected);
        }
    }
}
