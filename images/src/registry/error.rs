//! What can go wrong between us and a registry, in the words that users of Kubernetes know from
//! `ErrImagePull`: those of containerd and of Go's HTTP client.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{Method, StatusCode};
use serde::Deserialize;

use super::content::MANIFEST_LIMIT;
use crate::Digest;

/// A `hosts.toml`, or the folder it is in, is of no use.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not valid: {reason}", file.display())]
    Invalid { file: PathBuf, reason: String },
}

impl HostsError {
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read {
            path: path.to_owned(),
            source,
        }
    }
}

/// Why something could not be had from a registry: what was being done, what came of it, and what
/// the other servers that stand for the registry said. Never holds a secret: URLs are shown
/// without their queries, headers not at all.
#[derive(Debug)]
pub struct RegistryError(Box<Details>);

#[derive(Debug)]
struct Details {
    operation: Operation,
    failure: Failure,
    /// Whether the server that has the last word may change its mind.
    transient: bool,
    /// Server and failure of the others that were asked.
    others: Vec<(String, Failure)>,
}

impl RegistryError {
    pub(super) fn new(operation: Operation, failure: Failure) -> Self {
        Self(Box::new(Details {
            operation,
            transient: failure.is_transient(),
            failure,
            others: Vec::new(),
        }))
    }

    /// What came of asking several servers, in their order: the failure that tells most, followed
    /// by the others. If the last server said a clear no, that is it; else how far a request got
    /// counts. Without any, nobody was asked.
    pub(super) fn of_servers(operation: Operation, mut failures: Vec<(String, Failure)>) -> Self {
        let Some((_, last)) = failures.last() else {
            return Self::new(operation, Failure::NoHosts("there are none"));
        };
        let transient = last.is_transient();
        let mut best = if transient { 0 } else { failures.len() - 1 };
        for (index, (_, failure)) in failures.iter().enumerate() {
            if transient && failure.rank() > failures[best].1.rank() {
                best = index;
            }
        }
        let (_, failure) = failures.remove(best);
        Self(Box::new(Details {
            operation,
            failure,
            transient,
            others: failures,
        }))
    }

    /// Whether the same request may succeed later: the network, an overloaded registry. Not so if
    /// the registry said a clear no.
    pub fn is_transient(&self) -> bool {
        self.0.transient
    }

    /// The registry has no such repository, tag or digest, as far as it tells us.
    pub fn is_not_found(&self) -> bool {
        matches!(self.0.failure, Failure::NotFound { .. })
    }

    /// The registry wants other credentials, or any.
    pub fn is_denied(&self) -> bool {
        matches!(self.0.failure, Failure::Denied { .. })
    }

    /// How long the registry asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.failure.retry_after()
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.operation, self.0.failure)?;
        for (server, failure) in &self.0.others {
            write!(f, "; {server}: {failure}")?;
        }
        Ok(())
    }
}

/// The whole story is in its own text, so there is no source to add to it.
impl std::error::Error for RegistryError {}

/// What was being done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    /// Finding out what a name stands for; the manifest is asked for by it.
    Resolve(String),
    Blob {
        repository: String,
        digest: Digest,
    },
}

