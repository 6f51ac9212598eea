//! Probes of every kind on real containers: who is asked, what follows, and in which words it is told.

use std::net::TcpListener;

use serde_json::{Value, json};

use crate::cluster::{Cluster, condition, container_status, is_ready};
use crate::wait;

/// What a probed container can be asked; it says yes to all of it, or no.
const SERVER: &str = "
error_log /dev/stderr;
pid /run/probed.pid;
events {}
http {
    access_log off;
    server {
        listen 80;
        root /www;
    }
    server {
        listen 443 ssl;
        ssl_certificate /conf/tls.crt;
        ssl_certificate_key /conf/tls.key;
        root /www;
        location = /ok {
            if ($http_x_probe != skiff) { return 403; }
            if ($http_host != probe.example) { return 421; }
        }
    }
    server {
        listen 9000 http2;
        root /www;
        location = /grpc.health.v1.Health/Check { error_page 405 =200 /serving; return 405; }
        location = /serving {
            internal;
            default_type application/grpc;
            add_trailer grpc-status 0 always;
        }
    }
}
";

/// A gRPC message is its length and `status`, which is SERVING or NOT_SERVING.
const YES: &str = "
touch /www/ok
printf '\\000\\000\\000\\000\\002\\010\\001' >/www/serving
httpd -f -p 7000 </dev/null >/dev/null 2>&1 &
echo $! >/run/httpd.pid
";
const NO: &str = "
rm -f /www/ok
printf '\\000\\000\\000\\000\\002\\010\\002' >/www/serving
[ ! -e /run/httpd.pid ] || kill $(cat /run/httpd.pid)
";

const KINDS: [&str; 5] = ["http", "https", "tcp", "exec", "grpc"];

/// How a kind of probe asks.
fn handler(kind: &str) -> Value {
    match kind {
        "http" => json!({"httpGet": {"path": "/ok", "port": 80}}),
        "https" => json!({"httpGet": {
            "scheme": "HTTPS", "path": "/ok", "port": "tls",
            "httpHeaders": [{"name": "X-Probe", "value": "skiff"}, {"name": "Host", "value": "probe.example"}],
        }}),
        "tcp" => json!({"tcpSocket": {"port": "raw"}}),
        "exec" => json!({"exec": {"command": ["cat", "/www/ok"]}}),
        "grpc" => json!({"grpc": {"port": 9000, "service": "web"}}),
        other => panic!("no kind of probe: {other}"),
    }
}

/// What is told of one that is answered with no.
fn complaint(kind: &str, ip: &str) -> String {
    match kind {
        "http" | "https" => "HTTP probe failed with statuscode: 404".to_owned(),
        "tcp" => format!("dial tcp {ip}:7000: connect: connection refused"),
        "exec" => "cat: can't open '/www/ok': No such file or directory\n".to_owned(),
        _ => "service unhealthy (responded with \"NOT_SERVING\")".to_owned(),
    }
}

/// A probe of a kind, with these settings.
fn probe(kind: &str, settings: Value) -> Value {
    let mut probe = handler(kind);
    for (name, value) in settings.as_object().expect("settings") {
        probe[name] = value.clone();
    }
    probe
}

/// A pod that begins with a yes or a no, with these probes.
fn probed(name: &str, begin: &str, probes: &Value) -> Value {
    let script =
        format!("mkdir -p /www; sh /conf/{begin}; exec nginx -c /conf/nginx.conf -g 'daemon off;'");
    let mut container = json!({
        "name": "main",
        "image": "nginx",
        "command": ["sh", "-c", script],
        "ports": [{"name": "tls", "containerPort": 443}, {"name": "raw", "containerPort": 7000}],
        "volumeMounts": [{"name": "conf", "mountPath": "/conf"}],
    });
    for (name, value) in probes.as_object().expect("probes") {
        container[name] = value.clone();
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "probed"}},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [container],
            "volumes": [{"name": "conf", "configMap": {"name": "probed"}}],
        },
    })
}

