//! Nodes that reach each other's pods: each node is a network namespace, joined by a switch or by a router.

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1 as core;
use kube::runtime::watcher::Event;
use serde_json::json;

use super::*;
use crate::net::peers::Peer;

/// A node of the cluster in a namespace of its own.
pub(super) struct Host {
    pub(super) namespace: Namespace,
    node: Node,
    pub(super) address: Ipv4Addr,
    pub(super) network: Network,
}

impl Host {
    /// A node on a host that is connected already; `number` tells nodes apart.
    fn start(number: usize, namespace: Namespace, address: Ipv4Addr) -> Self {
        let blocks = ClusterBlocks::default();
        let node = Node {
            data: tempfile::tempdir().unwrap(),
            config: NetworkConfig {
                blocks,
                node_cidr: blocks.pods.subnets(22).unwrap().nth(number).unwrap(),
            },
        };
        let network = namespace.block_on(|| node.network());
        Self {
            namespace,
            node,
            address,
            network,
        }
    }

    fn peer(&self) -> Peer {
        Peer {
            address: self.address,
            pods: self.network.cidr(),
            ready: true,
        }
    }

    /// Lets the node know of these others.
    pub(super) fn reach(&self, others: &[&Host]) {
        let peers: Vec<_> = others.iter().map(|other| other.peer()).collect();
        let reach = || self.network.inner.reach(self.address, &peers);
        self.namespace.run(reach).unwrap();
    }

    pub(super) fn add_pod(&self) -> (Namespace, Ipv4Addr) {
        let pod = Namespace::new();
        let uid = format!("uid-{}", pod.0.as_raw_fd());
        let path = pod.path();
        let attach = || self.network.attach(&uid, &path, Vec::new());
        let ip = self.namespace.block_on(attach).unwrap().ip;
        (pod, ip)
    }

    fn has_tunnel(&self) -> bool {
        let name = self.node.identity().tunnel_link();
        let found = || nix::net::if_::if_nametoindex(name.as_str()).is_ok();
        self.namespace.run(found)
    }

