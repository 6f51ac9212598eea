//! Messages (RFC 1035, 4): reading a query, writing its answer.
//!
//! Only what a resolver for a cluster needs is understood; whatever else is forwarded as the bytes that it is.
//! The answer is written straight into the buffer that is sent: question first, as it was asked, then records
//! whose owners are pointers into what stands there already. A record that does not fit any more is left out,
//! and the message says that it is cut (TC), which makes the client ask again over TCP.

use std::net::Ipv4Addr;

use super::name::{self, InvalidName, Name};

pub(super) const HEADER: usize = 12;
/// The payload that we can take and give over UDP with EDNS: what fits an Ethernet frame for
/// certain (DNS flag day 2020).
pub(super) const UDP_PAYLOAD: u16 = 1232;
/// The most that a client without EDNS takes over UDP.
const PLAIN_UDP: usize = 512;
/// The most over UDP, whatever a client says that it takes.
const MOST_UDP: usize = 4096;
const OPT_LENGTH: usize = 11;
/// Where the name of the one question begins.
pub(super) const QUESTION_NAME: u16 = HEADER as u16;

/// Bits of the header's second word.
pub(super) mod flag {
    pub(in super::super) const RESPONSE: u16 = 0x8000;
    pub(in super::super) const AUTHORITATIVE: u16 = 0x0400;
    pub(in super::super) const TRUNCATED: u16 = 0x0200;
    pub(in super::super) const RECURSION_DESIRED: u16 = 0x0100;
    pub(in super::super) const RECURSION_AVAILABLE: u16 = 0x0080;
    pub(in super::super) const AUTHENTIC: u16 = 0x0020;
    pub(in super::super) const CHECKING_DISABLED: u16 = 0x0010;
    pub(in super::super) const OPCODE: u16 = 0x7800;
    pub(in super::super) const RCODE: u16 = 0x000f;
}

/// Types and classes.
pub(super) mod kind {
    pub(in super::super) const A: u16 = 1;
    pub(in super::super) const NS: u16 = 2;
    pub(in super::super) const CNAME: u16 = 5;
    pub(in super::super) const SOA: u16 = 6;
    pub(in super::super) const PTR: u16 = 12;
    pub(in super::super) const TXT: u16 = 16;
    pub(in super::super) const AAAA: u16 = 28;
    pub(in super::super) const SRV: u16 = 33;
    pub(in super::super) const OPT: u16 = 41;
    pub(in super::super) const IXFR: u16 = 251;
    pub(in super::super) const AXFR: u16 = 252;
    pub(in super::super) const ANY: u16 = 255;
    pub(in super::super) const INTERNET: u16 = 1;
}

/// How a query ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rcode {
    NoError = 0,
    FormErr = 1,
    ServFail = 2,
    NxDomain = 3,
    NotImp = 4,
    Refused = 5,
}

/// What a query asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) name: Name,
    pub(super) kind: u16,
    pub(super) class: u16,
}

/// What a client says of itself beyond RFC 1035 (RFC 6891).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Edns {
    payload: u16,
    version: u8,
    pub(super) dnssec_ok: bool,
}

/// A query that can be answered.
#[derive(Debug, Clone)]
pub(super) struct Query {
    pub(super) id: u16,
    pub(super) flags: u16,
    pub(super) question: Question,
    /// The question as it was asked: its case is kept in the answer.
    pub(super) asked: Box<[u8]>,
    pub(super) edns: Option<Edns>,
}

/// What comes instead of a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoQuery {
    /// No answer is due: an answer itself, or not even a header.
    Silence,
    /// Refused by a header alone.
    Answer(Rcode),
}

impl From<InvalidName> for NoQuery {
    fn from(_: InvalidName) -> Self {
        Self::Answer(Rcode::FormErr)
    }
}

pub(super) fn u16_at(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at + 2)?;
    Some(u16::from_be_bytes([bytes[0], bytes[1]]))
}

