//! `skiff inspect`: everything that this node knows of a pod and its containers.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use skiff_agent::net::recorded_address;
use skiff_agent::runtime::cgroup::Cgroups;
use skiff_agent::runtime::types::{CgroupStats, ContainerRecord, ContainerState, QosClass};

use crate::local::{LocalPod, Node, NodeArgs, TargetArgs};
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
    let node = args.node.node()?;
    let (pod, container) = node.find(&args.target).await?;
    let report =
        tokio::task::spawn_blocking(move || report(&node, &pod, container.as_deref())).await??;
    let report = serde_json::to_value(report)?;
    match args.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Format::Table => print!("{}", outline(&report)),
    }
    Ok(ExitCode::SUCCESS)
}

fn report(node: &Node, pod: &LocalPod, only: Option<&str>) -> anyhow::Result<PodReport> {
    let cgroups = Cgroups::detect(node.identity().cgroup_root())?;
    let containers = pod
        .current()
        .filter(|record| only.is_none_or(|only| record.name == only))
        .map(|record| container_report(&cgroups, pod, record))
        .collect::<anyhow::Result<_>>()?;
    Ok(PodReport {
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        uid: pod.uid.clone(),
        address: recorded_address(node.identity(), &pod.uid)?,
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

/// The same facts for people: an indented outline, lists of facts as one line each.
fn outline(report: &Value) -> String {
    let mut text = String::new();
    if let Value::Object(fields) = report {
        for (name, value) in fields.iter().filter(|(name, _)| *name != "containers") {
            line(&mut text, 0, name, value);
        }
    }
    for container in report["containers"].as_array().into_iter().flatten() {
        text.push('\n');
        for (name, value) in container.as_object().into_iter().flatten() {
            line(&mut text, 0, name, value);
        }
    }
    text
}

fn line(text: &mut String, depth: usize, name: &str, value: &Value) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Null => {}
        Value::Array(items) if items.is_empty() => {}
        Value::Array(items) => {
            text.push_str(&format!("{indent}{name}:\n"));
            for item in items {
                text.push_str(&format!("{indent}  {}\n", on_one_line(item)));
            }
        }
        Value::Object(fields) => {
            text.push_str(&format!("{indent}{name}:\n"));
            for (name, value) in fields {
                line(text, depth + 1, name, value);
            }
        }
        scalar => text.push_str(&format!(
            "{indent}{:<14} {}\n",
            format!("{name}:"),
            plain(scalar)
        )),
    }
}

fn on_one_line(item: &Value) -> String {
    match item {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| format!("{name}={}", plain(value)))
            .collect::<Vec<_>>()
            .join(" "),
        other => plain(other),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
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
    fn outlines_what_is_known() {
        let report = serde_json::json!({
            "pod": "web", "address": null,
            "containers": [{"id": "abc", "exits": [{"exitCode": 3, "error": null}], "mounts": []}],
        });
        let text = outline(&report);
        assert_eq!(
            text,
            "pod:           web\n\nexits:\n  exitCode=3\nid:            abc\n"
        );
    }
}
