//! The pod network of one node.
//!
//! Every pod has an address of the node's block (`ipam`) on one end of a routed veth pair
//! (`veth`); the host's routes lead to the other end, so pods of one node reach each other and the
//! host without a bridge. What leaves the cluster is masqueraded by the node's own nftables table
//! (`nftables`). Everything is done over netlink (`netlink`), by a short-lived thread for
//! each pod: a thread that entered a pod's namespace never serves anything else.
//!
//! ```text
//! Network::open -> claim the node's block (node) -> forwarding, masquerade
//!        attach -> address (ipam) -> link (veth) -> PodAddress
//!        detach -> link removed -> address free
//! ServiceProxy::run -> services and host ports into the node's table (services)
//! PeerRoutes::run   -> routes and a tunnel to the other nodes' pods (peers)
//! answer_others     -> tells other nodes what this one's table has let go of (settling)
//! withdrawn         -> no service leads to a pod, and it has accepted what waited (backlog)
//! ```

mod backlog;
pub(crate) mod blocks;
pub mod dns;
pub(crate) mod faults;
mod host_ports;
mod ipam;
mod netlink;
mod nftables;
mod node;
mod peers;
mod presence;
mod routes;
pub mod segment;
pub mod service_watch;
mod services;
mod settling;
mod sysctl;
#[cfg(test)]
mod tests;
mod veth;

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::oneshot;

pub use blocks::ClusterBlocks;
pub use host_ports::{HostPort, host_ports};
use ipam::Addresses;
pub use ipam::IpamError;
use netlink::Netlink;
use nftables::Transaction;
use node::host_error;
pub(crate) use peers::PeerRoutes;
pub(crate) use presence::address_is_gone;
pub(crate) use services::ServiceProxy;
use services::{Owner, Services, Tables};
use settling::Others;
pub use sysctl::SettingRefused;
use veth::{LinkError, PodLink};

use crate::identity::Identity;

/// Where pods get their addresses from.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The cluster's blocks; traffic between its pods is never masqueraded.
    pub blocks: ClusterBlocks,
    /// The node's own block, `spec.podCIDR`.
    pub node_cidr: Ipv4Net,
}

/// A pod's place in the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodAddress {
    pub ip: Ipv4Addr,
    /// The host end of the pod's link.
    pub link: String,
}

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error(transparent)]
    Addresses(#[from] IpamError),
    #[error(transparent)]
    Setting(#[from] SettingRefused),
    #[error(
        "the block {block} belongs to another cluster on this host ({owner} on lo): stop that one first"
    )]
    Claimed { block: Ipv4Net, owner: String },
    #[error(
        "no two neighbouring /16 blocks of 10.0.0.0/8 are free on this host: stop a cluster, or remove routes into it"
    )]
    NoFreeBlocks,
    #[error("no /24 block of {0} is free on this host for a network of nodes")]
    NoFreeSegment(Ipv4Net),
    #[error("the pod CIDR {0} is too small: a node needs at least a /29")]
    BlockTooSmall(Ipv4Net),
    #[error("{doing}: {source}")]
    Host {
        doing: &'static str,
        source: io::Error,
    },
    #[error("network namespace {} of pod {uid}: {source}", path.display())]
    Namespace {
        uid: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("setting up link {link} of pod {uid}: {reason}")]
    Attach {
        uid: String,
        link: String,
        reason: String,
    },
    #[error("the network state in {}: {source}", path.display())]
    State { path: PathBuf, source: io::Error },
    #[error("the network thread for pod {0} ended without an answer")]
    ThreadLost(String),
}

/// The pod network of this node. Clones share it.
#[derive(Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

struct Inner {
    identity: Identity,
    blocks: ClusterBlocks,
    cidr: Ipv4Net,
    node_address: Ipv4Addr,
    /// Of the uplink, when it was last looked at.
    mtu: AtomicU32,
    /// Some nodes are reached by the tunnel only: what pods send has to fit into it.
    uses_tunnel: AtomicBool,
    others: Others,
    addresses: Mutex<Addresses>,
    services: Arc<Services>,
}

impl Network {
    /// Makes the node ready for pods: its block claimed, forwarding on, masquerading in force.
    /// What an earlier process of the same data directory set up is taken over.
    ///
    /// # Errors
    /// When the host forbids forwarding, no block is free, or state can't be read. A host
    /// without nftables only gets a warning: its pods reach each other but not the outside.
    pub async fn open(identity: Identity, config: NetworkConfig) -> Result<Self, NetworkError> {
        blocking("open", move || Self::open_blocking(identity, config)).await?
    }

