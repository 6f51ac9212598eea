//! The endpoint over real TLS, with pods that exist on disk only.

mod session;

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;

use futures::StreamExt;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::body::Bytes;
use k8s_openapi::api::core::v1::Pod;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate: certificate.der().clone(),
            issuer: Issuer::new(params, key),
        }
    }

    fn issue(&self, user: &str, group: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["node".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, user);
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (certificate.der().clone(), key)
    }
}

struct Pods(HashMap<String, NodePod>);

impl PodLookup for Pods {
    fn pod(&self, namespace: &str, name: &str) -> Option<NodePod> {
        self.0.get(&format!("{namespace}/{name}")).cloned()
    }

    fn pods(&self) -> Vec<NodePod> {
        self.0.values().cloned().collect()
    }
}

struct Server {
    address: SocketAddr,
    authority: Authority,
    directory: tempfile::TempDir,
    _stop: DropGuard,
}

impl Server {
    /// With one pod, `default/web`, whose container `nginx` ended once and whose
    /// container `late` never started.
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "u"},
            "spec": {"containers": [{"name": "nginx"}, {"name": "late"}]},
            "status": {"containerStatuses": [{
                "name": "late", "image": "x", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "ImagePullBackOff"}},
            }]},
        }))
        .unwrap();
        write_container(directory.path());
        let node_pod = NodePod {
            pod: Arc::new(pod),
            pod_dir: directory.path().to_owned(),
            sandbox: None,
        };
        let pods = Pods(HashMap::from([("default/web".to_owned(), node_pod)]));
        let authority = Authority::new();
        let (certificate, key) = authority.issue("system:node:n", "system:nodes");
        let config = ServerConfig {
            node_name: "n".into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            credentials: Credentials {
                serving: super::Serving::new(vec![certificate], key).unwrap(),
                client_authority: authority.certificate.clone(),
            },
        };
        let server = NodeServer::bind(config, Arc::new(pods), Watcher::new().unwrap())
            .await
            .unwrap();
        let address = server.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(server.run(stop.clone()));
        Self {
            address,
            authority,
            directory,
            _stop: stop.drop_guard(),
        }
    }

    async fn connect(&self, user: &str, group: &str) -> TlsStream<TcpStream> {
        let identity = self.authority.issue(user, group);
        self.connect_with(Some(identity)).await.unwrap()
    }

    async fn connect_with(
        &self,
        identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
    ) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            Some((certificate, key)) => builder
                .with_client_auth_cert(vec![certificate], key)
                .unwrap(),
            None => builder.with_no_client_auth(),
        };
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("node").unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        connector.connect(name, stream).await
    }

    async fn get_as(&self, user: &str, group: &str, path: &str) -> (u16, String) {
        let stream = self.connect(user, group).await;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(connection);
        let request = Request::get(path)
            .header("host", "node")
            .body(Empty::<Bytes>::new())
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let code = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn get(&self, path: &str) -> (u16, String) {
        self.get_as("kubernetes-admin", "system:masters", path)
            .await
    }
}

fn write_container(pod_dir: &std::path::Path) {
    let state = pod_dir.join("containers/c1");
    fs::create_dir_all(&state).unwrap();
    let log_path = pod_dir.join("nginx/0.log");
    fs::create_dir_all(pod_dir.join("nginx")).unwrap();
    let log = "2026-11-22T10:00:00.000000000Z stdout F one\n\
               2026-11-22T10:00:01.000000000Z stderr F two\n";
    fs::write(&log_path, log).unwrap();
    let record = json!({
        "id": "c1", "name": "nginx", "attempt": 0, "image": "nginx", "imageId": "sha256:0",
        "logPath": log_path, "createdAt": "2026-11-22T10:00:00Z",
        "state": {"state": "exited", "finishedAt": "2026-11-22T10:00:00Z", "exitCode": 0,
                  "oomKilled": false},
    });
    fs::write(state.join("record.json"), record.to_string()).unwrap();
}

