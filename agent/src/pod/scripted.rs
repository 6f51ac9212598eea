//! A node that does what a test says: the traits of [`super::seams`] in memory.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodStatus, Secret};
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tokio::sync::watch;

use super::seams::{
    ContainerError, ContainerRuntime, ExecOutcome, FetchedImage, ImageSource, PodApi, PodNetwork,
    PodSandbox, ResolvedImage, SeamError, SeamResult, ServiceDirectory, WriteError,
};
use crate::net::dns::ServiceAddress;
use crate::runtime::types::{
    ContainerConfig, ContainerRecord, ContainerState, SandboxConfig, SandboxState,
};

/// Objects to be found, and everything that was written.
#[derive(Default)]
pub(crate) struct ScriptedApi {
    config_maps: Mutex<BTreeMap<String, ConfigMap>>,
    secrets: Mutex<BTreeMap<String, Secret>>,
    failing: Mutex<bool>,
    statuses: watch::Sender<Vec<PodStatus>>,
    deleted: watch::Sender<bool>,
}

impl ScriptedApi {
    pub(crate) fn put_config_map(&self, object: Value) {
        let map: ConfigMap = serde_json::from_value(object).unwrap();
        let name = map.metadata.name.clone().unwrap();
        self.config_maps.lock().unwrap().insert(name, map);
    }

    pub(crate) fn put_secret(&self, object: Value) {
        let secret: Secret = serde_json::from_value(object).unwrap();
        let name = secret.metadata.name.clone().unwrap();
        self.secrets.lock().unwrap().insert(name, secret);
    }

    pub(crate) fn fail_writes(&self, failing: bool) {
        *self.failing.lock().unwrap() = failing;
    }

    pub(crate) fn phases(&self) -> Vec<String> {
        let statuses = self.statuses.borrow();
        statuses.iter().filter_map(|s| s.phase.clone()).collect()
    }

    /// Waits for a status that fits; all that were written until then are looked at.
    pub(crate) async fn until(&self, fits: impl Fn(&PodStatus) -> bool) -> PodStatus {
        let mut statuses = self.statuses.subscribe();
        let found = statuses.wait_for(|all| all.iter().any(&fits));
        let found = tokio::time::timeout(Duration::from_secs(3600), found).await;
        let Ok(found) = found else {
            panic!("no such status among {:#?}", self.statuses.borrow());
        };
        let all = found.unwrap();
        all.iter().find(|s| fits(s)).unwrap().clone()
    }

    pub(crate) fn forget_statuses(&self) {
        self.statuses.send_replace(Vec::new());
    }

    pub(crate) async fn until_deleted(&self) {
        self.deleted.subscribe().wait_for(|d| *d).await.unwrap();
    }
}

#[async_trait]
impl PodApi for ScriptedApi {
    async fn config_map(&self, _: &str, name: &str) -> SeamResult<Option<ConfigMap>> {
        Ok(self.config_maps.lock().unwrap().get(name).cloned())
    }

    async fn secret(&self, _: &str, name: &str) -> SeamResult<Option<Secret>> {
        Ok(self.secrets.lock().unwrap().get(name).cloned())
    }

    async fn service_account_token(&self, _: &Pod, _: Option<&str>, _: i64) -> SeamResult<String> {
        Ok("token".into())
    }

    async fn write_status(&self, _: &Pod, status: &PodStatus) -> Result<(), WriteError> {
        if *self.failing.lock().unwrap() {
            return Err(WriteError::Retry("refused".into()));
        }
        self.statuses.send_modify(|all| all.push(status.clone()));
        Ok(())
    }

    async fn delete(&self, _: &Pod) -> Result<(), WriteError> {
        self.deleted.send_replace(true);
        Ok(())
    }
}

/// Runs containers that end when told.
#[derive(Default)]
pub(crate) struct ScriptedRuntime {
    pub(crate) sandboxes: Mutex<Vec<Arc<ScriptedSandbox>>>,
}

impl ScriptedRuntime {
    /// The newest sandbox.
    pub(crate) fn sandbox(&self) -> Arc<ScriptedSandbox> {
        self.sandboxes.lock().unwrap().last().unwrap().clone()
    }
}

