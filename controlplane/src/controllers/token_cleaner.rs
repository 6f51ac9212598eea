//! Removes bootstrap tokens when their time is over.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use super::Informers;
use super::informer::{Change, Informer, ObjectKey};
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next};
use super::tasks::Tasks;
use super::writes::{only, unless_gone};
use crate::auth::bootstrap_tokens::{NAMESPACE, expiration};

pub(super) fn start(client: Client, informers: &Informers, tasks: &Tasks) {
    let queue = WorkQueue::default();
    let changed = queue.clone();
    informers.bootstrap_tokens.subscribe(move |change| {
        if !matches!(change, Change::Deleted(_)) {
            changed.add(ObjectKey::of(&**change.object()));
        }
    });
    let controller = Arc::new(TokenCleaner {
        client,
        tokens: informers.bootstrap_tokens.clone(),
    });
    runner::run(controller, &queue, 1, tasks);
}

struct TokenCleaner {
    client: Client,
    tokens: Informer<Secret>,
}

impl Controller for TokenCleaner {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "token-cleaner";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        let Some(token) = self.tokens.get(key) else {
            return Ok(Next::Wait);
        };
        // One without an end stays.
        let Some(ends) = expiration(&token) else {
            return Ok(Next::Wait);
        };
        let left = ends.map_or(Duration::ZERO, |at| {
            let left = at.duration_since(Timestamp::now());
            Duration::try_from(left).unwrap_or(Duration::ZERO)
        });
        if !left.is_zero() {
            return Ok(Next::After(left));
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let params = only(token.metadata.uid.as_deref());
        unless_gone(secrets.delete(&key.name, &params).await)?;
        Ok(Next::Wait)
    }
}
