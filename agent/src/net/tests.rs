//! Real links and packets. Each test is a host of its own: a thread in a new network namespace,
//! with everything that the network starts inheriting it.

mod faults;
mod host_settings;
mod peers;
mod scale;
mod sctp;
mod services;
mod settling;

use std::collections::HashMap;
use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};

use super::netlink::{Netlink, Request};
use super::veth::{all_links, bring_up};
use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a test inside a new host.
fn on_new_host<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let host = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("tests of the pod network run as root");
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A network namespace that lives as long as this.
struct Namespace(OwnedFd);

impl Namespace {
    fn new() -> Self {
        let open = || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        Self(std::thread::spawn(open).join().unwrap().into())
    }

    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(inside).join().unwrap()
        })
    }

    fn block_on<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.run(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(work())
        })
    }

    /// Runs `ip` with these words.
    fn ip(&self, words: &str) {
        let run = || Command::new("ip").args(words.split(' ')).output().unwrap();
        let output = self.run(run);
        assert!(output.status.success(), "ip {words}: {output:?}");
    }

    fn serve(&self) -> TcpListener {
        self.run(|| TcpListener::bind("0.0.0.0:80").unwrap())
    }
}

/// Who the server sees when it answers.
fn exchange(server: &TcpListener, connect: impl FnOnce() -> TcpStream) -> IpAddr {
    let mut client = connect();
    let (mut accepted, peer) = server.accept().unwrap();
    client.write_all(b"ping").unwrap();
    let mut got = [0; 4];
    accepted.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"ping");
    peer.ip()
}

fn connect(ip: Ipv4Addr) -> TcpStream {
    TcpStream::connect_timeout(&SocketAddr::from((ip, 80)), PATIENCE).unwrap()
}

fn has_ipv6(link: &str) -> bool {
    let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default();
    addresses.lines().any(|line| line.ends_with(link))
}

struct Node {
    data: tempfile::TempDir,
    config: NetworkConfig,
}

impl Node {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        let blocks = ClusterBlocks::choose(&Identity::of(data.path()).unwrap()).unwrap();
        let node_cidr = blocks.pods.subnets(22).unwrap().nth(1).unwrap();
        let config = NetworkConfig { blocks, node_cidr };
        Self { data, config }
    }

    fn identity(&self) -> Identity {
        Identity::of(self.data.path()).unwrap()
    }

    async fn network(&self) -> Network {
        Network::open(self.identity(), self.config.clone())
            .await
            .unwrap()
    }

    fn links(&self) -> Vec<String> {
        let prefix = self.identity().link_prefix();
        all_links(&Netlink::route().unwrap())
            .unwrap()
            .into_iter()
            .map(|link| link.name)
            .filter(|name| name.starts_with(&prefix))
            .collect()
    }
}

#[test]
fn pods_reach_each_other_the_node_and_themselves() {
    on_new_host(async || {
        let network = Node::new();
        let network = network.network().await;
        let (a, b) = (Namespace::new(), Namespace::new());
        let pod_a = network
            .attach("uid-a", &a.path(), Vec::new())
            .await
            .unwrap();
        let pod_b = network
            .attach("uid-b", &b.path(), Vec::new())
            .await
            .unwrap();
        assert!(network.cidr().contains(&pod_a.ip) && network.cidr().contains(&pod_b.ip));

        assert!(!has_ipv6(&pod_a.link) && !a.run(|| has_ipv6("eth0")));

        let server = a.serve();
        let seen = exchange(&server, || b.run(|| connect(pod_a.ip)));
        assert_eq!(seen, pod_b.ip, "no address is rewritten between pods");
        let seen = exchange(&server, || connect(pod_a.ip));
        assert_eq!(seen, network.node_address());
        let seen = exchange(&server, || a.run(|| connect(pod_a.ip)));
        assert_eq!(seen, pod_a.ip);

        let node_server = TcpListener::bind("0.0.0.0:80").unwrap();
        let seen = exchange(&node_server, || a.run(|| connect(network.node_address())));
        assert_eq!(seen, pod_a.ip);
    });
}

#[test]
fn traffic_to_the_outside_carries_the_nodes_address() {
    on_new_host(async || {
        let outside = Namespace::new();
        let uplink = Ipv4Addr::new(203, 0, 113, 1);
        let far = Ipv4Addr::new(203, 0, 113, 2);
        connect_uplink(&outside, uplink, far);
        let node = Node::new();
        let network = node.network().await;
        let pod = Namespace::new();
        network
            .attach("uid", &pod.path(), Vec::new())
            .await
            .unwrap();

        // The outside has no route to pods: it can only answer to the node.
        let server = outside.serve();
        let seen = exchange(&server, || pod.run(|| connect(far)));
        assert_eq!(seen, uplink);
    });
}

