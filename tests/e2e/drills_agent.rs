//! Drills and the agent that carries them out: it crashes, is restarted, is taken down, or plays a host that crashes.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::{Span, Timestamp};
use serde_json::{Value, json};
use skiff_agent::drill;

use crate::cluster::{Cluster, container_status};
use crate::drill_tasks::{
    LONG, are_stopped, begin, cluster_with_busybox, group_of, helpers, members, run_pod, state,
    until_forgotten, until_phase, upon,
};
use crate::{images, wait};

/// Long enough to begin some tasks on a busy machine.
const SHORT: i64 = 15;

#[test]
fn a_crash_of_the_agent_undoes_nothing_too_late_and_forgets_nothing() {
    let mut cluster = cluster_with_busybox();
    let pods: Vec<Value> = ["due", "kept", "burnt"]
        .map(|name| run_pod(&mut cluster, name, ""))
        .into();
    let group =
        |cluster: &Cluster, pod: &str| group_of(cluster.container_pid(pod, "main"), "memory");
    let (due, kept) = (group(&cluster, "due"), group(&cluster, "kept"));
    begin(
        &mut cluster,
        "due",
        &upon(&pods[0], "StopContainer", json!({})),
        SHORT,
    );
    begin(
        &mut cluster,
        "kept",
        &upon(&pods[1], "StopContainer", json!({})),
        LONG,
    );
    begin(
        &mut cluster,
        "burnt",
        &upon(&pods[2], "BurnCpu", json!({"workers": 1})),
        SHORT,
    );
    for task in ["due", "kept", "burnt"] {
        until_phase(&mut cluster, task, "Active");
    }
    cluster.crash();
    let over = Timestamp::now() + Span::new().seconds(SHORT + 1);
    wait::until("two of them are due", || {
        (Timestamp::now() > over).then_some(())
    });
    assert_eq!(
        helpers(&cluster),
        [0; 0],
        "a helper watches the clock itself"
    );
    assert!(are_stopped(&due) && are_stopped(&kept));
    assert_eq!(
        drill::open_tasks(&cluster.identity())
            .expect("a journal")
            .len(),
        3
    );
    cluster.up();
    for task in ["due", "burnt"] {
        until_phase(&mut cluster, task, "Ended");
    }
    let running = |group: &Path| members(group).iter().all(|pid| state(*pid) != Some('T'));
    wait::until("it goes on", || running(&due).then_some(()));
    assert!(are_stopped(&kept), "it is still wanted");

    // Somebody on the node asks, and the API hears of it.
    drill::ask_to_heal(&cluster.identity()).expect("asked");
    wait::until("it goes on", || running(&kept).then_some(()));
    let status = until_phase(&mut cluster, "kept", "Ended");
    assert!(
        status["message"].to_string().contains("undone on the node"),
        "{status}"
    );
    until_forgotten(&cluster);
}

#[test]
fn a_cluster_that_is_taken_down_in_the_middle_leaves_nothing() {
    let mut cluster = cluster_with_busybox();
    let limit = "resources: {limits: {memory: 64Mi}}";
    let pod = run_pod(&mut cluster, "pressed", limit);
    let hung = run_pod(&mut cluster, "hung", "");
    begin(
        &mut cluster,
        "hang",
        &upon(&hung, "StopContainer", json!({})),
        LONG,
    );
    begin(
        &mut cluster,
        "press",
        &upon(&pod, "TakeMemory", json!({"percent": 80})),
        LONG,
    );
    begin(
        &mut cluster,
        "burn",
        &json!({"type": "BurnCpu", "workers": 1}),
        LONG,
    );
    for task in ["hang", "press", "burn"] {
        until_phase(&mut cluster, task, "Active");
    }
    cluster.crash();
    cluster.skiff(["down"]);
    assert_eq!(helpers(&cluster), [0; 0]);
    assert_eq!(
        drill::open_tasks(&cluster.identity()).expect("a journal"),
        [""; 0]
    );
    // Nothing is begun again, and what was undone is told.
    cluster.up();
    for task in ["hang", "press", "burn"] {
        let status = until_phase(&mut cluster, task, "Ended");
        assert!(
            status["message"].to_string().contains("agent did not run"),
            "{status}"
        );
    }
    cluster.until_ready("hung");
    until_forgotten(&cluster);
}

