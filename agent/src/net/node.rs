//! The node's side of the pod network: its block of addresses, its own address in it, forwarding,
//! and the uplink's MTU.
//!
//! A node gets its block from the control plane, and claims it on its host by putting the block's
//! second address on the loopback link, labelled with its identity. The kernel refuses a second one,
//! so two nodes on one host never share a block, and a claim ends with the host's network
//! namespace. Pods see the node under this address.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::route::RouteType;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::NetworkError;
use super::blocks::nth;
use super::netlink::Netlink;
use super::routes;
use super::sysctl;
use super::veth::{FoundLink, add_address, all_links, bring_up, delete_address};
use crate::identity::Identity;
use ipnet::Ipv4Net;

const LOOPBACK_INDEX: u32 = 1;
/// Link scope: the kernel never chooses it as the source of traffic that leaves the host.
const CLAIM_SCOPE: AddressScope = AddressScope::Link;
/// When nothing leads out of the host.
const DEFAULT_MTU: u32 = 1500;

/// The node's address in a block.
pub(super) fn node_address(block: Ipv4Net) -> Result<Ipv4Addr, NetworkError> {
    match nth(block, 1) {
        Some(address) if block.prefix_len() <= 29 => Ok(address),
        _ => Err(NetworkError::BlockTooSmall(block)),
    }
}

/// Claims `block` for this identity by its address `by`. One that it holds stays.
///
/// # Errors
/// When another identity holds it.
pub(super) fn hold(
    host: &Netlink,
    identity: &Identity,
    block: Ipv4Net,
    by: Ipv4Addr,
) -> Result<(), NetworkError> {
    if try_claim(host, identity, by)? {
        return Ok(());
    }
    let holders = labelled_addresses(host)?;
    match holders.into_iter().find(|(address, _)| *address == by) {
        Some((_, label)) if label == claim_label(identity) => Ok(()),
        Some((_, owner)) => Err(NetworkError::Claimed { block, owner }),
        // It was given up between the two looks.
        None => Err(NetworkError::Claimed {
            block,
            owner: "another node".into(),
        }),
    }
}

/// Gives up every claim of this identity except those by the addresses in `kept`.
pub(super) fn release_others(
    host: &Netlink,
    identity: &Identity,
    kept: &[Ipv4Addr],
) -> Result<(), NetworkError> {
    for (address, label) in labelled_addresses(host)? {
        if label == claim_label(identity) && !kept.contains(&address) {
            withdraw(host, address)?;
        }
    }
    Ok(())
}

/// Gives up the claim by one address, if it is this identity's.
pub(super) fn release(
    host: &Netlink,
    identity: &Identity,
    by: Ipv4Addr,
) -> Result<(), NetworkError> {
    let ours = (by, claim_label(identity));
    if labelled_addresses(host)?.contains(&ours) {
        withdraw(host, by)?;
    }
    Ok(())
}

/// Whether the claim was won.
fn try_claim(host: &Netlink, identity: &Identity, by: Ipv4Addr) -> Result<bool, NetworkError> {
    let label = claim_label(identity);
    match host.apply_one(add_address(LOOPBACK_INDEX, by, CLAIM_SCOPE, Some(label))) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(NetworkError::Host {
            doing: "adding an address of the pod network to lo",
            source: error,
        }),
    }
}

/// Gives up every block that this identity claimed.
pub(super) fn release_claims(host: &Netlink, identity: &Identity) -> Result<(), NetworkError> {
    release_others(host, identity, &[])
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
pub(super) fn destinations(host: &Netlink) -> Result<Vec<Ipv4Net>, NetworkError> {
    let routes = routes::all(host)?;
    let known = routes.iter().filter_map(routes::destination);
    Ok(known.filter(|block| block.prefix_len() > 0).collect())
}

/// The MTU, in bytes, of the link that the default route leaves by.
pub(super) fn uplink_mtu(host: &Netlink) -> Result<u32, NetworkError> {
    Ok(uplink(host)?.map_or(DEFAULT_MTU, |link| link.mtu))
}

/// The link that the default route leaves by.
fn uplink(host: &Netlink) -> Result<Option<FoundLink>, NetworkError> {
    let index = routes::all(host)?
        .into_iter()
        .filter(|route| {
            route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
        })
        .min_by_key(routes::metric)
        .and_then(|route| routes::out_link(&route));
    let mut links = all_links(host).map_err(host_error("listing links"))?;
    links.retain(|link| Some(link.index) == index);
    Ok(links.pop())
}

/// Loopback up (a fresh network namespace has it down) and IPv4 forwarding on.
pub(super) fn prepare(host: &Netlink) -> Result<(), NetworkError> {
    host.apply_one(bring_up(LOOPBACK_INDEX))
        .map_err(host_error("bringing up lo"))?;
    sysctl::turn_on("net.ipv4.ip_forward")?;
    Ok(())
}

/// Has the uplink forward what comes in for pods: a host may have that off for one link alone.
pub(super) fn forward_from_uplink(host: &Netlink) -> Result<(), NetworkError> {
    match uplink(host)? {
        Some(link) => forward_from(&link.name),
        None => Ok(()),
    }
}

/// The same for the link to another node.
pub(super) fn forward_from(link: &str) -> Result<(), NetworkError> {
    let setting = format!("net.ipv4.conf.{link}.forwarding");
    Ok(sysctl::turn_on(&setting)?)
}

pub(super) fn host_error(doing: &'static str) -> impl Fn(io::Error) -> NetworkError {
    move |source| NetworkError::Host { doing, source }
}
