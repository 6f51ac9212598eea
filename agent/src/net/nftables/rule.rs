//! Rules: conditions on a packet and what to do when all hold, in order.
//!
//! Keys of look-ups are put together in [`KEY`] and the registers after it; an endpoint that was
//! found stands in [`FOUND`] (address) and the next register (port).

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use super::attributes::{Attributes, Verdict};
use super::set::{Data, Element, Key, Leads, Set, Type};
use ipnet::Ipv4Net;

/// `NFT_REG32_00`; each register has four bytes.
const KEY: u32 = 8;
/// `NFT_REG32_04`
const NUMBER: u32 = 12;
/// `NFT_REG32_08`
const FOUND: u32 = 16;
const VERDICT: u32 = 0;

#[derive(Debug, Clone, Default)]
pub(in crate::net) struct Rule {
    pub(super) expressions: Vec<Expression>,
}

/// One step of a rule.
#[derive(Debug, Clone)]
pub(super) enum Expression {
    Encoded(&'static str, Attributes),
    /// A look-up in a set that belongs to the rule.
    Lookup {
        set: Set,
        elements: Vec<Element>,
        key: u32,
        found: Option<u32>,
    },
}

/// A part of a packet, or of its connection, that a key is made of.
#[derive(Debug, Clone, Copy)]
pub(in crate::net) enum Field {
    Source,
    Destination,
    Protocol,
    SourcePort,
    DestinationPort,
    /// The destination before it was rewritten.
    OriginalDestination,
    OriginalPort,
}

impl Field {
    fn load(self, register: u32) -> (&'static str, Attributes) {
        const NETWORK_HEADER: u32 = 1;
        const TRANSPORT_HEADER: u32 = 2;
        const META_L4PROTO: u32 = 16;
        const CT_PROTO_DST: u32 = 12;
        const CT_DST_IP: u32 = 20;
        const ORIGINAL: &[u8] = &[0];
        let into = Attributes::default().number(1, register);
        let payload = |base, offset, length| {
            let place = into.clone().number(2, base).number(3, offset);
            ("payload", place.number(4, length))
        };
        let connection = |key| ("ct", into.clone().number(2, key).bytes(3, ORIGINAL));
        match self {
            Field::Source => payload(NETWORK_HEADER, 12, 4),
            Field::Destination => payload(NETWORK_HEADER, 16, 4),
            Field::SourcePort => payload(TRANSPORT_HEADER, 0, 2),
            Field::DestinationPort => payload(TRANSPORT_HEADER, 2, 2),
            Field::Protocol => ("meta", into.clone().number(2, META_L4PROTO)),
            Field::OriginalDestination => connection(CT_DST_IP),
            Field::OriginalPort => connection(CT_PROTO_DST),
        }
    }
}

/// Conditions.
impl Rule {
    /// Without this an IPv6 packet's bytes would be read as IPv4 addresses.
    pub(in crate::net) fn ipv4(self) -> Self {
        self.nfproto(Comparison::Equal)
    }

    pub(in crate::net) fn not_ipv4(self) -> Self {
        self.nfproto(Comparison::NotEqual)
    }

    fn nfproto(self, comparison: Comparison) -> Self {
        const META_NFPROTO: u32 = 15;
        const NFPROTO_IPV4: u8 = 2;
        let load = Attributes::default().number(1, KEY).number(2, META_NFPROTO);
        self.expression("meta", load)
            .compare(comparison, &[NFPROTO_IPV4])
    }

    /// An address is in the block.
    pub(in crate::net) fn inside(self, address: Field, block: Ipv4Net) -> Self {
        self.masked(address, block)
            .compare(Comparison::Equal, &block.network().octets())
    }

    /// An address is not in the block.
    pub(in crate::net) fn outside(self, address: Field, block: Ipv4Net) -> Self {
        self.masked(address, block)
            .compare(Comparison::NotEqual, &block.network().octets())
    }

    /// The source, or else the destination, is an address of this host.
    pub(in crate::net) fn when_local(self, address: Field) -> Self {
        const RESULT_ADDRTYPE: u32 = 3;
        const RTN_LOCAL: u32 = 2;
        let which = match address {
            Field::Source => 1,
            _ => 2,
        };
        let look_up = Attributes::default()
            .number(1, KEY)
            .number(2, RESULT_ADDRTYPE)
            .number(3, which);
        self.expression("fib", look_up)
            .compare(Comparison::Equal, &RTN_LOCAL.to_ne_bytes())
    }

