//! Sends a pod's status to the API: at once, one write at a time, the newest wins.
//!
//! A write that fails is tried again with what is true by then, for as long as it takes; a new
//! status ends the wait. Each status is also put into the pod's record on disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::record;
use super::seams::{PodApi, WriteError};

/// First wait after a write that failed; it doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// A status on its way.
#[derive(Clone)]
struct Outgoing {
    number: u64,
    pod: Arc<Pod>,
    status: PodStatus,
}

/// The sender; dropping it ends the task.
pub(super) struct StatusWriter {
    outgoing: watch::Sender<Option<Outgoing>>,
    settled: watch::Receiver<u64>,
    number: u64,
    _task: JoinSet<()>,
}

impl StatusWriter {
    pub(super) fn new(api: Arc<dyn PodApi>, pod_dir: PathBuf) -> Self {
        let (outgoing, queue) = watch::channel(None);
        let (settle, settled) = watch::channel(0);
        let mut task = JoinSet::new();
        task.spawn(write(api, pod_dir, queue, settle));
        Self {
            outgoing,
            settled,
            number: 0,
            _task: task,
        }
    }

    /// Sends a status, in place of any that waits.
    pub(super) fn put(&mut self, pod: Arc<Pod>, status: PodStatus) {
        self.number += 1;
        self.outgoing.send_replace(Some(Outgoing {
            number: self.number,
            pod,
            status,
        }));
    }

    /// Resolves once everything put so far is written, or has nothing left to be written to.
    pub(super) fn settled(&self) -> impl Future<Output = ()> + Send + 'static {
        let number = self.number;
        let mut settled = self.settled.clone();
        async move {
            // An error means that the writer is gone: the worker's end, which drops this too.
            let _ = settled.wait_for(|done| *done >= number).await;
        }
    }
}

async fn write(
    api: Arc<dyn PodApi>,
    pod_dir: PathBuf,
    mut queue: watch::Receiver<Option<Outgoing>>,
    settle: watch::Sender<u64>,
) {
    let mut wait = FIRST_WAIT;
    loop {
        let next = queue.borrow_and_update().clone();
        let Some(outgoing) = next else {
            if queue.changed().await.is_err() {
                return;
            }
            continue;
        };
        let saved = save(&pod_dir, &outgoing);
        let (written, ()) = tokio::join!(api.write_status(&outgoing.pod, &outgoing.status), saved);
        match written {
            Ok(()) | Err(WriteError::Gone) => {
                settle.send_replace(outgoing.number);
                wait = FIRST_WAIT;
                if queue.changed().await.is_err() {
                    return;
                }
            }
            Err(WriteError::Retry(error)) => {
                if wait == FIRST_WAIT {
                    let pod = outgoing.pod.metadata.name.as_deref();
                    tracing::warn!(
                        pod,
                        error,
                        "the pod's status can't be written, trying again"
                    );
                }
                let changed = tokio::select! {
                    changed = queue.changed() => changed,
                    () = tokio::time::sleep(wait) => Ok(()),
                };
                if changed.is_err() {
                    return;
                }
                wait = (wait * 2).min(LONGEST_WAIT);
            }
        }
    }
}

async fn save(pod_dir: &std::path::Path, outgoing: &Outgoing) {
    let mut pod = Pod::clone(&outgoing.pod);
    pod.status = Some(merged(pod.status.take(), &outgoing.status));
    let pod_dir = pod_dir.to_owned();
    let saved = tokio::task::spawn_blocking(move || record::save(&pod_dir, &pod)).await;
    if let Ok(Err(error)) = saved
        && error.kind() != std::io::ErrorKind::NotFound
    {
        let pod = outgoing.pod.metadata.name.as_deref();
        tracing::warn!(pod, %error, "the pod's record can't be written");
    }
}

/// The computed status, with the conditions that others set.
fn merged(known: Option<PodStatus>, computed: &PodStatus) -> PodStatus {
    let mut status = computed.clone();
    let own = status.conditions.get_or_insert_default();
    let others = known.and_then(|k| k.conditions).unwrap_or_default();
    for condition in others {
        if !own.iter().any(|c| c.type_ == condition.type_) {
            own.push(condition);
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::scripted::ScriptedApi;

    fn status(phase: &str) -> PodStatus {
        PodStatus {
            phase: Some(phase.into()),
            ..PodStatus::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_is_written_when_the_api_comes_back() {
        let api = Arc::new(ScriptedApi::default());
        api.fail_writes(true);
        let dir = tempfile::tempdir().unwrap();
        let mut writer = StatusWriter::new(api.clone(), dir.path().to_owned());
        let pod = Arc::new(Pod::default());
        writer.put(pod.clone(), status("Pending"));
        tokio::time::sleep(Duration::from_secs(30)).await;
        writer.put(pod, status("Running"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(api.phases(), Vec::<String>::new());
        api.fail_writes(false);
        writer.settled().await;
        assert_eq!(api.phases(), ["Running"]);
        let saved = record::load(dir.path()).unwrap();
        assert_eq!(saved.status.unwrap().phase.unwrap(), "Running");
    }
}
