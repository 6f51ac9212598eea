//! Asking a target again and again, by a helper that outlives this agent.

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use skiff_dev::{DrillTaskStatus, GoDuration, ProbeScheme, ProbeTarget, Requests};

use super::burn_cpu::begin_once;
use crate::drill::fault::{Fault, FaultError, Order};
use crate::drill::helper::{self, Job, authority, blocking};
use crate::drill::measure::course::{self, Tally};
use crate::drill::measure::follow::{Counted, Follower, counts};
use crate::drill::measure::samples::{SampleReader, samples_of};
use crate::drill::report::Progress;
use crate::drill::site::{Scene, Site};

/// More than this a process of one thread does not manage.
const MOST_RATE: i32 = 1000;

pub(in crate::drill) struct Probe {
    pub(in crate::drill) target: ProbeTarget,
    pub(in crate::drill) rate: i32,
    pub(in crate::drill) timeout: GoDuration,
}

/// What the report says of who asked whom.
#[derive(Clone, Serialize, Deserialize)]
pub(in crate::drill) struct Asking {
    from: String,
}

#[async_trait]
impl Fault for Probe {
    type Undo = Asking;

    fn outlives_agent(&self) -> bool {
        true
    }

    async fn prepare(&self, scene: &Scene, _: &Order) -> Result<Asking, FaultError> {
        if !(1..=MOST_RATE).contains(&self.rate) {
            return Err(FaultError::Refused(format!(
                "{} requests a second: there may be 1 to {MOST_RATE}",
                self.rate
            )));
        }
        if self.timeout.0.is_zero() {
            let message = "an answer has to be given some time: the timeout is 0";
            return Err(FaultError::Refused(message.to_owned()));
        }
        Ok(Asking {
            from: scene.node_name.clone(),
        })
    }

    async fn inject(
        &self,
        scene: &Scene,
        order: &Order,
        _: &Asking,
    ) -> Result<Timestamp, FaultError> {
        let site = scene.site.clone();
        let job = Job::Probe(helper::Probe {
            target: self.target.clone(),
            rate: self.rate.unsigned_abs(),
            timeout: self.timeout.0,
            samples: samples_of(&site, order),
            node: scene.surroundings.network.node_address(),
        });
        let group = site.helpers();
        begin_once(site, order.clone(), group, job).await
    }

    async fn hold(
        &self,
        scene: &Scene,
        order: &Order,
        _: &Asking,
        progress: &Progress,
    ) -> Result<(), FaultError> {
        let path = samples_of(&scene.site, order);
        let follower = Follower::new(path, Counted::Probes, self.timeout.0);
        follower.until_ended(scene, order, progress).await
    }

    async fn undo(&self, site: &Site, order: &Order, _: &Asking) -> Result<(), FaultError> {
        // What is under way may still be answered.
        helper::finish(site, &order.uid, self.timeout.0 + helper::PATIENCE).await
    }

    async fn conclude(
        &self,
        site: &Site,
        order: &Order,
        asking: &Asking,
        status: &mut DrillTaskStatus,
    ) {
        let (path, timeout) = (samples_of(site, order), self.timeout.0);
        let read = blocking(move || {
            let samples = SampleReader::default().read(&path)?;
            let mut tally = Tally::default();
            for sample in &samples {
                tally.take(sample, timeout);
            }
            std::io::Result::Ok((tally, course::requests(samples, timeout)))
        });
        match read.await {
            Ok((tally, requests)) => {
                counts(&tally, Counted::Probes, status);
                status.requests = Some(Requests {
                    target: url(&self.target),
                    from: asking.from.clone(),
                    ..requests
                });
            }
            Err(error) => {
                let lost = format!("what the probe measured can't be read: {error}");
                status.message = Some(lost);
            }
        }
    }
}

/// As it stands in a report.
fn url(target: &ProbeTarget) -> String {
    let authority = authority(&target.host, target.port);
    match target.scheme {
        ProbeScheme::Http if target.path.is_empty() => format!("http://{authority}/"),
        ProbeScheme::Http => format!("http://{authority}{}", target.path),
        ProbeScheme::Tcp => format!("tcp://{authority}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_told_as_urls() {
        let mut target = ProbeTarget {
            scheme: ProbeScheme::Http,
            host: "10.43.0.7".into(),
            port: 80,
            path: "/x".into(),
        };
        assert_eq!(url(&target), "http://10.43.0.7:80/x");
        target.path = String::new();
        target.host = "fd00::1".into();
        assert_eq!(url(&target), "http://[fd00::1]:80/");
        target.scheme = ProbeScheme::Tcp;
        assert_eq!(url(&target), "tcp://[fd00::1]:80");
    }
}
