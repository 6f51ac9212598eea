//! `skiff up`: a control plane and this host's node agent, in one process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use skiff_agent::fleet::Fleet;
use skiff_agent::net::ClusterBlocks;
use skiff_agent::net::dns::resolv_conf::HOST_FILE;
use skiff_agent::server::Serving;
use skiff_agent::{Agent, ApiServer};
use tokio::sync::mpsc;
use tokio::task::JoinError;
use tracing::info;

use crate::control_plane::{ControlPlaneArgs, cluster_blocks, publish};
use crate::data_dir::{self, DataDir};
use crate::fleet;
use crate::hooks::{AgentProcess, ControlPlaneProcess};
use crate::preflight;
use crate::pulling::PullingArgs;
use crate::restart;
use crate::serving::{self, StopSignals, announce};

pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
const CONTROL_PLANE_ROLE: &str = "node-role.kubernetes.io/control-plane";

#[derive(Args)]
pub struct UpArgs {
    /// Where the cluster keeps its state; a second cluster takes another directory
    #[arg(long, value_name = "DIR", default_value = data_dir::DEFAULT)]
    pub(crate) data_dir: PathBuf,
    #[command(flatten)]
    pub(crate) control_plane: ControlPlaneArgs,
    #[command(flatten)]
    pub(crate) pulling: PullingArgs,
    /// Names the servers that resolve what is not the cluster's
    #[arg(long, value_name = "FILE", default_value = HOST_FILE)]
    pub(crate) resolv_conf: PathBuf,
    /// Run N nodes on this host, each in a network of its own, instead of the host as one; a
    /// cluster keeps the nodes that it has
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=200))]
    pub(crate) nodes: Option<u16>,
}

/// Serves until SIGTERM or SIGINT; containers run on when it ends.
pub fn run(args: UpArgs) -> anyhow::Result<ExitCode> {
    preflight::require_root("up")?;
    let data_dir = DataDir::open(&args.data_dir)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(&args, &data_dir))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: &UpArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    skiff_agent::runtime::preflight::check(data_dir.path()).await?;
    let mut signals = StopSignals::listen()?;
    restart::inherit()?;
    signals.unless(restart::turn()).await?;
    if args.nodes.is_some() || Fleet::exists(data_dir.path()) {
        return fleet::serve(args, data_dir, signals).await;
    }
    loop {
        let mut cluster = signals.unless(Cluster::start(args, data_dir)).await?;
        announce(&cluster.url)?;
        let end = cluster.end(&mut signals).await;
        cluster.shutdown().await;
        match end {
            End::Stopped => return Ok(()),
            End::Failed(error) => return Err(error).context("a part of the node agent failed"),
            End::Restart(down) => signals.unless(restart::begin_anew(down)).await?,
        }
    }
}

/// The parts of `skiff up`.
struct Cluster {
    control_plane: skiff_controlplane::Running,
    agent: skiff_agent::Running,
    url: String,
    /// Orderly restarts that drills ask for.
    restarts: mpsc::Receiver<Duration>,
}

/// Why a cluster is to stop.
enum End {
    Stopped,
    Failed(JoinError),
    /// To start again after this time.
    Restart(Duration),
}

impl Cluster {
    /// Resolves when the API answers and the node is registered and Ready.
    async fn start(args: &UpArgs, data_dir: &DataDir) -> anyhow::Result<Self> {
        let blocks = cluster_blocks(data_dir).await?;
        let mut config = args.control_plane.config(data_dir, blocks);
        let (hooks, restarts) = ControlPlaneProcess::new();
        config.drill_hooks = Some(Arc::new(hooks.with_own_node(serving::host_name()?)));
        let (control_plane, url) = args.control_plane.start(data_dir, config).await?;
        let address = control_plane
            .local_addr
            .unwrap_or(args.control_plane.listen);
        publish(&control_plane, serving::remote(address), blocks).await?;
        let agent = Agent::start(agent_config(args, data_dir, &control_plane, blocks).await?)
            .await
            .context("the node agent does not start")?;
        agent.registered().await;
        mark_control_plane(&control_plane.client).await?;
        Ok(Self {
            control_plane,
            agent,
            url,
            restarts,
        })
    }

    async fn end(&mut self, signals: &mut StopSignals) -> End {
        tokio::select! {
            signal = signals.next() => {
                info!(signal, "stopping; containers run on");
                End::Stopped
            }
            error = self.agent.failed() => error.map_or(End::Stopped, End::Failed),
            Some(down) = self.restarts.recv() => End::Restart(down),
        }
    }

    async fn shutdown(self) {
        self.agent.shutdown().await;
        self.control_plane.shutdown().await;
    }
}

/// Gives this host's node its role, which is not for a node itself to choose.
async fn mark_control_plane(client: &kube::Client) -> anyhow::Result<()> {
    let nodes: kube::Api<Node> = kube::Api::all(client.clone());
    let patch = json!({"metadata": {"labels": {CONTROL_PLANE_ROLE: ""}}});
    nodes
        .patch(
            &serving::host_name()?,
            &PatchParams::default(),
            &Patch::Merge(patch),
        )
        .await
        .context("cannot mark the node as the control plane's")?;
    Ok(())
}

async fn agent_config(
    args: &UpArgs,
    data_dir: &DataDir,
    control_plane: &skiff_controlplane::Running,
    blocks: ClusterBlocks,
) -> anyhow::Result<skiff_agent::Config> {
    let identity = data_dir.identity();
    let node_name = serving::host_name()?;
    let address = skiff_agent::node::host_address();
    let pki = &control_plane.pki;
    let issued = pki.issue_node(&node_name, &[node_name.clone(), address.to_string()])?;
    let (chain, key) = issued.serving.der()?;
    let (images, puller) = args.pulling.open(data_dir).await?;
    Ok(skiff_agent::Config {
        identity: identity.clone(),
        client: control_plane.node_client(&node_name),
        api: ApiServer {
            url: None,
            authority: pki.ca().to_owned(),
        },
        node_name,
        labels: BTreeMap::new(),
        taints: Vec::new(),
        address,
        images,
        puller,
        offline: args.pulling.offline,
        listen: SocketAddr::new(address, 0),
        credentials: skiff_agent::server::Credentials {
            serving: Serving::new(chain, key)?,
            client_authority: pki.ca_der()?,
        },
        resolv_conf: args.resolv_conf.clone(),
        blocks,
        max_pods: skiff_agent::MAX_PODS,
        image_gc: args.pulling.image_gc(),
        hooks: Arc::new(AgentProcess {
            with_control_plane: true,
        }),
    })
}
