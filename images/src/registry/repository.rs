//! One repository: its manifests and blobs, from whichever of its servers has them.
//!
//! A request goes in rounds. In each, the servers are asked in order until one gives what is
//! wanted; a failure of the last one, which has the last word, decides whether there is another
//! round. At a server, the accounts are tried in order until one is let in.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName,
    HeaderValue, RANGE,
};
use http::{Method, StatusCode, Uri};
use tokio::sync::OnceCell;

use super::Shared;
use super::auth::Asker;
use super::challenge::{Challenge, challenges};
use super::error::{ConnectError, Failure, Operation, RegistryError, clean, not_found};
use super::hosts::{Host, Protocol};
use super::transport::{Answer, Ask, Transport, show};
use crate::{Credentials, Digest, Reference};

/// The largest manifest or index that is read, in bytes: what containerd and the distribution
/// specification agree on.
pub const MANIFEST_LIMIT: usize = 4 * 1024 * 1024;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// An image's repository. Cheap to clone; holds connections while it lives.
#[derive(Clone)]
pub struct Repository {
    shared: Arc<Shared>,
    reference: Reference,
    credentials: Arc<[Credentials]>,
    endpoints: Arc<OnceCell<Vec<Endpoint>>>,
}

/// A server that may be asked, and what was learnt about it.
pub(super) struct Endpoint {
    host: Host,
    transport: Arc<Transport>,
    /// It turned out not to speak TLS.
    plain: AtomicBool,
    /// There was no connection to it.
    unreachable: AtomicBool,
    /// Which account it let in, or the first not refused yet.
    account: AtomicUsize,
}

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Tag(String),
    Digest(Digest),
}

impl From<Digest> for Target {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A manifest or an index, as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    pub bytes: Bytes,
    /// As the registry says, or else as the manifest itself does; empty if neither.
    pub media_type: String,
    /// Of `bytes`: computed, and the one asked for if one was.
    pub digest: Digest,
}

/// A blob's bytes, arriving. They are not verified: whoever has all of them does that.
pub struct Blob {
    /// Where the stream starts: at the offset asked for, or before it (mostly at 0) if the
    /// registry knows no ranges.
    pub offset: u64,
    /// The size of the whole blob, if the registry tells.
    pub total: Option<u64>,
    /// Ends at the blob's end. An error ends it too; a transient one means that the rest can be
    /// asked for again.
    pub stream: BoxStream<'static, Result<Bytes, RegistryError>>,
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blob")
            .field("offset", &self.offset)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

/// One thing to ask the servers for.
struct Wanted {
    operation: Operation,
    method: Method,
    /// Below the repository: `manifests/latest`.
    path: String,
    headers: HeaderMap,
    /// Only servers that may say what a tag stands for.
    resolves: bool,
}

impl Repository {
    pub(super) fn new(
        shared: Arc<Shared>,
        reference: Reference,
        credentials: Arc<[Credentials]>,
    ) -> Self {
        Self {
            shared,
            reference,
            credentials,
            endpoints: Arc::default(),
        }
    }

    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// What the reference names: its digest if it has one, else its tag.
    pub fn target(&self) -> Target {
        match (self.reference.digest(), self.reference.tag()) {
            (Some(digest), _) => Target::Digest(digest),
            (None, tag) => Target::Tag(tag.unwrap_or("latest").to_owned()),
        }
    }

    /// A manifest or index of one of the media types given, or of any if the registry likes. The
    /// registry is asked by HEAD first only if the caller does so: see [`Self::resolve`].
    ///
    /// Larger ones than [`MANIFEST_LIMIT`] are refused, and so is other content than a digest in
    /// `target` names.
    pub async fn manifest(
        &self,
        target: &Target,
        accept: &[&str],
    ) -> Result<Manifest, RegistryError> {
        let wanted = self.wanted_manifest(Method::GET, target, accept);
        let check = async |answer: Answer| read_manifest(answer, target).await;
        self.fetch(&wanted, check).await
    }

