//! A worker against a scripted node, under paused time.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::NodeContext;
use super::dns_config::NodeDns;
use super::events::{Events, Occurrence};
use super::fields::NodeFacts;
use super::scripted::{
    ScriptedApi, ScriptedImages, ScriptedNetwork, ScriptedRuntime, ScriptedSandbox,
    ScriptedServices,
};
use super::seams::PodSandbox;
use super::worker::{Desired, Worker};
use crate::identity::Identity;

pub(super) struct Bench {
    node: Arc<NodeContext>,
    pub(super) api: Arc<ScriptedApi>,
    runtime: Arc<ScriptedRuntime>,
    images: Arc<ScriptedImages>,
    desired: watch::Sender<Desired>,
    worker: JoinHandle<()>,
    pub(super) events: tokio::sync::mpsc::Receiver<Occurrence>,
    _dir: TempDir,
}

pub(super) fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "u1", "generation": 1}, "spec": spec,
    }))
    .unwrap()
}

impl Bench {
    pub(super) fn new(pod: Pod) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (events, queue) = Events::queue();
        let api = Arc::new(ScriptedApi::default());
        let runtime = Arc::new(ScriptedRuntime::default());
        let images = Arc::new(ScriptedImages::default());
        let services = Arc::new(ScriptedServices::default());
        *services.known.lock().unwrap() = Some(Vec::new());
        images.present.lock().unwrap().push("nginx".into());
        let node = Arc::new(NodeContext {
            identity: Identity::of(dir.path()).unwrap(),
            facts: NodeFacts::default(),
            memory_capacity: 1 << 30,
            offline: false,
            runtime: runtime.clone(),
            network: Arc::new(ScriptedNetwork),
            images: images.clone(),
            api: api.clone(),
            events,
            dns: NodeDns {
                address: [10, 43, 0, 10].into(),
                host_file: dir.path().join("none"),
            },
            services: services.clone(),
        });
        let desired = watch::channel(Desired {
            pod: Arc::new(pod),
            gone: false,
        });
        let worker = Worker::new(node.clone(), desired.1);
        Self {
            node,
            api,
            runtime,
            images,
            desired: desired.0,
            worker: tokio::spawn(worker.run(None)),
            events: queue,
            _dir: dir,
        }
    }

    /// The agent dies and another one finds the sandbox.
    async fn restart(&mut self) {
        self.worker.abort();
        let _ = (&mut self.worker).await;
        let sandbox: Arc<dyn PodSandbox> = self.sandbox();
        let worker = Worker::new(self.node.clone(), self.desired.subscribe());
        self.worker = tokio::spawn(worker.run(Some(sandbox)));
    }

    pub(super) fn sandbox(&self) -> Arc<ScriptedSandbox> {
        self.runtime.sandbox()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Pod)) {
        self.desired.send_modify(|desired| {
            let mut pod = Pod::clone(&desired.pod);
            change(&mut pod);
            desired.pod = Arc::new(pod);
        });
    }

    pub(super) fn delete(&self, grace: i64) {
        self.change(|pod| {
            let now = k8s_openapi::jiff::Timestamp::now();
            pod.metadata.deletion_timestamp = Some(super::status::seconds(now));
            pod.metadata.deletion_grace_period_seconds = Some(grace);
        });
    }

    fn reasons(&mut self) -> Vec<&'static str> {
        let mut reasons = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            reasons.push(event.reason);
        }
        reasons
    }
}

pub(super) fn main_container(status: &PodStatus) -> &ContainerStatus {
    &status.container_statuses.as_ref().unwrap()[0]
}

fn waits_for(reason: &'static str) -> impl Fn(&PodStatus) -> bool {
    move |status| {
        let state = main_container(status).state.as_ref().unwrap();
        state
            .waiting
            .as_ref()
            .is_some_and(|w| w.reason.as_deref() == Some(reason))
    }
}

