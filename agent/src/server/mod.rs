//! The node's HTTPS endpoint, which the API server asks for what only a node can tell: logs, commands
//! in containers, attachments, what is used.
//!
//! Paths and answers are the kubelet's. A client proves who it is by a certificate of the cluster's
//! authority (`tls`); only cluster administrators and the API server itself are let in.
//!
//! ```text
//! TLS -> client certificate -> routes -> containers: which attempt is meant (PodLookup)
//!                                   |-> logs                    -> crate::logs
//!                                   |-> exec, attach (sessions) -> channels <-> Sandbox
//!                                   `-> stats, metrics          -> Sandbox, /proc
//! ```

mod channels;
mod containers;
mod logs;
mod query;
mod routes;
mod sessions;
mod stats;
#[cfg(test)]
mod tests;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use k8s_openapi::api::core::v1::Pod;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use tls::{Credentials, Serving, TlsError};

use crate::logs::Watcher;
use crate::runtime::Sandbox;

/// A connection that has not finished its handshake by then is closed.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// A pod of this node, as its worker knows it.
#[derive(Clone)]
pub struct NodePod {
    /// With the status that the worker computed last.
    pub pod: Arc<Pod>,
    /// `<root>/pods/<namespace>_<pod>_<uid>`
    pub pod_dir: PathBuf,
    /// `None` before the sandbox is made and after it is destroyed.
    pub sandbox: Option<Sandbox>,
}

/// Knows the node's pods.
pub trait PodLookup: Send + Sync + 'static {
    fn pod(&self, namespace: &str, name: &str) -> Option<NodePod>;

    fn pods(&self) -> Vec<NodePod>;
}

/// What the server is made of.
pub struct ServerConfig {
    pub node_name: String,
    /// Port 0 takes any.
    pub listen: SocketAddr,
    pub credentials: Credentials,
}

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("listening on {address} for the API server: {source}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
}

/// The bound, not yet serving endpoint.
pub struct NodeServer {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    state: ServerState,
}

/// What every request may use.
#[derive(Clone)]
struct ServerState {
    node_name: Arc<str>,
    pods: Arc<dyn PodLookup>,
    watcher: Watcher,
    /// Sessions outlive the HTTP connection that they were upgraded from.
    sessions: TaskTracker,
    stop: CancellationToken,
}

impl NodeServer {
    /// # Errors
    /// When the address is taken or the credentials don't fit together.
    pub async fn bind(
        config: ServerConfig,
        pods: Arc<dyn PodLookup>,
        watcher: Watcher,
    ) -> Result<Self, ServerError> {
        let address = config.listen;
        let listen_error = |source| ServerError::Listen { address, source };
        let acceptor = tls::acceptor(config.credentials)?;
        let listener = TcpListener::bind(address).await.map_err(listen_error)?;
        Ok(Self {
            listener,
            acceptor,
            state: ServerState {
                node_name: config.node_name.into(),
                pods,
                watcher,
                sessions: TaskTracker::new(),
                stop: CancellationToken::new(),
            },
        })
    }

    /// Where it listens, for the node's `daemonEndpoints`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `stop`; then sessions and connections are closed, and it returns.
    pub async fn run(self, stop: CancellationToken) {
        let Self {
            listener,
            acceptor,
            mut state,
        } = self;
        state.stop = stop.clone();
        let sessions = state.sessions.clone();
        let routes = routes::routes(state);
        let connections = TaskTracker::new();
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((stream, peer)) => {
                    let serving = serve(stream, peer, acceptor.clone(), routes.clone());
                    connections.spawn(stop.clone().run_until_cancelled_owned(serving));
                }
                Err(error) => {
                    tracing::warn!(%error, "could not accept a connection");
                    // Out of descriptors: some must be closed first.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        for tasks in [connections, sessions] {
            tasks.close();
            tasks.wait().await;
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, acceptor: TlsAcceptor, routes: Router) {
    // Terminals send a few bytes at a time.
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
    let stream = match handshake.await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%peer, %error, "refused a connection");
            return;
        }
        Err(_) => return,
    };
    let client = tls::Client::of(stream.get_ref().1);
    let service = TowerToHyperService::new(routes.layer(axum::Extension(client)));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%peer, %error, "a connection ended early");
    }
}
