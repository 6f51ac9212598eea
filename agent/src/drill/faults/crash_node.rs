//! The end of everything of a node that has a host of its own: agent, shims, containers, network.
//!
//! The process becomes one that ends all of it, waits until the task is due, and then is the agent again. (Nodes of
//! `up --nodes` are ended and started by the control plane's process.)

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;

use super::restart_agent::Ending;
use crate::drill::fault::{Fault, FaultError, Order};
use crate::drill::helper::blocking;
use crate::drill::report::Progress;
use crate::drill::site::{Scene, Site};
use crate::identity::Identity;
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
            None => {
                let identity = scene.site.identity.clone();
                blocking(move || end_everything(&identity)).await?;
                Err(FaultError::Restart(scene.hooks.restart_at(order.until)))
            }
        }
    }

    async fn hold(&self, _: &Scene, _: &Order, _: &Ending, _: &Progress) -> Result<(), FaultError> {
        Ok(())
    }

    async fn undo(&self, _: &Site, _: &Order, _: &Ending) -> Result<(), FaultError> {
        Ok(())
    }
}

/// Ends all shims and containers, asking nobody, and unmounts the volumes. Links go with the pods' namespaces. Blocking.
fn end_everything(identity: &Identity) -> Result<(), RuntimeError> {
    runtime::purge_blocking(identity)?;
    let pods = identity.pods_dir();
    crate::purge::unmount_volumes(identity)
        .map_err(RuntimeError::io("unmounting the volumes in", pods))
}
