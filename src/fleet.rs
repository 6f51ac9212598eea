//! `skiff up --nodes N`: a control plane in this process, and N nodes beside it on this host.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::{FutureExt, StreamExt};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use skiff_agent::fleet::{Fleet, MakeToken, Supervisor};
use tokio::sync::mpsc;
use tracing::info;

use crate::control_plane::{cluster_blocks, publish};
use crate::data_dir::DataDir;
use crate::hooks::ControlPlaneProcess;
use crate::restart;
use crate::serving::{self, StopSignals, announce};
use crate::token;
use crate::up::UpArgs;

/// Long enough for a node to join on a busy host; its token is of no use afterwards.
const TOKEN_TTL: Duration = Duration::from_secs(600);

/// A control plane with the nodes that it keeps on this host.
struct Cluster {
    control_plane: skiff_controlplane::Running,
    nodes: Supervisor,
    url: String,
    /// Orderly restarts that drills ask for.
    restarts: mpsc::Receiver<Duration>,
}

/// Serves until a signal; the nodes' agents end with this process, their containers run on.
pub async fn serve(
    args: &UpArgs,
    data_dir: &DataDir,
    mut signals: StopSignals,
) -> anyhow::Result<()> {
    loop {
        let mut cluster = signals.unless(Cluster::start(args, data_dir)).await?;
        announce(&cluster.url)?;
        let down = tokio::select! {
            signal = signals.next() => {
                info!(signal, "stopping; containers run on");
                None
            }
            Some(down) = cluster.restarts.recv() => Some(down),
        };
        let Some(down) = down else {
            cluster.nodes.stop().await;
            cluster.control_plane.shutdown().await;
            return Ok(());
        };
        // Only the control plane is to restart.
        cluster.nodes.leave().await;
        cluster.control_plane.shutdown().await;
        signals.unless(restart::begin_anew(down)).await?;
    }
}

impl Cluster {
    /// Resolves when the API answers and every node that is to run is Ready.
    async fn start(args: &UpArgs, data_dir: &DataDir) -> anyhow::Result<Self> {
        if data_dir.identity().pods_dir().exists() {
            anyhow::bail!(
                "this cluster was started without --nodes, with the host as its node: take another --data-dir"
            );
        }
        let blocks = cluster_blocks(data_dir).await?;
        let mut config = args.control_plane.config(data_dir, blocks);
        let mut fleet = make(args, data_dir, blocks.pods).await?;
        config.advertise = Some(fleet.host_address());
        config.node_cidr = Some(fleet.block());
        let (hooks, restarts) = ControlPlaneProcess::new();
        config.drill_hooks = Some(Arc::new(hooks.with_fleet(fleet.clone())?));
        let (control_plane, url) = args.control_plane.start(data_dir, config).await?;
        let listen = control_plane
            .local_addr
            .unwrap_or(args.control_plane.listen);
        let inside = SocketAddr::new(fleet.host_address().into(), listen.port());
        fleet.set_server(&format!("https://{inside}"))?;
        publish(&control_plane, serving::remote(listen), blocks).await?;
        let nodes = Supervisor::start(&fleet, tokens(&control_plane))?;
        all_ready(&control_plane.client, &fleet).await?;
        Ok(Self {
            control_plane,
            nodes,
            url,
            restarts,
        })
    }
}

async fn make(args: &UpArgs, data_dir: &DataDir, pods: Ipv4Net) -> anyhow::Result<Fleet> {
    let identity = data_dir.identity().clone();
    let nodes = args.nodes;
    let mut flags = vec![
        "--resolv-conf".to_owned(),
        args.resolv_conf.display().to_string(),
    ];
    if args.pulling.offline {
        flags.push("--offline".to_owned());
    }
    // The nodes have data directories of their own.
    let beside = data_dir.path().join("registries.d");
    let registries = args.pulling.registry_config.clone();
    if let Some(registries) = registries.or_else(|| beside.is_dir().then_some(beside)) {
        let registries = registries.canonicalize();
        let registries = registries.context("cannot read the --registry-config")?;
        flags.push("--registry-config".to_owned());
        flags.push(registries.display().to_string());
    }
    let made = tokio::task::spawn_blocking(move || Fleet::make(&identity, nodes, pods, flags));
    Ok(made.await??)
}

/// Each node joins with a token of its own.
fn tokens(control_plane: &skiff_controlplane::Running) -> MakeToken {
    let client = control_plane.client.clone();
    let authority = control_plane.pki.ca().to_owned();
    Arc::new(move || {
        let (client, authority) = (client.clone(), authority.clone());
        async move {
            let usages = ["authentication".to_owned()];
            let description = Some("a node of this host");
            token::create(&client, &authority, TOKEN_TTL, &usages, description)
                .await
                .map_err(|error| format!("{error:#}"))
        }
        .boxed()
    })
}

/// Waits until every node that is to run is Ready.
async fn all_ready(client: &kube::Client, fleet: &Fleet) -> anyhow::Result<()> {
    let listing = fleet.clone();
    let listed = tokio::task::spawn_blocking(move || listing.wanted()).await??;
    let mut missing: HashSet<String> = listed.into_iter().collect();
    let nodes: Api<Node> = Api::all(client.clone());
    let changes = watcher(nodes, watcher::Config::default())
        .default_backoff()
        .applied_objects();
    let mut changes = pin!(changes);
    while !missing.is_empty() {
        let Some(change) = changes.next().await else {
            anyhow::bail!("the watch of the nodes ended");
        };
        let Ok(node) = change else { continue };
        if is_ready(&node) {
            missing.remove(node.metadata.name.as_deref().unwrap_or_default());
        }
    }
    Ok(())
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|c| c.type_ == "Ready" && c.status == "True")
}
