//! nftables over netlink: only what a node's table needs, without the `nft` program.
//!
//! A [`Transaction`] collects requests and commits them in one atomic batch: either all of it is
//! in force or everything stays as it was. [`Rule`] says what a rule is made of, [`Set`] what packets are
//! looked up in. Numbers are from `linux/netfilter/nf_tables.h`.

mod attributes;
mod rule;
mod set;

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP};

use super::netlink::{Netlink, Request, attributes};
use attributes::Attributes;
pub(super) use attributes::Verdict;
use rule::Expression;
pub(super) use rule::{Field, Rule};
pub(super) use set::{Data, Element, Key, Leads, Set, Type};

const SUBSYSTEM: u16 = 10 << 8;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NEW_TABLE: u16 = SUBSYSTEM;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const DEL_TABLE: u16 = SUBSYSTEM | 2;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const DEL_CHAIN: u16 = SUBSYSTEM | 5;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const DEL_RULE: u16 = SUBSYSTEM | 8;
const NEW_SET: u16 = SUBSYSTEM | 9;
const DEL_SET: u16 = SUBSYSTEM | 11;
const NEW_ELEMENTS: u16 = SUBSYSTEM | 12;
const GET_ELEMENTS: u16 = SUBSYSTEM | 13;
const DEL_ELEMENTS: u16 = SUBSYSTEM | 14;

const FAMILY_UNSPEC: u8 = 0;
const FAMILY_INET: u8 = 1;
/// Bytes of elements in one request: an attribute's length has 16 bits.
const MAX_ELEMENTS_BYTES: usize = 32 * 1024;

/// Where in a packet's way a base chain sits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hook {
    number: u32,
    priority: i32,
    kind: &'static str,
}

impl Hook {
    /// Before anything else looks at a packet that came in.
    pub(super) const RAW: Hook = Hook::new(0, -300, "filter");
    /// Before routing, where the destination may be rewritten (`NF_IP_PRI_NAT_DST`).
    pub(super) const DESTINATION_NAT: Hook = Hook::new(0, -100, "nat");
    /// The same for what the host itself sends.
    pub(super) const OUTPUT_NAT: Hook = Hook::new(3, -100, "nat");
    /// After routing, where the source address may be rewritten (`NF_IP_PRI_NAT_SRC`).
    pub(super) const SOURCE_NAT: Hook = Hook::new(4, 100, "nat");
    pub(super) const INPUT: Hook = Hook::new(1, 0, "filter");
    pub(super) const FORWARD: Hook = Hook::new(2, 0, "filter");
    pub(super) const OUTPUT: Hook = Hook::new(3, 0, "filter");

    const fn new(number: u32, priority: i32, kind: &'static str) -> Self {
        Self {
            number,
            priority,
            kind,
        }
    }
}

/// Requests on one table of the `inet` family that take effect together.
pub(super) struct Transaction<'a> {
    table: &'a str,
    requests: Vec<Request>,
    /// Names a set within the transaction.
    next_set: u32,
}

impl<'a> Transaction<'a> {
    pub(super) fn on(table: &'a str) -> Self {
        Self {
            table,
            requests: vec![batch_edge(BATCH_BEGIN)],
            next_set: 1,
        }
    }

    /// Makes the table, empty, whether or not it was there.
    pub(super) fn replace_table(&mut self) {
        self.create_table();
        self.delete_table();
        self.create_table();
    }

    fn create_table(&mut self) {
        let attributes = Attributes::default().text(1, self.table);
        self.push(NEW_TABLE, NLM_F_CREATE, attributes);
    }

    pub(super) fn delete_table(&mut self) {
        let attributes = Attributes::default().text(1, self.table);
        self.push(DEL_TABLE, 0, attributes);
    }

    pub(super) fn base_chain(&mut self, name: &str, hook: Hook) {
        let place = Attributes::default()
            .number(1, hook.number)
            .number(2, hook.priority.cast_unsigned());
        let attributes = self.named(name).nested(4, place).text(7, hook.kind);
        self.push(NEW_CHAIN, NLM_F_CREATE, attributes);
    }

    pub(super) fn chain(&mut self, name: &str) {
        self.push(NEW_CHAIN, NLM_F_CREATE, self.named(name));
    }

    /// Removes a chain that nothing leads to any more.
    pub(super) fn delete_chain(&mut self, name: &str) {
        self.push(DEL_CHAIN, 0, self.named(name));
    }

    /// Removes all rules of a chain.
    pub(super) fn flush_chain(&mut self, name: &str) {
        let attributes = Attributes::default().text(1, self.table).text(2, name);
        self.push(DEL_RULE, 0, attributes);
    }

    /// Names of chains stand in attribute 3, everything else's in 2.
    fn named(&self, chain: &str) -> Attributes {
        Attributes::default().text(1, self.table).text(3, chain)
    }

    pub(super) fn rule(&mut self, chain: &str, rule: Rule) {
        let mut expressions = Attributes::default();
        for expression in rule.expressions {
            let (name, data) = match expression {
                Expression::Encoded(name, data) => (name, data),
                Expression::Lookup {
                    set,
                    elements,
                    key,
                    found,
                } => {
                    let id = self.declare(&set, elements.len());
                    self.elements(NEW_ELEMENTS, &set.name, Some(id), &elements);
                    let mut data = Attributes::default().text(1, &set.name).number(2, key);
                    if let Some(found) = found {
                        data = data.number(3, found);
                    }
                    ("lookup", data.number(4, id))
                }
            };
            let expression = Attributes::default().text(1, name).nested(2, data);
            expressions = expressions.nested(1, expression);
        }
        let attributes = Attributes::default()
            .text(1, self.table)
            .text(2, chain)
            .nested(4, expressions);
        self.push(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, attributes);
    }

