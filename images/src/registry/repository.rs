//! One repository: its manifests and blobs, from whichever of its servers has them.
//!
//! A request goes in rounds. In each, the servers are asked in order until one gives what is
//! wanted; a failure of the last one, which has the last word, decides whether there is another
//! round. At a server, the accounts are tried in order until one is let in.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RANGE};
use http::{Method, StatusCode};
use tokio::sync::OnceCell;

use super::Shared;
use super::auth::Asker;
use super::challenge::{Challenge, challenges};
use super::content::{Blob, Manifest, Target, expect, open_blob, read_manifest, said_digest};
use super::endpoint::Endpoint;
use super::error::{ConnectError, Failure, Operation, RegistryError, clean, not_found};
use super::outage::refused;
use super::transport::{Answer, Ask, show};
use crate::{Credentials, Digest, Reference};

/// An image's repository. Cheap to clone; holds connections while it lives.
#[derive(Clone)]
pub struct Repository {
    shared: Arc<Shared>,
    reference: Reference,
    credentials: Arc<[Credentials]>,
    endpoints: Arc<OnceCell<Vec<Endpoint>>>,
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
    /// Larger ones than [`MANIFEST_LIMIT`](super::MANIFEST_LIMIT) are refused, and so is other content than a digest in
    /// `target` names.
    pub async fn manifest(
        &self,
        target: &Target,
        accept: &[&str],
    ) -> Result<Manifest, RegistryError> {
        let wanted = self.wanted_manifest(Method::GET, target, accept);
        let check = |answer: Answer| read_manifest(answer, target).boxed();
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
        let check = |answer: Answer| {
            let check = async move {
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
            check.boxed()
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
        let check = |answer: Answer| open_blob(answer, offset, operation.clone()).boxed();
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
    async fn fetch<'a, T>(
        &self,
        wanted: &Wanted,
        check: impl Fn(Answer) -> BoxFuture<'a, Result<T, Failure>> + Sync,
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
    async fn round<'a, T>(
        &self,
        wanted: &Wanted,
        check: &(impl Fn(Answer) -> BoxFuture<'a, Result<T, Failure>> + Sync),
    ) -> Result<T, RegistryError> {
        let fail = |failure| RegistryError::new(wanted.operation.clone(), failure);
        let endpoints = self.endpoints().await.map_err(fail)?;
        let able: Vec<&Endpoint> = endpoints
            .iter()
            .filter(|endpoint| endpoint.may(wanted.resolves))
            .collect();
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
                    log_next(&server, &failure);
                    failures.push((server, failure));
                }
            }
        }
        match self.ask(last, wanted, check).await {
            Ok(found) => Ok(found),
            Err(failure) => {
                failures.push((last.server(), failure));
                Err(RegistryError::of_servers(
                    wanted.operation.clone(),
                    failures,
                ))
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
    async fn ask<'a, T>(
        &self,
        endpoint: &Endpoint,
        wanted: &Wanted,
        check: &(impl Fn(Answer) -> BoxFuture<'a, Result<T, Failure>> + Sync),
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
                    if failure.is_unreachable() {
                        endpoint.unreachable.store(true, Ordering::Relaxed);
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
        let server = endpoint.url(&self.reference, &wanted.path)?;
        // Mirrors of a registry that is out are out too.
        if self.shared.outages.hit(self.reference.registry()) {
            return Err(Failure::Request {
                method: wanted.method.clone(),
                source: refused(&server),
                url: show(&server),
            });
        }
        let shown = self.shared.auth.known(&server, asker);
        let answer = self.send(endpoint, wanted, shown).await?;
        let answer = match challenged(&answer) {
            None => answer,
            Some(challenges) => {
                // The fallback from TLS may have changed the server's URL.
                let server = endpoint.url(&self.reference, &wanted.path)?;
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
            url: endpoint.url(&self.reference, &wanted.path)?,
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
                ask.url = endpoint.url(&self.reference, &wanted.path)?;
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

/// A mirror need not have everything; other failures of it are for an operator to see.
fn log_next(server: &str, failure: &Failure) {
    match failure {
        Failure::NotFound { .. } => tracing::debug!(server, %failure, "asking the next server"),
        _ => tracing::info!(server, %failure, "a mirror failed: asking the next server"),
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
