//! Paths, and how a request is refused.

use axum::extract::rejection::ExtensionRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Extension, Json, Router};
use k8s_openapi::List;
use k8s_openapi::api::core::v1::Pod;

use super::containers::Missing;
use super::query::{InvalidParameter, Query};
use super::sessions::{self, Kind};
use super::tls::Client;
use super::{NodePod, ServerState, logs, stats};

pub(super) fn routes(state: ServerState) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/pods", get(pods))
        .route("/stats/summary", get(summary))
        .route("/metrics/resource", get(resource_metrics))
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(container_logs),
        )
        .route("/exec/{namespace}/{pod}/{container}", any(exec))
        .route("/attach/{namespace}/{pod}/{container}", any(attach))
        .layer(middleware::from_fn(authorize))
        .with_state(state)
}

/// A request that is not carried out: the kubelet answers with plain text.
#[derive(Debug)]
pub(super) struct Refusal {
    code: StatusCode,
    message: String,
}

impl Refusal {
    pub(super) fn new(code: StatusCode, message: String) -> Self {
        Self { code, message }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.code, self.message).into_response()
    }
}

impl From<Missing> for Refusal {
    fn from(missing: Missing) -> Self {
        let code = match missing {
            Missing::Pod(_) | Missing::Container { .. } => StatusCode::NOT_FOUND,
            Missing::Previous { .. } | Missing::Waiting { .. } => StatusCode::BAD_REQUEST,
            Missing::NotRunning(_) | Missing::Runtime(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(code, missing.to_string())
    }
}

impl From<InvalidParameter> for Refusal {
    fn from(invalid: InvalidParameter) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, invalid.to_string())
    }
}

async fn authorize(
    client: Result<Extension<Client>, ExtensionRejection>,
    request: Request,
    next: Next,
) -> Response {
    let user = match &client {
        Ok(Extension(client)) if client.may_use_node() => return next.run(request).await,
        Ok(Extension(client)) => client.user(),
        Err(_) => "system:anonymous",
    };
    let message = format!("Forbidden (user={user}, verb=get, resource=nodes, subresource=proxy)");
    Refusal::new(StatusCode::FORBIDDEN, message).into_response()
}

async fn pods(State(state): State<ServerState>) -> Json<List<Pod>> {
    let items = state.pods.pods();
    Json(List {
        items: items
            .into_iter()
            .map(|found| (*found.pod).clone())
            .collect(),
        ..List::default()
    })
}

async fn summary(State(state): State<ServerState>) -> Result<Response, Refusal> {
    let usage = stats::collect(&state).await.map_err(unreadable)?;
    Ok(Json(usage.summary()).into_response())
}

async fn resource_metrics(State(state): State<ServerState>) -> Result<Response, Refusal> {
    let usage = stats::collect(&state).await.map_err(unreadable)?;
    let kind = [(
        axum::http::header::CONTENT_TYPE,
        "text/plain; version=0.0.4",
    )];
    Ok((kind, usage.metrics()).into_response())
}

fn unreadable(error: std::io::Error) -> Refusal {
    let message = format!("reading what the node uses: {error}");
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, message)
}

type ContainerPath = Path<(String, String, String)>;

async fn container_logs(
    State(state): State<ServerState>,
    Path((namespace, pod, container)): ContainerPath,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let pod = find_pod(&state, &namespace, &pod)?;
    logs::container_logs(&state, &pod, &container, &Query::new(query.as_deref())).await
}

async fn exec(
    State(state): State<ServerState>,
    Path((namespace, pod, container)): ContainerPath,
    RawQuery(query): RawQuery,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let query = Query::new(query.as_deref());
    let pod = find_pod(&state, &namespace, &pod)?;
    let command = query.all("command");
    if command.is_empty() {
        let message = "you must specify at least 1 command for the container";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message.into()));
    }
    sessions::start(
        state,
        pod,
        container,
        &query,
        Kind::Exec { command },
        upgrade,
    )
}

async fn attach(
    State(state): State<ServerState>,
    Path((namespace, pod, container)): ContainerPath,
    RawQuery(query): RawQuery,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let query = Query::new(query.as_deref());
    let pod = find_pod(&state, &namespace, &pod)?;
    sessions::start(state, pod, container, &query, Kind::Attach, upgrade)
}

fn find_pod(state: &ServerState, namespace: &str, name: &str) -> Result<NodePod, Missing> {
    let missing = || Missing::Pod(name.to_owned());
    state.pods.pod(namespace, name).ok_or_else(missing)
}
