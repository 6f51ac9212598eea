//! Tasks of drills, made by hand as the drill controller makes them for a node's agent, and what they do to
//! processes, seen from outside.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::{Span, Timestamp};
use serde_json::{Value, json};

use crate::cluster::{Cluster, SERVE, shell_pod};
use crate::{images, wait};

/// Longer than any test.
pub(crate) const LONG: i64 = 600;

/// A task of the only node, made now and due in `seconds`.
pub(crate) fn begin(cluster: &mut Cluster, task: &str, action: &Value, seconds: i64) {
    let nodes = cluster.get("/api/v1/nodes").expect("nodes");
    let until = Timestamp::now() + Span::new().seconds(seconds);
    let task = json!({
        "apiVersion": "skiff.dev/v1", "kind": "DrillTask",
        "metadata": {"name": task, "finalizers": ["skiff.dev/undo"]},
        "spec": {"drill": "by-hand", "nodeName": nodes["items"][0]["metadata"]["name"], "action": action,
                 "until": format!("{until:.6}")},
    });
    cluster.apply(&task.to_string());
}

pub(crate) fn stop(cluster: &Cluster, task: &str) {
    let stop = r#"{"spec":{"stop":true}}"#;
    cluster.kubectl_args(&["patch", "drilltask", task, "--type=merge", "-p", stop]);
}

/// The task, once it is in a phase; its status is given.
pub(crate) fn until_phase(cluster: &mut Cluster, task: &str, phase: &str) -> Value {
    let path = format!("/apis/skiff.dev/v1/drilltasks/{task}");
    wait::until(&format!("task {task} is {phase}"), || {
        let found = cluster.get(&path)?;
        let now = found["status"]["phase"].as_str()?;
        let over = |phase: &str| ["Ended", "Failed"].contains(&phase);
        assert!(now == phase || !over(now), "{task}: {}", found["status"]);
        // The finalizer goes last, once it is over.
        let held = found["metadata"]["finalizers"].as_array();
        let released = held.is_none_or(Vec::is_empty);
        (now == phase && released == over(phase)).then(|| found["status"].clone())
    })
}

/// Nothing of any task is left in the node's directory.
pub(crate) fn until_forgotten(cluster: &Cluster) {
    let directory = cluster.identity().drills_dir();
    wait::until("nothing of a task is left", || {
        let left = fs::read_dir(&directory).expect("a directory").count();
        (left == 0).then_some(())
    });
}

pub(crate) fn pod_ref(pod: &Value) -> Value {
    let meta = &pod["metadata"];
    json!({"namespace": "default", "name": meta["name"], "uid": meta["uid"]})
}

/// An action upon the container `main` of a pod.
pub(crate) fn upon(pod: &Value, action: &str, mut more: Value) -> Value {
    more["type"] = action.into();
    more["pod"] = pod_ref(pod);
    more["container"] = "main".into();
    more
}

/// A running pod of busybox.
pub(crate) fn run_pod(cluster: &mut Cluster, name: &str, container: &str) -> Value {
    cluster.apply(&shell_pod(name, SERVE, "", container));
    cluster.until_ready(name)
}

pub(crate) fn cluster_with_busybox() -> Cluster {
    let cluster = Cluster::start_empty();
    cluster.import(&images::demonstration().join("busybox.tar"));
    cluster
}

/// The directory of a process's control group for one controller.
pub(crate) fn group_of(pid: i32, controller: &str) -> PathBuf {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its groups");
    let mut unified = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (
            fields.next().expect("fields"),
            fields.next().expect("fields"),
        );
        let root = Path::new("/sys/fs/cgroup");
        if controllers.split(',').any(|name| name == controller) {
            return root.join(controllers).join(&path[1..]);
        }
        if controllers.is_empty() {
            unified = Some(root.join(&path[1..]));
        }
    }
    unified.expect("a group")
}

pub(crate) fn members(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The state of a process: `S`, `T` ...
pub(crate) fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

pub(crate) fn are_stopped(group: &Path) -> bool {
    let members = members(group);
    !members.is_empty() && members.iter().all(|pid| state(*pid) == Some('T'))
}

/// Helpers of drills that run with this data directory's cluster: they are in its groups.
pub(crate) fn helpers(cluster: &Cluster) -> Vec<i32> {
    let root = cluster.identity().cgroup_root();
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let pids = processes.filter_map(|process| process.file_name().to_str()?.parse::<i32>().ok());
    let ours = |pid: &i32| {
        let read = |file: &str| fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let command = read("cmdline");
        let groups = String::from_utf8_lossy(&read("cgroup")).into_owned();
        command.split(|byte| *byte == 0).nth(1) == Some(b"drill-helper") && groups.contains(&root)
    };
    pids.filter(ours).collect()
}