pub(super) fn u32_at(message: &[u8], at: usize) -> Option<u32> {
    let bytes = message.get(at..at + 4)?;
    Some(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

impl Question {
    /// Reads the one question of a message; gives where it ends.
    pub(super) fn read(message: &[u8]) -> Result<(Self, usize), InvalidName> {
        let (name, end) = Name::read(message, HEADER)?;
        // A first name has nothing to point to.
        if end - HEADER != name.bytes().len() {
            return Err(InvalidName);
        }
        let kind = u16_at(message, end).ok_or(InvalidName)?;
        let class = u16_at(message, end + 2).ok_or(InvalidName)?;
        Ok((Self { name, kind, class }, end + 4))
    }
}

impl Query {
    pub(super) fn read(message: &[u8]) -> Result<Self, NoQuery> {
        let word = |index: usize| u16_at(message, index * 2).ok_or(NoQuery::Silence);
        let (id, flags) = (word(0)?, word(1)?);
        let counts = [word(2)?, word(3)?, word(4)?, word(5)?];
        if flags & flag::RESPONSE != 0 {
            return Err(NoQuery::Silence);
        }
        if flags & flag::OPCODE != 0 {
            return Err(NoQuery::Answer(Rcode::NotImp));
        }
        // One question, nothing else (RFC 9619).
        if counts[0] != 1 {
            return Err(NoQuery::Answer(Rcode::FormErr));
        }
        let (question, mut at) = Question::read(message)?;
        let asked = message[HEADER..at].into();
        let mut edns = None;
        for _ in 0..counts[1..].iter().copied().map(u32::from).sum::<u32>() {
            let record = Record::read(message, at)?;
            if record.kind == kind::OPT && edns.replace(record.edns()).is_some() {
                return Err(NoQuery::Answer(Rcode::FormErr));
            }
            at = record.end;
        }
        Ok(Self {
            id,
            flags,
            question,
            asked,
            edns,
        })
    }

    /// An extension of DNS that nobody knows yet.
    pub(super) fn has_bad_version(&self) -> bool {
        self.edns.is_some_and(|edns| edns.version > 0)
    }

    pub(super) fn dnssec_ok(&self) -> bool {
        self.edns.is_some_and(|edns| edns.dnssec_ok)
    }

    /// Bytes that an answer over UDP may have.
    pub(super) fn udp_limit(&self) -> usize {
        self.edns.map_or(PLAIN_UDP, |edns| {
            usize::from(edns.payload).clamp(PLAIN_UDP, MOST_UDP)
        })
    }
}

/// Where the parts of a record are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) kind: u16,
    class: u16,
    pub(super) ttl: u32,
    /// Where the time to live stands.
    pub(super) ttl_at: usize,
    pub(super) data: usize,
    pub(super) end: usize,
}

impl Record {
    pub(super) fn read(message: &[u8], at: usize) -> Result<Self, InvalidName> {
        let at = name::skip(message, at)?;
        let word = |offset: usize| u16_at(message, at + offset).ok_or(InvalidName);
        let data = at + 10;
        let end = data + usize::from(word(8)?);
        if end > message.len() {
            return Err(InvalidName);
        }
        Ok(Self {
            kind: word(0)?,
            class: word(2)?,
            ttl: u32_at(message, at + 4).ok_or(InvalidName)?,
            ttl_at: at + 4,
            data,
            end,
        })
    }

    /// Of an OPT record, whose fields have other meanings.
    fn edns(&self) -> Edns {
        Edns {
            payload: self.class,
            version: (self.ttl >> 16) as u8,
            dnssec_ok: self.ttl & 0x8000 != 0,
        }
    }
}

/// A header alone, for what is no query.
pub(super) fn refusal(message: &[u8], rcode: Rcode, out: &mut Vec<u8>) {
    out.clear();
    let id = u16_at(message, 0).unwrap_or_default();
    let flags = u16_at(message, 2).unwrap_or_default();
    let kept = flags & (flag::OPCODE | flag::RECURSION_DESIRED);
    push_u16(out, id);
    push_u16(out, flag::RESPONSE | kept | rcode as u16);
    out.resize(HEADER, 0);
}

pub(super) fn push_u16(out: &mut Vec<u8>, value: u16) {
    out.extend(value.to_be_bytes());
}

fn push_u32(out: &mut Vec<u8>, value: u32) {
    out.extend(value.to_be_bytes());
}

/// A record's owner.
#[derive(Debug, Clone, Copy)]
pub(super) enum Owner<'a> {
    /// A name that stands at this place already.
    At(u16),
    Name(&'a [u8]),
}

/// What a record says.
#[derive(Debug, Clone, Copy)]
pub(super) enum Data<'a> {
    A(Ipv4Addr),
    /// CNAME, PTR and NS: a name on the wire.
    Name(u16, &'a [u8]),
    Srv {
        weight: u16,
        port: u16,
        target: &'a [u8],
    },
    Txt(&'a str),
    Soa(&'a Soa<'a>),
    Raw(u16, &'a [u8]),
}

/// Who answers for a zone, and how long a "no" holds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Soa<'a> {
    pub(super) primary: &'a [u8],
    pub(super) mailbox: &'a [u8],
    pub(super) serial: u32,
    /// Seconds.
    pub(super) negative_ttl: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Section {
    Answer,
    Authority,
    Additional,
}

/// An answer that is being written.
pub(super) struct Reply<'a> {
    pub(super) out: &'a mut Vec<u8>,
    /// Bytes for records, the OPT record already taken off.
    limit: usize,
    counts: [u16; 3],
    flags: u16,
    edns: Option<Edns>,
}

impl<'a> Reply<'a> {
    /// Begins the answer to `query` in a cleared buffer, of at most `limit` bytes.
    pub(super) fn to(query: &Query, limit: usize, out: &'a mut Vec<u8>) -> Self {
        out.clear();
        push_u16(out, query.id);
        out.resize(HEADER, 0);
        out[5] = 1;
        out.extend_from_slice(&query.asked);
        let kept = flag::RECURSION_DESIRED | flag::CHECKING_DISABLED;
        Self {
            out,
            limit: limit - query.edns.map_or(0, |_| OPT_LENGTH),
            counts: [0; 3],
            flags: flag::RESPONSE | flag::RECURSION_AVAILABLE | (query.flags & kept),
            edns: query.edns,
        }
    }

    pub(super) fn set(&mut self, flags: u16) {
        self.flags |= flags;
    }

    pub(super) fn rcode(&mut self, rcode: Rcode) {
        self.raw_rcode(rcode as u16);
    }

    /// An rcode that somebody else gave.
    pub(super) fn raw_rcode(&mut self, rcode: u16) {
        self.flags = self.flags & !flag::RCODE | rcode & flag::RCODE;
    }

    /// Whether a record of the answer was left out.
    fn is_cut(&self) -> bool {
        self.flags & flag::TRUNCATED != 0
    }

    /// Adds a record; gives where its data begins, unless there is no room for it.
    pub(super) fn record(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        ttl: u32,
        data: Data<'_>,
    ) -> Option<u16> {
        if self.is_cut() {
            return None;
        }
        let begin = self.out.len();
        match owner {
            Owner::At(at) => push_u16(self.out, at | u16::from(name::POINTER) << 8),
            Owner::Name(name) => self.out.extend_from_slice(name),
        }
        push_u16(self.out, data.kind());
        push_u16(self.out, kind::INTERNET);
        push_u32(self.out, ttl);
        let length_at = self.out.len();
        push_u16(self.out, 0);
        data.write(self.out);
        let length = self.out.len() - length_at - 2;
        self.out[length_at..length_at + 2].copy_from_slice(&(length as u16).to_be_bytes());
        self.keep(section, begin).then_some((length_at + 2) as u16)
    }

    /// Adds a record that is already in the form of the wire.
    pub(super) fn wire(&mut self, section: Section, record: &[u8]) -> bool {
        let begin = self.out.len();
        self.out.extend_from_slice(record);
        !self.is_cut() && self.keep(section, begin)
    }

    /// Takes the record that begins at `begin` back when it does not fit.
    fn keep(&mut self, section: Section, begin: usize) -> bool {
        if self.out.len() > self.limit {
            self.out.truncate(begin);
            // What is additional may be left out without saying so (RFC 2181, 9).
            if section != Section::Additional {
                self.set(flag::TRUNCATED);
            }
            return false;
        }
        self.counts[section as usize] += 1;
        true
    }

    /// Writes counts, flags and the OPT record.
    pub(super) fn finish(mut self) {
        if let Some(edns) = self.edns {
            self.out.push(0);
            push_u16(self.out, kind::OPT);
            push_u16(self.out, UDP_PAYLOAD);
            // BADVERS, the only extended code that is ours to give.
            let extended = u32::from(edns.version > 0) << 24;
            push_u32(self.out, extended | u32::from(edns.dnssec_ok) << 15);
            push_u16(self.out, 0);
            self.counts[2] += 1;
        }
        self.out[2..4].copy_from_slice(&self.flags.to_be_bytes());
        for (index, count) in self.counts.into_iter().enumerate() {
            let at = 6 + index * 2;
            self.out[at..at + 2].copy_from_slice(&count.to_be_bytes());
        }
    }
}

impl Data<'_> {
    fn kind(&self) -> u16 {
        match self {
            Self::A(_) => kind::A,
            Self::Name(kind, _) | Self::Raw(kind, _) => *kind,
            Self::Srv { .. } => kind::SRV,
            Self::Txt(_) => kind::TXT,
            Self::Soa(_) => kind::SOA,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::A(address) => out.extend(address.octets()),
            Self::Name(_, bytes) | Self::Raw(_, bytes) => out.extend_from_slice(bytes),
            Self::Srv {
                weight,
                port,
                target,
            } => {
                for word in [0, *weight, *port] {
                    push_u16(out, word);
                }
                out.extend_from_slice(target);
            }
            Self::Txt(text) => {
                out.push(text.len().min(255) as u8);
                out.extend(text.bytes().take(255));
            }
            Self::Soa(soa) => {
                out.extend_from_slice(soa.primary);
                out.extend_from_slice(soa.mailbox);
                for word in [soa.serial, 7200, 1800, 86400, soa.negative_ttl] {
                    push_u32(out, word);
                }
            }
        }
    }
}

/// A query for a server further up.
pub(super) fn upstream_query(id: u16, asked: &Upstream<'_>, out: &mut Vec<u8>) {
    out.clear();
    push_u16(out, id);
    let checking = match asked.checking_disabled {
        true => flag::CHECKING_DISABLED,
        false => 0,
    };
    push_u16(out, flag::RECURSION_DESIRED | flag::AUTHENTIC | checking);
    for count in [1, 0, 0, u16::from(asked.edns)] {
        push_u16(out, count);
    }
    out.extend_from_slice(asked.question.name.bytes());
    push_u16(out, asked.question.kind);
    push_u16(out, asked.question.class);
    if asked.edns {
        out.push(0);
        push_u16(out, kind::OPT);
        push_u16(out, UDP_PAYLOAD);
        push_u32(out, u32::from(asked.dnssec_ok) << 15);
        push_u16(out, 0);
    }
}

/// What a server further up is asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Upstream<'a> {
    pub(super) question: &'a Question,
    pub(super) dnssec_ok: bool,
    pub(super) checking_disabled: bool,
    /// With an OPT record; some old servers don't understand it.
    pub(super) edns: bool,
}
