//! A private network of several nodes on one host: a bridge, and for each node a network namespace
//! whose uplink is plugged into it.
//!
//! ```text
//! host: <prefix>br 100.96.x.1/24 ---- <prefix>n0001 ==== eth0 100.96.x.2/24, default via .1 (a node)
//!                                \--- <prefix>n0002 ==== eth0 100.96.x.3/24 ...
//! ```
//!
//! Links carry the identity of the data directory of the whole cluster; the namespaces are pinned
//! below its run directory. What the nodes send outside is masqueraded by the host. Everything here
//! blocks.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteScope};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use super::NetworkError;
use super::blocks::{nth, overlap};
use super::netlink::{Netlink, Request};
use super::nftables::{Field, Hook, Rule, Transaction};
use super::node::{destinations, host_error, prepare};
use super::veth::{
    add_route, bring_up, delete_group, delete_link, find_link, locally_administered, route_message,
};
use crate::identity::Identity;
use ipnet::Ipv4Net;

/// The blocks that a segment is chosen from: the upper half of what is set aside for networks
/// between a provider and its customers (RFC 6598), which no cluster uses for pods or services.
const SEGMENTS: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(100, 96, 0, 0), 11);
const SEGMENT_PREFIX: u8 = 24;
const LOOPBACK_INDEX: u32 = 1;
/// A node's side of its uplink.
const UPLINK: &str = "eth0";
/// Nodes are numbered from 1; the host has the segment's first address, the last is broadcast.
pub const MAX_NODES: u16 = 200;

/// The bridge and the namespaces of one cluster's nodes.
#[derive(Debug, Clone)]
pub struct Segment {
    identity: Identity,
    block: Ipv4Net,
}

impl Segment {
    /// Makes the bridge, in a block that is free on this host or, where it is, the one it had.
    /// `pods` are never masqueraded.
    ///
    /// # Errors
    /// When the kernel refuses a step.
    pub fn open(
        identity: &Identity,
        before: Option<Ipv4Net>,
        pods: Ipv4Net,
    ) -> Result<Self, NetworkError> {
        let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
        prepare(&host)?;
        // Two clusters that start at the same instant must not choose the same block.
        let _alone = lock(identity)?;
        let name = bridge(identity);
        let found = find_link(&host, &name).map_err(host_error("looking for the bridge"))?;
        let block = match (found, before) {
            (Some(_), Some(block)) => block,
            (found, before) => {
                if let Some(half_made) = found {
                    delete_link(&host, half_made.index)
                        .map_err(host_error("removing an unfinished bridge"))?;
                }
                let block = choose(&host, identity, before)?;
                make_bridge(&host, identity, &name, block)?;
                block
            }
        };
        if let Err(error) = masquerade(&identity.nft_table(), block, pods) {
            tracing::warn!(%error, "nftables refused the masquerading rules: the nodes won't reach anything outside of this host");
        }
        Ok(Self {
            identity: identity.clone(),
            block,
        })
    }

    /// The segment of a cluster that has one.
    pub fn known(identity: &Identity, block: Ipv4Net) -> Self {
        Self {
            identity: identity.clone(),
            block,
        }
    }

    pub fn block(&self) -> Ipv4Net {
        self.block
    }

    /// The host as its nodes see it.
    pub fn host_address(&self) -> Ipv4Addr {
        // A /24 has a first address.
        nth(self.block, 1).unwrap_or(self.block.network())
    }

    /// A node's address.
    pub fn address(&self, number: u16) -> Ipv4Addr {
        let offset = u32::from(number.min(MAX_NODES)) + 1;
        nth(self.block, offset).unwrap_or(self.block.network())
    }

    /// Plugs a node in: its namespace and its uplink, as far as they are missing.
    ///
    /// # Errors
    /// When the kernel refuses a step; nothing half-made is left.
    pub fn plug(&self, node: &str, number: u16) -> Result<(), NetworkError> {
        let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
        let link = uplink(&self.identity, number);
        let found = find_link(&host, &link).map_err(host_error("looking for a node's link"))?;
        if found.is_some() && is_pinned(&self.namespace(node)) {
            return Ok(());
        }
        self.unplug(node, number)?;
        let made = self.make_node(&host, node, number, &link);
        if made.is_err() {
            self.unplug(node, number)?;
        }
        made
    }

