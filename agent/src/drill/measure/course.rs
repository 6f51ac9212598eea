//! What samples say: counts while they come in, and the whole course once all are there.

use std::collections::BTreeMap;
use std::time::Duration;

use skiff_dev::{EventCount, Latency, NumberRange, ProbeBucket, Requests, Writes};

use super::samples::{Outcome, Sample};

/// Entries of a course; it has to fit into an object's status.
const MOST_BUCKETS: u64 = 600;
/// The finest course, in microseconds; coarser ones are multiples.
const BUCKET: u64 = 100_000;
/// Sent so much after its time, a request counts as late. In milliseconds.
const LATE: u16 = 10;
/// How much later than its timeout an outcome may be known, on a busy host.
const SLACK: Duration = Duration::from_secs(1);
/// The different failures that are told.
const MOST_ERRORS: usize = 20;

/// Counts of what came in so far.
#[derive(Debug, Clone, Default)]
pub(in crate::drill) struct Tally {
    pub(in crate::drill) sent: i64,
    pub(in crate::drill) failed: i64,
    first_failed: Option<Moment>,
    last_failed: Option<Moment>,
    /// The one that was sent last among those whose outcome is known, and whether it was good.
    newest: Option<(Moment, bool)>,
    /// The first good one after the last failure, by the time of sending.
    healthy_since: Option<Moment>,
    /// When good ones were sent, by the clock that is never set, and by the wall clock: a failure that was
    /// sent before them may still become known.
    recent: BTreeMap<u64, u64>,
}

/// When something was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    /// By the clock that is never set.
    ticks: u64,
    at: u64,
}

impl Tally {
    /// `timeout` is how long an outcome may have taken to be known.
    pub(in crate::drill) fn take(&mut self, sample: &Sample, timeout: Duration) {
        let sent = Moment {
            ticks: sample.sent,
            at: sample.sent_at,
        };
        self.sent += 1;
        self.newest = self.newest.max(Some((sent, sample.is_good())));
        if sample.is_good() {
            self.recent.insert(sent.ticks, sent.at);
            let is_after_failure = self.last_failed.is_none_or(|failed| failed < sent);
            let is_first = self.healthy_since.is_none_or(|since| sent < since);
            if is_after_failure && is_first {
                self.healthy_since = Some(sent);
            }
        } else {
            self.failed += 1;
            self.first_failed = Some(self.first_failed.map_or(sent, |first| first.min(sent)));
            if self.last_failed.is_none_or(|last| last < sent) {
                self.last_failed = Some(sent);
                let mut after = self.recent.range(sent.ticks + 1..);
                self.healthy_since = after.next().map(|(ticks, at)| Moment {
                    ticks: *ticks,
                    at: *at,
                });
            }
        }
        // Whatever was sent before this has its outcome by now.
        let horizon = (timeout + SLACK).as_micros() as u64;
        let horizon = sample.ended().saturating_sub(horizon);
        self.recent = self.recent.split_off(&horizon);
    }

    /// Whether the request that was sent last, of those whose outcome is known, was answered well.
    pub(in crate::drill) fn healthy(&self) -> Option<bool> {
        self.newest.map(|(_, good)| good)
    }

    /// When the first that failed was sent: microseconds since 1970, as all times here.
    pub(in crate::drill) fn first_failed_at(&self) -> Option<u64> {
        self.first_failed.map(|moment| moment.at)
    }

    pub(in crate::drill) fn last_failed_at(&self) -> Option<u64> {
        self.last_failed.map(|moment| moment.at)
    }

    /// When the first good one after the last failure was sent, or the first one at all.
    pub(in crate::drill) fn healthy_since(&self) -> Option<u64> {
        self.healthy_since.map(|moment| moment.at)
    }
}

/// The whole course of a probe that has ended.
pub(in crate::drill) fn requests(mut samples: Vec<Sample>, timeout: Duration) -> Requests {
    samples.sort_by_key(|sample| sample.sent);
    let is_failed = |sample: &&Sample| !sample.is_good();
    Requests {
        sent: samples.len() as i64,
        failed: samples.iter().filter(is_failed).count() as i64,
        longest_gap: seconds(longest_gap(&samples, |sample| sample.sent)),
        late: samples.iter().filter(|s| s.late > LATE).count() as i64,
        latency: latency(&samples),
        errors: errors(&samples, timeout),
        buckets: buckets(&samples),
        ..Requests::default()
    }
}

/// The same for a stream of writes. What was lost is for those to say who can list what there is.
pub(in crate::drill) fn writes(samples: &[Sample]) -> Writes {
    Writes {
        sent: samples.len() as i64,
        acknowledged: samples.iter().filter(|s| s.is_good()).count() as i64,
        lost: 0,
        longest_gap: seconds(longest_gap(samples, Sample::ended)),
    }
}

