//! The seam between what is to be done and how: a [`Fault`] is one kind of thing to do.
//!
//! Each has a file of its own; [`of`] finds it for an action. Probes and writes are faults too in that
//! they are begun, last, and have to be ended: they only break nothing.

use std::path::PathBuf;

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skiff_dev::{Action, DrillTask, DrillTaskStatus};

use super::faults::{
    BurnCpu, CrashNode, CutControlPlane, CutPods, DelayPackets, ExhaustMemory, FillDisk,
    KillContainer, LosePackets, Probe, RefuseRegistries, RestartAgent, SilenceDns, StopContainer,
    TakeMemory, Write,
};
use super::report::Progress;
use super::site::{Scene, Site};
use crate::runtime::RuntimeError;

/// One kind of thing to do on a node.
///
/// `prepare`, then `inject`, then `hold` until it is over or no longer wanted, then `undo`, then `conclude`. After a
/// crash anywhere between, the agent goes on with what `prepare` gave, which is in the journal; so `inject` and
/// `undo` may be called again, also when there is nothing left to do.
#[async_trait]
pub(crate) trait Fault: Send + Sync {
    /// All that is needed to undo it, without an agent and without an API.
    type Undo: Serialize + DeserializeOwned + Send + Sync;

    /// Whether it goes on while no agent runs, when that ends in good order.
    fn outlives_agent(&self) -> bool {
        false
    }

    /// Whether nobody is left to tell the API of it once it has been brought about.
    fn silences_agent(&self) -> bool {
        false
    }

    /// Looks whether it can be done, and touches nothing.
    ///
    /// # Errors
    /// Whatever can be refused is refused here.
    async fn prepare(&self, scene: &Scene, order: &Order) -> Result<Self::Undo, FaultError>;

    /// Brings it about, and says when: the time right before the act.
    ///
    /// # Errors
    /// What was done by then is undone by [`Fault::undo`].
    async fn inject(
        &self,
        scene: &Scene,
        order: &Order,
        undo: &Self::Undo,
    ) -> Result<Timestamp, FaultError>;

    /// Keeps it up, and returns when it is over by itself. Dropped when it is to end before that. After a restart of the
    /// agent it is called without `inject`: whatever lives in the process begins here.
    ///
    /// # Errors
    /// When it did not have the effect that it should have had.
    async fn hold(
        &self,
        _scene: &Scene,
        _order: &Order,
        _undo: &Self::Undo,
        _progress: &Progress,
    ) -> Result<(), FaultError> {
        std::future::pending().await
    }

    /// Leaves nothing of it behind. Called until it succeeds; no error when nothing is there.
    ///
    /// # Errors
    /// What could not be undone.
    async fn undo(&self, site: &Site, order: &Order, undo: &Self::Undo) -> Result<(), FaultError>;

    /// Adds to the last status what is known only after the end.
    async fn conclude(
        &self,
        _site: &Site,
        _order: &Order,
        _undo: &Self::Undo,
        _status: &mut DrillTaskStatus,
    ) {
    }
}

/// Whose fault it is and how long it lasts at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Order {
    /// The task's; names what belongs to it on the host.
    pub(crate) uid: String,
    /// The task's.
    pub(crate) name: String,
    pub(crate) until: Timestamp,
}

impl Order {
    pub(crate) fn of(task: &DrillTask) -> Self {
        Self {
            uid: task.metadata.uid.clone().unwrap_or_default(),
            name: task.metadata.name.clone().unwrap_or_default(),
            until: task.spec.until.0,
        }
    }
}

