//! Tells when the host's links, addresses or routes changed in a way that may concern the other nodes.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::LinkAttribute;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::net::netlink::{RECEIVE_BYTES, split_message};
use crate::net::routes;
use ipnet::Ipv4Net;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV4_ROUTE`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40;

/// A subscription to the kernel's changes.
pub(super) struct Monitor {
    socket: AsyncFd<OwnedFd>,
    /// Links and routes of this node's own pods are of no interest.
    own_pods: Ipv4Net,
    pod_links: String,
    tunnel: String,
}

impl Monitor {
    pub(super) fn open(own_pods: Ipv4Net, pod_links: String, tunnel: String) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        // SAFETY: the descriptor is open, and owned by the registration until that is dropped.
        let socket = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self {
            socket,
            own_pods,
            pod_links,
            tunnel,
        })
    }

    /// Resolves after something of interest changed.
    pub(super) async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.socket.readable().await?;
            let mut of_interest = false;
            loop {
                let mut buffer = vec![0; RECEIVE_BYTES];
                let flags = MsgFlags::MSG_DONTWAIT;
                match recv(self.socket.get_ref().as_raw_fd(), &mut buffer, flags) {
                    Ok(length) => of_interest |= self.concerns(&buffer[..length]),
                    Err(nix::errno::Errno::EAGAIN) => break,
                    // More changed than the socket holds.
                    Err(nix::errno::Errno::ENOBUFS) => of_interest = true,
                    Err(error) => return Err(error.into()),
                }
            }
            ready.clear_ready();
            if of_interest {
                return Ok(());
            }
        }
    }

    fn concerns(&self, datagram: &[u8]) -> bool {
        let mut rest = datagram;
        while let Some((message, _, after)) = split_message(rest) {
            rest = after;
            let parsed = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message);
            let concerns = match parsed.map(|m| m.payload) {
                Ok(NetlinkPayload::InnerMessage(inner)) => self.is_foreign(&inner),
                _ => false,
            };
            if concerns {
                return true;
            }
        }
        false
    }

    fn is_foreign(&self, message: &RouteNetlinkMessage) -> bool {
        use RouteNetlinkMessage as Message;
        match message {
            Message::NewLink(link) | Message::DelLink(link) => {
                let name = link.attributes.iter().find_map(|a| match a {
                    LinkAttribute::IfName(name) => Some(name.as_str()),
                    _ => None,
                });
                name.is_none_or(|name| name == self.tunnel || !name.starts_with(&self.pod_links))
            }
            Message::NewRoute(route) | Message::DelRoute(route) => {
                let to = routes::destination(route);
                to.is_none_or(|to| !self.own_pods.contains(&to.network()))
            }
            Message::NewAddress(_) | Message::DelAddress(_) => true,
            _ => false,
        }
    }
}
