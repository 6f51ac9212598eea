//! Holding memory, so that a container or a node has little left.

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use skiff_dev::PodRef;

use super::burn_cpu::begin_once;
use crate::drill::fault::{Fault, FaultError, Order};
use crate::drill::helper::{self, Job, Keep, MemoryGroup, blocking};
use crate::drill::report::Progress;
use crate::drill::site::{Scene, Site};
use crate::drill::target::Target;

pub(crate) struct TakeMemory {
    pub(crate) pod: Option<PodRef>,
    pub(crate) container: Option<String>,
    pub(crate) percent: i32,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Held {
    group: String,
    memory: MemoryGroup,
    /// Bytes that are to be in use.
    level: u64,
}

#[async_trait]
impl Fault for TakeMemory {
    type Undo = Held;

    async fn prepare(&self, scene: &Scene, _: &Order) -> Result<Held, FaultError> {
        let percent = match self.percent {
            percent @ 1..=99 => percent as u64,
            other => {
                let message = format!("{other} percent of the memory: it may be 1 to 99");
                return Err(FaultError::Refused(message));
            }
        };
        let site = scene.site.clone();
        let Some(pod) = &self.pod else {
            return blocking(move || of_the_node(&site, percent)).await;
        };
        let target = Target::find(scene, pod, self.container.as_deref())?;
        blocking(move || of_a_container(&site, &target, percent)).await
    }

    async fn inject(
        &self,
        scene: &Scene,
        order: &Order,
        undo: &Held,
    ) -> Result<Timestamp, FaultError> {
        let job = Job::Keep(Keep {
            memory: undo.memory.clone(),
            level: undo.level,
        });
        begin_once(scene.site.clone(), order.clone(), undo.group.clone(), job).await
    }

    async fn hold(
        &self,
        _: &Scene,
        order: &Order,
        _: &Held,
        _: &Progress,
    ) -> Result<(), FaultError> {
        helper::ended(&order.uid).await
    }

    async fn undo(&self, site: &Site, order: &Order, _: &Held) -> Result<(), FaultError> {
        helper::end(site, &order.uid).await
    }
}

fn of_a_container(site: &Site, target: &Target, percent: u64) -> Result<Held, FaultError> {
    let name = &target.record.name;
    let limit = site.cgroups.memory_limit(&target.group);
    let limit = limit.ok_or_else(|| {
        FaultError::Refused(format!(
            "container {name:?} has no memory limit to come near to: give it one, or take its node as the target"
        ))
    })?;
    let directory = site.cgroups.directory(&target.group, "memory");
    let directory = directory
        .ok_or_else(|| FaultError::Refused("this host has no memory controller".to_owned()))?;
    let memory = MemoryGroup::Group(directory.clone());
    let in_use = memory
        .in_use()
        .map_err(FaultError::io("reading", &directory))?;
    let level = share(limit, percent);
    let host = helper::host_memory().map_err(FaultError::io("reading", "/proc/meminfo"))?;
    // Else it would be the host that runs out of memory, with everybody on it.
    if level.saturating_sub(in_use) > host.1 / 10 * 9 {
        return Err(FaultError::Refused(format!(
            "{percent} % of the limit of container {name:?} are more than the node has: {} MiB are available",
            host.1 >> 20
        )));
    }
    Ok(Held {
        group: target.group.clone(),
        memory,
        level,
    })
}

fn of_the_node(site: &Site, percent: u64) -> Result<Held, FaultError> {
    let host = helper::host_memory().map_err(FaultError::io("reading", "/proc/meminfo"))?;
    // A group above all that is the node's may have less than the host.
    let (memory, total) = match site.cgroups.memory_limit(site.cgroups.root()) {
        Some(limit) if limit < host.0 => {
            let directory = site.cgroups.directory(site.cgroups.root(), "memory");
            (
                directory.map_or(MemoryGroup::Host, MemoryGroup::Group),
                limit,
            )
        }
        _ => (MemoryGroup::Host, host.0),
    };
    Ok(Held {
        group: site.helpers(),
        memory,
        level: share(total, percent),
    })
}

fn share(total: u64, percent: u64) -> u64 {
    total / 100 * percent
}
