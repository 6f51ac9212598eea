//! `skiff node`: the nodes of `skiff up --nodes N`, which can be killed, cut off and brought back.
//!
//! It works on the data directory and the host, whether `up` runs or not.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand};
use skiff_agent::fleet::{Fleet, FleetError, Listed, State};

use crate::data_dir::{self, DataDir};
use crate::output::{Format, Table};
use crate::preflight;

/// How long a node's agent may take to appear.
const START: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(20);

#[derive(Args)]
pub struct NodeArgs {
    /// The data directory of the cluster
    #[arg(long, value_name = "DIR", default_value = data_dir::DEFAULT, global = true)]
    data_dir: PathBuf,
    #[command(subcommand)]
    command: NodeCommand,
}

#[derive(Subcommand)]
enum NodeCommand {
    /// List the nodes
    List(ListArgs),
    /// End everything of a node at once: agent, shims, containers, network
    Kill(NameArgs),
    /// Cut a node off from all others; its pods live on
    Cut(NameArgs),
    /// Connect a node again that was cut off
    Heal(NameArgs),
    /// Bring a node back that was killed
    Start(NameArgs),
}

#[derive(Args)]
struct ListArgs {
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Args)]
struct NameArgs {
    /// The node's name
    name: String,
}

pub fn run(args: NodeArgs) -> anyhow::Result<ExitCode> {
    preflight::require_root("node")?;
    let fleet = Fleet::open(&args.data_dir)?;
    match args.command {
        NodeCommand::List(list) => print(&fleet.list()?, list.output)?,
        NodeCommand::Kill(node) => done(fleet.kill(&node.name), &node.name, "killed")?,
        NodeCommand::Cut(node) => done(fleet.cut(&node.name), &node.name, "cut off")?,
        NodeCommand::Heal(node) => done(fleet.heal(&node.name), &node.name, "connected")?,
        NodeCommand::Start(node) => {
            start(&fleet, &args.data_dir, &node.name)?;
            println!("node {} started", node.name);
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn done(result: Result<(), FleetError>, name: &str, what: &str) -> anyhow::Result<()> {
    result?;
    println!("node {name} {what}");
    Ok(())
}

/// `up` starts what is wanted; without it, this process does.
fn start(fleet: &Fleet, data_dir: &std::path::Path, name: &str) -> anyhow::Result<()> {
    fleet.start(name)?;
    if let Ok(alone) = DataDir::try_lock(data_dir)? {
        fleet.spawn(name)?;
        drop(alone);
    }
    let began = Instant::now();
    while !fleet.is_running(name)? {
        if began.elapsed() > START {
            anyhow::bail!(
                "the agent of node {name} does not start: see {}",
                data_dir.join("nodes").join(format!("{name}.log")).display()
            );
        }
        // It is another process that starts it, and whose children are not this one's to wait for.
        std::thread::sleep(LOOK);
    }
    Ok(())
}

fn print(nodes: &[Listed], format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        println!(
            "{}",
            serde_json::to_string_pretty(nodes).context("cannot print the nodes")?
        );
        return Ok(());
    }
    let mut table = Table::new(["NAME", "STATE", "ADDRESS", "PID"]);
    for node in nodes {
        let state = match node.state {
            State::Running => "running",
            State::Cut => "cut",
            State::Killed => "killed",
            State::Stopped => "stopped",
        };
        table.row([
            node.name.clone(),
            state.to_owned(),
            node.address.to_string(),
            node.pid.map_or_else(|| "-".into(), |pid| pid.to_string()),
        ]);
    }
    print!("{table}");
    Ok(())
}