pub(super) fn ready(status: &PodStatus) -> bool {
    status
        .conditions
        .iter()
        .flatten()
        .any(|c| c.type_ == "Ready" && c.status == "True")
}

pub(super) fn phase(name: &'static str) -> impl Fn(&PodStatus) -> bool {
    move |status| status.phase.as_deref() == Some(name)
}

#[tokio::test(start_paused = true)]
async fn runs_and_is_deleted() {
    let mut bench = Bench::new(pod(
        json!({"containers": [{"name": "c", "image": "nginx"}]}),
    ));
    let status = bench.api.until(ready).await;
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.42.0.2"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    let container = main_container(&status);
    assert_eq!(container.image, "docker.io/library/nginx:latest");
    assert!(
        container
            .container_id
            .as_ref()
            .unwrap()
            .starts_with("skiff://")
    );
    assert_eq!(bench.reasons(), ["Pulled", "Created", "Started"]);

    bench.delete(30);
    bench.api.until_deleted().await;
    let status = bench.api.until(phase("Succeeded")).await;
    assert!(!ready(&status));
    (&mut bench.worker).await.unwrap();
    let log = bench.sandbox().log.lock().unwrap().clone();
    assert_eq!(log, ["create c.0", "signal c.0 15", "destroy"]);
    assert_eq!(bench.reasons(), ["Killing"]);
    assert!(!bench.node.identity.pod_dir("ns", "web", "u1").exists());
}

#[tokio::test(start_paused = true)]
async fn a_crash_restarts_at_once_and_then_backs_off() {
    let mut bench = Bench::new(pod(
        json!({"containers": [{"name": "c", "image": "nginx"}]}),
    ));
    bench.api.until(ready).await;
    bench.sandbox().exit("c", 137);
    bench.sandbox().until_running("c.1").await;
    let status = bench
        .api
        .until(|s| ready(s) && main_container(s).restart_count == 1)
        .await;
    let last = main_container(&status)
        .last_state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(
        (last.exit_code, last.signal, last.reason.as_deref()),
        (137, Some(9), Some("Error"))
    );

    bench.sandbox().exit("c", 1);
    let crashed = tokio::time::Instant::now();
    let status = bench.api.until(waits_for("CrashLoopBackOff")).await;
    let waiting = main_container(&status)
        .state
        .clone()
        .unwrap()
        .waiting
        .unwrap();
    assert_eq!(
        waiting.message.as_deref(),
        Some("back-off 10s restarting failed container=c pod=web_ns(u1)")
    );
    assert_eq!(status.phase.as_deref(), Some("Running"));
    bench.sandbox().until_running("c.2").await;
    assert!(crashed.elapsed() >= Duration::from_secs(9));
    bench.sandbox().exit("c", 1);
    let crashed = tokio::time::Instant::now();
    bench.sandbox().until_running("c.3").await;
    assert!(crashed.elapsed() >= Duration::from_secs(19));
    let log = bench.sandbox().log.lock().unwrap().clone();
    assert!(log.contains(&"remove c.0".to_owned()), "{log:?}");
    assert!(bench.reasons().contains(&"BackOff"));
}

