//! A stream of writes to the API server, by a helper that outlives this agent.

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use skiff_dev::{DrillTaskStatus, Writes};

use super::burn_cpu::begin_once;
use crate::drill::fault::{Fault, FaultError, Order};
use crate::drill::helper::{self, Job, WRITE_TIMEOUT, blocking};
use crate::drill::measure::course;
use crate::drill::measure::follow::{Counted, Follower};
use crate::drill::measure::samples::{SampleReader, samples_of};
use crate::drill::report::Progress;
use crate::drill::site::{Scene, Site};

/// Each waits for the disk of this node and of the API server's.
const MOST_RATE: i32 = 1000;

pub(in crate::drill) struct Write {
    pub(in crate::drill) namespace: String,
    pub(in crate::drill) rate: i32,
    pub(in crate::drill) token: String,
}

#[async_trait]
impl Fault for Write {
    /// The task's name is in the journal already.
    type Undo = ();

    fn outlives_agent(&self) -> bool {
        true
    }

    async fn prepare(&self, _: &Scene, _: &Order) -> Result<(), FaultError> {
        if !(1..=MOST_RATE).contains(&self.rate) {
            return Err(FaultError::Refused(format!(
                "{} writes a second: there may be 1 to {MOST_RATE}",
                self.rate
            )));
        }
        Ok(())
    }

    async fn inject(&self, scene: &Scene, order: &Order, (): &()) -> Result<Timestamp, FaultError> {
        let site = scene.site.clone();
        let surroundings = &scene.surroundings;
        let job = Job::Write(helper::EventWriter {
            server: format!("https://{}", surroundings.api_service),
            authority: surroundings.authority.clone(),
            token: self.token.clone(),
            namespace: self.namespace.clone(),
            task: order.name.clone(),
            rate: self.rate.unsigned_abs(),
            samples: samples_of(&site, order),
            node: surroundings.network.node_address(),
        });
        let group = site.helpers();
        begin_once(site, order.clone(), group, job).await
    }

    async fn hold(
        &self,
        scene: &Scene,
        order: &Order,
        (): &(),
        progress: &Progress,
    ) -> Result<(), FaultError> {
        let path = samples_of(&scene.site, order);
        let follower = Follower::new(path, Counted::Writes, WRITE_TIMEOUT);
        follower.until_ended(scene, order, progress).await
    }

    async fn undo(&self, site: &Site, order: &Order, (): &()) -> Result<(), FaultError> {
        helper::finish(site, &order.uid, WRITE_TIMEOUT + helper::PATIENCE).await
    }

    async fn conclude(&self, site: &Site, order: &Order, (): &(), status: &mut DrillTaskStatus) {
        let path = samples_of(site, order);
        match blocking(move || SampleReader::default().read(&path)).await {
            Ok(samples) => {
                status.writes = Some(course::writes(&samples));
                status.acknowledged = course::acknowledged(&samples);
            }
            Err(error) => {
                status.writes = Some(Writes::default());
                let lost = format!("what was written can't be read: {error}");
                status.message = Some(lost);
            }
        }
    }
}
