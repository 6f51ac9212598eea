//! The rules of a drill's table.
//!
//! A connection's addresses are those of its real ends in the filter hooks, where services have been
//! translated already: a pod that asks the service `kubernetes` is seen to ask an API server.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::PacketFault;
use crate::net::nftables::{
    Data, Element, Field, Hook, Key, Leads, Rule, Set, Transaction, Type, Verdict,
};

const TCP: u8 = 6;
const UDP: u8 = 17;

const INPUT: &str = "input";
const FORWARD: &str = "forward";
const OUTPUT: &str = "output";
/// What comes in, before anything was translated.
const ARRIVING: &str = "arriving";

/// Where each packet of this host passes, exactly one of them.
const FILTER: [(&str, Hook); 3] = [
    (INPUT, Hook::INPUT),
    (FORWARD, Hook::FORWARD),
    (OUTPUT, Hook::OUTPUT),
];

/// Fills the table, which is empty.
pub(super) fn write(fault: &PacketFault, transaction: &mut Transaction<'_>) {
    match fault {
        PacketFault::CutControlPlane { servers, endpoint } => {
            cut_control_plane(transaction, servers, *endpoint);
        }
        PacketFault::CutPods { pods, peers } => cut_pods(transaction, pods, peers),
        PacketFault::SilenceDns { pods, servers } => silence_dns(transaction, pods, servers),
        PacketFault::Lose { pods, percent } => lose(transaction, pods, *percent),
        // The emulator's business.
        PacketFault::Delay { .. } => {}
    }
}

fn cut_control_plane(transaction: &mut Transaction<'_>, servers: &[SocketAddrV4], endpoint: u16) {
    let by_port = [Type::Address, Type::Protocol, Type::Port];
    let own = |server: &SocketAddrV4| SocketAddrV4::new(*server.ip(), endpoint);
    add_set(
        transaction,
        "servers",
        &by_port,
        servers.iter().map(|s| place(s, TCP)),
    );
    // This node's port, as these servers connect to it.
    add_set(
        transaction,
        "endpoint",
        &by_port,
        servers.iter().map(|s| place(&own(s), TCP)),
    );
    for (chain, hook) in FILTER {
        transaction.base_chain(chain, hook);
    }
    use Field::{Destination, DestinationPort, Protocol, Source, SourcePort};
    let asked = when(&[Destination, Protocol, DestinationPort], "servers");
    let answered = when(&[Source, Protocol, SourcePort], "servers");
    for chain in [OUTPUT, FORWARD] {
        transaction.rule(chain, asked.clone().then(Verdict::Drop));
    }
    for chain in [INPUT, FORWARD] {
        transaction.rule(chain, answered.clone().then(Verdict::Drop));
    }
    let asks = when(&[Source, Protocol, DestinationPort], "endpoint");
    transaction.rule(INPUT, asks.then(Verdict::Drop));
    let answers = when(&[Destination, Protocol, SourcePort], "endpoint");
    transaction.rule(OUTPUT, answers.then(Verdict::Drop));
}

fn cut_pods(transaction: &mut Transaction<'_>, pods: &[Ipv4Addr], peers: &[Ipv4Addr]) {
    add_addresses(transaction, "pods", pods);
    add_addresses(transaction, "peers", peers);
    let one_way = |from, to| {
        let leaving = when(&[from], "pods").key(&[to]);
        let reaches = match peers.is_empty() {
            true => leaving.when_not_in("pods"),
            false => leaving.when_in("peers"),
        };
        reaches.then(Verdict::Drop)
    };
    for (chain, hook) in FILTER {
        transaction.base_chain(chain, hook);
        transaction.rule(chain, one_way(Field::Source, Field::Destination));
        transaction.rule(chain, one_way(Field::Destination, Field::Source));
    }
}

fn silence_dns(transaction: &mut Transaction<'_>, pods: &[Ipv4Addr], servers: &[SocketAddrV4]) {
    add_addresses(transaction, "pods", pods);
    let both = |server| [UDP, TCP].map(|protocol| place(server, protocol));
    add_set(
        transaction,
        "servers",
        &[Type::Address, Type::Protocol, Type::Port],
        servers.iter().flat_map(both),
    );
    transaction.base_chain(ARRIVING, Hook::RAW);
    let asks = when(&[Field::Source], "pods")
        .key(&[Field::Destination, Field::Protocol, Field::DestinationPort])
        .when_in("servers");
    transaction.rule(ARRIVING, asks.then(Verdict::Drop));
}

fn lose(transaction: &mut Transaction<'_>, pods: &[Ipv4Addr], percent: u8) {
    add_addresses(transaction, "pods", pods);
    let lost = |address| {
        let rule = when(&[address], "pods");
        rule.when_chosen(percent).then(Verdict::Drop)
    };
    transaction.base_chain(ARRIVING, Hook::RAW);
    transaction.rule(ARRIVING, lost(Field::Source));
    for (chain, hook) in [(FORWARD, Hook::FORWARD), (OUTPUT, Hook::OUTPUT)] {
        transaction.base_chain(chain, hook);
        transaction.rule(chain, lost(Field::Destination));
    }
}

fn when(key: &[Field], set: &str) -> Rule {
    Rule::default().ipv4().key(key).when_in(set)
}

fn place(socket: &SocketAddrV4, protocol: u8) -> Key {
    Key::default()
        .address(*socket.ip())
        .protocol(protocol)
        .port(socket.port())
}

fn add_addresses(transaction: &mut Transaction<'_>, name: &str, addresses: &[Ipv4Addr]) {
    let keys = addresses.iter().map(|a| Key::default().address(*a));
    add_set(transaction, name, &[Type::Address], keys);
}

fn add_set(
    transaction: &mut Transaction<'_>,
    name: &str,
    key: &[Type],
    elements: impl Iterator<Item = Key>,
) {
    transaction.set(&Set::new(name, key, Leads::Nowhere));
    let mut elements: Vec<_> = elements.collect();
    elements.sort();
    elements.dedup();
    let elements: Vec<_> = elements
        .into_iter()
        .map(|key| Element::new(key, Data::None))
        .collect();
    transaction.add(name, &elements);
}
