//! Answers from the cluster's own names, as the Kubernetes DNS specification (schema version 1.1.0) and
//! CoreDNS' `kubernetes` plugin give them.
//!
//! | name, before `cluster.local` | answers |
//! |---|---|
//! | `service.namespace.svc` | the service's address; a headless one's endpoints; an external one's alias |
//! | `endpoint.service.namespace.svc` | one endpoint, by its hostname or its address with dashes |
//! | `_port._protocol.service.namespace.svc` | SRV |
//! | `1-2-3-4.namespace.pod` | the address that it spells |
//! | `dns-version` | TXT `1.1.0` |
//!
//! Addresses lead back (PTR) to services and to the endpoints of headless services.

use std::net::Ipv4Addr;

use rand::seq::SliceRandom;

use super::message::{
    Data, Owner, QUESTION_NAME, Question, Rcode, Reply, Section, Soa, flag, kind,
};
use super::name::{Labels, Name};
use super::zone::{Endpoint, Entry, Port, Service, ServiceKind, Slice, Zone};
use ipnet::Ipv4Net;

/// Seconds that an answer may be kept, as CoreDNS' plugin has it by default: endpoints come and go.
pub(super) const TTL: u32 = 5;
/// Aliases that are followed for one question.
const MAX_ALIASES: usize = 8;
/// The last place that a pointer can name.
const POINTER_REACH: u16 = 0x3fff;

/// Names that never change.
pub(super) struct Names {
    /// `cluster.local`
    pub(super) zone: Name,
    /// `ns.dns.cluster.local`, which is us.
    server: Name,
    /// `hostmaster.cluster.local`
    mailbox: Name,
    reverse: Name,
    /// The service's address by which pods ask us.
    pub(super) address: Ipv4Addr,
    /// Blocks of addresses that nobody but the cluster has names for.
    blocks: Vec<Ipv4Net>,
}

/// Where the answer is to come from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It stands in the reply.
    Answered,
    /// From servers further up: the name is not the cluster's.
    Elsewhere,
    /// The reply leads to a name outside of the cluster.
    Alias { target: Name, at: u16 },
    /// Not everything was seen yet.
    NotReady,
}

/// What one look-up found.
enum Found {
    Records,
    NoData,
    NoName,
    Alias(Name),
}

impl Names {
    pub(super) fn new(domain: &Name, address: Ipv4Addr, blocks: Vec<Ipv4Net>) -> Self {
        let under = |label: &[u8]| {
            let bytes = [label, domain.bytes()].concat();
            // Short labels in front of a domain that was read as a name.
            Name::read(&bytes, 0).map_or_else(|_| domain.clone(), |(name, _)| name)
        };
        Self {
            server: under(b"\x02ns\x03dns"),
            mailbox: under(b"\x0ahostmaster"),
            zone: domain.clone(),
            reverse: Name::read(b"\x07in-addr\x04arpa\x00", 0)
                .map_or_else(|_| domain.clone(), |(name, _)| name),
            address,
            blocks,
        }
    }

    fn soa(&self, serial: u32) -> Soa<'_> {
        Soa {
            primary: self.server.bytes(),
            mailbox: self.mailbox.bytes(),
            serial,
            negative_ttl: TTL,
        }
    }
}

impl Zone {
    /// Answers a question about the cluster's names and addresses.
    pub(super) fn answer(
        &self,
        names: &Names,
        question: &Question,
        reply: &mut Reply<'_>,
    ) -> Outcome {
        if question.class != kind::INTERNET {
            return Outcome::Elsewhere;
        }
        if question.name.within(&names.zone).is_some() {
            return self.answer_forward(names, question, reply);
        }
        match question.name.within(&names.reverse) {
            Some(labels) => self.answer_reverse(names, question, labels, reply),
            None => Outcome::Elsewhere,
        }
    }

