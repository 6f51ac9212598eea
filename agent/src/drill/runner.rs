//! Which tasks this node has: what the journal says, what the API says, a worker for each.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;

use futures::StreamExt;
use kube::Api;
use kube::runtime::{WatchStreamExt, watcher};
use skiff_dev::{DrillTask, TaskPhase};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::heal;
use super::helper::blocking;
use super::journal::{Entry, Journal, Stage, is_uid};
use super::report::Tasks;
use super::site::Scene;
use super::worker::{Object, Wanted, Worker};
use crate::logs::Watch;
use crate::reconnect::Reconnect;

/// Runs the tasks of a node.
pub(crate) struct Runner {
    scene: Arc<Scene>,
    journal: Journal,
    tasks: Arc<dyn Tasks>,
    /// Tells when somebody asks for everything to be undone.
    asked: Watch,
    entries: Vec<Entry>,
    /// Of the tasks that are being carried out, by uid.
    workers: HashMap<String, watch::Sender<Wanted>>,
    running: JoinSet<String>,
    /// Tasks that are done with, until the API has forgotten them too: what is still told of them is old.
    finished: HashSet<String>,
}

impl Runner {
    /// Reads the journal.
    ///
    /// # Errors
    /// When the node's directory of drills can't be made, read or watched.
    pub(crate) async fn open(scene: Scene) -> io::Result<Self> {
        let journal = Journal::of(&scene.site.identity);
        let reading = journal.clone();
        let entries = blocking(move || {
            reading.create()?;
            reading.entries()
        })
        .await?;
        let asked = scene.files.watch(&scene.site.identity.drills_dir())?;
        Ok(Self {
            tasks: Arc::new(Api::<DrillTask>::all(scene.client.clone())),
            scene: Arc::new(scene),
            journal,
            asked,
            entries,
            workers: HashMap::new(),
            running: JoinSet::new(),
            finished: HashSet::new(),
        })
    }

    /// Until the agent stops; what has to be undone by then is undone.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        for entry in std::mem::take(&mut self.entries) {
            let uid = entry.uid().to_owned();
            let worker = self.worker(&uid, Object::Unknown, &stop);
            self.running.spawn(async move {
                worker.resume(entry).await;
                uid
            });
        }
        let own = format!("spec.nodeName={}", self.scene.node_name);
        let tasks = Api::<DrillTask>::all(self.scene.client.clone());
        let watch = watcher(tasks, watcher::Config::default().fields(&own));
        let mut events = pin!(watch.backoff(Reconnect::default()));
        let mut listed = HashSet::new();
        self.look_whether_asked().await;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(event) = events.next() => match event {
                    Ok(watcher::Event::Init) => listed.clear(),
                    Ok(watcher::Event::InitApply(task)) => {
                        listed.extend(task.metadata.uid.clone());
                        self.take(task, &stop);
                    }
                    Ok(watcher::Event::InitDone) => self.drop_all_but(&listed),
                    Ok(watcher::Event::Apply(task)) => self.take(task, &stop),
                    Ok(watcher::Event::Delete(task)) => {
                        self.forget(task.metadata.uid.as_deref().unwrap_or_default());
                    }
                    // It is tried again; what is lost meanwhile is in the next list.
                    Err(_) => {}
                },
                Some(done) = self.running.join_next() => {
                    self.finish(done);
                    self.look_whether_asked().await;
                }
                // Samples of probes are appended all the time.
                () = self.asked.changed() => if self.asked.take_renamed() {
                    self.look_whether_asked().await;
                },
            }
        }
        while let Some(done) = self.running.join_next().await {
            self.finish(done);
        }
    }

    fn take(&mut self, task: DrillTask, stop: &CancellationToken) {
        let uid = task.metadata.uid.clone().unwrap_or_default();
        if self.finished.contains(&uid) || !is_uid(&uid) {
            return;
        }
        let task = Arc::new(task);
        if let Some(wanted) = self.workers.get(&uid) {
            wanted.send_modify(|wanted| wanted.object = Object::Here(task));
            return;
        }
        if !is_to_be_done(&task) {
            return;
        }
        let worker = self.worker(&uid, Object::Here(task.clone()), stop);
        self.running.spawn(async move {
            worker.begin(task).await;
            uid
        });
    }

    fn worker(&mut self, uid: &str, object: Object, stop: &CancellationToken) -> Worker {
        let (sender, wanted) = watch::channel(Wanted {
            object,
            heal: false,
        });
        self.workers.insert(uid.to_owned(), sender);
        Worker {
            scene: self.scene.clone(),
            journal: self.journal.clone(),
            tasks: self.tasks.clone(),
            wanted,
            stop: stop.clone(),
        }
    }

    /// The API has told all tasks that there are.
    fn drop_all_but(&mut self, listed: &HashSet<String>) {
        self.finished.retain(|uid| listed.contains(uid));
        for (uid, wanted) in &self.workers {
            if !listed.contains(uid) {
                wanted.send_modify(|wanted| wanted.object = Object::Gone);
            }
        }
    }

    fn forget(&mut self, uid: &str) {
        self.finished.remove(uid);
        if let Some(wanted) = self.workers.get(uid) {
            wanted.send_modify(|wanted| wanted.object = Object::Gone);
        }
    }

    fn finish(&mut self, done: Result<String, tokio::task::JoinError>) {
        match done {
            Ok(uid) => {
                let wanted = self.workers.remove(&uid);
                let is_gone = wanted.is_none_or(|w| matches!(w.borrow().object, Object::Gone));
                if !is_gone {
                    self.finished.insert(uid);
                }
            }
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => {}
        }
    }

    /// Somebody on this host may have asked for everything to be undone: see [`heal::ask_to_heal`].
    async fn look_whether_asked(&mut self) {
        let marker = heal::marker(&self.scene.site.identity);
        let journal = self.journal.clone();
        let looked = blocking(move || look(&marker, &journal)).await;
        match looked {
            Ok(true) => {
                for wanted in self.workers.values() {
                    wanted.send_if_modified(|wanted| !std::mem::replace(&mut wanted.heal, true));
                }
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "a request to undo drills can't be read"),
        }
    }
}

/// Whether there is a request that is not fulfilled; one that is, is removed.
fn look(marker: &PathBuf, journal: &Journal) -> io::Result<bool> {
    if !marker.try_exists()? {
        return Ok(false);
    }
    let entries = journal.entries()?;
    if entries.iter().any(|entry| entry.stage == Stage::Open) {
        return Ok(true);
    }
    match std::fs::remove_file(marker) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(false),
    }
}

/// Whether a task that the journal does not know asks for anything.
fn is_to_be_done(task: &DrillTask) -> bool {
    let phase = task.status.as_ref().map(|status| status.phase);
    let is_over = matches!(phase, Some(TaskPhase::Ended | TaskPhase::Failed));
    let mut held = task.metadata.finalizers.iter().flatten();
    !is_over || held.any(|finalizer| finalizer == DrillTask::UNDO)
}
