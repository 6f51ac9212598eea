//! The link between a pod and its host: a routed veth pair.
//!
//! ```text
//! pod: eth0, <pod address>/32              host: <link>, no address
//!   169.254.1.1 dev eth0 scope link          <pod address> dev <link> scope link src <node address>
//!   default via 169.254.1.1                  <pod address> lladdr <pod mac>   (permanent)
//!   169.254.1.1 lladdr <host mac>  (permanent)
//! ```
//!
//! Both neighbours are known from the start, so no packet waits for ARP. There is no bridge: pods of
//! one node reach each other through the host's routes. IPv6 link-local addresses are left
//! out of both ends, they would only cost router solicitations.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, InfoData, InfoKind,
    InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, setns};

use super::netlink::{Netlink, Request};

/// Where every pod sends everything; it exists only as a permanent neighbour.
pub(super) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// All host ends share it: no two are ever on one link.
const HOST_MAC: [u8; 6] = [0xee; 6];
pub(super) const POD_LINK: &str = "eth0";
const LOOPBACK_INDEX: u32 = 1;

/// What a pod's link shall be.
#[derive(Debug, Clone)]
pub(super) struct PodLink {
    /// The host end's name.
    pub(super) name: String,
    /// The host end's group.
    pub(super) group: u32,
    /// The host end's alias: its presence tells that the link is complete.
    pub(super) uid: String,
    pub(super) address: Ipv4Addr,
    pub(super) node_address: Ipv4Addr,
    pub(super) mtu: u32,
}

/// A step that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub(super) struct LinkError {
    step: &'static str,
    source: io::Error,
}

impl PodLink {
    /// Makes the link between this thread's network namespace and the pod's. A link that is
    /// already complete is left alone; when a step fails, the others are undone.
    ///
    /// The calling thread is left inside the pod's namespace: it must end after this.
    pub(super) fn set_up(&self, netns: &OwnedFd) -> Result<(), LinkError> {
        let host = Netlink::route().map_err(at("opening a netlink socket"))?;
        let existing = find_link(&host, &self.name).map_err(at("looking for the link"))?;
        if let Some(existing) = existing {
            if existing.alias.as_deref() == Some(&self.uid) && has_pod_end(netns)? {
                return Ok(());
            }
            delete_link(&host, existing.index).map_err(at("removing an unfinished link"))?;
        }
        host.apply_one(self.create(netns))
            .map_err(at("creating the veth pair"))?;
        let index =
            if_nametoindex(self.name.as_str()).map_err(|e| at("finding the link")(e.into()))?;
        let built = self.configure(&host, index, netns);
        if built.is_err()
            && let Err(error) = delete_link(&host, index)
        {
            tracing::warn!(link = self.name, %error, "could not remove an unfinished link");
        }
        built
    }

    fn configure(&self, host: &Netlink, index: u32, netns: &OwnedFd) -> Result<(), LinkError> {
        leave_out_ipv6(host, index);
        host.apply(&self.host_end(index))
            .map_err(|refused| at("configuring the host end")(refused.source))?;

        enter(netns)?;
        let pod = Netlink::route().map_err(at("opening a netlink socket in the pod"))?;
        let pod_index =
            if_nametoindex(POD_LINK).map_err(|e| at("finding eth0 in the pod")(e.into()))?;
        leave_out_ipv6(&pod, pod_index);
        pod.apply(&self.pod_end(pod_index))
            .map_err(|refused| at("configuring the pod's end")(refused.source))?;

        host.apply_one(self.mark_complete(index))
            .map_err(at("marking the link as complete"))
    }

    fn create(&self, netns: &OwnedFd) -> Request {
        let peer = link_message(
            0,
            vec![
                LinkAttribute::IfName(POD_LINK.into()),
                LinkAttribute::NetNsFd(netns.as_raw_fd()),
                LinkAttribute::Mtu(self.mtu),
                LinkAttribute::Address(locally_administered(self.address).to_vec()),
            ],
        );
        let link = link_message(
            0,
            vec![
                LinkAttribute::IfName(self.name.clone()),
                LinkAttribute::Mtu(self.mtu),
                LinkAttribute::Address(HOST_MAC.to_vec()),
                LinkAttribute::Group(self.group),
                LinkAttribute::LinkInfo(vec![
                    LinkInfo::Kind(InfoKind::Veth),
                    LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
                ]),
            ],
        );
        Request::route(
            &RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
        )
    }

    fn host_end(&self, index: u32) -> [Request; 4] {
        let mut forwarding = InetDevConf::default();
        forwarding.forwarding = 1;
        // A process of the host may reach a host port by 127.0.0.1; what pods send there is
        // dropped by the node's table.
        forwarding.route_localnet = 1;
        let forwards = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![
            AfSpecInet::DevConfRequest(forwarding),
        ])]);
        let mut route = route_message(index, Some(self.address), RouteScope::Link);
        route
            .attributes
            .push(RouteAttribute::PrefSource(RouteAddress::Inet(
                self.node_address,
            )));
        [
            set_link(index, vec![forwards]),
            bring_up(index),
            neighbour(index, self.address, locally_administered(self.address)),
            add_route(route),
        ]
    }

    fn pod_end(&self, index: u32) -> [Request; 6] {
        let mut default = route_message(index, None, RouteScope::Universe);
        default
            .attributes
            .push(RouteAttribute::Gateway(RouteAddress::Inet(GATEWAY)));
        [
            bring_up(LOOPBACK_INDEX),
            bring_up(index),
            add_address(index, self.address, AddressScope::Universe, None),
            neighbour(index, GATEWAY, HOST_MAC),
            add_route(route_message(index, Some(GATEWAY), RouteScope::Link)),
            add_route(default),
        ]
    }

    fn mark_complete(&self, index: u32) -> Request {
        set_link(index, vec![LinkAttribute::IfAlias(self.uid.clone())])
    }
}

