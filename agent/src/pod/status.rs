//! A pod's status, computed from what is: the kubelet's `generateAPIPodStatus`.
//!
//! [`compute`] is a pure function of the pod's declaration, the containers' records and the
//! worker's own knowledge (why something waits, what probes say). The worker calls it after every
//! change; only a status that differs from the last one is written.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodIP, PodSpec, PodStatus,
    ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::conditions;
use super::phase;
use super::resources;
use crate::runtime::types::{ContainerRecord, ContainerState as Recorded, START_ERROR_EXIT_CODE};

/// Everything a status is made of.
pub struct Facts<'a> {
    pub pod: &'a Pod,
    /// The status that was computed before, or the one in the API when the worker is new.
    pub previous: Option<&'a PodStatus>,
    /// In the order of the declaration.
    pub init: Vec<ContainerFacts<'a>>,
    pub main: Vec<ContainerFacts<'a>>,
    /// The sandbox and its network are set up.
    pub sandbox_ready: bool,
    pub pod_ips: &'a [IpAddr],
    pub host_ips: &'a [IpAddr],
    pub now: Timestamp,
    /// Nothing of the pod will be started again.
    pub terminal: bool,
    /// The node ended the pod: its phase is `Failed`, for this reason.
    pub failure: Option<&'a Failure>,
}

/// Why the node ended a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub reason: String,
    pub message: String,
}

/// What is known of one container.
pub struct ContainerFacts<'a> {
    pub spec: &'a Container,
    pub current: Option<&'a Attempt>,
    pub previous: Option<&'a Attempt>,
    /// Why it does not run, if it does not.
    pub waiting: Option<&'a Waiting>,
    /// Its startup probe (if it has one) succeeded.
    pub started: bool,
    /// Its readiness probe (if it has one) says so.
    pub ready: bool,
}

/// One attempt to run a container.
#[derive(Debug, Clone, PartialEq)]
pub struct Attempt {
    pub record: ContainerRecord,
    /// From the termination log, or from the end of the log.
    pub message: Option<String>,
}

/// Why a container waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: Option<String>,
}

impl Waiting {
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            message: Some(message.into()),
        }
    }
}

/// The pod's status. Holds only the conditions that are the node's to set.
pub fn compute(facts: &Facts<'_>) -> PodStatus {
    let empty = PodSpec::default();
    let spec = facts.pod.spec.as_ref().unwrap_or(&empty);
    let init_statuses: Vec<_> = facts
        .init
        .iter()
        .map(|c| container(facts, c, true))
        .collect();
    let main_statuses: Vec<_> = facts
        .main
        .iter()
        .map(|c| container(facts, c, false))
        .collect();
    let previous_phase = facts.previous.and_then(|p| p.phase.as_deref());
    let phase = match previous_phase {
        // A phase that is final stays.
        Some(last @ ("Failed" | "Succeeded")) => last,
        _ if facts.failure.is_some() => "Failed",
        _ => phase::phase(spec, &init_statuses, &main_statuses, facts.terminal),
    };
    let kept = facts
        .previous
        .filter(|_| matches!(previous_phase, Some("Failed")));
    let conditions = conditions::all(&conditions::Facts {
        pod: facts.pod,
        previous: facts.previous,
        init: &init_statuses,
        main: &main_statuses,
        phase,
        sandbox_ready: facts.sandbox_ready,
        now: facts.now,
    });
    PodStatus {
        phase: Some(phase.to_owned()),
        reason: facts
            .failure
            .map(|f| f.reason.clone())
            .or_else(|| kept.and_then(|p| p.reason.clone())),
        message: facts
            .failure
            .map(|f| f.message.clone())
            .or_else(|| kept.and_then(|p| p.message.clone())),
        conditions: Some(conditions),
        observed_generation: facts.pod.metadata.generation,
        host_ip: facts.host_ips.first().map(ToString::to_string),
        host_ips: addresses(facts.host_ips, |ip| HostIP { ip }),
        pod_ip: facts.pod_ips.first().map(ToString::to_string),
        pod_ips: addresses(facts.pod_ips, |ip| PodIP { ip }),
        start_time: facts
            .previous
            .and_then(|p| p.start_time.clone())
            .or_else(|| Some(seconds(facts.now))),
        qos_class: Some(resources::qos_name(resources::qos_class(facts.pod)).to_owned()),
        init_container_statuses: (!init_statuses.is_empty()).then_some(init_statuses),
        container_statuses: Some(main_statuses),
        ..PodStatus::default()
    }
}

fn addresses<T>(ips: &[IpAddr], make: impl Fn(String) -> T) -> Option<Vec<T>> {
    (!ips.is_empty()).then(|| ips.iter().map(|ip| make(ip.to_string())).collect())
}

