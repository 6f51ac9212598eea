//! Getting to know a cluster: before its authority is known nothing that the server says is believed
//! but what the token's pin confirms.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::DATE;
use http::{HeaderMap, Request, Uri};
use http_body_util::BodyExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::client::Body;
use kube::config::Kubeconfig;

use super::client::Server;
use super::store::ClusterRecord;
use super::token::Pin;
use super::{JoinError, reason};

const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";
const TIMEOUT: Duration = Duration::from_secs(5);
/// How far the clocks of two hosts may be apart.
const CLOCK_SKEW: Duration = Duration::from_secs(300);
/// The oldest kubelet that an API server works with, in minor versions behind it.
const OLDEST: u32 = 3;

/// A cluster whose authority is the one that was meant.
#[derive(Debug)]
pub(super) struct Discovered {
    pub(super) server: Server,
    pub(super) cluster: ClusterRecord,
}

/// Asks the server for its authority, and compares it with the pin.
pub(super) async fn discover(url: &Uri, pin: Pin) -> Result<Discovered, JoinError> {
    let mut config = kube::Config::new(url.clone());
    config.accept_invalid_certs = true;
    // Those that the host trusts are none of our business, and it need not have any.
    config.root_cert = Some(Vec::new());
    config.connect_timeout = Some(TIMEOUT);
    let client = Client::try_from(config).map_err(|e| JoinError::unreachable(url, &e))?;
    let (headers, map) = ask(&client, url, CLUSTER_INFO).await?;
    check_clock(&headers, Timestamp::now())?;
    let map: ConfigMap = serde_json::from_slice(&map).map_err(|_| not_a_cluster(url))?;
    let data = map.data.unwrap_or_default();
    let authority = data.get("kubeconfig").and_then(|text| authority(text));
    let authority = authority.ok_or_else(|| not_a_cluster(url))?;
    let found = Pin::of_pem(&authority).ok_or_else(|| not_a_cluster(url))?;
    if found != pin {
        return Err(JoinError::WrongPin {
            server: url.to_string(),
            found,
            expected: pin,
        });
    }
    let entry = |key: &str| data.get(key).cloned().unwrap_or_default();
    Ok(Discovered {
        cluster: ClusterRecord {
            pod_block: entry("podCIDR"),
            service_block: entry("serviceCIDR"),
        },
        server: Server {
            url: url.clone(),
            authority,
        },
    })
}

/// Checks that the server, of a known authority, works with an agent of this version.
pub(super) async fn check_version(
    client: &Client,
    url: &Uri,
    agent: &str,
) -> Result<(), JoinError> {
    let (headers, body) = ask(client, url, "/version").await?;
    check_clock(&headers, Timestamp::now())?;
    let version: serde_json::Value =
        serde_json::from_slice(&body).map_err(|_| not_a_cluster(url))?;
    let server = version["gitVersion"].as_str().unwrap_or_default();
    check_skew(agent, server)
}

async fn ask(client: &Client, url: &Uri, path: &str) -> Result<(HeaderMap, Vec<u8>), JoinError> {
    let request = Request::get(path).body(Body::empty());
    let request = request.map_err(|e| JoinError::unreachable(url, &e))?;
    let answer = async {
        let response = client.send(request).await;
        let response = response.map_err(|e| JoinError::unreachable(url, &e))?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await;
        let body = body.map_err(|e| JoinError::unreachable(url, &e))?;
        Ok::<_, JoinError>((parts, body.to_bytes().to_vec()))
    };
    let (parts, body) = match tokio::time::timeout(TIMEOUT, answer).await {
        Ok(answer) => answer?,
        Err(_) => {
            return Err(JoinError::Unreachable {
                server: url.to_string(),
                reason: format!("no answer within {} s", TIMEOUT.as_secs()),
            });
        }
    };
    match parts.status.as_u16() {
        200 => Ok((parts.headers, body)),
        401 | 403 if path != CLUSTER_INFO => Err(JoinError::TokenRefused(reason(&body))),
        _ => Err(not_a_cluster(url)),
    }
}

fn not_a_cluster(url: &Uri) -> JoinError {
    JoinError::NotACluster(url.to_string())
}

/// The authority (PEM) of the only cluster in a client configuration.
fn authority(text: &str) -> Option<String> {
    let config = Kubeconfig::from_yaml(text).ok()?;
    let cluster = config.clusters.into_iter().next()?.cluster?;
    let encoded = cluster.certificate_authority_data?;
    String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()
}

/// Certificates are good from a time to a time: the clocks must agree about it.
fn check_clock(headers: &HeaderMap, now: Timestamp) -> Result<(), JoinError> {
    let date = headers.get(DATE).and_then(|date| date.to_str().ok());
    let server = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
    let Some(server) = server else { return Ok(()) };
    let ahead = now.as_second() - server.timestamp().as_second();
    if ahead.unsigned_abs() <= CLOCK_SKEW.as_secs() {
        return Ok(());
    }
    Err(JoinError::ClockSkew {
        seconds: ahead.unsigned_abs(),
        direction: if ahead > 0 { "ahead of" } else { "behind" },
    })
}

/// Kubernetes' version skew policy for kubelets.
fn check_skew(agent: &str, server: &str) -> Result<(), JoinError> {
    let (Some(ours), Some(theirs)) = (minor(agent), minor(server)) else {
        return Ok(());
    };
    if ours > theirs {
        return Err(JoinError::TooNew {
            agent: agent.to_owned(),
            server: server.to_owned(),
        });
    }
    if theirs - ours > OLDEST {
        return Err(JoinError::TooOld {
            agent: agent.to_owned(),
            server: server.to_owned(),
        });
    }
    Ok(())
}

/// `v1.37.0+skiff` -> 37
fn minor(version: &str) -> Option<u32> {
    let mut parts = version.strip_prefix("v1.")?.split(['.', '-', '+']);
    parts.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_may_differ_by_minutes_only() {
        let mut headers = HeaderMap::new();
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
        assert!(check_clock(&headers, now).is_ok());
        for (date, fits) in [
            ("Thu, 01 Jan 2026 12:04:00 GMT", true),
            ("Thu, 01 Jan 2026 12:06:00 GMT", false),
            ("Thu, 01 Jan 2026 11:54:00 GMT", false),
        ] {
            headers.insert(DATE, date.parse().unwrap());
            assert_eq!(check_clock(&headers, now).is_ok(), fits, "{date}");
        }
        let error = check_clock(&headers, now).unwrap_err().to_string();
        assert!(error.contains("360 s ahead of"), "{error}");
    }

    #[test]
    fn agents_are_as_old_as_the_server_or_a_little_older() {
        for (agent, server, fits) in [
            ("v1.37.0+skiff", "v1.37.4", true),
            ("v1.34.0", "v1.37.0+skiff", true),
            ("v1.33.9", "v1.37.0", false),
            ("v1.38.0", "v1.37.0", false),
            ("v1.37.0", "unknown", true),
        ] {
            assert_eq!(check_skew(agent, server).is_ok(), fits, "{agent} {server}");
        }
    }
}
