//! A node of its own for each test: a runtime, an image of busybox, and pods to run it in.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use serde_json::{Value, json};
use skiff_agent::identity::Identity;
use skiff_agent::runtime::types::{
    CgroupResources, ContainerConfig, ContainerRecord, ContainerState, QosClass, SandboxConfig,
    SandboxState,
};
use skiff_agent::runtime::{Runtime, RuntimeError, Sandbox, purge};
use tempfile::TempDir;

/// Nothing here takes longer on a machine that works.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    pub(crate) runtime: Runtime,
    pub(crate) identity: Identity,
    layer: PathBuf,
    next: AtomicU32,
    _data: TempDir,
}

impl Node {
    pub(crate) async fn new() -> Self {
        let data = tempfile::Builder::new()
            .prefix("skiff-test-")
            .tempdir()
            .unwrap();
        let identity = Identity::of(data.path()).unwrap();
        let layer = data.path().join("layer");
        build_layer(&layer);
        Self {
            runtime: Runtime::new(identity.clone()).await.unwrap(),
            identity,
            layer,
            next: AtomicU32::new(1),
            _data: data,
        }
    }

    pub(crate) fn sandbox_config(&self, name: &str) -> SandboxConfig {
        let uid = format!("uid-{name}");
        let pod_dir = self.identity.pod_dir("default", name, &uid);
        std::fs::create_dir_all(&pod_dir).unwrap();
        SandboxConfig {
            namespace: "default".to_owned(),
            name: name.to_owned(),
            uid,
            hostname: Some(name.to_owned()),
            host_network: false,
            host_ipc: false,
            host_pid: false,
            share_process_namespace: false,
            pod_dir,
            sysctls: BTreeMap::new(),
            qos: QosClass::Burstable,
            resources: CgroupResources::default(),
        }
    }

    pub(crate) async fn pod(&self, name: &str) -> Sandbox {
        let config = self.sandbox_config(name);
        self.runtime.create_sandbox(config).await.unwrap()
    }

    /// A container that runs a shell script, with what `container` adds to its declaration.
    pub(crate) fn shell(
        &self,
        sandbox: &Sandbox,
        script: &str,
        container: Value,
    ) -> ContainerConfig {
        self.container(sandbox, &["sh", "-c", script], container)
    }

    pub(crate) fn container(
        &self,
        sandbox: &Sandbox,
        command: &[&str],
        container: Value,
    ) -> ContainerConfig {
        let attempt = self.next.fetch_add(1, Ordering::Relaxed);
        let mut declared = json!({"name": "main", "image": "busybox", "command": command});
        merge(&mut declared, container);
        let image = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        let config = sandbox.config();
        let pod = core::Pod {
            spec: Some(core::PodSpec::default()),
            ..core::Pod::default()
        };
        ContainerConfig {
            id: format!("{attempt:064x}"),
            name: "main".to_owned(),
            attempt,
            pod,
            container: serde_json::from_value(declared).unwrap(),
            image_id: "sha256:0".to_owned(),
            image: serde_json::from_value(image).unwrap(),
            layers: vec![self.layer.clone()],
            env: Vec::new(),
            mounts: Vec::new(),
            log_path: config.pod_dir.join("main").join(format!("{attempt}.log")),
            resources: CgroupResources::default(),
            oom_score_adj: 500,
        }
    }

    /// Creates and starts a container.
    pub(crate) async fn start(
        &self,
        sandbox: &Sandbox,
        config: ContainerConfig,
    ) -> ContainerRecord {
        let record = sandbox.create_container(config).await.unwrap();
        assert_eq!(record.state, ContainerState::Created);
        sandbox.start_container(&record.id).await.unwrap()
    }

    /// Runs a container to its end and returns its ending and its output.
    pub(crate) async fn run(&self, sandbox: &Sandbox, config: ContainerConfig) -> (Ended, String) {
        let log = config.log_path.clone();
        let record = self.start(sandbox, config).await;
        let ended = ended(sandbox, &record.id).await;
        (ended, output(&log))
    }

    /// Ends the test's node, and looks that nothing is left of it.
    pub(crate) async fn finish(self) {
        purge(self.identity.clone()).await.unwrap();
        assert_eq!(leftovers(&self.identity), Vec::<String>::new());
    }
}

impl Drop for Node {
    /// A test that failed cleans up too.
    fn drop(&mut self) {
        let identity = self.identity.clone();
        let cleaner = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime
                .unwrap()
                .block_on(async { drop(purge(identity).await) });
        });
        let _ = cleaner.join();
    }
}

