//! Requests: how many there were, how many failed, and when.

use serde_json::Value;

use super::{Asked, Comparison, INTERVAL, When};

impl Comparison<'_> {
    pub(super) fn check_requests(&self) {
        let requests = &self.report["requests"];
        let number = |field: &str| requests[field].as_f64().expect("a number");
        let buckets = requests["buckets"].as_array().expect("the course");
        let at = |bucket: &Value| bucket["at"].as_f64().expect("a time") + self.injected();
        let (begin, end) = (at(&buckets[0]), at(&buckets[buckets.len() - 1]));
        let width = at(&buckets[1]) - begin;
        let meanwhile = |(sent, _): &Asked| (begin..end + width).contains(sent);
        let meanwhile: Vec<Asked> = self.asked.iter().copied().filter(meanwhile).collect();
        // The last interval need not be over.
        let slack = 3.0 + (width + self.uncertainty) / INTERVAL;
        let count = meanwhile.len() as f64;
        let kind = self.kind;
        assert!(
            (number("sent") - count).abs() <= slack,
            "{kind}: sent: {count} seen: {requests:#}"
        );
        let failed = meanwhile.iter().filter(|(_, good)| !good);
        let failed: Vec<f64> = failed.map(|(sent, _)| *sent).collect();
        let slack = 3.0 + 2.0 * self.uncertainty / INTERVAL;
        let count = failed.len() as f64;
        assert!(
            (number("failed") - count).abs() <= slack,
            "{kind}: failed: {count} seen, at {failed:?}: {requests:#}"
        );
        // So few that two observers need not lose the same ones.
        if failed.len() < 3 {
            return;
        }
        let alone = |event: &str| match self.told(event).as_slice() {
            [at] => *at,
            times => panic!("{kind}: {event} at {times:?}: {:#}", self.report),
        };
        let (first, last) = (failed[0], failed[failed.len() - 1]);
        self.near(
            "first failed",
            alone("firstFailedProbe"),
            exactly(first),
            INTERVAL,
        );
        self.near(
            "last failed",
            alone("lastFailedProbe"),
            exactly(last),
            INTERVAL,
        );
        let mut longest: f64 = 0.0;
        let mut before = meanwhile[0].0;
        for (sent, _) in meanwhile.iter().filter(|(_, good)| *good) {
            longest = longest.max(sent - before);
            before = *sent;
        }
        let told = number("longestGap");
        self.near("longest gap", told, exactly(longest), 2.0 * INTERVAL);
    }

    /// The first good answer after the last failed request, if one failed since the injection.
    pub(super) fn good_again(&self) -> Option<f64> {
        let since = self.injected() - 1.0;
        let mut asked = self.asked.iter().filter(|(sent, _)| *sent > since).rev();
        let after = |(sent, good): &Asked| good.then_some(*sent);
        // From the end: the good ones, until one that failed.
        let mut first = None;
        let failed = asked.by_ref().find(|one| match after(one) {
            Some(sent) => {
                first = Some(sent);
                false
            }
            None => true,
        });
        failed.and(first)
    }
}

fn exactly(at: f64) -> When {
    When {
        since: at,
        seen: at,
    }
}
