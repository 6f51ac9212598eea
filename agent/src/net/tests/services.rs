//! Packets to services: real ones, through the kernel, between namespaces.

use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Instant;

use serde_json::{Value, json};

use super::*;
use crate::net::service_watch::{Change, ObjectName};
use crate::net::services::Known;

/// A node with pods that serve on port 80 and services that lead to them.
pub(super) struct Served {
    pub(super) node: Node,
    pub(super) network: Network,
    pub(super) known: Known,
    pub(super) pods: Vec<Pod>,
}

pub(super) struct Pod {
    pub(super) namespace: Namespace,
    pub(super) ip: Ipv4Addr,
}

impl Served {
    pub(super) async fn new(pods: usize) -> Self {
        let node = Node::new();
        let network = node.network().await;
        let mut served = Self {
            node,
            network,
            known: Known::new("here".into()),
            pods: Vec::new(),
        };
        for _ in 0..pods {
            served.add_pod().await;
        }
        served
    }

    async fn add_pod(&mut self) {
        let namespace = Namespace::new();
        let uid = format!("uid-{}", self.pods.len());
        let attached = self
            .network
            .attach(&uid, &namespace.path(), Vec::new())
            .await
            .unwrap();
        let ip = attached.ip;
        self.pods.push(Pod { namespace, ip });
    }

    /// Takes what was changed into the table.
    pub(super) fn sync(&mut self) {
        let services = &self.network.inner.services;
        let updates = self.known.updates(&HashMap::new(), self.network.cidr());
        services.apply_all(updates).unwrap();
    }

    pub(super) fn service(&mut self, spec: Value) {
        self.service_named("web", spec);
    }

    pub(super) fn service_named(&mut self, name: &str, spec: Value) {
        let service = json!({"metadata": {"namespace": "default", "name": name}, "spec": spec});
        let service = serde_json::from_value(service).unwrap();
        self.known.take(&Change::Service(service));
    }

    /// The ready endpoints of a service, on this node.
    pub(super) fn endpoints(&mut self, name: &str, ips: &[Ipv4Addr]) {
        let endpoint = |ip: &Ipv4Addr| json!({"addresses": [ip], "nodeName": "here"});
        self.slice(name, ips.iter().map(endpoint).collect());
    }

    pub(super) fn slice(&mut self, name: &str, endpoints: Vec<Value>) {
        let slice = json!({
            "metadata": {
                "namespace": "default",
                "name": format!("{name}-x"),
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [{"name": "", "protocol": "TCP", "port": 80}],
            "endpoints": endpoints,
        });
        let slice = serde_json::from_value(slice).unwrap();
        self.known.take(&Change::Slice(slice));
    }

    pub(super) fn delete(&mut self, name: &str) {
        let name = ObjectName {
            namespace: "default".into(),
            name: name.into(),
        };
        self.known.take(&Change::ServiceGone(name));
    }

    pub(super) fn ips(&self) -> Vec<Ipv4Addr> {
        self.pods.iter().map(|pod| pod.ip).collect()
    }
}

pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 7);

fn cluster_ip() -> Value {
    json!({"clusterIP": VIP, "ports": [{"port": 8080, "targetPort": 80}]})
}

pub(super) fn dial(ip: Ipv4Addr, port: u16) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&SocketAddr::from((ip, port)), PATIENCE)
}

/// Which of the listeners a new connection comes to, and from whom.
pub(super) fn answered_by(
    servers: &[TcpListener],
    connect: impl FnOnce() -> std::io::Result<TcpStream>,
) -> (usize, IpAddr) {
    for server in servers {
        server.set_nonblocking(true).unwrap();
    }
    let _client = connect().unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        for (index, server) in servers.iter().enumerate() {
            if let Ok((_, peer)) = server.accept() {
                return (index, peer.ip());
            }
        }
        assert!(Instant::now() < deadline, "nobody was asked");
        std::thread::yield_now();
    }
}