    fn object(&self, name: &str) -> core::Node {
        let node = json!({
            "metadata": {"name": name},
            "spec": {"podCIDR": self.network.cidr()},
            "status": {
                "addresses": [{"type": "InternalIP", "address": self.address}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        serde_json::from_value(node).unwrap()
    }
}

/// Hosts on one switch, 192.168.77.0/24.
pub(super) fn on_a_switch<const N: usize>() -> (Namespace, [Host; N]) {
    let switch = Namespace::new();
    switch.ip("link add br0 type bridge");
    switch.ip("link set br0 up");
    let hosts = std::array::from_fn(|number| {
        let namespace = Namespace::new();
        let port = format!("p{number}");
        switch.run(|| make_veth(&port, "eth0", Some(&namespace)));
        switch.ip(&format!("link set {port} master br0 up"));
        let address = Ipv4Addr::new(192, 168, 77, 10 + number as u8);
        namespace.ip(&format!("address add {address}/24 dev eth0"));
        namespace.ip("link set eth0 up");
        Host::start(number, namespace, address)
    });
    (switch, hosts)
}

/// Two hosts with a router between them.
pub(super) fn behind_a_router() -> (Namespace, [Host; 2]) {
    let router = Namespace::new();
    let forward = || std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    router.run(forward);
    let hosts = std::array::from_fn(|number| {
        let namespace = Namespace::new();
        let port = format!("p{number}");
        router.run(|| make_veth(&port, "eth0", Some(&namespace)));
        let subnet = format!("192.168.{}", 80 + number);
        router.ip(&format!("address add {subnet}.1/24 dev {port}"));
        router.ip(&format!("link set {port} up"));
        let address = Ipv4Addr::new(192, 168, 80 + number as u8, 2);
        namespace.ip(&format!("address add {address}/24 dev eth0"));
        namespace.ip("link set eth0 up");
        namespace.ip(&format!("route add default via {subnet}.1"));
        Host::start(number, namespace, address)
    });
    (router, hosts)
}

/// Sends a megabyte each way; gives who the server saw.
pub(super) fn transfer(server: &TcpListener, client: &Namespace, ip: Ipv4Addr) -> IpAddr {
    let data = vec![7; 1 << 20];
    std::thread::scope(|scope| {
        let answering = scope.spawn(|| {
            let (mut stream, peer) = server.accept().unwrap();
            let mut got = vec![0; 1 << 20];
            stream.read_exact(&mut got).unwrap();
            stream.write_all(&got).unwrap();
            peer.ip()
        });
        let mut stream = client.run(|| connect(ip));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&data).unwrap();
        let mut got = vec![0; data.len()];
        stream.read_exact(&mut got).unwrap();
        assert_eq!(got, data);
        answering.join().unwrap()
    })
}

fn is_unreachable(client: &Namespace, ip: Ipv4Addr) -> bool {
    let brief = Duration::from_secs(1);
    client.run(|| TcpStream::connect_timeout(&SocketAddr::from((ip, 80)), brief).is_err())
}

#[test]
fn nodes_on_one_link_route_directly() {
    let (_switch, hosts) = on_a_switch::<3>();
    let [a, b, c] = &hosts;
    a.reach(&[b, c]);
    b.reach(&[a, c]);
    c.reach(&[a, b]);
    let (pod_a, ip_a) = a.add_pod();
    let (pod_b, ip_b) = b.add_pod();
    let (server_a, server_b) = (pod_a.serve(), pod_b.serve());
    assert_eq!(transfer(&server_b, &pod_a, ip_b), ip_a);
    assert_eq!(transfer(&server_a, &pod_b, ip_a), ip_b);
    let from_node = transfer(&server_b, &c.namespace, ip_b);
    assert_eq!(from_node, c.network.node_address());
    assert!(!a.has_tunnel() && !b.has_tunnel());
    // A node of the cluster sees the pod itself, not the node that it is on.
    let on_node = b.namespace.serve();
    assert_eq!(transfer(&on_node, &pod_a, b.address), ip_a);

    // A foreign route stays, also to where a node was.
    a.namespace
        .ip("route add 198.51.100.0/24 via 192.168.77.11");
    a.reach(&[c]);
    assert!(is_unreachable(&pod_a, ip_b), "the node is gone");
    let routes = a
        .namespace
        .run(|| routes::all(&Netlink::route().unwrap()).unwrap());
    let foreign: ipnet::Ipv4Net = "198.51.100.0/24".parse().unwrap();
    assert!(
        routes
            .iter()
            .any(|r| routes::destination(r) == Some(foreign))
    );
    a.reach(&[b, c]);
    assert_eq!(transfer(&server_b, &pod_a, ip_b), ip_a);
}

#[test]
fn nodes_behind_a_router_use_the_tunnel() {
    let (_router, hosts) = behind_a_router();
    let [a, b] = &hosts;
    let (early, ip_early) = a.add_pod();
    a.reach(&[b]);
    b.reach(&[a]);
    let (pod_a, ip_a) = a.add_pod();
    let (pod_b, ip_b) = b.add_pod();
    assert!(a.has_tunnel() && b.has_tunnel());
    let server_b = pod_b.serve();
    assert_eq!(transfer(&server_b, &pod_a, ip_b), ip_a);
    // One that has links as wide as the uplink learns what fits.
    assert_eq!(transfer(&server_b, &early, ip_b), ip_early);
    let from_node = transfer(&server_b, &a.namespace, ip_b);
    assert_eq!(from_node, a.network.node_address());

    // Again, and as another agent would: nothing changes, connections go on.
    a.reach(&[b]);
    assert_eq!(transfer(&server_b, &pod_a, ip_b), ip_a);

    a.reach(&[]);
    assert!(!a.has_tunnel());
    assert!(is_unreachable(&pod_a, ip_b));
    a.reach(&[b]);
    assert_eq!(transfer(&server_b, &pod_a, ip_b), ip_a);
    a.namespace
        .block_on(|| Network::purge(a.node.identity()))
        .unwrap();
    assert!(!a.has_tunnel());
}

#[test]
fn packets_fit_while_the_tunnel_is_there_and_may_be_longer_when_it_is_gone() {
    let (_router, hosts) = behind_a_router();
    let [a, b] = &hosts;
    let mtu = |pod: &Namespace| {
        pod.run(|| {
            let links = all_links(&Netlink::route().unwrap()).unwrap();
            links.into_iter().find(|l| l.name == "eth0").unwrap().mtu
        })
    };
    let (before, _) = a.add_pod();
    assert_eq!(mtu(&before), 1500);
    for _ in 0..3 {
        a.reach(&[b]);
        b.reach(&[a]);
        let (during, ip_during) = a.add_pod();
        assert_eq!(mtu(&during), 1450);
        let (pod_b, ip_b) = b.add_pod();
        let server = pod_b.serve();
        assert_eq!(transfer(&server, &during, ip_b), ip_during);
        a.reach(&[]);
        let (after, _) = a.add_pod();
        assert_eq!(mtu(&after), 1500);
        assert_eq!(mtu(&during), 1450, "a pod keeps what it began with");
    }
    // A narrower uplink makes a narrower tunnel.
    for host in [a, b] {
        host.namespace.ip("link set eth0 mtu 1400");
    }
    a.reach(&[b]);
    b.reach(&[a]);
    let (narrow, ip_narrow) = a.add_pod();
    assert_eq!(mtu(&narrow), 1350);
    let (pod_b, ip_b) = b.add_pod();
    assert_eq!(transfer(&pod_b.serve(), &narrow, ip_b), ip_narrow);
}

/// Does something while the node keeps its way to the other.
fn while_kept(host: &Host, other: &Host, test: impl FnOnce()) {
    let (stop, stopped) = oneshot::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            host.namespace.block_on(|| async {
                let keeper = host.network.peer_routes("a".into(), host.address.into());
                let events = [
                    Event::Init,
                    Event::InitApply(host.object("a")),
                    Event::InitApply(other.object("b")),
                    Event::InitDone,
                ];
                let events = stream::iter(events.map(Ok::<_, std::io::Error>));
                let work = keeper.keep(events.chain(stream::pending()));
                tokio::select! {
                    () = work => panic!("it ended"),
                    _ = stopped => {}
                }
            });
        });
        let test = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
        let _ = stop.send(());
        if let Err(panic) = test {
            std::panic::resume_unwind(panic);
        }
    });
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_answered(pod: &Namespace, ip: Ipv4Addr) -> bool {
    let brief = Duration::from_millis(500);
    pod.run(|| TcpStream::connect_timeout(&SocketAddr::from((ip, 80)), brief).is_ok())
}