/// A link's address that is as unique as the IP address.
pub(super) fn locally_administered(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x58, a, b, c, d]
}

fn has_pod_end(netns: &OwnedFd) -> Result<bool, LinkError> {
    // A thread of its own: ours must make the link from outside when it isn't there.
    let looked = std::thread::scope(|scope| {
        scope
            .spawn(|| enter(netns).map(|()| if_nametoindex(POD_LINK).is_ok()))
            .join()
    });
    looked.unwrap_or(Ok(false))
}

fn enter(netns: &OwnedFd) -> Result<(), LinkError> {
    setns(netns, CloneFlags::CLONE_NEWNET)
        .map_err(|e| at("entering the pod's network namespace")(e.into()))
}

fn at(step: &'static str) -> impl Fn(io::Error) -> LinkError {
    move |source| LinkError { step, source }
}

/// A link as far as this module cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundLink {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) alias: Option<String>,
    pub(super) mtu: u32,
}

pub(super) fn find_link(host: &Netlink, name: &str) -> io::Result<Option<FoundLink>> {
    let query = link_message(0, vec![LinkAttribute::IfName(name.to_owned())]);
    let found = host.get(&RouteNetlinkMessage::GetLink(query))?;
    Ok(found.and_then(found_link))
}

pub(super) fn all_links(host: &Netlink) -> io::Result<Vec<FoundLink>> {
    let query = RouteNetlinkMessage::GetLink(LinkMessage::default());
    Ok(host
        .dump(&query)?
        .into_iter()
        .filter_map(found_link)
        .collect())
}

fn found_link(message: RouteNetlinkMessage) -> Option<FoundLink> {
    let RouteNetlinkMessage::NewLink(link) = message else {
        return None;
    };
    let mut found = FoundLink {
        index: link.header.index,
        name: String::new(),
        alias: None,
        mtu: 0,
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::IfAlias(alias) => found.alias = Some(alias),
            LinkAttribute::Mtu(mtu) => found.mtu = mtu,
            _ => {}
        }
    }
    Some(found)
}

/// Removes a link, its routes and its neighbours. One that is gone already is no error.
pub(super) fn delete_link(host: &Netlink, index: u32) -> io::Result<()> {
    let message = RouteNetlinkMessage::DelLink(link_message(index, vec![]));
    match host.apply_one(Request::route(&message, 0)) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

/// Removes all links of a group. For one link after the other the kernel would wait each time
/// until no processor can still be using it.
pub(super) fn delete_group(host: &Netlink, group: u32) -> io::Result<()> {
    let links = link_message(0, vec![LinkAttribute::Group(group)]);
    match host.apply_one(Request::route(&RouteNetlinkMessage::DelLink(links), 0)) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(()),
        other => other,
    }
}

pub(super) fn bring_up(index: u32) -> Request {
    let mut link = link_message(index, vec![]);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    Request::route(&RouteNetlinkMessage::SetLink(link), 0)
}

fn set_link(index: u32, attributes: Vec<LinkAttribute>) -> Request {
    let link = link_message(index, attributes);
    Request::route(&RouteNetlinkMessage::SetLink(link), 0)
}

/// No link-local IPv6 address when the link comes up. A kernel without IPv6 refuses this, and
/// then there is nothing to leave out.
pub(super) fn leave_out_ipv6(socket: &Netlink, index: u32) {
    let none =
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])]);
    if let Err(error) = socket.apply_one(set_link(index, vec![none])) {
        tracing::debug!(index, %error, "could not leave IPv6 out of a pod's link");
    }
}

pub(super) fn link_message(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

/// A /32 on a link; fails with EEXIST when the link has it.
pub(super) fn add_address(
    index: u32,
    address: Ipv4Addr,
    scope: AddressScope,
    label: Option<String>,
) -> Request {
    let message = address_message(index, address, scope, label);
    Request::route(
        &RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

pub(super) fn delete_address(index: u32, address: Ipv4Addr, scope: AddressScope) -> Request {
    let message = address_message(index, address, scope, None);
    Request::route(&RouteNetlinkMessage::DelAddress(message), 0)
}

fn address_message(
    index: u32,
    address: Ipv4Addr,
    scope: AddressScope,
    label: Option<String>,
) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = 32;
    message.header.scope = scope;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.into()),
        AddressAttribute::Address(address.into()),
    ];
    message
        .attributes
        .extend(label.map(AddressAttribute::Label));
    message
}

/// A neighbour that is known for good.
fn neighbour(index: u32, address: Ipv4Addr, mac: [u8; 6]) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)),
        NeighbourAttribute::LinkLayerAddress(mac.to_vec()),
    ];
    Request::route(
        &RouteNetlinkMessage::NewNeighbour(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// To one address, or the default route.
pub(super) fn route_message(index: u32, to: Option<Ipv4Addr>, scope: RouteScope) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = scope;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(RouteAttribute::Oif(index));
    if let Some(address) = to {
        message.header.destination_prefix_length = 32;
        message
            .attributes
            .push(RouteAttribute::Destination(RouteAddress::Inet(address)));
    }
    message
}

pub(super) fn add_route(message: RouteMessage) -> Request {
    Request::route(
        &RouteNetlinkMessage::NewRoute(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}
