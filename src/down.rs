//! `skiff down`: stops a cluster and removes what it made on this host.
//!
//! It needs nothing of the cluster to be alive: after a crash, or half-way through a start,
//! the names that derive from the data directory tell what there is to remove.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use skiff_agent::fleet::Fleet;
use skiff_agent::identity::Identity;

use crate::data_dir::{self, DataDir, Locked};
use crate::preflight;

/// How long a running `skiff up` may take to end before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the lock is tried again while the other process ends.
const RETRY: Duration = Duration::from_millis(20);

#[derive(Args)]
pub struct DownArgs {
    /// The data directory of the cluster
    #[arg(long, value_name = "DIR", default_value = data_dir::DEFAULT)]
    data_dir: PathBuf,
    /// Remove the data directory too: images, logs and every stored object
    #[arg(long)]
    purge: bool,
}

pub fn run(args: DownArgs) -> anyhow::Result<ExitCode> {
    preflight::require_root("down")?;
    if !args.data_dir.exists() {
        println!(
            "nothing to stop: {} does not exist",
            args.data_dir.display()
        );
        return Ok(ExitCode::SUCCESS);
    }
    let data_dir = stop_and_lock(&args)?;
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(remove(data_dir.identity()))
        .context(
            "cannot remove everything of the cluster from this host; run `skiff down` again",
        )?;
    if args.purge {
        data_dir.remove()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Nodes of the cluster's own first, then what the data directory itself has on this host.
async fn remove(identity: &Identity) -> anyhow::Result<()> {
    let fleet = match Fleet::exists(identity.data_dir()) {
        true => skiff_agent::fleet::purge(identity).await,
        false => Ok(()),
    };
    skiff_agent::purge(identity).await?;
    Ok(fleet?)
}

/// Ends the process that holds the data directory, if one does, and takes its lock.
fn stop_and_lock(args: &DownArgs) -> anyhow::Result<DataDir> {
    let asked_at = Instant::now();
    let mut asked = None;
    let mut killed = false;
    loop {
        let holder = match DataDir::try_lock(&args.data_dir)? {
            Ok(data_dir) => return Ok(data_dir),
            Err(Locked::By(holder)) => holder,
        };
        let overdue = asked_at.elapsed() > STOP_TIMEOUT;
        match holder {
            Some(pid) if overdue && !killed => {
                signal(pid, Signal::SIGKILL)?;
                killed = true;
            }
            Some(pid) if asked != Some(pid) && !overdue => {
                signal(pid, Signal::SIGTERM)?;
                asked = Some(pid);
            }
            _ if asked_at.elapsed() > 2 * STOP_TIMEOUT => anyhow::bail!(
                "the process that holds {} does not end",
                args.data_dir.display()
            ),
            _ => {}
        }
        // The kernel has no event for "a file lock was dropped"; this wait is short and bounded.
        std::thread::sleep(RETRY);
    }
}

fn signal(pid: Pid, signal: Signal) -> anyhow::Result<()> {
    match kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("cannot stop process {pid}")),
    }
}
