//! Stand-ins for the agents that probe and break things in failure drills.

use std::collections::HashMap;
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use skiff_dev::{Action, DrillTask, TaskPhase};
use tokio::task::JoinHandle;

use crate::cluster::Cluster;

/// How a stand-in for an agent carries out tasks.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Manner {
    /// Everything goes well.
    Well,
    /// Faults fail.
    Fails,
    /// Probes are never answered.
    Unanswered,
    /// Faults are brought about, and never undone.
    NeverEnds,
}

/// Plays all agents: carries out tasks as their statuses would tell.
pub(crate) fn agents(cluster: &Cluster, manner: Manner) -> JoinHandle<()> {
    let client = cluster.client.clone();
    tokio::spawn(async move {
        let api: Api<DrillTask> = Api::all(client.clone());
        let mut changes = Box::pin(watcher(api, watcher::Config::default()).applied_objects());
        let mut probes: HashMap<String, JoinHandle<()>> = HashMap::new();
        while let Some(change) = changes.next().await {
            let Ok(task) = change else { continue };
            let status = task.status.clone().unwrap_or_default();
            let is_probe = matches!(task.spec.action, Action::Probe { .. });
            let is_over = task.spec.stop || task.metadata.deletion_timestamp.is_some();
            match status.phase {
                TaskPhase::Pending if !is_over && is_probe => {
                    let probing = tokio::spawn(probe(client.clone(), task.name_any(), manner));
                    probes.insert(task.name_any(), probing);
                }
                TaskPhase::Pending if manner == Manner::Fails => {
                    let failed = json!({"phase": "Failed", "message": "the disk is shared"});
                    tell(&client, &task.name_any(), failed).await;
                }
                TaskPhase::Pending if !is_over => {
                    let now = Timestamp::now().to_string();
                    let active = json!({"phase": "Active", "startedAt": now});
                    tell(&client, &task.name_any(), active).await;
                }
                TaskPhase::Pending | TaskPhase::Active
                    if is_over && (is_probe || manner != Manner::NeverEnds) =>
                {
                    if let Some(probing) = probes.remove(&task.name_any()) {
                        probing.abort();
                    }
                    let now = Timestamp::now().to_string();
                    let ended = json!({"phase": "Ended", "endedAt": now});
                    tell(&client, &task.name_any(), ended).await;
                }
                _ => {}
            }
            if task.metadata.deletion_timestamp.is_some() && manner != Manner::NeverEnds {
                let api: Api<DrillTask> = Api::all(client.clone());
                let free = Patch::Merge(json!({"metadata": {"finalizers": null}}));
                let _ = api
                    .patch(&task.name_any(), &PatchParams::default(), &free)
                    .await;
            }
        }
    })
}

/// Good answers, or none, counted as an agent would.
async fn probe(client: Client, name: String, manner: Manner) {
    let began = Timestamp::now().to_string();
    for sent in 1.. {
        let mut status = json!({"phase": "Active", "startedAt": began, "healthy": true,
            "healthySince": began, "requests": {"sent": sent * 3, "failed": 0, "longestGap": 0.1}});
        if manner == Manner::Unanswered {
            status["healthy"] = json!(false);
            status["healthySince"] = Value::Null;
            status["requests"]["failed"] = json!(sent * 3);
            status["requests"]["errors"] = json!([{"reason": "connection refused", "count": 1}]);
        }
        tell(&client, &name, status).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

async fn tell(client: &Client, task: &str, status: Value) {
    let api: Api<DrillTask> = Api::all(client.clone());
    let patch = Patch::Merge(json!({"status": status}));
    let _ = api
        .patch_status(task, &PatchParams::default(), &patch)
        .await;
}
