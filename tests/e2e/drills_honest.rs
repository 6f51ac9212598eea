//! Reports of drills, compared with what an observer sees that shares nothing with those who measure: a load generator of
//! its own at the same Service, and a watch of its own through kube-rs.
//!
//! Times have to agree within 50 ms, plus what the observer itself can't tell: the interval between two of its requests, and
//! how late a thread of this host is woken at the worst ([`Punctuality`]).

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use futures::stream::select_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{Event, watcher};
use kube::runtime::{WatchStreamExt, watcher as watching};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::cluster::Cluster;
use crate::drills_network::Punctuality;
use crate::wait;

/// Requests a second, of the probe and of the observer.
const RATE: u32 = 50;
const INTERVAL: f64 = 1.0 / RATE as f64;
const AGREE: f64 = 0.05;
/// Threads that have to be woken until the observer knows: the server's that sends, the one that has its
/// connection, and the observer's own.
const HOPS: f64 = 3.0;

fn seconds() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("after 1970").as_secs_f64()
}

/// When a request was sent, and whether it was answered well.
type Asked = (f64, bool);

/// Asks again and again, from a network namespace, until it is stopped.
struct Load {
    stop: oneshot::Sender<()>,
    good: Arc<Mutex<u64>>,
    thread: JoinHandle<Vec<Asked>>,
}

impl Load {
    fn start(address: String, namespace: Option<PathBuf>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let good = Arc::new(Mutex::new(0));
        let counted = good.clone();
        let thread = std::thread::spawn(move || {
            if let Some(path) = namespace {
                let file = File::open(path).expect("the node's namespace");
                setns(file, CloneFlags::CLONE_NEWNET).expect("the tests run as root");
            }
            on_this_thread(ask_until(address, counted, stopped))
        });
        Self { stop, good, thread }
    }

    fn until_good(&self, count: u64) {
        wait::until("answers", || {
            (*self.good.lock().expect("no panic") >= count).then_some(())
        });
    }

    fn end(self) -> Vec<Asked> {
        let _ = self.stop.send(());
        let mut asked = self.thread.join().expect("the load");
        asked.sort_by(|a, b| a.0.total_cmp(&b.0));
        asked
    }
}

fn on_this_thread<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(work)
}

async fn ask_until(
    address: String,
    good: Arc<Mutex<u64>>,
    mut stopped: oneshot::Receiver<()>,
) -> Vec<Asked> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut under_way = JoinSet::new();
    let mut asked = Vec::new();
    loop {
        tokio::select! {
            _ = &mut stopped => break,
            _ = ticks.tick() => {
                let address = address.clone();
                under_way.spawn(async move {
                    let sent = seconds();
                    let answered = tokio::time::timeout(Duration::from_secs(1), get(&address)).await;
                    (sent, answered.is_ok_and(|answered| answered.is_ok_and(|good| good)))
                });
            }
            Some(done) = under_way.join_next() => {
                let done: Asked = done.expect("a request");
                *good.lock().expect("no panic") += u64::from(done.1);
                asked.push(done);
            }
        }
    }
    while let Some(done) = under_way.join_next().await {
        asked.push(done.expect("a request"));
    }
    asked
}

async fn get(address: &str) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

/// What a watch of its own saw of pods and nodes.
#[derive(Default)]
struct Record {
    /// When, what (in the words of a timeline), and what it happened to.
    seen: Vec<(f64, &'static str, String)>,
    /// How many pods were Ready and in the Service, each time that this changed.
    whole: Vec<(f64, usize)>,
    pods: BTreeMap<String, Known>,
    nodes: BTreeMap<String, bool>,
    served: HashSet<String>,
    synced: HashSet<&'static str>,
    /// Watches were broken off and begun anew: what happened meanwhile was not seen.
    gaps: usize,
}

#[derive(Default)]
struct Known {
    name: String,
    ready: bool,
    leaving: bool,
}

#[expect(clippy::large_enum_variant, reason = "there is one at a time")]
enum Told {
    Pod(Event<Pod>),
    Node(Event<Node>),
    Slice(Event<EndpointSlice>),
    Broken,
}

impl Record {
    fn is_synced(&self, kind: &'static str) -> bool {
        self.synced.contains(kind)
    }

