//! `skiff`: Kubernetes on Linux hosts in one small binary.
//!
//! This file reads the command line and hands over; each command is a module of its own.

mod agent;
mod api_client;
mod control_plane;
mod data_dir;
mod down;
mod drill;
mod exec;
mod fleet;
mod hooks;
mod image;
mod inspect;
mod local;
mod logs;
mod node;
mod output;
mod preflight;
mod ps;
mod pulling;
mod restart;
mod server;
mod serving;
mod terminal;
mod token;
mod up;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(name = "skiff", version = up::VERSION, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a control plane and register this host as its node, in the foreground
    Up(up::UpArgs),
    /// Run a control plane alone, in the foreground
    Server(server::ServerArgs),
    /// Make this host a node of a cluster, in the foreground
    Agent(agent::AgentArgs),
    /// List, kill, cut off and bring back the nodes of `up --nodes N`
    Node(node::NodeArgs),
    /// Look after the tokens that other hosts join with
    Token(token::TokenArgs),
    /// Stop the cluster of a data directory and remove what it made on this host
    Down(down::DownArgs),
    /// Break something on purpose, and measure how the cluster recovers
    Drill(drill::DrillArgs),
    /// Look after this node's images
    Image(image::ImageArgs),
    /// List this node's containers, with the control plane up or down
    Ps(ps::PsArgs),
    /// Tell everything about one pod's containers: processes, cgroups, mounts, namespaces
    Inspect(inspect::InspectArgs),
    /// Print a container's log
    Logs(logs::LogsArgs),
    /// Run a command in a container
    Exec(exec::ExecArgs),
}

fn main() -> ExitCode {
    if let Some(code) = skiff_agent::drill::helper::run_if_helper() {
        return code;
    }
    let cli = Cli::parse();
    log_to_stderr();
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("skiff: {}", in_a_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, each said once: many of them end with what caused them.
fn in_a_line(error: &anyhow::Error) -> String {
    let mut line = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !line.ends_with(&cause) {
            line = format!("{line}: {cause}");
        }
    }
    line
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) => up::run(args),
        Command::Server(args) => server::run(args),
        Command::Agent(args) => agent::run(args),
        Command::Node(args) => node::run(args),
        Command::Token(args) => block_on(token::run(args)),
        Command::Down(args) => down::run(args),
        Command::Drill(args) => block_on(drill::run(args)),
        Command::Image(args) => block_on(image::run(args)).map(|()| ExitCode::SUCCESS),
        Command::Ps(args) => block_on(ps::run(args)),
        Command::Inspect(args) => block_on(inspect::run(args)),
        Command::Logs(args) => block_on(logs::run(args)),
        Command::Exec(args) => block_on(exec::run(args)),
    }
}

/// Runs a short command.
fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}

/// What happens goes to stderr; `RUST_LOG` chooses how much of it.
fn log_to_stderr() {
    // What kube logs about connections, the agent tells in its own words.
    let quiet = ["kube_client::client=off", "kube_client::client::tls=off"];
    let mut filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .from_env_lossy();
    if std::env::var_os("RUST_LOG").is_none() {
        for directive in quiet.iter().filter_map(|text| text.parse().ok()) {
            filter = filter.add_directive(directive);
        }
    }
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
}

#[cfg(test)]
mod tests {
    use anyhow::{Context, anyhow};

    use super::*;

    #[test]
    fn causes_are_said_once() {
        let gone = "No such file (os error 2)";
        let error = anyhow!(gone).context(format!("cannot read a.tar: {gone}"));
        let error = error.context("cannot import it");
        assert_eq!(
            in_a_line(&error),
            format!("cannot import it: cannot read a.tar: {gone}")
        );
        let plain: anyhow::Result<()> = Err(anyhow!("refused")).context("asking");
        assert_eq!(in_a_line(&plain.expect_err("wrong")), "asking: refused");
    }
}
