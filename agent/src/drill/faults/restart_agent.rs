//! Ending the agent and starting it again.
//!
//! The process becomes a new one of the same program, at once, and what runs on the node must not notice. It is over
//! when an agent finds an entry in the journal that another process has written.

use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use skiff_dev::{DrillTaskStatus, TaskPhase};

use crate::drill::fault::{Fault, FaultError, Order};
use crate::drill::report::Progress;
use crate::drill::site::{Scene, Site};

pub(crate) struct RestartAgent;

/// Which process is to end, and when it was about to.
#[derive(Serialize, Deserialize)]
pub(crate) struct Ending {
    incarnation: u64,
    at: Timestamp,
}

impl Ending {
    pub(super) fn of(scene: &Scene) -> Self {
        Self {
            incarnation: scene.incarnation,
            at: Timestamp::now(),
        }
    }

    /// It has happened, also if it was to be over before the new process looked.
    pub(super) fn tell(&self, status: &mut DrillTaskStatus) {
        if status.phase == TaskPhase::Ended {
            status.started_at.get_or_insert(MicroTime(self.at));
        }
    }

    /// When the process ended, if this is another one.
    pub(super) fn happened(&self, scene: &Scene) -> Option<Timestamp> {
        (self.incarnation != scene.incarnation).then_some(self.at)
    }
}

#[async_trait]
impl Fault for RestartAgent {
    type Undo = Ending;

    async fn prepare(&self, scene: &Scene, _: &Order) -> Result<Ending, FaultError> {
        Ok(Ending::of(scene))
    }

    async fn inject(
        &self,
        scene: &Scene,
        _: &Order,
        ending: &Ending,
    ) -> Result<Timestamp, FaultError> {
        match ending.happened(scene) {
            Some(at) => Ok(at),
            None => Err(FaultError::Restart(scene.hooks.restart())),
        }
    }

    async fn hold(&self, _: &Scene, _: &Order, _: &Ending, _: &Progress) -> Result<(), FaultError> {
        Ok(())
    }

    async fn undo(&self, _: &Site, _: &Order, _: &Ending) -> Result<(), FaultError> {
        Ok(())
    }

    async fn conclude(&self, _: &Site, _: &Order, ending: &Ending, status: &mut DrillTaskStatus) {
        ending.tell(status);
    }
}
