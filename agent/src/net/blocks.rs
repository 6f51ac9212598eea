//! The address blocks of a cluster: one for its pods, one for its services.
//!
//! A host that starts a cluster chooses both once, so that they clash neither with what the host
//! routes to nor with another cluster's, and keeps them in the data directory. Like a node's block
//! they are claimed by addresses on `lo` that carry the identity in their label
//! ([`super::node`]): the kernel refuses a second one.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::NetworkError;
use super::netlink::Netlink;
use super::node::{self, host_error};
use crate::identity::Identity;
use ipnet::Ipv4Net;

/// 10.42.0.0/16 and 10.43.0.0/16 are tried first, 10.254.0.0/16 and 10.255.0.0/16 last before
/// those below 42.
const FIRST: u8 = 42;
const PREFIX: u8 = 16;

/// The blocks of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterBlocks {
    #[serde(rename = "clusterCIDR")]
    pub pods: Ipv4Net,
    #[serde(rename = "serviceCIDR")]
    pub services: Ipv4Net,
}

impl Default for ClusterBlocks {
    fn default() -> Self {
        Self::starting_at(FIRST)
    }
}

impl ClusterBlocks {
    fn starting_at(second: u8) -> Self {
        Self {
            pods: Ipv4Net::new_assert(Ipv4Addr::new(10, second, 0, 0), PREFIX),
            services: Ipv4Net::new_assert(Ipv4Addr::new(10, second + 1, 0, 0), PREFIX),
        }
    }

    fn candidates() -> impl Iterator<Item = Self> {
        let even = |second: &u8| second.is_multiple_of(2);
        (FIRST..=254)
            .chain(0..FIRST)
            .filter(even)
            .map(Self::starting_at)
    }

    /// The blocks that this cluster had before, or free ones, claimed. Blocking.
    ///
    /// # Errors
    /// When another cluster on this host holds what this one had, when nothing is free, or when
    /// the data directory can't be read or written.
    pub fn choose(identity: &Identity) -> Result<Self, NetworkError> {
        let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
        if let Some(before) = Self::recorded(identity)? {
            before.claim(&host, identity)?;
            return Ok(before);
        }
        let path = record_path(identity);
        let state = |source| NetworkError::State {
            path: path.clone(),
            source,
        };
        let chosen = Self::claim_free(&host, identity)?;
        let text = serde_json::to_vec(&chosen).map_err(|e| state(io::Error::from(e)))?;
        let new = path.with_extension("new");
        fs::write(&new, text).map_err(state)?;
        fs::rename(&new, &path).map_err(state)?;
        Ok(chosen)
    }

    /// As [`Self::choose`] for a control plane whose host is no node: only the pods' block stays claimed,
    /// which keeps other clusters away from both. A node on this host claims the services', and its part of
    /// the pods', for itself.
    ///
    /// # Errors
    /// As [`Self::choose`].
    pub fn choose_for_others(identity: &Identity) -> Result<Self, NetworkError> {
        let host = Netlink::route().map_err(host_error("opening a netlink socket"))?;
        let chosen = match Self::recorded(identity)? {
            Some(before) => {
                node::hold(&host, identity, before.pods, before.pods.network())?;
                before
            }
            None => Self::choose(identity)?,
        };
        node::release(&host, identity, chosen.services.network())?;
        Ok(chosen)
    }

    /// What this cluster had before.
    fn recorded(identity: &Identity) -> Result<Option<Self>, NetworkError> {
        let path = record_path(identity);
        let state = |source| NetworkError::State {
            path: path.clone(),
            source,
        };
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|e| state(io::Error::from(e))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(state(error)),
        }
    }

    /// Claims both blocks for this identity.
    fn claim(&self, host: &Netlink, identity: &Identity) -> Result<(), NetworkError> {
        node::hold(host, identity, self.pods, self.pods.network())?;
        node::hold(host, identity, self.services, self.services.network())
    }

    fn claim_free(host: &Netlink, identity: &Identity) -> Result<Self, NetworkError> {
        // What a start that was cut short left: nothing was recorded, so nothing depends on it.
        node::release_claims(host, identity)?;
        let in_use = node::destinations(host)?;
        let free = |block: &Ipv4Net| !in_use.iter().any(|used| overlap(used, block));
        for blocks in Self::candidates() {
            if !free(&blocks.pods) || !free(&blocks.services) {
                continue;
            }
            match blocks.claim(host, identity) {
                Ok(()) => return Ok(blocks),
                Err(NetworkError::Claimed { .. }) => node::release_claims(host, identity)?,
                Err(error) => return Err(error),
            }
        }
        Err(NetworkError::NoFreeBlocks)
    }
}

fn record_path(identity: &Identity) -> PathBuf {
    identity.data_dir().join("blocks.json")
}

/// The address `offset` after the block's first; `None` past its end.
pub(crate) fn nth(block: Ipv4Net, offset: u32) -> Option<Ipv4Addr> {
    let address = block.network().to_bits().checked_add(offset)?;
    let address = Ipv4Addr::from_bits(address);
    block.contains(&address).then_some(address)
}

pub(super) fn overlap(one: &Ipv4Net, other: &Ipv4Net) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidates_start_with_the_usual_ones_and_cover_all_of_ten() {
        let all: Vec<_> = ClusterBlocks::candidates().collect();
        assert_eq!(all.len(), 128);
        assert_eq!(all[0].pods.to_string(), "10.42.0.0/16");
        assert_eq!(all[0].services.to_string(), "10.43.0.0/16");
        assert_eq!(all[1].pods.to_string(), "10.44.0.0/16");
        assert!(all.iter().any(|b| b.pods.to_string() == "10.0.0.0/16"));
    }

    #[test]
    fn addresses_are_counted_from_a_blocks_first() {
        let block: Ipv4Net = "10.42.8.0/22".parse().unwrap();
        assert_eq!(nth(block, 1023), Some(Ipv4Addr::new(10, 42, 11, 255)));
        assert_eq!(nth(block, 1024), None);
        assert_eq!(nth(block, u32::MAX), None);
        let other = |text: &str| overlap(&block, &text.parse().unwrap());
        assert!(other("10.42.0.0/16") && other("10.42.11.7/32"));
        assert!(!other("10.42.12.0/22"));
    }
}