    fn make_node(
        &self,
        host: &Netlink,
        node: &str,
        number: u16,
        link: &str,
    ) -> Result<(), NetworkError> {
        let pin = self.namespace(node);
        pin_new_namespace(&pin).map_err(host_error("making a node's network namespace"))?;
        let namespace = File::open(&pin).map_err(host_error("opening a node's namespace"))?;
        let namespace = OwnedFd::from(namespace);
        let bridge = find_link(host, &bridge(&self.identity))
            .and_then(|found| found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV)))
            .map_err(host_error("looking for the bridge"))?;
        let create = veth(link, bridge.index, self.identity.link_group(), &namespace);
        host.apply_one(create)
            .map_err(host_error("making a node's link"))?;
        let made = find_link(host, link).map_err(host_error("looking for a node's link"))?;
        if let Some(made) = made {
            host.apply_one(bring_up(made.index))
                .map_err(host_error("bringing up a node's link"))?;
        }
        let (address, gateway) = (self.address(number), self.host_address());
        let prefix = self.block.prefix_len();
        in_namespace(&namespace, || {
            let inside = Netlink::route()?;
            let uplink = find_link(&inside, UPLINK)?;
            let uplink = uplink.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
            let mut default = route_message(uplink.index, None, RouteScope::Universe);
            let via = RouteAttribute::Gateway(RouteAddress::Inet(gateway));
            default.attributes.push(via);
            inside
                .apply(&[
                    bring_up(LOOPBACK_INDEX),
                    bring_up(uplink.index),
                    add_network(uplink.index, address, prefix),
                    add_route(default),
                ])
                .map_err(|refused| refused.source)
        })
        .map_err(host_error("configuring a node's uplink"))
    }

    /// Takes a node's link and namespace away.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn unplug(&self, node: &str, number: u16) -> Result<(), NetworkError> {
        let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
        let link = uplink(&self.identity, number);
        let found = find_link(&host, &link).map_err(host_error("looking for a node's link"))?;
        if let Some(found) = found {
            delete_link(&host, found.index).map_err(host_error("removing a node's link"))?;
        }
        unpin(&self.namespace(node)).map_err(host_error("removing a node's network namespace"))
    }

    /// Cuts a node off, or connects it again.
    ///
    /// # Errors
    /// When the node has no link, or the kernel refuses.
    pub fn set_connected(&self, number: u16, connected: bool) -> Result<(), NetworkError> {
        let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
        let link = uplink(&self.identity, number);
        let found = find_link(&host, &link)
            .and_then(|found| found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV)))
            .map_err(host_error("looking for the node's link"))?;
        let request = if connected {
            bring_up(found.index)
        } else {
            take_down(found.index)
        };
        host.apply_one(request)
            .map_err(host_error("switching the node's link"))
    }

    /// Whether a node's link is there, and up.
    pub fn is_connected(&self, number: u16) -> bool {
        let flags = format!("/sys/class/net/{}/flags", uplink(&self.identity, number));
        let flags = fs::read_to_string(flags).unwrap_or_default();
        let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
        flags.is_ok_and(|flags| flags & libc::IFF_UP as u32 != 0)
    }

    /// Where a node's namespace is pinned.
    pub fn namespace(&self, node: &str) -> PathBuf {
        pins(&self.identity).join(format!("{node}.net"))
    }

    /// Does some work in a node's namespace, on a thread of its own: processes that it starts are
    /// in that namespace.
    ///
    /// # Errors
    /// When the node has no namespace; else the work's.
    pub fn enter<T: Send>(
        &self,
        node: &str,
        work: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<T> {
        let namespace = OwnedFd::from(File::open(self.namespace(node))?);
        in_namespace(&namespace, work)
    }

    /// Removes the segment of a cluster: links, namespaces, masquerading.
    ///
    /// # Errors
    /// When something could not be removed.
    pub fn purge(identity: &Identity) -> Result<(), NetworkError> {
        let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
        delete_group(&host, identity.link_group()).map_err(host_error("removing links"))?;
        let pins = pins(identity);
        let entries = match fs::read_dir(&pins) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(host_error("listing network namespaces")(error)),
        };
        for entry in entries {
            entry
                .and_then(|entry| unpin(&entry.path()))
                .map_err(host_error("removing a node's network namespace"))?;
        }
        fs::remove_dir(&pins).map_err(host_error("removing the nodes' run directory"))
    }
}

fn bridge(identity: &Identity) -> String {
    format!("{}br", identity.link_prefix())
}

