//! The node's side of the pod network: its block of addresses, its own address in it, forwarding,
//! and the uplink's MTU.
//!
//! A node claims its block by putting the block's second address on the loopback link, labelled with
//! its identity. The kernel refuses a second one, so two nodes that start on one host at the same
//! instant never share a block, and a claim ends with the host's network namespace. Pods see the
//! node under this address.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::NetworkError;
use super::cidr::Cidr;
use super::netlink::Netlink;
use super::veth::{add_address, all_links, bring_up, delete_address};
use crate::identity::Identity;

const LOOPBACK_INDEX: u32 = 1;
/// Link scope: the kernel never chooses it as the source of traffic that leaves the host.
const CLAIM_SCOPE: AddressScope = AddressScope::Link;
const IP_FORWARD: &str = "/proc/sys/net/ipv4/ip_forward";
/// When nothing leads out of the host.
const DEFAULT_MTU: u32 = 1500;

/// The node's address in a block.
pub(super) fn node_address(block: Cidr) -> Result<Ipv4Addr, NetworkError> {
    match block.nth(1) {
        Some(address) if block.prefix() <= 29 => Ok(address),
        _ => Err(NetworkError::BlockTooSmall(block)),
    }
}

/// Claims `block` for this identity, and gives up any other that it had.
pub(super) fn claim(host: &Netlink, identity: &Identity, block: Cidr) -> Result<(), NetworkError> {
    let ours = node_address(block)?;
    let mut owner = None;
    for (address, label) in labelled_addresses(host)? {
        let mine = label == claim_label(identity);
        match (mine, address == ours) {
            (true, true) => return Ok(()),
            (true, false) => withdraw(host, address)?,
            (false, true) => owner = Some(label),
            (false, false) => {}
        }
    }
    if let Some(owner) = owner {
        return Err(NetworkError::Claimed { block, owner });
    }
    try_claim(host, identity, block)?
        .then_some(())
        .ok_or_else(|| NetworkError::Claimed {
            block,
            owner: "another node".into(),
        })
}

/// Chooses a free block of `prefix` bits inside `cluster` and claims it. Where the search
/// begins depends on the identity, so a node that loses its state likely finds the same again.
pub(super) fn choose(
    host: &Netlink,
    identity: &Identity,
    cluster: Cidr,
    prefix: u8,
) -> Result<Cidr, NetworkError> {
    let blocks = cluster.blocks(prefix);
    let count = blocks.len();
    if count == 0 {
        return Err(NetworkError::BlockTooSmall(cluster));
    }
    let start = u32::from_str_radix(identity.id(), 16).unwrap_or_default() as usize % count;
    let in_use = destinations(host)?;
    let free = |block: &Cidr| !in_use.iter().any(|used| used.overlaps(block));
    for block in blocks.cycle_from(start).filter(free) {
        if try_claim(host, identity, block)? {
            return Ok(block);
        }
    }
    Err(NetworkError::NoFreeBlock { cluster, count })
}

trait CycleFrom: Iterator {
    fn cycle_from(self, start: usize) -> impl Iterator<Item = Self::Item>;
}

impl<I: ExactSizeIterator> CycleFrom for I {
    fn cycle_from(self, start: usize) -> impl Iterator<Item = Self::Item> {
        let mut all: Vec<_> = self.collect();
        all.rotate_left(start);
        all.into_iter()
    }
}

/// Whether the claim was won.
fn try_claim(host: &Netlink, identity: &Identity, block: Cidr) -> Result<bool, NetworkError> {
    let address = node_address(block)?;
    let label = claim_label(identity);
    match host.apply_one(add_address(
        LOOPBACK_INDEX,
        address,
        CLAIM_SCOPE,
        Some(label),
    )) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(NetworkError::Host {
            doing: "adding the node's pod network address to lo",
            source: error,
        }),
    }
}

/// Gives up every block that this identity claimed.
pub(super) fn release_claims(host: &Netlink, identity: &Identity) -> Result<(), NetworkError> {
    for (address, label) in labelled_addresses(host)? {
        if label == claim_label(identity) {
            withdraw(host, address)?;
        }
    }
    Ok(())
}