    fn take(&mut self, told: Told) {
        let at = seconds();
        match told {
            Told::Pod(Event::Apply(pod) | Event::InitApply(pod)) => self.see_pod(at, &pod),
            Told::Pod(Event::Delete(pod)) => {
                let known = self.pods.remove(&uid_of(&pod));
                if let Some(known) = known {
                    self.seen.push((at, "deleted", known.name));
                }
            }
            Told::Pod(Event::InitDone) => drop(self.synced.insert("pods")),
            Told::Node(Event::Apply(node) | Event::InitApply(node)) => self.see_node(at, &node),
            Told::Node(Event::InitDone) => drop(self.synced.insert("nodes")),
            Told::Slice(Event::Apply(slice) | Event::InitApply(slice)) => {
                let endpoints = slice.endpoints.into_iter().flatten();
                let ready = endpoints.filter(|endpoint| {
                    let conditions = endpoint.conditions.as_ref();
                    conditions.and_then(|c| c.ready) != Some(false)
                });
                // The Service is small enough for one slice.
                self.served = ready.filter_map(|e| e.target_ref?.uid).collect();
            }
            Told::Slice(Event::InitDone) => drop(self.synced.insert("slices")),
            Told::Broken => self.gaps += 1,
            _ => {}
        }
        let whole = self.pods.iter();
        let whole = whole.filter(|(uid, pod)| pod.ready && self.served.contains(*uid));
        let whole = whole.count();
        if self.whole.last().map(|(_, count)| *count) != Some(whole) {
            self.whole.push((at, whole));
        }
    }

    fn see_pod(&mut self, at: f64, pod: &Pod) {
        let name = format!("pod/{}", pod.metadata.name.as_deref().unwrap_or_default());
        let leaving = pod.metadata.deletion_timestamp.is_some();
        let status = pod.status.as_ref();
        let mut conditions = status
            .and_then(|s| s.conditions.iter().flatten().find(|c| c.type_ == "Ready"))
            .into_iter();
        let ready = conditions.any(|c| c.status == "True") && !leaving;
        let synced = self.is_synced("pods");
        let known = self.pods.entry(uid_of(pod)).or_default();
        known.name.clone_from(&name);
        let before = (known.ready, known.leaving);
        (known.ready, known.leaving) = (ready, leaving);
        if !synced {
            return;
        }
        // That a pod which is being deleted is not Ready is said by `terminating`.
        if before.0 != ready && !leaving {
            let event = if ready { "ready" } else { "notReady" };
            self.seen.push((at, event, name.clone()));
        }
        if leaving && !before.1 {
            self.seen.push((at, "terminating", name));
        }
    }

    fn see_node(&mut self, at: f64, node: &Node) {
        let name = node.metadata.name.clone().unwrap_or_default();
        let status = node.status.as_ref();
        let mut conditions = status.iter().flat_map(|s| s.conditions.iter().flatten());
        let ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
        let before = self.nodes.insert(name.clone(), ready);
        if self.is_synced("nodes") && before != Some(ready) {
            let event = if ready { "ready" } else { "notReady" };
            self.seen.push((at, event, format!("node/{name}")));
        }
    }

