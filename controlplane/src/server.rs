//! The API's endpoint on the network: TLS, HTTP/1.1 and HTTP/2.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::Api;
use crate::auth::{UserInfo, authenticate};
use crate::presence::Presence;
use ipnet::Ipv4Net;

/// A client that has not finished its handshake by then is let go.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long requests under way may take when the server stops.
const LAST_REQUESTS: Duration = Duration::from_secs(1);
/// A silent HTTP/2 connection is probed this often, so that dead watchers are noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Requests that one HTTP/2 connection may have under way. Watches are requests.
const STREAMS: u32 = 1000;

/// Opens the listening socket.
///
/// # Errors
/// With a sentence that names the address.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => BindError::Taken(address),
            _ => BindError::Failed { address, error },
        })
}

#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("{0} is in use by another process: choose another address with --listen")]
    Taken(SocketAddr),
    #[error("cannot listen on {address}: {error}")]
    Failed {
        address: SocketAddr,
        error: io::Error,
    },
}

/// A socket on which the API is served.
pub(crate) struct Listener {
    pub socket: TcpListener,
    pub admits: Admits,
}

/// Whose connections a listener takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admits {
    Everyone,
    /// Pods and nodes of the cluster, and the host that has this address.
    Cluster {
        pods: Ipv4Net,
        nodes: Option<Ipv4Net>,
        host: Ipv4Addr,
    },
}

impl Admits {
    fn admits(self, peer: IpAddr) -> bool {
        match (self, peer.to_canonical()) {
            (Self::Everyone, _) => true,
            (Self::Cluster { pods, nodes, host }, IpAddr::V4(peer)) => {
                let is_node = nodes.is_some_and(|nodes| nodes.contains(&peer));
                pods.contains(&peer) || is_node || peer == host
            }
            (Self::Cluster { .. }, IpAddr::V6(_)) => false,
        }
    }
}

/// Accepts connections until `stopping`, then waits for the last of them.
pub(crate) async fn serve(
    listener: Listener,
    tls: Arc<rustls::ServerConfig>,
    api: Arc<Api>,
    presence: Presence,
    stopping: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.socket.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        match accepted {
            // Whoever is not meant learns no more than that something listens.
            Ok((_, peer)) if !listener.admits.admits(peer.ip()) => {
                tracing::debug!(%peer, "a connection from outside the cluster is refused");
            }
            Ok((stream, peer)) => {
                let connection = Connection {
                    acceptor: acceptor.clone(),
                    api: api.clone(),
                    presence: presence.clone(),
                    stopping: stopping.clone(),
                    peer,
                };
                connections.spawn(connection.run(stream));
            }
            Err(error) => {
                // Out of descriptors or the like: give others the time to free some.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    connections.close();
    connections.wait().await;
}

struct Connection {
    acceptor: TlsAcceptor,
    api: Arc<Api>,
    presence: Presence,
    stopping: CancellationToken,
    peer: SocketAddr,
}

impl Connection {
    async fn run(self, stream: TcpStream) {
        let peer = self.peer;
        // Watch events are small and must not wait for more of them.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, %error, "cannot set TCP_NODELAY");
        }
        let stream = tokio::select! {
            stream = timeout(HANDSHAKE, self.acceptor.accept(stream)) => stream,
            () = self.stopping.cancelled() => return,
        };
        match stream {
            Ok(Ok(stream)) => self.serve(stream).await,
            Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
        }
    }

    async fn serve(self, stream: TlsStream<TcpStream>) {
        let user = stream
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first())
            .and_then(authenticate::from_certificate);
        let node = user.as_ref().and_then(UserInfo::node);
        let _present = node.map(|node| self.presence.connect(node));
        let api = self.api.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            if let Some(user) = &user {
                request.extensions_mut().insert::<UserInfo>(user.clone());
            }
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.handle(request.map(Body::new)).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new());
        builder
            .http2()
            .timer(TokioTimer::new())
            .keep_alive_interval(KEEP_ALIVE)
            .max_concurrent_streams(STREAMS);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                match timeout(LAST_REQUESTS, connection.as_mut()).await {
                    Ok(ended) => ended,
                    Err(_) => return,
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(peer = %self.peer, error = &*error, "connection ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_listener_is_for_the_cluster_alone() {
        let admits = Admits::Cluster {
            pods: "10.42.0.0/16".parse().unwrap(),
            nodes: Some("100.96.1.0/24".parse().unwrap()),
            host: "192.0.2.7".parse().unwrap(),
        };
        for (peer, is_admitted) in [
            ("10.42.3.4", true),
            ("::ffff:10.42.3.4", true),
            ("192.0.2.7", true),
            ("100.96.1.9", true),
            ("100.96.2.9", false),
            ("192.0.2.8", false),
            ("10.43.0.1", false),
            ("fd00::1", false),
        ] {
            assert_eq!(admits.admits(peer.parse().unwrap()), is_admitted, "{peer}");
        }
    }
}
