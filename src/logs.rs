//! `skiff logs`: a container's log, straight from its file.

use std::io;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use jiff::{SignedDuration, Timestamp};
use skiff_agent::logs::{LogOptions, LogSource, LogStream, Watcher};
use tokio::io::AsyncWriteExt;

use crate::local::{NodeArgs, TargetArgs};

#[derive(Debug, Args)]
pub struct LogsArgs {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    target: TargetArgs,
    /// Go on until the container has ended
    #[arg(short, long)]
    follow: bool,
    /// The log of the attempt before the current one
    #[arg(short, long)]
    previous: bool,
    /// Only so many lines of what is there
    #[arg(long, value_name = "LINES", allow_negative_numbers = true)]
    tail: Option<i64>,
    /// Only what is newer than, such as 5s, 2m or 3h
    #[arg(long, value_name = "DURATION")]
    since: Option<SignedDuration>,
    /// Begin each line with its time
    #[arg(long)]
    timestamps: bool,
}

pub async fn run(args: LogsArgs) -> anyhow::Result<ExitCode> {
    let (pod, container) = args.node.nodes()?.find(&args.target).await?;
    let container = match container {
        Some(container) => container,
        None => pod.default_container()?,
    };
    let back = usize::from(args.previous);
    let Some(record) = pod.attempts(&container).rev().nth(back) else {
        match args.previous {
            true => bail!(
                "container {container} of pod {} has no previous log",
                pod.name
            ),
            false => bail!(
                "container {container} of pod {} was never started",
                pod.name
            ),
        }
    };
    let source = LogSource {
        log_path: record.log_path.clone(),
        state_dir: pod.dir.join("containers").join(&record.id),
    };
    let options = LogOptions {
        follow: args.follow,
        timestamps: args.timestamps,
        // kubectl's -1 means everything.
        tail: args.tail.and_then(|lines| u64::try_from(lines).ok()),
        since: args.since.map(|since| Timestamp::now() - since),
        ..LogOptions::default()
    };
    let path = record.log_path.display();
    let mut log = LogStream::open(source, options, &Watcher::new()?)
        .await
        .with_context(|| format!("opening the log {path}"))?;
    let mut stdout = tokio::io::stdout();
    while let Some(bytes) = log
        .next()
        .await
        .with_context(|| format!("reading {path}"))?
    {
        let written = async {
            stdout.write_all(&bytes).await?;
            stdout.flush().await
        };
        match written.await {
            // `skiff logs ... | head`
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => break,
            written => written.context("writing the log")?,
        }
    }
    Ok(ExitCode::SUCCESS)
}
