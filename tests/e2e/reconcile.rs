//! What is, becomes what should be: replacement, scaling, rollouts, garbage collection.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use serde_json::Value;

use crate::cluster::{Cluster, SERVE, condition, container_status, is_ready, name, shell_pod};
use crate::{images, wait};

/// A Deployment of busybox whose pods end at once on SIGTERM.
fn busybox_deployment(name: &str, replicas: u32, more: &str) -> String {
    let more: String = more.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {name}\nspec:\n  replicas: {replicas}\n{more}  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    \
         spec:\n      terminationGracePeriodSeconds: 5\n      containers:\n      - name: main\n        image: busybox\n        \
         command: [sh, -c, \"{SERVE}\"]\n"
    )
}

/// Another name of the image `busybox`: it changes the template, and nothing else.
const OTHER_NAME: &str = "docker.io/library/busybox:latest";

#[test]
fn a_deleted_pod_is_replaced() {
    let mut cluster = Cluster::start();
    cluster.kubectl_args(&[
        "apply",
        "-f",
        images::nginx_demo().to_str().expect("a path"),
    ]);
    let before = cluster.until_all_ready("app=nginx", 3);
    let victim = name(&before[0]);
    let deleted = cluster.kubectl(&format!("delete pod {victim}"));
    assert_eq!(
        deleted,
        format!("pod \"{victim}\" deleted from default namespace\n")
    );
    assert!(
        cluster.pod(&victim).is_none(),
        "kubectl waits until the pod is gone"
    );
    let after = cluster.until_all_ready("app=nginx", 3);
    assert!(after.iter().all(|pod| name(pod) != victim));
    let survivors = after.iter().filter(|pod| {
        before
            .iter()
            .any(|old| old["metadata"]["uid"] == pod["metadata"]["uid"])
    });
    assert_eq!(survivors.count(), 2);
}

#[test]
fn get_pods_w_tells_the_story_of_a_replacement() {
    let mut cluster = Cluster::start();
    cluster.apply(&busybox_deployment("web", 1, ""));
    let victim = name(&cluster.until_all_ready("app=web", 1)[0]);
    let mut watch = Lines::of(&cluster, &["get", "pods", "-w", "-l", "app=web"]);
    assert_eq!(
        row(&watch.next())[..],
        ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    );
    assert_eq!(row(&watch.next())[..3], [victim.as_str(), "1/1", "Running"]);
    cluster.kubectl(&format!("delete pod {victim} --wait=false"));

    let (mut of_victim, mut of_heir) = (Vec::new(), Vec::new());
    while of_heir.last().map(String::as_str) != Some("1/1 Running")
        || cluster.pod(&victim).is_some()
    {
        let line = watch.next();
        let columns = row(&line);
        let seen = format!("{} {}", columns[1], columns[2]);
        let story = if columns[0] == victim {
            &mut of_victim
        } else {
            &mut of_heir
        };
        if story.last() != Some(&seen) {
            story.push(seen);
        }
    }
    assert_eq!(
        of_heir,
        ["0/1 Pending", "0/1 ContainerCreating", "1/1 Running"]
    );
    assert_eq!(of_victim[0], "1/1 Terminating", "{of_victim:?}");
    let allowed = ["1/1 Terminating", "0/1 Terminating", "0/1 Completed"];
    assert!(
        of_victim
            .iter()
            .all(|seen| allowed.contains(&seen.as_str())),
        "{of_victim:?}"
    );
}

