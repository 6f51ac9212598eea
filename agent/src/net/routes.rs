//! The node's own routes: where services and the other nodes' pods are.
//!
//! They carry a protocol number that nobody else uses and the identity as their metric: so they are told
//! from anyone's, two clusters never replace each other's, and whoever adds a better one prevails.

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::NetworkError;
use super::netlink::{Netlink, Request};
use super::node::host_error;
use crate::identity::Identity;
use ipnet::Ipv4Net;

/// As `proto 83` in `ip route`.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(83);
const LOOPBACK_INDEX: u32 = 1;

/// A route of this identity to a block, that leads nowhere yet.
pub(super) fn own(
    identity: &Identity,
    to: Ipv4Net,
    kind: RouteType,
    scope: RouteScope,
) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = RouteHeader::RT_TABLE_MAIN;
    route.header.protocol = PROTOCOL;
    route.header.scope = scope;
    route.header.kind = kind;
    route.header.destination_prefix_length = to.prefix_len();
    route.attributes = vec![
        RouteAttribute::Destination(RouteAddress::Inet(to.network())),
        RouteAttribute::Priority(identity.link_group()),
    ];
    route
}

/// Leads the service block to the host itself, where what it sends is redirected: without this a host
/// without a default route could not even begin. Packets carry the node's address in the pod network.
pub(super) fn lead_services(
    host: &Netlink,
    identity: &Identity,
    services: Ipv4Net,
    node_address: Ipv4Addr,
) -> Result<(), NetworkError> {
    let mut route = own(identity, services, RouteType::Unicast, RouteScope::Link);
    route.attributes.extend([
        RouteAttribute::Oif(LOOPBACK_INDEX),
        RouteAttribute::PrefSource(RouteAddress::Inet(node_address)),
    ]);
    put(host, route).map_err(host_error("adding the route of the services"))
}

/// Tells who sends to a pod that nobody has that there is none, instead of asking the default route.
pub(super) fn refuse_strays(
    host: &Netlink,
    identity: &Identity,
    cluster: Ipv4Net,
) -> Result<(), NetworkError> {
    let route = own(
        identity,
        cluster,
        RouteType::Unreachable,
        RouteScope::Universe,
    );
    put(host, route).map_err(host_error("adding the route of the cluster"))
}

/// Adds a route, or replaces this identity's to the same destination.
pub(super) fn put(host: &Netlink, route: RouteMessage) -> io::Result<()> {
    let flags = NLM_F_CREATE | NLM_F_REPLACE;
    host.apply_one(Request::route(&RouteNetlinkMessage::NewRoute(route), flags))
}

/// Removes a route; one that is gone is no error.
pub(super) fn remove(host: &Netlink, route: RouteMessage) -> io::Result<()> {
    match host.apply_one(Request::route(&RouteNetlinkMessage::DelRoute(route), 0)) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// This identity's routes.
pub(super) fn of(host: &Netlink, identity: &Identity) -> Result<Vec<RouteMessage>, NetworkError> {
    let ours = |route: &RouteMessage| {
        route.header.protocol == PROTOCOL && metric(route) == identity.link_group()
    };
    Ok(all(host)?.into_iter().filter(ours).collect())
}

pub(super) fn remove_all(host: &Netlink, identity: &Identity) -> Result<(), NetworkError> {
    for route in of(host, identity)? {
        remove(host, route).map_err(host_error("removing a route"))?;
    }
    Ok(())
}

/// Every IPv4 route of the host.
pub(super) fn all(host: &Netlink) -> Result<Vec<RouteMessage>, NetworkError> {
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

/// `None` for the default route.
pub(super) fn destination(route: &RouteMessage) -> Option<Ipv4Net> {
    route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => {
            let prefix = route.header.destination_prefix_length;
            Some(Ipv4Net::new(*address, prefix).ok()?.trunc())
        }
        _ => None,
    })
}

pub(super) fn gateway(route: &RouteMessage) -> Option<Ipv4Addr> {
    route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })
}

pub(super) fn metric(route: &RouteMessage) -> u32 {
    let metric = |a: &RouteAttribute| match a {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    };
    route.attributes.iter().find_map(metric).unwrap_or(0)
}

pub(super) fn out_link(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}
