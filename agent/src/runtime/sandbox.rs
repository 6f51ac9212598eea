//! One pod's sandbox, as the agent sees it: a client of its shim that knows the state of every
//! container and can be asked to change it.
//!
//! A task owns the connection. It carries requests to the shim and keeps the state up to date,
//! which anybody can watch. When the shim dies, the task kills what it left, closes the records
//! of its containers as lost, and says that the sandbox is not alive.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use skiff_shim::protocol::{
    Call, Create, LogLimits, Message, NETNS_FILE, Overlay, PodState, ROOTFS_DIR, Reply, Request,
    SHM_DIR, SOCKET_FILE,
};
use tokio::sync::{mpsc, oneshot, watch};

use super::connection::Connection;
use super::error::RuntimeError;
use super::session::Session;
use super::types::{
    AttachRequest, CgroupStats, ContainerConfig, ContainerRecord, ExecRequest, SandboxConfig,
    SandboxState,
};
use super::{Runtime, blocking, spec};

/// Requests that may wait for the shim.
const QUEUE: usize = 32;

/// How long a shim that is asked to stop may take before it is killed with its containers.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// What is written into the record of a container whose shim died.
const SHIM_DIED: &str = "the container's supervisor died: its exit code is not known";

/// A pod's sandbox. Cheap to clone; the connection closes with the last clone, which leaves the
/// shim and its containers running.
#[derive(Debug, Clone)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    runtime: Runtime,
    config: SandboxConfig,
    run_dir: PathBuf,
    netns: PathBuf,
    calls: mpsc::Sender<Pending>,
    state: watch::Receiver<SandboxState>,
}

/// A request, and where its answer goes.
type Pending = (Call, oneshot::Sender<Result<Reply, RuntimeError>>);

impl Sandbox {
    /// Connects to a sandbox's shim. One whose shim does not answer is cleaned up after and
    /// returned as not alive.
    pub(super) async fn adopt(
        runtime: Runtime,
        config: SandboxConfig,
    ) -> Result<Self, RuntimeError> {
        let run_dir = runtime.run_dir(&config.uid);
        let (calls, queue) = mpsc::channel(QUEUE);
        let state = match subscribe(&run_dir, &config.uid).await {
            Ok((connection, state)) => {
                let (publish, watched) = watch::channel(known(state));
                let task = Task {
                    runtime: runtime.clone(),
                    config: config.clone(),
                    connection,
                    publish,
                    pending: BTreeMap::new(),
                    next_seq: 1,
                };
                tokio::spawn(task.run(queue));
                watched
            }
            Err(_) => {
                let dead = bury(&runtime, &config).await?;
                watch::channel(dead).1
            }
        };
        let netns = run_dir.join(NETNS_FILE);
        Ok(Self {
            inner: Arc::new(Inner {
                runtime,
                config,
                run_dir,
                netns,
                calls,
                state,
            }),
        })
    }

    pub fn uid(&self) -> &str {
        &self.inner.config.uid
    }

    pub fn config(&self) -> &SandboxConfig {
        &self.inner.config
    }

    /// The pod's network namespace, pinned until the sandbox is destroyed; `None` with
    /// `hostNetwork`.
    pub fn netns(&self) -> Option<&Path> {
        (!self.inner.config.host_network).then_some(self.inner.netns.as_path())
    }

    /// The state now and every change of it. Level-triggered: whoever looks late sees the last
    /// state, and ended containers stay in it until they are removed.
    pub fn watch(&self) -> watch::Receiver<SandboxState> {
        self.inner.state.clone()
    }

    /// The state now.
    pub fn state(&self) -> SandboxState {
        self.inner.state.borrow().clone()
    }

    /// Whether the shim runs. When it does not, the sandbox can only be destroyed.
    pub fn is_alive(&self) -> bool {
        self.inner.state.borrow().alive
    }

    /// The records of all containers, ended ones included, the oldest first.
    pub fn containers(&self) -> Vec<ContainerRecord> {
        let mut records: Vec<_> = self.state().containers.into_values().collect();
        records.sort_by(|a, b| a.created_at.cmp(&b.created_at));
        records
    }

    pub fn container(&self, id: &str) -> Option<ContainerRecord> {
        self.inner.state.borrow().containers.get(id).cloned()
    }

