//! Which of the candidates become victims: the same ones for the same seed, on every machine and in every version.

use super::Refusal;

/// A sequence of numbers that a seed determines: SplitMix64 (Steele, Lea, Flood 2014). It is written out
/// here because a library's generators may change with its version, and a drill is to be repeated.
struct Sequence(u64);

impl Sequence {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not zero.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

/// Positions of `wanted` out of `candidates`, ascending. More victims of the same seed include the fewer.
pub(super) fn choose(candidates: usize, wanted: usize, seed: i64) -> Vec<usize> {
    let mut sequence = Sequence(seed as u64);
    let mut positions: Vec<usize> = (0..candidates).collect();
    let wanted = wanted.min(candidates);
    for at in 0..wanted {
        let other = at + sequence.below(candidates - at);
        positions.swap(at, other);
    }
    positions.truncate(wanted);
    positions.sort_unstable();
    positions
}

/// How many victims there are to be: `count`, or `percent` of the candidates rounded up, or one.
pub(super) fn wanted(
    count: Option<i32>,
    percent: Option<i32>,
    candidates: usize,
) -> Result<usize, Refusal> {
    let wanted = match (count, percent) {
        (Some(count), _) => usize::try_from(count).unwrap_or(0),
        (None, Some(percent)) => {
            let percent = usize::try_from(percent).unwrap_or(0).min(100);
            (candidates * percent).div_ceil(100)
        }
        (None, None) => 1,
    };
    if wanted > candidates {
        return Err(Refusal::TooFew { wanted, candidates });
    }
    Ok(wanted.max(1))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn a_seed_always_means_the_same() {
        // The generator's published values for the seed 1234567.
        let mut sequence = Sequence(1_234_567);
        let first = [sequence.next(), sequence.next(), sequence.next()];
        assert_eq!(
            first,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
        assert_eq!(choose(10, 3, 7), choose(10, 3, 7));
        assert_eq!(choose(4, 4, -1), [0, 1, 2, 3]);
        assert_eq!(choose(0, 1, 1), [0; 0]);
    }

    #[test]
    fn everyone_can_be_hit_and_more_victims_include_the_fewer() {
        let hit: HashSet<usize> = (0..200).flat_map(|seed| choose(5, 1, seed)).collect();
        assert_eq!(hit.len(), 5);
        for seed in 0..50 {
            let (few, more) = (choose(9, 2, seed), choose(9, 5, seed));
            assert!(few.iter().all(|at| more.contains(at)), "{few:?} {more:?}");
        }
    }

    #[test]
    fn a_share_is_rounded_up() {
        assert_eq!(wanted(None, None, 3), Ok(1));
        assert_eq!(wanted(None, Some(50), 3), Ok(2));
        assert_eq!(wanted(None, Some(1), 3), Ok(1));
        assert_eq!(wanted(None, Some(100), 3), Ok(3));
        assert_eq!(wanted(Some(3), None, 3), Ok(3));
        let refused = wanted(Some(4), None, 3).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "4 victims are wanted, and there are 3 candidates"
        );
    }
}
