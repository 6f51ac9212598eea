//! The node's nftables table: what is asked for, what is installed, and how one becomes the other.
//!
//! Programs come and go with their owners. Two owners may ask for the same entry (two services with
//! one external address, two that lead to one pod); the first in order has it until it lets go. What a
//! change comes to is found by comparing, and is committed as one transaction that contains nothing else.
//!
//! An agent that starts finds its predecessor's table and leaves it in force until it knows all
//! services; then it replaces the whole of it in one transaction. Connections do not notice: the kernel
//! remembers where each goes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;

use super::layout::{self, Blocks};
use super::program::{Chain, Entry, Frontend, Owner, Program, Target};
use crate::net::nftables::{self, Element, Transaction};

/// What the kernel has of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Installed {
    /// A predecessor's table: its contents are not known.
    Inherited,
    /// What the programs say.
    Ours,
    /// A change was refused: everything is to be written anew.
    Doubtful,
}

/// The table of one node.
pub(in crate::net) struct Tables {
    name: String,
    blocks: Blocks,
    installed: Installed,
    programs: HashMap<Owner, Arc<Program>>,
    claims: HashMap<Entry, BTreeMap<Owner, Target>>,
}

/// What a change did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::net) struct Outcome {
    /// UDP packets go elsewhere than before.
    pub(in crate::net) udp_changed: bool,
    /// Endpoints that an owner does not lead to any more.
    pub(in crate::net) lost: HashSet<SocketAddrV4>,
}

impl Tables {
    /// Makes the table unless there is one. `fresh` replaces a predecessor's at once, for when its fixed
    /// part is not right any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(in crate::net) fn open(name: String, blocks: Blocks, fresh: bool) -> io::Result<Self> {
        let inherited = !fresh && nftables::table_exists(&name)?;
        let mut tables = Self {
            name,
            blocks,
            installed: Installed::Inherited,
            programs: HashMap::new(),
            claims: HashMap::new(),
        };
        if !inherited {
            tables.rebuild()?;
        }
        Ok(tables)
    }

    /// Takes new programs of owners in; `None` for an owner that asks for nothing any more. Each owner may
    /// occur once. Nothing is committed while a predecessor's table is in force: see
    /// [`Tables::take_over`].
    ///
    /// # Errors
    /// When the kernel refuses; the next call writes everything anew.
    pub(in crate::net) fn apply(
        &mut self,
        updates: impl IntoIterator<Item = (Owner, Option<Program>)>,
    ) -> io::Result<Outcome> {
        let mut changes = Changes::default();
        for (owner, program) in updates {
            self.take(owner, program.unwrap_or_default(), &mut changes);
        }
        match self.installed {
            Installed::Inherited => {}
            Installed::Doubtful => self.rebuild()?,
            Installed::Ours => {
                if let Err(error) = self.commit(&changes) {
                    tracing::warn!(table = self.name, %error, "a change of the services was refused: writing all of them anew");
                    self.installed = Installed::Doubtful;
                    self.rebuild()?;
                }
            }
        }
        Ok(changes.outcome)
    }

    /// Replaces a predecessor's table by what the programs say.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(in crate::net) fn take_over(&mut self) -> io::Result<()> {
        match self.installed {
            Installed::Ours => Ok(()),
            Installed::Inherited | Installed::Doubtful => self.rebuild(),
        }
    }

    /// Where UDP packets to each frontend may go.
    pub(in crate::net) fn udp(&self) -> HashMap<Frontend, Vec<SocketAddrV4>> {
        let mut all: HashMap<Frontend, Vec<SocketAddrV4>> = HashMap::new();
        for program in self.programs.values() {
            for (frontend, endpoints) in &program.udp {
                all.entry(*frontend).or_default().extend(endpoints);
            }
        }
        all
    }

    /// Keeps those of the endpoints that nobody leads to.
    pub(in crate::net) fn retain_lost(&self, endpoints: &mut HashSet<SocketAddrV4>) {
        for endpoint in self.programs.values().flat_map(|p| p.endpoints()) {
            endpoints.remove(endpoint);
        }
    }

    fn take(&mut self, owner: Owner, new: Program, changes: &mut Changes) {
        let old = self.programs.remove(&owner).unwrap_or_default();
        for (name, chain) in &new.chains {
            match old.chains.get(name) {
                Some(before) if before == chain => {}
                before => changes.write(name, chain, before),
            }
        }
        for (name, chain) in &old.chains {
            if !new.chains.contains_key(name) {
                changes.removed.insert(name.clone(), has_affinity(chain));
            }
        }
        for (entry, target) in &old.entries {
            if new.entries.get(entry) != Some(target) {
                self.touch(*entry, changes);
                self.release(entry, &owner);
            }
        }
        for (entry, target) in &new.entries {
            if old.entries.get(entry) != Some(target) {
                self.touch(*entry, changes);
                let claims = self.claims.entry(*entry).or_default();
                claims.insert(owner.clone(), target.clone());
            }
        }
        changes.outcome.udp_changed |= old.udp != new.udp;
        let kept: HashSet<_> = new.endpoints().collect();
        let lost = old.endpoints().filter(|endpoint| !kept.contains(endpoint));
        changes.outcome.lost.extend(lost);
        if !new.is_empty() {
            self.programs.insert(owner, Arc::new(new));
        }
    }

    /// Notes what an entry leads to before it changes.
    fn touch(&self, entry: Entry, changes: &mut Changes) {
        let now = || self.effective(&entry).cloned();
        changes.touched.entry(entry).or_insert_with(now);
    }

    fn release(&mut self, entry: &Entry, owner: &Owner) {
        if let Some(claims) = self.claims.get_mut(entry) {
            claims.remove(owner);
            if claims.is_empty() {
                self.claims.remove(entry);
            }
        }
    }

    fn effective(&self, entry: &Entry) -> Option<&Target> {
        self.claims.get(entry)?.values().next()
    }

    fn commit(&self, changes: &Changes) -> io::Result<()> {
        let (mut removed, mut added) = (Elements::default(), Elements::default());
        for (entry, before) in &changes.touched {
            let now = self.effective(entry);
            if before.as_ref() == now {
                continue;
            }
            if let Some(target) = before {
                removed.put(entry, target);
            }
            if let Some(target) = now {
                added.put(entry, target);
            }
        }
        let mut transaction = Transaction::on(&self.name);
        for (name, write) in &changes.written {
            self.declare(&mut transaction, name, write);
        }
        for (name, write) in &changes.written {
            self.write_rules(&mut transaction, name, &write.chain);
        }
        removed.each(|set, elements| transaction.remove(set, elements));
        added.each(|set, elements| transaction.add(set, elements));
        for (name, write) in &changes.written {
            if write.affinity_ends {
                transaction.delete_set(&layout::affinity_name(name));
            }
        }
        for name in changes.removed.keys() {
            transaction.flush_chain(name);
        }
        for (name, affinity) in &changes.removed {
            transaction.delete_chain(name);
            if *affinity {
                transaction.delete_set(&layout::affinity_name(name));
            }
        }
        transaction.commit()
    }

    fn declare(&self, transaction: &mut Transaction<'_>, name: &str, write: &Write) {
        if write.is_new {
            transaction.chain(name);
        } else {
            transaction.flush_chain(name);
        }
        if write.affinity_begins
            && let Chain::Spread {
                affinity: Some(lasting),
                ..
            } = &write.chain
        {
            transaction.set(&layout::affinity_map(name, *lasting));
        }
    }

    fn write_rules(&self, transaction: &mut Transaction<'_>, name: &str, chain: &Chain) {
        for rule in layout::rules(name, chain, &self.blocks) {
            transaction.rule(name, rule);
        }
    }

    /// Writes the whole table anew, in one transaction.
    fn rebuild(&mut self) -> io::Result<()> {
        let programs: Vec<_> = self.programs.values().cloned().collect();
        let mut changes = Changes::default();
        for program in &programs {
            for (name, chain) in &program.chains {
                changes.write(name, chain, None);
            }
        }
        let remembered = self.remembered(&changes);
        let mut added = Elements::default();
        for (entry, claims) in &self.claims {
            if let Some(target) = claims.values().next() {
                added.put(entry, target);
            }
        }
        let mut transaction = Transaction::on(&self.name);
        transaction.replace_table();
        layout::foundation(&mut transaction, &self.blocks);
        for (name, write) in &changes.written {
            self.declare(&mut transaction, name, write);
        }
        for (name, write) in &changes.written {
            self.write_rules(&mut transaction, name, &write.chain);
        }
        added.each(|set, elements| transaction.add(set, elements));
        for (map, clients) in &remembered {
            transaction.add(map, clients);
        }
        transaction.commit()?;
        self.installed = Installed::Ours;
        Ok(())
    }

    /// The clients that the table in force remembers for chains with affinity.
    fn remembered(&self, changes: &Changes) -> Vec<(String, Vec<Element>)> {
        let with_affinity = changes.written.iter().filter(|(_, w)| w.affinity_begins);
        let maps = with_affinity.map(|(name, _)| layout::affinity_name(name));
        let clients = |map: String| {
            // A map that was not there has nobody.
            let found = nftables::clients(&self.name, &map).unwrap_or_default();
            (map, found)
        };
        maps.map(clients).collect()
    }
}

