//! `skiff inspect`: everything that this node knows of a pod and its containers.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use skiff_agent::net::recorded_address;
use skiff_agent::runtime::cgroup::Cgroups;
use skiff_agent::runtime::types::{CgroupStats, ContainerRecord, ContainerState, QosClass};

use crate::local::{LocalPod, NodeArgs, TargetArgs};
use crate::output::Format;

#[derive(Debug, Args)]
pub struct InspectArgs {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    target: TargetArgs,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodReport {
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    namespace: String,
    pod: String,
    uid: String,
    address: Option<Ipv4Addr>,
    supervised: bool,
    directory: String,
    containers: Vec<ContainerReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerReport {
    container: String,
    id: String,
    image: String,
    #[serde(rename = "imageID")]
    image_id: String,
    state: &'static str,
    pid: Option<i32>,
    restart_count: u32,
    created_at: String,
    started_at: Option<String>,
    log_path: String,
    /// The oldest first; the current attempt too, once it has ended.
    exits: Vec<Exit>,
    cgroup: Option<CgroupReport>,
    /// Inode numbers, as in `/proc/<pid>/ns`.
    namespaces: BTreeMap<String, u64>,
    mounts: Vec<Mount>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Exit {
    attempt: u32,
    id: String,
    started_at: Option<String>,
    finished_at: String,
    exit_code: i32,
    signal: Option<i32>,
    oom_killed: bool,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct CgroupReport {
    path: String,
    #[serde(flatten)]
    stats: CgroupStats,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mount {
    target: String,
    source: String,
    #[serde(rename = "type")]
    kind: String,
    options: String,
}

pub async fn run(args: InspectArgs) -> anyhow::Result<ExitCode> {
    let (pod, container) = args.node.nodes()?.find(&args.target).await?;
    let report = tokio::task::spawn_blocking(move || report(&pod, container.as_deref())).await??;
    match args.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Format::Table => print!("{report}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn report(pod: &LocalPod, only: Option<&str>) -> anyhow::Result<PodReport> {
    let cgroups = Cgroups::detect(pod.identity.cgroup_root())?;
    let containers = pod
        .current()
        .filter(|record| only.is_none_or(|only| record.name == only))
        .map(|record| container_report(&cgroups, pod, record))
        .collect::<anyhow::Result<_>>()?;
    Ok(PodReport {
        node: pod.node.clone(),
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        uid: pod.uid.clone(),
        address: recorded_address(&pod.identity, &pod.uid)?,
        supervised: pod.supervised,
        directory: pod.dir.display().to_string(),
        containers,
    })
}

fn container_report(
    cgroups: &Cgroups,
    pod: &LocalPod,
    record: &ContainerRecord,
) -> anyhow::Result<ContainerReport> {
    let state = pod.state(record);
    let pid = record.pid().filter(|_| state == "running");
    // A process may end while we look at it: then there is nothing to tell of it.
    let namespaces = pid.and_then(|pid| namespaces(pid).ok()).unwrap_or_default();
    let mounts = match pid.map(|pid| fs::read_to_string(format!("/proc/{pid}/mountinfo"))) {
        Some(Ok(text)) => text.lines().filter_map(mount).collect(),
        _ => Vec::new(),
    };
    Ok(ContainerReport {
        container: record.name.clone(),
        id: record.id.clone(),
        image: record.image.clone(),
        image_id: record.image_id.clone(),
        state,
        pid,
        restart_count: record.attempt,
        created_at: record.created_at.clone(),
        started_at: record.started_at().map(str::to_owned),
        log_path: record.log_path.display().to_string(),
        exits: pod.attempts(&record.name).filter_map(exit).collect(),
        cgroup: usage(cgroups, &pod.uid, &record.id),
        namespaces,
        mounts,
    })
}

fn exit(record: &ContainerRecord) -> Option<Exit> {
    let ContainerState::Exited {
        started_at,
        finished_at,
        exit_code,
        signal,
        oom_killed,
        error,
        ..
    } = &record.state
    else {
        return None;
    };
    Some(Exit {
        attempt: record.attempt,
        id: record.id.clone(),
        started_at: started_at.clone(),
        finished_at: finished_at.clone(),
        exit_code: *exit_code,
        signal: *signal,
        oom_killed: *oom_killed,
        error: error.clone(),
    })
}

/// A container's group is in the one of its pod's class; only the kernel need be asked which.
fn usage(cgroups: &Cgroups, uid: &str, id: &str) -> Option<CgroupReport> {
    let classes = [
        QosClass::Guaranteed,
        QosClass::Burstable,
        QosClass::BestEffort,
    ];
    let mut groups = classes
        .into_iter()
        .map(|qos| cgroups.container(qos, uid, id));
    let path = groups.find(|group| cgroups.exists(group))?;
    let stats = cgroups.stats(&path).ok()?;
    Some(CgroupReport { path, stats })
}

fn namespaces(pid: i32) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut inodes = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/ns"))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // `net:[4026531840]`; the other two are what children would get.
        let link = fs::read_link(entry.path())?;
        let number = link
            .to_string_lossy()
            .split(['[', ']'])
            .nth(1)
            .and_then(|number| number.parse().ok())
            .with_context(|| format!("no inode number in {}", link.display()))?;
        if !name.ends_with("_for_children") {
            inodes.insert(name, number);
        }
    }
    Ok(inodes)
}

/// A line of proc_pid_mountinfo(5).
fn mount(line: &str) -> Option<Mount> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut mount = mount.split(' ');
    let root = mount.nth(3)?;
    let target = mount.next()?;
    let options = mount.next()?;
    let mut filesystem = filesystem.split(' ');
    let kind = filesystem.next()?;
    let source = filesystem.next()?;
    Some(Mount {
        target: target.to_owned(),
        source: match root {
            "/" => source.to_owned(),
            part => format!("{source}[{part}]"),
        },
        kind: kind.to_owned(),
        options: options.to_owned(),
    })
}

/// The same facts for people.
impl fmt::Display for PodReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fact(f, "Pod", &self.pod)?;
        fact(f, "Namespace", &self.namespace)?;
        fact(f, "UID", &self.uid)?;
        fact(f, "Address", or_none(self.address))?;
        if let Some(node) = &self.node {
            fact(f, "Node", node)?;
        }
        fact(f, "Directory", &self.directory)?;
        let shim = if self.supervised { "running" } else { "gone" };
        fact(f, "Shim", shim)?;
        self.containers
            .iter()
            .try_for_each(|container| write!(f, "\n{container}"))
    }
}

impl fmt::Display for ContainerReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fact(f, "Container", &self.container)?;
        fact(f, "ID", &self.id)?;
        fact(f, "Image", &self.image)?;
        fact(f, "Image ID", &self.image_id)?;
        fact(f, "State", self.state)?;
        fact(f, "PID", or_none(self.pid))?;
        fact(f, "Restarts", self.restart_count)?;
        fact(f, "Created", &self.created_at)?;
        fact(f, "Started", or_none(self.started_at.as_ref()))?;
        fact(f, "Log", &self.log_path)?;
        if let Some(cgroup) = &self.cgroup {
            write!(f, "{cgroup}")?;
        }
        section(f, "Exits", &self.exits)?;
        let namespaces = self.namespaces.iter();
        let namespaces: Vec<_> = namespaces
            .map(|(kind, inode)| format!("{kind:<8} {inode}"))
            .collect();
        section(f, "Namespaces", &namespaces)?;
        section(f, "Mounts", &self.mounts)
    }
}