/// The numbers of the writes that were acknowledged.
pub(in crate::drill) fn acknowledged(samples: &[Sample]) -> Vec<NumberRange> {
    let mut ranges: Vec<NumberRange> = Vec::new();
    let numbered = (0..).zip(samples);
    for (number, _) in numbered.filter(|(_, sample)| sample.is_good()) {
        match ranges.last_mut() {
            Some(range) if range.last + 1 == number => range.last = number,
            _ => ranges.push(NumberRange {
                first: number,
                last: number,
            }),
        }
    }
    ranges
}

/// Microseconds between two good ones that follow each other, from the beginning to the first, or from the last to
/// the end, whichever is longest. `samples` are in order.
fn longest_gap(samples: &[Sample], when: impl Fn(&Sample) -> u64) -> u64 {
    let (Some(first), Some(end)) = (samples.first(), samples.iter().map(&when).max()) else {
        return 0;
    };
    let mut before = first.sent;
    let mut longest = 0;
    for sample in samples.iter().filter(|s| s.is_good()) {
        longest = longest.max(when(sample).saturating_sub(before));
        before = when(sample);
    }
    longest.max(end.saturating_sub(before))
}

fn latency(samples: &[Sample]) -> Option<Latency> {
    let good = samples.iter().filter(|s| s.is_good());
    let mut took: Vec<u32> = good.map(|s| s.took).collect();
    took.sort_unstable();
    let max = *took.last()?;
    // The nearest rank.
    let percentile = |percent: usize| {
        let rank = (took.len() * percent).div_ceil(100);
        took.get(rank.saturating_sub(1)).copied().unwrap_or(max)
    };
    Some(Latency {
        p50: seconds(percentile(50).into()),
        p99: seconds(percentile(99).into()),
        max: seconds(max.into()),
    })
}

/// The different failures, the most frequent first.
fn errors(samples: &[Sample], timeout: Duration) -> Vec<EventCount> {
    let mut counts: BTreeMap<Outcome, i64> = BTreeMap::new();
    for sample in samples.iter().filter(|s| !s.is_good()) {
        *counts.entry(sample.outcome).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| -count);
    counts.truncate(MOST_ERRORS);
    let count = |(outcome, count): (Outcome, i64)| EventCount {
        reason: outcome.describe(timeout),
        count,
        ..EventCount::default()
    };
    counts.into_iter().map(count).collect()
}

/// Intervals from the first request on, as fine as the status has room for.
fn buckets(samples: &[Sample]) -> Vec<ProbeBucket> {
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else {
        return Vec::new();
    };
    let span = last.sent - first.sent;
    let width = width(span);
    let at = |index: u64| (first.sent_at + index * width) as f64 / 1e6;
    let mut buckets: Vec<ProbeBucket> = (0..=span / width)
        .map(|index| ProbeBucket {
            at: at(index),
            ..ProbeBucket::default()
        })
        .collect();
    for sample in samples {
        let index = (sample.sent - first.sent) / width;
        // Every index up to the last sample's is there.
        let Some(bucket) = buckets.get_mut(index as usize) else {
            continue;
        };
        bucket.sent += 1;
        if sample.is_good() {
            bucket.slowest = bucket.slowest.max(seconds(sample.took.into()));
        } else {
            bucket.failed += 1;
        }
    }
    buckets
}

/// 0.1, 0.2, 0.5, 1, 2, 5 ... seconds.
fn width(span: u64) -> u64 {
    let mut decade = BUCKET;
    loop {
        for step in [1, 2, 5] {
            if span / (decade * step) < MOST_BUCKETS {
                return decade * step;
            }
        }
        decade *= 10;
    }
}

