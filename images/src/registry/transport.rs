//! Requests and their answers: one HTTP client for each set of settings, redirects, time limits.
//!
//! HTTP/1.1 only: layers that are fetched at the same time get connections, and so windows and
//! queues in the network, of their own.

use std::error::Error as _;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use http::header::{
    HeaderMap, HeaderValue, LOCATION, PROXY_AUTHORIZATION, RETRY_AFTER, USER_AGENT,
};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::config::Timeouts;
use super::connect::Connector;
use super::error::{ConnectError, Failure, Said};
use super::hosts::is_loopback;
use super::outage::{Outages, RESET};
use super::tls::{SystemRoots, TlsSettings};

const MAX_REDIRECTS: usize = 10;
/// How much of an error's body is read.
const ERROR_LIMIT: usize = 64 * 1024;
/// How long an unused connection is kept, at most: it ends with its `Transport` anyway.
const IDLE: Duration = Duration::from_secs(15);

/// What connections depend on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct TransportSettings {
    pub(super) tls: TlsSettings,
    pub(super) connect_timeout: Duration,
    /// In place of the environment's.
    pub(super) proxy: Option<String>,
}

/// Where requests without TLS may go, beside this machine.
#[derive(Debug, Clone)]
pub(super) struct PlainHttp(pub(super) Arc<[String]>);

impl PlainHttp {
    pub(super) fn allows(&self, authority: &Authority) -> bool {
        is_loopback(authority.as_str()) || self.0.iter().any(|name| name == authority.as_str())
    }
}

/// An HTTP client for one set of settings, with its connections.
pub(super) struct Transport {
    client: Client<Connector, Full<Bytes>>,
    connector: Connector,
    connect_timeout: Duration,
    timeouts: Timeouts,
    pub(super) plain_http: PlainHttp,
    outages: Outages,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

/// A request to a server.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: Uri,
    /// Sent wherever a redirect leads.
    pub(super) headers: HeaderMap,
    /// Sent to the URL's own server only: credentials, an operator's own headers.
    pub(super) private: HeaderMap,
    pub(super) body: Bytes,
}

/// An answer's head, and its body to come.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) method: Method,
    /// Whose answer it is, after redirects.
    pub(super) url: Uri,
    /// Whether it is another server than the one that was asked.
    pub(super) foreign: bool,
    body_timeout: Duration,
    outages: Outages,
}

impl Transport {
    pub(super) fn new(
        settings: &TransportSettings,
        system: Arc<SystemRoots>,
        timeouts: Timeouts,
        plain_http: PlainHttp,
        outages: Outages,
    ) -> Self {
        let connector = Connector::new(settings, system);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(connector.clone());
        Self {
            client,
            connector,
            connect_timeout: settings.connect_timeout,
            timeouts,
            plain_http,
            outages,
        }
    }

