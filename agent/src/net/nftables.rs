//! nftables over netlink: only what a node's table needs, without the `nft` program.
//!
//! A [`Transaction`] collects requests and commits them in one atomic batch: either the whole new
//! table is in force or the old one stays. Numbers are from `linux/netfilter/nf_tables.h`.

use std::io;
use std::net::Ipv4Addr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE};

use super::cidr::Cidr;
use super::netlink::{Netlink, Request};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM;
const DEL_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const NEW_RULE: u16 = SUBSYSTEM | 6;

const FAMILY_UNSPEC: u8 = 0;
const FAMILY_INET: u8 = 1;
const NESTED: u16 = 0x8000;
const REGISTER: u32 = 1;

/// Where in a packet's way a base chain sits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook {
    number: u32,
    priority: i32,
    kind: &'static str,
}

impl Hook {
    /// After routing, where the source address may be rewritten (`NF_IP_PRI_NAT_SRC`).
    pub(super) const SOURCE_NAT: Hook = Hook {
        number: 4,
        priority: 100,
        kind: "nat",
    };
}

/// Requests that take effect together.
pub(super) struct Transaction<'a> {
    table: &'a str,
    requests: Vec<Request>,
}

impl<'a> Transaction<'a> {
    /// On a table of the `inet` family.
    pub(super) fn on(table: &'a str) -> Self {
        let requests = vec![batch_edge(BATCH_BEGIN)];
        Self { table, requests }
    }

    /// Makes the table, empty, whether or not it was there.
    pub(super) fn replace_table(self) -> Self {
        self.create_table().delete_table().create_table()
    }

    fn create_table(mut self) -> Self {
        let attributes = Attributes::default().text(1, self.table);
        self.push(NEW_TABLE, NLM_F_CREATE, attributes);
        self
    }

    pub(super) fn delete_table(mut self) -> Self {
        let attributes = Attributes::default().text(1, self.table);
        self.push(DEL_TABLE, 0, attributes);
        self
    }

    pub(super) fn base_chain(mut self, name: &str, hook: Hook) -> Self {
        let place = Attributes::default()
            .number(1, hook.number)
            .number(2, hook.priority as u32);
        let attributes = Attributes::default()
            .text(1, self.table)
            .text(3, name)
            .nested(4, place)
            .text(7, hook.kind);
        self.push(NEW_CHAIN, NLM_F_CREATE, attributes);
        self
    }

    pub(super) fn rule(mut self, chain: &str, rule: Rule) -> Self {
        let attributes = Attributes::default()
            .text(1, self.table)
            .text(2, chain)
            .nested(4, rule.expressions);
        self.push(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, attributes);
        self
    }

    fn push(&mut self, kind: u16, flags: u16, attributes: Attributes) {
        let mut payload = family_header(FAMILY_INET, 0);
        payload.extend(attributes.0);
        self.requests.push(Request {
            kind,
            flags: flags | NLM_F_ACK,
            payload,
        });
    }

    /// # Errors
    /// The kernel's, of the first request that it refused; nothing has changed then.
    pub(super) fn commit(mut self) -> io::Result<()> {
        self.requests.push(batch_edge(BATCH_END));
        Netlink::netfilter()?
            .apply(&self.requests)
            .map_err(|refused| refused.source)
    }
}

fn batch_edge(kind: u16) -> Request {
    Request {
        kind,
        flags: 0,
        payload: family_header(FAMILY_UNSPEC, SUBSYSTEM >> 8),
    }
}

/// `struct nfgenmsg`
fn family_header(family: u8, resource: u16) -> Vec<u8> {
    let mut header = vec![family, 0];
    header.extend(resource.to_be_bytes());
    header
}

/// One rule: conditions and what to do when all hold, in order.
#[derive(Default)]
pub(super) struct Rule {
    expressions: Attributes,
}

/// Which of a packet's addresses, by its offset in the IPv4 header.
#[derive(Debug, Clone, Copy)]
pub(super) enum Address {
    Source = 12,
    Destination = 16,
}

impl Rule {
    /// Without this an IPv6 packet's bytes would be read as IPv4 addresses.
    pub(super) fn ipv4(self) -> Self {
        const META_NFPROTO: u32 = 15;
        const NFPROTO_IPV4: u8 = 2;
        let load = Attributes::default()
            .number(1, REGISTER)
            .number(2, META_NFPROTO);
        self.expression("meta", load)
            .compare(Comparison::Equal, &[NFPROTO_IPV4])
    }

    pub(super) fn inside(self, address: Address, block: Cidr) -> Self {
        self.masked(address, block)
            .compare(Comparison::Equal, &block.first().octets())
    }

    pub(super) fn outside(self, address: Address, block: Cidr) -> Self {
        self.masked(address, block)
            .compare(Comparison::NotEqual, &block.first().octets())
    }

    /// Rewrites the source to the address of the link that the packet leaves by.
    pub(super) fn masquerade(self) -> Self {
        self.expression("masq", Attributes::default())
    }

    fn masked(self, address: Address, block: Cidr) -> Self {
        const NETWORK_HEADER: u32 = 1;
        let load = Attributes::default()
            .number(1, REGISTER)
            .number(2, NETWORK_HEADER)
            .number(3, address as u32)
            .number(4, 4);
        let mask = Attributes::default()
            .number(1, REGISTER)
            .number(2, REGISTER)
            .number(3, 4)
            .value(4, &block.mask().octets())
            .value(5, &Ipv4Addr::UNSPECIFIED.octets());
        self.expression("payload", load).expression("bitwise", mask)
    }

    fn compare(self, comparison: Comparison, value: &[u8]) -> Self {
        let attributes = Attributes::default()
            .number(1, REGISTER)
            .number(2, comparison as u32)
            .value(3, value);
        self.expression("cmp", attributes)
    }

    fn expression(mut self, name: &str, data: Attributes) -> Self {
        let expression = Attributes::default().text(1, name).nested(2, data);
        self.expressions = self.expressions.nested(1, expression);
        self
    }
}

#[derive(Debug, Clone, Copy)]
enum Comparison {
    Equal = 0,
    NotEqual = 1,
}

/// Netlink attributes, encoded. Numbers of this subsystem are in network byte order.
#[derive(Default)]
struct Attributes(Vec<u8>);

impl Attributes {
    fn text(self, kind: u16, text: &str) -> Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    fn number(self, kind: u16, number: u32) -> Self {
        self.bytes(kind, &number.to_be_bytes())
    }

    fn nested(self, kind: u16, inner: Attributes) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    /// `NFTA_DATA_VALUE`, as expressions hold their constants.
    fn value(self, kind: u16, value: &[u8]) -> Self {
        self.nested(kind, Attributes::default().bytes(1, value))
    }

    fn bytes(mut self, kind: u16, bytes: &[u8]) -> Self {
        let length = (4 + bytes.len()) as u16;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}