/// The host's end of a node's link. `n` is no hexadecimal digit: no pod's link has that name.
fn uplink(identity: &Identity, number: u16) -> String {
    format!("{}n{number:04}", identity.link_prefix())
}

fn pins(identity: &Identity) -> PathBuf {
    identity.run_dir().join("nodes")
}

/// Held while a block is chosen, by one process of the host at a time.
fn lock(identity: &Identity) -> Result<File, NetworkError> {
    let doing = host_error("locking /run/skiff");
    let pins = pins(identity);
    fs::create_dir_all(&pins).map_err(&doing)?;
    let directory = identity.run_dir();
    let shared = directory.parent().unwrap_or(Path::new("/run"));
    let file = File::open(shared).map_err(&doing)?;
    file.lock().map_err(&doing)?;
    Ok(file)
}

fn choose(
    host: &Netlink,
    identity: &Identity,
    before: Option<Ipv4Net>,
) -> Result<Ipv4Net, NetworkError> {
    let in_use = destinations(host)?;
    let is_free = |block: &Ipv4Net| !in_use.iter().any(|used| overlap(used, block));
    let candidates = SEGMENTS.subnets(SEGMENT_PREFIX).into_iter();
    let mut candidates: Vec<_> = candidates.flatten().collect();
    let count = candidates.len();
    let start = u32::from_str_radix(identity.id(), 16).unwrap_or_default() as usize % count;
    candidates.rotate_left(start);
    before
        .into_iter()
        .chain(candidates)
        .find(is_free)
        .ok_or(NetworkError::NoFreeSegment(SEGMENTS))
}

fn make_bridge(
    host: &Netlink,
    identity: &Identity,
    name: &str,
    block: Ipv4Net,
) -> Result<(), NetworkError> {
    let doing = host_error("making the bridge");
    let address = nth(block, 1).unwrap_or(block.network());
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Group(identity.link_group()),
        // One of its own: else it takes the lowest of its links', and changes it when that node is killed, so that
        // all others send to an address that is gone until they find out.
        LinkAttribute::Address(locally_administered(address).to_vec()),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
    ];
    let create = RouteNetlinkMessage::NewLink(message);
    host.apply_one(Request::route(&create, NLM_F_CREATE | NLM_F_EXCL))
        .map_err(&doing)?;
    let made = find_link(host, name).map_err(&doing)?;
    let made = made.ok_or_else(|| doing(io::Error::from_raw_os_error(libc::ENODEV)))?;
    host.apply(&[
        add_network(made.index, address, block.prefix_len()),
        bring_up(made.index),
    ])
    .map_err(|refused| doing(refused.source))
}

fn veth(name: &str, bridge: u32, group: u32, namespace: &OwnedFd) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = vec![
        LinkAttribute::IfName(UPLINK.to_owned()),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Controller(bridge),
        LinkAttribute::Group(group),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    Request::route(
        &RouteNetlinkMessage::NewLink(link),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

/// An address with the network it is in.
fn add_network(index: u32, address: Ipv4Addr, prefix: u8) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(address.into()),
        AddressAttribute::Address(address.into()),
    ];
    Request::route(
        &RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_EXCL,
    )
}

fn take_down(index: u32) -> Request {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.change_mask = LinkFlags::Up;
    Request::route(&RouteNetlinkMessage::SetLink(link), 0)
}

fn masquerade(table: &str, segment: Ipv4Net, pods: Ipv4Net) -> io::Result<()> {
    let leaving = Rule::default()
        .ipv4()
        .inside(Field::Source, segment)
        .outside(Field::Destination, segment)
        .outside(Field::Destination, pods)
        .masquerade();
    let mut transaction = Transaction::on(table);
    transaction.replace_table();
    transaction.base_chain("postrouting", Hook::SOURCE_NAT);
    transaction.rule("postrouting", leaving);
    transaction.commit()
}

fn is_pinned(path: &Path) -> bool {
    // A pin without a namespace is an empty file of the directory's file system.
    nix::sys::statfs::statfs(path)
        .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

fn pin_new_namespace(path: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    File::create(path)?;
    on_own_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let own = Path::new("/proc/thread-self/ns/net");
        let nothing: Option<&str> = None;
        mount(Some(own), path, nothing, MsFlags::MS_BIND, nothing)?;
        Ok(())
    })
}

fn unpin(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn in_namespace<T: Send>(
    namespace: &OwnedFd,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    on_own_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    })
}

/// A thread that changed its namespace serves nothing else.
fn on_own_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
