//! How a node's table is laid out, and how programs are written into it.
//!
//! ```text
//! prerouting, output (nat) -> services: one look-up for addresses, one for node ports and one for
//!                             host ports; each leads to a chain of the service, or to the pod
//! postrouting (nat)        -> redirected: who needs another source; else masquerade what leaves
//!                             the cluster
//! input, forward, output   -> unserved: addresses without endpoints, and the rest of the service
//!                             block, are refused
//! ```
//!
//! Only the first packet of a connection goes through the nat chains. A look-up costs the same whatever
//! the number of services.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::program::{Chain, Entry, Frontend, Target};
use crate::net::nftables::{
    Data, Element, Field, Hook, Key, Leads, Rule, Set, Transaction, Type, Verdict,
};
use ipnet::Ipv4Net;

const SERVICE_IPS: &str = "service-ips";
const SERVICE_PORTS: &str = "service-node-ports";
const HOST_IPS: &str = "host-port-ips";
const HOST_PORTS: &str = "host-ports";
const UNSERVED_IPS: &str = "unserved-ips";
const UNSERVED_PORTS: &str = "unserved-node-ports";
const KEEP_SOURCE_IPS: &str = "keep-source-ips";
const KEEP_SOURCE_PORTS: &str = "keep-source-ports";
const CLUSTER_IPS: &str = "cluster-ips";
const HAIRPIN: &str = "hairpin";
const PEERS: &str = "peers";

const BY_ADDRESS: &[Type] = &[Type::Address, Type::Protocol, Type::Port];
const BY_PORT: &[Type] = &[Type::Protocol, Type::Port];
const LOOPBACK: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8);
/// Clients that one port of a service remembers.
const AFFINITY_SIZE: u32 = 65_536;

/// What the table's fixed part depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::net) struct Blocks {
    pub(in crate::net) cluster: Ipv4Net,
    pub(in crate::net) services: Ipv4Net,
    pub(in crate::net) node: Ipv4Net,
    pub(in crate::net) node_address: Ipv4Addr,
    /// The group of the pods' links.
    pub(in crate::net) link_group: u32,
}

/// Everything that is there whatever the services are.
pub(super) fn foundation(transaction: &mut Transaction<'_>, blocks: &Blocks) {
    for set in sets() {
        transaction.set(&set);
    }
    for chain in ["services", "redirected", "as-node", "unserved", "refuse"] {
        transaction.chain(chain);
    }
    for (name, hook) in [
        ("guard", Hook::RAW),
        ("prerouting", Hook::DESTINATION_NAT),
        ("output", Hook::OUTPUT_NAT),
        ("postrouting", Hook::SOURCE_NAT),
        ("filter-input", Hook::INPUT),
        ("filter-forward", Hook::FORWARD),
        ("filter-output", Hook::OUTPUT),
    ] {
        transaction.base_chain(name, hook);
    }
    // A pod never speaks to the host's own loopback, although answers from host ports may go there.
    let forged = Rule::default()
        .through_group(blocks.link_group)
        .ipv4()
        .inside(Field::Destination, LOOPBACK);
    transaction.rule("guard", forged.then(Verdict::Drop));
    let to_services = Rule::default().ipv4().then(jump("services"));
    for chain in ["prerouting", "output"] {
        transaction.rule(chain, to_services.clone());
    }
    services(transaction);
    source_nat(transaction, blocks);
    let unserved = Rule::default().when_new().ipv4().then(jump("unserved"));
    for chain in ["filter-input", "filter-forward", "filter-output"] {
        transaction.rule(chain, unserved.clone());
    }
    refusals(transaction, blocks);
}

fn sets() -> [Set; 11] {
    let set = |name, key| Set::new(name, key, Leads::Nowhere);
    [
        Set::new(SERVICE_IPS, BY_ADDRESS, Leads::ToVerdict),
        Set::new(SERVICE_PORTS, BY_PORT, Leads::ToVerdict),
        Set::new(HOST_IPS, BY_ADDRESS, Leads::ToEndpoint),
        Set::new(HOST_PORTS, BY_PORT, Leads::ToEndpoint),
        Set::new(UNSERVED_IPS, BY_ADDRESS, Leads::ToVerdict),
        Set::new(UNSERVED_PORTS, BY_PORT, Leads::ToVerdict),
        set(KEEP_SOURCE_IPS, BY_ADDRESS),
        set(KEEP_SOURCE_PORTS, BY_PORT),
        set(CLUSTER_IPS, &[Type::Address]),
        set(HAIRPIN, &[Type::Address, Type::Address]),
        set(PEERS, &[Type::Address]),
    ]
}

