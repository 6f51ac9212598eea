//! SIGSTOP to every process of a container, SIGCONT to undo it.
//!
//! A process that is stopped can't start others, so a few rounds reach all of them. Others may be put into the container
//! later, by `exec` and by probes: they are stopped too, as everything in a container that hangs. The shim's children, which
//! are among them until they execute a program, are not: they are the runtime's, and a container whose shim waits
//! for a child that is stopped can't end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use skiff_dev::PodRef;

use crate::drill::fault::{Fault, FaultError, Order};
use crate::drill::helper::blocking;
use crate::drill::report::Progress;
use crate::drill::site::{Scene, Site};
use crate::drill::target::{self, Doing, Process, Target, processes};

/// How long it may take until a process has stopped: it may be in the kernel.
const PATIENCE: Duration = Duration::from_secs(5);
const ROUND: Duration = Duration::from_millis(1);
/// Between looks for processes that came later: the kernel tells nobody of them.
const LOOK: Duration = Duration::from_millis(50);

pub(crate) struct StopContainer {
    pod: PodRef,
    container: String,
    /// Set when processes are to go on. Held while they are stopped: that is done on other threads, which may still be at it
    /// when the undo begins.
    over: Arc<Mutex<bool>>,
}

impl StopContainer {
    pub(crate) fn new(pod: PodRef, container: String) -> Self {
        Self {
            pod,
            container,
            over: Arc::default(),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Stopped {
    container_id: String,
    group: String,
    /// Those that somebody else had stopped, who wants them to stay so.
    before: Vec<Process>,
}

#[async_trait]
impl Fault for StopContainer {
    type Undo = Stopped;

    async fn prepare(&self, scene: &Scene, _: &Order) -> Result<Stopped, FaultError> {
        let target = Target::find(scene, &self.pod, Some(&self.container))?;
        let (site, group) = (scene.site.clone(), target.group.clone());
        let found = blocking(move || processes(&site, &group)).await;
        let stopped = found.into_iter().filter(|(_, d)| *d == Doing::Stopped);
        Ok(Stopped {
            container_id: target.record.id,
            group: target.group,
            before: stopped.map(|(process, _)| process).collect(),
        })
    }

    async fn inject(
        &self,
        scene: &Scene,
        _: &Order,
        stopped: &Stopped,
    ) -> Result<Timestamp, FaultError> {
        let (site, group) = (scene.site.clone(), stopped.group.clone());
        let over = self.over.clone();
        let now = Timestamp::now();
        blocking(move || stop_all(&site, &group, &over)).await?;
        Ok(now)
    }

    async fn hold(
        &self,
        scene: &Scene,
        _: &Order,
        stopped: &Stopped,
        _: &Progress,
    ) -> Result<(), FaultError> {
        let keep = async {
            loop {
                tokio::time::sleep(LOOK).await;
                let (site, group) = (scene.site.clone(), stopped.group.clone());
                let over = self.over.clone();
                blocking(move || signal_those_that_run(&site, &group, &over)).await;
            }
        };
        tokio::select! {
            () = target::ended(scene, &self.pod, &stopped.container_id) => Ok(()),
            () = keep => Ok(()),
        }
    }

    async fn undo(&self, site: &Site, _: &Order, stopped: &Stopped) -> Result<(), FaultError> {
        let (site, group) = (site.clone(), stopped.group.clone());
        let (before, over) = (stopped.before.clone(), self.over.clone());
        blocking(move || {
            *over.lock().unwrap_or_else(PoisonError::into_inner) = true;
            for (process, doing) in processes(&site, &group) {
                if doing == Doing::Stopped && !before.contains(&process) {
                    process.signal(Signal::SIGCONT);
                }
            }
        })
        .await;
        Ok(())
    }
}

fn stop_all(site: &Site, group: &str, over: &Mutex<bool>) -> Result<(), FaultError> {
    let deadline = Instant::now() + PATIENCE;
    while let Some(running) = signal_those_that_run(site, group, over) {
        if Instant::now() > deadline {
            let message = format!("process {} of the container does not stop", running.pid);
            return Err(FaultError::NoEffect(message));
        }
        std::thread::sleep(ROUND);
    }
    Ok(())
}

/// One of the processes that still ran, if any did.
fn signal_those_that_run(site: &Site, group: &str, over: &Mutex<bool>) -> Option<Process> {
    let over = over.lock().unwrap_or_else(PoisonError::into_inner);
    if *over {
        return None;
    }
    let runtime = site.identity.shims_dir();
    let mut found = None;
    for (process, doing) in processes(site, group) {
        if doing == Doing::Runs && !process.executes_in(&runtime) {
            process.signal(Signal::SIGSTOP);
            found = Some(process);
        }
    }
    found
}
