//! Noticing that a node's pod network is gone, from a process that outlives the agent.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily as SocketFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind,
    recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::netlink::{Netlink, RECEIVE_BYTES};

/// `RTMGRP_IPV4_IFADDR`
const ADDRESSES: u32 = 0x10;

/// Resolves when no link of this host has the address, such as the node's own in its pods' network.
///
/// # Errors
/// When the kernel does not tell of addresses.
pub(crate) async fn address_is_gone(address: Ipv4Addr) -> io::Result<()> {
    let subscription = subscribe()?;
    // What changes from here on is told, so nothing is missed between looking and waiting.
    while is_present(address)? {
        let mut ready = subscription.readable().await?;
        drain(subscription.get_ref())?;
        ready.clear_ready();
    }
    Ok(())
}

fn subscribe() -> io::Result<AsyncFd<OwnedFd>> {
    let fd = socket(
        SocketFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkRoute,
    )?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, ADDRESSES))?;
    // SAFETY: the descriptor is open, and owned by the registration until that is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

fn drain(fd: &OwnedFd) -> io::Result<()> {
    let mut buffer = vec![0; RECEIVE_BYTES];
    loop {
        match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(_) => {}
            // Nothing more, or more than the socket holds: it is looked at anyway.
            Err(Errno::EAGAIN | Errno::ENOBUFS) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_present(address: Ipv4Addr) -> io::Result<bool> {
    let mut query = AddressMessage::default();
    query.header.family = AddressFamily::Inet;
    let found = Netlink::route()?.dump(&RouteNetlinkMessage::GetAddress(query))?;
    let wanted = AddressAttribute::Local(IpAddr::V4(address));
    Ok(found.into_iter().any(|message| match message {
        RouteNetlinkMessage::NewAddress(message) => message.attributes.contains(&wanted),
        _ => false,
    }))
}
