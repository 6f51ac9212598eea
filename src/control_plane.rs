//! Starting the control plane, as `skiff up` and `skiff server` do, and telling others of it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use skiff_agent::net::ClusterBlocks;
use skiff_controlplane::admission::DefaultTolerations;
use skiff_controlplane::auth::kubeconfig;
use skiff_controlplane::{Config, ControlPlane, Running, cluster_info};
use skiff_dev::GoDuration;

use crate::data_dir::DataDir;
use crate::serving;

/// How the API is served.
#[derive(Args, Clone)]
pub struct ControlPlaneArgs {
    /// The address and port on which the Kubernetes API is served; 0.0.0.0:6443 lets other hosts
    /// join
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6443")]
    pub listen: SocketAddr,
    /// Write the client configuration to this file too (mode 0600)
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The longest life of the certificates that nodes get
    #[arg(long, value_name = "DURATION", default_value = "8760h")]
    pub cluster_signing_duration: GoDuration,
    /// Seconds that pods stay on a node that is not ready, if they don't say
    #[arg(long, value_name = "SECONDS", default_value_t = 300,
        value_parser = clap::value_parser!(i64).range(0..))]
    pub default_not_ready_toleration_seconds: i64,
    /// Seconds that pods stay on a node that is not reachable, if they don't say
    #[arg(long, value_name = "SECONDS", default_value_t = 300,
        value_parser = clap::value_parser!(i64).range(0..))]
    pub default_unreachable_toleration_seconds: i64,
}

impl ControlPlaneArgs {
    pub fn config(&self, data_dir: &DataDir, blocks: ClusterBlocks) -> Config {
        Config {
            cluster_cidr: blocks.pods,
            service_cidr: blocks.services,
            advertise: advertised(),
            signing_duration: self.cluster_signing_duration.0,
            tolerations: DefaultTolerations {
                not_ready: self.default_not_ready_toleration_seconds,
                unreachable: self.default_unreachable_toleration_seconds,
            },
            ..Config::new(data_dir.path(), Some(self.listen))
        }
    }

    /// Serves the API, and writes the configuration of its clients on this host.
    pub async fn start(
        &self,
        data_dir: &DataDir,
        config: Config,
    ) -> anyhow::Result<(Running, String)> {
        let control_plane = ControlPlane::start(config)
            .await
            .context("the control plane does not start")?;
        let address = control_plane.local_addr.unwrap_or(self.listen);
        let url = format!("https://{}", serving::local(address));
        for path in [Some(&data_dir.kubeconfig()), self.kubeconfig.as_ref()]
            .into_iter()
            .flatten()
        {
            kubeconfig::write_admin(path, &url, &control_plane.pki)?;
        }
        Ok((control_plane, url))
    }
}

/// Tells hosts that want to join where the API is and which blocks the cluster has.
pub async fn publish(
    control_plane: &Running,
    address: SocketAddr,
    blocks: ClusterBlocks,
) -> anyhow::Result<()> {
    let info = cluster_info::ClusterInfo {
        url: format!("https://{address}"),
        authority: control_plane.pki.ca().to_owned(),
        pod_block: blocks.pods.to_string(),
        service_block: blocks.services.to_string(),
    };
    info.publish(&control_plane.client)
        .await
        .context("cannot publish how the cluster is reached")
}

/// The address by which pods reach the API; `None` on a host that has none but loopback.
fn advertised() -> Option<Ipv4Addr> {
    match skiff_agent::node::host_address() {
        IpAddr::V4(address) if !address.is_loopback() => Some(address),
        _ => None,
    }
}

/// The address blocks of this cluster, chosen when it first starts.
pub async fn cluster_blocks(data_dir: &DataDir) -> anyhow::Result<ClusterBlocks> {
    let identity = data_dir.identity().clone();
    tokio::task::spawn_blocking(move || ClusterBlocks::choose(&identity))
        .await?
        .context("no address blocks for pods and services")
}
