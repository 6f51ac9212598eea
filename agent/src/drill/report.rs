//! Telling the API how a task goes on: the newest status, as soon as it can be told.

use std::time::Duration;

use async_trait::async_trait;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use skiff_dev::{DrillTask, DrillTaskStatus};
use tokio::sync::watch;

use crate::reconnect::Reconnect;

/// How the API took something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    Done,
    /// There is no such task any more.
    Gone,
}

/// What a worker says to the API.
#[async_trait]
pub(crate) trait Tasks: Send + Sync {
    async fn put_status(
        &self,
        task: &DrillTask,
        status: &DrillTaskStatus,
    ) -> Result<Told, kube::Error>;

    /// Removes the finalizer: nothing is left to be undone.
    async fn release(&self, task: &DrillTask) -> Result<Told, kube::Error>;
}

#[async_trait]
impl Tasks for Api<DrillTask> {
    async fn put_status(
        &self,
        task: &DrillTask,
        status: &DrillTaskStatus,
    ) -> Result<Told, kube::Error> {
        // Another object of the same name is none of ours.
        let patch = json!({"metadata": {"uid": task.metadata.uid}, "status": status});
        let patch = Patch::Merge(patch);
        let written = self
            .patch_status(name(task), &PatchParams::default(), &patch)
            .await;
        answered(written)
    }

    async fn release(&self, task: &DrillTask) -> Result<Told, kube::Error> {
        let Some(found) = self.get_opt(name(task)).await? else {
            return Ok(Told::Gone);
        };
        if found.metadata.uid != task.metadata.uid {
            return Ok(Told::Gone);
        }
        let mut finalizers = found.metadata.finalizers.unwrap_or_default();
        if !finalizers.iter().any(|held| held == DrillTask::UNDO) {
            return Ok(Told::Done);
        }
        finalizers.retain(|held| held != DrillTask::UNDO);
        let patch = json!({"metadata": {
            "finalizers": finalizers,
            "resourceVersion": found.metadata.resource_version,
        }});
        let patch = Patch::Merge(patch);
        answered(
            self.patch(name(task), &PatchParams::default(), &patch)
                .await,
        )
    }
}

fn name(task: &DrillTask) -> &str {
    task.metadata.name.as_deref().unwrap_or_default()
}

fn answered(written: Result<DrillTask, kube::Error>) -> Result<Told, kube::Error> {
    match written {
        Ok(_) => Ok(Told::Done),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Told::Gone),
        Err(error) => Err(error),
    }
}

/// The status of a task, as those see it who carry it out. What they change is told by itself.
#[derive(Debug)]
pub(crate) struct Progress {
    latest: watch::Sender<DrillTaskStatus>,
}

impl Progress {
    pub(crate) fn new(status: DrillTaskStatus) -> Self {
        Self {
            latest: watch::Sender::new(status),
        }
    }

    /// Changes the status. Many changes at once are told as one.
    pub(crate) fn update(&self, change: impl FnOnce(&mut DrillTaskStatus)) {
        self.latest.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }

    pub(crate) fn status(&self) -> DrillTaskStatus {
        self.latest.borrow().clone()
    }

    /// Keeps telling the newest status, one after the other, each until it is told. Returns only when the
    /// task is gone.
    pub(crate) async fn tell(&self, tasks: &dyn Tasks, task: &DrillTask) {
        let mut latest = self.latest.subscribe();
        let mut known = *latest.borrow() == task.status.clone().unwrap_or_default();
        loop {
            if !known && self.tell_now(tasks, task).await == Told::Gone {
                return;
            }
            known = false;
            // The other end is `self`.
            let _ = latest.changed().await;
        }
    }

    /// Tells the status as it is now, however often that takes.
    pub(crate) async fn tell_now(&self, tasks: &dyn Tasks, task: &DrillTask) -> Told {
        insist(tasks, task, News::Status(self)).await
    }
}

/// Says that nothing is left to be undone, however often that takes.
pub(crate) async fn release(tasks: &dyn Tasks, task: &DrillTask) {
    insist(tasks, task, News::Released).await;
}

