//! What drills do to packets: that it does, to whom, and that nothing of it stays.

use std::net::UdpSocket;

use super::*;
use crate::net::faults::{PacketFault, PacketFaultError, PodPlace, undo_all};

/// How long a packet that is dropped is waited for.
const SILENCE: Duration = Duration::from_millis(300);
const TASK: &str = "5f0c7a52-9d5c-4a54-9f6d-6a2f0a3a7b11";
const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

/// A server that takes connections and sends back what it gets, for as long as the test runs.
fn echo(listener: TcpListener) {
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut bytes = [0; 64];
                while let Ok(read @ 1..) = stream.read(&mut bytes) {
                    if stream.write_all(&bytes[..read]).is_err() {
                        break;
                    }
                }
            });
        }
    });
}

fn listen(namespace: &Namespace, port: u16) {
    echo(namespace.run(|| TcpListener::bind(("0.0.0.0", port)).unwrap()));
}

fn dial(ip: Ipv4Addr, port: u16, patience: Duration) -> Option<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::from((ip, port)), patience).ok()
}

fn reaches(ip: Ipv4Addr, port: u16) -> bool {
    dial(ip, port, PATIENCE).is_some()
}

fn is_cut_off(ip: Ipv4Addr, port: u16) -> bool {
    dial(ip, port, SILENCE).is_none()
}

/// Sends a byte and waits for it to come back.
fn echoes(stream: &mut TcpStream, patience: Duration) -> bool {
    stream.set_read_timeout(Some(patience)).unwrap();
    stream.write_all(b"x").unwrap();
    stream.read_exact(&mut [0]).is_ok()
}

/// A node with some pods, each of which listens on port 80.
async fn pods<const N: usize>(network: &Network) -> [(Namespace, Ipv4Addr); N] {
    let mut made = Vec::new();
    for number in 0..N {
        let namespace = Namespace::new();
        let uid = format!("uid-{number}");
        let pod = network.attach(&uid, &namespace.path(), Vec::new()).await;
        listen(&namespace, 80);
        made.push((namespace, pod.unwrap().ip));
    }
    made.try_into().ok().unwrap()
}

#[test]
fn a_node_is_cut_off_from_the_api_servers_and_from_nothing_else() {
    on_new_host(async || {
        let outside = Namespace::new();
        connect_uplink(&outside, Ipv4Addr::new(203, 0, 113, 1), FAR);
        listen(&outside, 6443);
        listen(&outside, 80);
        let node = Node::new();
        let network = node.network().await;
        let [(pod, ip)] = pods(&network).await;
        // The agent's own endpoint.
        echo(TcpListener::bind("0.0.0.0:10250").unwrap());
        let here = Ipv4Addr::new(203, 0, 113, 1);
        let mut established = dial(FAR, 6443, PATIENCE).unwrap();
        let mut of_pod = pod.run(|| dial(FAR, 6443, PATIENCE)).unwrap();
        let mut to_endpoint = outside.run(|| dial(here, 10250, PATIENCE)).unwrap();
        for stream in [&mut established, &mut of_pod, &mut to_endpoint] {
            assert!(echoes(stream, PATIENCE));
        }

        let fault = PacketFault::CutControlPlane {
            servers: vec![SocketAddrV4::new(FAR, 6443)],
            endpoint: 10250,
        };
        fault.bring_about(&node.identity(), TASK).unwrap();
        fault.bring_about(&node.identity(), TASK).unwrap();
        for stream in [&mut established, &mut of_pod, &mut to_endpoint] {
            assert!(!echoes(stream, SILENCE));
        }
        assert!(is_cut_off(FAR, 6443));
        assert!(pod.run(|| is_cut_off(FAR, 6443)));
        assert!(outside.run(|| is_cut_off(here, 10250)));
        assert!(reaches(FAR, 80), "another port of that host");
        assert!(pod.run(|| reaches(FAR, 80)));
        assert!(reaches(ip, 80), "the node's pods");

        fault.undo(&node.identity(), TASK).unwrap();
        fault.undo(&node.identity(), TASK).unwrap();
        assert!(reaches(FAR, 6443));
        // What was held back comes after all.
        established.set_read_timeout(Some(PATIENCE)).unwrap();
        established.read_exact(&mut [0]).unwrap();
        let prefix = node.identity().drill_table_prefix();
        assert_eq!(nftables::tables(&prefix).unwrap(), Vec::<String>::new());
    });
}

