//! Renewing the node's certificates before they end.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;

use super::JoinError;
use super::certificate::{KeyAndCertificate, KeyAndRequest};
use super::client::{Replaceable, Server};
use super::request::{Purpose, request};
use super::store::Store;
use crate::server::Serving;

/// The clock may be set, or the host sleep: the time is looked at again at least this often.
const LOOK: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Keeps a node's certificates good, for as long as [`Upkeep::run`] is polled.
pub struct Upkeep {
    pub(super) node: String,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) server: Server,
    pub(super) store: Store,
    pub(super) connection: Replaceable,
    pub(super) client: KeyAndCertificate,
    pub(super) serving: Serving,
    pub(super) serving_pair: KeyAndCertificate,
}

impl Upkeep {
    pub async fn run(mut self) {
        let mut retry = RETRY;
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
                Ok(()) => retry = RETRY,
                Err(error) => {
                    if retry == RETRY {
                        tracing::warn!(node = self.node, %error, "certificate not renewed, trying again");
                    }
                    tokio::time::sleep(retry.mul_f64(0.5 + 0.5 * chance)).await;
                    retry = (retry * 2).min(LONGEST_RETRY);
                }
            }
        }
    }

    async fn renew_client(&mut self) -> Result<(), JoinError> {
        let made = KeyAndRequest::new(&self.node, &[])?;
        let pair = request(&self.api(), Purpose::Client, made).await?;
        let client = self.server.with_certificate(&pair);
        let client = client.map_err(|e| JoinError::Certificate(e.to_string()))?;
        let (store, kept) = (self.store.clone(), pair.clone());
        super::blocking(move || store.save_client(&kept)).await?;
        self.connection.replace(client);
        self.client = pair;
        tracing::info!(node = self.node, "client certificate renewed");
        Ok(())
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
