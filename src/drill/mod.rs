//! `skiff drill`: failure drills from the command line.
//!
//! A drill is an object of the API; the control plane carries it out and writes the report into its
//! status. Here it is made from options or files, followed to its end, and printed.
//!
//! ```text
//! options (options, target, probe) ─┐
//! files (manifest)                 ─┴> plan -> conduct: submit, follow (progress) -> report
//! ```

mod conduct;
mod follow;
mod heal;
mod list;
mod local;
mod manifest;
mod options;
mod plan;
mod probe;
mod progress;
mod report;
mod submit;
mod target;

use std::fmt;
use std::process::ExitCode;

use clap::{Args, Subcommand};

/// As in `up` and `server`: what is typed is wrong, nothing was done.
const WRONG_USAGE: u8 = 2;

#[derive(Args)]
pub struct DrillArgs {
    #[command(subcommand)]
    command: DrillCommand,
}

#[derive(Subcommand)]
enum DrillCommand {
    /// List the drills that there are
    List(list::ListArgs),
    /// Break something on purpose, wait for the recovery, and tell what happened
    Run(Box<options::RunArgs>),
    /// Print the report of a drill that was run before
    Report(report::ReportArgs),
    /// End all drills and undo what is still broken
    Heal(heal::HealArgs),
}

pub async fn run(args: DrillArgs) -> anyhow::Result<ExitCode> {
    let done = match args.command {
        DrillCommand::List(args) => list::run(&args),
        DrillCommand::Run(args) => conduct::run(*args).await,
        DrillCommand::Report(args) => report::run(args).await,
        DrillCommand::Heal(args) => heal::run(args).await,
    };
    match done {
        Err(error) if error.is::<UsageError>() => {
            eprintln!("skiff: {error:#}");
            Ok(ExitCode::from(WRONG_USAGE))
        }
        done => done,
    }
}

/// What was asked for makes no sense, so that nothing was begun.
#[derive(Debug)]
struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

impl UsageError {
    fn of(message: impl Into<String>) -> anyhow::Error {
        Self(message.into()).into()
    }
}