    /// Sends a request, and follows redirects.
    pub(super) async fn send(&self, ask: Ask) -> Result<Answer, Failure> {
        let mut url = ask.url.clone();
        let mut foreign = false;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::new(Full::new(ask.body.clone()));
            *request.method_mut() = ask.method.clone();
            *request.uri_mut() = url.clone();
            let headers = request.headers_mut();
            headers.extend(ask.headers.clone());
            if !foreign {
                headers.extend(ask.private.clone());
            }
            let agent = HeaderValue::from_static(concat!("skiff/", env!("CARGO_PKG_VERSION")));
            headers.entry(USER_AGENT).or_insert(agent);
            if let Some(account) = self.connector.proxy_authorization(&url) {
                headers.insert(PROXY_AUTHORIZATION, account);
            }
            let response = self.exchange(request, &url).await?;
            let target = match redirect_target(&ask.method, &response) {
                None => {
                    return Ok(Answer {
                        response,
                        method: ask.method,
                        url,
                        foreign,
                        body_timeout: self.timeouts.body,
                        outages: self.outages.clone(),
                    });
                }
                Some(target) => self.follow(&url, target)?,
            };
            foreign |= !same_server(&url, &target);
            url = target;
        }
        Err(Failure::Redirect {
            target: show(&url),
            url: show(&ask.url),
            reason: "stopped after 10 redirects",
        })
    }

    /// One request to one server, up to the head of the answer.
    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        url: &Uri,
    ) -> Result<Response<Incoming>, Failure> {
        let method = request.method().clone();
        if let Some(source) = self.outages.refuse(url) {
            return Err(Failure::Request {
                method,
                url: show(url),
                source,
            });
        }
        let limit = self.connect_timeout + self.timeouts.headers;
        match tokio::time::timeout(limit, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(Failure::Request {
                method,
                url: show(url),
                source: connect_error(error),
            }),
            Err(_) => Err(Failure::NoAnswer {
                method,
                url: show(url),
                after: limit,
            }),
        }
    }

    fn follow(&self, from: &Uri, location: &HeaderValue) -> Result<Uri, Failure> {
        let refuse = |target: String, reason| Failure::Redirect {
            url: show(from),
            target,
            reason,
        };
        let resolved = location.to_str().ok().and_then(|to| resolve(from, to));
        let Some(target) = resolved else {
            return Err(refuse("something else".to_owned(), "that is not a URL"));
        };
        let lost_tls = from.scheme() == Some(&Scheme::HTTPS)
            && target.scheme() == Some(&Scheme::HTTP)
            && !target
                .authority()
                .is_some_and(|a| self.plain_http.allows(a));
        match lost_tls {
            true => Err(refuse(show(&target), "it does not use TLS")),
            false => Ok(target),
        }
    }
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// The body piece by piece: exactly `length` bytes if that is known, and no longer silent
    /// between two pieces than the limit.
    pub(super) fn into_body(
        self,
        length: Option<u64>,
    ) -> BoxStream<'static, Result<Bytes, Failure>> {
        let url = show(&self.url);
        let server = self.url;
        let (limit, outages) = (self.body_timeout, self.outages);
        let state = (self.response.into_body(), 0u64, false);
        let pieces = stream::unfold(state, move |(mut body, mut seen, over)| {
            let url = url.clone();
            let reset = outages.refuse(&server).is_some();
            async move {
                if over {
                    return None;
                }
                if reset {
                    let reason = RESET.to_owned();
                    return Some((Err(Failure::Body { url, reason }), (body, seen, true)));
                }
                let wrong = |reason: String| Failure::Body {
                    url: url.clone(),
                    reason,
                };
                let piece = match tokio::time::timeout(limit, next_data(&mut body)).await {
                    Err(_) => Err(Failure::Stalled { url, after: limit }),
                    Ok(Some(Err(error))) => Err(wrong(deepest(&error))),
                    Ok(Some(Ok(data))) => {
                        seen += data.len() as u64;
                        match length {
                            Some(length) if seen > length => {
                                Err(wrong(format!("more came than the {length} bytes promised")))
                            }
                            _ => Ok(data),
                        }
                    }
                    Ok(None) => match length {
                        Some(length) if seen < length => {
                            Err(wrong(format!("it ended after {seen} of {length} bytes")))
                        }
                        _ => return None,
                    },
                };
                let over = piece.is_err();
                Some((piece, (body, seen, over)))
            }
        });
        pieces.boxed()
    }

    /// The whole body, or `None` if it is larger than `limit` bytes. For what is small: it has to
    /// come within a few times the limit for one piece.
    pub(super) async fn read(self, limit: usize) -> Result<Option<Bytes>, Failure> {
        let url = show(&self.url);
        let after = self.body_timeout * 4;
        let reading = tokio::time::timeout(after, self.read_pieces(limit)).await;
        reading.unwrap_or(Err(Failure::TooSlow { url, after }))
    }

    async fn read_pieces(self, limit: usize) -> Result<Option<Bytes>, Failure> {
        let mut whole = BytesMut::new();
        let mut pieces = self.into_body(None);
        while let Some(piece) = pieces.try_next().await? {
            if whole.len() + piece.len() > limit {
                return Ok(None);
            }
            whole.extend_from_slice(&piece);
        }
        Ok(Some(whole.freeze()))
    }

    /// What this answer says went wrong.
    pub(super) async fn said(self) -> Said {
        match self.read(ERROR_LIMIT).await {
            Ok(Some(body)) => Said::parse(&body),
            // The status says enough.
            Ok(None) | Err(_) => Said::default(),
        }
    }

    /// An answer that is none of those hoped for.
    pub(super) async fn into_failure(self) -> Failure {
        Failure::Status {
            method: self.method.clone(),
            url: show(&self.url),
            status: self.status(),
            retry_after: self.header(RETRY_AFTER).and_then(parse_retry_after),
            said: self.said().await,
        }
    }
}

