//! The nginx Deployment: created, shown in every form, answering.

use serde_json::Value;

use crate::cluster::{Cluster, SERVE, name, shell_pod};
use crate::{host, images};

#[test]
fn apply_tells_what_it_did() {
    let mut cluster = Cluster::start();
    let file = images::nginx_demo();
    let apply = ["apply", "-f", file.to_str().expect("a path")];
    assert_eq!(
        cluster.kubectl_args(&apply),
        "deployment.apps/nginx-demo created\n"
    );
    cluster.until_all_ready("app=nginx", 3);
    assert_eq!(
        cluster.kubectl_args(&apply),
        "deployment.apps/nginx-demo unchanged\n"
    );
    let edited = std::fs::read_to_string(&file)
        .expect("the manifest")
        .replace("replicas: 3", "replicas: 2");
    assert_eq!(
        cluster.apply(&edited),
        "deployment.apps/nginx-demo configured\n"
    );
    cluster.until_all_ready("app=nginx", 2);
    let diff = cluster
        .kubectl_command()
        .arg("diff")
        .args(&apply[1..])
        .output()
        .expect("kubectl");
    assert_eq!(diff.status.code(), Some(1), "the file has 3 replicas again");
    let server_side = cluster.kubectl_args(&[
        "apply",
        "--server-side",
        "--force-conflicts",
        "-f",
        apply[2],
    ]);
    assert_eq!(
        server_side,
        "deployment.apps/nginx-demo serverside-applied\n"
    );
    cluster.until_all_ready("app=nginx", 3);
}