    /// The digest that a tag stands for now, or the one asked for if it is there, without
    /// fetching the manifest (which registries count against their limits). `None` if the
    /// registry doesn't tell.
    pub async fn resolve(
        &self,
        target: &Target,
        accept: &[&str],
    ) -> Result<Option<Digest>, RegistryError> {
        let wanted = self.wanted_manifest(Method::HEAD, target, accept);
        let check = async |answer: Answer| {
            // Some registries know manifests by GET alone.
            if answer.status() == StatusCode::METHOD_NOT_ALLOWED {
                return Ok(None);
            }
            let answer = expect(answer, &[StatusCode::OK]).await?;
            match target {
                Target::Digest(digest) => Ok(Some(*digest)),
                Target::Tag(_) => Ok(said_digest(&answer)),
            }
        };
        self.fetch(&wanted, check).await
    }

    /// A blob's bytes from an offset on; whether they start there, the answer tells.
    pub async fn blob(&self, digest: &Digest, offset: u64) -> Result<Blob, RegistryError> {
        let operation = Operation::Blob {
            repository: self.reference.name(),
            digest: *digest,
        };
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = HeaderValue::try_from(format!("bytes={offset}-"));
            headers.extend(range.ok().map(|range| (RANGE, range)));
        }
        let wanted = Wanted {
            operation: operation.clone(),
            method: Method::GET,
            path: format!("blobs/{digest}"),
            headers,
            resolves: false,
        };
        let check = async |answer: Answer| open_blob(answer, offset, operation.clone()).await;
        self.fetch(&wanted, check).await
    }

    fn wanted_manifest(&self, method: Method, target: &Target, accept: &[&str]) -> Wanted {
        let reference = match target {
            Target::Digest(digest) => self.reference.at_digest(*digest).to_string(),
            Target::Tag(tag) => format!("{}:{tag}", self.reference.name()),
        };
        let accept = match accept {
            [] => "*/*".to_owned(),
            types => types.join(", "),
        };
        let accept = HeaderValue::try_from(accept).ok();
        Wanted {
            operation: Operation::Resolve(reference),
            method,
            path: format!("manifests/{target}"),
            headers: accept.map(|accept| (ACCEPT, accept)).into_iter().collect(),
            resolves: matches!(target, Target::Tag(_)),
        }
    }

    /// Asks the servers in rounds, until one has given what passes the check.
    async fn fetch<T>(
        &self,
        wanted: &Wanted,
        check: impl AsyncFn(Answer) -> Result<T, Failure>,
    ) -> Result<T, RegistryError> {
        let policy = self.shared.config.retry;
        let mut round = 0;
        loop {
            let error = match self.round(wanted, &check).await {
                Ok(found) => return Ok(found),
                Err(error) => error,
            };
            let wait = match error.is_transient() {
                true => policy.wait(round, error.retry_after()),
                false => None,
            };
            let Some(wait) = wait else {
                return Err(error);
            };
            tracing::debug!(%error, ?wait, "asking the registry again");
            tokio::time::sleep(wait).await;
            round += 1;
        }
    }

    /// Asks each server once.
    async fn round<T>(
        &self,
        wanted: &Wanted,
        check: &impl AsyncFn(Answer) -> Result<T, Failure>,
    ) -> Result<T, RegistryError> {
        let fail = |failure| RegistryError::new(wanted.operation.clone(), failure);
        let endpoints = self.endpoints().await.map_err(fail)?;
        let able: Vec<&Endpoint> = endpoints.iter().filter(|e| e.may(wanted)).collect();
        let Some((last, mirrors)) = able.split_last() else {
            let reason = "no entry has the capabilities 'pull' and, for tags, 'resolve'";
            return Err(fail(Failure::NoHosts(reason)));
        };
        let mut failures = Vec::new();
        for endpoint in mirrors {
            // Its failure is known already, and may have taken long to learn.
            if endpoint.unreachable.load(Ordering::Relaxed) {
                continue;
            }
            match self.ask(endpoint, wanted, check).await {
                Ok(found) => return Ok(found),
                Err(failure) => {
                    let server = endpoint.server();
                    tracing::info!(server, %failure, "asking the next server of the registry");
                    failures.push((server, failure));
                }
            }
        }
        match self.ask(last, wanted, check).await {
            Ok(found) => Ok(found),
            Err(failure) => {
                failures.push((last.server(), failure));
                Err(combine(wanted.operation.clone(), failures))
            }
        }
    }

