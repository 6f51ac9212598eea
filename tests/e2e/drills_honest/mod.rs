//! Reports of drills, compared with what an observer sees that shares nothing with those who measure: a load generator of
//! its own at the same Service ([`load`]), and watches of its own ([`watch`], [`record`]).
//!
//! Times have to agree within 50 ms, plus what the observer itself can't tell: the interval between two of its requests, and
//! how late a thread of this host is woken at the worst ([`Punctuality`]). What happened has to agree exactly: the
//! report tells what was seen, and nothing else ([`comparison`]).

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::drills_network::Punctuality;
use crate::drills_supplies::Disk;

mod comparison;
mod load;
mod record;
mod watch;

use comparison::Comparison;
use load::{Load, RATE};
use watch::Watch;

const AGREE: f64 = 0.05;
/// Threads that have to be woken until the observer knows: the server's that sends, the one that has its
/// connection, and the observer's own.
const HOPS: f64 = 3.0;
/// Requests that are answered before a drill, and after it.
const STEADY: u64 = 5;

/// Since 1970.
fn seconds() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs_f64()
}

fn time(value: &Value) -> f64 {
    let stamp: Timestamp = value.as_str().expect("a time").parse().expect("a time");
    stamp.as_microsecond() as f64 / 1e6
}

fn on_this_thread<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work)
}

/// One nginx that leaves a lost node at once.
const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 1}
      containers:
      - name: nginx
        image: nginx
        imagePullPolicy: IfNotPresent
        ports: [{name: http, containerPort: 80}]
        resources: {limits: {memory: 64Mi}}
        readinessProbe: {httpGet: {path: /, port: http}, periodSeconds: 1}
        livenessProbe: {httpGet: {path: /, port: http}, periodSeconds: 2, failureThreshold: 2}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
";

impl Cluster {
    /// Where the Service `web` is, and the node that its only pod is on.
    fn until_web_is_whole(&mut self) -> (String, String) {
        let pods = self.until_all_ready("app=web", 1);
        let node = pods[0]["spec"]["nodeName"].as_str().expect("a node");
        let node = node.to_owned();
        let service = self.get("/api/v1/namespaces/default/services/web");
        let service = service.expect("the Service");
        let ip = service["spec"]["clusterIP"].as_str().expect("an address");
        (format!("{ip}:80"), node)
    }

    /// The network namespace of the node that has no pod, of two; `None` where there is one node, the host itself.
    fn namespace_beside(&self, node: &str) -> Option<PathBuf> {
        let nodes = ["node-1", "node-2"].into_iter();
        let run = self.identity().run_dir();
        nodes
            .filter(|other| *other != node)
            .map(|other| run.join(format!("nodes/{other}.net")))
            .find(|pin| pin.exists())
    }

    /// Runs a drill against `web` under observation, and compares; gives the report.
    fn observe(&mut self, kind: &str, more: &Value) -> Value {
        let (address, node) = self.until_web_is_whole();
        let clock = Punctuality::start();
        let watch = Watch::start(&self.kubeconfig());
        let load = Load::start(address, self.namespace_beside(&node));
        load.until_good(STEADY);
        let mut spec = json!({
            "drill": kind, "target": {"kind": "Deployment", "name": "web"}, "timeout": "1m30s",
            "probe": {"service": "web", "rate": RATE, "timeout": "1s"},
        });
        let given = more.as_object().expect("fields").clone();
        spec.as_object_mut().expect("an object").extend(given);
        self.drill(kind, &spec);
        let report = self.until_drill(kind, "over", |status| status["phase"] == "Completed");
        // Until a request was answered that was sent after the end.
        load.until_good(STEADY);
        let (asked, record) = (load.end(), watch.end());
        if report["result"] == "Refused" {
            let lost = asked.iter().filter(|(_, good)| !good).count();
            assert_eq!(lost, 0, "{kind}: refused, but not without consequences");
            let touched = record.seen.first();
            assert!(touched.is_none(), "{kind}: refused, but {touched:?}");
            return report;
        }
        assert_eq!(report["result"], "Passed", "{kind}: {report:#}");
        let duration = spec["duration"].as_str().map(|text| {
            let seconds = text.strip_suffix('s').expect("seconds");
            seconds.parse().expect("a number")
        });
        let comparison = Comparison {
            kind,
            uncertainty: AGREE + HOPS * clock.worst(),
            duration,
            report,
            asked,
            record,
        };
        comparison.check();
        comparison.report
    }
}