fn is_refused<T>(attempt: std::io::Result<T>) -> bool {
    attempt.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn a_service_leads_pods_and_the_host_to_every_endpoint() {
    on_new_host(async || {
        let mut node = Served::new(3).await;
        node.service(cluster_ip());
        let ips = node.ips();
        node.endpoints("web", &ips[..2]);
        node.sync();
        let servers: Vec<_> = node.pods.iter().map(|p| p.namespace.serve()).collect();
        let client = &node.pods[2];

        let mut seen = BTreeSet::new();
        while seen.len() < 2 {
            let from_pod = || client.namespace.run(|| dial(VIP, 8080));
            let (index, peer) = answered_by(&servers, from_pod);
            assert_eq!(peer, client.ip, "pods keep their address");
            seen.insert(index);
        }
        assert_eq!(seen, BTreeSet::from([0, 1]));
        let (_, peer) = answered_by(&servers, || dial(VIP, 8080));
        assert_eq!(peer, node.network.node_address());

        // A pod that reaches itself sees the node.
        node.endpoints("web", &ips[..1]);
        node.sync();
        let itself = || node.pods[0].namespace.run(|| dial(VIP, 8080));
        assert_eq!(
            answered_by(&servers, itself),
            (0, node.network.node_address().into())
        );
    });
}

#[test]
fn what_nobody_serves_is_refused_at_once() {
    on_new_host(async || {
        let mut node = Served::new(2).await;
        node.service(cluster_ip());
        node.sync();
        let pod = &node.pods[1].namespace;
        assert!(is_refused(dial(VIP, 8080)), "no endpoints, from the host");
        assert!(is_refused(pod.run(|| dial(VIP, 8080))), "from a pod");
        let ip = node.pods[0].ip;
        node.endpoints("web", &[ip]);
        node.sync();
        let pod = &node.pods[1].namespace;
        let server = node.pods[0].namespace.serve();
        answered_by(&[server], || pod.run(|| dial(VIP, 8080)));
        assert!(is_refused(pod.run(|| dial(VIP, 8081))), "another port");

        node.delete("web");
        node.sync();
        let error = dial_briefly(&node.pods[1].namespace, VIP, 8080).unwrap_err();
        assert_eq!(
            error.kind(),
            ErrorKind::TimedOut,
            "an address of nobody is silent"
        );
    });
}

pub(super) fn dial_briefly(
    from: &Namespace,
    ip: Ipv4Addr,
    port: u16,
) -> std::io::Result<TcpStream> {
    let brief = Duration::from_millis(300);
    from.run(|| TcpStream::connect_timeout(&SocketAddr::from((ip, port)), brief))
}

#[test]
fn node_ports_hide_clients_unless_the_policy_is_local() {
    on_new_host(async || {
        let outside = Namespace::new();
        let (here, far) = (Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2));
        connect_uplink(&outside, here, far);
        let mut node = Served::new(1).await;
        let mut spec = cluster_ip();
        spec["type"] = "NodePort".into();
        spec["ports"][0]["nodePort"] = 30080.into();
        spec["externalIPs"] = json!(["198.51.100.9"]);
        node.service(spec.clone());
        let ip = node.pods[0].ip;
        node.endpoints("web", &[ip]);
        node.sync();
        let servers = [node.pods[0].namespace.serve()];
        let from_outside = |port| answered_by(&servers, || outside.run(|| dial(here, port))).1;
        assert_eq!(from_outside(30080), node.network.node_address());
        let (_, peer) = answered_by(&servers, || dial(here, 30080));
        assert_eq!(peer, node.network.node_address(), "the host's own");

        spec["externalTrafficPolicy"] = "Local".into();
        node.service(spec);
        node.sync();
        assert_eq!(from_outside(30080), far, "the client is seen");
        outside.run(|| route_via("198.51.100.9", "far0"));
        let (_, peer) = answered_by(&servers, || {
            outside.run(|| dial(Ipv4Addr::new(198, 51, 100, 9), 8080))
        });
        assert_eq!(peer, far);

        // Endpoints elsewhere alone: the outside gets no answer here, the cluster does.
        let elsewhere = json!({"addresses": [ip], "nodeName": "there"});
        node.slice("web", vec![elsewhere]);
        node.sync();
        let error = dial_briefly(&outside, here, 30080).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        answered_by(&servers, || dial(VIP, 8080));
    });
}