    /// Sets a container up: its cgroup, root, namespaces and process, which waits to be started.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when the declaration can't be carried out,
    /// [`RuntimeError::Start`] when the process can't be executed (a record stays behind),
    /// others when the host refuses something.
    pub async fn create_container(
        &self,
        config: ContainerConfig,
    ) -> Result<ContainerRecord, RuntimeError> {
        let sandbox = self.clone();
        let call = blocking(move || sandbox.prepare(&config)).await?;
        let id = call.id.clone();
        match self.call(Call::Create(Box::new(call))).await {
            Ok(Reply::Container(record)) => Ok(*record),
            Ok(_) => Err(self.misunderstood()),
            Err(error) => {
                let sandbox = self.clone();
                blocking(move || sandbox.abandon(&id)).await?;
                Err(error)
            }
        }
    }

    /// Lets a created container's process run.
    ///
    /// # Errors
    /// [`RuntimeError::Conflict`] when it was started before.
    pub async fn start_container(&self, id: &str) -> Result<ContainerRecord, RuntimeError> {
        match self.call(Call::Start { id: id.to_owned() }).await? {
            Reply::Container(record) => Ok(*record),
            _ => Err(self.misunderstood()),
        }
    }

    /// Sends a signal to a container's first process. No error when it has ended.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], [`RuntimeError::Gone`].
    pub async fn signal(&self, id: &str, signal: i32) -> Result<(), RuntimeError> {
        let id = id.to_owned();
        self.call(Call::Signal { id, signal }).await.map(drop)
    }

