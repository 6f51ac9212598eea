//! Names, as pods ask for them: through their own `resolv.conf`, from the node's DNS server.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::cluster::{Cluster, SERVE, shell_pod};
use crate::wait;

/// A server that the host's resolv.conf names: a few names of `upstream.test`.
struct Upstream {
    address: Ipv4Addr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Addresses of `big.upstream.test`: more than fit a datagram without extensions.
const MANY: u8 = 60;

impl Upstream {
    fn start() -> Self {
        let process = std::process::id();
        // Ports are 53 in resolv.conf, but loopback has addresses enough for every test.
        let (address, udp, tcp) = (0..)
            .find_map(|attempt| {
                let [_, _, high, low] = (process + attempt * 7919).to_be_bytes();
                let address = Ipv4Addr::new(127, 53, high, low);
                let udp = UdpSocket::bind((address, 53)).ok()?;
                let tcp = TcpListener::bind((address, 53)).ok()?;
                Some((address, udp, tcp))
            })
            .expect("a free address");
        let stop = Arc::new(AtomicBool::new(false));
        udp.set_read_timeout(Some(Duration::from_millis(100)))
            .expect("a socket option");
        tcp.set_nonblocking(true).expect("a socket option");
        let (over, of_tcp) = (stop.clone(), stop.clone());
        let datagrams = std::thread::spawn(move || serve_udp(&udp, &over));
        let streams = std::thread::spawn(move || serve_tcp(&tcp, &of_tcp));
        Self {
            address,
            stop,
            threads: vec![datagrams, streams],
        }
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, stop: &AtomicBool) {
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::SeqCst) {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let Some(answer) = answer(&buffer[..length]) else {
            continue;
        };
        let whole = answer.to_vec().expect("an answer");
        let cut = || answer.truncate().to_vec().expect("an answer");
        let bytes = if whole.len() > 512 { cut() } else { whole };
        let _ = socket.send_to(&bytes, client);
    }
}

fn serve_tcp(listener: &TcpListener, stop: &AtomicBool) {
    use std::io::{Read, Write};
    while !stop.load(Ordering::SeqCst) {
        let Ok((mut stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        let _ = stream.set_nonblocking(false);
        let mut length = [0; 2];
        let mut query = Vec::new();
        if stream.read_exact(&mut length).is_ok() {
            query.resize(u16::from_be_bytes(length).into(), 0);
        }
        if let (Ok(()), Some(answer)) = (stream.read_exact(&mut query), answer(&query)) {
            let bytes = answer.to_vec().expect("an answer");
            let length = (bytes.len() as u16).to_be_bytes();
            let _ = stream.write_all(&[&length, bytes.as_slice()].concat());
        }
    }
}

fn answer(query: &[u8]) -> Option<Message> {
    let query = Message::from_vec(query).ok()?;
    let asked = query.queries.first()?.clone();
    let mut answer = query.into_response();
    let addresses = match asked.name.to_ascii().to_lowercase().as_str() {
        "one.upstream.test." => 1,
        "big.upstream.test." => MANY,
        _ => {
            answer.metadata.response_code = hickory_proto::op::ResponseCode::NXDomain;
            0
        }
    };
    if asked.query_type == RecordType::A {
        for last in 1..=addresses {
            let data = RData::A(A(Ipv4Addr::new(192, 0, 2, last)));
            answer.add_answer(Record::from_rdata(asked.name.clone(), 60, data));
        }
    }
    Some(answer)
}

/// A cluster whose host asks `upstream`, with a pod that can ask.
fn cluster_with(upstream: &Upstream) -> Cluster {
    let mut cluster = Cluster::new();
    let file = cluster.scratch().join("resolv.conf");
    let text = format!("search upstream.test\nnameserver {}\n", upstream.address);
    std::fs::write(&file, text).expect("a resolv.conf");
    cluster.option("--resolv-conf", &file.display().to_string());
    cluster.up();
    cluster.import(&crate::images::demonstration().join("busybox.tar"));
    cluster.apply(&format!(
        "{}---\n{}",
        SERVICES,
        shell_pod("client", SERVE, "", "")
    ));
    cluster.until_ready("client");
    cluster
}

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: backend}
  ports: [{name: http, port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: db}
spec:
  clusterIP: None
  selector: {app: backend}
  ports: [{name: sql, port: 5432}]
---
apiVersion: v1
kind: Service
metadata: {name: out}
spec: {type: ExternalName, externalName: one.upstream.test}
---
apiVersion: v1
kind: Pod
metadata: {name: backend, labels: {app: backend}}
spec:
  hostname: first
  subdomain: db
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: busybox, command: [sleep, '1000']}
";

/// What a command in the pod `client` prints, once it has all of `wanted`; the node's own command runs it, so the control
/// plane may be away.
fn until_says(cluster: &Cluster, command: &str, wanted: &[&str]) -> String {
    wait::until(&format!("{command} says {wanted:?}"), || {
        let output = cluster.try_skiff(["exec", "client", "--", "sh", "-c", command]);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        wanted
            .iter()
            .all(|part| said.contains(part))
            .then_some(said)
    })
}

#[test]
fn pods_find_services_each_other_and_the_world() {
    let upstream = Upstream::start();
    let mut cluster = cluster_with(&upstream);
    let dns = cluster
        .get("/api/v1/namespaces/kube-system/services/kube-dns")
        .expect("kube-dns");
    let dns = dns["spec"]["clusterIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    assert!(dns.ends_with(".0.10"), "{dns}");
    until_says(
        &cluster,
        "cat /etc/resolv.conf",
        &[
            "search default.svc.cluster.local svc.cluster.local cluster.local upstream.test\n",
            &format!("nameserver {dns}\n"),
            "options ndots:5\n",
        ],
    );
    let web = cluster
        .get("/api/v1/namespaces/default/services/web")
        .expect("web");
    let web = web["spec"]["clusterIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    let backend = cluster.until_ready("backend")["status"]["podIP"]
        .as_str()
        .expect("an address")
        .to_owned();

    // The search path, from the shortest to the whole name.
    for name in [
        "web",
        "web.default",
        "web.default.svc",
        "web.default.svc.cluster.local",
    ] {
        let said = format!("ping -c1 -W1 {name} 2>&1");
        until_says(&cluster, &said, &[&format!("PING {name} ({web})")]);
    }
    for (question, wanted) in [
        ("-type=a db.default.svc.cluster.local", backend.as_str()),
        ("-type=a first.db.default.svc.cluster.local", &backend),
        (
            "-type=srv _http._tcp.web.default.svc.cluster.local",
            "80 web.default.svc.cluster.local",
        ),
        (
            "-type=srv _sql._tcp.db.default.svc.cluster.local",
            "5432 first.db.default.svc.cluster.local",
        ),
        ("-type=a out.default.svc.cluster.local", "192.0.2.1"),
        ("-type=a one.upstream.test", "192.0.2.1"),
        ("-type=a none.default.svc.cluster.local", "NXDOMAIN"),
        ("-type=a none.upstream.test", "NXDOMAIN"),
    ] {
        until_says(&cluster, &format!("nslookup {question} 2>&1"), &[wanted]);
    }
    until_says(
        &cluster,
        &format!("nslookup {web} 2>&1"),
        &["name = web.default.svc.cluster.local"],
    );
    until_says(
        &cluster,
        &format!("nslookup {backend} 2>&1"),
        &["name = first.db.default.svc.cluster.local"],
    );
    until_says(&cluster, "ping -c1 -W1 one 2>&1", &["PING one (192.0.2.1)"]);
    until_says(
        &cluster,
        "env",
        &[
            &format!("WEB_SERVICE_HOST={web}\n"),
            "KUBERNETES_SERVICE_PORT=443\n",
        ],
    );

    // The host may ask too; an answer that does not fit is fetched over TCP, and given in whole over TCP.
    let server: SocketAddr = format!("{dns}:53").parse().expect("an address");
    let many = ask_by_tcp(server, "big.upstream.test.");
    assert_eq!(many.answers.len(), usize::from(MANY));
}

#[test]
fn names_come_back_with_the_agent() {
    let upstream = Upstream::start();
    let mut cluster = cluster_with(&upstream);
    let web = cluster
        .get("/api/v1/namespaces/default/services/web")
        .expect("web");
    let web = web["spec"]["clusterIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    until_says(
        &cluster,
        "nslookup -type=a web.default.svc.cluster.local",
        &[&web],
    );
    // The copy that the next agent begins with.
    let copy = cluster.data_dir().join("agent/network/names.json");
    wait::until("a copy of the names", || {
        let copy = std::fs::read_to_string(&copy).ok()?;
        copy.contains(&web).then_some(())
    });
    cluster.crash();
    cluster.up();
    until_says(
        &cluster,
        "nslookup -type=a web.default.svc.cluster.local",
        &[&web],
    );
}

fn ask_by_tcp(server: SocketAddr, name: &str) -> Message {
    use std::io::{Read, Write};
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(
        Name::from_ascii(name).expect("a name"),
        RecordType::A,
    ));
    let query = query.to_vec().expect("a query");
    wait::until("an answer over TCP", || {
        let mut stream =
            std::net::TcpStream::connect_timeout(&server, Duration::from_secs(5)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .ok()?;
        stream.write_all(&(query.len() as u16).to_be_bytes()).ok()?;
        stream.write_all(&query).ok()?;
        let mut length = [0; 2];
        stream.read_exact(&mut length).ok()?;
        let mut bytes = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut bytes).ok()?;
        Message::from_vec(&bytes).ok()
    })
}

#[test]
fn names_are_answered_while_the_control_plane_is_dead() {
    let mut cluster = Cluster::of_nodes(1);
    cluster.apply(&format!(
        "{}---\n{}",
        SERVICES,
        shell_pod("client", SERVE, "", "")
    ));
    cluster.until_ready("client");
    let backend = cluster.until_ready("backend")["status"]["podIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    let web = cluster
        .get("/api/v1/namespaces/default/services/web")
        .expect("web");
    let web = web["spec"]["clusterIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    let until_right = |cluster: &Cluster| {
        for (name, address) in [("web", &web), ("first.db", &backend)] {
            let question = format!("nslookup -type=a {name}.default.svc.cluster.local 2>&1");
            until_node_says(cluster, "node-1", &question, address);
        }
        let none = "nslookup -type=a none.default.svc.cluster.local 2>&1";
        until_node_says(cluster, "node-1", none, "NXDOMAIN");
    };
    until_right(&cluster);
    let copy = cluster.node_dir("node-1").join("agent/network/names.json");
    wait::until("a copy of the names", || {
        let copy = std::fs::read_to_string(&copy).ok()?;
        (copy.contains(&web) && copy.contains(&backend)).then_some(())
    });
    let agent = cluster.agent_pid("node-1");
    cluster.crash();
    until_right(&cluster);
    // An agent that starts now has nobody to ask but the copy.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(agent),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("SIGKILL");
    wait::until("nobody answers", || {
        let server = cluster.on_node("node-1", &["ss", "-Hlun", "sport", "=", ":53"]);
        server.trim().is_empty().then_some(())
    });
    cluster.skiff(["node", "start", "node-1"]);
    assert_ne!(cluster.agent_pid("node-1"), agent);
    until_right(&cluster);
}

/// Waits until what a command in the pod `client` prints on a node has something in it.
fn until_node_says(cluster: &Cluster, node: &str, command: &str, wanted: &str) {
    wait::until(&format!("{command} says {wanted}"), || {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_skiff"))
            .args(["exec", "--data-dir"])
            .arg(cluster.node_dir(node))
            .args(["client", "--", "sh", "-c", command])
            .output()
            .expect("skiff starts");
        String::from_utf8_lossy(&output.stdout)
            .contains(wanted)
            .then_some(())
    });
}
