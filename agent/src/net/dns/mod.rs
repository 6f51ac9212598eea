//! The node's DNS server: names of the cluster, and everything else from the host's own resolvers.
//!
//! ```text
//! service_watch -> feed -> zone ─┐                       ┌─> upstreams (the host's resolv.conf)
//! client -> server ──────────────┴─> lookup ─> answer    │
//!                └── not the cluster's ──> cache ──> forward
//! ```
//!
//! Pods ask the cluster's DNS address; the node's service rules lead that to this server, so a pod never waits for
//! another node. What it knows is in memory ([`zone`]), so it goes on answering while the control plane is away, and a copy
//! on disk ([`feed`]) lets even an agent answer that starts meanwhile.
//!
//! The messages are read and written here ([`message`], [`relay`]) rather than by a DNS library: an answer is written
//! straight from the zone into the buffer that is sent, an answer from further up stays the bytes that it is, and no
//! record type has to be understood to be handed on. An independent implementation checks all of it in the tests.

mod cache;
mod feed;
mod forward;
mod lookup;
mod message;
mod name;
mod relay;
pub mod resolv_conf;
mod server;
#[cfg(test)]
mod tests;
mod upstreams;
mod zone;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::service_watch::{Change, Observer};
use crate::logs::Watcher;
use feed::Feed;
use forward::Forwarder;
use ipnet::Ipv4Net;
use lookup::Names;
use name::Name;
use server::{Server, Sockets};
use upstreams::Follow;
use zone::{ServiceKind, Zone};

/// The domain of the cluster's names.
pub const CLUSTER_DOMAIN: &str = "cluster.local";

/// UDP sockets: more than the processors that a small host has gain nothing.
const MOST_SOCKETS: usize = 4;

/// What a node's DNS server has to be told.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// An address of this node alone.
    pub listen: Ipv4Addr,
    /// The address of the cluster's DNS service, by which pods ask.
    pub cluster_address: Ipv4Addr,
    /// Blocks of pods' and services' addresses: no other server is asked for their names.
    pub blocks: Vec<Ipv4Net>,
    /// Names the host's resolvers; `/etc/resolv.conf` as a rule.
    pub resolv_conf: PathBuf,
    /// Where a copy of the cluster's names is kept.
    pub copy: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("cannot serve DNS on {address}: {source}")]
    Listen {
        address: Ipv4Addr,
        source: io::Error,
    },
}

/// A DNS server that has its sockets; [`Dns::run`] serves.
pub struct Dns {
    config: DnsConfig,
    sockets: Sockets,
    zone: Arc<RwLock<Zone>>,
    changed: Arc<Notify>,
    complete: Arc<watch::Sender<bool>>,
}

impl Dns {
    /// Takes the address, and what an earlier server of this node knew.
    ///
    /// # Errors
    /// When the host has no such address, or every port of it is taken.
    pub async fn bind(config: DnsConfig) -> Result<Self, DnsError> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let sockets = Sockets::bind(config.listen, cpus.min(MOST_SOCKETS));
        let sockets = sockets.map_err(|source| DnsError::Listen {
            address: config.listen,
            source,
        })?;
        let copy = config.copy.clone();
        let zone = tokio::task::spawn_blocking(move || feed::load(&copy)).await;
        let zone = zone.unwrap_or_default();
        Ok(Self {
            config,
            sockets,
            complete: Arc::new(watch::channel(zone.complete).0),
            zone: Arc::new(RwLock::new(zone)),
            changed: Arc::default(),
        })
    }

    /// Where it listens, on UDP and TCP: port 53 if that was free.
    pub fn address(&self) -> SocketAddr {
        self.sockets.address
    }

    /// Takes the cluster's names in.
    pub fn observer(&self) -> Observer {
        let mut feed = Feed::new(self.zone.clone(), self.changed.clone());
        let complete = self.complete.clone();
        Box::new(move |change| {
            feed.take(change);
            if matches!(change, Change::Complete) {
                complete.send_replace(true);
            }
        })
    }

    /// What it knows of services, for others on this node.
    pub fn directory(&self) -> Directory {
        Directory {
            zone: self.zone.clone(),
            complete: self.complete.subscribe(),
        }
    }

    /// Serves until `stop` is cancelled.
    pub async fn run(self, watcher: Watcher, stop: CancellationToken) {
        let Self {
            config,
            sockets,
            zone,
            changed,
            ..
        } = self;
        let (sender, servers) = watch::channel(Arc::from([]));
        let follow = Follow {
            file: config.resolv_conf,
            own: vec![
                IpAddr::V4(config.listen),
                IpAddr::V4(config.cluster_address),
            ],
            servers: sender,
        };
        // Before the first query, so that none is refused for want of a server.
        follow.read().await;
        let forwarder = Arc::new(Forwarder::new(servers));
        let names = Names::new(&cluster_domain(), config.cluster_address, config.blocks);
        let server = Server::new(zone.clone(), names, forwarder.clone(), stop.clone());
        let beside = async {
            tokio::join!(
                follow.run(watcher),
                forwarder.follow_servers(),
                feed::keep_copy(zone, config.copy, changed),
            );
        };
        tokio::join!(
            Arc::new(server).run(sockets),
            stop.run_until_cancelled(beside),
        );
    }
}

fn cluster_domain() -> Name {
    Name::parse(CLUSTER_DOMAIN).unwrap_or_else(|_| unreachable!("a constant that is a name"))
}

/// The services that this node knows. Cheap to clone.
#[derive(Clone)]
pub struct Directory {
    zone: Arc<RwLock<Zone>>,
    complete: watch::Receiver<bool>,
}

/// A service that has an address of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAddress {
    pub name: String,
    pub address: Ipv4Addr,
    pub ports: Vec<ServicePort>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty when it has none.
    pub name: String,
    /// In lower case.
    pub protocol: String,
    pub number: u16,
}

impl Directory {
    /// Resolves once all services are known.
    pub async fn known(&self) {
        // An error means that the server ended, and the agent with it.
        let _ = self.complete.clone().wait_for(|complete| *complete).await;
    }

    /// The services of a namespace that have addresses, by name; `None` as long as not all are known.
    pub fn services(&self, namespace: &str) -> Option<Vec<ServiceAddress>> {
        let zone = self.zone.read().unwrap_or_else(PoisonError::into_inner);
        if !zone.complete {
            return None;
        }
        let entries = zone.named_entries();
        let own = entries.filter(|(name, _)| name.namespace == namespace);
        let mut found: Vec<_> = own
            .filter_map(|(name, entry)| {
                let service = entry.service.as_ref()?;
                let ServiceKind::ClusterIp(addresses) = &service.kind else {
                    return None;
                };
                let ports = service.ports.iter().map(|port| ServicePort {
                    name: port.name.to_string(),
                    protocol: port.protocol.to_string(),
                    number: port.number,
                });
                Some(ServiceAddress {
                    name: name.name,
                    address: *addresses.first()?,
                    ports: ports.collect(),
                })
            })
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Some(found)
    }
}
