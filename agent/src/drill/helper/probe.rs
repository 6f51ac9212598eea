//! Asking a target again and again.
//!
//! Requests are sent on schedule whether or not earlier ones were answered, each on a connection of its own: so an
//! answer that takes long delays no other, and every moment is asked about (an open loop).

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::header::{HOST, HeaderValue, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use skiff_dev::{ProbeScheme, ProbeTarget};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::measuring::until_ended;
use crate::drill::measure::clock::Clock;
use crate::drill::measure::samples::{Outcome, Sample, SampleLog};

/// Bytes of an answer that are read; a longer one is good without its end.
const MOST_BODY: usize = 1 << 20;
/// What was not sent for so long, because the host stood still, is not sent any more.
const STALE: Duration = Duration::from_secs(10);

/// Whom to ask, how often, and where to write what came of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Probe {
    pub(crate) target: ProbeTarget,
    /// Requests a second, 1 or more.
    pub(crate) rate: u32,
    pub(crate) timeout: Duration,
    pub(crate) samples: PathBuf,
    /// The node's address in its pods' network: without it there is nothing to ask from.
    pub(crate) node: Ipv4Addr,
}

impl Probe {
    pub(super) fn run(&self, until: Timestamp) -> io::Result<()> {
        let mut log = SampleLog::open(&self.samples)?;
        until_ended(until, self.node, |stop| async move {
            self.send_all(&stop, &mut log).await
        })
    }

    async fn send_all(&self, stop: &CancellationToken, log: &mut SampleLog) -> io::Result<()> {
        let clock = Clock::start()?;
        let interval = Duration::from_secs(1) / self.rate.max(1);
        let mut due = Instant::now();
        let mut under_way: JoinSet<Sample> = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep_until(due) => {
                    let now = Instant::now();
                    if now.duration_since(due) > STALE {
                        due = now;
                    }
                    while due <= now {
                        under_way.spawn(self.clone().ask_once(clock, due));
                        due += interval;
                    }
                }
                Some(sample) = under_way.join_next() => log.append(&outcome(sample)?)?,
            }
        }
        while let Some(sample) = under_way.join_next().await {
            log.append(&outcome(sample)?)?;
        }
        log.finish()
    }

    async fn ask_once(self, clock: Clock, due: Instant) -> Sample {
        let sent = clock.send(due);
        let outcome = match timeout(self.timeout, self.ask()).await {
            Ok(Ok(())) => Outcome::Good,
            Ok(Err(outcome)) => outcome,
            Err(_) => Outcome::TimedOut,
        };
        sent.ended(outcome)
    }

    async fn ask(&self) -> Result<(), Outcome> {
        let address = self.address().await?;
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(|error| Outcome::from(&error))?;
        // A connection that is reset at its end leaves nothing behind: no port of ours and no entry in the
        // connection tables that would fill up at a thousand a second.
        stream
            .set_zero_linger()
            .map_err(|error| Outcome::from(&error))?;
        match self.target.scheme {
            ProbeScheme::Tcp => Ok(()),
            ProbeScheme::Http => self.get(stream).await,
        }
    }

    async fn address(&self) -> Result<SocketAddr, Outcome> {
        let ProbeTarget { host, port, .. } = &self.target;
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(SocketAddr::new(ip, *port));
        }
        let found = tokio::net::lookup_host((host.as_str(), *port)).await;
        found
            .ok()
            .and_then(|mut addresses| addresses.next())
            .ok_or(Outcome::NoSuchName)
    }

    /// 200 to 399 is good, once all of the answer is there.
    async fn get(&self, stream: TcpStream) -> Result<(), Outcome> {
        let request = self.request()?;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| of_http(&error))?;
        let exchange = async {
            let response = sender.send_request(request).await;
            let response = response.map_err(|error| of_http(&error))?;
            let status = response.status();
            let mut body = response.into_body();
            let mut read = 0;
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| of_http(&error))?;
                read += frame.data_ref().map_or(0, Bytes::len);
                if read > MOST_BODY {
                    break;
                }
            }
            judge(status)
        };
        let mut exchange = pin!(exchange);
        tokio::select! {
            answered = &mut exchange => answered,
            _ = connection => exchange.await,
        }
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>, Outcome> {
        let ProbeTarget {
            host, port, path, ..
        } = &self.target;
        let authority = authority(host, *port);
        let host = HeaderValue::from_str(&authority).map_err(|_| Outcome::Failed)?;
        let path = if path.is_empty() { "/" } else { path.as_str() };
        Request::get(path)
            .header(HOST, host)
            .header(
                USER_AGENT,
                concat!("skiff-drill/", env!("CARGO_PKG_VERSION")),
            )
            .body(Empty::new())
            .map_err(|_| Outcome::Failed)
    }
}

fn outcome(joined: Result<Sample, tokio::task::JoinError>) -> io::Result<Sample> {
    joined.map_err(io::Error::other)
}

fn judge(status: StatusCode) -> Result<(), Outcome> {
    match status.as_u16() {
        200..=399 => Ok(()),
        other => Err(Outcome::Status(other)),
    }
}