impl fmt::Display for CgroupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stats = &self.stats;
        let mebibytes = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
        let limit = stats.memory_limit_bytes.map(mebibytes);
        fact(f, "Cgroup", &self.path)?;
        fact(
            f,
            "  CPU time",
            format_args!("{:.3} s", stats.cpu_usage_ns as f64 / 1e9),
        )?;
        fact(f, "  Memory", mebibytes(stats.memory_usage_bytes))?;
        fact(
            f,
            "  Working set",
            mebibytes(stats.memory_working_set_bytes),
        )?;
        fact(f, "  Limit", or_none(limit))?;
        fact(f, "  Processes", stats.pids)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "attempt {}: code {} at {}",
            self.attempt, self.exit_code, self.finished_at
        )?;
        if let Some(signal) = self.signal {
            write!(f, ", signal {signal}")?;
        }
        if self.oom_killed {
            write!(f, ", out of memory")?;
        }
        match &self.error {
            Some(error) => write!(f, ", {error}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            target,
            source,
            kind,
            options,
        } = self;
        write!(f, "{target}  {kind}  {source}  {options}")
    }
}

fn fact(f: &mut fmt::Formatter<'_>, name: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(f, "{:<14} {value}", format!("{name}:"))
}

fn section(f: &mut fmt::Formatter<'_>, name: &str, items: &[impl fmt::Display]) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    writeln!(f, "{name}:")?;
    items.iter().try_for_each(|item| writeln!(f, "  {item}"))
}

fn or_none(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| "<none>".into(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mounts() {
        let line = "36 35 98:0 /mnt1 /mnt/parent rw,noatime master:1 - ext3 /dev/root rw";
        let expected = Mount {
            target: "/mnt/parent".into(),
            source: "/dev/root[/mnt1]".into(),
            kind: "ext3".into(),
            options: "rw,noatime".into(),
        };
        assert_eq!(mount(line), Some(expected));
        assert_eq!(mount("nonsense"), None);
    }

    #[test]
    fn reads_our_own_namespaces() {
        let inodes = namespaces(std::process::id() as i32).unwrap();
        assert!(inodes["net"] > 0 && inodes.contains_key("mnt"));
        assert!(!inodes.contains_key("pid_for_children"));
    }

    #[test]
    fn tells_people_of_exits() {
        let exit = Exit {
            attempt: 2,
            id: "abc".into(),
            started_at: None,
            finished_at: "2026-11-22T10:00:00Z".into(),
            exit_code: 137,
            signal: Some(9),
            oom_killed: true,
            error: None,
        };
        let expected = "attempt 2: code 137 at 2026-11-22T10:00:00Z, signal 9, out of memory";
        assert_eq!(exit.to_string(), expected);
    }
}