    pub(super) fn set(&mut self, set: &Set) {
        self.declare(set, 0);
    }

    fn declare(&mut self, set: &Set, count: usize) -> u32 {
        let id = self.next_set;
        self.next_set += 1;
        let attributes = set.declaration(self.table, id, count);
        self.push(NEW_SET, NLM_F_CREATE, attributes);
        id
    }

    pub(super) fn delete_set(&mut self, name: &str) {
        let attributes = Attributes::default().text(1, self.table).text(2, name);
        self.push(DEL_SET, 0, attributes);
    }

    pub(super) fn add(&mut self, set: &str, elements: &[Element]) {
        self.elements(NEW_ELEMENTS, set, None, elements);
    }

    pub(super) fn remove(&mut self, set: &str, elements: &[Element]) {
        self.elements(DEL_ELEMENTS, set, None, elements);
    }

    fn elements(&mut self, kind: u16, set: &str, id: Option<u32>, elements: &[Element]) {
        let flags = if kind == NEW_ELEMENTS {
            NLM_F_CREATE
        } else {
            0
        };
        let mut list = Attributes::default();
        for (index, element) in elements.iter().enumerate() {
            list = list.nested(1, element.encoded());
            if list.0.len() < MAX_ELEMENTS_BYTES && index + 1 < elements.len() {
                continue;
            }
            let mut attributes = Attributes::default().text(1, self.table).text(2, set);
            attributes = attributes.nested(3, std::mem::take(&mut list));
            if let Some(id) = id {
                attributes = attributes.number(4, id);
            }
            self.push(kind, flags, attributes);
        }
    }

    fn push(&mut self, kind: u16, flags: u16, attributes: Attributes) {
        let mut payload = family_header(FAMILY_INET, 0);
        payload.extend(attributes.0);
        self.requests.push(Request {
            kind,
            flags,
            payload,
        });
    }

    /// # Errors
    /// The kernel's, of the first request that it refused; nothing has changed then.
    pub(super) fn commit(mut self) -> io::Result<()> {
        if let [_, .., last] = &mut *self.requests {
            // One answer tells that everything went well; refusals come unasked.
            last.flags |= NLM_F_ACK;
        } else {
            return Ok(());
        }
        self.requests.push(batch_edge(BATCH_END));
        let committed = Netlink::netfilter()?.batch(&self.requests);
        committed
            .inspect(|bytes| {
                let requests = self.requests.len();
                tracing::debug!(table = self.table, requests, bytes, "committed");
            })
            .map(drop)
            .map_err(|refused| {
                let kind = self.requests.get(refused.index).map(|r| r.kind & 0xff);
                tracing::debug!(table = self.table, request = refused.index, ?kind, error = %refused.source, "nftables refused a transaction");
                refused.source
            })
    }
}

/// Whether the table is there.
pub(super) fn table_exists(table: &str) -> io::Result<bool> {
    let mut payload = family_header(FAMILY_INET, 0);
    payload.extend(Attributes::default().text(1, table).0);
    let request = Request {
        kind: GET_TABLE,
        flags: NLM_F_ACK,
        payload,
    };
    match Netlink::netfilter()?.apply_one(request) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The tables of the `inet` family whose names begin with `prefix`.
pub(super) fn tables(prefix: &str) -> io::Result<Vec<String>> {
    let request = Request {
        kind: GET_TABLE,
        flags: NLM_F_DUMP,
        payload: family_header(FAMILY_INET, 0),
    };
    let mut found = Vec::new();
    Netlink::netfilter()?.dump_raw(&request, |payload| {
        let body = payload.get(4..).unwrap_or_default();
        let name = attributes(body).find(|(kind, _)| *kind == 1);
        let name = name.map(|(_, name)| String::from_utf8_lossy(name).into_owned());
        found.extend(name.map(|name| name.trim_end_matches('\0').to_owned()));
    })?;
    found.retain(|name| name.starts_with(prefix));
    Ok(found)
}

/// The elements of a map of clients, with the time that each lasts still.
pub(super) fn clients(table: &str, map: &str) -> io::Result<Vec<Element>> {
    let mut payload = family_header(FAMILY_INET, 0);
    payload.extend(Attributes::default().text(1, table).text(2, map).0);
    let request = Request {
        kind: GET_ELEMENTS,
        flags: NLM_F_DUMP,
        payload,
    };
    let mut found = Vec::new();
    Netlink::netfilter()?.dump_raw(&request, |payload| {
        let body = payload.get(4..).unwrap_or_default();
        let lists = attributes(body).filter(|(kind, _)| *kind == 3);
        let elements = lists.flat_map(|(_, list)| attributes(list));
        found.extend(elements.filter_map(|(_, element)| Element::client(element)));
    })?;
    Ok(found)
}

fn batch_edge(kind: u16) -> Request {
    Request {
        kind,
        flags: 0,
        payload: family_header(FAMILY_UNSPEC, SUBSYSTEM >> 8),
    }
}

/// `struct nfgenmsg`
fn family_header(family: u8, resource: u16) -> Vec<u8> {
    let mut header = vec![family, 0];
    header.extend(resource.to_be_bytes());
    header
}
