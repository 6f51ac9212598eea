//! `skiff drill heal`: the end of all drills, and of everything that they have broken.
//!
//! What is broken is undone by those who broke it, the agents and the control plane; here they are told
//! to, and waited for. Where no API answers, that is done for the nodes of the data directory alone ([`super::local`]).

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use futures::StreamExt;
use futures::future::join_all;
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client};
use serde_json::json;
use skiff_dev::{Drill, DrillTask, GoDuration, TaskPhase};

use super::follow::{Retry, cancel, is_over};
use super::local;
use super::submit::in_words;
use crate::api_client::ApiArgs;
use crate::preflight;

#[derive(Args)]
pub struct HealArgs {
    #[command(flatten)]
    api: ApiArgs,
    /// How long to wait for everything to be undone
    #[arg(long, value_name = "DURATION", default_value = "1m")]
    timeout: GoDuration,
    /// Don't ask the API: undo what was done to the nodes of the data directory on this host
    #[arg(long)]
    local: bool,
}

/// Everything that is to end.
struct Unfinished {
    drills: Vec<String>,
    /// Name, and the node that has to undo it.
    tasks: Vec<(String, String)>,
}

pub async fn run(args: HealArgs) -> anyhow::Result<ExitCode> {
    if args.local {
        return here(&args).await;
    }
    let client = match args.api.client().await {
        Ok(client) => client,
        Err(error) => return here_instead(&args, error).await,
    };
    match unfinished(&client).await {
        Ok(left) => everywhere(&args, &client, left).await,
        Err(error) => here_instead(&args, error).await,
    }
}

/// Asks every node and the control plane.
async fn everywhere(
    args: &HealArgs,
    client: &Client,
    left: Unfinished,
) -> anyhow::Result<ExitCode> {
    let healing = tokio::time::timeout(args.timeout.0, heal(client, left));
    if let Ok(done) = healing.await {
        done?;
        println!("nothing is left to be undone");
        return Ok(ExitCode::SUCCESS);
    }
    let left = unfinished(client).await?;
    let drills = left.drills.into_iter().map(|name| format!("drill {name}"));
    let tasks = left.tasks.into_iter();
    let tasks = tasks.map(|(name, node)| format!("task {name} of {node}"));
    let left: Vec<String> = drills.chain(tasks).collect();
    anyhow::bail!(
        "after {} not everything is undone: {}; a node that is away undoes its part when its time is over or it is started again",
        args.timeout,
        left.join(", ")
    )
}

/// Where the API can't be asked, this host's own nodes are what can be healed; without any, that is an error.
async fn here_instead(args: &HealArgs, error: anyhow::Error) -> anyhow::Result<ExitCode> {
    if !local::has_nodes(args.api.data_dir()) {
        return Err(error);
    }
    eprintln!("skiff: {error:#}; healing the nodes of this host alone");
    here(args).await
}

async fn here(args: &HealArgs) -> anyhow::Result<ExitCode> {
    preflight::require_root("drill heal")?;
    let healed = local::heal(args.api.data_dir(), args.timeout.0).await?;
    for task in healed {
        println!("{task} undone");
    }
    println!("nothing is left to be undone on this host");
    Ok(ExitCode::SUCCESS)
}

async fn heal(client: &Client, left: Unfinished) -> anyhow::Result<()> {
    let drills: Api<Drill> = Api::all(client.clone());
    let tasks: Api<DrillTask> = Api::all(client.clone());
    for name in &left.drills {
        cancel(&drills, name).await?;
        println!("drill {name} cancelled");
    }
    // A drill that was deleted, or whose controller is gone, stops its tasks no more.
    for (name, _) in &left.tasks {
        stop(&tasks, name).await?;
    }
    let ended = left.tasks.iter().map(|(name, _)| until_ended(&tasks, name));
    join_all(ended).await;
    let over = left.drills.iter().map(|name| until_over(&drills, name));
    join_all(over).await;
    Ok(())
}

async fn unfinished(client: &Client) -> anyhow::Result<Unfinished> {
    let all = ListParams::default();
    let drills: Api<Drill> = Api::all(client.clone());
    let drills = drills.list(&all).await;
    let drills = drills.map_err(|error| anyhow::anyhow!(in_words(&error)));
    let drills = drills.context("cannot list the drills")?;
    let tasks: Api<DrillTask> = Api::all(client.clone());
    let tasks = tasks.list(&all).await;
    let tasks = tasks.map_err(|error| anyhow::anyhow!(in_words(&error)));
    let tasks = tasks.context("cannot list what the nodes do for drills")?;
    let drills = drills.items.into_iter().filter(|drill| !is_over(drill));
    let tasks = tasks.items.into_iter().filter(|task| !is_ended(task));
    Ok(Unfinished {
        drills: drills.filter_map(|drill| drill.metadata.name).collect(),
        tasks: tasks
            .filter_map(|task| {
                let node = task.spec.node_name.map(|name| format!("node {name}"));
                let doer = node.unwrap_or_else(|| "the control plane".to_owned());
                Some((task.metadata.name?, doer))
            })
            .collect(),
    })
}

fn is_ended(task: &DrillTask) -> bool {
    let phase = task.status.as_ref().map(|status| status.phase);
    matches!(phase, Some(TaskPhase::Ended | TaskPhase::Failed))
}

async fn stop(tasks: &Api<DrillTask>, name: &str) -> anyhow::Result<()> {
    let patch = Patch::Merge(json!({"spec": {"stop": true}}));
    match tasks.patch(name, &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => anyhow::bail!("task {name} can't be stopped: {}", in_words(&error)),
    }
}

async fn until_ended(tasks: &Api<DrillTask>, name: &str) {
    let mut states = std::pin::pin!(watch_object(tasks.clone(), name).backoff(Retry));
    while let Some(state) = states.next().await {
        match state {
            Ok(Some(task)) if is_ended(&task) => return,
            Ok(None) => return,
            Ok(Some(_)) | Err(_) => {}
        }
    }
}

async fn until_over(drills: &Api<Drill>, name: &str) {
    let mut states = std::pin::pin!(watch_object(drills.clone(), name).backoff(Retry));
    while let Some(state) = states.next().await {
        match state {
            Ok(Some(drill)) if is_over(&drill) => return,
            Ok(None) => return,
            Ok(Some(_)) | Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use skiff_dev::DrillTaskStatus;

    use super::*;

    #[test]
    fn a_task_that_nobody_has_begun_is_still_to_end() {
        assert!(!is_ended(&DrillTask::default()));
        for (phase, ended) in [
            (TaskPhase::Pending, false),
            (TaskPhase::Active, false),
            (TaskPhase::Ended, true),
            (TaskPhase::Failed, true),
        ] {
            let task = DrillTask {
                status: Some(DrillTaskStatus {
                    phase,
                    ..DrillTaskStatus::default()
                }),
                ..DrillTask::default()
            };
            assert_eq!(is_ended(&task), ended, "{phase:?}");
        }
    }
}
