//! The way to the other nodes' pods.
//!
//! ```text
//! Nodes (watch) ──────────────────┐
//!                                 ├─> for each other node: what way is there? -> routes, tunnel
//! links, addresses, routes change ┘
//! ```
//!
//! A node on a link that this host shares is reached by a plain route via its address; one behind a
//! router by the VXLAN tunnel ([`vxlan`]). All of it is looked at and put right again whenever the
//! kernel says that something changed ([`monitor`]): nothing is remembered, so a link that flaps, a node
//! that moves and an agent that restarts are the same case.

mod monitor;
mod vxlan;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Node;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::Netlink;
use super::node::{self, host_error};
use super::services::{Entry, Owner, Program, Target};
use super::{Inner, NetworkError, routes};
use ipnet::Ipv4Net;
use monitor::Monitor;
pub(super) use vxlan::OVERHEAD;
use vxlan::{FarEnd, Tunnel};

const LOOPBACK_INDEX: u32 = 1;
/// The label of a node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";
/// Before what the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// Another node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    /// Its InternalIP.
    pub(super) address: Ipv4Addr,
    /// Its block.
    pub(super) pods: Ipv4Net,
    /// What its condition says: one that is not can't be waited for.
    pub(super) ready: bool,
}

/// Keeps the routes to the other nodes' pods.
pub(crate) struct PeerRoutes {
    pub(super) network: Arc<Inner>,
    pub(super) node_name: String,
    /// Where this node is reached.
    pub(super) address: IpAddr,
}

impl PeerRoutes {
    /// Runs until it is dropped; the routes stay then.
    pub(crate) async fn run(self, client: Client) {
        let nodes = watcher(Api::<Node>::all(client), watcher::Config::default());
        self.keep(nodes.default_backoff()).await;
    }

