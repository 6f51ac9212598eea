//! `healthCheckNodePort`: tells load balancers whether this node has endpoints of a service.
//!
//! One small HTTP server for each service with `externalTrafficPolicy: Local`; 200 while an endpoint of
//! this node is ready, 503 otherwise, with kube-proxy's body.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use axum::Router;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::program::ServiceName;

/// The servers of this node. Dropping it ends them.
#[derive(Default)]
pub(super) struct HealthServers {
    servers: HashMap<ServiceName, Server>,
}

struct Server {
    port: u16,
    local_endpoints: watch::Sender<usize>,
    task: AbortHandle,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HealthServers {
    /// Serves the service's port, or none, with the number of its endpoints here.
    pub(super) fn set(&mut self, service: &ServiceName, port: Option<u16>, endpoints: usize) {
        let Some(port) = port else {
            self.servers.remove(service);
            return;
        };
        if let Some(server) = self.servers.get(service).filter(|s| s.port == port) {
            server.local_endpoints.send_replace(endpoints);
            return;
        }
        // The old port is closed first: it may be the one that another service gets.
        self.servers.remove(service);
        let (local_endpoints, receiver) = watch::channel(endpoints);
        let task = tokio::spawn(serve(service.clone(), port, receiver)).abort_handle();
        let server = Server {
            port,
            local_endpoints,
            task,
        };
        self.servers.insert(service.clone(), server);
    }
}

async fn serve(service: ServiceName, port: u16, endpoints: watch::Receiver<usize>) {
    let listener = match TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await {
        Ok(listener) => listener,
        Err(error) => {
            tracing::warn!(%service, port, %error, "the service's health check port can't be opened");
            return;
        }
    };
    let answer = move || {
        let count = *endpoints.borrow();
        let service = service.clone();
        async move { report(&service, count) }
    };
    let served = axum::serve(listener, Router::new().fallback(answer)).await;
    if let Err(error) = served {
        tracing::warn!(port, %error, "a health check port failed");
    }
}

fn report(service: &ServiceName, count: usize) -> impl IntoResponse + use<> {
    let code = match count {
        0 => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    let body = serde_json::json!({
        "service": {"namespace": &*service.namespace, "name": &*service.name},
        "localEndpoints": count,
        "serviceProxyHealthy": true,
    });
    let headers = [
        ("content-type", "application/json".to_owned()),
        ("x-content-type-options", "nosniff".to_owned()),
        ("x-load-balancing-endpoint-weight", count.to_string()),
    ];
    (code, headers, body.to_string())
}
