//! A cluster of one test's own: `skiff up` on a fresh data directory, and the means to drive it.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use skiff_agent::identity::Identity;

use crate::{host, images, wait};

pub(crate) struct Cluster {
    scratch: tempfile::TempDir,
    port: Port,
    server: Option<Child>,
    /// Where it is said how registries are reached; without, the cluster runs offline.
    registries: Option<PathBuf>,
    runtime: tokio::runtime::Runtime,
    client: Option<kube::Client>,
    /// `up`, or `server` for a control plane without a node.
    command: &'static str,
    /// The nodes of `up --nodes`.
    nodes: usize,
    /// Beside what every cluster is started with.
    pub(crate) options: Vec<String>,
}

/// A port that no other test uses, below those that the kernel hands out; free again when dropped.
struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    fn take() -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ports");
        fs::create_dir_all(&dir).expect("a directory for locks");
        (21_000..22_000)
            .find_map(|number| {
                let lock = File::create(dir.join(number.to_string())).ok()?;
                lock.try_lock().ok()?;
                std::net::TcpListener::bind(("127.0.0.1", number)).ok()?;
                Some(Self {
                    number,
                    _lock: lock,
                })
            })
            .expect("a free port")
    }
}

impl Cluster {
    /// A serving cluster that has the demonstration images.
    pub(crate) fn start() -> Self {
        Self::new().started()
    }

    /// The same, with blocks of addresses that no other test's cluster takes while this one is down.
    pub(crate) fn start_apart() -> Self {
        let cluster = Self::new();
        cluster.choose_blocks();
        cluster.started()
    }

    fn started(mut self) -> Self {
        let cluster = &mut self;
        cluster.up();
        let images = images::demonstration();
        cluster.import(&images.join("nginx.tar"));
        cluster.import(&images.join("busybox.tar"));
        self
    }

    /// A serving cluster without images.
    pub(crate) fn start_empty() -> Self {
        let mut cluster = Self::new();
        cluster.up();
        cluster
    }

