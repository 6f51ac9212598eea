//! Renewing the node's certificates before they end.
//!
//! A node that was cut off until its certificate had expired can't prove any more who it is. If it was given a token that
//! is still good it joins again by that; else it says so, and goes on trying: its pods run on meanwhile, and an
//! agent that is started with a new token finds them.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;

use super::certificate::{KeyAndCertificate, KeyAndRequest};
use super::client::{Replaceable, Server};
use super::request::{Purpose, request};
use super::store::Store;
use super::token::JoinToken;
use super::{JoinError, discover};
use crate::server::Serving;

/// The clock may be set, or the host sleep: the time is looked at again at least this often.
const LOOK: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_secs(1);
/// Short, since a node with an expired certificate is of no use to the cluster until it has a new one.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// Keeps a node's certificates good, for as long as [`Upkeep::run`] is polled.
pub struct Upkeep {
    pub(super) node: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) server: Server,
    pub(super) token: Option<JoinToken>,
    pub(super) store: Store,
    pub(super) connection: Replaceable,
    pub(super) client: KeyAndCertificate,
    pub(super) serving: Serving,
    pub(super) serving_pair: KeyAndCertificate,
}

impl Upkeep {
    pub async fn run(mut self) {
        let mut retry = RETRY;
        let mut told = None;
        loop {
            let now = Timestamp::now();
            let chance = rand::random();
            let client = self.client.renewal_in(now, chance);
            let serving = self.serving_pair.renewal_in(now, chance);
            let wait = client.min(serving);
            if !wait.is_zero() {
                tokio::time::sleep(wait.min(LOOK)).await;
                continue;
            }
            let renewed = if client.is_zero() {
                self.renew_client().await
            } else {
                self.renew_serving().await
            };
            match renewed {
                Ok(()) => {
                    retry = RETRY;
                    told = None;
                }
                Err(error) => {
                    let is_expired = !self.client.is_valid(Timestamp::now());
                    // Once for each thing that is wrong.
                    let kind = Some((is_expired, std::mem::discriminant(&error)));
                    if kind != told {
                        self.tell(&error, is_expired);
                        told = kind;
                    }
                    tokio::time::sleep(retry.mul_f64(0.5 + 0.5 * chance)).await;
                    retry = (retry * 2).min(LONGEST_RETRY);
                }
            }
        }
    }

    fn tell(&self, error: &JoinError, is_expired: bool) {
        match is_expired {
            true => tracing::error!(
                node = self.node, %error,
                "the node's certificate has expired, trying to join again; its pods run on"
            ),
            false => {
                tracing::warn!(node = self.node, %error, "certificate not renewed, trying again");
            }
        }
    }

    async fn renew_client(&mut self) -> Result<(), JoinError> {
        let made = KeyAndRequest::new(&self.node, &[])?;
        let pair = match request(&self.api(), Purpose::Client, made).await {
            Ok(pair) => pair,
            // A connection from before is good for as long as it lasts.
            Err(_) if !self.client.is_valid(Timestamp::now()) => self.join_again().await?,
            Err(error) => return Err(error),
        };
        let client = self.server.with_certificate(&pair);
        let client = client.map_err(|e| JoinError::Certificate(e.to_string()))?;
        let (store, kept) = (self.store.clone(), pair.clone());
        super::blocking(move || store.save_client(&kept)).await?;
        self.connection.replace(client);
        self.client = pair;
        tracing::info!(node = self.node, "client certificate renewed");
        Ok(())
    }

    /// By the token, as a host that joins for the first time.
    async fn join_again(&self) -> Result<KeyAndCertificate, JoinError> {
        let expired = || JoinError::Expired(self.node.clone());
        let token = self.token.as_ref().ok_or_else(expired)?;
        let url = &self.server.url;
        let found = discover::discover(url, token.pin).await?;
        let client = found.server.with_token(&token.bearer());
        let client = client.map_err(|e| JoinError::unreachable(url, &e))?;
        let made = KeyAndRequest::new(&self.node, &[])?;
        request(&client, Purpose::Client, made).await
    }

    async fn renew_serving(&mut self) -> Result<(), JoinError> {
        let made = KeyAndRequest::new(&self.node, &self.addresses)?;
        let pair = request(&self.api(), Purpose::Serving, made).await?;
        let unusable = || JoinError::Certificate("what was signed is no certificate".into());
        let (chain, key) = pair.der().ok_or_else(unusable)?;
        let replaced = self.serving.replace(chain, key);
        replaced.map_err(|e| JoinError::Certificate(e.to_string()))?;
        let (store, kept) = (self.store.clone(), pair.clone());
        super::blocking(move || store.save_serving(&kept)).await?;
        self.serving_pair = pair;
        tracing::info!(node = self.node, "serving certificate renewed");
        Ok(())
    }

    fn api(&self) -> Client {
        self.connection.client()
    }
}