    /// Since when so many pods are Ready in the Service, at the end.
    fn whole_since(&self, count: usize) -> Option<f64> {
        let mut since = None;
        for (at, whole) in &self.whole {
            match (*whole >= count, since) {
                (true, None) => since = Some(*at),
                (false, _) => since = None,
                _ => {}
            }
        }
        since
    }
}

fn uid_of(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// A watch on a thread of its own.
struct Watch {
    stop: oneshot::Sender<()>,
    record: Arc<Mutex<Record>>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn start(kubeconfig: &Path) -> Self {
        let (stop, stopped) = oneshot::channel();
        let record = Arc::new(Mutex::new(Record::default()));
        let (kept, path) = (record.clone(), kubeconfig.to_owned());
        let thread = std::thread::spawn(move || {
            on_this_thread(async {
                tokio::select! {
                    () = watch(&path, &kept) => {}
                    _ = stopped => {}
                }
            });
        });
        let this = Self {
            stop,
            record,
            thread,
        };
        wait::until("the observer's watches", || {
            (this.record.lock().expect("no panic").synced.len() == 3).then_some(())
        });
        this
    }

    fn end(self) -> Record {
        let _ = self.stop.send(());
        self.thread.join().expect("the watch");
        std::mem::take(&mut *self.record.lock().expect("no panic"))
    }
}

async fn watch(kubeconfig: &Path, record: &Mutex<Record>) {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("the kubeconfig");
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let client = kube::Client::try_from(config.expect("a configuration")).expect("a client");
    let web = |selector: &str| watching::Config::default().labels(selector);
    let pods = watcher(
        Api::<Pod>::default_namespaced(client.clone()),
        web("app=web"),
    );
    let nodes = watcher(
        Api::<Node>::all(client.clone()),
        watching::Config::default(),
    );
    let slices = watcher(
        Api::<EndpointSlice>::default_namespaced(client),
        web("kubernetes.io/service-name=web"),
    );
    let all = [
        pods.default_backoff()
            .map(|told| told.map_or(Told::Broken, Told::Pod))
            .boxed(),
        nodes
            .default_backoff()
            .map(|told| told.map_or(Told::Broken, Told::Node))
            .boxed(),
        slices
            .default_backoff()
            .map(|told| told.map_or(Told::Broken, Told::Slice))
            .boxed(),
    ];
    let mut all = pin!(select_all(all));
    while let Some(told) = all.next().await {
        record.lock().expect("no panic").take(told);
    }
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

    /// Runs a drill against `web` under observation, and compares.
    fn observe(&mut self, kind: &str, more: &Value) {
        let (address, node) = self.until_web_is_whole();
        let other = ["node-1", "node-2"]
            .into_iter()
            .find(|other| *other != node);
        let namespace = self
            .identity()
            .run_dir()
            .join(format!("nodes/{}.net", other.unwrap_or_default()));
        let namespace = namespace.exists().then_some(namespace);
        let clock = Punctuality::start();
        let watch = Watch::start(&self.kubeconfig());
        let load = Load::start(address, namespace);
        load.until_good(5);
        let mut spec = json!({
            "drill": kind, "target": {"kind": "Deployment", "name": "web"}, "timeout": "1m30s",
            "probe": {"service": "web", "rate": RATE, "timeout": "1s"},
        });
        let given = more.as_object().expect("fields").clone();
        spec.as_object_mut().expect("an object").extend(given);
        self.drill(kind, &spec);
        let report = self.until_drill(kind, "over", |status| status["phase"] == "Completed");
        // Until a request of each was answered that was sent after the end.
        load.until_good(5);
        let (asked, record) = (load.end(), watch.end());
        assert_eq!(report["result"], "Passed", "{kind}: {report:#}");
        Comparison {
            kind,
            uncertainty: AGREE + HOPS * clock.worst(),
            injected: time(&report["injectedAt"]),
            report,
            asked,
            record,
        }
        .check();
    }
}

fn time(value: &Value) -> f64 {
    let stamp: Timestamp = value.as_str().expect("a time").parse().expect("a time");
    stamp.as_microsecond() as f64 / 1e6
}

/// A report, and what was seen.
struct Comparison<'a> {
    kind: &'a str,
    report: Value,
    injected: f64,
    asked: Vec<Asked>,
    record: Record,
    uncertainty: f64,
}

impl Comparison<'_> {
    fn check(&self) {
        self.check_requests();
        // A watch that was broken off saw no more than the report's own.
        if self.record.gaps == 0 {
            self.check_timeline();
            self.check_recovery();
        }
    }

    fn near(&self, what: &str, told: f64, seen: f64, more: f64) {
        let allowed = self.uncertainty + more;
        assert!(
            (told - seen).abs() <= allowed,
            "{}: {what}: told {:.3}, seen {:.3}, allowed ± {allowed:.3}: {:#}",
            self.kind,
            told - self.injected,
            seen - self.injected,
            self.report
        );
    }

