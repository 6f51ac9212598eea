//! Asking the servers further up.
//!
//! Each question goes out from a port and under an id of its own, both random, and only an answer to exactly that
//! question is taken. Over UDP first; over TCP when the answer is cut. A server that does not answer in time is
//! passed over, and the one that answered last is asked first. Questions that are asked again while the answer is
//! on its way wait for the same one, so even a circle of servers that leads back here comes to rest.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use super::cache::{Cache, CacheKey};
use super::message::{Question, Rcode, Upstream, upstream_query};
use super::relay::{NotAnAnswer, Relayed};

/// For one server to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// For any server to answer; stub resolvers ask again after 5 s.
const WHOLE_PATIENCE: Duration = Duration::from_secs(8);
/// Times that all servers are asked when none answers.
const ROUNDS: usize = 2;

type Flight = Shared<BoxFuture<'static, Option<Arc<Relayed>>>>;

/// What is asked further up.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) question: Question,
    pub(super) dnssec_ok: bool,
    pub(super) checking_disabled: bool,
}

impl Asked {
    fn key(&self) -> CacheKey {
        CacheKey::new(&self.question, self.dnssec_ok, self.checking_disabled)
    }
}

/// Why a server's answer can't be had.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Answer(#[from] NotAnAnswer),
}

pub(super) struct Forwarder {
    servers: watch::Receiver<Arc<[SocketAddr]>>,
    /// The server that answered last.
    preferred: AtomicUsize,
    cache: Mutex<Cache>,
    /// Questions whose answers are on their way. Who waits for one polls it to its end.
    flights: Mutex<HashMap<CacheKey, Flight>>,
}

impl Forwarder {
    pub(super) fn new(servers: watch::Receiver<Arc<[SocketAddr]>>) -> Self {
        Self {
            servers,
            preferred: AtomicUsize::new(0),
            cache: Mutex::default(),
            flights: Mutex::default(),
        }
    }

    /// An answer that is at hand.
    pub(super) fn cached(&self, asked: &Asked) -> Option<Arc<Relayed>> {
        locked(&self.cache).get(&asked.key())
    }

    /// There is nobody to ask.
    pub(super) fn is_alone(&self) -> bool {
        self.servers.borrow().is_empty()
    }

    /// Forgets all answers whenever the servers become others.
    pub(super) async fn follow_servers(&self) {
        let mut servers = self.servers.clone();
        while servers.changed().await.is_ok() {
            locked(&self.cache).clear();
        }
    }

    /// The answer of the first server that has one, also when that is a failure; `None` when no
    /// server answers.
    pub(super) async fn ask(self: &Arc<Self>, asked: Asked) -> Option<Arc<Relayed>> {
        let key = asked.key();
        let flight = {
            let mut flights = locked(&self.flights);
            flights
                .entry(key.clone())
                .or_insert_with(|| self.clone().fly(key, asked).boxed().shared())
                .clone()
        };
        flight.await
    }

    async fn fly(self: Arc<Self>, key: CacheKey, asked: Asked) -> Option<Arc<Relayed>> {
        let answer = timeout(WHOLE_PATIENCE, self.ask_all(&asked)).await;
        let answer = answer.ok().flatten().map(Arc::new);
        if let Some(answer) = &answer {
            locked(&self.cache).put(key.clone(), answer.clone());
        }
        locked(&self.flights).remove(&key);
        answer
    }

    async fn ask_all(&self, asked: &Asked) -> Option<Relayed> {
        let servers = self.servers.borrow().clone();
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failure = None;
        for _ in 0..ROUNDS {
            for offset in 0..servers.len() {
                let index = (first + offset) % servers.len();
                let server = servers[index];
                match timeout(PATIENCE, ask(server, asked)).await {
                    Ok(Ok(answer)) if settles(&answer) => {
                        self.preferred.store(index, Ordering::Relaxed);
                        return Some(answer);
                    }
                    Ok(Ok(answer)) => failure = Some(answer),
                    Ok(Err(error)) => tracing::debug!(%server, %error, "no answer"),
                    Err(_) => tracing::debug!(%server, "no answer in time"),
                }
            }
            if failure.is_some() {
                break;
            }
        }
        failure
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Both maps are whole between any two statements, also after a panic elsewhere.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Another server would not say anything else.
fn settles(answer: &Relayed) -> bool {
    [Rcode::NoError, Rcode::NxDomain]
        .iter()
        .any(|settled| *settled as u16 == answer.rcode())
}

async fn ask(server: SocketAddr, asked: &Asked) -> Result<Relayed, AskError> {
    let answer = ask_with(server, asked, true).await?;
    let puzzled = [Rcode::FormErr, Rcode::NotImp];
    match puzzled.iter().any(|r| *r as u16 == answer.rcode()) {
        // It may not know of EDNS.
        true => ask_with(server, asked, false).await,
        false => Ok(answer),
    }
}

async fn ask_with(server: SocketAddr, asked: &Asked, edns: bool) -> Result<Relayed, AskError> {
    let upstream = Upstream {
        question: &asked.question,
        dnssec_ok: asked.dnssec_ok,
        checking_disabled: asked.checking_disabled,
        edns,
    };
    let answer = ask_udp(server, &upstream).await?;
    match answer.is_truncated() {
        true => ask_tcp(server, &upstream).await,
        false => Ok(answer),
    }
}

async fn ask_udp(server: SocketAddr, asked: &Upstream<'_>) -> Result<Relayed, AskError> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    // The kernel takes a random port, and a connected socket hears only the server.
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let id = rand::random();
    let mut query = Vec::with_capacity(512);
    upstream_query(id, asked, &mut query);
    socket.send(&query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        match Relayed::read(buffer[..length].to_vec(), id, asked.question) {
            // Somebody guesses, or an answer comes late.
            Err(NotAnAnswer::Other) => {}
            answer => return Ok(answer?),
        }
    }
}

async fn ask_tcp(server: SocketAddr, asked: &Upstream<'_>) -> Result<Relayed, AskError> {
    let mut stream = TcpStream::connect(server).await?;
    let id = rand::random();
    let mut query = Vec::with_capacity(512);
    upstream_query(id, asked, &mut query);
    // A name has 255 bytes at most: the length fits.
    let length = (query.len() as u16).to_be_bytes();
    stream
        .write_all(&[&length, query.as_slice()].concat())
        .await?;
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(Relayed::read(message, id, asked.question)?)
}
