//! What a drill does to packets, and how it is undone.
//!
//! Each task has an nftables table of its own, `inet skiff-ID-drill-UID`: it comes in one transaction, and undoing it
//! is removing it, so nothing of anybody else is ever touched. Its chains look at every packet, not only at
//! the first of a connection, so that connections which were there before stop as well. Delays are the
//! business of the kernel's network emulator, on both ends of the pods' links (`netem`).
//!
//! Everything here blocks, and works in the network namespace of the calling thread.

mod netem;
mod table;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use self::netem::Handle;
use super::nftables::{self, Transaction};
use crate::identity::Identity;

/// A pod of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodPlace {
    pub(crate) uid: String,
    pub(crate) address: Ipv4Addr,
}

/// What is to happen to packets; also what a journal keeps of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum PacketFault {
    /// None passes between this node with its pods, and the API servers; nor between those and the node's
    /// own `endpoint`, a TCP port.
    CutControlPlane {
        servers: Vec<SocketAddrV4>,
        endpoint: u16,
    },
    /// None passes between the two; without peers, between the pods and everybody else, the node too.
    CutPods {
        pods: Vec<Ipv4Addr>,
        peers: Vec<Ipv4Addr>,
    },
    /// None passes from these pods to these DNS servers.
    SilenceDns {
        pods: Vec<Ipv4Addr>,
        servers: Vec<SocketAddrV4>,
    },
    /// So many of a hundred packets from and to these pods are lost.
    Lose { pods: Vec<Ipv4Addr>, percent: u8 },
    /// Each packet from and to these pods is held for so long, in each direction.
    Delay {
        pods: Vec<PodPlace>,
        delay: Duration,
    },
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PacketFaultError {
    #[error("nftables refused the drill's table {table}: {source}")]
    Table { table: String, source: io::Error },
    #[error(
        "this host's kernel can't delay packets: it has no network emulator (module sch_netem, CONFIG_NET_SCH_NETEM)"
    )]
    NoEmulator,
    #[error(
        "the link of pod {pod} has a queueing discipline already: its packets can't be delayed"
    )]
    Occupied { pod: String },
    #[error("pod {pod} has no network of its own here whose packets could be delayed: {source}")]
    NoLink { pod: String, source: io::Error },
    #[error("delaying the packets of pod {pod}: {source}")]
    Delay { pod: String, source: io::Error },
}

impl PacketFault {
    /// Brings it about, in one step, for the task with this uid. Doing so twice is doing it once.
    ///
    /// # Errors
    /// When the kernel refuses; nothing of it is left then.
    pub(crate) fn bring_about(
        &self,
        identity: &Identity,
        task: &str,
    ) -> Result<(), PacketFaultError> {
        if let Self::Delay { pods, delay } = self {
            return netem::delay(identity, Handle::of(task), pods, *delay);
        }
        let name = table_name(identity, task);
        let mut transaction = Transaction::on(&name);
        transaction.replace_table();
        table::write(self, &mut transaction);
        let committed = transaction.commit();
        committed.map_err(|source| PacketFaultError::Table {
            table: name.clone(),
            source,
        })
    }

    /// Undoes it, whether or not it was brought about.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn undo(&self, identity: &Identity, task: &str) -> Result<(), PacketFaultError> {
        if let Self::Delay { pods, .. } = self {
            return netem::undo(identity, Handle::of(task), pods);
        }
        let name = table_name(identity, task);
        remove_table(&name).map_err(|source| PacketFaultError::Table {
            table: name.clone(),
            source,
        })
    }
}

/// Removes the tables of all tasks of a node, also after a crash. Delays end with the pods' links.
///
/// # Errors
/// When the kernel refuses; a kernel without nftables has none.
pub(crate) fn undo_all(identity: &Identity) -> io::Result<()> {
    let tables = match nftables::tables(&identity.drill_table_prefix()) {
        Err(error) if is_without_nftables(&error) => return Ok(()),
        tables => tables?,
    };
    tables.iter().try_for_each(|table| remove_table(table))
}

fn is_without_nftables(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EINVAL)
    )
}

fn remove_table(name: &str) -> io::Result<()> {
    let mut transaction = Transaction::on(name);
    transaction.delete_table();
    match transaction.commit() {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

fn table_name(identity: &Identity, task: &str) -> String {
    format!("{}{task}", identity.drill_table_prefix())
}
