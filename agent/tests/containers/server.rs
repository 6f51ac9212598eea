//! Logs, commands and attachments as the API server asks for them, of real containers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::{SinkExt, StreamExt};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use skiff_agent::logs::Watcher;
use skiff_agent::runtime::Sandbox;
use skiff_agent::runtime::types::ContainerRecord;
use skiff_agent::server::{Credentials, NodePod, NodeServer, PodLookup, ServerConfig, Serving};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::fixture::{DEADLINE, Node, eventually, pid};

struct OnePod(NodePod);

impl PodLookup for OnePod {
    fn pod(&self, namespace: &str, name: &str) -> Option<NodePod> {
        let config = self.0.sandbox.as_ref()?.config();
        let meant = config.namespace == namespace && config.name == name;
        meant.then(|| self.0.clone())
    }

    fn pods(&self) -> Vec<NodePod> {
        vec![self.0.clone()]
    }
}

struct Server {
    address: SocketAddr,
    client: TlsConnector,
    path: String,
    _stop: DropGuard,
}

impl Server {
    /// Of a pod with one container, `main`, declared with `container`.
    async fn of(sandbox: &Sandbox, container: Value) -> Self {
        let mut declared = json!({"name": "main"});
        declared
            .as_object_mut()
            .unwrap()
            .extend(container.as_object().unwrap().clone());
        let config = sandbox.config();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": config.name, "namespace": config.namespace},
            "spec": {"containers": [declared]},
        }))
        .unwrap();
        let pods = OnePod(NodePod {
            pod: Arc::new(pod),
            pod_dir: config.pod_dir.clone(),
            sandbox: Some(sandbox.clone()),
        });
        let (credentials, client) = credentials();
        let server_config = ServerConfig {
            node_name: "n".into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            credentials,
        };
        let watcher = Watcher::new().unwrap();
        let server = NodeServer::bind(server_config, Arc::new(pods), watcher)
            .await
            .unwrap();
        let address = server.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(server.run(stop.clone()));
        Self {
            address,
            client,
            path: format!("{}/{}/main", config.namespace, config.name),
            _stop: stop.drop_guard(),
        }
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("node").unwrap();
        self.client.connect(name, stream).await.unwrap()
    }

    async fn session(&self, what: &str, query: &str) -> Session {
        let request = http::Request::get(format!("ws://node/{what}/{}?{query}", self.path))
            .header("host", "node")
            .header("connection", "upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .header("sec-websocket-protocol", "v5.channel.k8s.io")
            .body(())
            .unwrap();
        let stream = self.connect().await;
        let (socket, _) = tokio_tungstenite::client_async(request, stream)
            .await
            .unwrap();
        Session(socket)
    }

    async fn logs(&self, query: &str) -> http::Response<hyper::body::Incoming> {
        let stream = TokioIo::new(self.connect().await);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get(format!("/containerLogs/{}?{query}", self.path))
            .header("host", "node")
            .body(Empty::<bytes::Bytes>::new())
            .unwrap();
        sender.send_request(request).await.unwrap()
    }
}

/// A server's credentials and a client that it lets in.
fn credentials() -> (Credentials, TlsConnector) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let issue = |user: &str| -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["node".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, user);
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        (vec![certificate.der().clone()], key)
    };
    let (chain, key) = issue("system:node:n");
    let (client_chain, client_key) = issue("system:kube-apiserver");
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(client_chain, client_key)
        .unwrap();
    let credentials = Credentials {
        serving: Serving::new(chain, key).unwrap(),
        client_authority: authority,
    };
    (credentials, TlsConnector::from(Arc::new(client)))
}

struct Session(WebSocketStream<TlsStream<TcpStream>>);

impl Session {
    async fn send(&mut self, channel: u8, bytes: &[u8]) {
        let data = [&[channel], bytes].concat();
        self.0.send(Message::Binary(data.into())).await.unwrap();
    }

    /// The next message that says something.
    async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            let next = tokio::time::timeout(DEADLINE, self.0.next());
            let message = next.await.expect("in time")?.ok()?;
            let Message::Binary(data) = message else {
                return None;
            };
            if data.len() > 1 {
                return Some((data[0], data[1..].to_vec()));
            }
        }
    }

    /// Everything until the end, by channel, and the exit code.
    async fn finish(mut self) -> (HashMap<u8, Vec<u8>>, i32) {
        let mut channels = HashMap::<u8, Vec<u8>>::new();
        while let Some((channel, bytes)) = self.next().await {
            channels.entry(channel).or_default().extend(bytes);
        }
        let status = channels.remove(&3).expect("a status");
        let status: Value = serde_json::from_slice(&status).unwrap();
        let code = match status["status"].as_str() {
            Some("Success") => 0,
            _ => status["details"]["causes"][0]["message"]
                .as_str()
                .and_then(|code| code.parse().ok())
                .unwrap_or_else(|| panic!("{status}")),
        };
        (channels, code)
    }
}