    /// The same, with whoever tells of nodes.
    pub(super) async fn keep<E>(self, nodes: impl Stream<Item = Result<Event<Node>, E>>) {
        let IpAddr::V4(local) = self.address else {
            tracing::warn!(address = %self.address, "no way to other nodes' pods: this node has no IPv4 address");
            return;
        };
        let identity = &self.network.identity;
        let monitor = Monitor::open(
            self.network.cidr,
            identity.link_prefix(),
            identity.tunnel_link(),
        );
        let monitor = match monitor {
            Ok(monitor) => monitor,
            Err(error) => {
                tracing::error!(%error, "the host's links and routes can't be watched: no way to other nodes' pods");
                return;
            }
        };
        let mut nodes = pin!(nodes);
        let mut known = Known::default();
        let mut failed = false;
        loop {
            let changed = tokio::select! {
                event = nodes.next() => match event {
                    Some(Ok(event)) => known.take(event, &self.node_name),
                    // What is known stays; the watch resumes after a backoff.
                    Some(Err(_)) => false,
                    None => return,
                },
                changed = monitor.changed() => match changed {
                    // Alone there is nothing to look after.
                    Ok(()) => !known.peers.is_empty(),
                    Err(error) => {
                        tracing::error!(%error, "the host's links and routes can't be watched any more");
                        return;
                    }
                },
                () = tokio::time::sleep(RETRY), if failed => true,
            };
            if !known.listed || !changed {
                continue;
            }
            let ready = known.peers.values().filter(|peer| peer.ready);
            let ready = ready.filter_map(|peer| node::node_address(peer.pods).ok());
            self.network.others.set(ready.collect());
            self.network.services.set_zone(&known.own_zone);
            let peers: Vec<_> = known.peers.values().cloned().collect();
            let network = self.network.clone();
            let applied = tokio::task::spawn_blocking(move || network.reach(local, &peers)).await;
            match applied {
                Ok(Ok(())) => failed = false,
                Ok(Err(error)) => {
                    if !failed {
                        tracing::warn!(%error, "the way to other nodes' pods can't be set up, trying again");
                    }
                    failed = true;
                }
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
    }
}

/// The other nodes, as the API has them.
#[derive(Default)]
struct Known {
    peers: BTreeMap<String, Peer>,
    listing: BTreeMap<String, Peer>,
    listed: bool,
    /// Of this node.
    own_zone: String,
}

impl Known {
    /// Whether something changed.
    fn take(&mut self, event: Event<Node>, own_name: &str) -> bool {
        let read = |node: &Node| (node.name_any() != own_name).then(|| peer(node)).flatten();
        let moved = match &event {
            Event::InitApply(node) | Event::Apply(node) if node.name_any() == own_name => {
                let zone = node.labels().get(ZONE).cloned().unwrap_or_default();
                let before = std::mem::replace(&mut self.own_zone, zone);
                before != self.own_zone
            }
            _ => false,
        };
        let changed = match event {
            Event::Init => {
                self.listing.clear();
                false
            }
            Event::InitApply(node) => {
                if let Some(peer) = read(&node) {
                    self.listing.insert(node.name_any(), peer);
                }
                false
            }
            Event::InitDone => {
                let listing = std::mem::take(&mut self.listing);
                let first = !std::mem::replace(&mut self.listed, true);
                let before = std::mem::replace(&mut self.peers, listing);
                first || before != self.peers
            }
            Event::Apply(node) => {
                let name = node.name_any();
                let before = self.peers.get(&name).cloned();
                let now = read(&node);
                match now.clone() {
                    Some(peer) => self.peers.insert(name, peer),
                    None => self.peers.remove(&name),
                };
                before != now
            }
            Event::Delete(node) => self.peers.remove(&node.name_any()).is_some(),
        };
        moved || changed
    }
}

fn peer(node: &Node) -> Option<Peer> {
    let pods: Ipv4Net = node.spec.as_ref()?.pod_cidr.as_deref()?.parse().ok()?;
    let addresses = node.status.as_ref()?.addresses.iter().flatten();
    let mut internal = addresses.filter(|a| a.type_ == "InternalIP");
    let address = internal.find_map(|a| a.address.parse().ok())?;
    let conditions = node.status.as_ref()?.conditions.iter().flatten();
    let mut ready = conditions.filter(|c| c.type_ == "Ready");
    Some(Peer {
        address,
        pods: pods.trunc(),
        ready: ready.any(|c| c.status == "True"),
    })
}

/// How a node is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// On a link of this host.
    Direct { link: u32 },
    /// Behind a router.
    Routed,
    /// There is none at the moment.
    None,
}

impl Way {
    /// Asks the kernel.
    fn to(host: &Netlink, address: Ipv4Addr) -> Result<Self, NetworkError> {
        let mut query = RouteMessage::default();
        query.header.address_family = AddressFamily::Inet;
        query.header.destination_prefix_length = 32;
        let destination = RouteAttribute::Destination(RouteAddress::Inet(address));
        query.attributes.push(destination);
        let found = match host.get(&RouteNetlinkMessage::GetRoute(query)) {
            Ok(found) => found,
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH)
                ) =>
            {
                None
            }
            Err(error) => return Err(host_error("asking for the way to a node")(error)),
        };
        let Some(RouteNetlinkMessage::NewRoute(route)) = found else {
            return Ok(Self::None);
        };
        let link = routes::out_link(&route).filter(|link| *link != LOOPBACK_INDEX);
        Ok(match (route.header.kind, link, routes::gateway(&route)) {
            (RouteType::Unicast, Some(link), None) => Self::Direct { link },
            (RouteType::Unicast, Some(_), Some(_)) => Self::Routed,
            _ => Self::None,
        })
    }
}

