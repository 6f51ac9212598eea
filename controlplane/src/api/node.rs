//! The API server's way to a node's own endpoint.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Api;
use super::call::object_of;
use super::object;
use super::status::ApiError;
use crate::store::Key;

const CONNECT: Duration = Duration::from_secs(5);
/// What is read of a node's refusal.
const REFUSAL: usize = 64 << 10;

/// Where a node's endpoint is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    address: IpAddr,
    port: u16,
}

impl Endpoint {
    /// As the node's status tells it.
    fn of(node: &Value) -> Option<Self> {
        let addresses = object::at(node, "status.addresses")?.as_array()?;
        let address = addresses
            .iter()
            .find(|address| address["type"] == "InternalIP")?
            .get("address")?
            .as_str()?
            .parse()
            .ok()?;
        let port = object::at(node, "status.daemonEndpoints.kubeletEndpoint.Port")?.as_u64()?;
        let port = u16::try_from(port).ok()?;
        Some(Self { address, port })
    }
}

impl Api {
    /// # Errors
    /// 404 when there is no such node, 500 when it does not tell its address.
    pub(super) fn endpoint(&self, node: &str) -> Result<Endpoint, ApiError> {
        let entry = self
            .cache
            .get(&Key::new("", "nodes", "", node))
            .ok_or_else(|| ApiError::internal(format!("nodes {node:?} not found")))?;
        Endpoint::of(&object_of(&entry)?).ok_or_else(|| {
            ApiError::internal(format!("no preferred addresses found for node {node:?}"))
        })
    }

    /// Asks a node, and passes its answer on as it comes.
    ///
    /// # Errors
    /// 500 when the node can't be reached, else the node's own refusal as a Status.
    pub(super) async fn ask_node(
        &self,
        endpoint: &Endpoint,
        path: &str,
    ) -> Result<Response<Body>, ApiError> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(path)
            .body(Body::empty());
        let response = self.send(endpoint, path, request).await?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        let mut passed = Response::new(Body::empty());
        *passed.status_mut() = response.status();
        if let Some(kind) = response.headers().get(header::CONTENT_TYPE) {
            passed
                .headers_mut()
                .insert(header::CONTENT_TYPE, kind.clone());
        }
        *passed.body_mut() = Body::new(response.into_body());
        Ok(passed)
    }

    /// Lets the client and a node talk to each other over an upgraded connection, about whose
    /// protocol the two agree between themselves.
    ///
    /// # Errors
    /// 400 when the client does not ask for an upgrade, 500 when the node can't be reached, else the
    /// node's own refusal.
    pub(super) async fn tunnel(
        &self,
        endpoint: &Endpoint,
        path: &str,
        headers: &HeaderMap,
        client: Option<OnUpgrade>,
    ) -> Result<Response<Body>, ApiError> {
        let Some(client) = client.filter(|_| headers.contains_key(header::UPGRADE)) else {
            return Err(ApiError::bad_request("Upgrade request required"));
        };
        let mut request = Request::builder().method(Method::GET).uri(path);
        for name in [
            header::CONNECTION,
            header::UPGRADE,
            header::SEC_WEBSOCKET_KEY,
            header::SEC_WEBSOCKET_VERSION,
        ] {
            if let Some(value) = headers.get(&name) {
                request = request.header(name, value);
            }
        }
        for protocol in headers.get_all(header::SEC_WEBSOCKET_PROTOCOL) {
            request = request.header(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        let request = request.body(Body::empty());
        let mut response = self.send(endpoint, path, request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(refusal(response).await);
        }
        let node = hyper::upgrade::on(&mut response);
        let stopping = self.stopping.clone();
        // The session outlives this request. It ends with either side, or with the server.
        tokio::spawn(async move {
            tokio::select! {
                () = splice(client, node) => {}
                () = stopping.cancelled() => {}
            }
        });
        let mut switched = Response::new(Body::empty());
        *switched.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *switched.headers_mut() = response.headers().clone();
        Ok(switched)
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        path: &str,
        request: http::Result<Request<Body>>,
    ) -> Result<Response<Incoming>, ApiError> {
        let Endpoint { address, port } = endpoint;
        let failed = |why: &dyn std::fmt::Display| {
            let host = std::net::SocketAddr::new(*address, *port);
            ApiError::internal_message(format!("Get \"https://{host}{path}\": {why}"))
        };
        let mut request = request.map_err(|e| failed(&e))?;
        let host = std::net::SocketAddr::new(*address, *port).to_string();
        let host = host.parse().map_err(|e| failed(&e))?;
        request.headers_mut().insert(header::HOST, host);
        let stream = timeout(CONNECT, self.connect(endpoint))
            .await
            .map_err(|_| failed(&"net/http: TLS handshake timeout"))?
            .map_err(|e| failed(&e))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| failed(&e))?;
        // Ends when the answer has been read, or dropped.
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "connection to a node ended");
            }
        });
        sender.send_request(request).await.map_err(|e| failed(&e))
    }

    async fn connect(&self, endpoint: &Endpoint) -> io::Result<TlsStream<TcpStream>> {
        let Some(own) = &self.credentials else {
            return Err(io::Error::other(
                "this API server has no client certificate",
            ));
        };
        let stream = TcpStream::connect((endpoint.address, endpoint.port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(endpoint.address.into());
        TlsConnector::from(Arc::clone(&own.node_tls))
            .connect(name, stream)
            .await
    }
}

/// Copies bytes both ways until one side is done.
async fn splice(client: OnUpgrade, node: OnUpgrade) {
    let (client, node) = match tokio::try_join!(client, node) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "a session's connection was not upgraded");
            return;
        }
    };
    let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut node).await {
        tracing::debug!(%error, "a session was cut off");
    }
}

/// What a node said instead of doing it.
async fn refusal(response: Response<Incoming>) -> ApiError {
    let code = response.status().as_u16();
    let body = Limited::new(response.into_body(), REFUSAL).collect().await;
    let text = body
        .map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_string())
        .unwrap_or_default();
    ApiError::with_code(code, &text)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_tells_where_it_is() {
        let node = json!({"status": {
            "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "10.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        }});
        let endpoint = Endpoint::of(&node).unwrap();
        assert_eq!(
            (endpoint.address.to_string().as_str(), endpoint.port),
            ("10.0.0.1", 10250)
        );
        assert_eq!(Endpoint::of(&json!({"status": {}})), None);
    }
}