#[test]
fn a_restarted_agent_keeps_links_and_addresses() {
    on_new_host(async || {
        let node = Node::new();
        let network = node.network().await;
        let (a, b) = (Namespace::new(), Namespace::new());
        let pod = network
            .attach("uid-a", &a.path(), Vec::new())
            .await
            .unwrap();
        let server = a.serve();
        let mut client = connect(pod.ip);
        let (mut accepted, _) = server.accept().unwrap();

        let again = node.network().await;
        assert_eq!(again.cidr(), network.cidr());
        assert_eq!(again.address("uid-a"), Some(pod.clone()));
        assert_eq!(
            again.attach("uid-a", &a.path(), Vec::new()).await.unwrap(),
            pod
        );
        assert_ne!(
            again
                .attach("uid-b", &b.path(), Vec::new())
                .await
                .unwrap()
                .ip,
            pod.ip
        );
        client.write_all(b"x").unwrap();
        accepted.read_exact(&mut [0]).unwrap();
    });
}

#[test]
fn a_pod_whose_namespace_was_made_anew_is_connected_again() {
    on_new_host(async || {
        let node = Node::new();
        let network = node.network().await;
        let first = Namespace::new();
        let pod = network
            .attach("uid", &first.path(), Vec::new())
            .await
            .unwrap();
        let second = Namespace::new();
        assert_eq!(
            network
                .attach("uid", &second.path(), Vec::new())
                .await
                .unwrap(),
            pod
        );
        let server = second.serve();
        exchange(&server, || connect(pod.ip));
    });
}

#[test]
fn detach_and_reconcile_leave_only_what_is_known() {
    on_new_host(async || {
        let node = Node::new();
        let network = node.network().await;
        let namespaces: Vec<_> = (0..3).map(|_| Namespace::new()).collect();
        let mut links = Vec::new();
        for (i, namespace) in namespaces.iter().enumerate() {
            let pod = network
                .attach(&format!("uid-{i}"), &namespace.path(), Vec::new())
                .await;
            links.push(pod.unwrap().link);
        }
        network.detach("uid-0").await.unwrap();
        network.detach("uid-0").await.unwrap();
        assert_eq!(network.address("uid-0"), None);
        assert!(!node.links().contains(&links[0]));

        let known = HashMap::from([("uid-2".to_owned(), Vec::new())]);
        network.reconcile(known).await.unwrap();
        assert_eq!(node.links(), [links[2].clone()]);
        assert_eq!(network.address("uid-1"), None);
    });
}

#[test]
fn a_link_that_fails_half_way_is_undone() {
    on_new_host(async || {
        let node = Node::new();
        let network = node.network().await;
        let taken = Namespace::new();
        taken.run(|| make_veth("eth0", "other0", None));
        let error = network
            .attach("uid", &taken.path(), Vec::new())
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("creating the veth pair"),
            "{error}"
        );
        assert_eq!(network.address("uid"), None);
        assert_eq!(node.links(), Vec::<String>::new());

        let missing = network
            .attach("uid", Path::new("/nonexistent/net"), Vec::new())
            .await;
        assert!(matches!(missing, Err(NetworkError::Namespace { .. })));
    });
}

#[test]
fn two_clusters_share_a_host_and_each_purges_its_own() {
    on_new_host(async || {
        let (one, two) = (Node::new(), Node::new());
        let (network_one, network_two) = (one.network().await, two.network().await);
        assert!(!blocks::overlap(&network_one.cidr(), &network_two.cidr()));
        let (a, b) = (Namespace::new(), Namespace::new());
        network_one
            .attach("uid", &a.path(), Vec::new())
            .await
            .unwrap();
        let kept = network_two
            .attach("uid", &b.path(), Vec::new())
            .await
            .unwrap();

        Network::purge(one.identity()).await.unwrap();
        Network::purge(one.identity()).await.unwrap();
        assert_eq!(one.links(), Vec::<String>::new());
        let table = one.identity().nft_table();
        assert!(!nftables::table_exists(&table).unwrap());
        assert_eq!(
            routes::of(&Netlink::route().unwrap(), &one.identity()).unwrap(),
            []
        );
        exchange(&b.serve(), || connect(kept.ip));
        Network::purge(two.identity()).await.unwrap();
    });
}