fn seconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: u64 = 1_700_000_000_000_000;
    const TIMEOUT: Duration = Duration::from_secs(1);

    /// Sent so many milliseconds after the start.
    fn sample(millis: u64, took_millis: u32, outcome: Outcome) -> Sample {
        Sample {
            sent_at: EPOCH + millis * 1000,
            sent: 5_000_000 + millis * 1000,
            took: took_millis * 1000,
            late: 0,
            outcome,
        }
    }

    fn good(millis: u64) -> Sample {
        sample(millis, 2, Outcome::Good)
    }

    /// In the order in which outcomes became known.
    fn tally(samples: &[Sample]) -> Tally {
        let mut tally = Tally::default();
        for sample in samples {
            tally.take(sample, TIMEOUT);
        }
        tally
    }

    #[test]
    fn an_outage_is_seen_from_its_first_to_its_last_failure() {
        let samples = vec![
            good(0),
            good(100),
            sample(200, 1000, Outcome::TimedOut),
            sample(300, 1, Outcome::Refused),
            sample(400, 1, Outcome::Refused),
            good(500),
            good(600),
        ];
        let course = requests(samples, TIMEOUT);
        assert_eq!((course.sent, course.failed), (7, 3));
        assert!((course.longest_gap - 0.4).abs() < 1e-9);
        let latency = course.latency.unwrap();
        assert!((latency.p50 - 0.002).abs() < 1e-9 && (latency.max - 0.002).abs() < 1e-9);
        let errors: Vec<_> = course
            .errors
            .iter()
            .map(|e| (e.reason.as_str(), e.count))
            .collect();
        assert_eq!(
            errors,
            [("connection refused", 2), ("no answer within 1s", 1)]
        );
        let buckets: Vec<_> = course.buckets.iter().map(|b| (b.sent, b.failed)).collect();
        assert_eq!(
            buckets,
            [(1, 0), (1, 0), (1, 1), (1, 1), (1, 1), (1, 0), (1, 0)]
        );
        assert!((course.buckets[2].at - (EPOCH as f64 / 1e6 + 0.2)).abs() < 1e-3);
    }

    #[test]
    fn a_gap_counts_from_the_beginning_and_to_the_end() {
        let failed = |millis| sample(millis, 1, Outcome::Refused);
        let gap = |samples| requests(samples, TIMEOUT).longest_gap;
        assert!((gap(vec![failed(0), failed(100), good(300)]) - 0.3).abs() < 1e-9);
        assert!((gap(vec![good(0), failed(100), failed(900)]) - 0.9).abs() < 1e-9);
        assert!((gap(vec![failed(0), failed(100)]) - 0.1).abs() < 1e-9);
        assert!(gap(Vec::new()).abs() < 1e-9);
        assert!(requests(vec![failed(0)], TIMEOUT).latency.is_none());
    }

    #[test]
    fn a_late_failure_is_put_where_it_was_sent() {
        // What was sent at 200 is known to have timed out after later ones were answered.
        let told = tally(&[
            good(0),
            good(300),
            good(250),
            good(400),
            sample(200, 1000, Outcome::TimedOut),
        ]);
        assert_eq!(told.healthy(), Some(true));
        assert_eq!(told.first_failed_at(), Some(EPOCH + 200_000));
        assert_eq!(told.last_failed_at(), Some(EPOCH + 200_000));
        assert_eq!(told.healthy_since(), Some(EPOCH + 250_000));
    }

    #[test]
    fn health_begins_anew_after_each_failure() {
        let refused = |millis| sample(millis, 1, Outcome::Refused);
        let mut seen = vec![good(0)];
        assert_eq!(tally(&seen).healthy_since(), Some(EPOCH));
        seen.push(refused(100));
        assert_eq!(tally(&seen).healthy(), Some(false));
        assert_eq!(tally(&seen).healthy_since(), None);
        seen.push(good(200));
        assert_eq!(tally(&seen).healthy(), Some(true));
        assert_eq!(tally(&seen).healthy_since(), Some(EPOCH + 200_000));
        // An answer that took longer, to what was sent earlier.
        seen.push(sample(150, 500, Outcome::Good));
        assert_eq!(tally(&seen).healthy_since(), Some(EPOCH + 150_000));
        seen.push(refused(700));
        let told = tally(&seen);
        assert_eq!((told.healthy(), told.healthy_since()), (Some(false), None));
        assert_eq!(told.first_failed_at(), Some(EPOCH + 100_000));
        assert_eq!(told.last_failed_at(), Some(EPOCH + 700_000));
        assert_eq!((told.sent, told.failed), (5, 2));
    }

    #[test]
    fn what_is_remembered_of_good_answers_is_bounded() {
        let samples: Vec<_> = (0..10_000).map(|n| good(n * 10)).collect();
        let told = tally(&samples);
        assert_eq!(told.sent, 10_000);
        assert!(told.recent.len() < 300, "{}", told.recent.len());
    }

    #[test]
    fn a_long_course_gets_coarser() {
        let samples: Vec<_> = (0..3600).map(|second| good(second * 1000)).collect();
        let course = requests(samples, TIMEOUT);
        assert!(course.buckets.len() as u64 <= MOST_BUCKETS);
        assert_eq!(course.buckets.iter().map(|b| b.sent).sum::<i64>(), 3600);
        let step = course.buckets[1].at - course.buckets[0].at;
        assert!((step - 10.0).abs() < 1e-3, "{step}");
        assert_eq!(width(59_999_999), BUCKET);
        assert_eq!(width(60_000_000), 2 * BUCKET);
    }

    #[test]
    fn late_requests_are_counted() {
        let late = Sample {
            late: LATE + 1,
            ..good(0)
        };
        let course = requests(vec![late, good(100)], TIMEOUT);
        assert_eq!(course.late, 1);
    }

    #[test]
    fn acknowledged_writes_are_named_by_ranges() {
        let failed = sample(30, 1, Outcome::Refused);
        let samples = [
            good(0),
            good(10),
            good(20),
            failed,
            good(40),
            failed,
            failed,
        ];
        let range = |first, last| NumberRange { first, last };
        assert_eq!(acknowledged(&samples), [range(0, 2), range(4, 4)]);
        assert_eq!(acknowledged(&[]), []);
        assert_eq!(acknowledged(&[failed, good(1)]), [range(1, 1)]);
        let told = writes(&[good(0), good(100), failed, good(900)]);
        assert_eq!((told.sent, told.acknowledged, told.lost), (4, 3, 0));
        assert!((told.longest_gap - 0.8).abs() < 1e-9);
    }
}