    async fn endpoints(&self) -> Result<&[Endpoint], Failure> {
        let registry = self.reference.registry();
        let endpoints = self
            .endpoints
            .get_or_try_init(|| self.shared.endpoints(registry));
        Ok(endpoints.await?.as_slice())
    }

    /// Asks one server, with each account in turn as long as it refuses them.
    async fn ask<T>(
        &self,
        endpoint: &Endpoint,
        wanted: &Wanted,
        check: &impl AsyncFn(Answer) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let begin = endpoint.account.load(Ordering::Relaxed);
        // Without any, once, as nobody.
        let end = self.credentials.len().max(1);
        let mut index = begin;
        loop {
            let account = self.credentials.get(index);
            let asked = self.ask_as(endpoint, wanted, account).await;
            let outcome = match asked {
                Ok(answer) => check(answer).await,
                Err(failure) => Err(failure),
            };
            index += 1;
            match outcome {
                // Some registries hide what one may not see.
                Err(Failure::Denied { .. } | Failure::NotFound { .. }) if index < end => {}
                Err(failure) => {
                    if let Failure::Request { source, .. } = &failure {
                        let unreachable = source.is_unreachable();
                        endpoint.unreachable.store(unreachable, Ordering::Relaxed);
                    }
                    return Err(failure);
                }
                Ok(found) => {
                    endpoint.account.store(index - 1, Ordering::Relaxed);
                    return Ok(found);
                }
            }
        }
    }

    /// Asks one server as one account; an answer other than a refusal is for the caller.
    async fn ask_as(
        &self,
        endpoint: &Endpoint,
        wanted: &Wanted,
        account: Option<&Credentials>,
    ) -> Result<Answer, Failure> {
        let scope = format!("repository:{}:pull", self.reference.repository());
        let asker = Asker {
            account,
            scope: &scope,
        };
        let server = endpoint.url(self, wanted)?;
        let shown = self.shared.auth.known(&server, asker);
        let answer = self.send(endpoint, wanted, shown).await?;
        let answer = match challenged(&answer) {
            None => answer,
            Some(challenges) => {
                // The fallback from TLS may have changed the server's URL.
                let server = endpoint.url(self, wanted)?;
                let auth = &self.shared.auth;
                let answered = auth.answer(&endpoint.transport, &server, &challenges, asker);
                match answered.await? {
                    Some(shown) => self.send(endpoint, wanted, Some(shown)).await?,
                    None => answer,
                }
            }
        };
        match answer.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if !answer.foreign => {
                Err(denied(answer, asker).await)
            }
            StatusCode::NOT_FOUND => Err(not_found(&wanted.operation)),
            _ => Ok(answer),
        }
    }

    async fn send(
        &self,
        endpoint: &Endpoint,
        wanted: &Wanted,
        authorization: Option<HeaderValue>,
    ) -> Result<Answer, Failure> {
        let mut private = endpoint.headers();
        if let Some(authorization) = authorization {
            private.insert(AUTHORIZATION, authorization);
        }
        let mut ask = Ask {
            method: wanted.method.clone(),
            url: endpoint.url(self, wanted)?,
            headers: wanted.headers.clone(),
            private,
            body: Bytes::new(),
        };
        match endpoint.transport.send(ask.clone()).await {
            Err(Failure::Request {
                source: ConnectError::NotTls,
                ..
            }) if endpoint.falls_back() => {
                endpoint.plain.store(true, Ordering::Relaxed);
                ask.url = endpoint.url(self, wanted)?;
                endpoint.transport.send(ask).await
            }
            answered => answered,
        }
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("reference", &self.reference)
            .field("credentials", &self.credentials)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    pub(super) fn new(transport: Arc<Transport>, host: Host) -> Self {
        Self {
            host,
            transport,
            plain: AtomicBool::new(false),
            unreachable: AtomicBool::new(false),
            account: AtomicUsize::new(0),
        }
    }

    fn may(&self, wanted: &Wanted) -> bool {
        let capabilities = self.host.capabilities;
        capabilities.pull && (capabilities.resolve || !wanted.resolves)
    }

    fn falls_back(&self) -> bool {
        self.host.protocol == Protocol::HttpsOrHttp && !self.plain.load(Ordering::Relaxed)
    }

    fn scheme(&self) -> &'static str {
        match self.host.protocol {
            Protocol::Https => "https",
            Protocol::Http => "http",
            Protocol::HttpsOrHttp if self.plain.load(Ordering::Relaxed) => "http",
            Protocol::HttpsOrHttp => "https",
        }
    }

    fn server(&self) -> String {
        format!("{}://{}", self.scheme(), self.host.authority)
    }

    fn headers(&self) -> HeaderMap {
        let headers = self.host.headers.iter();
        // They were checked when they were read.
        let parsed = headers.filter_map(|(name, value)| {
            let name = HeaderName::try_from(name).ok()?;
            Some((name, HeaderValue::try_from(value).ok()?))
        });
        let mut headers = HeaderMap::new();
        for (name, value) in parsed {
            headers.append(name, value);
        }
        headers
    }

    fn url(&self, repository: &Repository, wanted: &Wanted) -> Result<Uri, Failure> {
        let reference = &repository.reference;
        let url = format!(
            "{}{}/{}/{}{}",
            self.server(),
            self.host.path,
            reference.repository(),
            wanted.path,
            self.namespace(reference.registry())
        );
        url.parse().map_err(|_| Failure::Answer {
            url: self.server(),
            reason: "this is not the URL of a registry".to_owned(),
        })
    }

    /// Mirrors are told whose images they are asked for, as containerd does.
    fn namespace(&self, registry: &str) -> String {
        let own = match registry {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        if self.host.authority == own || self.host.authority == registry {
            return String::new();
        }
        let registry: String = form_urlencoded::byte_serialize(registry.as_bytes()).collect();
        format!("?ns={registry}")
    }
}

