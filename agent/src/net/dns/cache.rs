//! Answers from further up that still hold.
//!
//! Two generations: what is asked for moves to the young one, and when that is full it becomes the old one and the
//! old one is forgotten. So the memory is bounded, what is used stays, and nothing has to be sorted.

use std::collections::HashMap;
use std::sync::Arc;

use super::message::{Question, push_u16};
use super::relay::Relayed;

/// Of one generation: answers, and bytes that they take.
const ENTRIES: usize = 4096;
const BYTES: usize = 1 << 20;
/// A larger answer is not kept.
const LARGEST: usize = 16 * 1024;

/// What an answer was asked with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct CacheKey(Box<[u8]>);

impl CacheKey {
    pub(super) fn new(question: &Question, dnssec_ok: bool, checking_disabled: bool) -> Self {
        let mut bytes = Vec::with_capacity(question.name.bytes().len() + 5);
        bytes.extend_from_slice(question.name.bytes());
        push_u16(&mut bytes, question.kind);
        push_u16(&mut bytes, question.class);
        bytes.push(u8::from(dnssec_ok) << 1 | u8::from(checking_disabled));
        Self(bytes.into())
    }
}

#[derive(Debug, Default)]
struct Generation {
    answers: HashMap<CacheKey, Arc<Relayed>>,
    bytes: usize,
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    young: Generation,
    old: Generation,
}

impl Cache {
    /// The answer, if there is one that still holds.
    pub(super) fn get(&mut self, key: &CacheKey) -> Option<Arc<Relayed>> {
        if let Some(found) = self.young.answers.get(key) {
            return found.is_fresh().then(|| found.clone());
        }
        let (key, found) = self.old.answers.remove_entry(key)?;
        if !found.is_fresh() {
            return None;
        }
        self.insert(key, found.clone());
        Some(found)
    }

    /// Keeps an answer, if it may be kept.
    pub(super) fn put(&mut self, key: CacheKey, answer: Arc<Relayed>) {
        if answer.is_fresh() && answer.size() <= LARGEST {
            self.insert(key, answer);
        }
    }

    fn insert(&mut self, key: CacheKey, answer: Arc<Relayed>) {
        let size = answer.size() + key.0.len();
        if self.young.answers.len() >= ENTRIES || self.young.bytes + size > BYTES {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.bytes += size;
        if let Some(replaced) = self.young.answers.insert(key, answer) {
            // The key's own bytes are counted twice until the generation ends: rather too much than too little.
            self.young.bytes -= replaced.size().min(self.young.bytes);
        }
    }

    /// Forgets everything: other servers may know other names.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::dns::message::{flag, kind};
    use crate::net::dns::name::Name;

    fn question(index: usize) -> Question {
        Question {
            name: Name::parse(&format!("host-{index}.example.org")).unwrap(),
            kind: kind::A,
            class: kind::INTERNET,
        }
    }

    fn answer(question: &Question, ttl: u32) -> Arc<Relayed> {
        let mut message = vec![0, 7];
        push_u16(&mut message, flag::RESPONSE);
        for count in [1, 1, 0, 0] {
            push_u16(&mut message, count);
        }
        message.extend_from_slice(question.name.bytes());
        message.extend([0, 1, 0, 1, 0xc0, 12, 0, 1, 0, 1]);
        message.extend(ttl.to_be_bytes());
        message.extend([0, 4, 192, 0, 2, 1]);
        Arc::new(Relayed::read(message, 7, question).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn holds_as_long_as_the_answer_says() {
        let mut cache = Cache::default();
        let asked = question(0);
        let key = CacheKey::new(&asked, false, false);
        cache.put(key.clone(), answer(&asked, 10));
        tokio::time::advance(std::time::Duration::from_secs(9)).await;
        assert!(cache.get(&key).is_some());
        assert!(cache.get(&CacheKey::new(&asked, true, false)).is_none());
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert!(cache.get(&key).is_none());
        cache.put(key.clone(), answer(&asked, 0));
        assert!(cache.get(&key).is_none());
    }

    #[test]
    fn is_bounded_and_keeps_what_is_used() {
        let mut cache = Cache::default();
        let used = CacheKey::new(&question(0), false, false);
        cache.put(used.clone(), answer(&question(0), 3600));
        for index in 1..=3 * ENTRIES {
            let asked = question(index);
            cache.put(CacheKey::new(&asked, false, false), answer(&asked, 3600));
            assert!(cache.get(&used).is_some(), "{index}");
        }
        assert!(cache.young.answers.len() <= ENTRIES && cache.old.answers.len() <= ENTRIES);
        assert!(cache.young.bytes <= BYTES && cache.old.bytes <= BYTES);
        let forgotten = CacheKey::new(&question(1), false, false);
        assert!(cache.get(&forgotten).is_none());
    }
}