fn route_via(to: &str, link: &str) {
    use netlink_packet_route::route::RouteScope;
    let index = nix::net::if_::if_nametoindex(link).unwrap();
    let mut route = veth::route_message(index, Some(to.parse().unwrap()), RouteScope::Universe);
    let gateway = netlink_packet_route::route::RouteAddress::Inet(Ipv4Addr::new(203, 0, 113, 1));
    route
        .attributes
        .push(netlink_packet_route::route::RouteAttribute::Gateway(
            gateway,
        ));
    Netlink::route()
        .unwrap()
        .apply_one(veth::add_route(route))
        .unwrap();
}

#[test]
fn a_load_balancer_lets_only_its_source_ranges_in() {
    on_new_host(async || {
        let outside = Namespace::new();
        let (here, far) = (Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2));
        connect_uplink(&outside, here, far);
        let mut node = Served::new(1).await;
        let ip = node.pods[0].ip;
        node.endpoints("web", &[ip]);
        let server = [node.pods[0].namespace.serve()];
        let mut balanced = |range: &str| {
            let service = json!({
                "metadata": {"namespace": "default", "name": "web"},
                "spec": {
                    "type": "LoadBalancer", "clusterIP": VIP, "loadBalancerSourceRanges": [range],
                    "ports": [{"port": 8080, "targetPort": 80, "nodePort": 30080}],
                },
                "status": {"loadBalancer": {"ingress": [{"ip": here}]}},
            });
            let service = serde_json::from_value(service).unwrap();
            node.known.take(&Change::Service(service));
            node.sync();
        };
        balanced("203.0.113.0/24");
        answered_by(&server, || outside.run(|| dial(here, 8080)));
        balanced("192.0.2.0/24");
        assert!(dial_briefly(&outside, here, 8080).is_err());
    });
}

#[test]
fn terminating_endpoints_serve_only_when_nobody_is_ready() {
    on_new_host(async || {
        let mut node = Served::new(2).await;
        node.service(cluster_ip());
        let servers: Vec<_> = node.pods.iter().map(|p| p.namespace.serve()).collect();
        let ips = node.ips();
        let ending = json!({
            "addresses": [ips[0]], "nodeName": "here",
            "conditions": {"ready": false, "serving": true, "terminating": true},
        });
        let ready = json!({"addresses": [ips[1]], "nodeName": "here"});
        node.slice("web", vec![ending.clone(), ready]);
        node.sync();
        for _ in 0..8 {
            assert_eq!(answered_by(&servers, || dial(VIP, 8080)).0, 1);
        }
        node.slice("web", vec![ending]);
        node.sync();
        assert_eq!(answered_by(&servers, || dial(VIP, 8080)).0, 0);
    });
}

#[test]
fn clients_with_affinity_stay_where_they_are_also_after_a_restart() {
    on_new_host(async || {
        let mut node = Served::new(4).await;
        let mut spec = cluster_ip();
        spec["sessionAffinity"] = "ClientIP".into();
        node.service(spec);
        let ips = node.ips();
        node.endpoints("web", &ips);
        node.sync();
        let servers: Vec<_> = node.pods.iter().map(|p| p.namespace.serve()).collect();
        let ask = || answered_by(&servers, || dial(VIP, 8080)).0;
        let first = ask();
        assert!((0..8).all(|_| ask() == first));

        // Another agent takes over: it knows what its predecessor's clients had.
        let network = node.node.network().await;
        node.network = network;
        let mut spec = cluster_ip();
        spec["sessionAffinity"] = "ClientIP".into();
        node.known = Known::new("here".into());
        node.service(spec);
        node.endpoints("web", &ips);
        node.sync();
        assert!((0..8).all(|_| ask() == first));

        // Its endpoint goes: the client moves, for good.
        let rest: Vec<_> = ips.iter().copied().filter(|ip| *ip != ips[first]).collect();
        node.endpoints("web", &rest);
        node.sync();
        let second = ask();
        assert_ne!(second, first);
        assert!((0..8).all(|_| ask() == second));
    });
}

