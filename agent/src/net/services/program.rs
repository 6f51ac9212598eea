//! What one owner (a service, a pod with host ports, the other nodes) asks of the node's table.
//!
//! A program says what shall be looked up where ([`Entry`] to [`Target`]) and how packets go on from
//! there ([`Chain`]). It knows nothing of netlink: programs are compared to find what changed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;

/// Who asks. The first in this order wins where two ask for the same entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::net) enum Owner {
    /// The other nodes of the cluster.
    Peers,
    Service(ServiceName),
    /// A pod of this node, by its uid.
    Pod(Arc<str>),
}

/// The name of a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::net) struct ServiceName {
    pub(in crate::net) namespace: Arc<str>,
    pub(in crate::net) name: Arc<str>,
}

impl ServiceName {
    pub(in crate::net) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The transport protocols of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::net) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// TCP for what is not given; `None` for what no service may have.
    pub(in crate::net) fn named(name: Option<&str>) -> Option<Self> {
        match name {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    /// As IP headers say it.
    pub(in crate::net) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    pub(in crate::net) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Where packets go: an address, a protocol and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::net) struct Frontend {
    /// `None` for every address of this host.
    pub(in crate::net) address: Option<Ipv4Addr>,
    pub(in crate::net) protocol: Protocol,
    pub(in crate::net) port: u16,
}

/// What can be looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::net) enum Entry {
    /// Packets to it go to endpoints.
    Served(Frontend),
    /// Packets to it reach nobody.
    Unserved(Frontend),
    /// Packets to it go to one endpoint: a pod's host port.
    HostPort(Frontend),
    /// Packets that were sent to it keep their source.
    KeepSource(Frontend),
    /// An address of the service block that is given out.
    ClusterAddress(Ipv4Addr),
    /// A pod of this node that may reach itself through a service.
    Hairpin(Ipv4Addr),
    /// A node that knows the way to this node's pods.
    Peer(Ipv4Addr),
}

/// What an entry leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) enum Target {
    Present,
    Chain(Arc<str>),
    Endpoint(SocketAddrV4),
    Reject,
    Drop,
}

/// How packets go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::net) enum Chain {
    /// To one of the endpoints, which are never none; with an affinity to the one that this client had
    /// within that time.
    Spread {
        endpoints: Vec<SocketAddrV4>,
        affinity: Option<Duration>,
    },
    /// From the cluster itself to `all`, from elsewhere to `local`, if there is one.
    Outside {
        all: Arc<str>,
        local: Option<Arc<str>>,
    },
    /// From these sources on, from others nowhere.
    Gate { sources: Vec<Ipv4Net>, to: Arc<str> },
}

/// What one owner asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::net) struct Program {
    pub(in crate::net) chains: BTreeMap<Arc<str>, Chain>,
    pub(in crate::net) entries: BTreeMap<Entry, Target>,
    /// Where the packets of UDP frontends may go: connections that go elsewhere are stale.
    pub(in crate::net) udp: BTreeMap<Frontend, Vec<SocketAddrV4>>,
}

impl Program {
    pub(in crate::net) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.entries.is_empty()
    }

    /// Where packets may be led.
    pub(in crate::net) fn endpoints(&self) -> impl Iterator<Item = &SocketAddrV4> {
        let spread = self.chains.values().filter_map(|chain| match chain {
            Chain::Spread { endpoints, .. } => Some(endpoints),
            Chain::Outside { .. } | Chain::Gate { .. } => None,
        });
        let alone = self.entries.values().filter_map(|target| match target {
            Target::Endpoint(endpoint) => Some(endpoint),
            _ => None,
        });
        spread.flatten().chain(alone)
    }
}
