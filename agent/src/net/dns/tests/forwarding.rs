//! Names that are not the cluster's, with servers of the test's own further up.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use super::{Bench, query, summary, with_edns};
use crate::net::dns::server::Sockets;

/// A server further up.
struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicUsize>,
    asked_by_tcp: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Upstream {
    /// Answers as `reply` says; `None` is no answer.
    async fn start(reply: impl Fn(Message) -> Option<Message> + Send + Sync + 'static) -> Self {
        let reply = Arc::new(reply);
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The same port may be taken for TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let (asked, asked_by_tcp) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let mut tasks = JoinSet::new();
        let (counter, answer) = (asked.clone(), reply.clone());
        tasks.spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
                counter.fetch_add(1, Ordering::SeqCst);
                let query = Message::from_vec(&buffer[..length]).unwrap();
                if let Some(message) = answer(query) {
                    let mut bytes = message.to_vec().unwrap();
                    if bytes.len() > 600 {
                        bytes = message.truncate().to_vec().unwrap();
                    }
                    udp.send_to(&bytes, client).await.unwrap();
                }
            }
        });
        let counter: Arc<AtomicUsize> = asked_by_tcp;
        let asked_by_tcp = counter.clone();
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let query = receive(&mut stream).await;
                if let Some(message) = reply(query) {
                    send(&mut stream, &message).await;
                }
            }
        });
        Self {
            address,
            asked,
            asked_by_tcp,
            _tasks: tasks,
        }
    }

    /// Has an address for every name, good for `ttl` seconds.
    async fn with_addresses(ttl: u32) -> Self {
        Self::start(move |query| {
            let name = query.queries[0].name.clone();
            let mut answer = query.into_response();
            answer.add_answer(address(name, ttl, [192, 0, 2, 1]));
            Some(answer)
        })
        .await
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn address(name: Name, ttl: u32, octets: [u8; 4]) -> Record {
    Record::from_rdata(name, ttl, RData::A(A(octets.into())))
}

async fn receive(stream: &mut TcpStream) -> Message {
    let length = stream.read_u16().await.unwrap();
    let mut bytes = vec![0; length.into()];
    stream.read_exact(&mut bytes).await.unwrap();
    Message::from_vec(&bytes).unwrap()
}

async fn send(stream: &mut TcpStream, message: &Message) {
    let bytes = message.to_vec().unwrap();
    stream.write_u16(bytes.len() as u16).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
}

/// The server on sockets of its own.
struct Client {
    bench: Bench,
    address: SocketAddr,
    socket: UdpSocket,
}

impl Client {
    async fn of(bench: Bench) -> Self {
        let sockets = Sockets::bind_port("127.0.0.1".parse().unwrap(), 0, 2).unwrap();
        let address = sockets.address;
        tokio::spawn(bench.server.clone().run(sockets));
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(address).await.unwrap();
        Self {
            bench,
            address,
            socket,
        }
    }

    async fn ask(&self, query: &Message) -> Message {
        self.socket.send(&query.to_vec().unwrap()).await.unwrap();
        let mut buffer = [0; 4096];
        let length = tokio::time::timeout(Duration::from_secs(60), self.socket.recv(&mut buffer));
        let length = length.await.expect("an answer").unwrap();
        let answer = Message::from_vec(&buffer[..length]).unwrap();
        assert_eq!(answer.metadata.id, query.metadata.id);
        assert_eq!(answer.queries, query.queries);
        answer
    }

    async fn look_up(&self, name: &str) -> Vec<String> {
        summary(&self.ask(&query(name, RecordType::A)).await)
    }

    async fn ask_by_tcp(&self, query: &Message) -> Message {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        send(&mut stream, query).await;
        receive(&mut stream).await
    }
}

#[tokio::test]
async fn answers_are_fetched_once_and_kept() {
    let upstream = Upstream::with_addresses(60).await;
    let client = Client::of(Bench::furnished(&[upstream.address])).await;
    for name in ["example.org.", "Example.ORG.", "example.org."] {
        let answer = client.ask(&query(name, RecordType::A)).await;
        assert_eq!(answer.queries[0].name.to_string(), name);
        assert_eq!(answer.answers.len(), 1);
        assert!(!answer.metadata.authoritative && answer.metadata.recursion_available);
    }
    assert_eq!(upstream.asked(), 1);
    let by_tcp = client
        .ask_by_tcp(&query("example.org.", RecordType::A))
        .await;
    assert_eq!(summary(&by_tcp).len(), 1);
    client.look_up("other.example.org.").await;
    assert_eq!(upstream.asked(), 2);
}

#[tokio::test]
async fn other_servers_mean_other_answers() {
    let (one, two) = (
        Upstream::with_addresses(60).await,
        Upstream::with_addresses(60).await,
    );
    let client = Client::of(Bench::furnished(&[one.address])).await;
    let forwarder = client.bench.server.forwarder.clone();
    let follow = tokio::spawn(async move { forwarder.follow_servers().await });
    client.look_up("example.org.").await;
    client.bench.servers.send_replace(Arc::from([two.address]));
    while two.asked() == 0 {
        client.look_up("example.org.").await;
    }
    assert_eq!(one.asked(), 1);
    follow.abort();
}

#[tokio::test]
async fn a_cut_answer_is_fetched_by_tcp_and_cut_again_for_the_client() {
    let upstream = Upstream::start(|query| {
        let name = query.queries[0].name.clone();
        let mut answer = query.into_response();
        for last in 0..60 {
            answer.add_answer(address(name.clone(), 60, [192, 0, 2, last]));
        }
        Some(answer)
    })
    .await;
    let client = Client::of(Bench::furnished(&[upstream.address])).await;
    let asked = query("many.example.org.", RecordType::A);
    let whole = client.ask(&with_edns(asked.clone(), 4096)).await;
    assert_eq!(
        (whole.answers.len(), whole.metadata.truncation),
        (60, false)
    );
    assert_eq!(upstream.asked_by_tcp.load(Ordering::SeqCst), 1);
    let cut = client.ask(&asked).await;
    assert!(cut.metadata.truncation && cut.answers.len() < 60);
    let by_tcp = client.ask_by_tcp(&asked).await;
    assert_eq!(
        (by_tcp.answers.len(), by_tcp.metadata.truncation),
        (60, false)
    );
}

#[tokio::test]
async fn the_next_server_is_asked_when_one_fails() {
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let failing = Upstream::start(|query| {
        let mut answer = query.into_response();
        answer.metadata.response_code = ResponseCode::ServFail;
        Some(answer)
    })
    .await;
    let good = Upstream::with_addresses(60).await;
    let closed: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let servers = [
        failing.address,
        closed,
        silent.local_addr().unwrap(),
        good.address,
    ];
    let client = Client::of(Bench::furnished(&servers)).await;
    assert_eq!(
        client.look_up("a.example.org.").await,
        ["a.example.org. 60 IN A 192.0.2.1"]
    );
    // The one that answered is asked first now.
    client.look_up("b.example.org.").await;
    assert_eq!((failing.asked(), good.asked()), (1, 2));
}

#[tokio::test]
async fn failures_are_told() {
    let failing = Upstream::start(|query| {
        let mut answer = query.into_response();
        answer.metadata.response_code = ResponseCode::Refused;
        Some(answer)
    })
    .await;
    let client = Client::of(Bench::furnished(&[failing.address])).await;
    assert_eq!(client.look_up("example.org.").await, ["rcode 5"]);
    let alone = Client::of(Bench::furnished(&[])).await;
    assert_eq!(alone.look_up("example.org.").await, ["rcode 2"]);
    let dead = Client::of(Bench::furnished(&["127.0.0.1:9".parse().unwrap()])).await;
    assert_eq!(dead.look_up("example.org.").await, ["rcode 2"]);
}

#[tokio::test]
async fn forged_answers_are_not_taken() {
    let upstream = Upstream::start(|query| {
        let name = query.queries[0].name.clone();
        let mut answer = query.into_response();
        if name.to_string().starts_with("id") {
            answer.metadata.id ^= 1;
        } else {
            answer.queries[0].set_name(Name::from_ascii("evil.example.org.").unwrap());
        }
        answer.add_answer(address(name, 60, [192, 0, 2, 66]));
        Some(answer)
    })
    .await;
    let client = Client::of(Bench::furnished(&[upstream.address])).await;
    assert_eq!(client.look_up("id.example.org.").await, ["rcode 2"]);
    assert_eq!(client.look_up("question.example.org.").await, ["rcode 2"]);
}

#[tokio::test]
async fn a_no_is_kept_as_long_as_the_zone_says() {
    let upstream = Upstream::start(|query| {
        let mut answer = query.into_response();
        answer.metadata.response_code = ResponseCode::NXDomain;
        let zone = Name::from_ascii("example.org.").unwrap();
        let soa = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, 30);
        answer.add_authority(Record::from_rdata(zone, 3600, RData::SOA(soa)));
        Some(answer)
    })
    .await;
    let client = Client::of(Bench::furnished(&[upstream.address])).await;
    for _ in 0..3 {
        let answer = client.ask(&query("none.example.org.", RecordType::A)).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        assert_eq!(answer.authorities.len(), 1);
    }
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn aliases_are_followed_outside() {
    let upstream = Upstream::start(|query| {
        let name = query.queries[0].name.clone();
        let mut answer = query.into_response();
        let target = Name::from_ascii("host.Example.net.").unwrap();
        answer.add_answer(Record::from_rdata(
            name,
            60,
            RData::CNAME(CNAME(target.clone())),
        ));
        answer.add_answer(address(target, 60, [192, 0, 2, 1]));
        Some(answer)
    })
    .await;
    let client = Client::of(Bench::furnished(&[upstream.address])).await;
    let found = client.look_up("out.ns.svc.cluster.local.").await;
    assert_eq!(
        found,
        [
            "example.org. 60 IN CNAME host.example.net.",
            "host.example.net. 60 IN A 192.0.2.1",
            "out.ns.svc.cluster.local. 5 IN CNAME example.org.",
        ]
    );
}

#[tokio::test]
async fn a_question_that_is_under_way_is_not_asked_again() {
    let upstream = Upstream::start(|query| {
        std::thread::sleep(Duration::from_millis(50));
        let name = query.queries[0].name.clone();
        let mut answer = query.into_response();
        answer.add_answer(address(name, 60, [192, 0, 2, 1]));
        Some(answer)
    })
    .await;
    let client = Client::of(Bench::furnished(&[upstream.address])).await;
    let asked = query("example.org.", RecordType::A).to_vec().unwrap();
    for _ in 0..20 {
        client.socket.send(&asked).await.unwrap();
    }
    let mut buffer = [0; 512];
    for _ in 0..20 {
        client.socket.recv(&mut buffer).await.unwrap();
    }
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn an_old_server_is_asked_without_extensions() {
    let upstream = Upstream::start(|query| {
        let name = query.queries[0].name.clone();
        let old = query.edns.is_some();
        let mut answer = query.into_response();
        answer.edns = None;
        if old {
            answer.metadata.response_code = ResponseCode::FormErr;
        } else {
            answer.add_answer(address(name, 60, [192, 0, 2, 1]));
        }
        Some(answer)
    })
    .await;
    let client = Client::of(Bench::furnished(&[upstream.address])).await;
    assert_eq!(client.look_up("example.org.").await.len(), 1);
}