/// Why something was not done, or not undone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FaultError {
    /// It can't be done here; nothing was touched.
    #[error("{0}")]
    Refused(String),
    /// It was done, and did not have the effect that it should have had.
    #[error("{0}")]
    NoEffect(String),
    #[error("{doing} {}: {source}", path.display())]
    Io {
        doing: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{0}")]
    Runtime(#[from] RuntimeError),
    #[error("its helper process: {0}")]
    Helper(#[source] std::io::Error),
    #[error("restarting the process: {0}")]
    Restart(#[source] std::io::Error),
    #[error("{0}")]
    Packets(#[source] crate::net::faults::PacketFaultError),
    #[error("what the journal says of it can't be read: {0}")]
    Journal(#[from] serde_json::Error),
}

impl FaultError {
    pub(crate) fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}

/// The fault that an action asks for; `None` if it is not for a node's agent.
pub(crate) fn of(action: &Action) -> Option<Box<dyn AnyFault>> {
    Some(match action.clone() {
        Action::KillContainer { pod, container } => Box::new(KillContainer { pod, container }),
        Action::ExhaustMemory { pod, container } => Box::new(ExhaustMemory { pod, container }),
        Action::StopContainer { pod, container } => Box::new(StopContainer::new(pod, container)),
        Action::BurnCpu {
            pod,
            container,
            workers,
        } => Box::new(BurnCpu {
            pod,
            container,
            workers,
        }),
        Action::TakeMemory {
            pod,
            container,
            percent,
        } => Box::new(TakeMemory {
            pod,
            container,
            percent,
        }),
        Action::FillDisk { leave, shared_disk } => Box::new(FillDisk { leave, shared_disk }),
        Action::RefuseRegistries { registries } => Box::new(RefuseRegistries::new(registries)),
        Action::RestartAgent {} => Box::new(RestartAgent),
        Action::CrashNode { node } => Box::new(CrashNode { node }),
        Action::CutControlPlane {} => Box::new(CutControlPlane),
        Action::CutPods { pods, peers } => Box::new(CutPods { pods, peers }),
        Action::SilenceDns { pods } => Box::new(SilenceDns { pods }),
        Action::LosePackets { pods, percent } => Box::new(LosePackets { pods, percent }),
        Action::DelayPackets { pods, delay } => Box::new(DelayPackets { pods, delay }),
        Action::Probe {
            target,
            rate,
            timeout,
        } => Box::new(Probe {
            target,
            rate,
            timeout,
        }),
        Action::Write {
            namespace,
            rate,
            token,
        } => Box::new(Write {
            namespace,
            rate,
            token,
        }),
        Action::RestartControlPlane { .. } => return None,
    })
}

/// A [`Fault`] whose record is what the journal keeps.
#[async_trait]
pub(crate) trait AnyFault: Send + Sync {
    fn outlives_agent(&self) -> bool;
    fn silences_agent(&self) -> bool;
    async fn prepare(&self, scene: &Scene, order: &Order) -> Result<Value, FaultError>;
    async fn inject(
        &self,
        scene: &Scene,
        order: &Order,
        undo: &Value,
    ) -> Result<Timestamp, FaultError>;
    async fn hold(
        &self,
        scene: &Scene,
        order: &Order,
        undo: &Value,
        progress: &Progress,
    ) -> Result<(), FaultError>;
    async fn undo(&self, site: &Site, order: &Order, undo: &Value) -> Result<(), FaultError>;
    async fn conclude(
        &self,
        site: &Site,
        order: &Order,
        undo: &Value,
        status: &mut DrillTaskStatus,
    );
}

#[async_trait]
impl<F: Fault> AnyFault for F {
    fn outlives_agent(&self) -> bool {
        Fault::outlives_agent(self)
    }

    fn silences_agent(&self) -> bool {
        Fault::silences_agent(self)
    }

    async fn prepare(&self, scene: &Scene, order: &Order) -> Result<Value, FaultError> {
        let undo = Fault::prepare(self, scene, order).await?;
        Ok(serde_json::to_value(undo)?)
    }

    async fn inject(
        &self,
        scene: &Scene,
        order: &Order,
        undo: &Value,
    ) -> Result<Timestamp, FaultError> {
        Fault::inject(self, scene, order, &read::<F>(undo)?).await
    }

    async fn hold(
        &self,
        scene: &Scene,
        order: &Order,
        undo: &Value,
        progress: &Progress,
    ) -> Result<(), FaultError> {
        Fault::hold(self, scene, order, &read::<F>(undo)?, progress).await
    }

    async fn undo(&self, site: &Site, order: &Order, undo: &Value) -> Result<(), FaultError> {
        Fault::undo(self, site, order, &read::<F>(undo)?).await
    }

    async fn conclude(
        &self,
        site: &Site,
        order: &Order,
        undo: &Value,
        status: &mut DrillTaskStatus,
    ) {
        // It was read before: to undo it.
        if let Ok(undo) = read::<F>(undo) {
            Fault::conclude(self, site, order, &undo, status).await;
        }
    }
}

fn read<F: Fault>(undo: &Value) -> Result<F::Undo, FaultError> {
    Ok(F::Undo::deserialize(undo)?)
}