/// What there is to tell.
#[derive(Debug, Clone, Copy)]
enum News<'a> {
    Status(&'a Progress),
    Released,
}

async fn insist(tasks: &dyn Tasks, task: &DrillTask, news: News<'_>) -> Told {
    let mut pauses = Reconnect::default();
    let mut reported = false;
    loop {
        let told = match news {
            News::Status(progress) => {
                let newest = progress.status();
                tasks.put_status(task, &newest).await
            }
            News::Released => tasks.release(task).await,
        };
        let error = match told {
            Ok(told) => return told,
            Err(error) => error,
        };
        // Two writers at once, or an API that is away: it will pass. Anything else an operator should know.
        let lasting =
            matches!(&error, kube::Error::Api(status) if status.code != 409 && status.code < 500);
        if lasting && !reported {
            tracing::warn!(task = name(task), %error, "the API does not take news of a drill's task, trying again");
            reported = true;
        }
        let pause = pauses.next().unwrap_or(Duration::from_secs(1));
        tokio::time::sleep(pause).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use skiff_dev::TaskPhase;

    use super::*;

    /// An API that fails a number of times before it takes anything.
    #[derive(Default)]
    struct Flaky {
        failures: Mutex<Vec<u16>>,
        told: Mutex<Vec<TaskPhase>>,
        released: Mutex<bool>,
        gone: bool,
    }

    impl Flaky {
        fn answer(&self) -> Result<Told, kube::Error> {
            match self.failures.lock().unwrap().pop() {
                Some(0) => Err(kube::Error::LinesCodecMaxLineLengthExceeded),
                Some(code) => {
                    let status = kube::core::Status {
                        code,
                        ..kube::core::Status::default()
                    };
                    Err(kube::Error::Api(status.boxed()))
                }
                None if self.gone => Ok(Told::Gone),
                None => Ok(Told::Done),
            }
        }
    }

    #[async_trait]
    impl Tasks for Flaky {
        async fn put_status(
            &self,
            _: &DrillTask,
            status: &DrillTaskStatus,
        ) -> Result<Told, kube::Error> {
            let told = self.answer()?;
            self.told.lock().unwrap().push(status.phase);
            Ok(told)
        }

        async fn release(&self, _: &DrillTask) -> Result<Told, kube::Error> {
            let told = self.answer()?;
            *self.released.lock().unwrap() = true;
            Ok(told)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn news_wait_for_an_api_that_is_away() {
        let api = Flaky {
            failures: Mutex::new(vec![0, 503, 409, 403, 0]),
            ..Flaky::default()
        };
        let progress = Progress::new(DrillTaskStatus::default());
        progress.update(|status| status.phase = TaskPhase::Ended);
        let told = progress.tell_now(&api, &DrillTask::default()).await;
        assert_eq!(told, Told::Done);
        assert_eq!(*api.told.lock().unwrap(), [TaskPhase::Ended]);
        api.failures.lock().unwrap().extend([0, 500]);
        release(&api, &DrillTask::default()).await;
        assert!(*api.released.lock().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_newest_is_told_and_nothing_twice() {
        let api = Flaky::default();
        let progress = Progress::new(DrillTaskStatus::default());
        let task = DrillTask::default();
        let telling = progress.tell(&api, &task);
        let changing = async {
            // What is known already is not told.
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(*api.told.lock().unwrap(), []);
            progress.update(|status| status.phase = TaskPhase::Failed);
            progress.update(|status| status.phase = TaskPhase::Active);
            progress.update(|_| {});
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        tokio::select! {
            () = telling => panic!("it is not gone"),
            () = changing => {}
        }
        assert_eq!(*api.told.lock().unwrap(), [TaskPhase::Active]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_is_gone_needs_no_news() {
        let api = Flaky {
            gone: true,
            ..Flaky::default()
        };
        let progress = Progress::new(DrillTaskStatus::default());
        progress.update(|status| status.phase = TaskPhase::Active);
        progress.tell(&api, &DrillTask::default()).await;
        assert_eq!(*api.told.lock().unwrap(), [TaskPhase::Active]);
    }
}