/// The failure that tells most, followed by the others.
fn combine(operation: Operation, mut failures: Vec<(String, Failure)>) -> RegistryError {
    let transient = failures.last().is_some_and(|(_, last)| last.is_transient());
    let mut best = 0;
    for (index, (_, failure)) in failures.iter().enumerate() {
        if failure.rank() > failures[best].1.rank() {
            best = index;
        }
    }
    let (_, failure) = failures.remove(best);
    RegistryError {
        operation,
        failure,
        transient,
        others: failures
            .into_iter()
            .map(|(server, failure)| (server, failure.to_string()))
            .collect(),
    }
}

/// A 401's challenges. A server that one was led to has no business with our accounts.
fn challenged(answer: &Answer) -> Option<Vec<Challenge>> {
    let unauthorized = answer.status() == StatusCode::UNAUTHORIZED && !answer.foreign;
    unauthorized.then(|| challenges(answer.response.headers()))
}

async fn denied(answer: Answer, asker: Asker<'_>) -> Failure {
    let error = challenges(answer.response.headers())
        .into_iter()
        .find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => bearer.error,
            Challenge::Basic => None,
        });
    let who = asker.attempt();
    let said = match error {
        Some(error) => format!("server message: {}", clean(&error, 64)),
        None => {
            let status = answer.status().to_string();
            answer.said().await.or(&status)
        }
    };
    Failure::Denied { said, who }
}

async fn expect(answer: Answer, statuses: &[StatusCode]) -> Result<Answer, Failure> {
    match statuses.contains(&answer.status()) {
        true => Ok(answer),
        false => Err(answer.into_failure().await),
    }
}

/// The digest that a registry says its manifest has.
fn said_digest(answer: &Answer) -> Option<Digest> {
    answer.header(DOCKER_CONTENT_DIGEST)?.parse().ok()
}

async fn read_manifest(answer: Answer, target: &Target) -> Result<Manifest, Failure> {
    let answer = expect(answer, &[StatusCode::OK]).await?;
    let url = show(&answer.url);
    let expected = match target {
        Target::Digest(digest) => Some(*digest),
        Target::Tag(_) => said_digest(&answer),
    };
    let said_type = answer.header(CONTENT_TYPE).and_then(media_type);
    let length = content_length(&answer);
    if length.is_some_and(|length| length > MANIFEST_LIMIT as u64) {
        return Err(Failure::ManifestTooLarge { url });
    }
    let Some(bytes) = answer.read(MANIFEST_LIMIT).await? else {
        return Err(Failure::ManifestTooLarge { url });
    };
    let digest = Digest::of(&bytes);
    match expected {
        Some(expected) if expected != digest => Err(Failure::Mismatch {
            url,
            expected,
            actual: digest,
        }),
        _ => Ok(Manifest {
            media_type: said_type.unwrap_or_else(|| own_media_type(&bytes)),
            bytes,
            digest,
        }),
    }
}

