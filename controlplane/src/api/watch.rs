//! Watches over HTTP: a response whose body is one JSON document a line, for as long as both
//! sides want it.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, header};
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::answer::partial;
use super::call::{Call, parse};
use super::negotiate::Shape;
use super::read::{resource_version, selector};
use super::status::ApiError;
use super::table::{self, IncludeObject};
use crate::cache::{Start, Watch, WatchError, WatchEvent};
use crate::store::Revision;

/// How often a watcher that asked for bookmarks gets one.
const BOOKMARKS: Duration = Duration::from_secs(60);
/// A watch that names no timeout ends after this, and up to twice as long.
const LIFETIME: Duration = Duration::from_secs(30 * 60);
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

impl Api {
    pub(super) fn watch(&self, call: Call) -> Result<Response<Body>, ApiError> {
        let selector = selector(&call)?;
        let version = resource_version(&call)?;
        let initial_events = call.query.optional_flag("sendInitialEvents");
        check_initial_events(&call, initial_events)?;
        self.check_not_ahead(version)?;
        let start = match (version, initial_events) {
            (_, Some(true)) | (None | Some(0), None) => Start::Now,
            (None | Some(0), Some(false)) => Start::After(self.cache.revision()),
            (Some(version), _) => Start::After(version),
        };
        let shelf = self.cache.shelf(&call.resource.storage_id());
        let opened = Watch::open(&self.cache, &shelf, call.scope(), selector, start);
        let timeout = lifetime(&call)?;
        let format = Format::of(call);
        let (watch, initial) = match opened {
            Ok(opened) => opened,
            Err(error) => return Ok(response(Body::from(format.error(&error)))),
        };
        let mut first = Vec::new();
        let mut format = format;
        for entry in initial {
            format.event(&mut first, &WatchEvent::Added(entry.bytes.clone()))?;
        }
        if initial_events == Some(true) && format.bookmarks {
            format.bookmark(&mut first, watch.revision(), true);
        }
        let stream = Streaming {
            watch,
            format,
            first: Some(first.into()),
            deadline: Instant::now() + timeout,
            next_bookmark: Instant::now() + BOOKMARKS,
            stopping: self.stopping.clone(),
            ended: false,
        };
        let lines = stream::unfold(stream, |mut stream| async move {
            let lines = stream.next().await?;
            Some((Ok::<_, Infallible>(lines), stream))
        });
        Ok(response(Body::from_stream(lines)))
    }
}

/// A watch's response under way.
struct Streaming {
    watch: Watch,
    format: Format,
    /// The objects it starts with.
    first: Option<Bytes>,
    deadline: Instant,
    next_bookmark: Instant,
    stopping: CancellationToken,
    ended: bool,
}

impl Streaming {
    /// The next lines to send; `None` when the watch is over.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take().filter(|lines| !lines.is_empty()) {
            return Some(first);
        }
        loop {
            if self.ended {
                return None;
            }
            let events = tokio::select! {
                events = self.watch.next() => events.map(|events| (events, None)),
                () = tokio::time::sleep_until(self.next_bookmark), if self.format.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARKS;
                    self.watch.bookmark().map(|(events, at)| (events, Some(at)))
                }
                () = tokio::time::sleep_until(self.deadline) => return None,
                () = self.stopping.cancelled() => return None,
            };
            match events.map(|(events, bookmark)| self.lines(&events, bookmark)) {
                Ok(lines) if lines.is_empty() => {}
                Ok(lines) => return Some(lines),
                Err(error) => {
                    self.ended = true;
                    return Some(self.format.error(&error));
                }
            }
        }
    }

    fn lines(&mut self, events: &[WatchEvent], bookmark: Option<Revision>) -> Bytes {
        let mut lines = Vec::new();
        for event in events {
            if let Err(error) = self.format.event(&mut lines, event) {
                self.ended = true;
                line(&mut lines, "ERROR", error.to_value().to_string().as_bytes());
                return lines.into();
            }
        }
        if let Some(revision) = bookmark {
            self.format.bookmark(&mut lines, revision, false);
        }
        lines.into()
    }
}