fn withdraw(host: &Netlink, address: Ipv4Addr) -> Result<(), NetworkError> {
    match host.apply_one(delete_address(LOOPBACK_INDEX, address, CLAIM_SCOPE)) {
        Err(error) if error.raw_os_error() != Some(libc::EADDRNOTAVAIL) => {
            Err(NetworkError::Host {
                doing: "removing the node's pod network address from lo",
                source: error,
            })
        }
        _ => Ok(()),
    }
}

/// Labels begin with the link's name and hold 15 characters.
fn claim_label(identity: &Identity) -> String {
    format!("lo:{}", identity.link_prefix())
}

fn labelled_addresses(host: &Netlink) -> Result<Vec<(Ipv4Addr, String)>, NetworkError> {
    let mut query = AddressMessage::default();
    query.header.family = AddressFamily::Inet;
    let found = host
        .dump(&RouteNetlinkMessage::GetAddress(query))
        .map_err(host_error("listing addresses"))?;
    Ok(found.into_iter().filter_map(labelled_address).collect())
}

fn labelled_address(message: RouteNetlinkMessage) -> Option<(Ipv4Addr, String)> {
    let RouteNetlinkMessage::NewAddress(message) = message else {
        return None;
    };
    let mut address = None;
    let mut label = None;
    for attribute in message.attributes {
        match attribute {
            AddressAttribute::Local(IpAddr::V4(local)) => address = Some(local),
            AddressAttribute::Label(text) => label = Some(text),
            _ => {}
        }
    }
    Some((address?, label?))
}

/// Every destination that the host routes to, itself included, but not the default route.
fn destinations(host: &Netlink) -> Result<Vec<Cidr>, NetworkError> {
    let destination = |route: RouteMessage| {
        let prefix = route.header.destination_prefix_length;
        route.attributes.into_iter().find_map(|a| match a {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => {
                Some(Cidr::containing(address, prefix))
            }
            _ => None,
        })
    };
    Ok(routes(host)?.into_iter().filter_map(destination).collect())
}

fn routes(host: &Netlink) -> Result<Vec<RouteMessage>, NetworkError> {
    let mut query = RouteMessage::default();
    query.header.address_family = AddressFamily::Inet;
    let found = host
        .dump(&RouteNetlinkMessage::GetRoute(query))
        .map_err(host_error("listing routes"))?;
    let route = |message| match message {
        RouteNetlinkMessage::NewRoute(route) => Some(route),
        _ => None,
    };
    Ok(found.into_iter().filter_map(route).collect())
}

/// The MTU, in bytes, of the link that the default route leaves by.
pub(super) fn uplink_mtu(host: &Netlink) -> Result<u32, NetworkError> {
    let mtu_of: HashMap<u32, u32> = all_links(host)
        .map_err(host_error("listing links"))?
        .into_iter()
        .map(|link| (link.index, link.mtu))
        .collect();
    let uplink = routes(host)?
        .into_iter()
        .filter(|route| {
            route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
        })
        .min_by_key(metric)
        .and_then(|route| out_link(&route));
    Ok(uplink
        .and_then(|index| mtu_of.get(&index).copied())
        .unwrap_or(DEFAULT_MTU))
}

fn metric(route: &RouteMessage) -> u32 {
    let metric = |a: &RouteAttribute| match a {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    };
    route.attributes.iter().find_map(metric).unwrap_or(0)
}

fn out_link(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// Loopback up (a fresh network namespace has it down) and IPv4 forwarding on.
pub(super) fn prepare(host: &Netlink) -> Result<(), NetworkError> {
    host.apply_one(bring_up(LOOPBACK_INDEX))
        .map_err(host_error("bringing up lo"))?;
    let path = Path::new(IP_FORWARD);
    let forwards = fs::read(path).is_ok_and(|value| value.trim_ascii() != b"0");
    if !forwards {
        fs::write(path, "1").map_err(NetworkError::Forwarding)?;
    }
    Ok(())
}

pub(super) fn host_error(doing: &'static str) -> impl Fn(io::Error) -> NetworkError {
    move |source| NetworkError::Host { doing, source }
}