    /// A data directory and a port; nothing runs yet.
    pub(crate) fn new() -> Self {
        let scratch = tempfile::Builder::new()
            .prefix("e2e-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("a scratch directory");
        fs::create_dir(scratch.path().join("data")).expect("a data directory");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        Self {
            scratch,
            port: Port::take(),
            server: None,
            registries: None,
            runtime,
            client: None,
            command: "up",
            nodes: 0,
            options: Vec::new(),
        }
    }

    /// Gives `skiff up` an option, when it is started next.
    pub(crate) fn option(&mut self, name: &str, value: &str) {
        self.options.extend([name.to_owned(), value.to_owned()]);
    }

    /// A serving cluster of several nodes that have the demonstration images.
    pub(crate) fn of_nodes(nodes: usize) -> Self {
        Self::of_nodes_with(nodes, &[])
    }

    /// As [`of_nodes`](Self::of_nodes), with these flags.
    pub(crate) fn of_nodes_with(nodes: usize, flags: &[&str]) -> Self {
        let mut cluster = Self::new();
        cluster.set_nodes(nodes);
        cluster
            .options
            .extend(flags.iter().map(ToString::to_string));
        cluster.up();
        let images = images::demonstration();
        cluster.import(&images.join("nginx.tar"));
        cluster.import(&images.join("busybox.tar"));
        cluster
    }

    /// Has the cluster run nodes of its own on this host, once it is started.
    pub(crate) fn set_nodes(&mut self, nodes: usize) {
        self.nodes = nodes;
        self.options = vec!["--nodes".to_owned(), nodes.to_string()];
    }

    /// A control plane without a node.
    pub(crate) fn server(flags: &[&str]) -> Self {
        let mut cluster = Self::new();
        cluster.command = "server";
        cluster.options = flags.iter().map(ToString::to_string).collect();
        cluster.up();
        cluster
    }

    /// Gives the cluster blocks of addresses of its own, by its port.
    fn choose_blocks(&self) {
        let block = 100 + self.port.number % 70 * 2;
        let blocks = format!(
            r#"{{"clusterCIDR": "10.{block}.0.0/16", "serviceCIDR": "10.{}.0.0/16"}}"#,
            block + 1
        );
        fs::write(self.data_dir().join("blocks.json"), blocks).expect("a file");
    }

    /// The data directory of a node of `up --nodes`.
    pub(crate) fn node_dir(&self, node: &str) -> PathBuf {
        self.data_dir().join("nodes").join(node)
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.scratch.path().join("data")
    }

    /// A place for the test's own files, outside the data directory.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn identity(&self) -> Identity {
        Identity::of(&self.data_dir()).expect("the data directory exists")
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port.number)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data_dir().join("kubeconfig")
    }

    /// Lets the cluster fetch images, once it is started.
    pub(crate) fn set_registries(&mut self, config: &Path) {
        self.registries = Some(config.to_owned());
    }

    /// `skiff up` as this cluster runs it, not started.
    pub(crate) fn up_command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
        command
            .args([self.command, "--listen", &self.address(), "--data-dir"])
            .arg(self.data_dir());
        match &self.registries {
            Some(config) => command.arg("--registry-config").arg(config),
            None => command.args((self.command == "up").then_some("--offline")),
        };
        command.args(&self.options);
        command
    }

    /// Start `skiff up` and wait for its `ready` line, which is returned.
    pub(crate) fn up(&mut self) -> String {
        assert!(self.server.is_none(), "it runs already");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("a log");
        // A group of its own: an interrupt at the terminal stops the test, which then takes the cluster down.
        let mut server = self
            .up_command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("skiff starts");
        let stdout = server.stdout.take().expect("piped");
        self.server = Some(server);
        let mut ready = String::new();
        BufReader::new(stdout)
            .read_line(&mut ready)
            .expect("its output");
        assert!(ready.starts_with("ready"), "no ready line but {ready:?}");
        self.client = None;
        ready
    }

    fn log_path(&self) -> PathBuf {
        self.scratch.path().join("server.log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// `kill -9` the server.
    pub(crate) fn crash(&mut self) {
        let mut server = self.server.take().expect("it runs");
        server.kill().expect("SIGKILL");
        server.wait().expect("its end");
    }

    /// SIGTERM the server and wait for its end.
    pub(crate) fn stop(&mut self) -> std::process::ExitStatus {
        let mut server = self.server.take().expect("it runs");
        kill(Pid::from_raw(server.id() as i32), Signal::SIGTERM).expect("SIGTERM");
        wait::until("the server ends after SIGTERM", || {
            server.try_wait().expect("its state")
        })
    }

    /// The server's process.
    pub(crate) fn server_pid(&self) -> i32 {
        self.server.as_ref().expect("it runs").id() as i32
    }

    pub(crate) fn import(&self, archive: &Path) {
        self.skiff(["image", "import", &archive.display().to_string()]);
    }

    /// `skiff ARGS --data-dir D`; its output when it succeeds.
    pub(crate) fn skiff<const N: usize>(&self, args: [&str; N]) -> String {
        succeeded(&format!("skiff {}", args.join(" ")), &self.try_skiff(args))
    }

    /// `skiff SUBCOMMAND --data-dir D ARGS`, whatever its end.
    pub(crate) fn try_skiff<const N: usize>(&self, args: [&str; N]) -> Output {
        // Options of the node's commands come before what a command inside a container may take for its own.
        let at = if args[0] == "image" { 2 } else { 1 };
        Command::new(env!("CARGO_BIN_EXE_skiff"))
            .args(&args[..at])
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(&args[at..])
            .stdin(Stdio::null())
            .output()
            .expect("skiff starts")
    }

    /// A kubectl that talks to this cluster, not started.
    pub(crate) fn kubectl_command(&self) -> Command {
        let mut command = Command::new(images::kubectl());
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.scratch.path())
            .stdin(Stdio::null());
        command
    }

    /// `kubectl ARGS`; what it prints when it succeeds.
    pub(crate) fn kubectl(&self, args: &str) -> String {
        succeeded(&format!("kubectl {args}"), &self.try_kubectl(args))
    }

    /// `kubectl ARGS` (separated by blanks), whatever its end.
    pub(crate) fn try_kubectl(&self, args: &str) -> Output {
        self.kubectl_command()
            .args(args.split_whitespace())
            .output()
            .expect("kubectl starts")
    }

    /// `kubectl ARGS` with each argument as it is.
    pub(crate) fn kubectl_args(&self, args: &[&str]) -> String {
        let output = self
            .kubectl_command()
            .args(args)
            .output()
            .expect("kubectl starts");
        succeeded(&format!("kubectl {}", args.join(" ")), &output)
    }

    /// `kubectl apply -f -`.
    pub(crate) fn apply(&self, manifest: &str) -> String {
        self.feed("apply -f -", manifest)
    }

    /// `kubectl ARGS` with `input` on its standard input.
    pub(crate) fn feed(&self, args: &str, input: &str) -> String {
        succeeded(&format!("kubectl {args}"), &self.try_feed(args, input))
    }

    /// The same, whether or not it succeeds.
    pub(crate) fn try_feed(&self, args: &str, input: &str) -> Output {
        let mut child = self
            .kubectl_command()
            .args(args.split_whitespace())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl starts");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(input.as_bytes())
            .expect("its input");
        child.wait_with_output().expect("its end")
    }

    /// A client of this cluster, with the administrator's credentials.
    pub(crate) fn client(&mut self) -> kube::Client {
        if self.client.is_none() {
            let kubeconfig = Kubeconfig::read_from(self.kubeconfig()).expect("the kubeconfig");
            let client = self.runtime.block_on(async {
                let options = KubeConfigOptions::default();
                let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
                kube::Client::try_from(config.expect("a configuration")).expect("a client")
            });
            self.client = Some(client);
        }
        self.client.clone().expect("just made")
    }

    /// Run a future to its end on this test's runtime.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// The object at an API path; `None` while there is none or the API does not answer.
    pub(crate) fn get(&mut self, path: &str) -> Option<Value> {
        let client = self.client();
        let request = http::Request::get(path)
            .body(Vec::new())
            .expect("a request");
        self.runtime.block_on(client.request(request)).ok()
    }

    /// A pod of the default namespace.
    pub(crate) fn pod(&mut self, name: &str) -> Option<Value> {
        self.get(&format!("/api/v1/namespaces/default/pods/{name}"))
    }

    /// The pods of the default namespace with a label, oldest first, those being deleted left out.
    pub(crate) fn pods(&mut self, selector: &str) -> Vec<Value> {
        let path = format!(
            "/api/v1/namespaces/default/pods?labelSelector={}",
            selector.replace('=', "%3D")
        );
        let list = self.get(&path).unwrap_or_default();
        let mut pods: Vec<Value> = list["items"].as_array().cloned().unwrap_or_default();
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        pods.sort_by_key(|pod| pod["metadata"]["creationTimestamp"].to_string());
        pods
    }

    /// The pod, once it is as wanted.
    pub(crate) fn until_pod(
        &mut self,
        name: &str,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Value {
        wait::until(&format!("pod {name}: {what}"), || {
            self.pod(name).filter(|pod| wanted(pod))
        })
    }

    /// The pod, once it is Ready.
    pub(crate) fn until_ready(&mut self, name: &str) -> Value {
        self.until_pod(name, "Ready", is_ready)
    }

    /// The pods with a label, once there are `count` and all are Ready.
    pub(crate) fn until_all_ready(&mut self, selector: &str, count: usize) -> Vec<Value> {
        wait::until(&format!("{count} Ready pods with {selector}"), || {
            let pods = self.pods(selector);
            (pods.len() == count && pods.iter().all(is_ready)).then_some(pods)
        })
    }

    /// The main process, on the host, of a pod's container.
    pub(crate) fn container_pid(&self, pod: &str, container: &str) -> i32 {
        wait::until(&format!("a process of {pod}/{container}"), || {
            let listed: Value =
                serde_json::from_str(&self.skiff(["ps", "-o", "json"])).expect("JSON");
            let running = listed.as_array().expect("an array").iter().find(|c| {
                c["pod"] == pod
                    && c["container"] == container
                    && c["state"].as_str() == Some("running")
            })?;
            running["pid"].as_i64().map(|pid| pid as i32)
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            self.report();
        }
        if self.server.is_some() {
            self.stop_hard();
        }
        let down = self.try_skiff(["down", "--purge"]);
        let complaint = if down.status.success() {
            String::new()
        } else {
            format!(
                "skiff down failed: {}",
                String::from_utf8_lossy(&down.stderr)
            )
        };
        // `down --purge` removes the directory that the identity is computed from.
        fs::create_dir_all(self.data_dir()).expect("a data directory");
        let mut left = host::traces(&self.identity());
        for node in 1..=self.nodes {
            let data = self.node_dir(&format!("node-{node}"));
            fs::create_dir_all(&data).expect("a data directory");
            left.extend(host::traces(&Identity::of(&data).expect("it exists")));
        }
        if failed {
            eprintln!("--- after down: {complaint} {left:#?}");
            return;
        }
        assert!(
            complaint.is_empty() && left.is_empty(),
            "{complaint}\nleft on the host: {left:#?}"
        );
    }
}

impl Cluster {
    fn stop_hard(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// What a person would look at first after a failure.
    fn report(&mut self) {
        if self.server.is_some() && self.kubeconfig().exists() {
            for args in [
                "get pods -A -o wide",
                "get events --sort-by=.metadata.creationTimestamp",
            ] {
                let output = self.try_kubectl(&format!("--request-timeout=5s {args}"));
                eprintln!(
                    "--- kubectl {args}\n{}",
                    String::from_utf8_lossy(&output.stdout)
                );
            }
        }
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(80)..];
        eprintln!(
            "--- the server's log, last {} lines\n{}",
            tail.len(),
            tail.join("\n")
        );
    }
}

pub(crate) fn succeeded(what: &str, output: &Output) -> String {
    assert!(
        output.status.success(),
        "{what}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Whether a pod's Ready condition is true.
pub(crate) fn is_ready(pod: &Value) -> bool {
    condition(pod, "Ready")["status"] == "True"
}

/// An object's condition of a type; null when it has none.
pub(crate) fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .and_then(|all| all.iter().find(|c| c["type"] == kind))
        .cloned()
        .unwrap_or_default()
}

/// The status of a pod's first container.
pub(crate) fn container_status(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]
}

/// `metadata.name`
pub(crate) fn name(object: &Value) -> String {
    object["metadata"]["name"]
        .as_str()
        .expect("a name")
        .to_owned()
}

/// A pod of one busybox container named `main` that runs a shell script; `more` is YAML for the pod's spec,
/// `container` YAML for its container.
pub(crate) fn shell_pod(name: &str, script: &str, more: &str, container: &str) -> String {
    let script = serde_json::to_string(script).expect("a string");
    let container: String = container
        .lines()
        .map(|line| format!("    {line}\n"))
        .collect();
    let more: String = more.lines().map(|line| format!("  {line}\n")).collect();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  labels: {{app: {name}}}\nspec:\n  \
         terminationGracePeriodSeconds: 1\n{more}  containers:\n  - name: main\n    image: busybox\n    \
         command: [sh, -c, {script}]\n{container}"
    )
}

/// A shell script that runs until SIGTERM, and then ends at once with success.
pub(crate) const SERVE: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";
