//! Creating Events, one after the other, and keeping account of what the API server acknowledged.
//!
//! A record in the file is a write: its position is its number. An acknowledged one counts only once its record would survive
//! the end of this host, so that nothing can be claimed as lost that was not promised before.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use http::Request;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::Body;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::measuring::until_ended;
use crate::drill::measure::clock::Clock;
use crate::drill::measure::samples::{Outcome, SampleLog};

/// How long a write may wait to be acknowledged.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(2);
/// A name that every API server's certificate has; its address is that of a Service.
const SERVER_NAME: &str = "kubernetes";
const COMPONENT: &str = "skiff-drill";

/// Where to write, as whom, and how often.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct EventWriter {
    /// `https://HOST:PORT`
    pub(crate) server: String,
    /// PEM.
    pub(crate) authority: String,
    pub(crate) token: String,
    pub(crate) namespace: String,
    /// The task's name: that of its Events is this, `-`, and the number.
    pub(crate) task: String,
    /// Writes a second at most, 1 or more.
    pub(crate) rate: u32,
    pub(crate) samples: PathBuf,
    /// The node's address in its pods' network.
    pub(crate) node: Ipv4Addr,
}

impl std::fmt::Debug for EventWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the token.
        f.debug_struct("EventWriter")
            .field("server", &self.server)
            .field("task", &self.task)
            .finish_non_exhaustive()
    }
}

impl EventWriter {
    pub(super) fn run(&self, until: Timestamp) -> io::Result<()> {
        let mut log = SampleLog::open(&self.samples)?;
        until_ended(until, self.node, |stop| async move {
            let client = self.client().map_err(io::Error::other)?;
            self.write_all(&client, &stop, &mut log).await
        })
    }

    fn client(&self) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
        let mut config = kube::Config::new(self.server.parse()?);
        let authority = CertificateDer::from_pem_slice(self.authority.as_bytes());
        let authority = authority.map_err(|_| "the cluster's authority is no certificate")?;
        config.root_cert = Some(vec![authority.to_vec()]);
        config.tls_server_name = Some(SERVER_NAME.to_owned());
        config.auth_info.token = Some(self.token.clone().into());
        config.connect_timeout = Some(TIMEOUT);
        Ok(Client::try_from(config)?)
    }

    async fn write_all(
        &self,
        client: &Client,
        stop: &CancellationToken,
        log: &mut SampleLog,
    ) -> io::Result<()> {
        let clock = Clock::start()?;
        let interval = Duration::from_secs(1) / self.rate.max(1);
        let mut due = Instant::now();
        while stop.run_until_cancelled(sleep_until(due)).await.is_some() {
            let sent = clock.send(due);
            let outcome = self.write_one(client, log.count()).await;
            log.append_durably(&sent.ended(outcome))?;
            // One after the other: what took longer than an interval is not made up for.
            due = (due + interval).max(Instant::now());
        }
        Ok(())
    }

    async fn write_one(&self, client: &Client, number: u64) -> Outcome {
        let Ok(request) = self.request(number) else {
            return Outcome::Failed;
        };
        match timeout(TIMEOUT, client.send(request)).await {
            Ok(Ok(response)) if response.status().is_success() => Outcome::Good,
            Ok(Ok(response)) => Outcome::Status(response.status().as_u16()),
            Ok(Err(error)) => of_client(&error),
            Err(_) => Outcome::TimedOut,
        }
    }

    fn request(&self, number: u64) -> Result<Request<Body>, Box<dyn std::error::Error>> {
        let namespace = &self.namespace;
        Ok(
            Request::post(format!("/api/v1/namespaces/{namespace}/events"))
                .header("content-type", "application/json")
                .body(Body::from(serde_json::to_vec(&self.event(number))?))?,
        )
    }

    fn event(&self, number: u64) -> Event {
        let now = Time(Timestamp::now());
        Event {
            metadata: ObjectMeta {
                name: Some(format!("{}-{number}", self.task)),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("skiff.dev/v1".to_owned()),
                kind: Some("DrillTask".to_owned()),
                name: Some(self.task.clone()),
                namespace: Some(self.namespace.clone()),
                ..ObjectReference::default()
            },
            reason: Some("DrillWrite".to_owned()),
            message: Some(format!("write {number} of a drill")),
            source: Some(EventSource {
                component: Some(COMPONENT.to_owned()),
                ..EventSource::default()
            }),
            type_: Some("Normal".to_owned()),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            ..Event::default()
        }
    }
}

/// What the system said, wherever it stands among the causes.
fn of_client(error: &kube::Error) -> Outcome {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.raw_os_error().is_some()
        {
            return Outcome::from(error);
        }
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && (error.is_incomplete_message() || error.is_closed() || error.is_canceled())
        {
            return Outcome::Closed;
        }
        cause = error.source();
    }
    Outcome::Failed
}
