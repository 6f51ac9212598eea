//! Using up a container's memory until the kernel kills its main process.
//!
//! A helper in the container's control group takes memory until there is none left. The kernel kills whoever has the
//! highest score, and that is the main process: its score is raised to the most there is. A container without a
//! limit, or with more than the host can spare, gets a limit that is near for the time.

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use skiff_dev::PodRef;

use crate::drill::fault::{Fault, FaultError, Order};
use crate::drill::helper::{self, Exhaust, Helper, Job, blocking};
use crate::drill::report::Progress;
use crate::drill::site::{Scene, Site};
use crate::drill::target::{self, Target};
use crate::runtime::cgroup::read_memory;
use crate::runtime::types::ContainerState;

/// How much more than it uses a container may have under a limit that is made for the time.
const ROOM: u64 = 32 << 20;

pub(crate) struct ExhaustMemory {
    pub(crate) pod: PodRef,
    pub(crate) container: String,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Exhausted {
    container_id: String,
    pid: i32,
    group: String,
    /// The limit that it has for the time.
    limit: Option<u64>,
    /// The limit that it had before that.
    limit_before: Option<u64>,
    /// What the helper takes at most before it gives up.
    at_most: u64,
}

#[async_trait]
impl Fault for ExhaustMemory {
    type Undo = Exhausted;

    async fn prepare(&self, scene: &Scene, _: &Order) -> Result<Exhausted, FaultError> {
        let target = Target::find(scene, &self.pod, Some(&self.container))?;
        let site = scene.site.clone();
        blocking(move || {
            let (group, cgroups) = (target.group, &site.cgroups);
            let Some(directory) = cgroups.directory(&group, "memory") else {
                let message = "this host has no memory controller".to_owned();
                return Err(FaultError::Refused(message));
            };
            let in_use = read_memory(&directory).map_err(FaultError::io("reading", &directory))?;
            let host = helper::host_memory().map_err(FaultError::io("reading", "/proc/meminfo"))?;
            let limit = nearby(cgroups.memory_limit(&group), in_use, host.1)?;
            let least = limit.or(cgroups.memory_limit(&group)).unwrap_or_default();
            Ok(Exhausted {
                container_id: target.record.id,
                pid: target.pid,
                limit,
                limit_before: cgroups.own_memory_limit(&group),
                at_most: least.saturating_add(4 * ROOM),
                group,
            })
        })
        .await
    }

    async fn inject(
        &self,
        scene: &Scene,
        order: &Order,
        undo: &Exhausted,
    ) -> Result<Timestamp, FaultError> {
        let (site, order, undo) = (scene.site.clone(), order.clone(), undo.clone());
        blocking(move || {
            if Helper::find(&order.uid)
                .map_err(FaultError::Helper)?
                .is_some()
                || !site.cgroups.exists(&undo.group)
            {
                // It was done before the agent was ended.
                return Ok(Timestamp::now());
            }
            if let Some(limit) = undo.limit {
                site.cgroups.set_memory_limit(&undo.group, Some(limit))?;
            }
            let score = format!("/proc/{}/oom_score_adj", undo.pid);
            std::fs::write(&score, "1000").map_err(FaultError::io("writing", &score))?;
            let waiting = Helper::start(&site, &order, &undo.group).map_err(FaultError::Helper)?;
            let job = Job::Exhaust(Exhaust {
                victim: undo.pid,
                at_most: undo.at_most,
            });
            let now = Timestamp::now();
            waiting.begin(&order, job).map_err(FaultError::Helper)?;
            Ok(now)
        })
        .await
    }

    async fn hold(
        &self,
        scene: &Scene,
        order: &Order,
        undo: &Exhausted,
        _: &Progress,
    ) -> Result<(), FaultError> {
        let gone = target::ended(scene, &self.pod, &undo.container_id);
        tokio::select! {
            () = gone => {}
            over = helper::ended(&order.uid) => {
                over?;
                // It leaves when the victim is gone, which the shim tells in a moment.
                let gone = target::ended(scene, &self.pod, &undo.container_id);
                let moment = std::time::Duration::from_secs(2);
                let _ = tokio::time::timeout(moment, gone).await;
            }
        }
        match end_of(scene, &self.pod, &undo.container_id) {
            Some(ContainerState::Running { .. } | ContainerState::Created) => {
                Err(FaultError::NoEffect(format!(
                    "the kernel killed nobody in container {:?} for want of memory",
                    self.container
                )))
            }
            Some(ContainerState::Exited {
                oom_killed: false, ..
            }) => Err(FaultError::NoEffect(format!(
                "container {:?} ended, but not for want of memory",
                self.container
            ))),
            // Removed already, with its record.
            Some(ContainerState::Exited { .. }) | None => Ok(()),
        }
    }

    async fn undo(&self, site: &Site, order: &Order, undo: &Exhausted) -> Result<(), FaultError> {
        helper::end(site, &order.uid).await?;
        let (site, undo) = (site.clone(), undo.clone());
        blocking(move || {
            // A container that was killed has no group any more, and its successor has its own.
            if undo.limit.is_none() || !site.cgroups.exists(&undo.group) {
                return Ok(());
            }
            let restored = site
                .cgroups
                .set_memory_limit(&undo.group, undo.limit_before);
            match restored {
                Err(_) if !site.cgroups.exists(&undo.group) => Ok(()),
                other => Ok(other?),
            }
        })
        .await
    }
}

fn end_of(scene: &Scene, pod: &PodRef, id: &str) -> Option<ContainerState> {
    let record = scene.sandboxes.get(&pod.uid)?.container(id)?;
    Some(record.state)
}

/// The limit that a container gets for the time; none if what it has can be used up without harm to
/// others. All in bytes.
fn nearby(limit: Option<u64>, in_use: u64, host_available: u64) -> Result<Option<u64>, FaultError> {
    let spare = host_available / 2;
    let missing = limit.map(|limit| limit.saturating_sub(in_use));
    if missing.is_some_and(|missing| missing <= spare) {
        return Ok(None);
    }
    if spare < ROOM {
        return Err(FaultError::Refused(format!(
            "this node has no memory to spare: {} MiB are available",
            host_available >> 20
        )));
    }
    Ok(Some(in_use + ROOM))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn the_host_is_spared() {
        // 64 MiB, 10 of them in use, and the host has 1,000.
        assert_eq!(nearby(Some(64 * MB), 10 * MB, 1000 * MB).unwrap(), None);
        for limit in [None, Some(2000 * MB)] {
            let near = nearby(limit, 10 * MB, 1000 * MB).unwrap();
            assert_eq!(near, Some(42 * MB), "{limit:?}");
        }
        let refused = nearby(None, 10 * MB, 50 * MB).unwrap_err().to_string();
        assert!(refused.contains("50 MiB are available"), "{refused}");
    }
}