/// How a watch's events are written.
struct Format {
    call: Call,
    bookmarks: bool,
    /// Tables tell their columns once.
    columns_told: bool,
}

impl Format {
    fn of(call: Call) -> Self {
        Self {
            bookmarks: call.query.flag("allowWatchBookmarks"),
            call,
            columns_told: false,
        }
    }

    fn event(&mut self, lines: &mut Vec<u8>, event: &WatchEvent) -> Result<(), ApiError> {
        let (kind, stored) = match event {
            WatchEvent::Added(bytes) => ("ADDED", bytes),
            WatchEvent::Modified(bytes) => ("MODIFIED", bytes),
            WatchEvent::Deleted(bytes) => ("DELETED", bytes),
        };
        let bytes = self.call.outward(stored)?;
        match self.call.wanted.shape {
            Shape::Object => line(lines, kind, &bytes),
            Shape::Metadata => {
                let object = partial(&parse(&bytes)?);
                line(lines, kind, object.to_string().as_bytes());
            }
            Shape::Table(include) => {
                let table = self.table(&[parse(&bytes)?], include);
                line(lines, kind, table.to_string().as_bytes());
            }
        }
        Ok(())
    }

    fn table(&mut self, objects: &[Value], include: IncludeObject) -> Value {
        let version = objects
            .first()
            .and_then(|object| object.pointer("/metadata/resourceVersion"));
        let metadata = json!({"resourceVersion": version.unwrap_or(&json!(""))});
        let columns = !std::mem::replace(&mut self.columns_told, true);
        table::table(&self.call.resource, objects, metadata, include, columns)
    }

    fn bookmark(&mut self, lines: &mut Vec<u8>, revision: Revision, initial_end: bool) {
        let resource = &self.call.resource;
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let object = match self.call.wanted.shape {
            Shape::Object => json!({
                "kind": resource.kind,
                "apiVersion": resource.api_version(),
                "metadata": metadata,
            }),
            Shape::Metadata => partial(&json!({"metadata": metadata})),
            Shape::Table(include) => {
                let columns = !std::mem::replace(&mut self.columns_told, true);
                table::table(resource, &[], metadata, include, columns)
            }
        };
        line(lines, "BOOKMARK", object.to_string().as_bytes());
    }

    fn error(&self, error: &WatchError) -> Bytes {
        let status = ApiError::expired(error.to_string()).to_value();
        let mut lines = Vec::new();
        line(&mut lines, "ERROR", status.to_string().as_bytes());
        lines.into()
    }
}

fn line(lines: &mut Vec<u8>, kind: &str, object: &[u8]) {
    lines.extend_from_slice(b"{\"type\":\"");
    lines.extend_from_slice(kind.as_bytes());
    lines.extend_from_slice(b"\",\"object\":");
    lines.extend_from_slice(object);
    lines.extend_from_slice(b"}\n");
}

fn response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    response
}

fn check_initial_events(call: &Call, initial_events: Option<bool>) -> Result<(), ApiError> {
    let matching = call.query.text("resourceVersionMatch");
    let why = match (initial_events, matching) {
        (None, "") | (Some(_), "NotOlderThan") => return Ok(()),
        (None, _) => {
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        }
        (Some(_), _) => "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
    };
    let mut error = ApiError::invalid(&call.resource, "", &[]);
    error.message =
        format!("ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: {why}");
    Err(error)
}

fn lifetime(call: &Call) -> Result<Duration, ApiError> {
    let asked = call.query.number("timeoutSeconds")?.unwrap_or_default();
    Ok(match u64::try_from(asked) {
        Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
        _ => LIFETIME.mul_f64(rand::rng().random_range(1.0..2.0)),
    })
}