#[test]
fn a_restart_does_not_blink() {
    on_new_host(async || {
        let mut node = Served::new(2).await;
        node.service(cluster_ip());
        let ip = node.pods[0].ip;
        node.endpoints("web", &[ip]);
        node.sync();
        let servers = [node.pods[0].namespace.serve()];
        let server = servers[0].try_clone().unwrap();
        let mut client = node.pods[1].namespace.run(|| dial(VIP, 8080)).unwrap();
        let (mut accepted, _) = server.accept().unwrap();

        // Until it knows the services, the new agent leaves everything as it is.
        let network = node.node.network().await;
        node.network = network;
        answered_by(&servers, || node.pods[1].namespace.run(|| dial(VIP, 8080)));
        node.known = Known::new("here".into());
        node.service(cluster_ip());
        node.endpoints("web", &[ip]);
        node.sync();
        answered_by(&servers, || node.pods[1].namespace.run(|| dial(VIP, 8080)));
        client.write_all(b"x").unwrap();
        accepted.set_nonblocking(false).unwrap();
        accepted.read_exact(&mut [0]).unwrap();
    });
}

#[test]
fn udp_clients_move_when_their_endpoint_goes() {
    on_new_host(async || {
        let mut node = Served::new(2).await;
        let spec = json!({"clusterIP": VIP, "ports": [{"port": 53, "protocol": "UDP"}]});
        node.service(spec);
        let slice = |ip: Ipv4Addr| {
            let slice = json!({
                "metadata": {
                    "namespace": "default", "name": "web-x",
                    "labels": {"kubernetes.io/service-name": "web"},
                },
                "addressType": "IPv4",
                "ports": [{"name": "", "protocol": "UDP", "port": 5353}],
                "endpoints": [{"addresses": [ip], "nodeName": "here"}],
            });
            Change::Slice(serde_json::from_value(slice).unwrap())
        };
        let servers: Vec<_> = node
            .pods
            .iter()
            .map(|pod| {
                pod.namespace
                    .run(|| UdpSocket::bind("0.0.0.0:5353").unwrap())
            })
            .collect();
        let client = UdpSocket::bind("0.0.0.0:0").unwrap();
        let arrives_at = |index: usize| {
            client.send_to(b"ping", (VIP, 53)).unwrap();
            servers[index].set_read_timeout(Some(PATIENCE)).unwrap();
            servers[index].recv(&mut [0; 8]).unwrap();
        };
        for index in [0, 1] {
            let ip = node.pods[index].ip;
            node.known.take(&slice(ip));
            node.sync();
            // The same socket: the kernel would lead it to where it went before.
            arrives_at(index);
        }
    });
}

#[test]
fn connections_that_nobody_answered_are_led_anew_when_their_endpoint_goes() {
    on_new_host(async || {
        let mut node = Served::new(2).await;
        node.service(cluster_ip());
        let ips = node.ips();
        node.endpoints("web", &ips[..1]);
        node.sync();
        let connect = async |from: u16, patience| {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(([0, 0, 0, 0], from).into()).unwrap();
            let connecting = socket.connect((VIP, 8080).into());
            tokio::time::timeout(patience, connecting).await
        };
        let refused = connect(20_123, PATIENCE).await.expect("an answer");
        assert!(is_refused(refused), "nobody listens");
        // A pod that vanished: nobody refuses, nobody answers.
        node.pods[0].namespace.ip("link set eth0 down");
        assert!(
            connect(20_124, PATIENCE / 50).await.is_err(),
            "nobody is there"
        );
        let server = node.pods[1].namespace.serve();
        node.endpoints("web", &ips[1..]);
        node.sync();
        let services = node.network.inner.services.clone();
        services.forget_unanswered(services.lost.due().await);
        for from in [20_123, 20_124] {
            connect(from, PATIENCE).await.unwrap().unwrap();
            server.accept().unwrap();
        }
    });
}

#[test]
fn a_service_can_lead_to_a_socket_of_the_node() {
    on_new_host(async || {
        let mut node = Served::new(1).await;
        node.service(cluster_ip());
        let address = node.network.node_address();
        let socket = TcpListener::bind((address, 0)).unwrap();
        let SocketAddr::V4(at) = socket.local_addr().unwrap() else {
            unreachable!("bound to an IPv4 address")
        };
        let name = crate::net::services::ServiceName::new("default", "web");
        let updates = node
            .known
            .updates(&HashMap::from([(name, at)]), node.network.cidr());
        node.network.inner.services.apply_all(updates).unwrap();
        let servers = [socket];
        let pod = &node.pods[0];
        let (_, peer) = answered_by(&servers, || pod.namespace.run(|| dial(VIP, 8080)));
        assert_eq!(peer, pod.ip);
        answered_by(&servers, || dial(VIP, 8080));
    });
}

