//! SIGKILL to a container's main process.

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use skiff_dev::PodRef;

use crate::drill::fault::{Fault, FaultError, Order};
use crate::drill::report::Progress;
use crate::drill::site::{Scene, Site};
use crate::drill::target::Target;

pub(crate) struct KillContainer {
    pub(crate) pod: PodRef,
    pub(crate) container: String,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Victim {
    /// The container's, which its successor does not have.
    id: String,
}

#[async_trait]
impl Fault for KillContainer {
    type Undo = Victim;

    async fn prepare(&self, scene: &Scene, _: &Order) -> Result<Victim, FaultError> {
        let target = Target::find(scene, &self.pod, Some(&self.container))?;
        Ok(Victim {
            id: target.record.id,
        })
    }

    async fn inject(
        &self,
        scene: &Scene,
        _: &Order,
        victim: &Victim,
    ) -> Result<Timestamp, FaultError> {
        let now = Timestamp::now();
        // No pod, no container: it has ended already.
        if let Some(sandbox) = scene.sandboxes.get(&self.pod.uid) {
            // The shim knows the process, so that no other gets the signal.
            sandbox.signal(&victim.id, libc::SIGKILL).await?;
        }
        Ok(now)
    }

    async fn hold(&self, _: &Scene, _: &Order, _: &Victim, _: &Progress) -> Result<(), FaultError> {
        Ok(())
    }

    async fn undo(&self, _: &Site, _: &Order, _: &Victim) -> Result<(), FaultError> {
        Ok(())
    }
}
