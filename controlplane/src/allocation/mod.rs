//! Cluster addresses and node ports: no two Services have the same.
//!
//! What is taken is what the stored Services say, and what writes on their way to the store
//! have reserved. Both are in memory: [`ServiceAllocator::load`] reads the stored Services at
//! the start, and as an observer of the store it learns of every write before the watch cache
//! does. A write reserves what it needs before it is committed, and its [`Reservation`] ends
//! with it. So a crash at any moment loses no number and gives none out twice.
//!
//!     Service -> what it wants (service) -> pools -> reservation -> commit -> claims

mod pool;
mod service;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;

use crate::blocks;
use crate::cache::{Cache, Scope};
use crate::resources::FieldError;
use crate::store::{Change, Key, Observer, Op};
use ipnet::Ipv4Net;
use pool::Pool;

/// The Services' own shelf and key prefix.
const SERVICES: &str = "core/services";
/// The ports of Kubernetes' `--service-node-port-range`.
const NODE_PORTS: std::ops::RangeInclusive<u32> = 30_000..=32_767;

/// Gives Services their cluster addresses and node ports.
pub struct ServiceAllocator {
    block: Ipv4Net,
    state: Mutex<State>,
}

struct State {
    /// What each stored Service has.
    claims: HashMap<Key, Vec<Item>>,
    /// Offsets in the block.
    addresses: Pool,
    ports: Pool,
}

/// Something that only one Service can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    /// An address, as its offset in the block.
    Address(u32),
    /// A port of every node.
    Port(u32),
}

/// Why a Service can't have what it wants.
#[derive(Debug)]
pub enum Refusal {
    /// It asks for something that is taken or out of range.
    Invalid(FieldError),
    /// Everything is taken.
    Exhausted(String),
}

/// What a write has taken, until it is stored or has failed.
pub struct Reservation {
    allocator: Arc<ServiceAllocator>,
    items: Vec<Item>,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.allocator.state.lock();
        for item in self.items.drain(..) {
            state.release(item);
        }
    }
}

impl ServiceAllocator {
    /// With what the stored Services have.
    pub fn load(block: Ipv4Net, cache: &Cache) -> Arc<Self> {
        let allocator = Self::new(block);
        for entry in cache.shelf(SERVICES).all(&Scope::everything()) {
            allocator.learn(&entry.key, Some(&entry.bytes));
        }
        Arc::new(allocator)
    }

    fn new(block: Ipv4Net) -> Self {
        let size = blocks::size(block);
        // Neither the network's address nor the broadcast address.
        let addresses = 1..=size.saturating_sub(2).max(1);
        Self {
            block,
            state: Mutex::new(State {
                claims: HashMap::new(),
                addresses: Pool::new(addresses, static_band(size, 16, 16, 256)),
                ports: Pool::new(NODE_PORTS, static_band(2768, 16, 32, 128)),
            }),
        }
    }

    /// Gives a new or changed Service what it wants and does not have yet. `old` is the stored
    /// object that the write replaces: what it has, the new one may keep.
    ///
    /// # Errors
    /// When it wants what it can't have; nothing is taken then.
    pub fn allocate(
        self: &Arc<Self>,
        old: Option<&Value>,
        new: &mut Value,
    ) -> Result<Reservation, Refusal> {
        // Dropped after `state`, should this fail half-way.
        let mut taken = Reservation {
            allocator: self.clone(),
            items: Vec::new(),
        };
        let mut kept = Vec::new();
        if let Some(old) = old {
            kept = service::items(old, self.block);
        }
        let state = self.state.lock();
        let mut taking = Taking {
            block: self.block,
            state,
            kept,
            items: &mut taken.items,
        };
        let done = service::fill(new, old, &mut taking);
        drop(taking);
        done.map(|()| taken)
    }

    fn learn(&self, key: &Key, stored: Option<&[u8]>) {
        let items = match stored.map(serde_json::from_slice::<Value>) {
            Some(Ok(service)) => service::items(&service, self.block),
            Some(Err(error)) => {
                tracing::error!(key = key.as_str(), %error, "a stored Service is no JSON");
                Vec::new()
            }
            None => Vec::new(),
        };
        let mut state = self.state.lock();
        for item in &items {
            state.hold(*item);
        }
        let before = match items.is_empty() {
            true => state.claims.remove(key),
            false => state.claims.insert(key.clone(), items),
        };
        for item in before.into_iter().flatten() {
            state.release(item);
        }
    }
}