fn has_affinity(chain: &Chain) -> bool {
    matches!(
        chain,
        Chain::Spread {
            affinity: Some(_),
            ..
        }
    )
}

/// What differs between two states.
#[derive(Default)]
struct Changes {
    written: BTreeMap<Arc<str>, Write>,
    /// Chains that go, and whether they have a map of clients.
    removed: BTreeMap<Arc<str>, bool>,
    /// Entries that may have changed, and what they led to before.
    touched: HashMap<Entry, Option<Target>>,
    outcome: Outcome,
}

/// A chain that is new or has other rules.
struct Write {
    chain: Chain,
    is_new: bool,
    affinity_begins: bool,
    affinity_ends: bool,
}

impl Changes {
    fn write(&mut self, name: &Arc<str>, chain: &Chain, before: Option<&Chain>) {
        let (had, has) = (before.is_some_and(has_affinity), has_affinity(chain));
        let write = Write {
            chain: chain.clone(),
            is_new: before.is_none(),
            affinity_begins: has && !had,
            affinity_ends: had && !has,
        };
        self.written.insert(name.clone(), write);
    }
}

/// Elements by the set that they belong to.
#[derive(Default)]
struct Elements {
    sets: BTreeMap<&'static str, Vec<Element>>,
}

impl Elements {
    fn put(&mut self, entry: &Entry, target: &Target) {
        let (set, element) = layout::element(entry, target);
        self.sets.entry(set).or_default().push(element);
    }

    fn each(&self, mut visit: impl FnMut(&str, &[Element])) {
        for (set, elements) in &self.sets {
            visit(set, elements);
        }
    }
}