    fn answer_forward(&self, names: &Names, question: &Question, reply: &mut Reply<'_>) -> Outcome {
        let (mut name, mut owner) = (question.name.clone(), QUESTION_NAME);
        reply.set(flag::AUTHORITATIVE);
        for _ in 0..MAX_ALIASES {
            let Some(labels) = name.within(&names.zone) else {
                return Outcome::Alias {
                    target: name,
                    at: owner,
                };
            };
            let lookup = Lookup {
                zone: self,
                names,
                name: &name,
                owner,
                kind: question.kind,
            };
            match lookup.run(labels, reply) {
                Found::Records => return Outcome::Answered,
                Found::NoName if !self.complete => return Outcome::NotReady,
                Found::NoName => {
                    reply.rcode(Rcode::NxDomain);
                    lookup.negative(reply);
                    return Outcome::Answered;
                }
                Found::NoData => {
                    lookup.negative(reply);
                    return Outcome::Answered;
                }
                Found::Alias(target) => {
                    let data = Data::Name(kind::CNAME, target.bytes());
                    let at = reply.record(Section::Answer, lookup.owner(), TTL, data);
                    match at {
                        Some(at) if question.kind != kind::CNAME => (name, owner) = (target, at),
                        _ => return Outcome::Answered,
                    }
                }
            }
        }
        // A ring of aliases: what was found of it stands in the reply.
        Outcome::Answered
    }

    fn answer_reverse(
        &self,
        names: &Names,
        question: &Question,
        labels: Labels<'_>,
        reply: &mut Reply<'_>,
    ) -> Outcome {
        let Some(address) = address_of(labels) else {
            return Outcome::Elsewhere;
        };
        let known = self.by_address.get(&address);
        let ours = names.blocks.iter().find(|block| block.contains(&address));
        let asks = matches!(question.kind, kind::PTR | kind::ANY);
        let Some(keys) = known else {
            let Some(block) = ours else {
                return Outcome::Elsewhere;
            };
            if !self.complete {
                return Outcome::NotReady;
            }
            reply.rcode(Rcode::NxDomain);
            self.reverse_negative(names, question, *block, reply);
            return Outcome::Answered;
        };
        reply.set(flag::AUTHORITATIVE);
        let mut found = false;
        for (key, entry) in keys
            .iter()
            .filter_map(|key| self.entries.get_key_value(key))
        {
            for target in entry.names_of(key, address, names) {
                found = true;
                if asks {
                    let data = Data::Name(kind::PTR, &target);
                    reply.record(Section::Answer, Owner::At(QUESTION_NAME), TTL, data);
                }
            }
        }
        if !asks || !found {
            let block = ours
                .copied()
                .unwrap_or(Ipv4Net::new_assert(address, 24).trunc());
            self.reverse_negative(names, question, block, reply);
        }
        Outcome::Answered
    }

    /// Says how long nothing is known of an address, for the zone that ends at a whole octet of its block.
    fn reverse_negative(
        &self,
        names: &Names,
        question: &Question,
        block: Ipv4Net,
        reply: &mut Reply<'_>,
    ) {
        let octets = usize::from(block.prefix_len() / 8).min(3);
        let skipped = question.name.labels().take(4 - octets);
        let before: usize = skipped.map(|label| label.len() + 1).sum();
        let owner = Owner::At(QUESTION_NAME + before as u16);
        reply.set(flag::AUTHORITATIVE);
        let soa = names.soa(self.serial);
        reply.record(Section::Authority, owner, TTL, Data::Soa(&soa));
    }
}

impl Entry {
    /// The names that an address of this service leads back to, on the wire.
    fn names_of(&self, key: &[u8], address: Ipv4Addr, names: &Names) -> Vec<Vec<u8>> {
        match self.service.as_ref().map(|service| &service.kind) {
            Some(ServiceKind::ClusterIp(_)) => vec![service_name(&[], key, names)],
            Some(ServiceKind::Headless) => {
                let endpoints = self.slices.values().flat_map(|slice| &slice.endpoints);
                let mut found: Vec<_> = endpoints
                    .filter(|endpoint| endpoint.address == address)
                    .map(|endpoint| service_name(&wire_label(&endpoint.label), key, names))
                    .collect();
                found.sort_unstable();
                found.dedup();
                found
            }
            _ => Vec::new(),
        }
    }
}