#[test]
fn a_block_of_another_cluster_is_refused() {
    on_new_host(async || {
        let (one, two) = (Node::new(), Node::new());
        let network = one.network().await;
        let config = NetworkConfig {
            node_cidr: network.cidr(),
            ..two.config.clone()
        };
        let error = Network::open(two.identity(), config).await.err().unwrap();
        assert!(matches!(error, NetworkError::Claimed { .. }), "{error}");
    });
}

#[test]
fn clusters_choose_blocks_that_nobody_uses_and_keep_them() {
    on_new_host(async || {
        let text = |node: &Node| node.config.blocks.pods.to_string();
        let one = Node::new();
        assert_eq!(text(&one), "10.42.0.0/16");
        assert_eq!(one.config.blocks.services.to_string(), "10.43.0.0/16");
        let outside = Namespace::new();
        connect_uplink(
            &outside,
            Ipv4Addr::new(10, 45, 0, 1),
            Ipv4Addr::new(10, 45, 0, 2),
        );
        let two = Node::new();
        assert_eq!(text(&two), "10.46.0.0/16");
        let again = ClusterBlocks::choose(&one.identity()).unwrap();
        assert_eq!(again, one.config.blocks);

        // While it is down, another cluster may take its blocks: it says so, and takes no others.
        Network::purge(one.identity()).await.unwrap();
        let three = Node::new();
        assert_eq!(text(&three), "10.42.0.0/16");
        let error = ClusterBlocks::choose(&one.identity()).unwrap_err();
        assert!(matches!(error, NetworkError::Claimed { .. }), "{error}");
    });
}

#[test]
fn a_control_plane_alone_holds_its_blocks_for_the_nodes_that_join_it() {
    on_new_host(async || {
        let data = tempfile::tempdir().unwrap();
        let server = Identity::of(data.path()).unwrap();
        let blocks = ClusterBlocks::choose_for_others(&server).unwrap();
        assert_eq!(blocks, ClusterBlocks::default());
        let other = Node::new();
        assert_eq!(other.config.blocks.pods.to_string(), "10.44.0.0/16");
        assert_eq!(ClusterBlocks::choose_for_others(&server).unwrap(), blocks);

        // Also if it is the first part, which begins with the address that the server holds.
        let node_cidr = blocks.pods.subnets(22).unwrap().next().unwrap();
        let guest = Node {
            data: tempfile::tempdir().unwrap(),
            config: NetworkConfig { blocks, node_cidr },
        };
        drop(guest.network().await);
        assert_eq!(ClusterBlocks::choose_for_others(&server).unwrap(), blocks);

        // Both are gone: what they had is free, and whoever comes back to find it taken is told.
        Network::purge(guest.identity()).await.unwrap();
        Network::purge(server.clone()).await.unwrap();
        let third = Node::new();
        assert_eq!(third.config.blocks, blocks);
        let error = ClusterBlocks::choose_for_others(&server).unwrap_err();
        assert!(matches!(error, NetworkError::Claimed { .. }), "{error}");
    });
}

/// A link between this host and `outside`, with a default route over it.
fn connect_uplink(outside: &Namespace, here: Ipv4Addr, there: Ipv4Addr) {
    make_veth("up0", "far0", Some(outside));
    configure("up0", here, there, true);
    outside.run(|| configure("far0", there, here, false));
}

fn make_veth(name: &str, peer: &str, namespace: Option<&Namespace>) {
    use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
    use netlink_packet_route::RouteNetlinkMessage;
    use netlink_packet_route::link::{
        InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage,
    };
    let mut other = LinkMessage::default();
    other.attributes = vec![LinkAttribute::IfName(peer.into())];
    other
        .attributes
        .extend(namespace.map(|n| LinkAttribute::NetNsFd(n.0.as_raw_fd())));
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]),
    ];
    let create = Request::route(
        &RouteNetlinkMessage::NewLink(link),
        NLM_F_CREATE | NLM_F_EXCL,
    );
    Netlink::route().unwrap().apply_one(create).unwrap();
}

fn configure(link: &str, address: Ipv4Addr, peer: Ipv4Addr, default: bool) {
    use netlink_packet_route::address::AddressScope;
    use netlink_packet_route::route::RouteScope;
    let index = nix::net::if_::if_nametoindex(link).unwrap();
    let to_peer = veth::route_message(index, Some(peer), RouteScope::Link);
    let mut requests = vec![
        bring_up(1),
        bring_up(index),
        veth::add_address(index, address, AddressScope::Universe, None),
        veth::add_route(to_peer),
    ];
    if default {
        let route = veth::route_message(index, None, RouteScope::Link);
        requests.push(veth::add_route(route));
    }
    Netlink::route().unwrap().apply(&requests).unwrap();
}
