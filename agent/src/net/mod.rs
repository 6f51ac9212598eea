//! The pod network of one node.
//!
//! Every pod has an address of the node's block (`ipam`) on one end of a routed veth pair
//! (`veth`); the host's routes lead to the other end, so pods of one node reach each other and the
//! host without a bridge. What leaves the cluster is masqueraded by the node's own nftables table
//! (`nftables`). Everything is done over netlink (`netlink`), by a short-lived thread for
//! each pod: a thread that entered a pod's namespace never serves anything else.
//!
//! ```text
//! Network::open -> claim a block (node) -> forwarding, masquerade
//!        attach -> address (ipam) -> link (veth) -> PodAddress
//!        detach -> link removed -> address free
//! ```

mod cidr;
pub mod dns;
mod ipam;
mod netlink;
mod nftables;
mod node;
pub mod service_watch;
#[cfg(test)]
mod tests;
mod veth;

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

pub use cidr::{Cidr, InvalidCidr};
use ipam::Addresses;
pub use ipam::IpamError;
use netlink::Netlink;
use nftables::{Address, Hook, Rule, Transaction};
use node::host_error;
use veth::{LinkError, PodLink};

use crate::identity::Identity;

/// Where pods get their addresses from.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The whole cluster's pods; traffic inside it is never masqueraded.
    pub cluster_cidr: Cidr,
    /// The node's own block (`spec.podCIDR`); when there is none, the one that this node had
    /// before, or a free one of [`NetworkConfig::block_prefix`] bits is chosen.
    pub node_cidr: Option<Cidr>,
    /// 22 leaves room for 1,021 pods.
    pub block_prefix: u8,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            cluster_cidr: Cidr::containing(Ipv4Addr::new(10, 42, 0, 0), 16),
            node_cidr: None,
            block_prefix: 22,
        }
    }
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
    #[error(
        "turning on IPv4 forwarding: {0}; pods can't reach anything without it: set net.ipv4.ip_forward=1 on this host"
    )]
    Forwarding(#[source] io::Error),
    #[error("the pod CIDR {block} belongs to another cluster on this host ({owner} on lo)")]
    Claimed { block: Cidr, owner: String },
    #[error(
        "none of the {count} pod CIDRs in {cluster} is free on this host: stop a cluster, or remove routes into {cluster}"
    )]
    NoFreeBlock { cluster: Cidr, count: usize },
    #[error("the pod CIDR {0} is too small: a node needs at least a /29")]
    BlockTooSmall(Cidr),
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
    cidr: Cidr,
    node_address: Ipv4Addr,
    mtu: u32,
    addresses: Mutex<Addresses>,
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
        let cidr = claim_block(&host, &identity, &config)?;
        let addresses = Addresses::open(state_dir(&identity).join("addresses"), cidr)?;
        if let Err(error) = masquerade(&identity.nft_table(), cidr, config.cluster_cidr) {
            tracing::warn!(
                %error,
                table = identity.nft_table(),
                "nftables refused the masquerading rules: pods won't reach anything outside of the cluster"
            );
        }
        Ok(Self {
            inner: Arc::new(Inner {
                cidr,
                node_address: node::node_address(cidr)?,
                mtu: node::uplink_mtu(&host)?,
                addresses: Mutex::new(addresses),
                identity,
            }),
        })
    }

    /// The node's block, for `spec.podCIDR`.
    pub fn cidr(&self) -> Cidr {
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

    /// Gives the pod an address and connects its network namespace, pinned at `netns`. A pod that
    /// is connected already keeps its address and its link.
    ///
    /// # Errors
    /// When no address is free or the kernel refuses a step; then nothing is left behind.
    pub async fn attach(&self, uid: &str, netns: &Path) -> Result<PodAddress, NetworkError> {
        let inner = self.inner.clone();
        let (uid, netns) = (uid.to_owned(), netns.to_owned());
        on_own_thread(uid.clone(), move || inner.attach(&uid, &netns)).await
    }

    /// Disconnects the pod and takes its address back. Nothing happens when it has none.
    pub async fn detach(&self, uid: &str) -> Result<(), NetworkError> {
        let inner = self.inner.clone();
        let owned = uid.to_owned();
        blocking(uid, move || inner.detach(&owned)).await?
    }

    /// Disconnects every pod that is not in `known`, and removes links without an address.
    pub async fn reconcile(&self, known: HashSet<String>) -> Result<(), NetworkError> {
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
            mtu: self.mtu,
        };
        match link.set_up(&OwnedFd::from(namespace)) {
            Ok(()) => Ok(pod),
            Err(error) => Err(self.give_up(uid, pod.link, error)),
        }
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
        let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
        let name = self.identity.link(address);
        let found =
            veth::find_link(&host, &name).map_err(host_error("looking for a pod's link"))?;
        if let Some(link) = found {
            veth::delete_link(&host, link.index).map_err(host_error("removing a pod's link"))?;
        }
        Ok(self.addresses().release(uid)?)
    }

    fn reconcile(&self, known: &HashSet<String>) -> Result<(), NetworkError> {
        let strangers = self.addresses().strangers(known);
        for uid in strangers {
            self.detach(&uid)?;
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
        let prefix = self.identity.link_prefix();
        for link in links {
            if link.name.starts_with(&prefix) && !wanted.contains(&link.name) {
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

/// The block that is configured, or the one that this node had, or a free one.
fn claim_block(
    host: &Netlink,
    identity: &Identity,
    config: &NetworkConfig,
) -> Result<Cidr, NetworkError> {
    let directory = state_dir(identity);
    let path = directory.join("cidr");
    let state = |source| NetworkError::State {
        path: path.clone(),
        source,
    };
    fs::create_dir_all(&directory).map_err(state)?;
    let before = match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse::<Cidr>().ok(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(state(error)),
    };
    let block = match config.node_cidr.or(before) {
        Some(block) => {
            node::claim(host, identity, block)?;
            block
        }
        None => node::choose(host, identity, config.cluster_cidr, config.block_prefix)?,
    };
    if before != Some(block) {
        let new = directory.join("cidr.new");
        fs::write(&new, format!("{block}\n")).map_err(state)?;
        fs::rename(&new, &path).map_err(state)?;
    }
    Ok(block)
}

/// `<data>/agent/network`
fn state_dir(identity: &Identity) -> PathBuf {
    identity.agent_root().join("network")
}

fn masquerade(table: &str, node: Cidr, cluster: Cidr) -> io::Result<()> {
    let leaving = Rule::default()
        .ipv4()
        .inside(Address::Source, node)
        .outside(Address::Destination, cluster)
        .masquerade();
    Transaction::on(table)
        .replace_table()
        .base_chain("postrouting", Hook::SOURCE_NAT)
        .rule("postrouting", leaving)
        .commit()
}

fn purge_blocking(identity: &Identity) -> Result<(), NetworkError> {
    let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
    veth::delete_group(&host, identity.link_group()).map_err(host_error("removing links"))?;
    node::release_claims(&host, identity)?;
    match Transaction::on(&identity.nft_table())
        .delete_table()
        .commit()
    {
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
