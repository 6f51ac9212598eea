//! What drills do to networks, and what probes say of it: by Drills as people make them, and by the tasks of a node alone.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cluster::{Cluster, SERVE, shell_pod};
use crate::nodes::until_ready_is;
use crate::web::Web;
use crate::{host, wait};

impl Cluster {
    /// Makes a drill.
    pub(crate) fn drill(&self, name: &str, spec: &Value) {
        let drill = json!({
            "apiVersion": "skiff.dev/v1", "kind": "Drill", "metadata": {"name": name}, "spec": spec,
        });
        self.apply(&drill.to_string());
    }

    /// A drill's status, once it is as wanted.
    pub(crate) fn until_drill(
        &mut self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        wait::until(&format!("drill {name}: {what}"), || {
            let drill = self.get(&format!("/apis/skiff.dev/v1/drills/{name}"))?;
            let status = drill["status"].clone();
            let is_over = status["phase"] == "Completed";
            assert!(
                !is_over || wanted(&status),
                "drill {name} is over: {status:#}"
            );
            wanted(&status).then_some(status)
        })
    }

    pub(crate) fn until_broken(&mut self, name: &str) {
        self.until_drill(name, "injected", |status| status["phase"] == "Running");
    }

    pub(crate) fn until_completed(&mut self, name: &str, result: &str) -> Value {
        self.until_drill(name, result, |status| {
            status["phase"] == "Completed" && status["result"] == result
        })
    }

    fn cancel(&mut self, name: &str) {
        self.kubectl(&format!(
            "patch drill {name} --type merge -p {{\"spec\":{{\"cancel\":true}}}}"
        ));
        self.until_completed(name, "Cancelled");
    }

    /// Gives a task to the only node.
    fn task(&mut self, name: &str, action: &Value, until: Timestamp) {
        let nodes = self.get("/api/v1/nodes").expect("the nodes");
        let task = json!({
            "apiVersion": "skiff.dev/v1", "kind": "DrillTask",
            "metadata": {"name": name, "finalizers": ["skiff.dev/undo"]},
            "spec": {
                "drill": "none", "nodeName": nodes["items"][0]["metadata"]["name"],
                "action": action, "until": until.to_string(),
            },
        });
        self.apply(&task.to_string());
    }

    fn until_task(&mut self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        wait::until(&format!("task {name}: {what}"), || {
            let task = self.get(&format!("/apis/skiff.dev/v1/drilltasks/{name}"))?;
            let status = task["status"].clone();
            wanted(&status).then_some(status)
        })
    }

    /// What a pod is, as a task names it.
    fn pod_ref(&mut self, name: &str) -> Value {
        let pod = self.until_ready(name);
        json!({
            "namespace": "default", "name": name, "uid": pod["metadata"]["uid"], "ip": pod["status"]["podIP"],
        })
    }

    /// Whether a command in a pod succeeds.
    fn manages(&self, pod: &str, command: &str) -> bool {
        let output = self
            .kubectl_command()
            .args(["exec", pod, "--", "sh", "-c", command])
            .output();
        output.expect("kubectl starts").status.success()
    }
}

/// Pods that stay where they are, whatever becomes of their node.
fn web() -> String {
    let web = Web::nginx(2).ending_within(1).leaving_lost_nodes_after(600);
    web.manifest()
}

fn in_a_minute() -> Timestamp {
    Timestamp::now() + jiff::SignedDuration::from_secs(60)
}

fn ip_of(pod: &Value) -> String {
    pod["status"]["podIP"]
        .as_str()
        .expect("an address")
        .to_owned()
}

/// The tables of drills in a network namespace, or on the host.
fn drill_tables(namespace: Option<&std::path::Path>) -> Vec<String> {
    let mut command = match namespace {
        None => Command::new("nft"),
        Some(path) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", path.display())).arg("nft");
            command
        }
    };
    let output = command.args(["list", "tables"]).output().expect("nft");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let tables = text.lines().filter(|line| line.contains("-drill-"));
    tables.map(str::to_owned).collect()
}

fn own_tables(cluster: &Cluster) -> Vec<String> {
    let mut tables = drill_tables(None);
    let prefix = cluster.identity().drill_table_prefix();
    tables.retain(|table| table.contains(&prefix));
    tables
}