    fn open_blocking(identity: Identity, config: NetworkConfig) -> Result<Self, NetworkError> {
        let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
        node::prepare(&host)?;
        node::forward_from_uplink(&host)?;
        let cidr = config.node_cidr;
        let moved = claim_block(&host, &identity, &config)?;
        let addresses = Addresses::open(state_dir(&identity).join("addresses"), cidr)?;
        let node_address = node::node_address(cidr)?;
        routes::refuse_strays(&host, &identity, config.blocks.pods)?;
        let layout = services::Blocks {
            cluster: config.blocks.pods,
            services: config.blocks.services,
            node: cidr,
            node_address,
            link_group: identity.link_group(),
        };
        let table = identity.nft_table();
        let tables = match Tables::open(table.clone(), layout, moved) {
            Ok(tables) => {
                routes::lead_services(&host, &identity, config.blocks.services, node_address)?;
                Some(tables)
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    table,
                    "nftables refused the node's table: pods reach neither services nor anything outside of the cluster"
                );
                None
            }
        };
        Ok(Self {
            inner: Arc::new(Inner {
                cidr,
                blocks: config.blocks,
                uses_tunnel: AtomicBool::new(false),
                others: Others::default(),
                services: Arc::new(Services::new(tables)),
                node_address,
                mtu: AtomicU32::new(node::uplink_mtu(&host)?),
                addresses: Mutex::new(addresses),
                identity,
            }),
        })
    }

    /// The block that this node had when an agent last ran.
    ///
    /// # Errors
    /// When the record can't be read.
    pub async fn recorded_block(identity: &Identity) -> Result<Option<Ipv4Net>, NetworkError> {
        let identity = identity.clone();
        blocking("recorded block", move || recorded_block(&identity)).await?
    }

    /// The node's block.
    pub fn cidr(&self) -> Ipv4Net {
        self.inner.cidr
    }

    /// The node as its pods see it.
    pub fn node_address(&self) -> Ipv4Addr {
        self.inner.node_address
    }

    /// The address of a pod that has one.
    pub fn address(&self, uid: &str) -> Option<PodAddress> {
        let ip = self.inner.addresses().get(uid)?;
        Some(self.inner.pod_address(ip))
    }

    /// What leads the services' addresses to pods, to be run and to be told of services.
    pub(crate) fn service_proxy(&self, node_name: String) -> ServiceProxy {
        ServiceProxy::new(self.inner.services.clone(), node_name, self.inner.cidr)
    }

    /// Leads all ports of a service to one socket of this node, whatever its endpoints. The socket's
    /// address must not be one of 127.0.0.0/8.
    pub fn lead_service_to_socket(&self, namespace: &str, name: &str, socket: SocketAddrV4) {
        let service = services::ServiceName::new(namespace, name);
        self.inner.services.lead_to_socket(service, socket);
    }

    /// What keeps the way to other nodes' pods, to be run. This node is reached by `address`.
    pub(crate) fn peer_routes(&self, node_name: String, address: IpAddr) -> PeerRoutes {
        PeerRoutes {
            network: self.inner.clone(),
            node_name,
            address,
        }
    }

    /// Resolves when no service leads to the pod any more: this node's table has let go of it, and so have those of
    /// all other nodes that can say so; and the pod has accepted what was led to it before. `namespace` is its
    /// own network namespace, pinned.
    pub(crate) async fn withdrawn(&self, pod: &Pod, namespace: Option<&Path>) {
        let inner = &self.inner;
        let Some(revision) = inner.services.withdrawn(pod).await else {
            return;
        };
        inner.others.settled(inner.node_address, revision).await;
        if let Some(namespace) = namespace
            && let Err(error) = backlog::emptied(namespace).await
        {
            let pod = pod.metadata.name.as_deref();
            tracing::warn!(pod, %error, "can't see whether connections to a pod that ends wait to be accepted");
        }
    }

    /// Tells the other nodes what this one's table has let go of, until it is dropped.
    pub(crate) async fn answer_others(self) {
        let inner = &self.inner;
        let committed = inner.services.withdrawal.subscribe();
        let answered = inner.others.answer(inner.node_address, committed).await;
        if let Err(error) = answered {
            tracing::error!(%error, "other nodes' questions can't be answered: their pods take longer to end");
        }
    }

    /// Gives the pod an address, connects its network namespace, pinned at `netns`, and leads the
    /// ports of the host to it. A pod that is connected already keeps its address and its link.
    ///
    /// # Errors
    /// When no address is free or the kernel refuses a step; then nothing is left behind.
    pub async fn attach(
        &self,
        uid: &str,
        netns: &Path,
        ports: Vec<HostPort>,
    ) -> Result<PodAddress, NetworkError> {
        let inner = self.inner.clone();
        let (owned, netns) = (uid.to_owned(), netns.to_owned());
        let attached = on_own_thread(uid.to_owned(), move || inner.attach(&owned, &netns)).await?;
        // Not on that thread: it is in the pod's namespace by now.
        let (inner, owned) = (self.inner.clone(), uid.to_owned());
        let address = attached.ip;
        blocking(uid, move || inner.lead_host_ports(&owned, address, &ports)).await??;
        Ok(attached)
    }

    /// Disconnects the pod and takes its address back. Nothing happens when it has none.
    pub async fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        let inner = self.inner.clone();
        let owned = uid.to_owned();
        blocking(uid, move || inner.detach(&owned)).await?
    }

    /// Disconnects every pod that is not among `known`, which are given with their ports of the host,
    /// and removes links without an address. To be called before any pod is attached.
    pub async fn reconcile(
        &self,
        known: HashMap<String, Vec<HostPort>>,
    ) -> Result<(), NetworkError> {
        let inner = self.inner.clone();
        blocking("reconcile", move || inner.reconcile(&known)).await?
    }

    /// Removes everything that the network of this identity left on the host: links with their
    /// routes, the claim on its block, the nftables table. State in the data directory stays.
    ///
    /// # Errors
    /// When something could not be removed; what comes after it may remain too.
    pub async fn purge(identity: Identity) -> Result<(), NetworkError> {
        blocking("purge", move || purge_blocking(&identity)).await?
    }
}