/// Tells the allocator of what was written, before the next observer.
pub struct Observing<O> {
    pub allocator: Arc<ServiceAllocator>,
    pub next: O,
}

impl<O: Observer> Observer for Observing<O> {
    fn committed(&mut self, changes: Vec<Change>) {
        for change in &changes {
            if change.key.resource() == SERVICES {
                let stored = match &change.op {
                    Op::Put(value) => Some(&value[..]),
                    Op::Delete { .. } => None,
                };
                self.allocator.learn(&change.key, stored);
            }
        }
        self.next.committed(changes);
    }
}

impl State {
    fn pool(&mut self, item: Item) -> (&mut Pool, u32) {
        match item {
            Item::Address(offset) => (&mut self.addresses, offset),
            Item::Port(port) => (&mut self.ports, port),
        }
    }

    fn hold(&mut self, item: Item) {
        let (pool, number) = self.pool(item);
        pool.hold(number);
    }

    fn release(&mut self, item: Item) {
        let (pool, number) = self.pool(item);
        pool.release(number);
    }
}

/// The numbers, while one write takes what it needs.
struct Taking<'a> {
    block: Ipv4Net,
    state: parking_lot::MutexGuard<'a, State>,
    /// What the stored object has already.
    kept: Vec<Item>,
    items: &'a mut Vec<Item>,
}

/// Why a certain number can't be had, in the words of Kubernetes' allocators.
#[derive(Debug, thiserror::Error)]
enum Denied {
    #[error("provided IP is already allocated")]
    AddressTaken,
    #[error("provided IP is not in the valid range. The range of valid IPs is {0}")]
    AddressOutside(Ipv4Net),
    #[error("provided port is already allocated")]
    PortTaken,
    #[error("provided port is not in the valid range. The range of valid ports is {0}-{1}")]
    PortOutside(u32, u32),
}

impl Taking<'_> {
    /// Takes this address, unless the Service has it.
    fn address(&mut self, address: Ipv4Addr) -> Result<(), Denied> {
        let outside = Denied::AddressOutside(self.block);
        let Some(offset) = blocks::offset(self.block, address) else {
            return Err(outside);
        };
        if self.has(Item::Address(offset)) {
            return Ok(());
        }
        if !self.state.addresses.contains(offset) {
            return Err(outside);
        }
        if self.state.addresses.is_held(offset) {
            return Err(Denied::AddressTaken);
        }
        self.take(Item::Address(offset));
        Ok(())
    }

    fn next_address(&mut self) -> Option<Ipv4Addr> {
        let offset = self.state.addresses.next()?;
        self.take(Item::Address(offset));
        blocks::nth(self.block, offset)
    }

    /// Takes this port, unless the Service has it.
    fn port(&mut self, port: u32) -> Result<(), Denied> {
        if self.has(Item::Port(port)) {
            return Ok(());
        }
        if !self.state.ports.contains(port) {
            let range = self.state.ports.range();
            return Err(Denied::PortOutside(*range.start(), *range.end()));
        }
        if self.state.ports.is_held(port) {
            return Err(Denied::PortTaken);
        }
        self.take(Item::Port(port));
        Ok(())
    }

    fn next_port(&mut self) -> Option<u32> {
        let port = self.state.ports.next()?;
        self.take(Item::Port(port));
        Some(port)
    }

    fn has(&self, item: Item) -> bool {
        self.kept.contains(&item) || self.items.contains(&item)
    }

    fn take(&mut self, item: Item) {
        self.state.hold(item);
        self.items.push(item);
    }
}

/// How many of a range's first numbers are left to those who choose: a part of it, within
/// bounds.
fn static_band(size: u32, least: u32, part: u32, most: u32) -> u32 {
    if size <= least {
        return 0;
    }
    (size / part).clamp(least, most)
}

#[cfg(test)]
mod tests;