#[test]
fn tables_have_kubernetes_columns() {
    let mut cluster = Cluster::start();
    cluster.kubectl_args(&[
        "apply",
        "-f",
        images::nginx_demo().to_str().expect("a path"),
    ]);
    let pods = cluster.until_all_ready("app=nginx", 3);
    cluster.kubectl("rollout status deployment/nginx-demo --timeout=60s");

    let table = |args: &str| -> Vec<Vec<String>> {
        let text = cluster.kubectl(args);
        text.lines()
            .map(|line| {
                line.split("  ")
                    .map(str::trim)
                    .filter(|c| !c.is_empty())
                    .map(str::to_owned)
                    .collect()
            })
            .collect()
    };
    let deployments = table("get deployments");
    assert_eq!(
        deployments[0],
        ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    );
    assert_eq!(deployments[1][..4], ["nginx-demo", "3/3", "3", "3"]);
    let deployments = table("get deployments -o wide");
    assert_eq!(
        deployments[0][4..],
        ["AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    );
    assert_eq!(deployments[1][5..], ["nginx", "nginx", "app=nginx"]);

    let replicasets = table("get replicasets");
    assert_eq!(
        replicasets[0],
        ["NAME", "DESIRED", "CURRENT", "READY", "AGE"]
    );
    assert_eq!(replicasets[1][1..4], ["3", "3", "3"]);
    let hash = replicasets[1][0]
        .strip_prefix("nginx-demo-")
        .expect("the Deployment's name")
        .to_owned();
    assert!(
        hash.len() >= 8 && hash.chars().all(|c| SAFE.contains(c)),
        "{hash}"
    );
    let replicasets = table("get rs -o wide");
    assert_eq!(
        replicasets[0][4..],
        ["AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    );
    assert_eq!(
        replicasets[1][7],
        format!("app=nginx,pod-template-hash={hash}")
    );

    let listed = table("get pods");
    assert_eq!(listed[0], ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]);
    assert_eq!(listed.len(), 4);
    for row in &listed[1..] {
        let suffix = row[0]
            .strip_prefix(&format!("nginx-demo-{hash}-"))
            .expect("the ReplicaSet's name");
        assert!(
            suffix.len() == 5 && suffix.chars().all(|c| SAFE.contains(c)),
            "{suffix}"
        );
        assert_eq!(row[1..4], ["1/1", "Running", "0"]);
    }
    let wide = table("get pods -o wide");
    assert_eq!(
        wide[0][4..],
        ["AGE", "IP", "NODE", "NOMINATED NODE", "READINESS GATES"]
    );
    assert_eq!(wide[1][7..], ["<none>", "<none>"]);
    assert_eq!(table("get pods -A")[0][0], "NAMESPACE");
    assert_eq!(table("get pods -l app=nginx").len(), 4);
    assert_eq!(
        table("get pods --field-selector status.phase=Running").len(),
        4
    );
    assert_eq!(table("get pods --show-labels")[0][5], "LABELS");
    assert_eq!(table("get pods -L app")[1][5], "nginx");
    assert_eq!(table("get all")[0][0], "NAME");

    let mut names: Vec<String> = cluster
        .kubectl("get pods -o name")
        .lines()
        .map(str::to_owned)
        .collect();
    names.sort();
    let mut expected: Vec<String> = pods
        .iter()
        .map(|pod| format!("pod/{}", name(pod)))
        .collect();
    expected.sort();
    assert_eq!(names, expected);

    for args in [
        "get pods -l app=other",
        "get pods --field-selector status.phase=Failed",
    ] {
        let none = cluster.try_kubectl(args);
        assert_eq!(
            String::from_utf8_lossy(&none.stderr),
            "No resources found in default namespace.\n"
        );
    }
    let missing = cluster.try_kubectl("get pod no-such-pod");
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&missing.stderr),
        "Error from server (NotFound): pods \"no-such-pod\" not found\n"
    );
}

/// The letters that Kubernetes makes names of: no vowels, nothing that looks like another.
const SAFE: &str = "bcdfghjklmnpqrstvwxz2456789";

#[test]
fn objects_are_shown_in_every_form() {
    let mut cluster = Cluster::start();
    cluster.kubectl_args(&[
        "apply",
        "-f",
        images::nginx_demo().to_str().expect("a path"),
    ]);
    let pods = cluster.until_all_ready("app=nginx", 3);
    cluster.kubectl("rollout status deployment/nginx-demo --timeout=60s");

    let json: Value =
        serde_json::from_str(&cluster.kubectl("get deployment nginx-demo -o json")).expect("JSON");
    let yaml: Value =
        serde_yaml_ng::from_str(&cluster.kubectl("get deployment nginx-demo -o yaml"))
            .expect("YAML");
    assert_eq!(json, yaml);
    assert_eq!(json["spec"]["strategy"]["rollingUpdate"]["maxSurge"], "25%");
    assert_eq!(json["spec"]["revisionHistoryLimit"], 10);
    assert_eq!(json["spec"]["progressDeadlineSeconds"], 600);
    assert_eq!(
        json["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "1"
    );
    assert_eq!(
        json["status"]["observedGeneration"],
        json["metadata"]["generation"]
    );
    let container = &json["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["imagePullPolicy"], "Always", "the tag is latest");
    assert_eq!(container["ports"][0]["protocol"], "TCP");
    assert_eq!(container["terminationMessagePath"], "/dev/termination-log");

    let replicas = cluster.kubectl_args(&[
        "get",
        "deployment/nginx-demo",
        "-o",
        "jsonpath={.status.readyReplicas}",
    ]);
    assert_eq!(replicas, "3");
    let columns = cluster.kubectl("get pods -o custom-columns=IP:.status.podIP --no-headers");
    assert_eq!(columns.lines().count(), 3);

    let described = cluster.kubectl(&format!("describe pod {}", name(&pods[0])));
    let events = described.split_once("Events:").expect("events").1;
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        assert!(events.contains(reason), "no {reason} in\n{described}");
    }
    for part in [
        "Controlled By:  ReplicaSet/nginx-demo-",
        "QoS Class:",
        "BestEffort",
        "Ready                       True",
    ] {
        assert!(described.contains(part), "no {part:?} in\n{described}");
    }
    let described = cluster.kubectl("describe deployment nginx-demo");
    for part in [
        "Replicas:               3 desired | 3 updated | 3 total | 3 available | 0 unavailable",
        "StrategyType:           RollingUpdate",
        "RollingUpdateStrategy:  25% max unavailable, 25% max surge",
        "NewReplicaSetAvailable",
        "MinimumReplicasAvailable",
        "ScalingReplicaSet",
    ] {
        assert!(described.contains(part), "no {part:?} in\n{described}");
    }
    assert!(
        described.contains("Scaled up replica set nginx-demo-"),
        "{described}"
    );
    let described = cluster.kubectl("describe replicaset -l app=nginx");
    for part in [
        "3 current / 3 desired",
        "3 Running / 0 Waiting / 0 Succeeded / 0 Failed",
        "SuccessfulCreate",
        "Created pod: nginx-demo-",
    ] {
        assert!(described.contains(part), "no {part:?} in\n{described}");
    }
    let explained = cluster.kubectl("explain deployment.spec.replicas");
    assert!(
        explained.contains("FIELD: replicas <integer>"),
        "{explained}"
    );
}

#[test]
fn each_pod_answers_on_its_own_address() {
    let mut cluster = Cluster::start();
    cluster.kubectl_args(&[
        "apply",
        "-f",
        images::nginx_demo().to_str().expect("a path"),
    ]);
    cluster.apply(&shell_pod("visitor", SERVE, "", ""));
    let pods = cluster.until_all_ready("app=nginx", 3);
    cluster.until_ready("visitor");
    let mut addresses: Vec<&str> = pods
        .iter()
        .map(|pod| pod["status"]["podIP"].as_str().expect("an address"))
        .collect();
    for address in &addresses {
        let answer = host::http_get(&format!("{address}:80")).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        let seen = cluster.kubectl(&format!("exec visitor -- wget -q -O- http://{address}/"));
        assert!(seen.contains("nginx"), "{seen}");
    }
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 3);
    // A pod reaches itself by its own address, too.
    let own = cluster.pod("visitor").expect("the pod")["status"]["podIP"]
        .as_str()
        .expect("an address")
        .to_owned();
    cluster.kubectl_args(&[
        "exec",
        "visitor",
        "--",
        "sh",
        "-c",
        "echo hello >/tmp/index.html; httpd -p 8080 -h /tmp",
    ]);
    let seen = cluster.kubectl(&format!("exec visitor -- wget -q -O- http://{own}:8080/"));
    assert_eq!(seen, "hello\n");
}
