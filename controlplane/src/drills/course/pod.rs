//! One pod of a drill, as it was last seen.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};

use crate::controllers::pod_state::{self, Phase};
use crate::drills::plan::pod_object;

/// What is known of a pod.
#[derive(Debug, Default)]
pub(in crate::drills) struct PodTrack {
    /// As `pod/web-1`.
    pub(in crate::drills) object: String,
    pub(in crate::drills) node: String,
    pub(in crate::drills) state: String,
    /// Whether the Service that is asked is to lead to it.
    pub(super) is_selected: bool,
    pub(in crate::drills) ready_since: Option<Timestamp>,
    /// Since when it serves no more: it is being deleted, has finished or is gone.
    pub(in crate::drills) left_at: Option<Timestamp>,
    pub(in crate::drills) gone_at: Option<Timestamp>,
    /// How often its containers were started anew in its life.
    pub(in crate::drills) restarts: i64,
    containers: BTreeMap<String, ContainerTrack>,
}

#[derive(Debug, Default)]
struct ContainerTrack {
    running: String,
    terminated: String,
    /// When it was last seen to run anew.
    restarted_at: Option<Timestamp>,
}

/// What an update brought.
#[derive(Debug, Default)]
pub(super) struct News {
    pub(super) events: Vec<(&'static str, String)>,
    pub(super) is_any: bool,
}

impl PodTrack {
    pub(super) fn new(object: String) -> Self {
        Self {
            object,
            ..Self::default()
        }
    }

    /// When a container was last seen to run anew since the record began.
    pub(in crate::drills) fn restarted_at(&self, container: &str) -> Option<Timestamp> {
        self.containers.get(container)?.restarted_at
    }

    /// Takes over what a pod is now. `is_first`: how it is then is nothing that happened.
    pub(super) fn update(&mut self, at: Timestamp, pod: &Pod, is_first: bool) -> News {
        let mut news = News::default();
        debug_assert_eq!(self.object, pod_object(pod));
        let node = pod_state::node_name(pod).unwrap_or_default();
        if self.node != node {
            node.clone_into(&mut self.node);
            news.add("scheduled", format!("node/{node}"));
        }
        self.update_containers(at, pod, is_first, &mut news);
        let is_ready = pod_state::is_ready(pod) && pod_state::is_active(pod);
        match (self.ready_since, is_ready) {
            (None, true) => {
                self.ready_since = Some(at);
                news.add("ready", String::new());
            }
            (Some(_), false) => {
                self.ready_since = None;
                if pod_state::is_active(pod) {
                    news.add("notReady", String::new());
                }
            }
            _ => {}
        }
        if self.left_at.is_none() && !pod_state::is_active(pod) {
            self.left_at = Some(at);
            let event = match pod_state::phase(pod) {
                Phase::Succeeded | Phase::Failed => "finished",
                _ => "terminating",
            };
            news.add(event, String::new());
        }
        let state = state(pod);
        if self.state != state {
            self.state = state;
            news.is_any = true;
        }
        news
    }

    fn update_containers(&mut self, at: Timestamp, pod: &Pod, is_first: bool, news: &mut News) {
        let status = pod.status.as_ref();
        let statuses = status.and_then(|s| s.container_statuses.as_deref());
        let statuses = statuses.unwrap_or_default();
        let restarts = statuses.iter().map(|c| i64::from(c.restart_count)).sum();
        self.restarts = self.restarts.max(restarts);
        for container in statuses {
            let track = self.containers.entry(container.name.clone()).or_default();
            if let Some((id, ended)) = last_end(container)
                && track.terminated != id
            {
                id.clone_into(&mut track.terminated);
                let reason = ended.reason.as_deref().unwrap_or("Terminated");
                let told = format!(
                    "{}: {reason}, exit code {}",
                    container.name, ended.exit_code
                );
                news.add("terminated", told);
            }
            if let Some(id) = running_id(container)
                && track.running != id
            {
                let is_anew =
                    !track.running.is_empty() || (container.restart_count > 0 && !is_first);
                if is_anew {
                    track.restarted_at = Some(at);
                }
                id.clone_into(&mut track.running);
                news.add("started", container.name.clone());
            }
        }
    }

    pub(super) fn lose(&mut self, at: Timestamp) {
        self.left_at.get_or_insert(at);
        self.gone_at = Some(at);
        self.ready_since = None;
    }
}

impl News {
    fn add(&mut self, event: &'static str, detail: String) {
        self.events.push((event, detail));
        self.is_any = true;
    }
}

/// The container's last end: of the instance that is there, or of the one before.
fn last_end(container: &ContainerStatus) -> Option<(&str, &ContainerStateTerminated)> {
    let current = container.state.as_ref().and_then(|s| s.terminated.as_ref());
    let before = container.last_state.as_ref();
    let ended = current.or_else(|| before.and_then(|s| s.terminated.as_ref()))?;
    Some((ended.container_id.as_deref().unwrap_or_default(), ended))
        .filter(|(id, _)| !id.is_empty())
}

fn running_id(container: &ContainerStatus) -> Option<&str> {
    container.state.as_ref()?.running.as_ref()?;
    container
        .container_id
        .as_deref()
        .filter(|id| !id.is_empty())
}

/// The state of a pod in a word, much as kubectl's column `STATUS`; a running pod is `Ready` or not.
fn state(pod: &Pod) -> String {
    let phase = pod_state::phase(pod);
    let word = match phase {
        Phase::Succeeded => "Succeeded",
        Phase::Failed => "Failed",
        _ if pod.metadata.deletion_timestamp.is_some() => "Terminating",
        _ if pod_state::node_name(pod).is_none() => "Pending",
        _ if pod_state::is_ready(pod) => "Ready",
        _ => return unready_state(pod, phase),
    };
    word.to_owned()
}

fn unready_state(pod: &Pod, phase: Phase) -> String {
    let status = pod.status.as_ref();
    let statuses = status.and_then(|s| s.container_statuses.as_deref());
    for container in statuses.unwrap_or_default() {
        let Some(state) = &container.state else {
            continue;
        };
        if let Some(waiting) = &state.waiting
            && let Some(reason) = &waiting.reason
        {
            return reason.clone();
        }
        if let Some(ended) = &state.terminated {
            return ended.reason.clone().unwrap_or_else(|| "Error".into());
        }
    }
    match phase {
        Phase::Running => "Running".into(),
        _ => "ContainerCreating".into(),
    }
}