#[test]
fn a_link_that_flaps_and_a_route_that_is_removed_are_followed() {
    let (_switch, hosts) = on_a_switch::<2>();
    let [a, b] = &hosts;
    b.reach(&[a]);
    let (pod_a, ip_a) = a.add_pod();
    let (pod_b, ip_b) = b.add_pod();
    let server = pod_b.serve();
    while_kept(a, b, || {
        until("the way is found", || is_answered(&pod_a, ip_b));
        for _ in 0..3 {
            a.namespace.ip("link set eth0 down");
            assert!(!is_answered(&pod_a, ip_b));
            a.namespace.ip("link set eth0 up");
            until("the way is found again", || is_answered(&pod_a, ip_b));
        }
        // Somebody removes the route.
        let route = format!("route del {} via {}", b.network.cidr(), b.address);
        a.namespace.ip(&route);
        until("the route is back", || is_answered(&pod_a, ip_b));
    });
    let accepted = std::iter::from_fn(|| {
        server.set_nonblocking(true).unwrap();
        server.accept().ok()
    });
    assert!(accepted.map(|(_, peer)| peer.ip()).all(|peer| peer == ip_a));
}

#[test]
fn a_tunnel_is_right_after_its_link_flaps() {
    let (_router, hosts) = behind_a_router();
    let [a, b] = &hosts;
    b.reach(&[a]);
    let (pod_a, _) = a.add_pod();
    let (pod_b, ip_b) = b.add_pod();
    let _server = pod_b.serve();
    let tunnel = a.node.identity().tunnel_link();
    let shown = |words: &[&str]| -> Vec<String> {
        let run = || Command::new(words[0]).args(&words[1..]).output().unwrap();
        let output = a.namespace.run(run);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().map(str::to_owned).collect()
    };
    let state = || {
        [
            shown(&["ip", "-o", "route", "show", "proto", "83"]),
            shown(&["ip", "neighbour", "show", "dev", &tunnel]),
            shown(&["bridge", "fdb", "show", "dev", &tunnel]),
        ]
    };
    while_kept(a, b, || {
        until("the way is found", || is_answered(&pod_a, ip_b));
        let before = state();
        assert_eq!((before[1].len(), before[2].len()), (1, 1), "{before:?}");
        for _ in 0..3 {
            // It takes the default route along.
            a.namespace.ip("link set eth0 down");
            assert!(!is_answered(&pod_a, ip_b));
            a.namespace.ip("link set eth0 up");
            a.namespace.ip("route add default via 192.168.80.1");
            until("the way is found again", || is_answered(&pod_a, ip_b));
            until("everything is as it was", || state() == before);
        }
        // Somebody removes the device.
        a.namespace.ip(&format!("link del {tunnel}"));
        until("the tunnel is back", || is_answered(&pod_a, ip_b));
        until("everything is as it was", || state() == before);
    });
}
