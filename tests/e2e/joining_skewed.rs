//! A host joins a cluster whose clock or version is not like its own.
//!
//! No host's clock can be set for a test alone, so it is the API server that seems to be another: a server with the
//! cluster's own certificate that gives what the cluster would give, with another `Date`, or as another version.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::cluster::Cluster;
use crate::joining::{agent_of, refusal, token};

/// With a client that says nothing.
const PATIENCE: Duration = Duration::from_secs(30);
const CLUSTER_INFO: &str = "/api/v1/namespaces/kube-public/configmaps/cluster-info";

/// How an API server differs from the cluster's.
#[derive(Clone, Copy)]
struct Skew {
    /// How far its clock is ahead.
    clock: SignedDuration,
    version: &'static str,
}

/// An API server as a host that is somewhere else in time would have it, until it is dropped.
struct Skewed {
    address: SocketAddr,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Skewed {
    fn start(cluster: &mut Cluster, skew: Skew) -> Self {
        let info = cluster.get(CLUSTER_INFO).expect("what the cluster tells");
        let tls = Arc::new(tls(&cluster.data_dir().join("server/pki")));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let ended = Arc::new(AtomicBool::new(false));
        let is_over = ended.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if is_over.load(Ordering::SeqCst) {
                    return;
                }
                // Who hangs up in the middle is nobody's fault.
                let _ = stream.and_then(|stream| answer(stream, &tls, skew, &info.to_string()));
            }
        });
        Self {
            address,
            ended,
            thread: Some(thread),
        }
    }
}

impl Drop for Skewed {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // Has it look.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(
                std::thread::panicking() || ended.is_ok(),
                "the server panicked"
            );
        }
    }
}

/// With the certificate that the cluster's API server shows.
fn tls(pki: &Path) -> ServerConfig {
    let chain = CertificateDer::pem_file_iter(pki.join("apiserver.crt")).expect("a certificate");
    let chain = chain.collect::<Result<_, _>>().expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(pki.join("apiserver.key")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("a key that fits")
}

/// Answers one request.
fn answer(
    stream: TcpStream,
    tls: &Arc<ServerConfig>,
    skew: Skew,
    info: &str,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let session = ServerConnection::new(tls.clone()).expect("a session");
    let mut stream = BufReader::new(StreamOwned::new(session, stream));
    let mut first = String::new();
    stream.read_line(&mut first)?;
    let mut line = String::new();
    while stream.read_line(&mut line)? > 2 {
        line.clear();
    }
    let version = format!(r#"{{"major": "1", "gitVersion": "{}"}}"#, skew.version);
    let (code, body) = match first.split(' ').nth(1) {
        Some(CLUSTER_INFO) => ("200 OK", info),
        Some("/version") => ("200 OK", version.as_str()),
        _ => ("404 Not Found", "{}"),
    };
    let date = Timestamp::now() + skew.clock;
    let date = date.strftime("%a, %d %b %Y %H:%M:%S GMT");
    let stream = stream.get_mut();
    write!(
        stream,
        "HTTP/1.1 {code}\r\nDate: {date}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.conn.send_close_notify();
    stream.flush()
}

#[test]
fn who_lives_in_another_time_or_version_is_told_so() {
    let mut cluster = Cluster::server(&[]);
    let token = token(&cluster, "1h");
    let version = cluster.get("/version").expect("its version");
    let version = version["gitVersion"].as_str().expect("a text").to_owned();
    let version: &'static str = version.leak();
    let now = SignedDuration::ZERO;
    for (skew, told) in [
        (
            Skew {
                clock: SignedDuration::from_hours(1),
                version,
            },
            " s behind the API server's: set the time of both (NTP)",
        ),
        (
            Skew {
                clock: SignedDuration::from_hours(-1),
                version,
            },
            " s ahead of the API server's: set the time of both (NTP)",
        ),
        (
            Skew {
                clock: now,
                version: "v1.36.9",
            },
            "newer than the API server (v1.36.9): upgrade the server first",
        ),
        (
            Skew {
                clock: now,
                version: "v1.41.0",
            },
            "more than three minor versions older than the API server (v1.41.0): upgrade the agent",
        ),
    ] {
        let server = Skewed::start(&mut cluster, skew);
        let url = format!("https://{}", server.address);
        let output = agent_of(&url, &cluster, Some(&token)).output();
        let said = refusal(&output.expect("skiff starts"));
        assert!(said.contains(told), "{told}: {said}");
    }
    // Nothing of them became a node.
    let nodes = cluster.get("/api/v1/nodes").expect("nodes");
    assert_eq!(nodes["items"].as_array().map(Vec::len), Some(0));
}
