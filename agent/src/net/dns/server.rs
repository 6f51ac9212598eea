//! Taking queries, over UDP and TCP.
//!
//! What the cluster's names or the cache can answer is answered at once, in the task that received it; only what has to
//! be asked further up gets a task of its own. Both are bounded: beyond, a query fails at once, and so does one when
//! there is nobody to ask.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, socket, sockopt,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::forward::{Asked, Forwarder};
use super::lookup::{Names, Outcome};
use super::message::{NoQuery, Query, Rcode, Reply, flag, kind, refusal};
use super::name::Name;
use super::zone::Zone;

/// Where clients expect us, if it is free.
const PORT: u16 = 53;
/// Queries that wait for servers further up.
const WAITING: usize = 1024;
/// Open TCP connections.
const CONNECTIONS: usize = 256;
/// A connection without a query is closed.
const IDLE: Duration = Duration::from_secs(10);
/// The longest query that is taken over UDP: names have 255 bytes.
const LONGEST_QUERY: usize = 4096;
const TCP_LIMIT: usize = u16::MAX as usize;

/// The sockets of one address.
pub(super) struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: TcpListener,
    pub(super) address: SocketAddr,
}

impl Sockets {
    /// Port 53 of an address, else any: `count` sockets for UDP, between which the kernel divides
    /// the clients, and one for TCP.
    pub(super) fn bind(address: Ipv4Addr, count: usize) -> io::Result<Self> {
        match Self::bind_port(address, PORT, count) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                Self::bind_port(address, 0, count)
            }
            bound => bound,
        }
    }

    pub(super) fn bind_port(address: Ipv4Addr, port: u16, count: usize) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind((address, port))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let udp = (0..count.max(1))
            .map(|_| udp_socket(address))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            udp,
            tcp: TcpListener::from_std(listener)?,
            address,
        })
    }
}

fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let SocketAddr::V4(address) = address else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None)?;
    setsockopt(&socket, sockopt::ReusePort, &true)?;
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&socket),
        &SockaddrIn::from(address),
    )?;
    UdpSocket::from_std(socket.into())
}

/// What answers queries.
pub(super) struct Server {
    pub(super) zone: Arc<RwLock<Zone>>,
    pub(super) names: Names,
    pub(super) forwarder: Arc<Forwarder>,
    waiting: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What is to be done after a query was looked at.
#[derive(Debug)]
enum Next {
    /// The answer is written.
    Send,
    Nothing,
    Ask(Box<Waiting>),
}

/// A query whose answer comes from further up.
#[derive(Debug)]
struct Waiting {
    query: Query,
    limit: usize,
    asked: Asked,
    /// The question is about this alias' target, not about the query's name.
    alias: Option<Name>,
    _permit: OwnedSemaphorePermit,
}

impl Server {
    pub(super) fn new(
        zone: Arc<RwLock<Zone>>,
        names: Names,
        forwarder: Arc<Forwarder>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            zone,
            names,
            forwarder,
            waiting: Arc::new(Semaphore::new(WAITING)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            tasks: TaskTracker::new(),
            stop,
        }
    }

