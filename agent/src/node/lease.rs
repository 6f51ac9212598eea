//! The node's heartbeat: a Lease in `kube-node-lease`.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::MissedTickBehavior;

const NAMESPACE: &str = "kube-node-lease";
/// As the kubelet's `nodeLeaseDurationSeconds`.
const DURATION_SECONDS: i32 = 40;
/// The kubelet renews every 10 s; a node's absence is to be noticed within that time here.
const RENEW: Duration = Duration::from_secs(3);

/// How long one renewal may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Renews the lease for as long as it is polled.
pub(super) async fn renew(client: Client, node: String, uid: String) {
    let leases: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut ticks = tokio::time::interval(RENEW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failing = false;
    loop {
        ticks.tick().await;
        let renewed = match tokio::time::timeout(TIMEOUT, renew_once(&leases, &node, &uid)).await {
            Ok(renewed) => renewed.map_err(|error| error.to_string()),
            Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        match renewed {
            Ok(()) => failing = false,
            Err(error) => {
                if !failing {
                    tracing::warn!(node, %error, "lease not renewed, trying again");
                }
                failing = true;
            }
        }
    }
}

async fn renew_once(leases: &Api<Lease>, node: &str, uid: &str) -> Result<(), kube::Error> {
    let spec = LeaseSpec {
        holder_identity: Some(node.to_owned()),
        lease_duration_seconds: Some(DURATION_SECONDS),
        renew_time: Some(now()),
        ..LeaseSpec::default()
    };
    let patch = Patch::Merge(json!({"spec": spec}));
    match leases.patch(node, &PatchParams::default(), &patch).await {
        Err(kube::Error::Api(answer)) if answer.code == 404 => {}
        other => return other.map(drop),
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(node.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Node".to_owned(),
                name: node.to_owned(),
                uid: uid.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
    };
    leases
        .create(&PostParams::default(), &lease)
        .await
        .map(drop)
}

/// Microseconds, as the API writes them.
fn now() -> MicroTime {
    let now = Timestamp::now();
    MicroTime(Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now))
}