#[test]
fn a_partitioned_node_is_noticed_keeps_serving_and_heals_by_itself() {
    let mut cluster = Cluster::of_nodes(2);
    cluster.apply(&web());
    cluster.apply(&shell_pod("client", SERVE, "nodeName: node-2", ""));
    cluster.until_ready("client");
    let pods = cluster.until_all_ready("app=web", 2);
    let victim = pods.iter().find(|pod| pod["spec"]["nodeName"] == "node-1");
    let victim = ip_of(victim.expect("one of two"));
    let ask = format!("timeout 5 wget -q -O /dev/null http://{victim}/");
    wait::until("the nodes' pods reach each other", || {
        cluster.manages("client", &ask).then_some(())
    });
    cluster.drill(
        "cut",
        &json!({
            "drill": "node-partition", "target": {"kind": "Node", "name": "node-1"}, "duration": "25s",
            "probe": {"service": "web"},
        }),
    );
    cluster.until_broken("cut");
    until_ready_is(&mut cluster, "node-1", "Unknown");
    assert!(cluster.manages("client", &ask), "its pods live on");
    let report = cluster.until_completed("cut", "Passed");
    until_ready_is(&mut cluster, "node-1", "True");
    assert!(
        report["timeToDetect"].as_f64().expect("a time") < 20.0,
        "{report:#}"
    );
    assert_eq!(report["restarts"], 0, "{report:#}");
    let namespace = cluster.identity().run_dir().join("nodes/node-1.net");
    assert_eq!(drill_tables(Some(&namespace)), Vec::<String>::new());
}

#[test]
fn names_and_peers_are_missing_for_the_victims_alone() {
    let mut cluster = Cluster::start();
    cluster.apply(&web());
    for name in ["victim", "other"] {
        cluster.apply(&shell_pod(name, SERVE, "", ""));
    }
    let web = cluster.until_all_ready("app=web", 2);
    for name in ["victim", "other"] {
        cluster.until_ready(name);
    }
    let resolve = "timeout 3 nslookup web.default.svc.cluster.local";
    assert!(cluster.manages("victim", resolve) && cluster.manages("other", resolve));
    let target = json!({"kind": "Pod", "name": "victim"});
    let off = json!({"off": true});
    cluster.drill(
        "dns",
        &json!({"drill": "dns-outage", "target": target, "duration": "2m", "probe": off}),
    );
    cluster.until_broken("dns");
    assert!(!cluster.manages("victim", resolve));
    assert!(cluster.manages("other", resolve));
    cluster.cancel("dns");
    assert!(cluster.manages("victim", resolve));

    let (peer, third) = (&web[0], &web[1]);
    let ask = |pod: &Value| format!("timeout 2 wget -q -O /dev/null http://{}/", ip_of(pod));
    cluster.drill(
        "parted",
        &json!({
            "drill": "pod-partition", "target": target, "duration": "2m", "probe": off,
            "peer": {"kind": "Pod", "name": peer["metadata"]["name"]},
        }),
    );
    cluster.until_broken("parted");
    assert!(!cluster.manages("victim", &ask(peer)));
    assert!(cluster.manages("victim", &ask(third)) && cluster.manages("other", &ask(peer)));
    cluster.cancel("parted");
    assert!(cluster.manages("victim", &ask(peer)));
    assert_eq!(own_tables(&cluster), Vec::<String>::new());
}

#[test]
fn lost_packets_show_in_the_probes_and_delays_are_made_or_refused() {
    let mut cluster = Cluster::start();
    cluster.apply(&web());
    cluster.until_all_ready("app=web", 2);
    let target = json!({"kind": "Deployment", "name": "web"});
    cluster.drill(
        "loss",
        &json!({
            "drill": "packet-loss", "target": target, "percent": 100, "parameters": {"loss": 60},
            "duration": "5s", "probe": {"rate": 50, "timeout": "300ms"}, "expect": ["failed>0"],
        }),
    );
    let report = cluster.until_completed("loss", "Passed");
    let requests = &report["requests"];
    let number = |field: &str| requests[field].as_i64().expect("a number");
    assert!(
        number("failed") > 0 && number("failed") < number("sent"),
        "{requests:#}"
    );
    let buckets = requests["buckets"].as_array().expect("the course");
    let sum = |field: &str| {
        buckets
            .iter()
            .filter_map(|b| b[field].as_i64())
            .sum::<i64>()
    };
    assert_eq!(
        (sum("sent"), sum("failed")),
        (number("sent"), number("failed"))
    );

    cluster.drill(
        "late",
        &json!({"drill": "latency", "target": target, "duration": "3s"}),
    );
    let report = cluster.until_drill("late", "over", |status| status["phase"] == "Completed");
    if report["result"] == "Refused" {
        let message = report["message"].as_str().expect("why");
        assert!(message.contains("sch_netem"), "{message}");
    } else {
        assert_eq!(report["result"], "Passed", "{report:#}");
    }
    assert_eq!(own_tables(&cluster), Vec::<String>::new());
}

/// Threads of the test's server.
const SERVERS: usize = 8;

