//! Numbers that are given out one by one: which are taken, and which is next.

use std::collections::HashMap;
use std::ops::RangeInclusive;

/// A range of numbers, the first of which (the static band) are given out unasked only when
/// all others are taken: people choose theirs there (KEP-3070, KEP-3668).
pub(super) struct Pool {
    range: RangeInclusive<u32>,
    /// Where the numbers begin that are given out first.
    dynamic: u32,
    /// How many hold each number: the stored object, and a write that is on its way.
    held: HashMap<u32, u32>,
}

impl Pool {
    pub(super) fn new(range: RangeInclusive<u32>, static_band: u32) -> Self {
        Self {
            dynamic: range.start().saturating_add(static_band),
            range,
            held: HashMap::new(),
        }
    }

    pub(super) fn is_held(&self, number: u32) -> bool {
        self.held.contains_key(&number)
    }

    pub(super) fn hold(&mut self, number: u32) {
        *self.held.entry(number).or_default() += 1;
    }

    pub(super) fn release(&mut self, number: u32) {
        if let Some(count) = self.held.get_mut(&number) {
            *count -= 1;
            if *count == 0 {
                self.held.remove(&number);
            }
        }
    }

    pub(super) fn contains(&self, number: u32) -> bool {
        self.range.contains(&number)
    }

    pub(super) fn range(&self) -> &RangeInclusive<u32> {
        &self.range
    }

    /// A free number, chosen at random so that one that was just released rests a while;
    /// `None` when all are taken.
    pub(super) fn next(&self) -> Option<u32> {
        let (first, last) = (*self.range.start(), *self.range.end());
        let dynamic = self.dynamic.clamp(first, last.saturating_add(1));
        self.free_in(dynamic..=last)
            .or_else(|| self.free_in(first..=dynamic.saturating_sub(1)))
    }

    fn free_in(&self, band: RangeInclusive<u32>) -> Option<u32> {
        if band.is_empty() {
            return None;
        }
        let (first, last) = (*band.start(), *band.end());
        let start = rand::random_range(band);
        (start..=last)
            .chain(first..start)
            .find(|number| !self.is_held(*number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_static_band_is_given_out_last() {
        let mut pool = Pool::new(10..=19, 4);
        for _ in 0..6 {
            let number = pool.next().unwrap();
            assert!((14..=19).contains(&number));
            pool.hold(number);
        }
        for _ in 0..4 {
            let number = pool.next().unwrap();
            assert!((10..=13).contains(&number));
            pool.hold(number);
        }
        assert_eq!(pool.next(), None);
        pool.release(12);
        assert_eq!(pool.next(), Some(12));
    }

    #[test]
    fn a_number_is_free_when_the_last_lets_go() {
        let mut pool = Pool::new(1..=1, 0);
        pool.hold(1);
        pool.hold(1);
        pool.release(1);
        assert_eq!(pool.next(), None);
        pool.release(1);
        pool.release(1);
        assert_eq!(pool.next(), Some(1));
    }

    #[test]
    fn a_band_as_large_as_the_range_leaves_nothing_out() {
        let pool = Pool::new(5..=5, 16);
        assert_eq!(pool.next(), Some(5));
    }
}