impl Inner {
    fn attach(&self, uid: &str, netns: &Path) -> Result<PodAddress, NetworkError> {
        let namespace = File::open(netns).map_err(|source| NetworkError::Namespace {
            uid: uid.to_owned(),
            path: netns.to_owned(),
            source,
        })?;
        let address = self.addresses().allocate(uid)?;
        let pod = self.pod_address(address);
        let link = PodLink {
            name: pod.link.clone(),
            group: self.identity.link_group(),
            uid: uid.to_owned(),
            address,
            node_address: self.node_address,
            mtu: self.pod_mtu(),
        };
        match link.set_up(&OwnedFd::from(namespace)) {
            Ok(()) => Ok(pod),
            Err(error) => Err(self.give_up(uid, pod.link, error)),
        }
    }

    fn pod_mtu(&self) -> u32 {
        let mtu = self.mtu.load(Ordering::Relaxed);
        match self.uses_tunnel.load(Ordering::Relaxed) {
            true => mtu.saturating_sub(peers::OVERHEAD),
            false => mtu,
        }
    }

    /// Leads the host's ports to the pod.
    fn lead_host_ports(
        &self,
        uid: &str,
        pod: Ipv4Addr,
        ports: &[HostPort],
    ) -> Result<(), NetworkError> {
        if ports.is_empty() {
            return Ok(());
        }
        let program = host_ports::program(pod, ports);
        let update = (Owner::Pod(uid.into()), Some(program));
        let led = self.services.apply([update]);
        led.map_err(host_error("leading the host's ports to a pod"))
    }

    fn give_up(&self, uid: &str, link: String, error: LinkError) -> NetworkError {
        if let Err(error) = self.addresses().release(uid) {
            tracing::warn!(pod = uid, %error, "could not take back the address of a pod");
        }
        NetworkError::Attach {
            uid: uid.to_owned(),
            link,
            reason: error.to_string(),
        }
    }

    fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        let Some(address) = self.addresses().get(uid) else {
            return Ok(());
        };
        let ports_end = (Owner::Pod(uid.into()), None);
        self.services
            .apply([ports_end])
            .map_err(host_error("ending a pod's host ports"))?;
        let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
        let name = self.identity.link(address);
        let found =
            veth::find_link(&host, &name).map_err(host_error("looking for a pod's link"))?;
        if let Some(link) = found {
            veth::delete_link(&host, link.index).map_err(host_error("removing a pod's link"))?;
        }
        self.services.withdrawal.forget(uid);
        Ok(self.addresses().release(uid)?)
    }

    fn reconcile(&self, known: &HashMap<String, Vec<HostPort>>) -> Result<(), NetworkError> {
        let strangers = self.addresses().strangers(&known.keys().cloned().collect());
        for uid in strangers {
            self.detach(&uid)?;
        }
        for (uid, ports) in known {
            let address = self.addresses().get(uid);
            if let Some(address) = address {
                self.lead_host_ports(uid, address, ports)?;
            }
        }
        // Links are listed before the addresses: a pod that attaches meanwhile is not touched.
        let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
        let links = veth::all_links(&host).map_err(host_error("listing links"))?;
        let wanted: HashSet<String> = self
            .addresses()
            .addresses()
            .into_iter()
            .map(|address| self.identity.link(address))
            .collect();
        let (prefix, tunnel) = (self.identity.link_prefix(), self.identity.tunnel_link());
        for link in links {
            let ours = link.name.starts_with(&prefix) && link.name != tunnel;
            if ours && !wanted.contains(&link.name) {
                veth::delete_link(&host, link.index)
                    .map_err(host_error("removing an orphaned link"))?;
            }
        }
        Ok(())
    }

    fn pod_address(&self, ip: Ipv4Addr) -> PodAddress {
        PodAddress {
            ip,
            link: self.identity.link(ip),
        }
    }

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        // Its methods change memory only after the disk, so a panic leaves it consistent.
        self.addresses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The address that a pod of this node was given, read from the disk: for when no agent runs.
/// Blocking.
///
/// # Errors
/// When the records can't be read.
pub fn recorded_address(identity: &Identity, uid: &str) -> Result<Option<Ipv4Addr>, IpamError> {
    ipam::recorded(&state_dir(identity).join("addresses"), uid)
}

fn recorded_block(identity: &Identity) -> Result<Option<Ipv4Net>, NetworkError> {
    let path = state_dir(identity).join("cidr");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.trim().parse().ok().map(|block: Ipv4Net| block.trunc())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(NetworkError::State { path, source }),
    }
}

/// Claims the node's block, gives up what it had before, and records it. Gives whether the node had
/// another one before.
fn claim_block(
    host: &Netlink,
    identity: &Identity,
    config: &NetworkConfig,
) -> Result<bool, NetworkError> {
    let block = config.node_cidr;
    let ours = node::node_address(block)?;
    let services = config.blocks.services;
    node::hold(host, identity, services, services.network())?;
    node::hold(host, identity, block, ours)?;
    let kept = [ours, services.network(), config.blocks.pods.network()];
    node::release_others(host, identity, &kept)?;

    let directory = state_dir(identity);
    let path = directory.join("cidr");
    let state = |source| NetworkError::State {
        path: path.clone(),
        source,
    };
    fs::create_dir_all(&directory).map_err(state)?;
    let moved = recorded_block(identity)? != Some(block);
    if moved {
        let new = directory.join("cidr.new");
        fs::write(&new, format!("{block}\n")).map_err(state)?;
        fs::rename(&new, &path).map_err(state)?;
    }
    Ok(moved)
}

/// `<data>/agent/network`
fn state_dir(identity: &Identity) -> PathBuf {
    identity.agent_root().join("network")
}

fn purge_blocking(identity: &Identity) -> Result<(), NetworkError> {
    let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
    veth::delete_group(&host, identity.link_group()).map_err(host_error("removing links"))?;
    node::release_claims(&host, identity)?;
    routes::remove_all(&host, identity)?;
    faults::undo_all(identity).map_err(host_error("removing the nftables tables of drills"))?;
    let table = identity.nft_table();
    let mut transaction = Transaction::on(&table);
    transaction.delete_table();
    match transaction.commit() {
        Ok(()) => Ok(()),
        // No such table, or a kernel without nftables: nothing to remove.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL)
            ) =>
        {
            Ok(())
        }
        Err(source) => Err(host_error("removing the nftables table")(source)),
    }
}

/// Runs what may enter a pod's namespace on a thread that ends with it.
async fn on_own_thread<T: Send + 'static>(
    uid: String,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let (done, answer) = oneshot::channel();
    std::thread::Builder::new()
        .name("pod-network".into())
        .stack_size(256 * 1024)
        .spawn(move || {
            // The receiver is gone when the caller was cancelled; detach undoes the work.
            let _ = done.send(work());
        })
        .map_err(host_error("starting a network thread"))?;
    answer.await.map_err(|_| NetworkError::ThreadLost(uid))?
}

async fn blocking<T: Send + 'static>(
    subject: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NetworkError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| NetworkError::ThreadLost(subject.to_owned()))
}