/// `<before>.<service>.<namespace>.svc.<zone>` on the wire.
fn service_name(before: &[u8], key: &[u8], names: &Names) -> Vec<u8> {
    [before, key, b"\x03svc", names.zone.bytes()].concat()
}

fn wire_label(label: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(label.len() + 1);
    // Hostnames are DNS labels: the API checks them. One that is none is left out of the name.
    let _ = super::name::push_label(&mut bytes, label);
    bytes
}

/// The address that `4.3.2.1` before `in-addr.arpa` spells.
fn address_of(labels: Labels<'_>) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut count = 0;
    for label in labels {
        let text = std::str::from_utf8(label).ok()?;
        *octets.get_mut(3usize.checked_sub(count)?)? = text.parse().ok()?;
        count += 1;
    }
    (count == 4).then(|| octets.into())
}

/// One name that is looked for.
struct Lookup<'a> {
    zone: &'a Zone,
    names: &'a Names,
    name: &'a Name,
    /// Where the name stands in the reply.
    owner: u16,
    kind: u16,
}

impl Lookup<'_> {
    fn owner(&self) -> Owner<'_> {
        match self.owner {
            at @ ..=POINTER_REACH => Owner::At(at),
            _ => Owner::Name(self.name.bytes()),
        }
    }

    fn run(&self, labels: Labels<'_>, reply: &mut Reply<'_>) -> Found {
        let wire = labels.rest();
        let all: Vec<&[u8]> = labels.collect();
        match all.as_slice() {
            [] => self.apex(reply),
            [b"svc"] | [b"pod"] => Found::NoData,
            [b"dns-version"] => self.text("1.1.0", reply),
            [b"dns"] => Found::NoData,
            [b"ns", b"dns"] => self.addresses(&[self.names.address], reply),
            // A namespace is not looked up: it may exist.
            [_, b"svc"] | [_, b"pod"] => Found::NoData,
            [spelled, _, b"pod"] => match spelled_address(spelled) {
                Some(address) => self.addresses(&[address], reply),
                None => Found::NoName,
            },
            [_, _, b"svc"] => self.service(&wire[..wire.len() - 4], None, reply),
            [endpoint, rest @ .., b"svc"] if rest.len() == 2 => {
                let before = endpoint.len() + 1;
                self.service(&wire[before..wire.len() - 4], Some(endpoint), reply)
            }
            [port, protocol, rest @ .., b"svc"] if rest.len() == 2 => {
                let before = port.len() + protocol.len() + 2;
                let wanted = PortName::of(port, protocol);
                self.port(&wire[before..wire.len() - 4], wanted, reply)
            }
            _ => Found::NoName,
        }
    }

    /// The zone itself.
    fn apex(&self, reply: &mut Reply<'_>) -> Found {
        match self.kind {
            kind::SOA | kind::ANY => {
                let soa = self.names.soa(self.zone.serial);
                reply.record(Section::Answer, self.owner(), TTL, Data::Soa(&soa));
            }
            kind::NS => {
                let server = self.names.server.bytes();
                let data = Data::Name(kind::NS, server);
                let at = reply.record(Section::Answer, self.owner(), TTL, data);
                if let Some(at) = at {
                    let address = Data::A(self.names.address);
                    reply.record(Section::Additional, Owner::At(at), TTL, address);
                }
            }
            _ => return Found::NoData,
        }
        Found::Records
    }

    fn text(&self, text: &str, reply: &mut Reply<'_>) -> Found {
        if !matches!(self.kind, kind::TXT | kind::ANY) {
            return Found::NoData;
        }
        reply.record(Section::Answer, self.owner(), TTL, Data::Txt(text));
        Found::Records
    }

    fn addresses(&self, addresses: &[Ipv4Addr], reply: &mut Reply<'_>) -> Found {
        if !matches!(self.kind, kind::A | kind::ANY) || addresses.is_empty() {
            return Found::NoData;
        }
        for address in addresses {
            reply.record(Section::Answer, self.owner(), TTL, Data::A(*address));
        }
        Found::Records
    }

    /// A service, or one of its endpoints.
    fn service(&self, key: &[u8], endpoint: Option<&[u8]>, reply: &mut Reply<'_>) -> Found {
        let entry = self.zone.entries.get(key);
        let Some((entry, service)) = entry.and_then(|e| Some((e, e.service.as_ref()?))) else {
            return Found::NoName;
        };
        match (&service.kind, endpoint) {
            (ServiceKind::External(_), Some(_)) => Found::NoName,
            (ServiceKind::External(target), None) => match Name::parse(target) {
                Ok(target) => Found::Alias(target),
                Err(_) => Found::NoName,
            },
            (ServiceKind::ClusterIp(own), None) if self.kind == kind::SRV => {
                self.service_ports(key, service, own, PortName::ANY, reply)
            }
            (ServiceKind::ClusterIp(own), None) => self.addresses(own, reply),
            (_, label) => self.endpoints(key, entry, label, PortName::ANY, reply),
        }
    }

    /// `_port._protocol` of a service.
    fn port(&self, key: &[u8], wanted: PortName<'_>, reply: &mut Reply<'_>) -> Found {
        let entry = self.zone.entries.get(key);
        let Some((entry, service)) = entry.and_then(|e| Some((e, e.service.as_ref()?))) else {
            return Found::NoName;
        };
        match &service.kind {
            ServiceKind::External(_) => Found::NoName,
            ServiceKind::ClusterIp(own) => self.service_ports(key, service, own, wanted, reply),
            ServiceKind::Headless => self.endpoints(key, entry, None, wanted, reply),
        }
    }

    /// The ports of a service that has an address.
    fn service_ports(
        &self,
        key: &[u8],
        service: &Service,
        own: &[Ipv4Addr],
        wanted: PortName<'_>,
        reply: &mut Reply<'_>,
    ) -> Found {
        let ports: Vec<&Port> = service.ports.iter().filter(|p| wanted.fits(p)).collect();
        if ports.is_empty() {
            return Found::NoName;
        }
        if self.kind != kind::SRV {
            return self.addresses(own, reply);
        }
        let target = service_name(&[], key, self.names);
        let weight = share(ports.len());
        let mut stands_at = None;
        for port in ports {
            stands_at = stands_at.or(self.srv(weight, port.number, &target, reply));
        }
        for address in own {
            self.additional(stands_at, &target, *address, reply);
        }
        Found::Records
    }

    /// The endpoints of a service, in no order.
    fn endpoints(
        &self,
        key: &[u8],
        entry: &Entry,
        label: Option<&[u8]>,
        wanted: PortName<'_>,
        reply: &mut Reply<'_>,
    ) -> Found {
        let slices = entry.slices.values().filter(|slice| wanted.fits_any(slice));
        let mut found: Vec<(&Slice, &Endpoint)> = slices
            .flat_map(|slice| {
                slice
                    .endpoints
                    .iter()
                    .map(move |endpoint| (slice, endpoint))
            })
            .filter(|(_, endpoint)| label.is_none_or(|label| label == endpoint.label.as_bytes()))
            .collect();
        if found.is_empty() {
            return Found::NoName;
        }
        if found.len() > 1 {
            found.shuffle(&mut rand::rng());
        }
        if self.kind == kind::SRV {
            return self.endpoint_ports(key, &found, wanted, reply);
        }
        let mut addresses: Vec<Ipv4Addr> = Vec::with_capacity(found.len());
        for (_, endpoint) in found {
            if !addresses.contains(&endpoint.address) {
                addresses.push(endpoint.address);
            }
        }
        self.addresses(&addresses, reply)
    }

    fn endpoint_ports(
        &self,
        key: &[u8],
        found: &[(&Slice, &Endpoint)],
        wanted: PortName<'_>,
        reply: &mut Reply<'_>,
    ) -> Found {
        let mut records: Vec<(u16, &Endpoint)> = Vec::new();
        for (slice, endpoint) in found {
            for port in slice.ports.iter().filter(|port| wanted.fits(port)) {
                let same = |(number, other): &(u16, &Endpoint)| {
                    *number == port.number && other.label == endpoint.label
                };
                if !records.iter().any(same) {
                    records.push((port.number, endpoint));
                }
            }
        }
        if records.is_empty() {
            return Found::NoData;
        }
        let weight = share(records.len());
        let mut targets = Vec::with_capacity(records.len());
        for (port, endpoint) in records {
            let target = service_name(&wire_label(&endpoint.label), key, self.names);
            let at = self.srv(weight, port, &target, reply);
            targets.push((at, target, endpoint.address));
        }
        for (at, target, address) in targets {
            self.additional(at, &target, address, reply);
        }
        Found::Records
    }

    /// Gives where the target stands.
    fn srv(&self, weight: u16, port: u16, target: &[u8], reply: &mut Reply<'_>) -> Option<u16> {
        let data = Data::Srv {
            weight,
            port,
            target,
        };
        let at = reply.record(Section::Answer, self.owner(), TTL, data)?;
        // Priority, weight and port come first.
        Some(at + 6)
    }

    fn additional(&self, at: Option<u16>, name: &[u8], address: Ipv4Addr, reply: &mut Reply<'_>) {
        let owner = match at {
            Some(at @ ..=POINTER_REACH) => Owner::At(at),
            _ => Owner::Name(name),
        };
        reply.record(Section::Additional, owner, TTL, Data::A(address));
    }

    /// Says how long the name, or this kind of record, is known not to be.
    fn negative(&self, reply: &mut Reply<'_>) {
        let before = self.name.bytes().len() - self.names.zone.bytes().len();
        let owner = match self.owner.saturating_add(before as u16) {
            at @ ..=POINTER_REACH => Owner::At(at),
            _ => Owner::Name(self.names.zone.bytes()),
        };
        let soa = self.names.soa(self.zone.serial);
        reply.record(Section::Authority, owner, TTL, Data::Soa(&soa));
    }
}