/// A server of the test's own that tells which requests it got.
struct Target {
    address: std::net::SocketAddr,
    answered: Arc<AtomicU64>,
    serves: Arc<AtomicBool>,
    /// When those were turned away that came while it did not serve.
    turned_away: Arc<Mutex<Vec<f64>>>,
    clock: Punctuality,
}

impl Target {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let target = Self {
            address: listener.local_addr().expect("its address"),
            answered: Arc::default(),
            serves: Arc::new(AtomicBool::new(true)),
            turned_away: Arc::default(),
            clock: Punctuality::start(),
        };
        for _ in 0..SERVERS {
            let listener = listener.try_clone().expect("a descriptor");
            let (answered, serves) = (target.answered.clone(), target.serves.clone());
            let turned_away = target.turned_away.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    if serves.load(Ordering::SeqCst) {
                        answer(stream);
                        answered.fetch_add(1, Ordering::SeqCst);
                    } else {
                        // Closed without an answer.
                        let now = seconds(SystemTime::now());
                        turned_away.lock().expect("no panic").push(now);
                    }
                }
            });
        }
        target
    }

    fn action(&self, rate: u32) -> Value {
        json!({
            "type": "Probe", "rate": rate, "timeout": "20s",
            "target": {"scheme": "HTTP", "host": "127.0.0.1", "port": self.address.port(), "path": "/"},
        })
    }
}

/// How late a process of this busy host may notice something: by how much the worst nap was too long.
pub(crate) struct Punctuality {
    worst: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Punctuality {
    const NAP: Duration = Duration::from_millis(2);

    pub(crate) fn start() -> Self {
        let this = Self {
            worst: Arc::default(),
            stop: Arc::default(),
        };
        let (worst, stop) = (this.worst.clone(), this.stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let begin = Instant::now();
                std::thread::sleep(Self::NAP);
                let late = begin.elapsed().saturating_sub(Self::NAP);
                worst.fetch_max(late.as_micros() as u64, Ordering::Relaxed);
            }
        });
        this
    }

    /// In seconds.
    pub(crate) fn worst(&self) -> f64 {
        self.worst.load(Ordering::Relaxed) as f64 / 1e6
    }
}

impl Drop for Punctuality {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn answer(mut stream: TcpStream) {
    let mut request = [0; 1024];
    if let Ok(1..) = stream.read(&mut request) {
        // Whoever hangs up has been answered all the same.
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let _ = stream.read(&mut request);
    }
}

fn seconds(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH).expect("after 1970");
    since.as_secs_f64()
}

fn time(value: &Value) -> f64 {
    let stamp: Timestamp = value.as_str().expect("a time").parse().expect("a time");
    stamp.as_microsecond() as f64 / 1e6
}

#[test]
fn a_probe_counts_every_request_and_outlives_the_agent() {
    let mut cluster = Cluster::start_empty();
    let target = Target::start();
    cluster.task("asking", &target.action(100), in_a_minute());
    let sent = |status: &Value, count: i64| status["requests"]["sent"].as_i64() >= Some(count);
    cluster.until_task("asking", "healthy", |status| {
        status["phase"] == "Active" && status["healthy"] == true && sent(status, 50)
    });
    cluster.crash();
    let before = target.answered.load(Ordering::SeqCst);
    wait::until("it goes on asking", || {
        (target.answered.load(Ordering::SeqCst) > before + 20).then_some(())
    });
    cluster.up();
    target.serves.store(false, Ordering::SeqCst);
    cluster.until_task("asking", "unhealthy", |status| status["healthy"] == false);
    target.serves.store(true, Ordering::SeqCst);
    let status = cluster.until_task("asking", "healthy again", |status| {
        status["healthy"] == true && !status["lastFailedAt"].is_null()
    });
    assert!(time(&status["healthySince"]) > time(&status["lastFailedAt"]));
    cluster.kubectl("patch drilltask asking --type merge -p {\"spec\":{\"stop\":true}}");
    let status = cluster.until_task("asking", "ended", |status| status["phase"] == "Ended");

    let requests = &status["requests"];
    let failed = requests["failed"].as_i64().expect("a number");
    let good = requests["sent"].as_i64().expect("a number") - failed;
    assert_eq!(
        good as u64,
        target.answered.load(Ordering::SeqCst),
        "{status:#}"
    );
    let mut turned_away = target.turned_away.lock().expect("no panic").clone();
    turned_away.sort_by(f64::total_cmp);
    assert_eq!(failed, turned_away.len() as i64, "{status:#}");
    let uncertainty = 0.05 + target.clock.worst();
    let near = |told: f64, seen: f64| (seen - told).abs() < uncertainty;
    let (first, last) = (turned_away[0], turned_away[turned_away.len() - 1]);
    assert!(
        near(time(&status["firstFailedAt"]), first),
        "{first} in {status:#}"
    );
    assert!(
        near(time(&status["lastFailedAt"]), last),
        "{last} in {status:#}"
    );
    let gap = requests["longestGap"].as_f64().expect("a number");
    assert!(gap >= last - first, "{gap} of {}", last - first);
    let errors = requests["errors"][0]["reason"].as_str().expect("a reason");
    assert!(errors.starts_with("connection "), "{errors}");
    cluster.kubectl("delete drilltask asking");
    assert_eq!(helpers(&cluster), Vec::<String>::new());
}

