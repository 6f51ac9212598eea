//! `skiff ps`: the containers of this host.

use std::process::ExitCode;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use skiff_agent::runtime::types::{ContainerRecord, ContainerState};

use crate::local::{LocalPod, NodeArgs};
use crate::output::{Format, Table, age};

#[derive(Debug, Args)]
pub struct PsArgs {
    #[command(flatten)]
    node: NodeArgs,
    /// Containers that have ended too
    #[arg(short, long)]
    all: bool,
    /// How to print them
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// A container, as scripts see it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    /// Where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    namespace: String,
    pod: String,
    container: String,
    id: String,
    image: String,
    state: &'static str,
    pid: Option<i32>,
    restart_count: u32,
    started_at: Option<String>,
    exit_code: Option<i32>,
    #[serde(skip)]
    created_at: String,
}

pub async fn run(args: PsArgs) -> anyhow::Result<ExitCode> {
    let pods = args.node.nodes()?.pods().await?;
    let mut listed: Vec<Listed> = pods
        .iter()
        .flat_map(|pod| pod.current().map(|record| Listed::of(pod, record)))
        .collect();
    listed.retain(|container| args.all || container.state != "exited");
    match args.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&listed)?),
        Format::Table => print_table(&listed),
    }
    Ok(ExitCode::SUCCESS)
}

impl Listed {
    fn of(pod: &LocalPod, record: &ContainerRecord) -> Self {
        let (started_at, exit_code) = match &record.state {
            ContainerState::Created => (None, None),
            ContainerState::Running { started_at, .. } => (Some(started_at.clone()), None),
            ContainerState::Exited {
                started_at,
                exit_code,
                ..
            } => (started_at.clone(), Some(*exit_code)),
        };
        let state = pod.state(record);
        Self {
            node: pod.node.clone(),
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            container: record.name.clone(),
            id: record.id.clone(),
            image: record.image.clone(),
            state,
            pid: record.pid().filter(|_| state == "running"),
            restart_count: record.attempt,
            started_at,
            exit_code,
            created_at: record.created_at.clone(),
        }
    }

    fn state_and_code(&self) -> String {
        match self.exit_code {
            Some(code) => format!("{} ({code})", self.state),
            None => self.state.to_owned(),
        }
    }
}

fn print_table(listed: &[Listed]) {
    let now = Timestamp::now();
    let several = listed.iter().any(|container| container.node.is_some());
    let headings = [
        "NAMESPACE",
        "POD",
        "CONTAINER",
        "ID",
        "IMAGE",
        "STATE",
        "PID",
        "RESTARTS",
        "AGE",
    ];
    let node = several.then_some("NODE");
    let mut table = Table::new(node.into_iter().chain(headings));
    for container in listed {
        let since = container
            .started_at
            .as_ref()
            .unwrap_or(&container.created_at);
        let cells = [
            container.namespace.clone(),
            container.pod.clone(),
            container.container.clone(),
            container.id.chars().take(12).collect(),
            container.image.clone(),
            container.state_and_code(),
            container
                .pid
                .map_or_else(|| "-".into(), |pid| pid.to_string()),
            container.restart_count.to_string(),
            age(since, now),
        ];
        table.row(container.node.clone().into_iter().chain(cells));
    }
    print!("{table}");
}