#[test]
fn reports_of_containers_are_true() {
    let mut cluster = Cluster::start();
    cluster.apply(WEB);
    cluster.observe("container-kill", &json!({}));
    cluster.observe("container-oom", &json!({}));
    cluster.observe("container-hang", &json!({"duration": "30s"}));
    cluster.observe("memory-pressure", &json!({"duration": "3s"}));
}

#[test]
fn reports_of_pods_are_true() {
    let mut cluster = Cluster::start();
    cluster.apply(WEB);
    cluster.observe("pod-delete", &json!({}));
    cluster.observe("pod-evict", &json!({}));
}

#[test]
fn reports_of_networks_are_true() {
    let mut cluster = Cluster::new();
    // One that never asks a registry can't lose any.
    let registries = cluster.scratch().join("registries");
    std::fs::create_dir(&registries).expect("a directory");
    cluster.set_registries(&registries);
    cluster.up();
    cluster.import(&crate::images::demonstration().join("nginx.tar"));
    // Nobody is to be started anew because its node can't ask it.
    let patient = WEB.replace("failureThreshold: 2", "failureThreshold: 100");
    cluster.apply(&patient);
    let all = json!({"duration": "4s", "parameters": {"loss": 100}});
    cluster.observe("packet-loss", &all);
    cluster.observe("pod-partition", &json!({"duration": "4s"}));
    cluster.observe("dns-outage", &json!({"duration": "2s"}));
    cluster.observe("registry-outage", &json!({"duration": "2s"}));
    let one = json!({"duration": "2s", "parameters": {"workers": 1}});
    cluster.observe("cpu-stress", &one);
    // Where the kernel can't, nothing is touched.
    let late = json!({"duration": "2s", "parameters": {"delay": "100ms"}});
    let report = cluster.observe("latency", &late);
    if report["result"] == "Refused" {
        let message = report["message"].as_str().expect("why");
        assert!(message.contains("sch_netem"), "{message}");
    }
}

#[test]
fn reports_of_full_disks_are_true() {
    let disk;
    let mut cluster = Cluster::new();
    disk = Disk::mount(&cluster.identity().agent_root());
    cluster.up();
    cluster.import(&crate::images::demonstration().join("nginx.tar"));
    cluster.apply(WEB);
    // Its agent looks at its disk every ten seconds.
    let report = cluster.observe("disk-full", &json!({"duration": "14s"}));
    for event in ["pressure", "relieved"] {
        let timeline = report["timeline"].as_array().expect("a timeline");
        let told = timeline.iter().filter(|entry| entry["event"] == event);
        assert_eq!(told.count(), 1, "{event}: {report:#}");
    }
    cluster.stop();
    cluster.skiff(["down"]);
    drop(disk);
}

#[test]
fn reports_of_restarts_are_true() {
    let mut cluster = Cluster::start();
    cluster.apply(WEB);
    cluster.observe("agent-restart", &json!({}));
    cluster.observe("controlplane-restart", &json!({}));
    let report = cluster.observe("controlplane-kill", &json!({}));
    let writes = &report["writes"];
    assert!(writes["acknowledged"].as_i64() > Some(0), "{writes:#}");
    assert_eq!(writes["lost"], 0, "{writes:#}");
}

#[test]
fn reports_of_nodes_are_true() {
    let mut cluster = Cluster::of_nodes(2);
    cluster.apply(WEB);
    cluster.observe("node-drain", &json!({"duration": "3s"}));
    cluster.observe("node-partition", &json!({"duration": "18s"}));
    // Long enough for a busy host to replace the pod before the node is back: only that is a recovery.
    cluster.observe("node-crash", &json!({"duration": "30s"}));
}
