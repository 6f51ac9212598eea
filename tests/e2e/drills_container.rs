//! What drills do to containers and to a node's own means: each task is made by hand, as the drill controller
//! makes it, and looked at from outside.

use std::fs;
use std::path::{Path, PathBuf};

use jiff::{Span, Timestamp};
use serde_json::{Value, json};
use skiff_agent::drill;

use crate::cluster::{Cluster, SERVE, condition, container_status, name, shell_pod};
use crate::registry::debian::{Access, DebianRegistry};
use crate::{images, wait};

/// Longer than any test.
const LONG: i64 = 600;
/// Long enough to begin some tasks on a busy machine.
const SHORT: i64 = 15;

/// A task of the only node, made now and due in `seconds`.
fn begin(cluster: &mut Cluster, task: &str, action: &Value, seconds: i64) {
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

fn stop(cluster: &Cluster, task: &str) {
    let stop = r#"{"spec":{"stop":true}}"#;
    cluster.kubectl_args(&["patch", "drilltask", task, "--type=merge", "-p", stop]);
}

/// The task, once it is in a phase; its status is given.
fn until_phase(cluster: &mut Cluster, task: &str, phase: &str) -> Value {
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
fn until_forgotten(cluster: &Cluster) {
    let directory = cluster.identity().drills_dir();
    wait::until("nothing of a task is left", || {
        let left = fs::read_dir(&directory).expect("a directory").count();
        (left == 0).then_some(())
    });
}

fn pod_ref(pod: &Value) -> Value {
    let meta = &pod["metadata"];
    json!({"namespace": "default", "name": meta["name"], "uid": meta["uid"]})
}

/// An action upon the container `main` of a pod.
fn upon(pod: &Value, action: &str, mut more: Value) -> Value {
    more["type"] = action.into();
    more["pod"] = pod_ref(pod);
    more["container"] = "main".into();
    more
}

/// A running pod of busybox.
fn run_pod(cluster: &mut Cluster, name: &str, container: &str) -> Value {
    cluster.apply(&shell_pod(name, SERVE, "", container));
    cluster.until_ready(name)
}

fn cluster_with_busybox() -> Cluster {
    let cluster = Cluster::start_empty();
    cluster.import(&images::demonstration().join("busybox.tar"));
    cluster
}

/// The directory of a process's control group for one controller.
fn group_of(pid: i32, controller: &str) -> PathBuf {
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

fn members(group: &Path) -> Vec<i32> {
    let text = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    text.lines().filter_map(|line| line.parse().ok()).collect()
}

/// The state of a process: `S`, `T` ...
fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn are_stopped(group: &Path) -> bool {
    let members = members(group);
    !members.is_empty() && members.iter().all(|pid| state(*pid) == Some('T'))
}

/// Helpers of drills that run with this data directory's cluster: they are in its groups.
fn helpers(cluster: &Cluster) -> Vec<i32> {
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

#[test]
fn a_container_is_killed_once_and_what_can_not_be_done_is_refused() {
    let mut cluster = cluster_with_busybox();
    let pod = run_pod(&mut cluster, "victim", "");
    let other = run_pod(&mut cluster, "other", "");
    begin(
        &mut cluster,
        "kill",
        &upon(&pod, "KillContainer", json!({})),
        LONG,
    );
    let status = until_phase(&mut cluster, "kill", "Ended");
    assert!(
        status["startedAt"].as_str() <= status["endedAt"].as_str(),
        "{status}"
    );
    let killed = cluster.until_pod("victim", "started anew", |pod| {
        container_status(pod)["restartCount"] == 1
    });
    let end = &container_status(&killed)["lastState"]["terminated"];
    assert_eq!(
        (&end["exitCode"], &end["reason"]),
        (&json!(137), &json!("Error"))
    );
    until_forgotten(&cluster);

    let elsewhere = json!({"type": "KillContainer", "container": "main",
        "pod": {"namespace": "default", "name": "nobody", "uid": "../../etc"}});
    let mut wrong = upon(&pod, "KillContainer", json!({}));
    wrong["container"] = "sidecar".into();
    let limitless = upon(&other, "TakeMemory", json!({"percent": 90}));
    let crowd = upon(&other, "BurnCpu", json!({"workers": 0}));
    for (task, action, seconds, message) in [
        (
            "elsewhere",
            &elsewhere,
            LONG,
            "pod default/nobody does not run on node",
        ),
        (
            "wrong",
            &wrong,
            LONG,
            "pod default/victim has not started container \"sidecar\"",
        ),
        (
            "late",
            &upon(&other, "KillContainer", json!({})),
            -1,
            "it was to end before it had begun",
        ),
        (
            "limitless",
            &limitless,
            LONG,
            "container \"main\" has no memory limit",
        ),
        ("crowd", &crowd, LONG, "0 workers"),
        (
            "shared",
            &json!({"type": "FillDisk", "leave": 0, "sharedDisk": false}),
            LONG,
            "set parameters.sharedDisk",
        ),
        (
            "offline",
            &json!({"type": "RefuseRegistries", "registries": []}),
            LONG,
            "--offline",
        ),
        (
            "crash",
            &json!({"type": "CrashNode", "node": "another"}),
            LONG,
            "not another",
        ),
    ] {
        begin(&mut cluster, task, action, seconds);
        let status = until_phase(&mut cluster, task, "Failed");
        let said = status["message"].as_str().unwrap_or_default();
        assert!(said.contains(message), "{task}: {said}");
        assert_eq!(status["startedAt"], Value::Null, "{task}");
    }
    let other = cluster.pod("other").expect("the pod");
    assert_eq!(container_status(&other)["restartCount"], 0);
    until_forgotten(&cluster);
}

#[test]
fn the_kernel_kills_a_container_whose_memory_is_used_up() {
    let mut cluster = cluster_with_busybox();
    let limit = "resources: {limits: {memory: 48Mi}}";
    let limited = run_pod(&mut cluster, "limited", limit);
    let limitless = run_pod(&mut cluster, "limitless", "");
    for (pod, task) in [(&limited, "oom-1"), (&limitless, "oom-2")] {
        begin(
            &mut cluster,
            task,
            &upon(pod, "ExhaustMemory", json!({})),
            LONG,
        );
    }
    for task in ["oom-1", "oom-2"] {
        let status = until_phase(&mut cluster, task, "Ended");
        assert_eq!(status["message"], Value::Null);
    }
    for pod in ["limited", "limitless"] {
        let killed = cluster.until_pod(pod, "started anew", |pod| {
            container_status(pod)["restartCount"] == 1
        });
        let end = &container_status(&killed)["lastState"]["terminated"];
        assert_eq!(
            (&end["exitCode"], &end["reason"]),
            (&json!(137), &json!("OOMKilled")),
            "{pod}"
        );
        // Whatever limit it had for the time went with it.
        let group = group_of(cluster.container_pid(pod, "main"), "memory");
        let now = fs::read_to_string(group.join("memory.limit_in_bytes"))
            .or_else(|_| fs::read_to_string(group.join("memory.max")))
            .expect("a limit");
        let limit = now.trim().parse::<u64>().unwrap_or(u64::MAX);
        assert_eq!(limit == 48 << 20, pod == "limited", "{pod}: {now}");
    }
    assert_eq!(helpers(&cluster), [0; 0]);
    until_forgotten(&cluster);
}

#[test]
fn a_container_that_hangs_goes_on_when_it_may_or_is_restarted_by_its_probe() {
    let mut cluster = cluster_with_busybox();
    let pod = run_pod(&mut cluster, "hung", "");
    let group = group_of(cluster.container_pid("hung", "main"), "memory");
    begin(
        &mut cluster,
        "hang",
        &upon(&pod, "StopContainer", json!({})),
        LONG,
    );
    until_phase(&mut cluster, "hang", "Active");
    assert!(are_stopped(&group), "{:?}", members(&group));
    // What is put into it later hangs too.
    let mut command = cluster.kubectl_command();
    let mut entered = command
        .args(["exec", "hung", "--", "sleep", "1000"])
        .spawn()
        .expect("kubectl starts");
    wait::until("the entered process hangs", || {
        let sleeping = members(&group).into_iter().find(|pid| {
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline"));
            command.unwrap_or_default().starts_with("sleep\0") && state(*pid) == Some('T')
        })?;
        are_stopped(&group).then_some(sleeping)
    });
    stop(&cluster, "hang");
    until_phase(&mut cluster, "hang", "Ended");
    let running = |pid: &i32| state(*pid).is_some_and(|state| state != 'T');
    wait::until("all go on", || {
        members(&group).iter().all(running).then_some(())
    });
    entered.kill().expect("SIGKILL");
    entered.wait().expect("its end");

    let probe = "livenessProbe: {exec: {command: [sh, -c, \"rm -f /alive; sleep 0.5; test -e /alive\"]}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 2}";
    let lively = "trap 'exit 0' TERM; while :; do touch /alive; sleep 0.1; done";
    cluster.apply(&shell_pod("probed", lively, "", probe));
    let pod = cluster.until_ready("probed");
    begin(
        &mut cluster,
        "probed",
        &upon(&pod, "StopContainer", json!({})),
        LONG,
    );
    cluster.until_pod("probed", "started anew", |pod| {
        container_status(pod)["restartCount"].as_i64() >= Some(1)
    });
    // Its successor is none of the task's business.
    until_phase(&mut cluster, "probed", "Ended");
    let group = group_of(cluster.container_pid("probed", "main"), "memory");
    assert!(!are_stopped(&group));
    let untouched = cluster.pod("hung").expect("the pod");
    assert_eq!(container_status(&untouched)["restartCount"], 0);
}

#[test]
fn a_container_is_pressed_without_being_killed() {
    let mut cluster = cluster_with_busybox();
    let limit = "resources: {limits: {memory: 96Mi}}";
    let pod = run_pod(&mut cluster, "pressed", limit);
    let pid = cluster.container_pid("pressed", "main");
    let number = |group: &Path, files: [&str; 2]| {
        let text = files
            .iter()
            .find_map(|file| fs::read_to_string(group.join(file)).ok());
        text.expect("a file")
            .trim()
            .parse::<u64>()
            .expect("a number")
    };
    let memory = group_of(pid, "memory");
    let in_use = || number(&memory, ["memory.usage_in_bytes", "memory.current"]);
    begin(
        &mut cluster,
        "press",
        &upon(&pod, "TakeMemory", json!({"percent": 90})),
        LONG,
    );
    until_phase(&mut cluster, "press", "Active");
    wait::until("the memory is in use", || {
        (in_use() > 80 << 20).then_some(())
    });

    begin(
        &mut cluster,
        "burn",
        &upon(&pod, "BurnCpu", json!({"workers": 2})),
        LONG,
    );
    until_phase(&mut cluster, "burn", "Active");
    let cpu = group_of(pid, "cpuacct");
    let used = || {
        let stat = fs::read_to_string(cpu.join("cpu.stat")).unwrap_or_default();
        let unified = stat
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "));
        match unified {
            Some(micros) => micros.parse::<u64>().expect("a number") * 1000,
            None => number(&cpu, ["cpuacct.usage", "cpuacct.usage"]),
        }
    };
    let before = used();
    wait::until("CPU time is used up", || {
        (used() > before + 1_000_000_000).then_some(())
    });
    assert_eq!(helpers(&cluster).len(), 2);

    for task in ["press", "burn"] {
        stop(&cluster, task);
        until_phase(&mut cluster, task, "Ended");
    }
    assert_eq!(helpers(&cluster), [0; 0]);
    wait::until("the memory is given back", || {
        (in_use() < 20 << 20).then_some(())
    });
    let pressed = cluster.pod("pressed").expect("the pod");
    assert_eq!(container_status(&pressed)["restartCount"], 0);
    assert_eq!(cluster.container_pid("pressed", "main"), pid);

    // Of the node, and until it is due.
    begin(
        &mut cluster,
        "node",
        &json!({"type": "BurnCpu", "workers": 1}),
        3,
    );
    until_phase(&mut cluster, "node", "Active");
    assert_eq!(helpers(&cluster).len(), 1);
    let status = until_phase(&mut cluster, "node", "Ended");
    assert!(status["endedAt"].as_str() > status["startedAt"].as_str());
    assert_eq!(helpers(&cluster), [0; 0]);
}

/// A small disk of a node's own.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).expect("a directory");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some("size=96m"))
            .expect("a tmpfs");
        Self(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_full_disk_is_told_of_and_emptied_again() {
    let disk;
    let mut cluster = Cluster::new();
    disk = Disk::mount(&cluster.identity().agent_root());
    cluster.up();
    cluster.import(&images::demonstration().join("busybox.tar"));
    run_pod(&mut cluster, "here", "");
    let node = cluster.get("/api/v1/nodes").expect("nodes")["items"][0].clone();
    let path = format!("/api/v1/nodes/{}", name(&node));
    let pressure = |cluster: &mut Cluster, wanted: &str| {
        wait::until(&format!("DiskPressure is {wanted}"), || {
            let node = cluster.get(&path)?;
            (condition(&node, "DiskPressure")["status"] == wanted).then_some(())
        });
    };
    pressure(&mut cluster, "False");
    begin(
        &mut cluster,
        "fill",
        &json!({"type": "FillDisk", "leave": 1 << 20, "sharedDisk": false}),
        LONG,
    );
    until_phase(&mut cluster, "fill", "Active");
    let free = || {
        let stat = nix::sys::statvfs::statvfs(&disk.0).expect("a file system");
        stat.blocks_free() * stat.fragment_size()
    };
    assert!(free() <= 1 << 20, "{}", free());
    pressure(&mut cluster, "True");
    stop(&cluster, "fill");
    until_phase(&mut cluster, "fill", "Ended");
    assert!(free() > 10 << 20, "{}", free());
    pressure(&mut cluster, "False");
    until_forgotten(&cluster);
    assert_eq!(
        container_status(&cluster.until_ready("here"))["restartCount"],
        0
    );
    cluster.stop();
    cluster.skiff(["down"]);
    drop(disk);
}

#[test]
fn registries_are_out_for_this_node_until_they_are_not() {
    let mut cluster = Cluster::new();
    let registry = DebianRegistry::start(None, &Access::Anyone);
    crate::pull::push(&registry, &Access::Anyone);
    let config = cluster.scratch().join("registries.d");
    fs::create_dir_all(&config).expect("a folder");
    cluster.set_registries(&config);
    cluster.up();
    let outage = json!({"type": "RefuseRegistries", "registries": [registry.host()]});
    begin(&mut cluster, "outage", &outage, LONG);
    until_phase(&mut cluster, "outage", "Active");
    let image = format!("{}/nginx:1", registry.host());
    cluster.apply(&shell_pod("web", "sleep 1000", "", "").replacen(
        "image: busybox",
        &format!("image: {image}"),
        1,
    ));
    let failed = cluster.until_pod("web", "not pulled", |pod| {
        container_status(pod)["state"]["waiting"]["reason"] == "ErrImagePull"
    });
    let message = container_status(&failed)["state"]["waiting"]["message"]
        .as_str()
        .unwrap_or_default();
    assert!(
        message.contains("connection refused (registry-outage drill)"),
        "{message}"
    );
    let events = cluster.kubectl("events --for pod/web");
    assert!(events.contains("registry-outage drill"), "{events}");
    // Only the agent's own client is concerned.
    let address = registry.host().to_owned();
    assert!(std::net::TcpStream::connect(address).is_ok());
    stop(&cluster, "outage");
    until_phase(&mut cluster, "outage", "Ended");
    cluster.until_pod("web", "pulled", |pod| {
        container_status(pod)["state"]["waiting"]["reason"] != "ErrImagePull"
            && container_status(pod)["imageID"]
                .as_str()
                .is_some_and(|id| !id.is_empty())
    });
}

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
    let mut cluster = Cluster::server_of_this_host();
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