/// A time as Kubernetes writes it: whole seconds.
pub fn seconds(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

fn parse(at: &str) -> Option<Time> {
    at.parse::<Timestamp>().ok().map(seconds)
}

fn container(facts: &Facts<'_>, it: &ContainerFacts<'_>, init: bool) -> ContainerStatus {
    if let Some(kept) = forgotten(facts, it, init) {
        return kept;
    }
    let (state, last_state) = states(facts, it);
    let running = state.running.is_some();
    let done = state.terminated.as_ref().is_some_and(|t| t.exit_code == 0);
    let regular_init = init && !resources::is_sidecar(it.spec);
    let ready = if regular_init {
        done
    } else {
        running && it.ready
    };
    let shown = it.current.or(it.previous).map(|a| &a.record);
    ContainerStatus {
        name: it.spec.name.clone(),
        image: shown
            .map(|r| r.image.clone())
            .or_else(|| it.spec.image.clone())
            .unwrap_or_default(),
        image_id: shown.map(|r| r.image_id.clone()).unwrap_or_default(),
        container_id: shown.map(|r| container_id(&r.id)),
        restart_count: shown.map_or(0, |r| i32::try_from(r.attempt).unwrap_or(i32::MAX)),
        ready,
        started: Some(running && it.started),
        state: Some(state),
        last_state: Some(last_state.unwrap_or_default()),
        resources: running.then(|| it.spec.resources.clone().unwrap_or_default()),
        allocated_resources: it
            .spec
            .resources
            .as_ref()
            .filter(|_| running)
            .and_then(|r: &ResourceRequirements| r.requests.clone()),
        volume_mounts: volume_mounts(it.spec),
        ..ContainerStatus::default()
    }
}

/// What was said of a container whose records are gone, for a pod that has ended.
fn forgotten(facts: &Facts<'_>, it: &ContainerFacts<'_>, init: bool) -> Option<ContainerStatus> {
    if !facts.terminal || it.current.is_some() || it.previous.is_some() {
        return None;
    }
    let previous = facts.previous?;
    let list = if init {
        previous.init_container_statuses.as_ref()
    } else {
        previous.container_statuses.as_ref()
    };
    let kept = list?.iter().find(|s| s.name == it.spec.name)?;
    let ended = kept.state.as_ref().is_some_and(|s| s.terminated.is_some());
    ended.then(|| kept.clone())
}

/// A container's id as the API has it.
pub fn container_id(id: &str) -> String {
    format!("skiff://{id}")
}

fn volume_mounts(spec: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = spec.volume_mounts.as_ref().filter(|m| !m.is_empty())?;
    let status = |mount: &k8s_openapi::api::core::v1::VolumeMount| {
        let read_only = mount.read_only == Some(true);
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| "Disabled".to_owned()),
            ..VolumeMountStatus::default()
        }
    };
    Some(mounts.iter().map(status).collect())
}

fn states(facts: &Facts<'_>, it: &ContainerFacts<'_>) -> (ContainerState, Option<ContainerState>) {
    let before = it.previous.and_then(terminated);
    let current = it.current;
    if let Some(attempt) = current {
        let running = match &attempt.record.state {
            Recorded::Running { started_at, .. } => parse(started_at),
            _ => None,
        };
        if let (Some(started_at), None) = (running, it.waiting) {
            let state = ContainerState {
                running: Some(ContainerStateRunning {
                    started_at: Some(started_at),
                }),
                ..ContainerState::default()
            };
            return (state, before);
        }
        if let (Some(ended), None) = (terminated(attempt), it.waiting) {
            return (ended, before);
        }
    }
    if it.waiting.is_none() && facts.terminal && initialized(facts) {
        // It never ran and never will.
        let state = ContainerState {
            terminated: Some(ContainerStateTerminated {
                exit_code: 137,
                reason: Some("ContainerStatusUnknown".to_owned()),
                message: Some(
                    "The container could not be located when the pod was terminated".to_owned(),
                ),
                ..ContainerStateTerminated::default()
            }),
            ..ContainerState::default()
        };
        return (state, before);
    }
    let state = ContainerState {
        waiting: Some(waiting(facts, it)),
        ..ContainerState::default()
    };
    (state, current.and_then(terminated).or(before))
}

/// Every init container did its work, so that the others were due.
fn initialized(facts: &Facts<'_>) -> bool {
    facts.init.iter().all(|it| {
        let ended = it.current.and_then(terminated).and_then(|s| s.terminated);
        resources::is_sidecar(it.spec) || ended.is_some_and(|t| t.exit_code == 0)
    })
}

fn waiting(facts: &Facts<'_>, it: &ContainerFacts<'_>) -> ContainerStateWaiting {
    if let Some(waiting) = it.waiting {
        return ContainerStateWaiting {
            reason: Some(waiting.reason.clone()),
            message: waiting.message.clone(),
        };
    }
    let reason = if facts.init.is_empty() {
        "ContainerCreating"
    } else {
        "PodInitializing"
    };
    ContainerStateWaiting {
        reason: Some(reason.to_owned()),
        message: None,
    }
}

/// The terminated state of an attempt that ended.
fn terminated(attempt: &Attempt) -> Option<ContainerState> {
    let Recorded::Exited {
        started_at,
        finished_at,
        exit_code,
        signal,
        oom_killed,
        lost,
        error,
    } = &attempt.record.state
    else {
        return None;
    };
    let not_started = *exit_code == START_ERROR_EXIT_CODE && started_at.is_none();
    let reason = match exit_code {
        _ if *lost => "Unknown",
        _ if *oom_killed => "OOMKilled",
        _ if not_started => "StartError",
        0 => "Completed",
        _ => "Error",
    };
    Some(ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: *exit_code,
            signal: *signal,
            reason: Some(reason.to_owned()),
            message: attempt.message.clone().or_else(|| error.clone()),
            // The zero time, as containerd reports a container that never started.
            started_at: match started_at {
                Some(at) => parse(at),
                None => Some(Time(Timestamp::UNIX_EPOCH)),
            },
            finished_at: parse(finished_at),
            container_id: Some(container_id(&attempt.record.id)),
        }),
        ..ContainerState::default()
    })
}
