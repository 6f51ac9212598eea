//! Stale connections.
//!
//! The kernel remembers where the packets of a UDP "connection" go for as long as the client keeps
//! sending, so a client would go on talking to an endpoint that is gone. After UDP endpoints changed, what
//! the kernel remembers is compared with what is true, and what leads elsewhere is deleted.
//!
//! Of other protocols, connections live on with the endpoint that they have. But one that was never answered, or refused, is
//! deleted when its endpoint is gone ([`super::lost`]). Numbers are from `linux/netfilter/nfnetlink_conntrack.h`,
//! `nf_conntrack_common.h` and `nf_conntrack_tcp.h`.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};

use super::program::{Frontend, Protocol};
use crate::net::netlink::{Netlink, Request, attributes};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
/// An attribute that holds others.
const NESTED: u16 = 0x8000;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOCOL_INFO: u16 = 4;
const STATUS_MASK: u16 = 26;
/// Bits of a connection's status.
const SEEN_REPLY: u32 = 1 << 1;
const ASSURED: u32 = 1 << 2;
const DESTINATION_NAT: u32 = 1 << 5;
/// The state of a TCP connection that was reset.
const CLOSE: u8 = 8;
/// `struct nfgenmsg` for IPv4.
const FAMILY_HEADER: [u8; 4] = [libc::AF_INET as u8, 0, 0, 0];

/// Deletes every UDP connection to a frontend that goes to none of its endpoints; gives their number.
///
/// # Errors
/// When the kernel's list can't be read; one that is gone before it is deleted is no error.
pub(super) fn delete_stale(udp: &HashMap<Frontend, Vec<SocketAddrV4>>) -> io::Result<usize> {
    delete_where(&[], |connection| connection.is_stale(udp))
}

/// Deletes every connection (of a protocol that has some) that was led to one of these endpoints and not answered there,
/// or refused; gives their number.
///
/// # Errors
/// As [`delete_stale`].
pub(super) fn delete_unanswered(gone: &HashSet<SocketAddrV4>) -> io::Result<usize> {
    // The kernel sorts out the others; one that is too old to know how leaves that to us.
    let mut half_made = Vec::new();
    attribute(&mut half_made, STATUS, &DESTINATION_NAT.to_be_bytes());
    let mask = DESTINATION_NAT | ASSURED;
    attribute(&mut half_made, STATUS_MASK, &mask.to_be_bytes());
    delete_where(&half_made, |connection| connection.is_unanswered(gone))
}

/// Of the connections that the kernel lists for a filter of its own.
fn delete_where(filter: &[u8], wanted: impl Fn(&Connection) -> bool) -> io::Result<usize> {
    let netlink = Netlink::netfilter()?;
    let dump = Request {
        kind: GET,
        flags: NLM_F_DUMP,
        payload: [&FAMILY_HEADER, filter].concat(),
    };
    let mut found = Vec::new();
    netlink.dump_raw(&dump, |payload| {
        if let Some(connection) = Connection::read(payload)
            && wanted(&connection)
        {
            found.push(connection.original);
        }
    })?;
    for tuple in &found {
        let delete = Request {
            kind: DELETE,
            flags: NLM_F_ACK,
            payload: [&FAMILY_HEADER, tuple.as_slice()].concat(),
        };
        match netlink.apply_one(delete) {
            Err(error) if error.raw_os_error() != Some(libc::ENOENT) => return Err(error),
            _ => {}
        }
    }
    Ok(found.len())
}

/// Appends an attribute whose length is a multiple of four.
fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    to.extend(((value.len() + 4) as u16).to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend_from_slice(value);
}

/// A connection, as far as it matters here.
struct Connection {
    /// The attribute that names it.
    original: Vec<u8>,
    protocol: u8,
    sent_to: SocketAddrV4,
    answers_from: SocketAddrV4,
    status: u32,
    /// Of TCP.
    state: Option<u8>,
}

impl Connection {
    /// `None` unless it is one over IPv4, of a protocol with ports.
    fn read(payload: &[u8]) -> Option<Self> {
        let body = payload.get(FAMILY_HEADER.len()..)?;
        let mut original = None;
        let mut reply = None;
        let (mut status, mut state) = (0, None);
        for (kind, value) in attributes(body) {
            match kind {
                TUPLE_ORIGINAL => original = Some((Tuple::read(value)?, value)),
                TUPLE_REPLY => reply = Some(Tuple::read(value)?),
                STATUS => status = u32::from_be_bytes(*value.first_chunk()?),
                PROTOCOL_INFO => state = tcp_state(value),
                _ => {}
            }
        }
        let (first, value) = original?;
        let mut name = Vec::with_capacity(value.len() + 4);
        attribute(&mut name, TUPLE_ORIGINAL | NESTED, value);
        Some(Self {
            original: name,
            status,
            state,
            protocol: first.protocol,
            sent_to: first.destination,
            answers_from: reply?.source,
        })
    }