async fn idle(node: &Node, sandbox: &Sandbox) -> ContainerRecord {
    let script = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";
    node.start(sandbox, node.shell(sandbox, script, json!({})))
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_have_their_streams_and_exit_codes() {
    let node = Node::new().await;
    let sandbox = node.pod("exec").await;
    idle(&node, &sandbox).await;
    let server = Server::of(&sandbox, json!({})).await;

    let script = "command=sh&command=-c&command=echo+out%3B+echo+err+%3E%262%3B+exit+7";
    let both = format!("{script}&output=1&error=1");
    let (channels, code) = server.session("exec", &both).await.finish().await;
    assert_eq!(code, 7);
    assert_eq!(channels[&1], b"out\n");
    assert_eq!(channels[&2], b"err\n");

    let one = format!("{script}&stderr=true");
    let (channels, _) = server.session("exec", &one).await.finish().await;
    assert_eq!(channels.get(&1), None);
    assert_eq!(channels[&2], b"err\n");

    let mut missing = server.session("exec", "command=nonsense&output=1").await;
    let (channel, status) = missing.next().await.unwrap();
    let status: Value = serde_json::from_slice(&status).unwrap();
    assert_eq!((channel, &status["reason"]), (3, &json!("InternalError")));
    let message = status["message"].as_str().unwrap();
    assert!(message.contains("nonsense"), "{message}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn megabytes_of_any_bytes_go_in_and_come_out() {
    let node = Node::new().await;
    let sandbox = node.pod("cat").await;
    idle(&node, &sandbox).await;
    let server = Server::of(&sandbox, json!({})).await;
    let session = server.session("exec", "command=cat&input=1&output=1");
    let (mut send, mut receive) = session.await.0.split();
    let data: Vec<u8> = (0..8_000_000u32).map(|i| (i ^ (i >> 9)) as u8).collect();
    let sent = data.clone();
    let sending = tokio::spawn(async move {
        for chunk in sent.chunks(30_000) {
            let message = [&[0], chunk].concat();
            send.send(Message::Binary(message.into())).await.unwrap();
        }
        send.send(Message::Binary(vec![255, 0].into()))
            .await
            .unwrap();
        send
    });
    let mut got = Vec::new();
    while let Some(Ok(Message::Binary(message))) = receive.next().await {
        if message[0] == 1 {
            got.extend_from_slice(&message[1..]);
        }
    }
    drop(sending.await.unwrap());
    assert!(got == data, "{} of {} bytes", got.len(), data.len());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_has_the_clients_size() {
    let node = Node::new().await;
    let sandbox = node.pod("tty").await;
    idle(&node, &sandbox).await;
    let server = Server::of(&sandbox, json!({})).await;
    let script = "command=sh&command=-c&command=read+go%3B+stty+size%3B+exit+3";
    let query = format!("{script}&input=1&output=1&tty=1");
    let mut session = server.session("exec", &query).await;
    session.send(4, br#"{"Width":132,"Height":43}"#).await;
    session.send(0, b"go\n").await;
    let (channels, code) = session.finish().await;
    let shown = String::from_utf8_lossy(&channels[&1]).into_owned();
    assert!(shown.contains("43 132"), "{shown:?}");
    assert_eq!(code, 3);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_takes_its_command_with_it() {
    let node = Node::new().await;
    let sandbox = node.pod("gone").await;
    let record = idle(&node, &sandbox).await;
    let init = pid(&sandbox, &record.id).await;
    let server = Server::of(&sandbox, json!({})).await;
    for tty in ["", "&tty=1"] {
        let query =
            format!("command=sh&command=-c&command=echo+%24%24%3B+sleep+1000&output=1{tty}");
        let mut session = server.session("exec", &query).await;
        let (_, said) = session.next().await.unwrap();
        let inside = String::from_utf8(said).unwrap().trim().to_owned();
        let proc = format!("/proc/{init}/root/proc/{inside}");
        assert!(std::path::Path::new(&proc).exists(), "{proc}");
        drop(session);
        eventually(|| !std::path::Path::new(&proc).exists()).await;
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_sessions_at_once() {
    let node = Node::new().await;
    let sandbox = node.pod("many").await;
    idle(&node, &sandbox).await;
    let server = Server::of(&sandbox, json!({})).await;
    let sessions = (0..30).map(async |number| {
        let query = format!("command=echo&command={number}&output=1");
        let (channels, code) = server.session("exec", &query).await.finish().await;
        assert_eq!(code, 0);
        assert_eq!(channels[&1], format!("{number}\n").into_bytes());
    });
    futures::future::join_all(sessions).await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attaching_feeds_and_shows_the_containers_own_process() {
    let node = Node::new().await;
    let sandbox = node.pod("attach").await;
    let declared = json!({"stdin": true, "stdinOnce": true});
    let script = "while read line; do echo \"got $line\"; done; echo end";
    let container = node.shell(&sandbox, script, declared.clone());
    node.start(&sandbox, container).await;
    let server = Server::of(&sandbox, declared).await;
    let mut session = server.session("attach", "input=1&output=1").await;
    session.send(0, b"one\n").await;
    assert_eq!(session.next().await, Some((1, b"got one\n".to_vec())));
    session.send(255, &[0]).await;
    let (channels, code) = session.finish().await;
    assert_eq!(channels[&1], b"end\n");
    assert_eq!(code, 0);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_followed_log_is_complete_through_rotations() {
    let node = Node::new().await;
    let sandbox = node.pod("logs").await;
    // 26 MB of log make two rotations at the default 10 MiB.
    let script = "seq 1 400000";
    let container = node.shell(&sandbox, script, json!({}));
    let record = sandbox.create_container(container).await.unwrap();
    let server = Server::of(&sandbox, json!({})).await;
    let response = server.logs("follow=true").await;
    assert_eq!(response.status(), 200);
    sandbox.start_container(&record.id).await.unwrap();
    let body = tokio::time::timeout(DEADLINE, response.into_body().collect());
    let bytes = body.await.expect("in time").unwrap().to_bytes();
    let expected: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    assert!(bytes == expected, "{} of {}", bytes.len(), expected.len());
    node.finish().await;
}