#[async_trait]
impl ContainerRuntime for ScriptedRuntime {
    async fn start_sandbox(&self, _: SandboxConfig) -> SeamResult<Arc<dyn PodSandbox>> {
        let sandbox = Arc::new(ScriptedSandbox::new());
        self.sandboxes.lock().unwrap().push(sandbox.clone());
        Ok(sandbox)
    }

    async fn records(&self, _: &Path) -> SeamResult<Vec<ContainerRecord>> {
        Ok(Vec::new())
    }
}

/// Containers, and what was done to them.
pub(crate) struct ScriptedSandbox {
    state: watch::Sender<SandboxState>,
    /// `create web.0`, `signal web.0 15` ...
    pub(crate) log: Mutex<Vec<String>>,
    /// Containers that take no notice of SIGTERM.
    pub(crate) stubborn: Mutex<bool>,
    /// How commands end, by their first word; others succeed.
    pub(crate) outcomes: Mutex<BTreeMap<String, SeamResult<ExecOutcome>>>,
    /// Start fails with these words.
    pub(crate) broken: Mutex<Option<String>>,
}

impl ScriptedSandbox {
    fn new() -> Self {
        let state = SandboxState {
            alive: true,
            ..SandboxState::default()
        };
        Self {
            state: watch::channel(state).0,
            log: Mutex::default(),
            stubborn: Mutex::default(),
            outcomes: Mutex::default(),
            broken: Mutex::default(),
        }
    }

    fn note(&self, line: String) {
        self.log.lock().unwrap().push(line);
    }

    fn label(&self, id: &str) -> String {
        let state = self.state.borrow();
        let record = &state.containers[id];
        format!("{}.{}", record.name, record.attempt)
    }

    /// Ends the container of this name that runs.
    pub(crate) fn exit(&self, name: &str, code: i32) {
        self.state.send_modify(|state| {
            let mut all = state.containers.values_mut();
            let record = all.find(|r| r.name == name && !r.has_exited()).unwrap();
            record.state = exited(code, record.started_at());
        });
    }

    /// Waits until a signal was sent, as `web.0 15`.
    pub(crate) async fn until_signalled(&self, what: &str) {
        let line = format!("signal {what}");
        while !self.log.lock().unwrap().contains(&line) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// From now on, commands that begin with this word end so.
    pub(crate) fn script(&self, word: &str, outcome: SeamResult<ExecOutcome>) {
        self.outcomes
            .lock()
            .unwrap()
            .insert(word.to_owned(), outcome);
    }

    /// How often a command that begins with this word was run.
    pub(crate) fn executed(&self, word: &str) -> usize {
        let log = self.log.lock().unwrap();
        let line = format!("exec {word}");
        log.iter().filter(|l| l.starts_with(&line)).count()
    }

    /// The supervisor dies.
    pub(crate) fn die(&self) {
        self.state.send_modify(|state| {
            state.alive = false;
            for record in state.containers.values_mut() {
                *record = record.clone().lost(now(), "died");
            }
        });
    }

    pub(crate) async fn until_running(&self, label: &str) {
        let runs = |state: &SandboxState| {
            state
                .containers
                .values()
                .any(|r| r.pid().is_some() && format!("{}.{}", r.name, r.attempt) == label)
        };
        self.state.subscribe().wait_for(runs).await.unwrap();
    }
}

fn now() -> String {
    format!("{:.6}", Timestamp::now())
}

fn exited(code: i32, started_at: Option<&str>) -> ContainerState {
    ContainerState::Exited {
        started_at: started_at.map(str::to_owned),
        finished_at: now(),
        exit_code: code,
        signal: (code > 128 && started_at.is_some()).then(|| code - 128),
        oom_killed: false,
        lost: false,
        error: None,
    }
}

#[async_trait]
impl PodSandbox for ScriptedSandbox {
    fn network_namespace(&self) -> Option<PathBuf> {
        Some(PathBuf::from("/netns"))
    }

    fn state(&self) -> watch::Receiver<SandboxState> {
        self.state.subscribe()
    }

