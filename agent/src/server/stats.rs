//! What the node, its pods and their containers use, from the kernel's counters at this moment.

use std::fmt::Write;
use std::io;

use jiff::Timestamp;
use serde::Serialize;

use super::{NodePod, ServerState};
use crate::runtime::types::{CgroupStats, ContainerState};

/// `sysconf(_SC_CLK_TCK)`: 100 on every Linux that Rust runs on; /proc/stat counts in it.
const NANOSECONDS_PER_TICK: u64 = 1_000_000_000 / 100;

/// One look at everything.
pub(super) struct Usage {
    node_name: String,
    at: Timestamp,
    node: NodeUsage,
    pods: Vec<PodUsage>,
}

struct NodeUsage {
    booted_at: Timestamp,
    cpu_ns: u64,
    memory_total: u64,
    memory_available: u64,
}

struct PodUsage {
    namespace: String,
    name: String,
    uid: String,
    started_at: Option<String>,
    total: CgroupStats,
    containers: Vec<ContainerUsage>,
}

struct ContainerUsage {
    name: String,
    started_at: String,
    stats: CgroupStats,
}

/// Pods that end while they are looked at are left out.
pub(super) async fn collect(state: &ServerState) -> io::Result<Usage> {
    let node = tokio::task::spawn_blocking(node_usage)
        .await
        .map_err(io::Error::other)??;
    let mut pods = Vec::new();
    for pod in state.pods.pods() {
        pods.extend(pod_usage(&pod).await);
    }
    Ok(Usage {
        node_name: state.node_name.to_string(),
        at: Timestamp::now(),
        node,
        pods,
    })
}

async fn pod_usage(pod: &NodePod) -> Option<PodUsage> {
    let sandbox = pod.sandbox.as_ref()?;
    let total = sandbox.pod_stats().await.ok()?;
    let mut containers = Vec::new();
    for record in sandbox.containers() {
        let ContainerState::Running { started_at, .. } = record.state else {
            continue;
        };
        let Ok(stats) = sandbox.stats(&record.id).await else {
            continue;
        };
        containers.push(ContainerUsage {
            name: record.name,
            started_at,
            stats,
        });
    }
    let config = sandbox.config();
    Some(PodUsage {
        namespace: config.namespace.clone(),
        name: config.name.clone(),
        uid: config.uid.clone(),
        started_at: pod
            .pod
            .status
            .as_ref()
            .and_then(|status| status.start_time.as_ref())
            .map(|time| time.0.to_string()),
        total,
        containers,
    })
}

fn node_usage() -> io::Result<NodeUsage> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let memory = std::fs::read_to_string("/proc/meminfo")?;
    let missing = |what: &str| io::Error::other(format!("no {what} under /proc"));
    let kilobytes = |name: &str| {
        let line = memory.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let booted = stat.lines().find_map(|line| line.strip_prefix("btime "));
    Ok(NodeUsage {
        booted_at: booted
            .and_then(|seconds| Timestamp::from_second(seconds.trim().parse().ok()?).ok())
            .ok_or_else(|| missing("boot time"))?,
        cpu_ns: busy_ticks(&stat).ok_or_else(|| missing("CPU times"))? * NANOSECONDS_PER_TICK,
        memory_total: kilobytes("MemTotal:").ok_or_else(|| missing("MemTotal"))? * 1024,
        memory_available: kilobytes("MemAvailable:").ok_or_else(|| missing("MemAvailable"))? * 1024,
    })
}

/// All but idle and waiting for I/O; guests are counted in user time. See proc_stat(5).
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    let idle_and_waiting = ticks.get(3)? + ticks.get(4)?;
    Some(ticks.iter().take(8).sum::<u64>() - idle_and_waiting)
}

impl Usage {
    /// `k8s.io/kubelet/pkg/apis/stats/v1alpha1.Summary`
    pub(super) fn summary(&self) -> impl Serialize + use<> {
        let at = self.at.to_string();
        let node = &self.node;
        let pods = self.pods.iter().map(|pod| PodSummary {
            pod_ref: PodReference {
                name: pod.name.clone(),
                namespace: pod.namespace.clone(),
                uid: pod.uid.clone(),
            },
            start_time: pod.started_at.clone(),
            containers: pod.containers.iter().map(|c| c.summary(&at)).collect(),
            cpu: CpuSummary::of(&pod.total, &at),
            memory: MemorySummary::of(&pod.total, &at),
            process_stats: ProcessSummary {
                process_count: pod.total.pids,
            },
        });
        let used = node.memory_total - node.memory_available;
        Summary {
            node: NodeSummary {
                node_name: self.node_name.clone(),
                start_time: node.booted_at.to_string(),
                cpu: CpuSummary {
                    time: at.clone(),
                    usage_core_nano_seconds: node.cpu_ns,
                },
                memory: MemorySummary {
                    time: at.clone(),
                    available_bytes: Some(node.memory_available),
                    usage_bytes: used,
                    working_set_bytes: used,
                    rss_bytes: None,
                },
            },
            pods: pods.collect(),
        }
    }