    /// Serves until the token that it was made with is cancelled.
    pub(super) async fn run(self: Arc<Self>, sockets: Sockets) {
        for socket in sockets.udp {
            self.spawn(self.clone().serve_udp(Arc::new(socket)));
        }
        self.spawn(self.clone().serve_tcp(sockets.tcp));
        self.stop.cancelled().await;
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled_owned(work).await;
        });
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut packet = vec![0; LONGEST_QUERY];
        let mut out = Vec::with_capacity(LONGEST_QUERY);
        loop {
            let (length, client) = match socket.recv_from(&mut packet).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "receiving a DNS query");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            match self.look(&packet[..length], None, &mut out) {
                // A client that does not take its answer asks again.
                Next::Send => drop(socket.try_send_to(&out, client)),
                Next::Nothing => {}
                Next::Ask(waiting) => {
                    let (server, socket) = (self.clone(), socket.clone());
                    self.spawn(async move {
                        let answer = server.wait(*waiting).await;
                        let _ = socket.send_to(&answer, client).await;
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = self.connections.clone().acquire_owned().await else {
                return;
            };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let server = self.clone();
                    self.spawn(async move {
                        // How a client's connection ends is the client's business.
                        let _ = server.serve_connection(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "accepting a DNS connection");
                    // Out of descriptors, most likely: there is nothing to do but to wait.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve_connection(&self, mut stream: TcpStream) -> io::Result<()> {
        let (mut query, mut out) = (Vec::new(), Vec::new());
        loop {
            timeout(IDLE, read_message(&mut stream, &mut query)).await??;
            match self.look(&query, Some(TCP_LIMIT), &mut out) {
                Next::Send => {}
                Next::Nothing => return Ok(()),
                Next::Ask(waiting) => out = self.wait(*waiting).await,
            }
            let length = (out.len() as u16).to_be_bytes();
            let framed = [&length, out.as_slice()].concat();
            timeout(IDLE, stream.write_all(&framed)).await??;
        }
    }

    /// Answers a query, or says that the answer has to be asked for. `limit` is the most bytes of an
    /// answer where the query has no say in it.
    fn look(&self, packet: &[u8], limit: Option<usize>, out: &mut Vec<u8>) -> Next {
        let query = match Query::read(packet) {
            Ok(query) => query,
            Err(NoQuery::Silence) => return Next::Nothing,
            Err(NoQuery::Answer(rcode)) => {
                refusal(packet, rcode, out);
                return Next::Send;
            }
        };
        let limit = limit.unwrap_or_else(|| query.udp_limit());
        let question = &query.question;
        if query.has_bad_version() {
            Reply::to(&query, limit, out).finish();
            return Next::Send;
        }
        if question.class != kind::INTERNET || matches!(question.kind, kind::AXFR | kind::IXFR) {
            return fail(&query, Rcode::Refused, limit, out);
        }
        let mut reply = Reply::to(&query, limit, out);
        let outcome = self.zone().answer(&self.names, question, &mut reply);
        match outcome {
            Outcome::Answered => {
                reply.finish();
                Next::Send
            }
            Outcome::NotReady => fail(&query, Rcode::ServFail, limit, out),
            Outcome::Alias { target, .. } => {
                if !matches!(question.kind, kind::A | kind::AAAA) || self.forwarder.is_alone() {
                    reply.finish();
                    return Next::Send;
                }
                self.ask(query, limit, Some(target), out)
            }
            Outcome::Elsewhere => self.ask(query, limit, None, out),
        }
    }

    /// The answer to a query that nobody else has to be asked for.
    #[cfg(test)]
    pub(super) fn answer_now(&self, packet: &[u8], limit: Option<usize>) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        matches!(self.look(packet, limit, &mut out), Next::Send).then_some(out)
    }

    /// Takes the answer from the cache, or leaves it to be asked for.
    fn ask(&self, query: Query, limit: usize, alias: Option<Name>, out: &mut Vec<u8>) -> Next {
        let mut asked = Asked {
            question: query.question.clone(),
            dnssec_ok: query.dnssec_ok(),
            checking_disabled: query.flags & flag::CHECKING_DISABLED != 0,
        };
        if let Some(target) = &alias {
            asked.question.name = target.clone();
        } else if let Some(known) = self.forwarder.cached(&asked) {
            known.write(&query, limit, out);
            return Next::Send;
        }
        if self.forwarder.is_alone() {
            return fail(&query, Rcode::ServFail, limit, out);
        }
        match self.waiting.clone().try_acquire_owned() {
            Ok(permit) => Next::Ask(Box::new(Waiting {
                query,
                limit,
                asked,
                alias,
                _permit: permit,
            })),
            Err(_) => fail(&query, Rcode::ServFail, limit, out),
        }
    }

    /// The answer to a query, once the servers further up gave theirs.
    async fn wait(&self, waiting: Waiting) -> Vec<u8> {
        let Waiting {
            query,
            limit,
            asked,
            alias,
            ..
        } = waiting;
        let known = self.forwarder.cached(&asked);
        let answer = match known {
            Some(known) => Some(known),
            None => self.forwarder.ask(asked).await,
        };
        let mut out = Vec::new();
        match (alias, answer) {
            (None, Some(answer)) => answer.write(&query, limit, &mut out),
            (None, None) => drop(fail(&query, Rcode::ServFail, limit, &mut out)),
            (Some(target), answer) => {
                let mut reply = Reply::to(&query, limit, &mut out);
                let outcome = self.zone().answer(&self.names, &query.question, &mut reply);
                // The alias may lead elsewhere by now; then it stands alone.
                if let (Outcome::Alias { target: now, at }, Some(answer)) = (outcome, answer)
                    && now == target
                {
                    answer.append_addresses(&target, at, &mut reply);
                }
                reply.finish();
            }
        }
        out
    }

    fn zone(&self) -> std::sync::RwLockReadGuard<'_, Zone> {
        // Every change of a zone is whole, also after a panic elsewhere.
        self.zone.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn fail(query: &Query, rcode: Rcode, limit: usize, out: &mut Vec<u8>) -> Next {
    let mut reply = Reply::to(query, limit, out);
    reply.rcode(rcode);
    reply.finish();
    Next::Send
}

/// Reads a message after its length; the buffer is kept for the next one.
async fn read_message(stream: &mut TcpStream, message: &mut Vec<u8>) -> io::Result<()> {
    let length = usize::from(stream.read_u16().await?);
    message.resize(length, 0);
    stream.read_exact(message).await?;
    Ok(())
}