#[tokio::test]
async fn only_administrators_and_the_api_server_are_let_in() {
    let server = Server::start().await;
    let api_server = server.get_as("system:kube-apiserver", "x", "/healthz");
    assert_eq!(api_server.await, (200, "ok".into()));
    let (code, message) = server.get_as("alice", "developers", "/pods").await;
    assert_eq!(code, 403);
    assert!(message.contains("user=alice"), "{message}");

    let refused = match server.connect_with(None).await {
        Err(_) => true,
        // With TLS 1.3 the client learns of it when it reads.
        Ok(mut stream) => stream.read(&mut [0]).await.is_err(),
    };
    assert!(refused);
}

#[tokio::test]
async fn serves_logs() {
    let server = Server::start().await;
    let logs = "/containerLogs/default/web/nginx";
    assert_eq!(server.get(logs).await, (200, "one\ntwo\n".into()));
    let (_, tail) = server
        .get(&format!("{logs}?tailLines=1&timestamps=true&follow=true"))
        .await;
    assert_eq!(tail, "2026-11-22T10:00:01.000000000Z two\n");
    let since = format!("{logs}?sinceTime=2026-11-22T10:00:01Z");
    assert_eq!(server.get(&since).await.1, "two\n");
    let (_, out) = server.get(&format!("{logs}?stream=Stdout")).await;
    assert_eq!(out, "one\n");
}

#[tokio::test]
async fn says_why_there_is_no_log() {
    let server = Server::start().await;
    for (path, code, message) in [
        ("default/none/nginx", 404, r#"pod "none" does not exist"#),
        (
            "default/web/none",
            404,
            r#"container "none" not found in pod "web""#,
        ),
        (
            "default/web/late",
            400,
            r#"container "late" in pod "web" is waiting to start: trying and failing to pull image"#,
        ),
        (
            "default/web/nginx?previous=true",
            400,
            r#"previous terminated container "nginx" in pod "web" not found"#,
        ),
        (
            "default/web/nginx?tailLines=x",
            422,
            r#"invalid value for query parameter tailLines: "x""#,
        ),
    ] {
        let answer = server.get(&format!("/containerLogs/{path}")).await;
        assert_eq!(answer, (code, message.into()), "{path}");
    }
    fs::remove_file(server.directory.path().join("nginx/0.log")).unwrap();
    assert_eq!(server.get("/containerLogs/default/web/nginx").await.0, 500);
}

#[tokio::test]
async fn tells_what_the_node_uses() {
    let server = Server::start().await;
    let (code, body) = server.get("/stats/summary").await;
    let summary: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((code, &summary["node"]["nodeName"]), (200, &json!("n")));
    assert!(summary["node"]["memory"]["workingSetBytes"].as_u64() > Some(0));
    let (_, metrics) = server.get("/metrics/resource").await;
    assert!(
        metrics.contains("\nnode_cpu_usage_seconds_total "),
        "{metrics}"
    );
    let (_, pods) = server.get("/pods").await;
    let pods: Value = serde_json::from_str(&pods).unwrap();
    assert_eq!(pods["kind"], "PodList");
    assert_eq!(pods["items"][0]["metadata"]["name"], "web");
}

#[tokio::test]
async fn refuses_a_command_inside_the_session() {
    let server = Server::start().await;
    let stream = server.connect("kubernetes-admin", "system:masters").await;
    let request = Request::get("ws://node/exec/default/web/nginx?command=ls&output=1")
        .header("host", "node")
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
        .header(
            "sec-websocket-protocol",
            "v5.channel.k8s.io, v4.channel.k8s.io",
        )
        .body(())
        .unwrap();
    let (mut socket, response) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    assert_eq!(
        response.headers()["sec-websocket-protocol"],
        "v5.channel.k8s.io"
    );
    let message = socket.next().await.unwrap().unwrap().into_data();
    assert_eq!(message[0], 3);
    let status: Value = serde_json::from_slice(&message[1..]).unwrap();
    assert_eq!(status["reason"], "InternalError");
    assert_eq!(
        status["message"],
        "Internal error occurred: unable to upgrade connection: container not found (\"nginx\")"
    );
    let close = socket.next().await.unwrap().unwrap();
    let tungstenite::Message::Close(Some(frame)) = close else {
        panic!("{close:?}");
    };
    assert_eq!(u16::from(frame.code), 1000, "kubectl fails on any other");

    let (code, message) = server
        .get("/exec/default/web/nginx?command=ls&output=1")
        .await;
    assert_eq!(code, 400);
    assert!(message.starts_with("Upgrade request required"), "{message}");
}
