//! The tunnel to nodes that are on no link of this host's: one VXLAN device, told by us who is where.
//!
//! Each node's end has a link address that follows from its address in the pod network, so nodes need to
//! tell each other nothing: the device learns nothing and asks nobody (no multicast). The network
//! identifier follows from the cluster's block: clusters that can meet have different ones.

use std::collections::HashSet;
use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkInfo};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use crate::net::netlink::{Netlink, Request};
use crate::net::veth::{bring_up, delete_link, find_link, leave_out_ipv6, link_message};
use ipnet::Ipv4Net;

/// Linux's own default, and flannel's: what firewalls between nodes let through already.
const PORT: u16 = 8472;
/// Bytes that the tunnel adds to a packet: IPv4, UDP, VXLAN and Ethernet headers.
pub(in crate::net) const OVERHEAD: u32 = 50;

/// This node's end of the tunnel.
#[derive(Debug, Clone)]
pub(super) struct Tunnel {
    pub(super) name: String,
    pub(super) group: u32,
    pub(super) cluster: Ipv4Net,
    /// This node in the pod network.
    pub(super) node_address: Ipv4Addr,
    /// Where the other nodes reach this one.
    pub(super) local: Ipv4Addr,
    pub(super) mtu: u32,
}

/// The other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FarEnd {
    /// That node in the pod network.
    pub(super) node_address: Ipv4Addr,
    /// Where it is reached.
    pub(super) remote: Ipv4Addr,
}

impl FarEnd {
    fn mac(&self) -> [u8; 6] {
        mac(self.node_address)
    }
}

/// Locally administered, as unique as the address.
fn mac(node_address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = node_address.octets();
    [0x0a, 0x59, a, b, c, d]
}

impl Tunnel {
    /// Makes the device unless it is there as it should be, and leads it to these nodes and no others.
    /// Gives its index.
    pub(super) fn set_up(&self, host: &Netlink, far_ends: &[FarEnd]) -> io::Result<u32> {
        let index = self.device(host)?;
        let known = neighbours(host, index)?;
        let mut wanted = HashSet::new();
        let mut requests = Vec::new();
        for far_end in far_ends {
            for message in [
                address_entry(index, far_end),
                forwarding_entry(index, far_end),
            ] {
                let entry = Entry::of(&message);
                if !known.iter().any(|k| Entry::of(k) == entry) {
                    let message = RouteNetlinkMessage::NewNeighbour(message);
                    requests.push(Request::route(&message, NLM_F_CREATE | NLM_F_REPLACE));
                }
                wanted.insert(entry);
            }
        }
        host.apply(&requests).map_err(|refused| refused.source)?;
        for stale in known
            .into_iter()
            .filter(|k| !wanted.contains(&Entry::of(k)))
        {
            let delete = Request::route(&RouteNetlinkMessage::DelNeighbour(stale), 0);
            match host.apply_one(delete) {
                Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
                _ => {}
            }
        }
        Ok(index)
    }

    fn device(&self, host: &Netlink) -> io::Result<u32> {
        // What it is made of is its alias: a device with another one is made anew.
        let made_of = format!("{} {} {}", self.local, self.cluster, self.mtu);
        if let Some(found) = find_link(host, &self.name)? {
            if found.alias.as_deref() == Some(&made_of) {
                host.apply_one(bring_up(found.index))?;
                return Ok(found.index);
            }
            delete_link(host, found.index)?;
        }
        let attributes = vec![
            LinkAttribute::IfName(self.name.clone()),
            LinkAttribute::Mtu(self.mtu),
            LinkAttribute::Address(mac(self.node_address).to_vec()),
            LinkAttribute::Group(self.group),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Vxlan),
                LinkInfo::Data(InfoData::Vxlan(vec![
                    InfoVxlan::Id(self.cluster.network().to_bits() >> 8),
                    InfoVxlan::Local(self.local),
                    InfoVxlan::Port(PORT),
                    InfoVxlan::Learning(false),
                ])),
            ]),
        ];
        let create = RouteNetlinkMessage::NewLink(link_message(0, attributes));
        host.apply_one(Request::route(&create, NLM_F_CREATE | NLM_F_EXCL))?;
        let made = find_link(host, &self.name)?.ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "the tunnel's device vanished")
        })?;
        leave_out_ipv6(host, made.index);
        host.apply_one(bring_up(made.index))?;
        let alias = link_message(made.index, vec![LinkAttribute::IfAlias(made_of)]);
        host.apply_one(Request::route(&RouteNetlinkMessage::SetLink(alias), 0))?;
        Ok(made.index)
    }

    /// Removes the device, if it is there.
    pub(super) fn remove(&self, host: &Netlink) -> io::Result<()> {
        match find_link(host, &self.name)? {
            Some(found) => delete_link(host, found.index),
            None => Ok(()),
        }
    }
}

/// What tells neighbours apart, of both kinds.
#[derive(PartialEq, Eq, Hash)]
struct Entry {
    destination: Option<Ipv4Addr>,
    mac: Option<Vec<u8>>,
}

impl Entry {
    fn of(message: &NeighbourMessage) -> Self {
        let (mut destination, mut mac) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                    destination = Some(*address);
                }
                NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                    destination = bytes.first_chunk::<4>().map(|octets| (*octets).into());
                }
                NeighbourAttribute::LinkLayerAddress(address) => mac = Some(address.clone()),
                _ => {}
            }
        }
        Self { destination, mac }
    }
}

/// The link address of a node's end.
fn address_entry(index: u32, far_end: &FarEnd) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::Inet(far_end.node_address)),
        NeighbourAttribute::LinkLayerAddress(far_end.mac().to_vec()),
    ];
    message
}

/// Where frames to that link address are sent.
fn forwarding_entry(index: u32, far_end: &FarEnd) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![
        NeighbourAttribute::LinkLayerAddress(far_end.mac().to_vec()),
        NeighbourAttribute::Destination(NeighbourAddress::Inet(far_end.remote)),
    ];
    message
}

/// All neighbours of the device that somebody set, of both kinds.
fn neighbours(host: &Netlink, index: u32) -> io::Result<Vec<NeighbourMessage>> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Bridge] {
        let mut query = NeighbourMessage::default();
        query.header.family = family;
        query.header.ifindex = index;
        let found = host.dump(&RouteNetlinkMessage::GetNeighbour(query))?;
        all.extend(found.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
            _ => None,
        }));
    }
    all.retain(|n| n.header.ifindex == index && n.header.state == NeighbourState::Permanent);
    Ok(all)
}
