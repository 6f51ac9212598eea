//! Where a node's images are kept and come from.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use skiff_agent::node::ImageGcPolicy;
use skiff_images::registry::{Registries, RegistryConfig};
use skiff_images::{Offline, Puller, RegistryPuller, Store};

use crate::data_dir::DataDir;
use crate::image::LimitArgs;

/// How a node's agent fetches images.
#[derive(Args, Clone)]
pub struct PullingArgs {
    /// Never fetch an image: those that are present serve, whatever the pull policy
    #[arg(long)]
    pub offline: bool,
    /// Where hosts.toml files say how registries are reached, in the layout of containerd's
    /// certs.d; asked before DIR/registries.d of the data directory and /etc/skiff/registries.d
    #[arg(long, value_name = "DIR")]
    pub registry_config: Option<PathBuf>,
    /// Percent of the disk in use from which on unused images are removed; 100 is never
    #[arg(long, value_name = "PERCENT", default_value_t = 85, value_parser = clap::value_parser!(u8).range(1..=100))]
    pub image_gc_high_threshold: u8,
    /// Percent of the disk in use down to which unused images are removed
    #[arg(long, value_name = "PERCENT", default_value_t = 80, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub image_gc_low_threshold: u8,
    #[command(flatten)]
    pub limits: LimitArgs,
}

impl PullingArgs {
    /// When unused images go.
    pub fn image_gc(&self) -> ImageGcPolicy {
        ImageGcPolicy {
            high_threshold: self.image_gc_high_threshold,
            low_threshold: self
                .image_gc_low_threshold
                .min(self.image_gc_high_threshold),
            ..Default::default()
        }
    }

    /// The node's images, and what fetches more of them.
    pub async fn open(&self, data_dir: &DataDir) -> anyhow::Result<(Store, Arc<dyn Puller>)> {
        let images =
            Store::open_with(data_dir.identity().images_dir(), self.limits.limits()).await?;
        if self.offline {
            return Ok((images, Arc::new(Offline)));
        }
        let extra = self.registry_config.clone();
        let registries = RegistryConfig::for_data_dir(data_dir.path(), extra);
        let puller = RegistryPuller::new(images.clone(), Registries::new(registries));
        Ok((images, Arc::new(puller)))
    }
}