    /// The connection's destination was rewritten.
    pub(in crate::net) fn when_redirected(self) -> Self {
        const CT_STATUS: u32 = 2;
        const IPS_DST_NAT: u32 = 1 << 5;
        self.connection_has(CT_STATUS, IPS_DST_NAT)
    }

    /// The first packet of a connection.
    pub(in crate::net) fn when_new(self) -> Self {
        const CT_STATE: u32 = 0;
        const STATE_NEW: u32 = 1 << 3;
        self.connection_has(CT_STATE, STATE_NEW)
    }

    fn connection_has(self, key: u32, bit: u32) -> Self {
        let load = Attributes::default().number(1, KEY).number(2, key);
        self.expression("ct", load)
            .and(&bit.to_ne_bytes())
            .compare(Comparison::NotEqual, &[0; 4])
    }

    /// Came in by a link of this group.
    pub(in crate::net) fn through_group(self, group: u32) -> Self {
        const META_IIFGROUP: u32 = 20;
        let load = Attributes::default()
            .number(1, KEY)
            .number(2, META_IIFGROUP);
        self.expression("meta", load)
            .compare(Comparison::Equal, &group.to_ne_bytes())
    }

    fn masked(self, address: Field, block: Ipv4Net) -> Self {
        self.key(&[address]).and(&block.netmask().octets())
    }

    fn and(self, mask: &[u8; 4]) -> Self {
        let mask = Attributes::default()
            .number(1, KEY)
            .number(2, KEY)
            .number(3, 4)
            .value(4, mask)
            .value(5, &Ipv4Addr::UNSPECIFIED.octets());
        self.expression("bitwise", mask)
    }

    fn compare(self, comparison: Comparison, value: &[u8]) -> Self {
        let attributes = Attributes::default()
            .number(1, KEY)
            .number(2, comparison as u32)
            .value(3, value);
        self.expression("cmp", attributes)
    }
}

/// Look-ups.
impl Rule {
    /// Puts the key of the next look-up together.
    pub(in crate::net) fn key(mut self, fields: &[Field]) -> Self {
        for (register, field) in (KEY..).zip(fields) {
            let (name, load) = field.load(register);
            self = self.expression(name, load);
        }
        self
    }

    /// Does what the map says of the key; goes on with the next rule when it says nothing.
    pub(in crate::net) fn follow(self, map: &str) -> Self {
        let look_up = Attributes::default()
            .text(1, map)
            .number(2, KEY)
            .number(3, VERDICT);
        self.expression("lookup", look_up)
    }

    /// The key is in the set.
    pub(in crate::net) fn when_in(self, set: &str) -> Self {
        let look_up = Attributes::default().text(1, set).number(2, KEY);
        self.expression("lookup", look_up)
    }

    /// The key is not in the set.
    pub(in crate::net) fn when_not_in(self, set: &str) -> Self {
        const INVERT: u32 = 1;
        let look_up = Attributes::default()
            .text(1, set)
            .number(2, KEY)
            .number(5, INVERT);
        self.expression("lookup", look_up)
    }

    /// Finds the endpoint that the map has for the key.
    pub(in crate::net) fn find(self, map: &str) -> Self {
        let look_up = Attributes::default()
            .text(1, map)
            .number(2, KEY)
            .number(3, FOUND);
        self.expression("lookup", look_up)
    }

    /// The endpoint that was found is one of these.
    pub(in crate::net) fn found_is_among(mut self, endpoints: &[SocketAddrV4]) -> Self {
        let element = |e: &SocketAddrV4| Element::new(Key::endpoint(*e), Data::None);
        self.expressions.push(Expression::Lookup {
            set: anonymous(&[Type::Address, Type::Port], Leads::Nowhere),
            elements: endpoints.iter().map(element).collect(),
            key: FOUND,
            found: None,
        });
        self
    }

    /// Finds one of the endpoints by chance, each as likely as any other.
    pub(in crate::net) fn choose(mut self, endpoints: &[SocketAddrV4]) -> Self {
        if let [only] = endpoints {
            return self.found(*only);
        }
        self = self.random(endpoints.len() as u32);
        let element = |(number, endpoint): (u32, &SocketAddrV4)| {
            Element::new(Key::default().number(number), Data::Endpoint(*endpoint))
        };
        self.expressions.push(Expression::Lookup {
            set: anonymous(&[Type::Number], Leads::ToEndpoint),
            elements: (0..).zip(endpoints).map(element).collect(),
            key: NUMBER,
            found: Some(FOUND),
        });
        self
    }

