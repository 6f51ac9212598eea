//! Becoming a node of a cluster, and staying one.
//!
//! ```text
//! token -> discover: authority, unverified -> does its pin match? -> clocks, versions
//!       -> request: a key made here, signed by the cluster (system:node:NAME) -> store
//!       -> client: HTTPS with that certificate -> request: one for the node's own endpoint
//! certificates at 80 % of their life -> upkeep: both anew
//!                                       -> expired meanwhile? request, once more with the token
//! ```
//!
//! A node that joined once needs neither token nor server to start: what it knows is in its data
//! directory.

mod certificate;
mod client;
mod discover;
mod request;
mod store;
mod token;
mod upkeep;

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use http::Uri;
use jiff::Timestamp;
use kube::Client;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

pub use store::ClusterRecord;
pub use token::{JoinToken, MalformedToken, Pin};
pub use upkeep::Upkeep;

use crate::identity::Identity;
use crate::node::KUBELET_VERSION;
use crate::server::{Credentials, Serving};
use certificate::{KeyAndCertificate, KeyAndRequest};
use client::{Replaceable, Server};
use request::{Purpose, request};
use store::{Member, NodeRecord, Store};

/// How long a start waits for an answer of a server that it does not depend on.
const GLANCE: Duration = Duration::from_secs(2);

/// Who wants to be a node of what.
#[derive(Debug, Clone)]
pub struct JoinConfig {
    pub identity: Identity,
    /// `https://HOST:PORT`
    pub server: String,
    /// Needed the first time, and when the node was away for longer than its certificate lives.
    pub token: Option<JoinToken>,
    pub node_name: String,
    /// Where the node is reached.
    pub address: IpAddr,
}

/// A node's way into the cluster.
pub struct Membership {
    pub client: Client,
    pub credentials: Credentials,
    pub cluster: ClusterRecord,
    /// The authority (PEM) of the cluster's certificates.
    pub authority: String,
    pub upkeep: Upkeep,
}