#[test]
fn host_ports_lead_to_their_pod_from_everywhere() {
    on_new_host(async || {
        let outside = Namespace::new();
        let (here, far) = (Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2));
        connect_uplink(&outside, here, far);
        let node = Node::new();
        let network = node.network().await;
        let pod = json!({"spec": {"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": 8080},
        ]}]}});
        let ports = host_ports(&serde_json::from_value(pod).unwrap());
        let namespace = Namespace::new();
        let attached = network
            .attach("uid", &namespace.path(), ports.clone())
            .await;
        attached.unwrap();
        let servers = [namespace.serve()];
        let seen =
            |connect: &dyn Fn() -> std::io::Result<TcpStream>| answered_by(&servers, connect).1;
        let from_outside = || outside.run(|| dial(here, 8080));
        assert_eq!(seen(&from_outside), far);
        let itself = || namespace.run(|| dial(network.node_address(), 8080));
        assert_eq!(seen(&itself), network.node_address());
        assert_eq!(seen(&|| dial(here, 8080)), network.node_address());
        let loopback = Ipv4Addr::LOCALHOST;
        assert_eq!(seen(&|| dial(loopback, 8080)), network.node_address());

        // The next agent knows the pod's ports from the start.
        let again = node.network().await;
        let known = HashMap::from([("uid".to_owned(), ports)]);
        again.reconcile(known).await.unwrap();
        again.inner.services.apply_all(Vec::new()).unwrap();
        assert_eq!(seen(&from_outside), far);
        again.detach("uid").await.unwrap();
        assert!(is_refused(from_outside()));
    });
}

#[test]
fn a_table_that_somebody_removed_comes_back_whole() {
    on_new_host(async || {
        let mut node = Served::new(2).await;
        node.service(cluster_ip());
        node.service_named(
            "other",
            json!({"clusterIP": "10.43.0.8", "ports": [{"port": 80}]}),
        );
        let ips = node.ips();
        node.endpoints("web", &ips[..1]);
        node.endpoints("other", &ips[..1]);
        node.sync();
        let table = node.node.identity().nft_table();
        let mut removal = nftables::Transaction::on(&table);
        removal.delete_table();
        removal.commit().unwrap();

        // The change does not fit what is there: everything is written anew.
        node.endpoints("web", &ips[1..]);
        node.sync();
        let servers: Vec<_> = node.pods.iter().map(|p| p.namespace.serve()).collect();
        assert_eq!(answered_by(&servers, || dial(VIP, 8080)).0, 1);
        let other = Ipv4Addr::new(10, 43, 0, 8);
        assert_eq!(answered_by(&servers, || dial(other, 80)).0, 0);
    });
}

#[test]
fn two_services_with_one_external_address_take_turns() {
    on_new_host(async || {
        let mut node = Served::new(2).await;
        let shared = Ipv4Addr::new(198, 51, 100, 9);
        let spec =
            |vip: &str| json!({"clusterIP": vip, "externalIPs": [shared], "ports": [{"port": 80}]});
        let ips = node.ips();
        for (index, name) in ["a", "b"].into_iter().enumerate() {
            node.service_named(name, spec(&format!("10.43.0.{}", 20 + index)));
            node.endpoints(name, &ips[index..=index]);
        }
        node.sync();
        let servers: Vec<_> = node.pods.iter().map(|p| p.namespace.serve()).collect();
        let pod = Namespace::new();
        let attached = node.network.attach("c", &pod.path(), Vec::new()).await;
        attached.unwrap();
        let ask = || answered_by(&servers, || pod.run(|| dial(shared, 80))).0;
        assert_eq!(ask(), 0, "the first has it");
        node.delete("a");
        node.sync();
        assert_eq!(ask(), 1, "then the other");
    });
}