    /// By chance, for so many of a hundred packets.
    pub(in crate::net) fn when_chosen(mut self, percent: u8) -> Self {
        self = self.random(100);
        let chosen = 0..u32::from(percent.min(100));
        self.expressions.push(Expression::Lookup {
            set: anonymous(&[Type::Number], Leads::Nowhere),
            elements: chosen
                .map(|number| Element::new(Key::default().number(number), Data::None))
                .collect(),
            key: NUMBER,
            found: None,
        });
        self
    }

    /// Draws one of the numbers from 0 on, `count` of them.
    fn random(self, count: u32) -> Self {
        const RANDOM: u32 = 1;
        let draw = Attributes::default()
            .number(1, NUMBER)
            .number(2, count)
            .number(3, RANDOM)
            .number(4, 0);
        self.expression("numgen", draw)
    }

    fn found(self, endpoint: SocketAddrV4) -> Self {
        self.immediate(FOUND, &endpoint.ip().octets())
            .immediate(FOUND + 1, &endpoint.port().to_be_bytes())
    }

    fn immediate(self, register: u32, value: &[u8]) -> Self {
        let load = Attributes::default().number(1, register).value(2, value);
        self.expression("immediate", load)
    }

    /// Lets the map have the endpoint that was found for the key, from now on.
    pub(in crate::net) fn remember(self, map: &str, lasting: Duration) -> Self {
        const UPDATE: u32 = 1;
        let lasting = lasting.as_millis() as u64;
        let update = in_map(map, UPDATE).long(6, lasting);
        self.expression("dynset", update)
    }

    /// Takes the key out of the map.
    pub(in crate::net) fn forget(self, map: &str) -> Self {
        const DELETE: u32 = 2;
        self.expression("dynset", in_map(map, DELETE))
    }
}

fn in_map(map: &str, operation: u32) -> Attributes {
    Attributes::default()
        .text(1, map)
        .number(3, operation)
        .number(4, KEY)
        .number(5, FOUND)
}

fn anonymous(key: &[Type], leads: Leads) -> Set {
    let mut set = Set::new("__set%d", key, leads);
    set.anonymous = true;
    set
}

/// What to do.
impl Rule {
    /// Rewrites the destination to the endpoint that was found.
    pub(in crate::net) fn redirect(self) -> Self {
        const DNAT: u32 = 1;
        let rewrite = translation(DNAT).number(5, FOUND + 1);
        self.expression("nat", rewrite)
    }

    /// Rewrites the source address.
    pub(in crate::net) fn send_from(self, address: Ipv4Addr) -> Self {
        const SNAT: u32 = 0;
        self.immediate(FOUND, &address.octets())
            .expression("nat", translation(SNAT))
    }

    /// Rewrites the source to the address of the link that the packet leaves by.
    pub(in crate::net) fn masquerade(self) -> Self {
        self.expression("masq", Attributes::default())
    }

    /// Resets a TCP connection.
    pub(in crate::net) fn reset(self) -> Self {
        const META_L4PROTO: u32 = 16;
        const TCP: &[u8] = &[6];
        const TCP_RESET: u32 = 1;
        let load = Attributes::default().number(1, KEY).number(2, META_L4PROTO);
        let answer = Attributes::default().number(1, TCP_RESET).bytes(2, &[0]);
        self.expression("meta", load)
            .compare(Comparison::Equal, TCP)
            .expression("reject", answer)
    }

    /// Answers that there is nobody.
    pub(in crate::net) fn reject(self) -> Self {
        const ANY_FAMILY_ICMP: u32 = 2;
        const PORT_UNREACHABLE: &[u8] = &[1];
        let answer = Attributes::default()
            .number(1, ANY_FAMILY_ICMP)
            .bytes(2, PORT_UNREACHABLE);
        self.expression("reject", answer)
    }

    pub(in crate::net) fn then(self, verdict: Verdict) -> Self {
        let verdict = Attributes::default()
            .number(1, VERDICT)
            .verdict(2, &verdict);
        self.expression("immediate", verdict)
    }

    fn expression(mut self, name: &'static str, data: Attributes) -> Self {
        self.expressions.push(Expression::Encoded(name, data));
        self
    }
}

fn translation(kind: u32) -> Attributes {
    const NFPROTO_IPV4: u32 = 2;
    Attributes::default()
        .number(1, kind)
        .number(2, NFPROTO_IPV4)
        .number(3, FOUND)
}

#[derive(Debug, Clone, Copy)]
enum Comparison {
    Equal = 0,
    NotEqual = 1,
}