    /// Removes an ended container: its record, root and state. Its log stays.
    ///
    /// # Errors
    /// [`RuntimeError::Conflict`] while it runs.
    pub async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        match self.call(Call::Remove { id: id.to_owned() }).await {
            Ok(_) | Err(RuntimeError::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
        let directory = self.state_dir(id);
        blocking(move || remove_directory(&directory)).await
    }

    /// Runs a command in a running container; returns once it is executed.
    ///
    /// # Errors
    /// [`RuntimeError::Start`] when it can't be executed, with the runtime's words.
    pub async fn exec(&self, id: &str, request: ExecRequest) -> Result<Session, RuntimeError> {
        Session::exec(&self.socket(), self.uid(), id, request).await
    }

    /// Follows a running container's output and, if asked to, feeds its input.
    ///
    /// # Errors
    /// [`RuntimeError::Conflict`] when it does not run.
    pub async fn attach(&self, id: &str, request: AttachRequest) -> Result<Session, RuntimeError> {
        Session::attach(&self.socket(), self.uid(), id, request).await
    }

    /// What a running container uses.
    ///
    /// # Errors
    /// When it has no cgroup (any more).
    pub async fn stats(&self, id: &str) -> Result<CgroupStats, RuntimeError> {
        self.group_stats(self.group(id)).await
    }

    /// What the whole pod uses.
    ///
    /// # Errors
    /// When it has no cgroup (any more).
    pub async fn pod_stats(&self) -> Result<CgroupStats, RuntimeError> {
        let config = self.config();
        let group = self.inner.runtime.cgroups().pod(config.qos, &config.uid);
        self.group_stats(group).await
    }

    /// Kills every container and the shim, and removes the namespaces, cgroups, mounts and
    /// sockets. The pod's directory (records, logs, volumes) stays. Idempotent; works with a
    /// dead shim too.
    ///
    /// # Errors
    /// When a process can't be killed or something can't be removed.
    pub async fn destroy(&self) -> Result<(), RuntimeError> {
        // A shim that is asked records the exits of the containers that it kills.
        let stopping = tokio::time::timeout(PATIENCE, self.call(Call::Shutdown));
        match stopping.await.unwrap_or(Ok(Reply::Done)) {
            Ok(_) | Err(RuntimeError::Gone(_)) => {}
            Err(error) => tracing::warn!(pod = self.uid(), %error, "the shim was not stopped"),
        }
        let sandbox = self.clone();
        blocking(move || {
            let config = sandbox.config();
            sandbox.inner.runtime.demolish(&config.uid, config.qos)
        })
        .await
    }

    /// The directory with a container's specification, record and writable layer.
    pub fn state_dir(&self, id: &str) -> PathBuf {
        self.config().pod_dir.join("containers").join(id)
    }

    /// A container's cgroup, relative to a hierarchy's root.
    pub fn group(&self, id: &str) -> String {
        let config = self.config();
        self.inner
            .runtime
            .cgroups()
            .container(config.qos, &config.uid, id)
    }

    async fn group_stats(&self, group: String) -> Result<CgroupStats, RuntimeError> {
        let cgroups = self.inner.runtime.cgroups().clone();
        blocking(move || cgroups.stats(&group)).await
    }

    fn socket(&self) -> PathBuf {
        self.inner.run_dir.join(SOCKET_FILE)
    }

    async fn call(&self, call: Call) -> Result<Reply, RuntimeError> {
        let gone = || RuntimeError::Gone(self.uid().to_owned());
        let (answer, answered) = oneshot::channel();
        let sent = self.inner.calls.send((call, answer)).await;
        sent.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }

    fn misunderstood(&self) -> RuntimeError {
        RuntimeError::Shim {
            pod: self.uid().to_owned(),
            message: "its answer does not fit the request".to_owned(),
        }
    }

    /// Makes a container's directories, specification and cgroup. Blocking.
    fn prepare(&self, config: &ContainerConfig) -> Result<Create, RuntimeError> {
        let state_dir = self.state_dir(&config.id);
        let result = self.prepare_in(config, &state_dir);
        if result.is_err() {
            let _ = self.abandon(&config.id);
            let _ = remove_directory(&state_dir);
        }
        result
    }

    fn prepare_in(
        &self,
        config: &ContainerConfig,
        state_dir: &Path,
    ) -> Result<Create, RuntimeError> {
        let cgroups = self.inner.runtime.cgroups();
        let place = spec::Place {
            sandbox: self.config(),
            rootfs: self.inner.run_dir.join(ROOTFS_DIR),
            shm: self.inner.run_dir.join(SHM_DIR),
            unified_cgroups: cgroups.is_v2(),
        };
        let generated = spec::generate(config, &place)?;
        let rootfs = Overlay {
            lower: config.layers.clone(),
            upper: state_dir.join("upper"),
            work: state_dir.join("work"),
        };
        for directory in [&rootfs.upper, &rootfs.work] {
            std::fs::create_dir_all(directory).map_err(RuntimeError::io("making", directory))?;
        }
        let path = state_dir.join("config.json");
        let bytes = serde_json::to_vec(&generated.spec).map_err(std::io::Error::other);
        bytes
            .and_then(|bytes| std::fs::write(&path, bytes))
            .map_err(RuntimeError::io("writing", &path))?;
        let group = self.group(&config.id);
        cgroups.create(&group, &config.resources)?;
        if !generated.privileged {
            cgroups.restrict_devices(&group)?;
        }
        cgroups.kill_together(&group)?;
        Ok(Create {
            id: config.id.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.container.image.clone().unwrap_or_default(),
            image_id: config.image_id.clone(),
            log_path: config.log_path.clone(),
            state_dir: state_dir.to_owned(),
            rootfs,
            cgroups: cgroups.directories(&group),
            tty: config.container.tty.unwrap_or(false),
            stdin: config.container.stdin.unwrap_or(false),
            stdin_once: config.container.stdin_once.unwrap_or(false),
            log_limits: LogLimits::default(),
        })
    }

    /// Removes the cgroup and the writable layer of a container that did not come to be; a
    /// record that the shim wrote stays. Blocking.
    fn abandon(&self, id: &str) -> Result<(), RuntimeError> {
        let group = self.group(id);
        self.inner
            .runtime
            .cgroups()
            .destroy(&group)
            .map_err(RuntimeError::io("emptying the cgroup", &group))?;
        remove_directory(&self.state_dir(id).join("upper"))?;
        remove_directory(&self.state_dir(id).join("work"))
    }
}

/// The owner of a sandbox's connection.
struct Task {
    runtime: Runtime,
    config: SandboxConfig,
    connection: Connection,
    publish: watch::Sender<SandboxState>,
    pending: BTreeMap<u64, oneshot::Sender<Result<Reply, RuntimeError>>>,
    next_seq: u64,
}

impl Task {
    /// Runs until the shim is gone, or every [`Sandbox`] of it is dropped.
    async fn run(mut self, mut queue: mpsc::Receiver<Pending>) {
        loop {
            tokio::select! {
                message = self.connection.receive() => match message {
                    Ok(Some((message, _))) => self.take(message),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(pod = self.config.uid, %error, "lost the shim");
                        break;
                    }
                },
                call = queue.recv() => match call {
                    Some((call, answer)) => {
                        let seq = self.next_seq;
                        self.next_seq += 1;
                        self.pending.insert(seq, answer);
                        if self.connection.send(&Request { seq, call }, &[]).await.is_err() {
                            self.pending.remove(&seq);
                        }
                    }
                    None => return,
                },
            }
        }
        match bury(&self.runtime, &self.config).await {
            Ok(state) => drop(self.publish.send_replace(state)),
            Err(error) => {
                tracing::error!(pod = self.config.uid, %error, "cleaning up after a dead shim");
                self.publish.send_modify(|state| state.alive = false);
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Answer { seq, result } => {
                // The answer's news is seen by whoever looks after the call has returned.
                if let Ok(Reply::Container(record)) = &result {
                    self.keep((**record).clone());
                }
                if let Some(answer) = self.pending.remove(&seq) {
                    let uid = &self.config.uid;
                    let result = result.map_err(|error| RuntimeError::from_failure(uid, error));
                    let _ = answer.send(result);
                }
            }
            Message::Changed(record) => self.keep(*record),
            Message::Removed { id } => self.publish.send_modify(|state| {
                state.containers.remove(&id);
            }),
            Message::Ended { .. } => {}
        }
    }