    /// The kubelet's `/metrics/resource`, which metrics-server reads.
    pub(super) fn metrics(&self) -> String {
        let at = self.at.as_millisecond();
        let mut text = Metrics::default();
        text.family(
            "container_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        );
        for (labels, container) in self.containers() {
            text.sample(&labels, seconds(container.stats.cpu_usage_ns), at);
        }
        text.family(
            "container_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the container in bytes",
        );
        for (labels, container) in self.containers() {
            text.sample(&labels, container.stats.memory_working_set_bytes, at);
        }
        text.family(
            "container_start_time_seconds",
            "gauge",
            "[STABLE] Start time of the container since unix epoch in seconds",
        );
        for (labels, container) in self.containers() {
            if let Ok(started) = container.started_at.parse::<Timestamp>() {
                text.sample(&labels, started.as_millisecond() as f64 / 1e3, at);
            }
        }
        text.family(
            "node_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        );
        text.sample("", seconds(self.node.cpu_ns), at);
        text.family(
            "node_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the node in bytes",
        );
        text.sample("", self.node.memory_total - self.node.memory_available, at);
        text.family(
            "pod_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        );
        for (labels, pod) in self.labelled_pods() {
            text.sample(&labels, seconds(pod.total.cpu_usage_ns), at);
        }
        text.family(
            "pod_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the pod in bytes",
        );
        for (labels, pod) in self.labelled_pods() {
            text.sample(&labels, pod.total.memory_working_set_bytes, at);
        }
        text.family(
            "resource_scrape_error",
            "gauge",
            "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise",
        );
        text.text.push_str("resource_scrape_error 0\n");
        text.text
    }

    fn containers(&self) -> impl Iterator<Item = (String, &ContainerUsage)> {
        self.pods.iter().flat_map(|pod| {
            pod.containers.iter().map(|container| {
                let labels = format!(
                    "{{container=\"{}\",namespace=\"{}\",pod=\"{}\"}}",
                    container.name, pod.namespace, pod.name
                );
                (labels, container)
            })
        })
    }

    fn labelled_pods(&self) -> impl Iterator<Item = (String, &PodUsage)> {
        self.pods.iter().map(|pod| {
            let labels = format!("{{namespace=\"{}\",pod=\"{}\"}}", pod.namespace, pod.name);
            (labels, pod)
        })
    }
}

impl ContainerUsage {
    fn summary(&self, at: &str) -> ContainerSummary {
        ContainerSummary {
            name: self.name.clone(),
            start_time: self.started_at.clone(),
            cpu: CpuSummary::of(&self.stats, at),
            memory: MemorySummary::of(&self.stats, at),
        }
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}

/// Prometheus' text format.
#[derive(Default)]
struct Metrics {
    name: &'static str,
    text: String,
}

impl Metrics {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        // Writing to a string does not fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, labels: &str, value: impl std::fmt::Display, at: i64) {
        let _ = writeln!(self.text, "{}{labels} {value} {at}", self.name);
    }
}

#[derive(Serialize)]
struct Summary {
    node: NodeSummary,
    pods: Vec<PodSummary>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeSummary {
    node_name: String,
    start_time: String,
    cpu: CpuSummary,
    memory: MemorySummary,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PodSummary {
    pod_ref: PodReference,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<String>,
    containers: Vec<ContainerSummary>,
    cpu: CpuSummary,
    memory: MemorySummary,
    #[serde(rename = "process_stats")]
    process_stats: ProcessSummary,
}

#[derive(Serialize)]
struct PodReference {
    name: String,
    namespace: String,
    uid: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerSummary {
    name: String,
    start_time: String,
    cpu: CpuSummary,
    memory: MemorySummary,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CpuSummary {
    time: String,
    usage_core_nano_seconds: u64,
}

impl CpuSummary {
    fn of(stats: &CgroupStats, at: &str) -> Self {
        Self {
            time: at.to_owned(),
            usage_core_nano_seconds: stats.cpu_usage_ns,
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemorySummary {
    time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_bytes: Option<u64>,
    usage_bytes: u64,
    working_set_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    rss_bytes: Option<u64>,
}

impl MemorySummary {
    fn of(stats: &CgroupStats, at: &str) -> Self {
        let free = |limit: u64| limit.saturating_sub(stats.memory_working_set_bytes);
        Self {
            time: at.to_owned(),
            available_bytes: stats.memory_limit_bytes.map(free),
            usage_bytes: stats.memory_usage_bytes,
            working_set_bytes: stats.memory_working_set_bytes,
            rss_bytes: Some(stats.memory_rss_bytes),
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessSummary {
    process_count: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_busy_time_only() {
        let stat = "cpu  10 1 5 1000 50 2 3 4 9 9\ncpu0 1 1 1 1\nbtime 1700000000\n";
        assert_eq!(busy_ticks(stat), Some(10 + 1 + 5 + 2 + 3 + 4));
    }

    #[test]
    fn reads_this_machine() {
        let usage = node_usage().unwrap();
        assert!(usage.memory_total > usage.memory_available);
        assert!(usage.booted_at < Timestamp::now());
    }
}