impl Cluster {
    /// A cluster with what probed pods need.
    fn with_probed() -> Self {
        let cluster = Self::start();
        let certified = rcgen::generate_simple_self_signed(vec!["elsewhere.example".to_owned()]);
        let certified = certified.expect("a certificate");
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probed"},
            "data": {
                "nginx.conf": SERVER, "yes": YES, "no": NO,
                "tls.crt": certified.cert.pem(), "tls.key": certified.signing_key.serialize_pem(),
            },
        });
        cluster.apply(&map.to_string());
        cluster
    }

    fn apply_all(&self, objects: impl Iterator<Item = Value>) {
        let items: Vec<_> = objects.collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
        self.apply(&list.to_string());
    }

    /// Has a pod answer with yes or no from now on.
    fn answer(&self, pod: &str, with: &str) {
        self.kubectl(&format!("exec {pod} -- sh /conf/{with}"));
    }

    /// Waits until an event of the pod's container was told.
    fn until_told(&mut self, pod: &str, reason: &str, message: &str) {
        let path =
            format!("/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{pod}");
        wait::until(&format!("{pod}: {reason} {message:?}"), || {
            let events = self.get(&path)?;
            let told = events["items"].as_array()?.iter().any(|event| {
                event["reason"] == reason
                    && event["message"] == message
                    && event["involvedObject"]["fieldPath"] == "spec.containers{main}"
            });
            told.then_some(())
        });
    }

    fn until_running(&mut self, pod: &str) -> Value {
        self.until_pod(pod, "running", |pod| {
            container_status(pod)["state"]["running"].is_object()
        })
    }

    /// The ready endpoints of the Service `probed`.
    fn until_probed_endpoints(&mut self, count: usize) {
        let path = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dprobed";
        wait::until(&format!("{count} ready endpoints"), || {
            let list = self.get(path)?;
            let endpoints = list["items"].as_array()?.iter();
            let endpoints = endpoints.filter_map(|slice| slice["endpoints"].as_array());
            let ready = endpoints
                .flatten()
                .filter(|e| e["conditions"]["ready"] == true);
            (ready.count() == count).then_some(())
        });
    }
}

fn pod_ip(pod: &Value) -> String {
    pod["status"]["podIP"]
        .as_str()
        .expect("an address")
        .to_owned()
}

fn restarts(pod: &Value) -> u64 {
    container_status(pod)["restartCount"]
        .as_u64()
        .expect("a number")
}

#[test]
fn readiness_moves_pods_in_and_out_of_their_service() {
    let mut cluster = Cluster::with_probed();
    cluster.kubectl("create service clusterip probed --tcp=80");
    cluster.kubectl("set selector service/probed app=probed");
    let often = json!({"periodSeconds": 1, "failureThreshold": 2, "successThreshold": 2, "timeoutSeconds": 10});
    let pod = |kind: &str| {
        probed(
            kind,
            "no",
            &json!({"readinessProbe": probe(kind, often.clone())}),
        )
    };
    cluster.apply_all(KINDS.into_iter().map(pod));
    for kind in KINDS {
        let ip = pod_ip(&cluster.until_running(kind));
        let said = format!("Readiness probe failed: {}", complaint(kind, &ip));
        cluster.until_told(kind, "Unhealthy", &said);
        let pod = cluster.pod(kind).expect("the pod");
        assert!(!is_ready(&pod), "{kind}");
        assert_eq!(container_status(&pod)["started"], true, "{kind}");
    }
    cluster.until_probed_endpoints(0);
    for kind in KINDS {
        cluster.answer(kind, "yes");
    }
    for kind in KINDS {
        cluster.until_ready(kind);
    }
    cluster.until_probed_endpoints(KINDS.len());
    for kind in KINDS {
        cluster.answer(kind, "no");
    }
    for kind in KINDS {
        let pod = cluster.until_pod(kind, "not Ready", |pod| !is_ready(pod));
        let ready = condition(&pod, "Ready");
        assert_eq!(ready["reason"], "ContainersNotReady", "{kind}");
        assert_eq!(
            ready["message"], "containers with unready status: [main]",
            "{kind}"
        );
        assert_eq!(restarts(&pod), 0, "{kind}: nobody is ended for it");
    }
    cluster.until_probed_endpoints(0);
}