const TO_ADDRESS: &[Field] = &[Field::Destination, Field::Protocol, Field::DestinationPort];
const TO_PORT: &[Field] = &[Field::Protocol, Field::DestinationPort];

fn services(transaction: &mut Transaction<'_>) {
    let mut rule = |rule| transaction.rule("services", rule);
    rule(Rule::default().key(TO_ADDRESS).follow(SERVICE_IPS));
    rule(Rule::default().key(TO_ADDRESS).find(HOST_IPS).redirect());
    let local = || Rule::default().when_local(Field::Destination);
    rule(
        local()
            .outside(Field::Destination, LOOPBACK)
            .key(TO_PORT)
            .follow(SERVICE_PORTS),
    );
    rule(local().key(TO_PORT).find(HOST_PORTS).redirect());
}

fn source_nat(transaction: &mut Transaction<'_>, blocks: &Blocks) {
    let mut rule = |rule| transaction.rule("postrouting", rule);
    rule(Rule::default().not_ipv4().then(Verdict::Accept));
    rule(Rule::default().when_redirected().then(goto("redirected")));
    let leaving = Rule::default()
        .inside(Field::Source, blocks.node)
        .outside(Field::Destination, blocks.cluster)
        .key(&[Field::Destination])
        .when_not_in(PEERS);
    rule(leaving.masquerade());

    let mut rule = |rule| transaction.rule("redirected", rule);
    // A pod that reaches itself must see somebody else, or its answer would not come back here.
    let to_itself = Rule::default().key(&[Field::Source, Field::Destination]);
    rule(to_itself.when_in(HAIRPIN).send_from(blocks.node_address));
    // The same for a process of the host whose source is its loopback address.
    let from_loopback = Rule::default().inside(Field::Source, LOOPBACK);
    rule(from_loopback.then(goto("as-node")));
    let to_host = Rule::default().when_local(Field::Destination);
    rule(to_host.then(Verdict::Accept));
    let in_cluster = Rule::default().inside(Field::Source, blocks.cluster);
    let between_pods = in_cluster
        .clone()
        .inside(Field::Destination, blocks.cluster);
    rule(between_pods.then(Verdict::Accept));
    let to_peer = in_cluster.key(&[Field::Destination]).when_in(PEERS);
    rule(to_peer.then(Verdict::Accept));
    let from_host = Rule::default().when_local(Field::Source);
    rule(from_host.then(goto("as-node")));
    let sent_to = [
        Field::OriginalDestination,
        Field::Protocol,
        Field::OriginalPort,
    ];
    let kept = Rule::default().key(&sent_to).when_in(KEEP_SOURCE_IPS);
    rule(kept.then(Verdict::Accept));
    let kept = Rule::default()
        .outside(Field::OriginalDestination, blocks.services)
        .key(&[Field::Protocol, Field::OriginalPort])
        .when_in(KEEP_SOURCE_PORTS);
    rule(kept.then(Verdict::Accept));
    rule(Rule::default().then(goto("as-node")));

    let mut rule = |rule| transaction.rule("as-node", rule);
    let to_pod = Rule::default().inside(Field::Destination, blocks.cluster);
    rule(to_pod.send_from(blocks.node_address));
    rule(Rule::default().masquerade());
}