    async fn create(&self, config: ContainerConfig) -> Result<ContainerRecord, ContainerError> {
        let record = ContainerRecord {
            id: config.id.clone(),
            name: config.name.clone(),
            attempt: config.attempt,
            image: config.container.image.clone().unwrap_or_default(),
            image_id: config.image_id.clone(),
            log_path: config.log_path.clone(),
            created_at: now(),
            state: ContainerState::Created,
        };
        self.state.send_modify(|state| {
            state.containers.insert(config.id.clone(), record.clone());
        });
        self.note(format!("create {}", self.label(&config.id)));
        Ok(record)
    }

    async fn start(&self, id: &str) -> Result<ContainerRecord, ContainerError> {
        let broken = self.broken.lock().unwrap().clone();
        let result = match broken {
            None => ContainerState::Running {
                pid: 1,
                started_at: now(),
            },
            Some(_) => exited(128, None),
        };
        self.state
            .send_modify(|state| state.containers.get_mut(id).unwrap().state = result);
        match broken {
            None => Ok(self.state.borrow().containers[id].clone()),
            Some(message) => Err(ContainerError {
                reason: "RunContainerError",
                message,
            }),
        }
    }

    async fn signal(&self, id: &str, signal: i32) -> SeamResult<()> {
        self.note(format!("signal {} {signal}", self.label(id)));
        if signal == libc::SIGKILL || !*self.stubborn.lock().unwrap() {
            self.state.send_modify(|state| {
                let record = state.containers.get_mut(id).unwrap();
                if !record.has_exited() {
                    let code = if signal == libc::SIGKILL { 137 } else { 0 };
                    record.state = exited(code, record.started_at());
                }
            });
        }
        Ok(())
    }

    async fn remove(&self, id: &str) -> SeamResult<()> {
        self.note(format!("remove {}", self.label(id)));
        self.state
            .send_modify(|state| drop(state.containers.remove(id)));
        Ok(())
    }

    async fn exec(
        &self,
        _: &str,
        command: &[String],
        _: Option<Duration>,
    ) -> SeamResult<ExecOutcome> {
        self.note(format!("exec {}", command.join(" ")));
        let outcomes = self.outcomes.lock().unwrap();
        let known = command.first().and_then(|word| outcomes.get(word)).cloned();
        known.unwrap_or(Ok(ExecOutcome::Exited {
            code: 0,
            output: String::new(),
        }))
    }

    async fn destroy(&self) -> SeamResult<()> {
        self.note("destroy".into());
        Ok(())
    }
}

/// Gives every pod the same address.
pub(crate) struct ScriptedNetwork;

#[async_trait]
impl PodNetwork for ScriptedNetwork {
    async fn attach(&self, _: &Pod, _: &Path) -> SeamResult<Vec<IpAddr>> {
        Ok(vec![IpAddr::from([10, 42, 0, 2])])
    }

    async fn withdrawn(&self, _: &Pod, _: Option<&Path>) {}

    async fn detach(&self, _: &str) -> SeamResult<()> {
        Ok(())
    }
}

/// Has the services that it is told of.
#[derive(Default)]
pub(crate) struct ScriptedServices {
    pub(crate) known: Mutex<Option<Vec<ServiceAddress>>>,
}

#[async_trait]
impl ServiceDirectory for ScriptedServices {
    async fn known(&self) {}

    fn services(&self, _: &str) -> Option<Vec<ServiceAddress>> {
        self.known.lock().unwrap().clone()
    }
}

/// Has the images that it is told of.
#[derive(Default)]
pub(crate) struct ScriptedImages {
    pub(crate) present: Mutex<Vec<String>>,
}

#[async_trait]
impl ImageSource for ScriptedImages {
    fn canonical(&self, image: &str) -> String {
        format!("docker.io/library/{image}:latest")
    }

    async fn hold(&self, _: &str, _: &str, _: &ResolvedImage) -> SeamResult<()> {
        Ok(())
    }

    async fn release(&self, _: &str) {}

    async fn find(&self, image: &str) -> SeamResult<Option<ResolvedImage>> {
        let present = self
            .present
            .lock()
            .unwrap()
            .iter()
            .any(|name| name == image);
        Ok(present.then(|| ResolvedImage {
            id: "sha256:1".into(),
            config: oci_spec::image::ImageConfiguration::default(),
            layers: Vec::new(),
        }))
    }

    async fn pull(&self, _: &str, _: &[Secret]) -> SeamResult<FetchedImage> {
        Err(SeamError("not found".into()))
    }
}
