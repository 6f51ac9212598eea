//! `skiff server`: a control plane without a node, which other hosts join.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use skiff_agent::net::ClusterBlocks;
use skiff_controlplane::Running;
use tracing::info;

use crate::control_plane::{ControlPlaneArgs, publish};
use crate::data_dir::{self, DataDir};
use crate::hooks::ControlPlaneProcess;
use crate::preflight;
use crate::restart;
use crate::serving::{self, StopSignals, announce};

#[derive(Args)]
pub struct ServerArgs {
    /// Where the control plane keeps its state
    #[arg(long, value_name = "DIR", default_value = data_dir::DEFAULT)]
    data_dir: PathBuf,
    #[command(flatten)]
    control_plane: ControlPlaneArgs,
}

/// Serves until SIGTERM or SIGINT.
pub fn run(args: ServerArgs) -> anyhow::Result<ExitCode> {
    preflight::require_root("server")?;
    let data_dir = DataDir::open(&args.data_dir)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(&args, &data_dir))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: &ServerArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    let mut signals = StopSignals::listen()?;
    restart::inherit()?;
    signals.unless(restart::turn()).await?;
    loop {
        let (hooks, mut restarts) = ControlPlaneProcess::new();
        let start = start(args, data_dir, hooks);
        let (control_plane, url) = signals.unless(start).await?;
        announce(&url)?;
        let down = tokio::select! {
            signal = signals.next() => {
                info!(signal, "stopping");
                None
            }
            Some(down) = restarts.recv() => Some(down),
        };
        control_plane.shutdown().await;
        match down {
            None => return Ok(()),
            Some(down) => signals.unless(restart::begin_anew(down)).await?,
        }
    }
}

async fn start(
    args: &ServerArgs,
    data_dir: &DataDir,
    hooks: ControlPlaneProcess,
) -> anyhow::Result<(Running, String)> {
    let identity = data_dir.identity().clone();
    let chosen = tokio::task::spawn_blocking(move || ClusterBlocks::choose_for_others(&identity));
    let blocks = chosen
        .await?
        .context("no address blocks for pods and services")?;
    let mut config = args.control_plane.config(data_dir, blocks);
    config.drill_hooks = Some(Arc::new(hooks));
    let (control_plane, url) = args.control_plane.start(data_dir, config).await?;
    let address = control_plane
        .local_addr
        .unwrap_or(args.control_plane.listen);
    publish(&control_plane, serving::remote(address), blocks).await?;
    Ok((control_plane, url))
}