    fn is_stale(&self, udp: &HashMap<Frontend, Vec<SocketAddrV4>>) -> bool {
        if self.protocol != Protocol::Udp.number() {
            return false;
        }
        let frontend = |address| Frontend {
            address,
            protocol: Protocol::Udp,
            port: self.sent_to.port(),
        };
        let by_address = udp.get(&frontend(Some(*self.sent_to.ip())));
        let redirected = self.answers_from != self.sent_to;
        match by_address {
            // One that went nowhere goes somewhere once there are endpoints.
            Some(endpoints) => {
                let right = endpoints.contains(&self.answers_from);
                !right && (redirected || !endpoints.is_empty())
            }
            None => udp
                .get(&frontend(None))
                .is_some_and(|endpoints| redirected && !endpoints.contains(&self.answers_from)),
        }
    }

    fn is_unanswered(&self, gone: &HashSet<SocketAddrV4>) -> bool {
        let was_refused = self.state == Some(CLOSE) && self.status & ASSURED == 0;
        self.protocol != Protocol::Udp.number()
            && self.status & DESTINATION_NAT != 0
            && (self.status & SEEN_REPLY == 0 || was_refused)
            && gone.contains(&self.answers_from)
    }
}

/// One direction of a connection.
struct Tuple {
    protocol: u8,
    source: SocketAddrV4,
    destination: SocketAddrV4,
}

impl Tuple {
    fn read(value: &[u8]) -> Option<Self> {
        let (mut source, mut destination) = (None, None);
        let (mut protocol, mut from, mut to) = (None, None, None);
        for (kind, value) in attributes(value) {
            for (inner, value) in attributes(value) {
                match (kind, inner) {
                    (1, 1) => source = address(value),
                    (1, 2) => destination = address(value),
                    (2, 1) => protocol = value.first().copied(),
                    (2, 2) => from = port(value),
                    (2, 3) => to = port(value),
                    _ => {}
                }
            }
        }
        Some(Self {
            protocol: protocol?,
            source: SocketAddrV4::new(source?, from?),
            destination: SocketAddrV4::new(destination?, to?),
        })
    }
}

/// The state within the information that TCP adds.
fn tcp_state(value: &[u8]) -> Option<u8> {
    let (_, tcp) = attributes(value).find(|(kind, _)| *kind == 1)?;
    let (_, state) = attributes(tcp).find(|(kind, _)| *kind == 1)?;
    state.first().copied()
}

fn address(value: &[u8]) -> Option<Ipv4Addr> {
    value.first_chunk::<4>().map(|octets| (*octets).into())
}

fn port(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(sent_to: &str, answers_from: &str) -> Connection {
        Connection {
            original: Vec::new(),
            protocol: Protocol::Udp.number(),
            status: 0,
            state: None,
            sent_to: sent_to.parse().unwrap(),
            answers_from: answers_from.parse().unwrap(),
        }
    }

    #[test]
    fn only_what_leads_elsewhere_is_stale() {
        let frontend = |address: Option<&str>, port| Frontend {
            address: address.map(|a| a.parse().unwrap()),
            protocol: Protocol::Udp,
            port,
        };
        let to = |text: &str| vec![text.parse().unwrap()];
        let udp = HashMap::from([
            (frontend(Some("10.43.0.10"), 53), to("10.42.0.5:5353")),
            (frontend(Some("10.43.0.11"), 53), Vec::new()),
            (frontend(None, 30053), to("10.42.0.5:5353")),
        ]);
        let stale = |to, from| connection(to, from).is_stale(&udp);
        assert!(!stale("10.43.0.10:53", "10.42.0.5:5353"));
        assert!(stale("10.43.0.10:53", "10.42.0.6:5353"));
        assert!(stale("10.43.0.10:53", "10.43.0.10:53"), "was not served");
        assert!(stale("10.43.0.11:53", "10.42.0.6:5353"));
        assert!(!stale("10.43.0.11:53", "10.43.0.11:53"));
        assert!(stale("192.0.2.1:30053", "10.42.0.6:5353"));
        assert!(!stale("192.0.2.1:30053", "192.0.2.1:30053"), "not ours");
        assert!(!stale("192.0.2.1:53", "10.42.0.6:5353"), "not ours");
    }
    #[test]
    fn what_was_answered_or_leads_elsewhere_is_kept() {
        let gone = HashSet::from(["10.42.0.6:80".parse().unwrap()]);
        let unanswered = |from, protocol: Protocol, status, state| {
            let connection = Connection {
                protocol: protocol.number(),
                status,
                state,
                ..connection("10.43.0.10:80", from)
            };
            connection.is_unanswered(&gone)
        };
        let (tcp, udp, redirected) = (Protocol::Tcp, Protocol::Udp, DESTINATION_NAT);
        let there = "10.42.0.6:80";
        assert!(unanswered(there, tcp, redirected, Some(1)));
        assert!(!unanswered("10.42.0.5:80", tcp, redirected, Some(1)));
        assert!(!unanswered(there, tcp, 0, Some(1)), "not ours");
        assert!(!unanswered(there, udp, redirected, None));
        // Refused, half-way, made, and reset.
        let answered = redirected | SEEN_REPLY;
        assert!(unanswered(there, tcp, answered, Some(CLOSE)));
        assert!(!unanswered(there, tcp, answered, Some(2)));
        assert!(!unanswered(there, tcp, answered | ASSURED, Some(3)));
        assert!(!unanswered(there, tcp, answered | ASSURED, Some(CLOSE)));
    }
}
