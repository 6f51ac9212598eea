//! Image registries that can't be reached: for this agent's own client, and for nobody else on the host.

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use skiff_images::registry::{Outage, Outages};
use tokio::sync::Mutex;

use crate::drill::fault::{Fault, FaultError, Order};
use crate::drill::report::Progress;
use crate::drill::site::{Scene, Site};

pub(crate) struct RefuseRegistries {
    registries: Vec<String>,
    /// It lasts as long as this.
    outage: Mutex<Option<Outage>>,
}

impl RefuseRegistries {
    /// Registries as references and URLs name them; all if there are none.
    pub(crate) fn new(registries: Vec<String>) -> Self {
        Self {
            registries,
            outage: Mutex::default(),
        }
    }

    async fn begin(&self, outages: &Outages) {
        let mut outage = self.outage.lock().await;
        if outage.is_none() {
            *outage = Some(outages.begin(self.registries.clone()));
        }
    }
}

/// It is all in the agent's memory.
#[derive(Serialize, Deserialize)]
pub(crate) struct Refused {}

#[async_trait]
impl Fault for RefuseRegistries {
    type Undo = Refused;

    async fn prepare(&self, scene: &Scene, _: &Order) -> Result<Refused, FaultError> {
        outages(scene).map(|_| Refused {})
    }

    async fn inject(&self, scene: &Scene, _: &Order, _: &Refused) -> Result<Timestamp, FaultError> {
        let now = Timestamp::now();
        self.begin(outages(scene)?).await;
        Ok(now)
    }

    async fn hold(
        &self,
        scene: &Scene,
        _: &Order,
        _: &Refused,
        _: &Progress,
    ) -> Result<(), FaultError> {
        // The agent's predecessor began it.
        self.begin(outages(scene)?).await;
        std::future::pending().await
    }

    async fn undo(&self, _: &Site, _: &Order, _: &Refused) -> Result<(), FaultError> {
        self.outage.lock().await.take();
        Ok(())
    }
}

fn outages(scene: &Scene) -> Result<&Outages, FaultError> {
    scene.puller.outages().ok_or_else(|| {
        FaultError::Refused(format!(
            "node {} never asks a registry: its agent was started with --offline",
            scene.node_name
        ))
    })
}