/// Processes that do something for a drill of this cluster: they are in its control group.
fn helpers(cluster: &Cluster) -> Vec<String> {
    let group = format!("{}/drills", cluster.identity().cgroup_root());
    let procs = host::cgroup_file(&group, "cgroup.procs").unwrap_or_default();
    procs.lines().map(str::to_owned).collect()
}

#[test]
fn what_an_agent_can_not_undo_any_more_the_next_one_does() {
    let mut cluster = Cluster::start();
    cluster.apply(&shell_pod("victim", SERVE, "", ""));
    let victim = cluster.pod_ref("victim");
    let resolve = "timeout 3 nslookup kubernetes.default.svc.cluster.local";
    let silence = json!({"type": "SilenceDns", "pods": [victim]});
    let soon = Timestamp::now() + jiff::SignedDuration::from_secs(3);
    cluster.task("silence", &silence, soon);
    cluster.until_task("silence", "active", |status| !status["startedAt"].is_null());
    cluster.crash();
    assert_eq!(own_tables(&cluster).len(), 1, "nobody is there to undo it");
    wait::until("its time is over", || {
        (Timestamp::now() > soon).then_some(())
    });
    cluster.up();
    cluster.until_task("silence", "ended", |status| status["phase"] == "Ended");
    assert_eq!(own_tables(&cluster), Vec::<String>::new());
    assert!(cluster.manages("victim", resolve));

    // Nothing of what is still going on is left after `skiff down`.
    cluster.task("again", &silence, in_a_minute());
    cluster.until_task("again", "active", |status| status["phase"] == "Active");
    let target = Target::start();
    cluster.task("asking", &target.action(10), in_a_minute());
    cluster.until_task("asking", "active", |status| status["phase"] == "Active");
    assert_eq!(own_tables(&cluster).len(), 1);
    assert_eq!(helpers(&cluster).len(), 1);
    cluster.crash();
    cluster.skiff(["down"]);
    assert_eq!(own_tables(&cluster), Vec::<String>::new());
    assert_eq!(helpers(&cluster), Vec::<String>::new());
    cluster.up();
}

#[test]
fn what_can_not_be_done_to_packets_is_refused() {
    let mut cluster = Cluster::start_empty();
    let refusal = |cluster: &mut Cluster, name: &str, action: Value| {
        cluster.task(name, &action, in_a_minute());
        let status = cluster.until_task(name, "over", |status| {
            status["phase"] == "Failed" || status["phase"] == "Active"
        });
        assert_eq!(status["phase"], "Failed", "{status:#}");
        status["message"].as_str().expect("why").to_owned()
    };
    let said = refusal(&mut cluster, "cut", json!({"type": "CutControlPlane"}));
    assert!(said.contains("both are one process"), "{said}");
    let nobody =
        json!({"namespace": "default", "name": "nobody", "uid": "none", "ip": "192.0.2.1"});
    let said = refusal(
        &mut cluster,
        "lose",
        json!({"type": "LosePackets", "pods": [nobody], "percent": 50}),
    );
    assert!(said.contains("default/nobody has no address"), "{said}");
    assert_eq!(own_tables(&cluster), Vec::<String>::new());
}

/// Under a thousand requests a second nothing is lost from the account; what was late is told.
#[test]
fn a_thousand_requests_a_second_are_all_accounted_for() {
    let mut cluster = Cluster::start_empty();
    let target = Target::start();
    let end = Timestamp::now() + jiff::SignedDuration::from_secs(6);
    cluster.task("fast", &target.action(1000), end);
    let status = cluster.until_task("fast", "ended", |status| status["phase"] == "Ended");
    let requests = &status["requests"];
    let number = |field: &str| requests[field].as_i64().unwrap_or_default();
    let buckets = requests["buckets"].as_array().expect("the course").len() as i64;
    assert!(buckets > 20, "{requests:#}");
    // A tenth of a second each, of which the last need not be over.
    let planned = (buckets - 1) * 100..=buckets * 100 + number("late");
    assert!(
        planned.contains(&number("sent")),
        "{planned:?}: {requests:#}"
    );
    let answered = target.answered.load(Ordering::SeqCst);
    assert_eq!(
        (number("sent") - number("failed")) as u64,
        answered,
        "{requests:#}"
    );
}