/// Without its parameters; nothing for the types that mean "some file".
fn media_type(header: &str) -> Option<String> {
    let name = header.split(';').next().unwrap_or_default().trim();
    let vague = matches!(
        name,
        "" | "text/plain" | "application/json" | "application/octet-stream"
    );
    (!vague).then(|| name.to_ascii_lowercase())
}

/// What a manifest says it is.
fn own_media_type(bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Typed {
        #[serde(rename = "mediaType")]
        media_type: Option<String>,
    }
    let typed: Option<Typed> = serde_json::from_slice(bytes).ok();
    typed.and_then(|typed| typed.media_type).unwrap_or_default()
}

async fn open_blob(answer: Answer, offset: u64, operation: Operation) -> Result<Blob, Failure> {
    let url = show(&answer.url);
    let fail = |reason: String| Failure::Answer {
        url: url.clone(),
        reason,
    };
    let length = content_length(&answer);
    let range = answer.header(CONTENT_RANGE).map(ContentRange::parse);
    let (start, length, total) = match (answer.status(), range) {
        (StatusCode::OK, _) => (0, length, length),
        (StatusCode::PARTIAL_CONTENT, Some(Some(ContentRange::Part { first, last, total })))
            if first <= offset =>
        {
            (first, Some(last - first + 1), total)
        }
        (StatusCode::PARTIAL_CONTENT, _) => {
            let reason = format!("it gave another part than the one from byte {offset} on");
            return Err(fail(reason));
        }
        // Nothing is left to fetch.
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(Some(ContentRange::Outside { total })))
            if offset == total =>
        {
            return Ok(Blob {
                offset,
                total: Some(total),
                stream: futures::stream::empty().boxed(),
            });
        }
        _ => return Err(answer.into_failure().await),
    };
    let body = answer.into_body(length);
    Ok(Blob {
        offset: start,
        total,
        stream: body
            .map_err(move |failure| RegistryError::new(operation.clone(), failure))
            .boxed(),
    })
}

fn content_length(answer: &Answer) -> Option<u64> {
    answer.header(CONTENT_LENGTH)?.parse().ok()
}

/// A `Content-Range` (RFC 9110, 14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContentRange {
    Part {
        first: u64,
        last: u64,
        total: Option<u64>,
    },
    Outside {
        total: u64,
    },
}

impl ContentRange {
    fn parse(text: &str) -> Option<Self> {
        let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
        if range == "*" {
            let total = total.parse().ok()?;
            return Some(Self::Outside { total });
        }
        let (first, last) = range.split_once('-')?;
        let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
        let total = match total {
            "*" => None,
            total => Some(total.parse().ok()?),
        };
        let sound = first <= last && last < total.unwrap_or(u64::MAX);
        sound.then_some(Self::Part { first, last, total })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_with_suspicion() {
        let part = |first, last, total| Some(ContentRange::Part { first, last, total });
        for (text, range) in [
            ("bytes 5-9/10", part(5, 9, Some(10))),
            ("bytes 5-9/*", part(5, 9, None)),
            ("bytes */10", Some(ContentRange::Outside { total: 10 })),
            ("bytes 5-10/10", None),
            ("bytes 9-5/10", None),
            ("bytes 0-18446744073709551615/*", None),
            ("bytes -5/10", None),
            ("items 0-1/2", None),
            ("bytes 0-1", None),
            ("", None),
        ] {
            assert_eq!(ContentRange::parse(text), range, "{text}");
        }
    }

    #[test]
    fn vague_media_types_are_none() {
        assert_eq!(
            media_type("application/vnd.OCI.image.index.v1+json; charset=utf-8").as_deref(),
            Some("application/vnd.oci.image.index.v1+json")
        );
        assert_eq!(media_type("application/json"), None);
        assert_eq!(media_type(""), None);
        assert_eq!(own_media_type(b"{\"mediaType\": \"a/b\"}"), "a/b");
        assert_eq!(own_media_type(b"nonsense"), "");
    }
}