    fn keep(&self, record: ContainerRecord) {
        self.publish.send_if_modified(|state| {
            let old = state.containers.insert(record.id.clone(), record.clone());
            old.as_ref() != Some(&record)
        });
    }
}

/// Connects and asks for everything that the shim knows, and for the news.
async fn subscribe(run_dir: &Path, pod: &str) -> Result<(Connection, PodState), RuntimeError> {
    let path = run_dir.join(SOCKET_FILE);
    let connection =
        Connection::open(&path).map_err(RuntimeError::io("connecting to the shim at", &path))?;
    match connection.ask(pod, Call::Subscribe, &[]).await? {
        (Reply::State(state), _) => Ok((connection, state)),
        _ => Err(RuntimeError::Gone(pod.to_owned())),
    }
}

fn known(state: PodState) -> SandboxState {
    SandboxState {
        alive: true,
        shim_pid: state.pid,
        containers: by_id(state.containers),
    }
}

fn by_id(records: Vec<ContainerRecord>) -> BTreeMap<String, ContainerRecord> {
    let named = records
        .into_iter()
        .map(|record| (record.id.clone(), record));
    named.collect()
}

/// Kills the containers of a dead shim and closes their records.
async fn bury(runtime: &Runtime, config: &SandboxConfig) -> Result<SandboxState, RuntimeError> {
    let (runtime, config) = (runtime.clone(), config.clone());
    blocking(move || {
        let group = runtime.cgroups().pod(config.qos, &config.uid);
        let destroyed = runtime.cgroups().destroy(&group);
        destroyed.map_err(RuntimeError::io("emptying the cgroup", &group))?;
        let mut records = Vec::new();
        for record in read_records(&config.pod_dir)? {
            let state_dir = config.pod_dir.join("containers").join(&record.id);
            let closed = record.clone().lost(now(), SHIM_DIED);
            if closed != record {
                closed
                    .write(&state_dir)
                    .map_err(RuntimeError::io("writing the record in", state_dir))?;
            }
            records.push(closed);
        }
        Ok(SandboxState {
            alive: false,
            shim_pid: 0,
            containers: by_id(records),
        })
    })
    .await
}

/// The records of a pod's containers on disk.
pub(super) fn read_records(pod_dir: &Path) -> Result<Vec<ContainerRecord>, RuntimeError> {
    let directory = pod_dir.join("containers");
    let entries = match std::fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(RuntimeError::io("listing", directory)(error)),
    };
    // A directory without a record is a container that was never created.
    let records = entries.filter_map(|entry| ContainerRecord::read(&entry.ok()?.path()).ok());
    Ok(records.collect())
}

fn remove_directory(path: &Path) -> Result<(), RuntimeError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(RuntimeError::io("removing", path)(error))
        }
        _ => Ok(()),
    }
}

/// RFC 3339 with microseconds, in UTC.
fn now() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}
