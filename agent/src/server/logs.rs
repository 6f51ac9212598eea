//! `/containerLogs`: one attempt's log, perhaps until it ends.

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use jiff::{SignedDuration, Timestamp};

use super::containers::Attempts;
use super::query::{InvalidParameter, Query};
use super::routes::Refusal;
use super::{NodePod, ServerState};
use crate::logs::{LogOptions, LogSource, LogStream};

pub(super) async fn container_logs(
    state: &ServerState,
    pod: &NodePod,
    container: &str,
    query: &Query,
) -> Result<Response, Refusal> {
    let options = options(query)?;
    let attempts = Attempts::of(pod, container).await?;
    let record = attempts.logged(query.flag(&["previous"]))?;
    let source = LogSource {
        log_path: record.log_path.clone(),
        state_dir: pod.pod_dir.join("containers").join(&record.id),
    };
    let log = LogStream::open(source, options, &state.watcher)
        .await
        .map_err(|error| {
            let path = record.log_path.display();
            Refusal::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("opening the log file {path}: {error}"),
            )
        })?;
    let body = Body::from_stream(log.into_stream());
    Ok(([(header::CONTENT_TYPE, "text/plain")], body).into_response())
}

/// Kubernetes' `PodLogOptions`.
fn options(query: &Query) -> Result<LogOptions, InvalidParameter> {
    let since = match query.number::<i64>("sinceSeconds")? {
        Some(seconds) => Some(Timestamp::now() - SignedDuration::from_secs(seconds)),
        None => query.number("sinceTime")?,
    };
    Ok(LogOptions {
        follow: query.flag(&["follow"]),
        timestamps: query.flag(&["timestamps"]),
        tail: query.number("tailLines")?,
        since,
        limit_bytes: query.number("limitBytes")?,
        stream: match query.first("stream") {
            Some("Stdout") => Some(crate::logs::OutputStream::Stdout),
            Some("Stderr") => Some(crate::logs::OutputStream::Stderr),
            _ => None,
        },
    })
}