fn of_http(error: &hyper::Error) -> Outcome {
    use std::error::Error;
    if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        return Outcome::Closed;
    }
    if error.is_parse() {
        return Outcome::NotHttp;
    }
    let cause = error.source().and_then(|cause| cause.downcast_ref());
    cause.map_or(Outcome::Failed, |error: &io::Error| Outcome::from(error))
}

/// As it stands in a URL.
pub(crate) fn authority(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::drill::measure::course;
    use crate::drill::measure::samples::SampleReader;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn probe(directory: &tempfile::TempDir, port: u16, rate: u32) -> Probe {
        Probe {
            target: ProbeTarget {
                scheme: ProbeScheme::Http,
                host: "127.0.0.1".into(),
                port,
                path: "/health?deep=1".into(),
            },
            rate,
            timeout: TIMEOUT,
            samples: directory.path().join("samples"),
            node: Ipv4Addr::LOCALHOST,
        }
    }

    /// Answers every connection with `answer`, and counts the requests.
    async fn serve(answer: &'static str) -> (u16, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let counted = counted.clone();
                tokio::spawn(async move {
                    let mut request = [0; 1024];
                    if let Ok(read @ 1..) = stream.read(&mut request).await {
                        let text = String::from_utf8_lossy(&request[..read]).into_owned();
                        assert!(
                            text.starts_with("GET /health?deep=1 HTTP/1.1\r\n"),
                            "{text}"
                        );
                        counted.fetch_add(1, Ordering::SeqCst);
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        (port, count)
    }

    const GOOD: &str = "HTTP/1.1 200 ok\r\ncontent-length: 2\r\n\r\nok";

    /// Probes until so many outcomes are known.
    async fn probe_until(probe: &Probe, count: u64) -> Vec<Sample> {
        let stop = CancellationToken::new();
        let mut log = SampleLog::open(&probe.samples).unwrap();
        let path = probe.samples.clone();
        let enough = async {
            while std::fs::metadata(&path).unwrap().len() < 24 * count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            stop.cancel();
        };
        let (done, ()) = tokio::join!(probe.send_all(&stop, &mut log), enough);
        done.unwrap();
        SampleReader::default().read(&probe.samples).unwrap()
    }

    #[tokio::test]
    async fn every_request_arrives_and_is_counted_once() {
        let directory = tempfile::tempdir().unwrap();
        let (port, count) = serve(GOOD).await;
        let samples = probe_until(&probe(&directory, port, 200), 60).await;
        assert_eq!(samples.len(), count.load(Ordering::SeqCst));
        assert!(samples.iter().all(Sample::is_good));
        // On schedule: from the first to the last as long as there are intervals between.
        let course = course::requests(samples.clone(), TIMEOUT);
        let (first, last) = (
            samples.iter().map(|s| s.sent).min(),
            samples.iter().map(|s| s.sent).max(),
        );
        let span = last.unwrap() - first.unwrap();
        let planned = (samples.len() as u64 - 1) * 5000;
        assert!(span + 5000 >= planned, "{span} µs for {planned}");
        assert_eq!((course.sent, course.failed), (samples.len() as i64, 0));
    }

    #[tokio::test]
    async fn what_goes_wrong_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let outcome = async |probe: &Probe| probe.ask().await;
        let (unavailable, _) = serve("HTTP/1.1 503 no\r\ncontent-length: 0\r\n\r\n").await;
        let (redirect, _) =
            serve("HTTP/1.1 302 away\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n").await;
        let (cut_short, _) = serve("HTTP/1.1 200 ok\r\ncontent-length: 20\r\n\r\nok").await;
        let (silent, _) = serve("").await;
        let (babble, _) = serve("SSH-2.0-OpenSSH\r\n\r\n").await;
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let refused = free.local_addr().unwrap().port();
        drop(free);
        for (port, wanted) in [
            (unavailable, Err(Outcome::Status(503))),
            (redirect, Ok(())),
            (cut_short, Err(Outcome::Closed)),
            (silent, Err(Outcome::Closed)),
            (babble, Err(Outcome::NotHttp)),
            (refused, Err(Outcome::Refused)),
        ] {
            let found = outcome(&probe(&directory, port, 1)).await;
            assert_eq!(found, wanted, "{port}");
        }
        let mut nobody = probe(&directory, 80, 1);
        nobody.target.host = "no-such-host.invalid".into();
        assert_eq!(outcome(&nobody).await, Err(Outcome::NoSuchName));
        let mut tcp = probe(&directory, silent, 1);
        tcp.target.scheme = ProbeScheme::Tcp;
        assert_eq!(outcome(&tcp).await, Ok(()));
    }

    #[tokio::test]
    async fn a_target_that_hangs_delays_no_request() {
        // Connections are made by the kernel, and nobody ever reads.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut probe = probe(&directory, listener.local_addr().unwrap().port(), 50);
        probe.timeout = Duration::from_millis(400);
        let samples = probe_until(&probe, 1).await;
        // When the first had timed out, twenty were under way.
        assert!(samples.len() > 5, "{}", samples.len());
        assert!(samples.iter().all(|s| s.outcome == Outcome::TimedOut));
        assert!(samples.iter().all(|s| s.took >= 400_000));
    }
}