#[test]
fn two_sets_of_pods_are_parted() {
    on_new_host(async || {
        let node = Node::new();
        let network = node.network().await;
        let [(a, ip_a), (b, ip_b), (c, ip_c)] = pods(&network).await;
        let mut established = a.run(|| dial(ip_b, 80, PATIENCE)).unwrap();
        assert!(echoes(&mut established, PATIENCE));
        let fault = PacketFault::CutPods {
            pods: vec![ip_a],
            peers: vec![ip_b, ip_b],
        };
        fault.bring_about(&node.identity(), TASK).unwrap();
        assert!(!echoes(&mut established, SILENCE));
        assert!(a.run(|| is_cut_off(ip_b, 80)));
        assert!(b.run(|| is_cut_off(ip_a, 80)));
        assert!(a.run(|| reaches(ip_c, 80)) && c.run(|| reaches(ip_a, 80)));
        assert!(b.run(|| reaches(ip_c, 80)) && reaches(ip_a, 80));
        fault.undo(&node.identity(), TASK).unwrap();
        assert!(a.run(|| reaches(ip_b, 80)) && b.run(|| reaches(ip_a, 80)));
    });
}

#[test]
fn without_peers_pods_are_cut_off_from_everybody_but_each_other() {
    on_new_host(async || {
        let node = Node::new();
        let network = node.network().await;
        let [(a, ip_a), (b, ip_b), (c, ip_c)] = pods(&network).await;
        let fault = PacketFault::CutPods {
            pods: vec![ip_a, ip_b],
            peers: Vec::new(),
        };
        fault.bring_about(&node.identity(), TASK).unwrap();
        assert!(a.run(|| reaches(ip_b, 80)) && b.run(|| reaches(ip_a, 80)));
        assert!(a.run(|| is_cut_off(ip_c, 80)) && c.run(|| is_cut_off(ip_a, 80)));
        assert!(is_cut_off(ip_a, 80), "the node's own probes too");
        assert!(reaches(ip_c, 80));
        // Another drill's, at the same time, ends by itself.
        let other = PacketFault::CutPods {
            pods: vec![ip_c],
            peers: vec![ip_b],
        };
        other.bring_about(&node.identity(), "another").unwrap();
        other.undo(&node.identity(), "another").unwrap();
        assert!(is_cut_off(ip_b, 80));
        fault.undo(&node.identity(), TASK).unwrap();
        assert!(a.run(|| reaches(ip_c, 80)) && reaches(ip_a, 80));
    });
}

#[test]
fn dns_is_silent_for_the_victims_alone() {
    on_new_host(async || {
        let node = Node::new();
        let network = node.network().await;
        let [(victim, ip), (other, _)] = pods(&network).await;
        let server = UdpSocket::bind((network.node_address(), 53)).unwrap();
        let beside = UdpSocket::bind((network.node_address(), 54)).unwrap();
        let tcp = TcpListener::bind((network.node_address(), 53)).unwrap();
        echo(tcp);
        let address = SocketAddrV4::new(network.node_address(), 53);
        let fault = PacketFault::SilenceDns {
            pods: vec![ip],
            servers: vec![address],
        };
        fault.bring_about(&node.identity(), TASK).unwrap();
        let ask = |from: &Namespace, port| {
            from.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.send_to(b"?", (*address.ip(), port)).unwrap();
            });
        };
        ask(&victim, 53);
        assert!(!hears(&server, SILENCE));
        assert!(victim.run(|| is_cut_off(*address.ip(), 53)));
        ask(&other, 53);
        assert!(hears(&server, PATIENCE));
        assert!(other.run(|| reaches(*address.ip(), 53)));
        ask(&victim, 54);
        assert!(hears(&beside, PATIENCE), "it is only DNS that is silent");
        fault.undo(&node.identity(), TASK).unwrap();
        ask(&victim, 53);
        assert!(hears(&server, PATIENCE));
    });
}

fn hears(socket: &UdpSocket, patience: Duration) -> bool {
    socket.set_read_timeout(Some(patience)).unwrap();
    socket.recv(&mut [0; 8]).is_ok()
}

#[test]
fn as_many_packets_are_lost_as_were_asked_for_both_ways() {
    on_new_host(async || {
        let node = Node::new();
        let network = node.network().await;
        let [(victim, ip), (other, ip_of_other)] = pods(&network).await;
        let inside = victim.run(|| UdpSocket::bind("0.0.0.0:99").unwrap());
        let outside = other.run(|| UdpSocket::bind("0.0.0.0:99").unwrap());
        // A socket holds fewer than 400 at once, and the kernel's queue of a busy CPU is shared with all others.
        let passes = |from: &UdpSocket, to: &UdpSocket, address: Ipv4Addr| {
            let mut arrived = 0;
            for _ in 0..20 {
                for _ in 0..20 {
                    from.send_to(b"x", (address, 99)).unwrap();
                }
                while hears(to, SILENCE / 10) {
                    arrived += 1;
                }
            }
            // Stragglers.
            while hears(to, SILENCE) {
                arrived += 1;
            }
            arrived
        };
        assert_eq!(passes(&inside, &outside, ip_of_other), 400);
        let lose = |percent| PacketFault::Lose {
            pods: vec![ip],
            percent,
        };
        lose(30).bring_about(&node.identity(), TASK).unwrap();
        // Six standard deviations: one run in a thousand million is beyond.
        let expected = 225..335;
        let sent = passes(&inside, &outside, ip_of_other);
        assert!(expected.contains(&sent), "{sent} of 400 came out");
        let got = passes(&outside, &inside, ip);
        assert!(expected.contains(&got), "{got} of 400 came in");
        lose(100).bring_about(&node.identity(), TASK).unwrap();
        assert_eq!(passes(&inside, &outside, ip_of_other), 0);
        assert!(is_cut_off(ip, 80));
        lose(100).undo(&node.identity(), TASK).unwrap();
        assert_eq!(passes(&outside, &inside, ip), 400);
    });
}