/// A weight of each of `count` records of one priority, which make 100 together.
fn share(count: usize) -> u16 {
    (100 / count.max(1)).max(1) as u16
}

/// `_port._protocol`; an empty name fits every port.
#[derive(Clone, Copy)]
struct PortName<'a> {
    name: &'a [u8],
    protocol: &'a [u8],
}

impl<'a> PortName<'a> {
    const ANY: PortName<'static> = PortName {
        name: b"",
        protocol: b"",
    };

    fn of(port: &'a [u8], protocol: &'a [u8]) -> Self {
        Self {
            name: port.strip_prefix(b"_").unwrap_or(port),
            protocol: protocol.strip_prefix(b"_").unwrap_or(protocol),
        }
    }

    fn fits(&self, port: &Port) -> bool {
        let fits = |wanted: &[u8], have: &str| wanted.is_empty() || wanted == have.as_bytes();
        fits(self.name, &port.name) && fits(self.protocol, &port.protocol)
    }

    /// A slice without ports still has addresses.
    fn fits_any(&self, slice: &Slice) -> bool {
        let any = self.name.is_empty() && self.protocol.is_empty();
        any || slice.ports.iter().any(|port| self.fits(port))
    }
}

/// `10-42-0-5`
fn spelled_address(label: &[u8]) -> Option<Ipv4Addr> {
    let text = std::str::from_utf8(label).ok()?;
    text.replace('-', ".").parse().ok()
}
