//! An answer from a server further up, as it is kept and handed on.
//!
//! It stays the bytes that it came as; only where its records end and their times to live stand is noted. Each
//! client gets it under its own id and question, its times counted down, cut to what the client takes.

use std::time::Duration;

use tokio::time::Instant;

use super::message::{
    Data, HEADER, Owner, Query, Question, Rcode, Record, Reply, Section, flag, kind, u16_at, u32_at,
};
use super::name::{InvalidName, Name};

/// The longest that an answer is kept, and the longest for one that says no.
const LONGEST: Duration = Duration::from_secs(3600);
const LONGEST_NEGATIVE: Duration = Duration::from_secs(300);

/// One message.
#[derive(Debug, Clone)]
pub(super) struct Relayed {
    message: Box<[u8]>,
    /// Where the records begin.
    begin: usize,
    records: Box<[Part]>,
    came: Instant,
    /// How long it holds; nothing when it must not be kept.
    holds: Option<Duration>,
}

/// Where one record stands.
#[derive(Debug, Clone, Copy)]
struct Part {
    section: Section,
    kind: u16,
    begin: usize,
    ttl_at: usize,
    data: usize,
    end: usize,
}

/// Why bytes are not the answer to what was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAnAnswer {
    #[error("it answers something else")]
    Other,
    #[error("it can't be read")]
    Malformed,
}

impl From<InvalidName> for NotAnAnswer {
    fn from(_: InvalidName) -> Self {
        Self::Malformed
    }
}

