//! Sets and maps: what packets are looked up in.
//!
//! A key of several fields is their concatenation, each in a 4-byte register of its own. The type
//! numbers are those of the `nft` program, so that it can show what is there.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::attributes::{Attributes, Verdict};
use crate::net::netlink::attributes;

/// One field of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::net) enum Type {
    Number,
    Address,
    Protocol,
    Port,
}

impl Type {
    /// `enum datatypes` of the `nft` program.
    fn number(self) -> u32 {
        match self {
            Type::Number => 4,
            Type::Address => 7,
            Type::Protocol => 12,
            Type::Port => 13,
        }
    }

    /// Concatenated types take six bits each.
    fn concatenated(types: &[Type]) -> u32 {
        types.iter().fold(0, |all, t| (all << 6) | t.number())
    }
}

/// What a key leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::net) enum Leads {
    /// Nowhere: a set.
    Nowhere,
    ToVerdict,
    /// An address and a port.
    ToEndpoint,
}

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) struct Set {
    pub(in crate::net) name: String,
    pub(in crate::net) key: Vec<Type>,
    pub(in crate::net) leads: Leads,
    /// Packets add elements, which last so long; at most so many.
    pub(in crate::net) dynamic: Option<(Duration, u32)>,
    pub(super) anonymous: bool,
}

const FLAG_ANONYMOUS: u32 = 1;
const FLAG_CONSTANT: u32 = 2;
const FLAG_MAP: u32 = 8;
const FLAG_TIMEOUT: u32 = 0x10;
const FLAG_EVAL: u32 = 0x20;

impl Set {
    pub(in crate::net) fn new(name: impl Into<String>, key: &[Type], leads: Leads) -> Self {
        Self {
            name: name.into(),
            key: key.to_vec(),
            leads,
            dynamic: None,
            anonymous: false,
        }
    }

    pub(in crate::net) fn dynamic(mut self, lasting: Duration, size: u32) -> Self {
        self.dynamic = Some((lasting, size));
        self
    }

    /// `NFT_MSG_NEWSET`; `id` stands for it within the transaction.
    pub(super) fn declaration(&self, table: &str, id: u32, count: usize) -> Attributes {
        let mut flags = 0;
        let mut describe = Attributes::default();
        if self.anonymous {
            flags |= FLAG_ANONYMOUS | FLAG_CONSTANT;
            describe = describe.number(1, count as u32);
        }
        if self.leads != Leads::Nowhere {
            flags |= FLAG_MAP;
        }
        if let Some((_, size)) = self.dynamic {
            flags |= FLAG_TIMEOUT | FLAG_EVAL;
            describe = describe.number(1, size);
        }
        let mut attributes = Attributes::default()
            .text(1, table)
            .text(2, &self.name)
            .number(3, flags)
            .number(4, Type::concatenated(&self.key))
            .number(5, 4 * self.key.len() as u32);
        attributes = match self.leads {
            Leads::Nowhere => attributes,
            Leads::ToVerdict => attributes.number(6, 0xffff_ff00).number(7, 0),
            Leads::ToEndpoint => attributes
                .number(6, Type::concatenated(&[Type::Address, Type::Port]))
                .number(7, 8),
        };
        if !describe.0.is_empty() {
            attributes = attributes.nested(9, describe);
        }
        attributes = attributes.number(10, id);
        if let Some((lasting, _)) = self.dynamic {
            attributes = attributes.long(11, lasting.as_millis() as u64);
        }
        attributes
    }
}

/// What one key leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) enum Data {
    None,
    Verdict(Verdict),
    Endpoint(SocketAddrV4),
}

/// A key and what it leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) struct Element {
    pub(in crate::net) key: Key,
    pub(in crate::net) data: Data,
    /// How long it lasts still, in a map with timeouts.
    pub(in crate::net) expires: Option<Duration>,
}

impl Element {
    pub(in crate::net) fn new(key: Key, data: Data) -> Self {
        let expires = None;
        Self { key, data, expires }
    }

    /// One that packets added to a map of endpoints.
    pub(super) fn client(encoded: &[u8]) -> Option<Self> {
        let (mut key, mut endpoint, mut left) = (None, None, None);
        for (kind, value) in attributes(encoded) {
            match kind {
                1 => key = attributes(value).next().map(|(_, key)| key.to_vec()),
                2 => endpoint = attributes(value).next().and_then(|(_, v)| read_endpoint(v)),
                5 => left = value.first_chunk().map(|ms| u64::from_be_bytes(*ms)),
                _ => {}
            }
        }
        Some(Self {
            key: Key(key?),
            data: Data::Endpoint(endpoint?),
            expires: Some(Duration::from_millis(left.filter(|left| *left > 0)?)),
        })
    }

    pub(super) fn encoded(&self) -> Attributes {
        let element = Attributes::default().value(1, &self.key.0);
        let element = match &self.data {
            Data::None => element,
            Data::Verdict(verdict) => element.verdict(2, verdict),
            Data::Endpoint(endpoint) => element.value(2, &Key::endpoint(*endpoint).0),
        };
        match self.expires {
            Some(left) => element.long(5, left.as_millis() as u64),
            None => element,
        }
    }
}

fn read_endpoint(value: &[u8]) -> Option<SocketAddrV4> {
    let [a, b, c, d, high, low, ..] = *value.first_chunk::<8>()?;
    let port = u16::from_be_bytes([high, low]);
    Some(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port))
}

/// A key, as registers hold it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(in crate::net) struct Key(pub(in crate::net) Vec<u8>);

impl Key {
    /// As packets count: in the host's byte order.
    pub(in crate::net) fn number(mut self, number: u32) -> Self {
        self.0.extend(number.to_ne_bytes());
        self
    }

    pub(in crate::net) fn address(mut self, address: Ipv4Addr) -> Self {
        self.0.extend(address.octets());
        self
    }

    pub(in crate::net) fn protocol(mut self, protocol: u8) -> Self {
        self.0.extend([protocol, 0, 0, 0]);
        self
    }

    pub(in crate::net) fn port(mut self, port: u16) -> Self {
        self.0.extend(port.to_be_bytes());
        self.0.extend([0, 0]);
        self
    }

    pub(in crate::net) fn endpoint(endpoint: SocketAddrV4) -> Self {
        Self::default()
            .address(*endpoint.ip())
            .port(endpoint.port())
    }
}