#[test]
fn liveness_ends_containers_which_start_anew() {
    let mut cluster = Cluster::with_probed();
    let pod = |kind: &str| {
        let begin = json!({"periodSeconds": 1, "failureThreshold": 100, "timeoutSeconds": 10});
        let often = json!({"periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 10});
        let probes =
            json!({"startupProbe": probe(kind, begin), "livenessProbe": probe(kind, often)});
        probed(kind, "yes", &probes)
    };
    cluster.apply_all(KINDS.into_iter().map(pod));
    for kind in KINDS {
        cluster.until_ready(kind);
    }
    for kind in KINDS {
        cluster.answer(kind, "no");
    }
    for kind in KINDS {
        let ip = pod_ip(&cluster.pod(kind).expect("the pod"));
        let said = format!("Liveness probe failed: {}", complaint(kind, &ip));
        cluster.until_told(kind, "Unhealthy", &said);
        let killed = "Container main failed liveness probe, will be restarted";
        cluster.until_told(kind, "Killing", killed);
        // The next one says yes again, and is left alone.
        let again = |pod: &Value| is_ready(pod) && restarts(pod) == 1;
        let pod = cluster.until_pod(kind, "Ready after one restart", again);
        assert!(
            container_status(&pod)["lastState"]["terminated"].is_object(),
            "{kind}"
        );
    }
}

#[test]
fn startup_comes_first_and_ends_what_does_not_start() {
    let mut cluster = Cluster::with_probed();
    let slow = |kind: &str| {
        let begin = json!({"periodSeconds": 1, "failureThreshold": 1000, "timeoutSeconds": 10});
        // Would end it at once, if it were asked before the time.
        let deadly = json!({"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 10});
        let probes =
            json!({"startupProbe": probe(kind, begin), "livenessProbe": probe(kind, deadly)});
        probed(&format!("slow-{kind}"), "no", &probes)
    };
    let never = |kind: &str| {
        let begin = json!({"periodSeconds": 1, "failureThreshold": 2, "timeoutSeconds": 10});
        probed(
            &format!("never-{kind}"),
            "no",
            &json!({"startupProbe": probe(kind, begin)}),
        )
    };
    cluster.apply_all(KINDS.into_iter().map(slow));
    for kind in KINDS {
        let name = format!("slow-{kind}");
        let ip = pod_ip(&cluster.until_running(&name));
        let said = format!("Startup probe failed: {}", complaint(kind, &ip));
        cluster.until_told(&name, "Unhealthy", &said);
        let pod = cluster.pod(&name).expect("the pod");
        assert_eq!(container_status(&pod)["started"], false, "{kind}");
        assert!(!is_ready(&pod), "{kind}");
    }
    for kind in KINDS {
        cluster.answer(&format!("slow-{kind}"), "yes");
    }
    for kind in KINDS {
        let pod = cluster.until_ready(&format!("slow-{kind}"));
        assert_eq!(container_status(&pod)["started"], true, "{kind}");
        assert_eq!(restarts(&pod), 0, "{kind}");
    }
    cluster.apply_all(KINDS.into_iter().map(never));
    for kind in KINDS {
        let name = format!("never-{kind}");
        let killed = "Container main failed startup probe, will be restarted";
        cluster.until_told(&name, "Killing", killed);
        cluster.until_pod(&name, "restarted", |pod| restarts(pod) > 0);
    }
}

/// Writes when it was asked, in hundredths of seconds since the host's start.
const ASKED: &str = "sed 's/ .*//; s/[.]//' /proc/uptime >>/tmp/asked";

#[test]
fn probes_keep_their_times_and_thresholds() {
    let mut cluster = Cluster::start();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    let container = |script: &str, probes: Value| {
        let mut container =
            json!({"name": "main", "image": "busybox", "command": ["sh", "-c", script]});
        for (name, value) in probes.as_object().expect("probes") {
            container[name] = value.clone();
        }
        container
    };
    let pod = |name: &str, container: Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"terminationGracePeriodSeconds": 600, "containers": [container]},
        })
    };
    let idle = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";
    let timed = json!({"readinessProbe": {
        "exec": {"command": ["sh", "-c", ASKED]},
        "initialDelaySeconds": 2, "periodSeconds": 2, "successThreshold": 3, "timeoutSeconds": 30,
    }});
    let begun = format!("sed 's/ .*//; s/[.]//' /proc/uptime >/tmp/begun; {idle}");
    let tired =
        json!({"readinessProbe": {"exec": {"command": ["sleep", "100"]}, "timeoutSeconds": 1}});
    let mute = json!({"readinessProbe": {
        "httpGet": {"path": "/cgi-bin/mute", "port": 80}, "timeoutSeconds": 1, "periodSeconds": 2,
    }});
    let silent = "mkdir -p /www/cgi-bin; printf '#!/bin/sh\\nsleep 1000\\n' >/www/cgi-bin/mute; \
                  chmod +x /www/cgi-bin/mute; exec httpd -f -h /www -p 80";
    let host = json!({"readinessProbe": {"tcpSocket": {"host": "127.0.0.1", "port": port}}});
    // Deaf to SIGTERM: without the probe's own grace period it would live on for ten minutes.
    let deaf = "trap '' TERM; while :; do sleep 1; done";
    let dead = json!({"livenessProbe": {
        "exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1,
        "terminationGracePeriodSeconds": 1, "timeoutSeconds": 30,
    }});
    let absent = json!({"readinessProbe": {"httpGet": {"port": "nowhere"}, "periodSeconds": 1}});
    let pods = [
        pod("timed", container(&begun, timed)),
        pod("tired", container(idle, tired)),
        pod("mute", container(silent, mute)),
        pod("host", container(idle, host)),
        pod("deaf", container(deaf, dead)),
        pod("absent", container(idle, absent)),
    ];
    cluster.apply_all(pods.into_iter());

    cluster.until_ready("timed");
    let times = |file: &str| -> Vec<u64> {
        let text = cluster.kubectl(&format!("exec timed -- cat {file}"));
        text.lines().map(|l| l.parse().expect("a time")).collect()
    };
    let (begun, asked) = (times("/tmp/begun")[0], times("/tmp/asked"));
    assert!(asked.len() >= 3, "Ready after {} successes", asked.len());
    // Starting a command takes a while, which may be longer the first time than the second.
    assert!(asked[0] + 50 >= begun + 200, "{begun}: {asked:?}");
    assert!(asked[2] + 50 >= asked[0] + 400, "{asked:?}");

    let said = "Readiness probe failed: command timed out: \"sleep 100\" timed out after 1s";
    cluster.until_told("tired", "Unhealthy", said);
    let ip = pod_ip(&cluster.until_running("mute"));
    let said = format!(
        "Readiness probe failed: Get \"http://{ip}:80/cgi-bin/mute\": context deadline exceeded \
         (Client.Timeout exceeded while awaiting headers)"
    );
    cluster.until_told("mute", "Unhealthy", &said);
    // `host` is seen from the node.
    cluster.until_ready("host");
    drop(listener);
    let refused =
        format!("Readiness probe failed: dial tcp 127.0.0.1:{port}: connect: connection refused");
    cluster.until_told("host", "Unhealthy", &refused);
    let said = "Readiness probe errored and resulted in unknown state: strconv.Atoi: parsing \"nowhere\": invalid syntax";
    cluster.until_told("absent", "Unhealthy", said);
    let killed = "Container main failed liveness probe, will be restarted";
    cluster.until_told("deaf", "Killing", killed);
    let pod = cluster.until_pod("deaf", "restarted", |pod| restarts(pod) > 0);
    let last = &container_status(&pod)["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 137, "{last}");
    cluster.kubectl("delete pod --all --grace-period=1");
}