/// Why a host is not a node; each a line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("{0} is no API server's URL: it has the form https://HOST:PORT")]
    BadUrl(String),
    #[error(
        "cannot reach the API server at {server}: {reason}; check --server, and that the server listens where this host reaches it"
    )]
    Unreachable { server: String, reason: String },
    #[error("what answers at {0} is not a cluster that hosts can join")]
    NotACluster(String),
    #[error(
        "the cluster at {server} has another certificate authority (sha256 {found}) than the one the token is for ({expected}): the token is another cluster's, or somebody stands in between"
    )]
    WrongPin {
        server: String,
        found: Pin,
        expected: Pin,
    },
    #[error(
        "this host's clock is {seconds} s {direction} the API server's: set the time of both (NTP), then try again"
    )]
    ClockSkew {
        seconds: u64,
        direction: &'static str,
    },
    #[error(
        "the API server refused the token ({0}): it is mistyped, has expired or was deleted; `skiff token create` makes another"
    )]
    TokenRefused(String),
    #[error("{0}: choose another --node-name, or stop that node first")]
    NameInUse(String),
    #[error(
        "this agent is {agent}, newer than the API server ({server}): upgrade the server first"
    )]
    TooNew { agent: String, server: String },
    #[error(
        "this agent is {agent}, more than three minor versions older than the API server ({server}): upgrade the agent"
    )]
    TooOld { agent: String, server: String },
    #[error(
        "this host has not joined a cluster yet: give it a --token (`skiff token create` on the server makes one)"
    )]
    NoToken,
    #[error(
        "the certificate of node {0} has expired while it was away: give it a new --token (`skiff token create` on the server)"
    )]
    Expired(String),
    #[error(
        "this data directory belongs to a node of another cluster: `skiff down --purge` removes that, or choose another --data-dir"
    )]
    OtherCluster,
    #[error(
        "the node of this data directory is {found}, not {wanted}: leave out --node-name, or choose another --data-dir"
    )]
    OtherName { found: String, wanted: String },
    #[error("no certificate for this node: {0}")]
    Certificate(String),
    #[error("cannot make a key: {0}")]
    Key(#[from] rcgen::Error),
    #[error("the node's credentials in the data directory: {0}")]
    Store(#[from] io::Error),
}

impl JoinError {
    fn unreachable(server: &Uri, error: &dyn Error) -> Self {
        Self::Unreachable {
            server: server.to_string(),
            reason: reason_of(error),
        }
    }
}

/// Makes this host a node, or finds that it is one.
///
/// # Errors
/// With one line that says what is wrong.
pub async fn join(config: JoinConfig) -> Result<Membership, JoinError> {
    let url = parse_url(&config.server)?;
    let store = Store::new(config.identity.agent_root().join("pki"));
    let loading = store.clone();
    let known = blocking(move || loading.load()).await?;
    let (server, member) = match known {
        Some(member) => rejoin(&config, &url, &store, member).await?,
        None => {
            let token = config.token.as_ref().ok_or(JoinError::NoToken)?;
            join_first(&config, &url, &store, token).await?
        }
    };
    let built = server.with_certificate(&member.client);
    let connection = Replaceable::new(built.map_err(|e| JoinError::Certificate(e.to_string()))?);
    let addresses = vec![config.address];
    let serving_pair = serving_pair(&connection, &store, &member, &addresses).await?;
    let unusable = || JoinError::Certificate("what is stored is no certificate".into());
    let (chain, key) = serving_pair.der().ok_or_else(unusable)?;
    let serving = Serving::new(chain, key).map_err(|e| JoinError::Certificate(e.to_string()))?;
    let authority = CertificateDer::from_pem_slice(member.authority.as_bytes());
    Ok(Membership {
        client: connection.client(),
        credentials: Credentials {
            serving: serving.clone(),
            client_authority: authority.map_err(|_| unusable())?,
        },
        cluster: member.record.cluster,
        authority: member.authority,
        upkeep: Upkeep {
            node: member.record.name,
            addresses,
            server,
            token: config.token,
            store,
            connection,
            client: member.client,
            serving,
            serving_pair,
        },
    })
}

async fn join_first(
    config: &JoinConfig,
    url: &Uri,
    store: &Store,
    token: &JoinToken,
) -> Result<(Server, Member), JoinError> {
    let found = discover::discover(url, token.pin).await?;
    let client = found.server.with_token(&token.bearer());
    let client = client.map_err(|e| JoinError::unreachable(url, &e))?;
    discover::check_version(&client, url, KUBELET_VERSION).await?;
    let made = KeyAndRequest::new(&config.node_name, &[])?;
    let pair = request(&client, Purpose::Client, made).await?;
    let member = Member {
        record: NodeRecord {
            name: config.node_name.clone(),
            cluster: found.cluster,
        },
        authority: found.server.authority.clone(),
        client: pair,
        serving: None,
    };
    let (saving, kept) = (store.clone(), member.clone());
    blocking(move || saving.save(&kept)).await?;
    tracing::info!(node = config.node_name, server = %url, "joined the cluster");
    Ok((found.server, member))
}

/// A node that joined before goes on as it is, whether the server answers or not.
async fn rejoin(
    config: &JoinConfig,
    url: &Uri,
    store: &Store,
    member: Member,
) -> Result<(Server, Member), JoinError> {
    if member.record.name != config.node_name {
        return Err(JoinError::OtherName {
            found: member.record.name,
            wanted: config.node_name.clone(),
        });
    }
    let pin = config.token.as_ref().map(|token| token.pin);
    if pin.is_some() && pin != Pin::of_pem(&member.authority) {
        return Err(JoinError::OtherCluster);
    }
    if !member.client.is_valid(Timestamp::now()) {
        let expired = || JoinError::Expired(config.node_name.clone());
        let token = config.token.as_ref().ok_or_else(expired)?;
        return join_first(config, url, store, token).await;
    }
    let server = Server {
        url: url.clone(),
        authority: member.authority.clone(),
    };
    let client = server.with_certificate(&member.client);
    let client = client.map_err(|e| JoinError::unreachable(url, &e))?;
    let check = discover::check_version(&client, url, KUBELET_VERSION);
    match tokio::time::timeout(GLANCE, check).await {
        Ok(Err(
            error @ (JoinError::TooNew { .. }
            | JoinError::TooOld { .. }
            | JoinError::ClockSkew { .. }
            | JoinError::NotACluster(_)),
        )) => Err(error),
        Ok(Err(error)) => {
            tracing::warn!(%error, "the node goes on without the control plane");
            Ok((server, member))
        }
        Ok(Ok(())) => Ok((server, member)),
        Err(_) => {
            tracing::warn!(server = %url, "the API server is slow to answer; the node goes on");
            Ok((server, member))
        }
    }
}

/// The certificate of the node's own endpoint: the stored one where it still fits.
async fn serving_pair(
    connection: &Replaceable,
    store: &Store,
    member: &Member,
    addresses: &[IpAddr],
) -> Result<KeyAndCertificate, JoinError> {
    let now = Timestamp::now();
    let fits = |pair: &&KeyAndCertificate| pair.is_valid(now) && pair.covers(addresses);
    if let Some(pair) = member.serving.as_ref().filter(fits) {
        return Ok(pair.clone());
    }
    let made = KeyAndRequest::new(&member.record.name, addresses)?;
    let pair = request(&connection.client(), Purpose::Serving, made).await?;
    let (saving, kept) = (store.clone(), pair.clone());
    blocking(move || saving.save_serving(&kept)).await?;
    Ok(pair)
}

fn parse_url(text: &str) -> Result<Uri, JoinError> {
    let bad = || JoinError::BadUrl(text.to_owned());
    let url: Uri = text.trim_end_matches('/').parse().map_err(|_| bad())?;
    let is_whole = url.scheme_str() == Some("https") && url.host().is_some();
    is_whole.then_some(url).ok_or_else(bad)
}

/// The last cause of an error: what the system said.
fn reason_of(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

/// The message of an API's Status.
fn reason(body: &[u8]) -> String {
    let status: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let message = status["message"].as_str().unwrap_or("Unauthorized");
    message.to_owned()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, JoinError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_an_https_url() {
        assert!(parse_url("https://10.0.0.1:6443/").is_ok());
        for wrong in [
            "10.0.0.1:6443",
            "http://10.0.0.1:6443",
            "https://",
            "",
            "x y",
        ] {
            assert!(
                matches!(parse_url(wrong), Err(JoinError::BadUrl(_))),
                "{wrong}"
            );
        }
    }
}