impl Operation {
    fn object(&self) -> String {
        match self {
            Self::Resolve(reference) => reference.clone(),
            Self::Blob { repository, digest } => format!("{repository}@{digest}"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve(reference) => write!(f, "failed to resolve reference \"{reference}\""),
            Self::Blob { repository, digest } => {
                write!(f, "failed to fetch {digest} of \"{repository}\"")
            }
        }
    }
}

/// One server's failure.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{object}: not found")]
    NotFound { object: String },
    #[error(
        "pull access denied, repository does not exist or may require authorization: {said}: \
         authorization failed ({who})"
    )]
    Denied { said: String, who: Attempt },
    #[error(
        "unexpected status from {method} request to {url}: {status}{said}{}",
        wait(retry_after)
    )]
    Status {
        method: Method,
        url: String,
        status: StatusCode,
        said: Said,
        retry_after: Option<Duration>,
    },
    #[error("failed to do request: {} \"{url}\": {source}", verb(method))]
    Request {
        method: Method,
        url: String,
        source: ConnectError,
    },
    #[error(
        "failed to do request: {} \"{url}\": no answer within {}",
        verb(method),
        seconds(after)
    )]
    NoAnswer {
        method: Method,
        url: String,
        after: Duration,
    },
    #[error("reading from {url}: {reason}")]
    Body { url: String, reason: String },
    #[error("reading from {url}: nothing came for {}", seconds(after))]
    Stalled { url: String, after: Duration },
    #[error("reading from {url}: not done within {}", seconds(after))]
    TooSlow { url: String, after: Duration },
    #[error("{url} leads to {target}: {reason}")]
    Redirect {
        url: String,
        target: String,
        reason: &'static str,
    },
    #[error("failed to authorize: {url}: {reason}")]
    Token { url: String, reason: String },
    #[error("{url}: {reason}")]
    Answer { url: String, reason: String },
    #[error("rejecting manifest from {url}: it is larger than {MANIFEST_LIMIT} bytes")]
    ManifestTooLarge { url: String },
    #[error(
        "{url} gave content with the digest {actual}, not {expected}: it was altered on the way \
         or in the registry"
    )]
    Mismatch {
        url: String,
        expected: Digest,
        actual: Digest,
    },
    #[error(transparent)]
    Hosts(#[from] HostsError),
    #[error("none of the servers configured for it may be asked: {0}")]
    NoHosts(&'static str),
    #[error("the work was interrupted: {0}")]
    Interrupted(String),
}

impl Failure {
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => is_transient_status(*status),
            Self::Request { source, .. } => source.is_transient(),
            Self::NoAnswer { .. }
            | Self::Body { .. }
            | Self::Stalled { .. }
            | Self::TooSlow { .. } => true,
            // Content that was damaged on the way may arrive whole the next time.
            Self::Mismatch { .. } => true,
            _ => false,
        }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The server can't be reached at all, so that asking it for the next thing is in vain too.
    pub(super) fn is_unreachable(&self) -> bool {
        match self {
            Self::Request { source, .. } => !matches!(source, ConnectError::Broken(_)),
            Self::NoAnswer { .. } => true,
            _ => false,
        }
    }

    /// Which of several servers' failures tells most: the furthest that a request got, as
    /// containerd ranks them.
    fn rank(&self) -> u8 {
        match self {
            Self::Request { .. } | Self::NoAnswer { .. } => 1,
            Self::NotFound { .. } => 2,
            Self::Denied { .. } | Self::Token { .. } => 3,
            _ => 4,
        }
    }
}

/// Answers that say nothing about the request, only about the moment.
fn is_transient_status(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
    ) || (status.is_server_error()
        && status != StatusCode::NOT_IMPLEMENTED
        && status != StatusCode::HTTP_VERSION_NOT_SUPPORTED)
}

/// With which account something was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Attempt {
    Anonymous,
    User(String),
    IdentityToken,
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous => f.write_str("no credentials were given"),
            Self::User(name) => write!(f, "tried as user '{}'", clean(name, 64)),
            Self::IdentityToken => f.write_str("tried with an identity token"),
        }
    }
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("dial tcp: lookup {host}: {reason}")]
    Lookup { host: String, reason: String },
    #[error("dial tcp {address}: {reason}")]
    Tcp { address: String, reason: String },
    #[error("dial tcp {address}: i/o timeout after {}", seconds(after))]
    Timeout { address: String, after: Duration },
    #[error("proxyconnect {proxy}: {reason}")]
    Proxy { proxy: String, reason: String },
    #[error("http: server gave HTTP response to HTTPS client")]
    NotTls,
    #[error("tls: failed to verify certificate: {reason}")]
    Certificate { reason: String },
    #[error("tls: {reason}")]
    Tls { reason: String },
    /// A CA or client certificate that was configured can't be used.
    #[error("{0}")]
    TlsSettings(String),
    #[error("{0}")]
    Broken(String),
}

impl ConnectError {
    fn is_transient(&self) -> bool {
        match self {
            Self::Lookup { .. }
            | Self::Tcp { .. }
            | Self::Timeout { .. }
            | Self::Proxy { .. }
            | Self::Broken(_) => true,
            Self::NotTls | Self::Certificate { .. } | Self::Tls { .. } | Self::TlsSettings(_) => {
                false
            }
        }
    }
}

/// What a registry says of an error in its answer's body: `{"errors": [{"code", "message"}]}`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Said(Vec<String>);