impl Relayed {
    /// Reads the answer to the question that was sent under `id`.
    pub(super) fn read(message: Vec<u8>, id: u16, asked: &Question) -> Result<Self, NotAnAnswer> {
        let word = |index: usize| u16_at(&message, index * 2).ok_or(NotAnAnswer::Malformed);
        let flags = word(1)?;
        if word(0)? != id || flags & flag::RESPONSE == 0 || flags & flag::OPCODE != 0 {
            return Err(NotAnAnswer::Other);
        }
        if word(2)? != 1 {
            return Err(NotAnAnswer::Malformed);
        }
        let (question, begin) = Question::read(&message)?;
        if question != *asked {
            return Err(NotAnAnswer::Other);
        }
        let records = match read_records(&message, begin, [word(3)?, word(4)?, word(5)?]) {
            Ok(records) => records,
            // Cut in the middle of a record; it will be asked for again.
            Err(_) if flags & flag::TRUNCATED != 0 => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let mut relayed = Self {
            message: message.into(),
            begin,
            records: records.into(),
            came: Instant::now(),
            holds: None,
        };
        relayed.holds = relayed.lifetime();
        Ok(relayed)
    }

    fn flags(&self) -> u16 {
        u16_at(&self.message, 2).unwrap_or_default()
    }

    pub(super) fn is_truncated(&self) -> bool {
        self.flags() & flag::TRUNCATED != 0
    }

    pub(super) fn rcode(&self) -> u16 {
        self.flags() & flag::RCODE
    }

    /// Bytes that keeping it takes, about.
    pub(super) fn size(&self) -> usize {
        self.message.len() + size_of_val(&*self.records) + size_of::<Self>()
    }

    /// Whether it still holds.
    pub(super) fn is_fresh(&self) -> bool {
        self.holds.is_some_and(|holds| self.came.elapsed() < holds)
    }

    /// RFC 2308: the least time of the records; for a "no", what the zone's SOA says.
    fn lifetime(&self) -> Option<Duration> {
        let no_error = self.rcode() == Rcode::NoError as u16;
        if self.is_truncated() || !(no_error || self.rcode() == Rcode::NxDomain as u16) {
            return None;
        }
        let ttl = |part: &Part| u32_at(&self.message, part.ttl_at).unwrap_or_default();
        let answers = || self.records.iter().filter(|p| p.section == Section::Answer);
        let least = answers().map(ttl).min();
        let (seconds, longest) = match least {
            Some(least) if no_error => (least, LONGEST),
            _ => {
                let soa = self
                    .records
                    .iter()
                    .find(|part| part.section == Section::Authority && part.kind == kind::SOA)?;
                let minimum = u32_at(&self.message, soa.end.checked_sub(4)?)?;
                let negative = minimum.min(ttl(soa));
                (
                    least.map_or(negative, |l| l.min(negative)),
                    LONGEST_NEGATIVE,
                )
            }
        };
        let holds = Duration::from_secs(seconds.into()).min(longest);
        (!holds.is_zero()).then_some(holds)
    }

    /// Writes it as the answer to `query`.
    pub(super) fn write(&self, query: &Query, limit: usize, out: &mut Vec<u8>) {
        let mut reply = Reply::to(query, limit, out);
        let flags = self.flags();
        reply.raw_rcode(flags);
        let wants_authentic = query.flags & flag::AUTHENTIC != 0 || query.dnssec_ok();
        if wants_authentic {
            reply.set(flags & flag::AUTHENTIC);
        }
        reply.set(flags & flag::TRUNCATED);
        self.append(&mut reply);
        reply.finish();
    }

    /// All records but OPT. They keep their places in the message, because names point there.
    fn append(&self, reply: &mut Reply<'_>) {
        let age = u32::try_from(self.came.elapsed().as_secs()).unwrap_or(u32::MAX);
        debug_assert_eq!(
            reply.out.len(),
            self.begin,
            "the question has the same length"
        );
        for part in &self.records {
            // Records behind OPT would move.
            if part.kind == kind::OPT {
                return;
            }
            let begin = reply.out.len();
            if !reply.wire(part.section, &self.message[part.begin..part.end]) {
                return;
            }
            let ttl = u32_at(&self.message, part.ttl_at).unwrap_or_default();
            let at = begin + part.ttl_at - part.begin;
            let left = ttl.saturating_sub(age).to_be_bytes();
            reply.out[at..at + 4].copy_from_slice(&left);
        }
    }

    /// The addresses and aliases of the answer, in a reply that has another question: `owner` is where its name
    /// stands there.
    pub(super) fn append_addresses(&self, asked: &Name, owner: u16, reply: &mut Reply<'_>) {
        let answers = self.records.iter().filter(|p| p.section == Section::Answer);
        for part in answers {
            let Ok((name, _)) = Name::read(&self.message, part.begin) else {
                return;
            };
            let owner = match name == *asked {
                true => Owner::At(owner),
                false => Owner::Name(name.bytes()),
            };
            let ttl = u32_at(&self.message, part.ttl_at).unwrap_or_default();
            let age = u32::try_from(self.came.elapsed().as_secs()).unwrap_or(u32::MAX);
            let data = &self.message[part.data..part.end];
            let left = ttl.saturating_sub(age);
            match part.kind {
                kind::A | kind::AAAA => {
                    let data = Data::Raw(part.kind, data);
                    reply.record(Section::Answer, owner, left, data);
                }
                kind::CNAME => {
                    let Ok((target, _)) = Name::read(&self.message, part.data) else {
                        return;
                    };
                    let data = Data::Name(kind::CNAME, target.bytes());
                    reply.record(Section::Answer, owner, left, data);
                }
                _ => {}
            }
        }
    }
}

fn read_records(message: &[u8], begin: usize, counts: [u16; 3]) -> Result<Vec<Part>, InvalidName> {
    let sections = [Section::Answer, Section::Authority, Section::Additional];
    let mut parts = Vec::new();
    let mut at = begin;
    for (section, count) in sections.into_iter().zip(counts) {
        for _ in 0..count {
            let record = Record::read(message, at)?;
            parts.push(Part {
                section,
                kind: record.kind,
                begin: at,
                ttl_at: record.ttl_at,
                data: record.data,
                end: record.end,
            });
            at = record.end;
        }
    }
    debug_assert!(begin >= HEADER);
    Ok(parts)
}