#[test]
fn an_agent_that_is_restarted_leaves_its_pods_alone() {
    let mut cluster = cluster_with_busybox();
    run_pod(&mut cluster, "steady", "");
    let (server, main) = (
        cluster.server_pid(),
        cluster.container_pid("steady", "main"),
    );
    begin(
        &mut cluster,
        "restart",
        &json!({"type": "RestartAgent"}),
        LONG,
    );
    let status = until_phase(&mut cluster, "restart", "Ended");
    assert!(status["startedAt"].is_string());
    assert!(Path::new(&format!("/proc/{server}")).exists());
    assert_eq!(cluster.container_pid("steady", "main"), main);
    until_forgotten(&cluster);
}

/// `skiff agent` beside a control plane; it and all of its node end with this.
struct Guest {
    agent: std::process::Child,
    data: PathBuf,
}

impl Guest {
    fn join(cluster: &Cluster) -> Self {
        let data = cluster.scratch().join("agent");
        fs::create_dir(&data).expect("a directory");
        let busybox = images::demonstration().join("busybox.tar");
        let guest = |args: &[&str]| {
            let mut skiff = std::process::Command::new(env!("CARGO_BIN_EXE_skiff"));
            skiff.args(args).arg("--data-dir").arg(&data);
            skiff
        };
        let imported = guest(&["image", "import"]).arg(busybox).output();
        crate::cluster::succeeded("skiff image import", &imported.expect("skiff starts"));
        let token = crate::joining::token(cluster, "1h");
        let agent = crate::joining::agent(cluster, Some(&token))
            .stdout(std::process::Stdio::null())
            .spawn()
            .expect("skiff starts");
        Self { agent, data }
    }

    fn skiff(&self, command: &str) -> std::process::Output {
        std::process::Command::new(env!("CARGO_BIN_EXE_skiff"))
            .args(command.split(' '))
            .arg("--data-dir")
            .arg(&self.data)
            .output()
            .expect("skiff starts")
    }

    /// The main process of the only container.
    fn container_pid(&self) -> i32 {
        let listed = crate::cluster::succeeded("skiff ps", &self.skiff("ps -o json"));
        let listed: Value = serde_json::from_str(&listed).expect("JSON");
        listed[0]["pid"].as_i64().expect("a process") as i32
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        let _ = self.skiff("down --purge");
    }
}

#[test]
fn a_host_that_crashes_comes_back_by_itself() {
    let mut cluster = Cluster::server(&[]);
    let mut guest = Guest::join(&cluster);
    crate::nodes::until_ready_is(&mut cluster, "guest", "True");
    run_pod(&mut cluster, "passenger", "");
    let main = guest.container_pid();
    let crash = json!({"type": "CrashNode", "node": "guest"});
    begin(&mut cluster, "crash", &crash, 8);
    until_phase(&mut cluster, "crash", "Active");
    wait::until("the container is gone", || {
        (!Path::new(&format!("/proc/{main}")).exists()).then_some(())
    });
    crate::nodes::until_ready_is(&mut cluster, "guest", "Unknown");
    let identity = skiff_agent::identity::Identity::of(&guest.data).expect("an identity");
    let mut left = crate::host::traces(&identity);
    left.retain(|trace| !trace.contains(&guest.agent.id().to_string()));
    assert_eq!(left, Vec::<String>::new());

    until_phase(&mut cluster, "crash", "Ended");
    crate::nodes::until_ready_is(&mut cluster, "guest", "True");
    assert!(
        guest.agent.try_wait().expect("its state").is_none(),
        "it is the same process"
    );
    cluster.until_pod("passenger", "started anew", |pod| {
        container_status(pod)["restartCount"].as_i64() >= Some(1) && crate::cluster::is_ready(pod)
    });
}
