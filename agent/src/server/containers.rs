//! Which attempt of which container a request means, and the kubelet's words when there is none.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod};

use super::NodePod;
use crate::runtime::types::{ContainerRecord, ContainerState};
use crate::runtime::{Runtime, RuntimeError};

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub(super) enum Missing {
    #[error("pod {0:?} does not exist")]
    Pod(String),
    #[error("container {container:?} not found in pod {pod:?}")]
    Container { pod: String, container: String },
    #[error("previous terminated container {container:?} in pod {pod:?} not found")]
    Previous { pod: String, container: String },
    #[error("container {container:?} in pod {pod:?} is waiting to start: {why}")]
    Waiting {
        pod: String,
        container: String,
        why: String,
    },
    #[error("container not found ({0:?})")]
    NotRunning(String),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// A container of a pod with all attempts to run it that are still known.
pub(super) struct Attempts<'a> {
    pod: &'a Pod,
    container: &'a str,
    tty: bool,
    /// The latest last.
    records: Vec<ContainerRecord>,
}

impl<'a> Attempts<'a> {
    pub(super) async fn of(node_pod: &'a NodePod, container: &'a str) -> Result<Self, Missing> {
        let pod = &*node_pod.pod;
        let Some(tty) = declared_tty(pod, container) else {
            return Err(Missing::Container {
                pod: pod_name(pod),
                container: container.to_owned(),
            });
        };
        let mut records = match &node_pod.sandbox {
            Some(sandbox) => sandbox.containers(),
            None => Runtime::records(node_pod.pod_dir.clone()).await?,
        };
        records.retain(|record| record.name == container);
        records.sort_by_key(|record| record.attempt);
        Ok(Self {
            pod,
            container,
            tty,
            records,
        })
    }

    /// Whether the container's declaration asks for a terminal.
    pub(super) fn tty(&self) -> bool {
        self.tty
    }

    /// The attempt whose log to show. `previous` is the one that the status calls the last
    /// state: the latest that ended, apart from the one that the current state tells of.
    pub(super) fn logged(&self, previous: bool) -> Result<&ContainerRecord, Missing> {
        if previous {
            let missing = || Missing::Previous {
                pod: pod_name(self.pod),
                container: self.container.to_owned(),
            };
            return self.previous().ok_or_else(missing);
        }
        self.records.last().ok_or_else(|| Missing::Waiting {
            pod: pod_name(self.pod),
            container: self.container.to_owned(),
            why: self.why_waiting(),
        })
    }

    /// The attempt that runs now.
    pub(super) fn running(&self) -> Result<&ContainerRecord, Missing> {
        let running =
            |record: &&ContainerRecord| matches!(record.state, ContainerState::Running { .. });
        let not_running = || Missing::NotRunning(self.container.to_owned());
        self.records.last().filter(running).ok_or_else(not_running)
    }

    fn previous(&self) -> Option<&ContainerRecord> {
        let (latest, before) = self.records.split_last()?;
        let waits_to_restart = self
            .status()
            .and_then(|status| status.state.as_ref())
            .is_some_and(|state| state.waiting.is_some());
        if waits_to_restart && matches!(latest.state, ContainerState::Exited { .. }) {
            return Some(latest);
        }
        before.last()
    }

    fn why_waiting(&self) -> String {
        let reason = self
            .status()
            .and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.as_deref())
            .unwrap_or("ContainerCreating");
        match reason {
            "ErrImagePull" => "image can't be pulled".into(),
            "ImagePullBackOff" => "trying and failing to pull image".into(),
            reason => reason.into(),
        }
    }

    fn status(&self) -> Option<&ContainerStatus> {
        let status = self.pod.status.as_ref()?;
        [
            &status.container_statuses,
            &status.init_container_statuses,
            &status.ephemeral_container_statuses,
        ]
        .into_iter()
        .flatten()
        .flatten()
        .find(|status| status.name == self.container)
    }
}

/// `None` when the pod declares no such container.
fn declared_tty(pod: &Pod, container: &str) -> Option<bool> {
    let spec = pod.spec.as_ref()?;
    let named = |declared: &&Container| declared.name == container;
    let init = spec.init_containers.iter().flatten();
    if let Some(declared) = spec.containers.iter().chain(init).find(named) {
        return Some(declared.tty.unwrap_or(false));
    }
    let mut ephemeral = spec.ephemeral_containers.iter().flatten();
    ephemeral
        .find(|declared| declared.name == container)
        .map(|declared| declared.tty.unwrap_or(false))
}

fn pod_name(pod: &Pod) -> String {
    pod.metadata.name.clone().unwrap_or_default()
}
