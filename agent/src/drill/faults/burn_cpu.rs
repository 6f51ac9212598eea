//! Using up CPU time in a container's control group, or beside a node's pods.

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use skiff_dev::PodRef;

use crate::drill::fault::{Fault, FaultError, Order};
use crate::drill::helper::{self, Helper, Job, Spin, blocking};
use crate::drill::report::Progress;
use crate::drill::site::{Scene, Site};
use crate::drill::target::Target;

/// More threads than this change nothing but the kernel's own work.
const MAX_THREADS: i32 = 1024;

pub(crate) struct BurnCpu {
    pub(crate) pod: Option<PodRef>,
    pub(crate) container: Option<String>,
    pub(crate) workers: Option<i32>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Burning {
    group: String,
    threads: usize,
}

#[async_trait]
impl Fault for BurnCpu {
    type Undo = Burning;

    async fn prepare(&self, scene: &Scene, _: &Order) -> Result<Burning, FaultError> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = match self.workers {
            None => cpus,
            Some(workers @ 1..=MAX_THREADS) => workers as usize,
            Some(workers) => {
                return Err(FaultError::Refused(format!(
                    "{workers} workers: there may be 1 to {MAX_THREADS}"
                )));
            }
        };
        let group = match &self.pod {
            Some(pod) => Target::find(scene, pod, self.container.as_deref())?.group,
            None => scene.site.helpers(),
        };
        Ok(Burning { group, threads })
    }

    async fn inject(
        &self,
        scene: &Scene,
        order: &Order,
        undo: &Burning,
    ) -> Result<Timestamp, FaultError> {
        let (site, order, undo) = (scene.site.clone(), order.clone(), undo.clone());
        let job = Job::Spin(Spin {
            threads: undo.threads,
        });
        begin_once(site, order, undo.group, job).await
    }

    async fn hold(
        &self,
        _: &Scene,
        order: &Order,
        _: &Burning,
        _: &Progress,
    ) -> Result<(), FaultError> {
        // It ends with its container.
        helper::ended(&order.uid).await
    }

    async fn undo(&self, site: &Site, order: &Order, _: &Burning) -> Result<(), FaultError> {
        helper::end(site, &order.uid).await
    }
}

/// Starts a helper, unless a process before this one has.
pub(super) async fn begin_once(
    site: Site,
    order: Order,
    group: String,
    job: Job,
) -> Result<Timestamp, FaultError> {
    let begun = move || {
        if Helper::find(&order.uid)?.is_some() {
            return Ok(Timestamp::now());
        }
        let waiting = Helper::start(&site, &order, &group)?;
        let now = Timestamp::now();
        waiting.begin(&order, job)?;
        Ok(now)
    };
    blocking(begun).await.map_err(FaultError::Helper)
}