impl Said {
    /// Reads an answer's body. What is not in the form of the specification is nothing.
    pub(super) fn parse(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Body {
            #[serde(default)]
            errors: Vec<Entry>,
            /// Token servers and some registries.
            details: Option<String>,
        }
        #[derive(Deserialize)]
        struct Entry {
            #[serde(default)]
            code: Option<serde_json::Value>,
            #[serde(default)]
            message: Option<String>,
        }
        let Ok(body) = serde_json::from_slice::<Body>(body) else {
            return Self::default();
        };
        let errors = body.errors.into_iter().take(3).map(|entry| {
            let code = match entry.code {
                Some(serde_json::Value::String(code)) => code.to_lowercase().replace('_', " "),
                _ => "unknown".to_owned(),
            };
            let message = entry.message.filter(|message| !message.is_empty());
            match message {
                Some(message) => format!("{}: {}", clean(&code, 64), clean(&message, 256)),
                None => clean(&code, 64),
            }
        });
        let details = body.details.iter().map(|details| clean(details, 256));
        Self(errors.chain(details).collect())
    }

    /// One line of it, or something else.
    pub(super) fn or(&self, otherwise: &str) -> String {
        match self.0.is_empty() {
            true => otherwise.to_owned(),
            false => self.0.join(", "),
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_empty() {
            true => Ok(()),
            false => write!(f, ": {}", self.0.join(", ")),
        }
    }
}

/// A stranger's text, fit for a terminal and an event: bounded, without control characters.
pub(crate) fn clean(text: &str, limit: usize) -> String {
    let mut clean: String = text
        .chars()
        .filter(|c| !c.is_control())
        .take(limit)
        .collect();
    if text.chars().nth(limit).is_some() {
        clean.push_str("...");
    }
    clean
}

/// Go's HTTP client writes `Get`, not `GET`, in its errors.
fn verb(method: &Method) -> &'static str {
    match *method {
        Method::HEAD => "Head",
        Method::POST => "Post",
        _ => "Get",
    }
}

fn seconds(duration: &Duration) -> String {
    format!("{}s", duration.as_secs_f64())
}

fn wait(retry_after: &Option<Duration>) -> String {
    match retry_after {
        Some(after) => format!(" (try again after {})", seconds(after)),
        None => String::new(),
    }
}

/// The failure of an operation whose object is not there.
pub(super) fn not_found(operation: &Operation) -> Failure {
    Failure::NotFound {
        object: operation.object(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: StatusCode) -> Failure {
        Failure::Status {
            method: Method::GET,
            url: "https://r.io/v2/a/manifests/b".to_owned(),
            status,
            said: Said::parse(
                br#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow\u001b down"}]}"#,
            ),
            retry_after: Some(Duration::from_secs(3)),
        }
    }

    #[test]
    fn texts_are_those_of_containerd() {
        let resolve = |failure| {
            let operation = Operation::Resolve("docker.io/library/x:latest".to_owned());
            RegistryError::new(operation, failure).to_string()
        };
        let object = "docker.io/library/x:latest".to_owned();
        assert_eq!(
            resolve(Failure::NotFound { object }),
            "failed to resolve reference \"docker.io/library/x:latest\": \
             docker.io/library/x:latest: not found"
        );
        let denied = Failure::Denied {
            said: "server message: insufficient_scope".to_owned(),
            who: Attempt::User("me".to_owned()),
        };
        assert_eq!(
            resolve(denied),
            "failed to resolve reference \"docker.io/library/x:latest\": pull access denied, \
             repository does not exist or may require authorization: server message: \
             insufficient_scope: authorization failed (tried as user 'me')"
        );
        assert_eq!(
            resolve(status(StatusCode::TOO_MANY_REQUESTS)),
            "failed to resolve reference \"docker.io/library/x:latest\": unexpected status from \
             GET request to https://r.io/v2/a/manifests/b: 429 Too Many Requests: \
             toomanyrequests: slow down (try again after 3s)"
        );
    }

    #[test]
    fn what_may_pass_is_told_from_what_will_not() {
        for (code, transient) in [
            (400, false),
            (403, false),
            (408, true),
            (429, true),
            (500, true),
            (501, false),
            (502, true),
            (503, true),
            (504, true),
        ] {
            let failure = status(StatusCode::from_u16(code).unwrap());
            assert_eq!(failure.is_transient(), transient, "{code}");
        }
        assert!(!ConnectError::NotTls.is_transient());
    }

    #[test]
    fn a_strangers_words_are_bounded() {
        let body = serde_json::json!({"errors": vec![
            serde_json::json!({"code": "A", "message": "m".repeat(10_000)}); 1000
        ]});
        let said = Said::parse(&serde_json::to_vec(&body).unwrap()).to_string();
        assert!(said.len() < 1000, "{}", said.len());
        assert_eq!(Said::parse(b"<html>"), Said::default());
        assert_eq!(
            Said::parse(b"{\"errors\":[{\"code\":3}]}").or(""),
            "unknown"
        );
        assert_eq!(Said::default().or("nothing"), "nothing");
    }
}
