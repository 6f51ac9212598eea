//! How commands that talk to the API find it: `--kubeconfig`, then KUBECONFIG, then the data
//! directory's.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::data_dir;

#[derive(Args, Clone)]
pub struct ApiArgs {
    /// The client configuration [default: $KUBECONFIG, else the data directory's]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The data directory of a cluster on this host
    #[arg(long, value_name = "DIR", default_value = data_dir::DEFAULT)]
    data_dir: PathBuf,
}

impl ApiArgs {
    /// A client of the cluster.
    ///
    /// # Errors
    /// When there is no usable configuration.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        let path = self.path();
        let config = Kubeconfig::read_from(&path).with_context(|| {
            format!(
                "cannot read {}: name the cluster with --kubeconfig or --data-dir",
                path.display()
            )
        })?;
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(config, &options)
            .await
            .with_context(|| format!("{} is not usable", path.display()))?;
        Ok(kube::Client::try_from(config)?)
    }

    /// The data directory, which may be no cluster's.
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    fn path(&self) -> PathBuf {
        let from_environment = || {
            let paths = std::env::var_os("KUBECONFIG").filter(|value| !value.is_empty())?;
            std::env::split_paths(&paths).find(|path| path.exists())
        };
        self.kubeconfig
            .clone()
            .or_else(from_environment)
            .unwrap_or_else(|| self.data_dir.join("kubeconfig"))
    }
}
