//! `skiff up`: a control plane and this host's node agent, in one process.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use skiff_agent::Agent;
use skiff_agent::net::dns::resolv_conf::HOST_FILE;
use skiff_agent::net::{Cidr, ClusterBlocks};
use skiff_controlplane::ControlPlane;
use skiff_controlplane::auth::kubeconfig;
use skiff_images::registry::{Registries, RegistryConfig};
use skiff_images::{Offline, Puller, RegistryPuller, Store};
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::data_dir::{self, DataDir};
use crate::image::LimitArgs;
use crate::preflight;

pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
const CONTROL_PLANE_ROLE: &str = "node-role.kubernetes.io/control-plane";

#[derive(Args)]
pub struct UpArgs {
    /// Where the cluster keeps its state; a second cluster takes another directory
    #[arg(long, value_name = "DIR", default_value = data_dir::DEFAULT)]
    data_dir: PathBuf,
    /// The address and port on which the Kubernetes API is served
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    listen: SocketAddr,
    /// Write the client configuration to this file too (mode 0600)
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Never fetch an image: those that are present serve, whatever the pull policy
    #[arg(long)]
    offline: bool,
    /// Where hosts.toml files say how registries are reached, in the layout of containerd's
    /// certs.d; asked before DIR/registries.d of the data directory and /etc/skiff/registries.d
    #[arg(long, value_name = "DIR")]
    registry_config: Option<PathBuf>,
    /// Percent of the disk in use from which on unused images are removed; 100 is never
    #[arg(long, value_name = "PERCENT", default_value_t = 85, value_parser = clap::value_parser!(u8).range(1..=100))]
    image_gc_high_threshold: u8,
    /// Percent of the disk in use down to which unused images are removed
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u8).range(0..=100))]
    image_gc_low_threshold: u8,
    /// Names the servers that resolve what is not the cluster's
    #[arg(long, value_name = "FILE", default_value = HOST_FILE)]
    resolv_conf: PathBuf,
    #[command(flatten)]
    limits: LimitArgs,
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
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopped = async {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    tokio::pin!(stopped);
    let mut cluster = tokio::select! {
        cluster = Cluster::start(args, data_dir) => cluster?,
        signal = &mut stopped => anyhow::bail!("interrupted by {signal} while starting"),
    };
    announce(&cluster.url)?;
    let failure = tokio::select! {
        signal = stopped => {
            info!(signal, "stopping; containers run on");
            None
        }
        error = cluster.agent.failed() => error,
    };
    cluster.shutdown().await;
    match failure {
        Some(error) => Err(error).context("a part of the node agent failed"),
        None => Ok(()),
    }
}

/// Tells whoever waits that requests are answered: a line on stdout, and systemd where it asked.
fn announce(url: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "ready {url}")
        .and_then(|()| stdout.flush())
        .context("cannot write to stdout")?;
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("cannot notify systemd")
}

/// The parts of `skiff up`.
struct Cluster {
    control_plane: skiff_controlplane::Running,
    agent: skiff_agent::Running,
    url: String,
}

impl Cluster {
    /// Resolves when the API answers and the node is registered and Ready.
    async fn start(args: &UpArgs, data_dir: &DataDir) -> anyhow::Result<Self> {
        let blocks = cluster_blocks(data_dir).await?;
        let mut config = skiff_controlplane::Config::new(data_dir.path(), Some(args.listen));
        config.advertise = advertised();
        config.cluster_cidr = for_control_plane(blocks.pods);
        config.service_cidr = for_control_plane(blocks.services);
        let control_plane = ControlPlane::start(config)
            .await
            .context("the control plane does not start")?;
        let url = format!(
            "https://{}",
            reachable(control_plane.local_addr.unwrap_or(args.listen))
        );
        for kubeconfig in [Some(&data_dir.kubeconfig()), args.kubeconfig.as_ref()]
            .into_iter()
            .flatten()
        {
            kubeconfig::write_admin(kubeconfig, &url, &control_plane.pki)?;
        }
        let agent = Agent::start(agent_config(args, data_dir, &control_plane, blocks).await?)
            .await
            .context("the node agent does not start")?;
        agent.registered().await;
        Ok(Self {
            control_plane,
            agent,
            url,
        })
    }

    async fn shutdown(self) {
        self.agent.shutdown().await;
        self.control_plane.shutdown().await;
    }
}

async fn agent_config(
    args: &UpArgs,
    data_dir: &DataDir,
    control_plane: &skiff_controlplane::Running,
    blocks: ClusterBlocks,
) -> anyhow::Result<skiff_agent::Config> {
    let identity = data_dir.identity();
    let node_name = node_name()?;
    let address = skiff_agent::node::host_address();
    let pki = &control_plane.pki;
    let issued = pki.issue_node(&node_name, &[node_name.clone(), address.to_string()])?;
    let (chain, key) = issued.serving.der()?;
    let images = Store::open_with(identity.images_dir(), args.limits.limits()).await?;
    let puller: Arc<dyn Puller> = if args.offline {
        Arc::new(Offline)
    } else {
        let extra = args.registry_config.clone();
        let registries = RegistryConfig::for_data_dir(data_dir.path(), extra);
        Arc::new(RegistryPuller::new(
            images.clone(),
            Registries::new(registries),
        ))
    };
    Ok(skiff_agent::Config {
        identity: identity.clone(),
        client: control_plane.client.clone(),
        node_name,
        labels: BTreeMap::from([(CONTROL_PLANE_ROLE.to_string(), String::new())]),
        address,
        images,
        puller,
        offline: args.offline,
        listen: SocketAddr::new(address, 0),
        credentials: skiff_agent::server::Credentials {
            chain,
            key,
            client_authority: pki.ca_der()?,
        },
        resolv_conf: args.resolv_conf.clone(),
        blocks,
        max_pods: skiff_agent::MAX_PODS,
        image_gc: skiff_agent::node::ImageGcPolicy {
            high_threshold: args.image_gc_high_threshold,
            low_threshold: args
                .image_gc_low_threshold
                .min(args.image_gc_high_threshold),
            ..Default::default()
        },
    })
}

/// The address by which pods reach the API; `None` on a host that has none but loopback.
fn advertised() -> Option<Ipv4Addr> {
    match skiff_agent::node::host_address() {
        IpAddr::V4(address) if !address.is_loopback() => Some(address),
        _ => None,
    }
}

/// The address blocks of this cluster, chosen when it first starts.
async fn cluster_blocks(data_dir: &DataDir) -> anyhow::Result<ClusterBlocks> {
    let identity = data_dir.identity().clone();
    tokio::task::spawn_blocking(move || ClusterBlocks::choose(&identity))
        .await?
        .context("no address blocks for pods and services")
}

fn for_control_plane(block: Cidr) -> skiff_controlplane::cidr::Cidr {
    skiff_controlplane::cidr::Cidr::containing(block.first(), block.prefix())
}

/// The host's name, as Kubernetes writes it.
fn node_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("cannot read the host name")?;
    Ok(name.to_string_lossy().trim().to_lowercase())
}

/// An address that a client on this host can use: a wildcard is not one.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => {
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
        }
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port())
        }
        _ => address,
    }
}