#[tokio::test(start_paused = true)]
async fn restart_policies() {
    let bench = Bench::new(pod(json!({"restartPolicy": "OnFailure",
        "containers": [{"name": "c", "image": "nginx"}]})));
    bench.api.until(ready).await;
    bench.sandbox().exit("c", 1);
    bench.sandbox().until_running("c.1").await;
    bench.sandbox().exit("c", 0);
    let status = bench.api.until(phase("Succeeded")).await;
    assert_eq!(main_container(&status).restart_count, 1);

    let bench = Bench::new(pod(json!({"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "nginx"}]})));
    bench.api.until(ready).await;
    bench.sandbox().exit("c", 3);
    let status = bench.api.until(phase("Failed")).await;
    let ended = main_container(&status)
        .state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(
        (ended.exit_code, ended.reason.as_deref()),
        (3, Some("Error"))
    );
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_and_sidecars_end_last() {
    let bench = Bench::new(pod(json!({
        "initContainers": [
            {"name": "first", "image": "nginx"},
            {"name": "side", "image": "nginx", "restartPolicy": "Always"},
            {"name": "second", "image": "nginx"},
        ],
        "containers": [{"name": "c", "image": "nginx"}]})));
    let status = bench.api.until(|s| s.pod_ip.is_some()).await;
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert!(waits_for("PodInitializing")(&status));
    bench.sandbox().until_running("first.0").await;
    bench.sandbox().exit("first", 0);
    bench.sandbox().until_running("second.0").await;
    bench.sandbox().exit("second", 0);
    bench.api.until(ready).await;
    bench.delete(30);
    bench.api.until_deleted().await;
    let log = bench.sandbox().log.lock().unwrap().clone();
    assert_eq!(
        log,
        [
            "create first.0",
            "create side.0",
            "create second.0",
            "create c.0",
            "signal c.0 15",
            "signal side.0 15",
            "destroy"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_backs_off() {
    let mut bench = Bench::new(pod(json!({"containers": [{"name": "c", "image": "none"}]})));
    let status = bench.api.until(waits_for("ErrImagePull")).await;
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    bench.api.until(waits_for("ImagePullBackOff")).await;
    assert_eq!(
        bench.reasons(),
        ["Pulling", "Failed", "Failed", "BackOff", "Failed"]
    );
    bench.images.present.lock().unwrap().push("none".into());
    bench.api.until(ready).await;
}

#[tokio::test(start_paused = true)]
async fn a_command_that_does_not_exist() {
    let bench = Bench::new(pod(
        json!({"initContainers": [{"name": "i", "image": "nginx"}],
        "containers": [{"name": "c", "image": "nginx"}]}),
    ));
    bench.api.until(|s| s.pod_ip.is_some()).await;
    bench.sandbox().until_running("i.0").await;
    *bench.sandbox().broken.lock().unwrap() = Some("exec: no such file".into());
    bench.sandbox().exit("i", 0);
    let status = bench.api.until(waits_for("RunContainerError")).await;
    let state = main_container(&status).state.clone().unwrap();
    assert_eq!(
        state.waiting.unwrap().message.as_deref(),
        Some("exec: no such file")
    );
    let status = bench.api.until(waits_for("CrashLoopBackOff")).await;
    let last = main_container(&status)
        .last_state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(
        (last.exit_code, last.reason.as_deref()),
        (128, Some("StartError"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_stubborn_container_is_killed_and_a_shorter_grace_counts() {
    let bench = Bench::new(pod(
        json!({"containers": [{"name": "c", "image": "nginx"}]}),
    ));
    bench.api.until(ready).await;
    *bench.sandbox().stubborn.lock().unwrap() = true;
    let asked = tokio::time::Instant::now();
    bench.delete(600);
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.delete(10);
    bench.api.until_deleted().await;
    let took = asked.elapsed();
    assert!(
        took >= Duration::from_secs(15) && took < Duration::from_secs(20),
        "{took:?}"
    );
    let status = bench.api.until(phase("Failed")).await;
    let ended = main_container(&status)
        .state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(ended.exit_code, 137);
}

#[tokio::test(start_paused = true)]
async fn another_agent_adopts_without_a_restart() {
    let mut bench = Bench::new(pod(
        json!({"containers": [{"name": "c", "image": "nginx"}]}),
    ));
    let before = bench.api.until(ready).await;
    bench.worker.abort();
    bench.sandbox().exit("c", 7);
    bench.restart().await;
    // The exit that happened meanwhile is reported, with its code.
    let status = bench
        .api
        .until(|s| ready(s) && main_container(s).restart_count == 1)
        .await;
    let last = main_container(&status)
        .last_state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(last.exit_code, 7);
    assert_eq!(last.container_id, main_container(&before).container_id);
    bench.api.forget_statuses();
    bench.restart().await;
    let status = bench.api.until(ready).await;
    assert_eq!(main_container(&status).restart_count, 1);
    assert_eq!(bench.runtime.sandboxes.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_starts_over() {
    let mut bench = Bench::new(pod(
        json!({"containers": [{"name": "c", "image": "nginx"}]}),
    ));
    bench.api.until(ready).await;
    bench.sandbox().die();
    let status = bench
        .api
        .until(|s| ready(s) && main_container(s).restart_count == 1)
        .await;
    let last = main_container(&status)
        .last_state
        .clone()
        .unwrap()
        .terminated
        .unwrap();
    assert_eq!(
        (last.exit_code, last.reason.as_deref()),
        (255, Some("Unknown"))
    );
    assert_eq!(bench.runtime.sandboxes.lock().unwrap().len(), 2);
    assert!(bench.reasons().contains(&"SandboxChanged"));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_gone_takes_its_pod_along() {
    let mut bench = Bench::new(pod(
        json!({"containers": [{"name": "c", "image": "nginx"}]}),
    ));
    bench.api.until(ready).await;
    bench.desired.send_modify(|desired| desired.gone = true);
    (&mut bench.worker).await.unwrap();
    let log = bench.sandbox().log.lock().unwrap().clone();
    assert_eq!(log, ["create c.0", "signal c.0 15", "destroy"]);
}

#[tokio::test(start_paused = true)]
async fn hooks_frame_the_life_of_a_container() {
    let bench = Bench::new(pod(
        json!({"containers": [{"name": "c", "image": "nginx", "lifecycle": {
        "postStart": {"exec": {"command": ["hello"]}},
        "preStop": {"exec": {"command": ["bye"]}}}}]}),
    ));
    bench.api.until(ready).await;
    bench.delete(30);
    bench.api.until_deleted().await;
    let log = bench.sandbox().log.lock().unwrap().clone();
    assert_eq!(
        log,
        [
            "create c.0",
            "exec hello",
            "exec bye",
            "signal c.0 15",
            "destroy"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_readiness_probe_decides() {
    let bench = Bench::new(pod(json!({"containers": [{"name": "c", "image": "nginx",
        "readinessProbe": {"exec": {"command": ["check"]}, "initialDelaySeconds": 5}}]})));
    let status = bench.api.until(phase("Running")).await;
    assert!(!ready(&status));
    bench.api.until(ready).await;
}

#[tokio::test(start_paused = true)]
async fn an_image_that_changes_restarts_the_container() {
    let bench = Bench::new(pod(
        json!({"containers": [{"name": "c", "image": "nginx"}]}),
    ));
    bench.api.until(ready).await;
    bench.images.present.lock().unwrap().push("httpd".into());
    bench.change(|pod| {
        pod.spec.as_mut().unwrap().containers[0].image = Some("httpd".into());
    });
    let status = bench
        .api
        .until(|s| ready(s) && main_container(s).restart_count == 1)
        .await;
    assert_eq!(
        main_container(&status).image,
        "docker.io/library/httpd:latest"
    );
}

#[tokio::test(start_paused = true)]
async fn config_errors_are_told() {
    let bench = Bench::new(pod(
        json!({"containers": [{"name": "c", "image": "nginx", "env": [
        {"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]}]}),
    ));
    let status = bench
        .api
        .until(waits_for("CreateContainerConfigError"))
        .await;
    let waiting = main_container(&status)
        .state
        .clone()
        .unwrap()
        .waiting
        .unwrap();
    assert_eq!(
        waiting.message.as_deref(),
        Some("configmap \"cm\" not found")
    );
    bench
        .api
        .put_config_map(json!({"metadata": {"name": "cm"}, "data": {"k": "v"}}));
    bench.api.until(ready).await;
}