/// The next piece of a body; trailers are passed over.
async fn next_data(body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
    loop {
        match body.frame().await? {
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(error) => return Some(Err(error)),
        }
    }
}

fn redirect_target<'a>(
    method: &Method,
    response: &'a Response<Incoming>,
) -> Option<&'a HeaderValue> {
    let redirects = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    // What a form was posted for is not asked for elsewhere.
    let follows = matches!(*method, Method::GET | Method::HEAD);
    response
        .headers()
        .get(LOCATION)
        .filter(|_| redirects && follows)
}

fn same_server(one: &Uri, other: &Uri) -> bool {
    one.scheme() == other.scheme() && one.authority() == other.authority()
}

/// A redirect's target: a URL, or part of one that the present URL completes (RFC 3986, 5.2).
fn resolve(from: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    let scheme = from.scheme_str()?;
    let authority = from.authority()?;
    let full = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from
            .path()
            .rsplit_once('/')
            .map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let target: Uri = full.parse().ok()?;
    let usable = matches!(target.scheme_str(), Some("http" | "https"))
        && target.host().is_some_and(|host| !host.is_empty())
        && !target.authority()?.as_str().contains('@');
    usable.then_some(target)
}

/// A URL for people: without its query, which may hold a signature.
pub(super) fn show(url: &Uri) -> String {
    let scheme = url.scheme_str().unwrap_or("https");
    let port = url
        .port()
        .map_or_else(String::new, |port| format!(":{port}"));
    format!(
        "{scheme}://{}{port}{}",
        url.host().unwrap_or_default(),
        url.path()
    )
}

fn connect_error(error: ClientError) -> ConnectError {
    let reason = deepest(&error);
    // The connector's own error is wrapped in the client's.
    let mut boxed: Option<&(dyn std::error::Error + 'static)> = error.source();
    while let Some(cause) = boxed {
        if let Some(cause) = cause.downcast_ref::<ConnectError>() {
            return cause.clone();
        }
        boxed = cause.source();
    }
    ConnectError::Broken(reason)
}

/// The innermost cause, which is the one that says something.
fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// Seconds, or a date (RFC 9110, 10.2.3).
fn parse_retry_after(value: &str) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let from: Uri = "https://r.io:5000/v2/a/blobs/x?ns=y".parse().unwrap();
        for (location, target) in [
            ("https://cdn.io/x?sig=1", Some("https://cdn.io/x?sig=1")),
            ("//cdn.io/x", Some("https://cdn.io/x")),
            ("/y", Some("https://r.io:5000/y")),
            ("y?z#f", Some("https://r.io:5000/v2/a/blobs/y?z")),
            ("ftp://cdn.io/x", None),
            ("https://user:word@cdn.io/", None),
            ("https:///x", None),
            ("file:///etc/passwd", None),
            ("https://a b/", None),
        ] {
            let resolved = resolve(&from, location).map(|uri| uri.to_string());
            assert_eq!(resolved.as_deref(), target, "{location}");
        }
    }

    #[test]
    fn waits_are_seconds_or_dates() {
        assert_eq!(parse_retry_after("3"), Some(Duration::from_secs(3)));
        let past = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(parse_retry_after(past), Some(Duration::ZERO));
        let later = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        let wait = parse_retry_after(&later).unwrap();
        assert!(wait > Duration::from_secs(50) && wait <= Duration::from_secs(100));
        assert_eq!(parse_retry_after("soon"), None);
        assert_eq!(parse_retry_after("-1"), None);
    }

    #[test]
    fn urls_are_shown_without_secrets() {
        let url = "https://user:word@cdn.io:8443/x?X-Amz-Signature=1";
        assert_eq!(show(&url.parse().unwrap()), "https://cdn.io:8443/x");
    }
}
