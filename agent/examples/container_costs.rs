//! What the runtime's steps cost on this host: `cargo run --release -p skiff-agent --example
//! container_costs [ROUNDS]`, as root. Prints medians with the smallest and largest in
//! milliseconds, and a shim's memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1 as core;
use skiff_agent::identity::Identity;
use skiff_agent::runtime::types::{
    CgroupResources, ContainerConfig, ContainerRecord, ExecRequest, QosClass, SandboxConfig,
};
use skiff_agent::runtime::{Runtime, Sandbox, purge};

type Failure = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let rounds = match std::env::args().nth(1) {
        Some(text) => text.parse()?,
        None => 50,
    };
    let data = std::env::temp_dir().join(format!("skiff-costs-{}", std::process::id()));
    std::fs::create_dir_all(&data)?;
    let identity = Identity::of(&data)?;
    let result = measure(&identity, &data, rounds).await;
    purge(identity).await?;
    std::fs::remove_dir_all(&data)?;
    result
}

async fn measure(identity: &Identity, data: &Path, rounds: u32) -> Result<(), Failure> {
    let layer = data.join("layer");
    std::fs::create_dir_all(layer.join("bin"))?;
    std::fs::copy("/bin/busybox", layer.join("bin/busybox"))?;
    let runtime = Runtime::new(identity.clone()).await?;
    let mut costs = Costs::default();
    let pods = (0..rounds).map(|number| sandbox(identity, number));
    let mut sandboxes = Vec::new();
    for config in pods {
        std::fs::create_dir_all(&config.pod_dir)?;
        let timer = Instant::now();
        sandboxes.push(runtime.create_sandbox(config).await?);
        costs.add("sandbox: start", timer.elapsed());
    }
    let shim = sandboxes[0].state().shim_pid;
    println!("shim, idle, among {rounds}: {}", memory(shim)?);
    for (number, sandbox) in (0..).zip(&sandboxes) {
        rounds_in(sandbox, &layer, number, &mut costs).await?;
    }
    println!("shim, after a container and an exec: {}", memory(shim)?);
    for sandbox in &sandboxes {
        let timer = Instant::now();
        sandbox.destroy().await?;
        costs.add("sandbox: destroy", timer.elapsed());
    }
    costs.print();
    Ok(())
}

/// One container's life, step by step.
async fn rounds_in(
    sandbox: &Sandbox,
    layer: &Path,
    number: u32,
    costs: &mut Costs,
) -> Result<(), Failure> {
    let config = container(sandbox, layer.to_owned(), number)?;
    let timer = Instant::now();
    let id = sandbox.create_container(config).await?.id;
    costs.add("container: create", timer.elapsed());
    let start = Instant::now();
    sandbox.start_container(&id).await?;
    costs.add("container: start", start.elapsed());
    costs.add("container: create and start", timer.elapsed());
    let timer = Instant::now();
    let request = ExecRequest {
        command: vec!["/bin/busybox".to_owned(), "true".to_owned()],
        tty: false,
        stdin: false,
    };
    let mut session = sandbox.exec(&id, request).await?;
    session.wait().await?;
    costs.add("exec: to its end", timer.elapsed());
    let timer = Instant::now();
    sandbox.signal(&id, libc::SIGKILL).await?;
    let mut watch = sandbox.watch();
    let ended = |record: &ContainerRecord| record.has_exited();
    watch
        .wait_for(|state| state.containers.get(&id).is_some_and(ended))
        .await?;
    costs.add("container: kill to its end told", timer.elapsed());
    let timer = Instant::now();
    sandbox.remove_container(&id).await?;
    costs.add("container: remove", timer.elapsed());
    Ok(())
}

#[derive(Default)]
struct Costs(BTreeMap<&'static str, Vec<Duration>>);

impl Costs {
    fn add(&mut self, step: &'static str, cost: Duration) {
        self.0.entry(step).or_default().push(cost);
    }

    fn print(&mut self) {
        for (step, costs) in &mut self.0 {
            costs.sort();
            let at = |index: usize| costs[index].as_secs_f64() * 1000.0;
            let (median, last) = (at(costs.len() / 2), at(costs.len() - 1));
            println!("{step:32} {median:7.2} ({:.2} to {last:.2})", at(0));
        }
    }
}

fn sandbox(identity: &Identity, number: u32) -> SandboxConfig {
    let name = format!("pod-{number}");
    let uid = format!("{number:08x}-0000-4000-8000-000000000000");
    SandboxConfig {
        pod_dir: identity.pod_dir("default", &name, &uid),
        namespace: "default".to_owned(),
        hostname: Some(name.clone()),
        name,
        uid,
        host_network: false,
        host_ipc: false,
        host_pid: false,
        share_process_namespace: false,
        sysctls: BTreeMap::new(),
        qos: QosClass::BestEffort,
        resources: CgroupResources::default(),
    }
}

fn container(
    sandbox: &Sandbox,
    layer: PathBuf,
    number: u32,
) -> Result<ContainerConfig, serde_json::Error> {
    let image = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    Ok(ContainerConfig {
        id: format!("{number:064x}"),
        name: "main".to_owned(),
        attempt: 0,
        pod: core::Pod::default(),
        container: core::Container {
            name: "main".to_owned(),
            command: Some(
                ["/bin/busybox", "sleep", "1000"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            ..core::Container::default()
        },
        image_id: String::new(),
        image: serde_json::from_value(image)?,
        layers: vec![layer],
        env: Vec::new(),
        mounts: Vec::new(),
        log_path: sandbox.config().pod_dir.join("main/0.log"),
        resources: CgroupResources {
            memory_limit_bytes: Some(64 << 20),
            ..CgroupResources::default()
        },
        oom_score_adj: 1000,
    })
}

/// Resident and proportional memory of a process, as the kernel counts it.
fn memory(pid: i32) -> std::io::Result<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let wanted = ["Rss:", "Pss:", "Private_Dirty:"];
    let lines = text
        .lines()
        .filter(|line| wanted.iter().any(|name| line.starts_with(name)));
    let words = lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    Ok(words.collect::<Vec<_>>().join(", "))
}