fn refusals(transaction: &mut Transaction<'_>, blocks: &Blocks) {
    // A reset reaches a process of the host too, which holds its socket while the answer comes.
    transaction.rule("refuse", Rule::default().reset());
    transaction.rule("refuse", Rule::default().reject());
    let mut rule = |rule| transaction.rule("unserved", rule);
    rule(Rule::default().key(TO_ADDRESS).follow(UNSERVED_IPS));
    let local = Rule::default().when_local(Field::Destination);
    rule(local.key(TO_PORT).follow(UNSERVED_PORTS));
    let in_block = Rule::default().inside(Field::Destination, blocks.services);
    let other_port = in_block.clone().key(&[Field::Destination]);
    rule(other_port.when_in(CLUSTER_IPS).then(goto("refuse")));
    rule(in_block.then(Verdict::Drop));
}

fn jump(chain: &str) -> Verdict {
    Verdict::Jump(chain.to_owned())
}

fn goto(chain: &str) -> Verdict {
    Verdict::Goto(chain.to_owned())
}

/// Where clients of a chain with affinity are remembered.
pub(super) fn affinity_map(chain: &str, lasting: Duration) -> Set {
    let name = affinity_name(chain);
    Set::new(name, &[Type::Address], Leads::ToEndpoint).dynamic(lasting, AFFINITY_SIZE)
}

pub(super) fn affinity_name(chain: &str) -> String {
    format!("affinity-{chain}")
}

/// The rules of a service's chain.
pub(super) fn rules(name: &str, chain: &Chain, blocks: &Blocks) -> Vec<Rule> {
    match chain {
        Chain::Spread {
            endpoints,
            affinity: None,
        } => vec![Rule::default().choose(endpoints).redirect()],
        Chain::Spread {
            endpoints,
            affinity: Some(lasting),
        } => {
            let map = affinity_name(name);
            let client = || Rule::default().key(&[Field::Source]);
            let again = client().find(&map).found_is_among(endpoints);
            let first = client().choose(endpoints).forget(&map);
            vec![
                again.remember(&map, *lasting).redirect(),
                first.remember(&map, *lasting).redirect(),
            ]
        }
        Chain::Outside { all, local } => {
            let pods = Rule::default().inside(Field::Source, blocks.cluster);
            let host = Rule::default().when_local(Field::Source);
            let mut rules = vec![pods.then(goto(all)), host.then(goto(all))];
            rules.extend(
                local
                    .as_ref()
                    .map(|local| Rule::default().then(goto(local))),
            );
            rules
        }
        Chain::Gate { sources, to } => {
            let from =
                |range: &Ipv4Net| Rule::default().inside(Field::Source, *range).then(goto(to));
            let others = Rule::default().then(Verdict::Drop);
            sources.iter().map(from).chain([others]).collect()
        }
    }
}

/// The set that an entry is an element of, and the element.
pub(super) fn element(entry: &Entry, target: &Target) -> (&'static str, Element) {
    let (set, key) = place(entry);
    let data = match target {
        Target::Present => Data::None,
        Target::Chain(chain) => Data::Verdict(goto(chain)),
        Target::Endpoint(endpoint) => Data::Endpoint(*endpoint),
        Target::Reject => Data::Verdict(goto("refuse")),
        Target::Drop => Data::Verdict(Verdict::Drop),
    };
    (set, Element::new(key, data))
}

fn place(entry: &Entry) -> (&'static str, Key) {
    let by = |frontend: &Frontend, ips, ports| {
        let key = match frontend.address {
            Some(address) => Key::default().address(address),
            None => Key::default(),
        };
        let set = frontend.address.map_or(ports, |_| ips);
        let key = key.protocol(frontend.protocol.number());
        (set, key.port(frontend.port))
    };
    match entry {
        Entry::Served(frontend) => by(frontend, SERVICE_IPS, SERVICE_PORTS),
        Entry::Unserved(frontend) => by(frontend, UNSERVED_IPS, UNSERVED_PORTS),
        Entry::HostPort(frontend) => by(frontend, HOST_IPS, HOST_PORTS),
        Entry::KeepSource(frontend) => by(frontend, KEEP_SOURCE_IPS, KEEP_SOURCE_PORTS),
        Entry::ClusterAddress(address) => (CLUSTER_IPS, Key::default().address(*address)),
        Entry::Hairpin(pod) => (HAIRPIN, Key::default().address(*pod).address(*pod)),
        Entry::Peer(node) => (PEERS, Key::default().address(*node)),
    }
}
