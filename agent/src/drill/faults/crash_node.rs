//! The end of everything of a node that has a host of its own: agent, shims, containers, network.
//!
//! The process becomes one that ends all of it, waits until the task is due, and then is the agent again. (Nodes of
//! `up --nodes` are ended and started by the control plane's process.)

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use skiff_dev::{Action, DrillTaskStatus};

use super::restart_agent::Ending;
use crate::drill::fault::{Fault, FaultError, Order};
use crate::drill::helper::blocking;
use crate::drill::journal::{Journal, Stage};
use crate::drill::report::Progress;
use crate::drill::site::{Scene, Site};
use crate::identity::Identity;
use crate::net::Network;
use crate::purge::{PurgeError, unmount_volumes};
use crate::runtime::{self, RuntimeError};

pub(crate) struct CrashNode {
    pub(crate) node: String,
}

#[async_trait]
impl Fault for CrashNode {
    type Undo = Ending;

    fn silences_agent(&self) -> bool {
        true
    }

    async fn prepare(&self, scene: &Scene, _: &Order) -> Result<Ending, FaultError> {
        if self.node != scene.node_name {
            return Err(FaultError::Refused(format!(
                "this is node {}, not {}",
                scene.node_name, self.node
            )));
        }
        if scene.hooks.with_control_plane() {
            return Err(FaultError::Refused(format!(
                "node {} runs the control plane in the same process: nobody would be left to measure",
                self.node
            )));
        }
        Ok(Ending::of(scene))
    }

    async fn inject(
        &self,
        scene: &Scene,
        order: &Order,
        ending: &Ending,
    ) -> Result<Timestamp, FaultError> {
        match ending.happened(scene) {
            Some(at) => Ok(at),
            // The rest is its successor's: see `finish_crash`.
            None => Err(FaultError::Restart(scene.hooks.restart_at(order.until))),
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

/// Ends everything of the node if a drill says that it has crashed: for an agent that starts, before it waits. Without one of
/// its predecessor's, so that nobody is there who would start anew what ends.
///
/// # Errors
/// What could not be ended; the rest is.
pub async fn finish_crash(identity: &Identity) -> Result<(), PurgeError> {
    let journal = Journal::of(identity);
    let entries = blocking(move || journal.entries()).await;
    let failed = |source| RuntimeError::io("reading", identity.drills_dir())(source);
    let crashed = entries.map_err(failed)?.into_iter().any(|entry| {
        let action = &entry.task.spec.action;
        let lasts = entry.task.spec.until.0 > Timestamp::now();
        entry.stage == Stage::Open && lasts && matches!(action, Action::CrashNode { .. })
    });
    if !crashed {
        return Ok(());
    }
    let containers = runtime::purge(identity.clone()).await;
    let node = identity.clone();
    let volumes = blocking(move || unmount_volumes(&node)).await;
    Network::purge(identity.clone()).await?;
    containers?;
    volumes.map_err(PurgeError::Volumes)
}