impl Inner {
    /// Makes the routes, the tunnel and the exceptions from masquerading what they should be for these
    /// nodes. Blocking.
    pub(super) fn reach(&self, local: Ipv4Addr, peers: &[Peer]) -> Result<(), NetworkError> {
        let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
        let mut direct = Vec::new();
        let mut routed = Vec::new();
        for peer in peers {
            match Way::to(&host, peer.address)? {
                Way::Direct { link } => direct.push((peer, link)),
                Way::Routed => routed.push(peer),
                Way::None => {}
            }
        }
        let mut wanted: HashMap<Ipv4Net, RouteMessage> = direct
            .iter()
            .map(|(peer, link)| (peer.pods, self.route_via(peer.pods, peer.address, *link)))
            .collect();
        let links: BTreeSet<u32> = direct.iter().map(|(_, link)| *link).collect();
        for link in links {
            // One that vanished has a change coming that is looked at anew.
            if let Ok(name) = nix::net::if_::if_indextoname(link) {
                node::forward_from(&name.to_string_lossy())?;
            }
        }
        self.uses_tunnel
            .store(!routed.is_empty(), Ordering::Relaxed);
        let mtu = node::uplink_mtu(&host)?;
        self.mtu.store(mtu, Ordering::Relaxed);
        let tunnel = self.tunnel(local, mtu);
        if routed.is_empty() {
            tunnel
                .remove(&host)
                .map_err(host_error("removing the tunnel"))?;
        } else {
            let far_ends = routed.iter().filter_map(|peer| {
                let node_address = node::node_address(peer.pods).ok()?;
                let remote = peer.address;
                Some((
                    peer.pods,
                    FarEnd {
                        node_address,
                        remote,
                    },
                ))
            });
            let far_ends: Vec<_> = far_ends.collect();
            let ends: Vec<_> = far_ends.iter().map(|(_, end)| *end).collect();
            let link = tunnel
                .set_up(&host, &ends)
                .map_err(host_error("setting up the tunnel"))?;
            for (pods, end) in far_ends {
                let mut route = self.route_via(pods, end.node_address, link);
                route.header.flags |= RouteFlags::Onlink;
                wanted.insert(pods, route);
            }
        }
        self.put_routes(&host, wanted)?;
        let mut program = Program::default();
        for (peer, _) in direct {
            let entry = Entry::Peer(peer.address);
            program.entries.insert(entry, Target::Present);
        }
        self.services
            .apply([(Owner::Peers, Some(program))])
            .map_err(host_error("telling nftables of the other nodes"))
    }

    fn route_via(&self, pods: Ipv4Net, gateway: Ipv4Addr, link: u32) -> RouteMessage {
        let scope = RouteScope::Universe;
        let mut route = routes::own(&self.identity, pods, RouteType::Unicast, scope);
        route.attributes.extend([
            RouteAttribute::Oif(link),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
            RouteAttribute::PrefSource(RouteAddress::Inet(self.node_address)),
        ]);
        route
    }

    fn tunnel(&self, local: Ipv4Addr, uplink_mtu: u32) -> Tunnel {
        Tunnel {
            name: self.identity.tunnel_link(),
            group: self.identity.link_group(),
            cluster: self.blocks.pods,
            node_address: self.node_address,
            local,
            mtu: uplink_mtu.saturating_sub(OVERHEAD),
        }
    }

    /// Adds what is missing, replaces what differs, removes what is not wanted any more.
    fn put_routes(
        &self,
        host: &Netlink,
        wanted: HashMap<Ipv4Net, RouteMessage>,
    ) -> Result<(), NetworkError> {
        let standing = [self.blocks.services, self.blocks.pods];
        let mut there = HashMap::new();
        for route in routes::of(host, &self.identity)? {
            match routes::destination(&route) {
                Some(to) if !standing.contains(&to) => there.insert(to, route),
                _ => None,
            };
        }
        let leads = |route: &RouteMessage| (routes::gateway(route), routes::out_link(route));
        for (to, route) in &wanted {
            if there.get(to).map(leads) != Some(leads(route)) {
                routes::put(host, route.clone())
                    .map_err(host_error("adding the route to a node's pods"))?;
            }
        }
        for (to, route) in there {
            if !wanted.contains_key(&to) {
                routes::remove(host, route)
                    .map_err(host_error("removing the route to a node's pods"))?;
            }
        }
        Ok(())
    }
}
