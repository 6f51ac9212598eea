//! Which pod has which address of the node's block.
//!
//! Each allocation is a file named by the address that holds the pod's uid, made before the
//! address is used and removed after the link is gone: whatever moment the agent dies at, a
//! restarted one never gives out an address that is in use. Files are not synced: after a power
//! failure no pod runs any more, and what is stale is removed by [`Addresses::retain`].
//!
//! A free address waits as long as possible before it is given out again, so that a client that
//! still talks to a pod that is gone does not reach another one.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;

/// The block's first address names the block and its second is the node's; the last one is left
/// out because some programs take it for a broadcast address.
const RESERVED_FIRST: u32 = 2;

pub(super) struct Addresses {
    directory: PathBuf,
    block: Ipv4Net,
    by_pod: HashMap<String, Ipv4Addr>,
    /// Longest free first.
    free: VecDeque<Ipv4Addr>,
}

#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    #[error(
        "all {count} addresses of the node's pod CIDR {block} are in use: delete pods, or give the node a larger block"
    )]
    Exhausted { block: Ipv4Net, count: usize },
    #[error("recording pod addresses in {}: {source}", path.display())]
    Record { path: PathBuf, source: io::Error },
}

impl Addresses {
    /// Reads what was given out before.
    pub(super) fn open(directory: PathBuf, block: Ipv4Net) -> Result<Self, IpamError> {
        let record = record_error(&directory);
        fs::create_dir_all(&directory).map_err(&record)?;
        let mut by_pod = HashMap::new();
        let mut newest = None;
        for entry in fs::read_dir(&directory).map_err(&record)? {
            let entry = entry.map_err(&record)?;
            let Some(address) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let uid = fs::read_to_string(entry.path()).map_err(record_error(&entry.path()))?;
            if uid.is_empty() {
                // The machine failed before the content reached the disk.
                fs::remove_file(entry.path()).map_err(record_error(&entry.path()))?;
                continue;
            }
            let made = entry
                .metadata()
                .and_then(|m| m.modified())
                .map_err(&record)?;
            newest = newest.max(Some((made, address)));
            by_pod.insert(uid, address);
        }
        let free = free_after(block, newest.map(|(_, address)| address), &by_pod);
        Ok(Self {
            directory,
            block,
            by_pod,
            free,
        })
    }

    /// The pod's address, given out now unless it has one.
    pub(super) fn allocate(&mut self, uid: &str) -> Result<Ipv4Addr, IpamError> {
        if let Some(address) = self.by_pod.get(uid) {
            return Ok(*address);
        }
        let Some(address) = self.free.pop_front() else {
            return Err(IpamError::Exhausted {
                block: self.block,
                count: self.by_pod.len(),
            });
        };
        let path = self.directory.join(address.to_string());
        if let Err(error) = fs::write(&path, uid) {
            self.free.push_front(address);
            return Err(record_error(&path)(error));
        }
        self.by_pod.insert(uid.to_owned(), address);
        Ok(address)
    }

    pub(super) fn get(&self, uid: &str) -> Option<Ipv4Addr> {
        self.by_pod.get(uid).copied()
    }

    /// Takes the pod's address back. Nothing happens when it has none.
    pub(super) fn release(&mut self, uid: &str) -> Result<(), IpamError> {
        let Some(address) = self.get(uid) else {
            return Ok(());
        };
        let path = self.directory.join(address.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(record_error(&path)(error));
            }
            _ => {}
        }
        self.by_pod.remove(uid);
        if self.block.contains(&address) {
            self.free.push_back(address);
        }
        Ok(())
    }

    /// Pods that have an address and are not among `known`.
    pub(super) fn strangers(&self, known: &HashSet<String>) -> Vec<String> {
        self.by_pod
            .keys()
            .filter(|uid| !known.contains(*uid))
            .cloned()
            .collect()
    }

    pub(super) fn addresses(&self) -> HashSet<Ipv4Addr> {
        self.by_pod.values().copied().collect()
    }
}

/// The address on record for a pod.
pub(super) fn recorded(directory: &Path, uid: &str) -> Result<Option<Ipv4Addr>, IpamError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(record_error(directory))?,
    };
    for entry in entries {
        let path = entry.map_err(record_error(directory))?.path();
        let address = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        // A file that is gone by now was of another pod.
        if address.is_some() && fs::read_to_string(&path).is_ok_and(|owner| owner == uid) {
            return Ok(address);
        }
    }
    Ok(None)
}

/// The free addresses of a block, those after `newest` first: they have been free longest.
fn free_after(
    block: Ipv4Net,
    newest: Option<Ipv4Addr>,
    by_pod: &HashMap<String, Ipv4Addr>,
) -> VecDeque<Ipv4Addr> {
    let taken: HashSet<_> = by_pod.values().collect();
    let usable = u32::from(block.network()) + RESERVED_FIRST..u32::from(block.broadcast());
    let (before, after): (Vec<_>, Vec<_>) = usable
        .map(Ipv4Addr::from)
        .filter(|address| !taken.contains(address))
        .partition(|address| newest.is_some_and(|newest| *address < newest));
    after.into_iter().chain(before).collect()
}

fn record_error(path: &Path) -> impl Fn(io::Error) -> IpamError + use<> {
    let path = path.to_owned();
    move |source| IpamError::Record {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(directory: &Path) -> Addresses {
        Addresses::open(directory.to_owned(), "10.9.0.0/29".parse().unwrap()).unwrap()
    }

    #[test]
    fn gives_each_address_once_and_says_when_there_are_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let mut addresses = open(directory.path());
        let given: HashSet<_> = (0..5)
            .map(|i| addresses.allocate(&format!("pod{i}")).unwrap())
            .collect();
        assert_eq!(given.len(), 5);
        assert!(!given.contains(&Ipv4Addr::new(10, 9, 0, 1)), "the node's");
        let error = addresses.allocate("one too many").unwrap_err().to_string();
        assert!(error.contains("10.9.0.0/29"), "{error}");
    }

    #[test]
    fn survives_a_restart_and_reuses_the_longest_free_first() {
        let directory = tempfile::tempdir().unwrap();
        let mut addresses = open(directory.path());
        let first = addresses.allocate("a").unwrap();
        let second = addresses.allocate("b").unwrap();
        addresses.release("a").unwrap();
        addresses.release("a").unwrap();

        let mut addresses = open(directory.path());
        assert_eq!(addresses.allocate("b").unwrap(), second);
        let third = addresses.allocate("c").unwrap();
        assert!(third != first && third != second);
        addresses.allocate("d").unwrap();
        addresses.allocate("e").unwrap();
        assert_eq!(addresses.allocate("f").unwrap(), first);
    }

    #[test]
    fn finds_the_pods_that_nobody_knows() {
        let directory = tempfile::tempdir().unwrap();
        let mut addresses = open(directory.path());
        addresses.allocate("a").unwrap();
        addresses.allocate("b").unwrap();
        let known = HashSet::from(["a".to_owned()]);
        assert_eq!(addresses.strangers(&known), ["b"]);
        assert_eq!(recorded(directory.path(), "b").unwrap(), addresses.get("b"));
        assert_eq!(recorded(directory.path(), "c").unwrap(), None);
    }
}