/// Holds where the kernel has the emulator, and refuses clearly where not.
#[test]
fn packets_are_delayed_or_it_is_said_why_not() {
    on_new_host(async || {
        let node = Node::new();
        let network = node.network().await;
        let [(namespace, ip), (_other, _)] = pods(&network).await;
        let identity = node.identity();
        // Where an agent has the pod's namespace pinned.
        let run_dir = identity.pod_run_dir("uid-0");
        std::fs::create_dir_all(&run_dir).unwrap();
        std::os::unix::fs::symlink(namespace.path(), run_dir.join("net")).unwrap();
        let delay = Duration::from_millis(100);
        let fault = PacketFault::Delay {
            pods: vec![PodPlace {
                uid: "uid-0".into(),
                address: ip,
            }],
            delay,
        };
        let done = fault.bring_about(&identity, TASK);
        let answered = || {
            let begin = std::time::Instant::now();
            assert!(reaches(ip, 80));
            begin.elapsed()
        };
        match &done {
            Ok(()) => {
                assert!(answered() >= 2 * delay, "both ways");
                // As an agent does whose predecessor was killed right after it.
                fault.bring_about(&identity, TASK).unwrap();
                let again = fault.bring_about(&identity, "another").unwrap_err();
                assert!(matches!(again, PacketFaultError::Occupied { .. }));
                // What was refused is undone too.
                fault.undo(&identity, "another").unwrap();
                assert!(answered() >= 2 * delay, "the refusal changed nothing");
            }
            Err(error) => {
                assert!(matches!(error, PacketFaultError::NoEmulator), "{error}");
                assert!(error.to_string().contains("sch_netem"));
            }
        }
        fault.undo(&identity, TASK).unwrap();
        fault.undo(&identity, TASK).unwrap();
        let qdiscs = std::process::Command::new("tc")
            .args(["qdisc", "show"])
            .output();
        if let Ok(qdiscs) = qdiscs {
            let text = String::from_utf8_lossy(&qdiscs.stdout).into_owned();
            assert!(!text.contains("netem"), "{text}");
        }
        let _ = std::fs::remove_dir_all(identity.run_dir());
        // A pod that is gone has nothing to undo, and nothing to delay.
        fault.undo(&identity, TASK).unwrap();
        let gone = fault.bring_about(&identity, TASK).unwrap_err();
        assert!(
            matches!(
                gone,
                PacketFaultError::NoLink { .. } | PacketFaultError::NoEmulator
            ),
            "{gone}"
        );
    });
}

#[test]
fn a_purge_takes_the_tables_of_drills_along_and_no_others() {
    on_new_host(async || {
        let (one, two) = (Node::new(), Node::new());
        let network = one.network().await;
        let fault = PacketFault::Lose {
            pods: vec![network.node_address()],
            percent: 1,
        };
        for node in [&one, &two] {
            fault.bring_about(&node.identity(), TASK).unwrap();
            fault.bring_about(&node.identity(), "another").unwrap();
        }
        Network::purge(one.identity()).await.unwrap();
        let left = |node: &Node| nftables::tables(&node.identity().drill_table_prefix()).unwrap();
        assert_eq!(left(&one), Vec::<String>::new());
        assert_eq!(left(&two).len(), 2);
        undo_all(&two.identity()).unwrap();
        assert_eq!(left(&two), Vec::<String>::new());
    });
}

#[test]
fn it_is_noticed_when_the_pod_network_is_gone() {
    on_new_host(async || {
        let node = Node::new();
        let network = node.network().await;
        let gone = crate::net::address_is_gone(network.node_address());
        let mut gone = std::pin::pin!(gone);
        let [(_pod, _)] = pods(&network).await;
        assert!(futures::poll!(&mut gone).is_pending());
        // Other addresses come and go.
        let other = Node::new();
        drop(other.network().await);
        Network::purge(other.identity()).await.unwrap();
        assert!(futures::poll!(&mut gone).is_pending());
        Network::purge(node.identity()).await.unwrap();
        gone.await.unwrap();
    });
}