/// How a container ended.
#[derive(Debug, PartialEq)]
pub(crate) struct Ended {
    pub(crate) exit_code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) oom_killed: bool,
    pub(crate) lost: bool,
}

/// Waits until a sandbox's state is as wanted.
pub(crate) async fn until(sandbox: &Sandbox, wanted: impl Fn(&SandboxState) -> bool) {
    let mut watch = sandbox.watch();
    let waited = tokio::time::timeout(DEADLINE, watch.wait_for(wanted)).await;
    waited.expect("in time").unwrap();
}

pub(crate) async fn ended(sandbox: &Sandbox, id: &str) -> Ended {
    until(sandbox, |state| {
        state
            .containers
            .get(id)
            .is_some_and(ContainerRecord::has_exited)
    })
    .await;
    match sandbox.container(id).unwrap().state {
        ContainerState::Exited {
            exit_code,
            signal,
            oom_killed,
            lost,
            ..
        } => Ended {
            exit_code,
            signal,
            oom_killed,
            lost,
        },
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn pid(sandbox: &Sandbox, id: &str) -> i32 {
    until(sandbox, |state| {
        state
            .containers
            .get(id)
            .is_some_and(|record| record.pid().is_some())
    })
    .await;
    sandbox.container(id).unwrap().pid().unwrap()
}

/// Waits until something is as wanted that nobody tells of.
pub(crate) async fn eventually(mut wanted: impl FnMut() -> bool) {
    let waiting = async {
        while !wanted() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting)
        .await
        .expect("in time");
}

/// The text of a log file, without times and streams.
pub(crate) fn output(log: &std::path::Path) -> String {
    let bytes = std::fs::read(log).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    let mut output = String::new();
    for line in text.lines() {
        let mut fields = line.splitn(4, ' ').skip(2);
        let mark = fields.next().unwrap();
        output.push_str(fields.next().unwrap());
        if mark == "F" {
            output.push('\n');
        }
    }
    output
}

pub(crate) fn reason(result: Result<ContainerRecord, RuntimeError>) -> (&'static str, String) {
    let error = result.unwrap_err();
    (error.reason(), error.to_string())
}

/// What a node has left on the host.
pub(crate) fn leftovers(identity: &Identity) -> Vec<String> {
    let mut found = Vec::new();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let run_dir = identity.run_dir().display().to_string();
    let mine = mounts.lines().filter(|line| line.contains(&run_dir));
    found.extend(mine.map(str::to_owned));
    if identity.run_dir().exists() {
        found.push(run_dir);
    }
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
        let group = hierarchy.path().join(identity.cgroup_root());
        if group.exists() {
            found.push(group.display().to_string());
        }
    }
    let bin = identity.agent_root().display().to_string();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        if let Ok(exe) = std::fs::read_link(process.path().join("exe"))
            && exe.display().to_string().starts_with(&bin)
        {
            found.push(exe.display().to_string());
        }
    }
    found
}

/// A root file system with busybox, and two users.
fn build_layer(layer: &std::path::Path) {
    let bin = layer.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .expect("busybox-static is needed");
    std::fs::copy(busybox, bin.join("busybox")).unwrap();
    let applets = [
        "sh", "cat", "echo", "sleep", "ls", "id", "env", "pwd", "hostname", "dd", "tail", "grep",
        "mount", "umount", "ps", "kill", "touch", "stat", "printf", "unshare", "awk", "yes",
        "head", "ip", "stty", "mknod", "ipcs", "df", "wc", "chmod", "tr", "seq", "setsid", "date",
    ];
    for applet in applets {
        std::os::unix::fs::symlink("busybox", bin.join(applet)).unwrap();
    }
    let etc = layer.join("etc");
    std::fs::create_dir_all(&etc).unwrap();
    let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/srv:/bin/sh\n";
    std::fs::write(etc.join("passwd"), passwd).unwrap();
    let group = "root:x:0:\nweb:x:102:\nextra:x:103:web\n";
    std::fs::write(etc.join("group"), group).unwrap();
    std::fs::create_dir_all(layer.join("tmp")).unwrap();
    let sticky = std::fs::Permissions::from_mode(0o1777);
    std::fs::set_permissions(layer.join("tmp"), sticky).unwrap();
}

/// Puts the fields of one object into another.
fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}