fn row(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

/// The lines that a running kubectl prints, as they come.
struct Lines {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Lines {
    fn of(cluster: &Cluster, args: &[&str]) -> Self {
        let mut child = cluster
            .kubectl_command()
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            stdout
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    fn next(&mut self) -> String {
        self.lines.recv_timeout(wait::DEADLINE).expect("a line")
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn deletion_is_graceful_and_then_is_not() {
    let mut cluster = Cluster::start();
    // One ends on SIGTERM in its own time and with its own code, the other has to be killed.
    cluster.apply(
        &shell_pod(
            "polite",
            "trap 'sleep 1; exit 3' TERM; while :; do sleep 1000 & wait $!; done",
            "terminationGracePeriodSeconds: 60",
            "",
        )
        .replacen("  terminationGracePeriodSeconds: 1\n", "", 1),
    );
    cluster.apply(&shell_pod(
        "stubborn",
        "trap '' TERM; while :; do sleep 1000; done",
        "",
        "",
    ));
    cluster.until_ready("polite");
    cluster.until_ready("stubborn");
    let client = cluster.client();
    let last = |pod: &'static str| {
        let api: Api<Pod> = Api::default_namespaced(client.clone());
        let cluster = &cluster;
        cluster.block_on(async move {
            let version = api
                .get(pod)
                .await
                .expect("the pod")
                .metadata
                .resource_version
                .expect("a version");
            let params = WatchParams::default().fields(&format!("metadata.name={pod}"));
            let mut events = api.watch(&params, &version).await.expect("a watch").boxed();
            cluster.kubectl(&format!("delete pod {pod} --wait=false"));
            let mut exit = None;
            while let Some(event) = events.next().await {
                let (pod, gone) = match event.expect("an event") {
                    WatchEvent::Modified(pod) => (pod, false),
                    WatchEvent::Deleted(pod) => (pod, true),
                    other => panic!("{other:?}"),
                };
                let pod = serde_json::to_value(&pod).expect("JSON");
                assert!(!pod["metadata"]["deletionTimestamp"].is_null());
                exit = container_status(&pod)["state"]["terminated"]["exitCode"]
                    .as_i64()
                    .or(exit);
                if gone {
                    break;
                }
            }
            exit
        })
    };
    assert_eq!(last("polite"), Some(3));
    assert_eq!(last("stubborn"), Some(137));
}

#[test]
fn scaling_follows_the_number() {
    let mut cluster = Cluster::start();
    cluster.apply(&busybox_deployment("web", 1, ""));
    cluster.until_all_ready("app=web", 1);
    assert_eq!(
        cluster.kubectl("scale deployment web --replicas=4"),
        "deployment.apps/web scaled\n"
    );
    cluster.until_all_ready("app=web", 4);
    cluster.kubectl("scale deployment web --replicas=2");
    cluster.until_all_ready("app=web", 2);
    cluster.kubectl("scale deployment web --replicas=0");
    wait::until("no pods", || {
        cluster.get("/api/v1/namespaces/default/pods")?["items"]
            .as_array()?
            .is_empty()
            .then_some(())
    });
    let refused = cluster.try_kubectl("scale deployment web --replicas=3 --current-replicas=7");
    assert!(!refused.status.success());
}

#[test]
fn a_rolling_update_keeps_its_bounds() {
    let mut cluster = Cluster::start();
    let bounds = "strategy: {rollingUpdate: {maxSurge: 1, maxUnavailable: 1}}\nminReadySeconds: 1";
    cluster.apply(&busybox_deployment("web", 4, bounds));
    cluster.until_all_ready("app=web", 4);
    cluster.kubectl("rollout status deployment/web --timeout=60s");
    let client = cluster.client();
    let pods: Api<Pod> = Api::default_namespaced(client);
    let list = cluster
        .block_on(pods.list(&ListParams::default().labels("app=web")))
        .expect("a list");

    assert_eq!(
        cluster.kubectl(&format!("set image deployment/web main={OTHER_NAME}")),
        "deployment.apps/web image updated\n"
    );
    let version = list.metadata.resource_version.expect("a version");
    let mut present: std::collections::BTreeMap<String, Value> = list
        .items
        .iter()
        .map(|pod| serde_json::to_value(pod).expect("JSON"))
        .map(|pod| (name(&pod), pod))
        .collect();
    cluster.block_on(async {
        let mut events = pods
            .watch(&WatchParams::default().labels("app=web"), &version)
            .await
            .expect("a watch")
            .boxed();
        while let Some(event) = events.next().await {
            match event.expect("an event") {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
                    let pod = serde_json::to_value(&pod).expect("JSON");
                    present.insert(name(&pod), pod);
                }
                WatchEvent::Deleted(pod) => {
                    drop(present.remove(&pod.metadata.name.expect("a name")))
                }
                other => panic!("{other:?}"),
            }
            let living: Vec<&Value> = present
                .values()
                .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
                .collect();
            assert!(living.len() <= 5, "{} pods with maxSurge 1", living.len());
            let ready = living.iter().filter(|pod| is_ready(pod)).count();
            assert!(ready >= 3, "{ready} ready with maxUnavailable 1");
            let updated = living
                .iter()
                .filter(|pod| pod["spec"]["containers"][0]["image"] == OTHER_NAME);
            if present.len() == 4 && updated.filter(|pod| is_ready(pod)).count() == 4 {
                break;
            }
        }
    });
    let status = cluster.kubectl("rollout status deployment/web --timeout=60s");
    assert!(
        status.ends_with("deployment \"web\" successfully rolled out\n"),
        "{status}"
    );
}

#[test]
fn a_rollout_has_a_history() {
    let mut cluster = Cluster::start();
    cluster.apply(&busybox_deployment("web", 2, ""));
    cluster.kubectl("rollout status deployment/web --timeout=90s");
    cluster.kubectl("annotate deployment web kubernetes.io/change-cause=first");
    cluster.kubectl(&format!("set image deployment/web main={OTHER_NAME}"));
    cluster.kubectl("rollout status deployment/web --timeout=90s");
    cluster.kubectl("annotate deployment web kubernetes.io/change-cause=second --overwrite");
    wait::until("the cause is recorded", || {
        let history = cluster.kubectl("rollout history deployment/web");
        (history == "deployment.apps/web \nREVISION  CHANGE-CAUSE\n1         first\n2         second\n\n").then_some(())
    });
    let second = cluster.kubectl("rollout history deployment/web --revision=2");
    assert!(second.contains(OTHER_NAME), "{second}");

    assert_eq!(
        cluster.kubectl("rollout undo deployment/web"),
        "deployment.apps/web rolled back\n"
    );
    cluster.kubectl("rollout status deployment/web --timeout=90s");
    let pods = cluster.until_all_ready("app=web", 2);
    assert!(
        pods.iter()
            .all(|pod| pod["spec"]["containers"][0]["image"] == "busybox")
    );
    let web = cluster
        .get("/apis/apps/v1/namespaces/default/deployments/web")
        .expect("the Deployment");
    assert_eq!(
        web["metadata"]["annotations"]["deployment.kubernetes.io/revision"],
        "3"
    );
    let sets = cluster
        .get("/apis/apps/v1/namespaces/default/replicasets")
        .expect("the ReplicaSets");
    let revisions: BTreeSet<&str> = sets["items"]
        .as_array()
        .expect("items")
        .iter()
        .filter_map(|set| {
            set["metadata"]["annotations"]["deployment.kubernetes.io/revision"].as_str()
        })
        .collect();
    assert_eq!(
        revisions,
        BTreeSet::from(["2", "3"]),
        "the template of revision 1 became 3"
    );

    assert_eq!(
        cluster.kubectl("rollout pause deployment/web"),
        "deployment.apps/web paused\n"
    );
    cluster.kubectl(&format!("set image deployment/web main={OTHER_NAME}"));
    wait::until("the pause is observed", || {
        let web = cluster.get("/apis/apps/v1/namespaces/default/deployments/web")?;
        let observed = web["status"]["observedGeneration"] == web["metadata"]["generation"];
        (observed && condition(&web, "Progressing")["reason"] == "DeploymentPaused").then_some(())
    });
    assert!(
        cluster
            .pods("app=web")
            .iter()
            .all(|pod| pod["spec"]["containers"][0]["image"] == "busybox")
    );
    assert_eq!(
        cluster.kubectl("rollout resume deployment/web"),
        "deployment.apps/web resumed\n"
    );
    cluster.kubectl("rollout status deployment/web --timeout=90s");
    assert!(
        cluster
            .pods("app=web")
            .iter()
            .all(|pod| pod["spec"]["containers"][0]["image"] == OTHER_NAME)
    );

    let before: BTreeSet<String> = cluster
        .until_all_ready("app=web", 2)
        .iter()
        .map(name)
        .collect();
    assert_eq!(
        cluster.kubectl("rollout restart deployment/web"),
        "deployment.apps/web restarted\n"
    );
    cluster.kubectl("rollout status deployment/web --timeout=90s");
    let after: BTreeSet<String> = cluster
        .until_all_ready("app=web", 2)
        .iter()
        .map(name)
        .collect();
    assert!(before.is_disjoint(&after));
}

#[test]
fn a_rollout_that_can_not_finish_is_undone() {
    let mut cluster = Cluster::start();
    cluster.apply(&busybox_deployment("web", 2, "progressDeadlineSeconds: 3"));
    cluster.kubectl("rollout status deployment/web --timeout=90s");
    cluster.kubectl("set image deployment/web main=no-such-image");
    wait::until("the deadline is exceeded", || {
        let web = cluster.get("/apis/apps/v1/namespaces/default/deployments/web")?;
        (condition(&web, "Progressing")["reason"] == "ProgressDeadlineExceeded").then_some(())
    });
    let status = cluster.try_kubectl("rollout status deployment/web");
    assert_eq!(
        String::from_utf8_lossy(&status.stderr),
        "error: deployment \"web\" exceeded its progress deadline\n"
    );
    let running = cluster
        .pods("app=web")
        .iter()
        .filter(|pod| is_ready(pod))
        .count();
    assert_eq!(
        running, 2,
        "the old pods stay: maxUnavailable 25 % of 2 is 0"
    );
    cluster.kubectl("rollout undo deployment/web");
    cluster.kubectl("rollout status deployment/web --timeout=90s");
    cluster.until_all_ready("app=web", 2);
}

#[test]
fn recreate_never_mixes_versions() {
    let mut cluster = Cluster::start();
    cluster.apply(&busybox_deployment("web", 2, "strategy: {type: Recreate}"));
    cluster.kubectl("rollout status deployment/web --timeout=90s");
    cluster.kubectl(&format!("set image deployment/web main={OTHER_NAME}"));
    wait::until("the new version runs", || {
        let pods = cluster.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dweb")?["items"]
            .as_array()?
            .clone();
        // A pod whose containers have ended counts no more, though it is still there.
        let versions: BTreeSet<&str> = pods
            .iter()
            .filter(|pod| pod["status"]["phase"] != "Succeeded")
            .filter_map(|pod| pod["spec"]["containers"][0]["image"].as_str())
            .collect();
        assert!(versions.len() <= 1, "{versions:?}");
        (pods.len() == 2 && versions.contains(OTHER_NAME) && pods.iter().all(is_ready))
            .then_some(())
    });
}

#[test]
fn owners_take_their_dependents_along_or_leave_them() {
    let mut cluster = Cluster::start();
    let namespace = "/api/v1/namespaces/default/pods";
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    let empty = |cluster: &mut Cluster, path: &str| {
        wait::until(&format!("nothing at {path}"), || {
            cluster.get(path)?["items"]
                .as_array()?
                .is_empty()
                .then_some(())
        });
    };

    cluster.apply(&busybox_deployment("web", 2, ""));
    let pods = cluster.until_all_ready("app=web", 2);
    let set = cluster.get(sets).expect("the ReplicaSets")["items"][0].clone();
    let owner = &pods[0]["metadata"]["ownerReferences"][0];
    assert_eq!(owner["kind"], "ReplicaSet");
    assert_eq!(owner["uid"], set["metadata"]["uid"]);
    assert_eq!(
        (&owner["controller"], &owner["blockOwnerDeletion"]),
        (&Value::Bool(true), &Value::Bool(true))
    );
    assert_eq!(set["metadata"]["ownerReferences"][0]["kind"], "Deployment");
    cluster.kubectl("delete deployment web --cascade=background");
    empty(&mut cluster, sets);
    empty(&mut cluster, namespace);

    cluster.apply(&busybox_deployment("web", 2, ""));
    cluster.until_all_ready("app=web", 2);
    cluster.kubectl("delete deployment web --cascade=foreground");
    let left = cluster.get(namespace).expect("a list");
    assert_eq!(
        left["items"].as_array().map(Vec::len),
        Some(0),
        "foreground: the dependents went first"
    );

    cluster.apply(&busybox_deployment("web", 2, ""));
    let pods = cluster.until_all_ready("app=web", 2);
    cluster.kubectl("delete deployment web --cascade=orphan");
    let set = cluster.get(sets).expect("the ReplicaSets")["items"][0].clone();
    assert!(set["metadata"]["ownerReferences"].is_null(), "{set}");
    cluster.kubectl(&format!(
        "delete replicaset {} --cascade=orphan",
        name(&set)
    ));
    for pod in &pods {
        let pod = cluster.pod(&name(pod)).expect("orphans live on");
        assert!(pod["metadata"]["ownerReferences"].is_null(), "{pod}");
    }
    // A Deployment with the selector adopts what it finds.
    cluster.apply(&busybox_deployment("web", 2, ""));
    wait::until("the orphans are adopted", || {
        let now = cluster.pods("app=web");
        let adopted = now.iter().filter(|pod| {
            let old = pods
                .iter()
                .any(|p| p["metadata"]["uid"] == pod["metadata"]["uid"]);
            old && !pod["metadata"]["ownerReferences"].is_null()
        });
        (now.len() == 2 && adopted.count() == 2).then_some(())
    });
}