    /// The times at which something happened, by the report, since 1970.
    fn told(&self, event: &str, object: &str) -> Vec<f64> {
        let timeline = self.report["timeline"].as_array().expect("a timeline");
        let found = timeline.iter().filter(|entry| {
            entry["event"] == event && entry["object"].as_str().unwrap_or_default() == object
        });
        found
            .map(|entry| entry["at"].as_f64().expect("a time") + self.injected)
            .collect()
    }

    fn check_requests(&self) {
        let requests = &self.report["requests"];
        let number = |field: &str| requests[field].as_f64().expect("a number");
        let buckets = requests["buckets"].as_array().expect("the course");
        let at = |bucket: &Value| bucket["at"].as_f64().expect("a time") + self.injected;
        let (begin, end) = (at(&buckets[0]), at(&buckets[buckets.len() - 1]));
        let width = at(&buckets[1]) - begin;
        let meanwhile: Vec<Asked> = self
            .asked
            .iter()
            .copied()
            .filter(|(sent, _)| (begin..end + width).contains(sent))
            .collect();
        // The last interval need not be over.
        let slack = 3.0 + (width + self.uncertainty) / INTERVAL;
        let count = meanwhile.len() as f64;
        assert!(
            (number("sent") - count).abs() <= slack,
            "{}: sent: {count} seen: {requests:#}",
            self.kind
        );
        let failed: Vec<f64> = meanwhile
            .iter()
            .filter(|(_, good)| !good)
            .map(|(sent, _)| *sent)
            .collect();
        let slack = 3.0 + 2.0 * self.uncertainty / INTERVAL;
        let count = failed.len() as f64;
        assert!(
            (number("failed") - count).abs() <= slack,
            "{}: failed: {count} seen: {requests:#}",
            self.kind
        );
        // Where only the odd request fails, two observers need not see the same ones.
        let is_odd = |sent: f64| {
            let others = failed.iter().filter(|other| **other != sent);
            !others
                .into_iter()
                .any(|other| (other - sent).abs() < 5.0 * INTERVAL)
        };
        let (odd, failed): (Vec<f64>, Vec<f64>) =
            failed.iter().copied().partition(|sent| is_odd(*sent));
        assert!(
            odd.len() <= 1,
            "{}: failed one by one: {odd:?}: {requests:#}",
            self.kind
        );
        if failed.len() < 3 {
            return;
        }
        let first = self.told("firstFailedProbe", "");
        let last = self.told("lastFailedProbe", "");
        assert!(
            first.len() == 1 && last.len() == 1,
            "{}: {:#}",
            self.kind,
            self.report
        );
        self.near("first failed", first[0], failed[0], INTERVAL);
        self.near("last failed", last[0], failed[failed.len() - 1], INTERVAL);
        let mut longest: f64 = 0.0;
        let mut before = meanwhile[0].0;
        for (sent, _) in meanwhile.iter().filter(|(_, good)| *good) {
            longest = longest.max(sent - before);
            before = *sent;
        }
        self.near("longest gap", number("longestGap"), longest, 2.0 * INTERVAL);
    }

    /// What the watch saw, the timeline tells, as often, and at the same times.
    fn check_timeline(&self) {
        let end = time(&self.report["completedAt"]) - self.uncertainty;
        let mut seen: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
        let since = self
            .record
            .seen
            .iter()
            .filter(|(at, _, _)| *at > self.injected && *at < end);
        for (at, event, object) in since {
            seen.entry((event, object)).or_default().push(*at);
        }
        for ((event, object), times) in seen {
            let told = self.told(event, object);
            assert!(
                told.len() >= times.len(),
                "{}: {event} {object}: {} seen, {} told: {:#}",
                self.kind,
                times.len(),
                told.len(),
                self.report
            );
            for (told, seen) in told.iter().zip(&times) {
                self.near(&format!("{event} {object}"), *told, *seen, 0.0);
            }
        }
    }

