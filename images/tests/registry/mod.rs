//! A registry in this process that behaves as badly as it is told to.
//!
//! Content is put into it directly. Faults are queued for requests whose path contains some text:
//! each such request takes one, and when they are used up, the registry behaves. Every request is
//! remembered, so that a test can say what must not have been asked for.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test binary uses some of it")]

mod answer;
pub(crate) mod certificates;
pub(crate) mod debian;
pub(crate) mod proxy;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use skiff_images::{Digest, Reference};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// What goes wrong with one request. Numbers of bytes count from where the answer's body starts.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// A status, extra headers and a body.
    Status(u16, Vec<(&'static str, String)>, String),
    /// The connection ends before there is an answer.
    HangUp,
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// Nothing comes after so many bytes of the body, nor ever.
    Stall(usize),
    /// There is no answer, ever.
    Silence,
    /// Another body, with the right status and headers.
    Body(Bytes),
    /// A pause before the answer, for tests that need two requests at the same time.
    Delay(Duration),
    /// The whole blob, whatever was asked for.
    IgnoreRange,
    /// Another part than the one that was asked for.
    WrongRange,
    /// 307 to the same path elsewhere, with a signature in the query.
    Redirect(String),
}

impl Fault {
    pub(crate) fn status(status: u16) -> Self {
        let body = r#"{"errors":[{"code":"UNKNOWN","message":"it was told to"}]}"#;
        Self::Status(status, Vec::new(), body.to_owned())
    }

    pub(crate) fn too_many_requests(retry_after: &str) -> Self {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#;
        let headers = vec![("retry-after", retry_after.to_owned())];
        Self::Status(429, headers, body.to_owned())
    }
}

/// Who is let in.
#[derive(Debug, Clone, Default)]
pub(crate) enum Auth {
    #[default]
    Nobody,
    Basic {
        accounts: Vec<(String, String)>,
    },
    /// Tokens come from `/token` of the registry at `realm` (its base URL), which may be itself.
    /// Without accounts, anybody gets one.
    Bearer {
        realm: String,
        accounts: Vec<(String, String)>,
        /// Exchanged for tokens by OAuth2.
        identity_token: Option<String>,
    },
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        Some(self.headers.get(name)?.to_str().unwrap())
    }
}

#[derive(Default)]
struct State {
    auth: Auth,
    /// By repository and tag.
    tags: HashMap<(String, String), Digest>,
    /// Manifests, with their media types, and blobs.
    content: HashMap<Digest, (String, Bytes)>,
    /// Faults by what the path of their requests contains.
    faults: Vec<(String, Fault)>,
    seen: Vec<Seen>,
    tokens: HashSet<String>,
    tokens_given: usize,
    /// What the token server says of its tokens' life, in seconds.
    token_life: Option<u64>,
}

/// The registry. It ends, with all its connections, when it is dropped.
pub(crate) struct FaultyRegistry {
    address: SocketAddr,
    tls: bool,
    state: Arc<Mutex<State>>,
    /// The listener and the connections.
    _tasks: JoinSet<()>,
}

impl FaultyRegistry {
    /// Without TLS, on a port of 127.0.0.1.
    pub(crate) async fn start() -> Self {
        Self::listen(None).await
    }

    pub(crate) async fn start_tls(acceptor: TlsAcceptor) -> Self {
        Self::listen(Some(acceptor)).await
    }

    async fn listen(acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<Mutex<State>>::default();
        let mut tasks = JoinSet::new();
        let tls = acceptor.is_some();
        tasks.spawn(accept(listener, acceptor, state.clone()));
        Self {
            address,
            tls,
            state,
            _tasks: tasks,
        }
    }

    /// Host and port, as in a reference.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// `<host>/<name>`.
    pub(crate) fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.address).parse().unwrap()
    }

    pub(crate) fn set_auth(&self, auth: Auth) {
        self.state.lock().unwrap().auth = auth;
    }

    pub(crate) fn set_token_life(&self, seconds: u64) {
        self.state.lock().unwrap().token_life = Some(seconds);
    }

    /// Makes the tokens given so far worthless.
    pub(crate) fn forget_tokens(&self) {
        self.state.lock().unwrap().tokens.clear();
    }

    pub(crate) fn tokens_given(&self) -> usize {
        self.state.lock().unwrap().tokens_given
    }

    pub(crate) fn put_blob(&self, bytes: impl Into<Bytes>) -> Digest {
        self.put("application/octet-stream", bytes.into())
    }

    pub(crate) fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Digest {
        let digest = self.put(media_type, bytes.into());
        let key = (repository.to_owned(), tag.to_owned());
        self.state.lock().unwrap().tags.insert(key, digest);
        digest
    }

    fn put(&self, media_type: &str, bytes: Bytes) -> Digest {
        let digest = Digest::of(&bytes);
        let entry = (media_type.to_owned(), bytes);
        self.state.lock().unwrap().content.insert(digest, entry);
        digest
    }

    /// Queues faults for the next requests whose path contains `part`.
    pub(crate) fn fail(&self, part: &str, faults: impl IntoIterator<Item = Fault>) {
        let faults = faults.into_iter().map(|fault| (part.to_owned(), fault));
        self.state.lock().unwrap().faults.extend(faults);
    }

    /// Behaves again.
    pub(crate) fn forget_faults(&self) {
        self.state.lock().unwrap().faults.clear();
    }

    /// The requests so far whose path contains `part`.
    pub(crate) fn seen(&self, part: &str) -> Vec<Seen> {
        let state = self.state.lock().unwrap();
        let seen = state.seen.iter();
        seen.filter(|seen| seen.uri.path().contains(part))
            .cloned()
            .collect()
    }
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        connections.spawn(serve(stream, acceptor.clone(), state.clone()));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, acceptor: Option<TlsAcceptor>, state: Arc<Mutex<State>>) {
    let service = service_fn(move |request| handle(request, state.clone()));
    let server = hyper::server::conn::http1::Builder::new();
    // A connection that is cut ends in an error, as it should.
    match acceptor {
        None => {
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
        }
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            }
        }
    }
}

async fn handle(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<answer::Answer, answer::HangUp> {
    let (head, body) = request.into_parts();
    let seen = Seen {
        method: head.method,
        uri: head.uri,
        headers: head.headers,
        body: body.collect().await.unwrap().to_bytes(),
    };
    let fault = {
        let mut state = state.lock().unwrap();
        state.seen.push(seen.clone());
        let path = seen.uri.path();
        let fault = state
            .faults
            .iter()
            .position(|(part, _)| path.contains(part));
        fault.map(|index| state.faults.remove(index).1)
    };
    match fault {
        Some(Fault::Silence) => std::future::pending::<()>().await,
        Some(Fault::Delay(pause)) => tokio::time::sleep(pause).await,
        _ => {}
    }
    let mut state = state.lock().unwrap();
    answer::answer(&mut state, &seen, fault)
}