    /// Whole again as the watch saw it, answering again as the load saw it, and not before what was broken was undone.
    fn check_recovery(&self) {
        let told = self.report["timeToRecover"].as_f64().expect("a time") + self.injected;
        let whole = self.record.whole_since(1).expect("whole at the end");
        let failed = self
            .asked
            .iter()
            .filter(|(sent, good)| !good && *sent > self.injected);
        let last_failed = failed.map(|(sent, _)| *sent).fold(0.0, f64::max);
        let good = self
            .asked
            .iter()
            .find(|(sent, good)| *good && *sent > last_failed);
        let good = good
            .filter(|_| last_failed > 0.0)
            .map_or(0.0, |(sent, _)| *sent);
        let timeline = self.report["timeline"].as_array().expect("a timeline");
        let of = |event: &str| {
            let found = timeline.iter().filter(|entry| entry["event"] == event);
            found
                .filter_map(|entry| entry["at"].as_f64())
                .fold(f64::MIN, f64::max)
                + self.injected
        };
        let least = whole.max(good);
        assert!(
            told >= least - self.uncertainty - INTERVAL,
            "{}: recovered at {:.3}, but whole at {:.3} and answering at {:.3}: {:#}",
            self.kind,
            told - self.injected,
            whole - self.injected,
            good - self.injected,
            self.report
        );
        let latest = [
            least,
            self.injected,
            of("undone"),
            of("started"),
            of("ready"),
            of("terminating"),
            of("deleted"),
            of("notReady"),
        ];
        let latest = latest.into_iter().fold(f64::MIN, f64::max);
        assert!(
            told <= latest + self.uncertainty + INTERVAL,
            "{}: recovered at {:.3}, but nothing was missing after {:.3}: {:#}",
            self.kind,
            told - self.injected,
            latest - self.injected,
            self.report
        );
        let restarts = self.report["restarts"].as_i64().expect("a number");
        let replaced = self
            .record
            .seen
            .iter()
            .any(|(_, event, _)| *event == "deleted");
        assert!(
            restarts == 0 || !replaced,
            "{}: {:#}",
            self.kind,
            self.report
        );
    }
}

#[test]
fn reports_of_containers_and_pods_are_true() {
    let mut cluster = Cluster::start();
    cluster.apply(WEB);
    for (kind, more) in [
        ("container-kill", json!({})),
        ("container-oom", json!({})),
        ("container-hang", json!({"duration": "30s"})),
        ("pod-delete", json!({})),
        ("pod-evict", json!({})),
        ("memory-pressure", json!({"duration": "3s"})),
    ] {
        cluster.observe(kind, &more);
    }
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
    for (kind, more) in [
        (
            "packet-loss",
            json!({"duration": "4s", "parameters": {"loss": 100}}),
        ),
        ("pod-partition", json!({"duration": "4s"})),
        ("dns-outage", json!({"duration": "2s"})),
        ("registry-outage", json!({"duration": "2s"})),
        (
            "cpu-stress",
            json!({"duration": "2s", "parameters": {"workers": 1}}),
        ),
    ] {
        cluster.observe(kind, &more);
    }
}

#[test]
fn reports_of_restarts_are_true() {
    let mut cluster = Cluster::start();
    cluster.apply(WEB);
    for kind in ["agent-restart", "controlplane-restart", "controlplane-kill"] {
        cluster.observe(kind, &json!({}));
    }
    let drill = cluster.get("/apis/skiff.dev/v1/drills/controlplane-kill");
    let writes = drill.expect("the drill")["status"]["writes"].clone();
    assert!(writes["acknowledged"].as_i64() > Some(0), "{writes:#}");
    assert_eq!(writes["lost"], 0, "{writes:#}");
}

#[test]
fn reports_of_nodes_are_true() {
    let mut cluster = Cluster::of_nodes(2);
    cluster.apply(WEB);
    for (kind, more) in [
        ("node-drain", json!({"duration": "3s"})),
        ("node-partition", json!({"duration": "18s"})),
        // Long enough for a busy host to replace the pod before the node is back: only that is a recovery.
        ("node-crash", json!({"duration": "30s"})),
    ] {
        cluster.observe(kind, &more);
    }
}
