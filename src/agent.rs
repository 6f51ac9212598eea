//! `skiff agent`: this host as a node of a cluster whose control plane runs elsewhere.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use k8s_openapi::api::core::v1::Taint;
use skiff_agent::join::{self, JoinConfig, JoinToken, Upkeep};
use skiff_agent::net::ClusterBlocks;
use skiff_agent::net::dns::resolv_conf::HOST_FILE;
use skiff_agent::{Agent, ApiServer};
use skiff_controlplane::admission::is_nodes_own;
use tracing::info;

use crate::data_dir::{self, DataDir};
use crate::hooks::AgentProcess;
use crate::preflight;
use crate::pulling::PullingArgs;
use crate::restart;
use crate::serving::{StopSignals, announce, host_name};

#[derive(Args)]
pub struct AgentArgs {
    /// The API server's URL, as `skiff token create` prints it
    #[arg(long, value_name = "URL", env = "SKIFF_SERVER")]
    server: String,
    /// The token that the host joins with; not needed once it has joined
    #[arg(
        long,
        value_name = "TOKEN",
        env = "SKIFF_TOKEN",
        hide_env_values = true
    )]
    token: Option<JoinToken>,
    /// Where the node keeps its state
    #[arg(long, value_name = "DIR", default_value = data_dir::DEFAULT)]
    data_dir: PathBuf,
    /// The node's name [default: the host's]
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
    /// The address by which other nodes reach this one [default: that of the default route]
    #[arg(long, value_name = "IP")]
    node_ip: Option<IpAddr>,
    /// A label that the node gets; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',', value_parser = parse_label)]
    node_label: Vec<(String, String)>,
    /// A taint that the node joins with; may be repeated
    #[arg(
        long,
        alias = "node-taint",
        value_name = "KEY=VALUE:EFFECT",
        value_delimiter = ',',
        value_parser = parse_taint
    )]
    taint: Vec<Taint>,
    #[command(flatten)]
    pulling: PullingArgs,
    /// Names the servers that resolve what is not the cluster's
    #[arg(long, value_name = "FILE", default_value = HOST_FILE)]
    resolv_conf: PathBuf,
}

/// Serves until SIGTERM or SIGINT; containers run on when it ends.
pub fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    preflight::require_root("agent")?;
    let data_dir = DataDir::open(&args.data_dir)?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?
        .block_on(serve(args, &data_dir))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: AgentArgs, data_dir: &DataDir) -> anyhow::Result<()> {
    skiff_agent::runtime::preflight::check(data_dir.path()).await?;
    let mut signals = StopSignals::listen()?;
    restart::inherit()?;
    skiff_agent::drill::finish_crash(data_dir.identity())
        .await
        .context("cannot end what a drill has crashed")?;
    signals.unless(restart::turn()).await?;
    let (node, upkeep, mut agent) = signals.unless(start(args, data_dir)).await?;
    let upkeep = tokio::spawn(upkeep.run());
    let ended = async {
        agent.registered().await;
        announce(&node)?;
        anyhow::Ok(agent.failed().await)
    };
    let failure = tokio::select! {
        failure = ended => failure?,
        signal = signals.next() => {
            info!(signal, "stopping; containers run on");
            None
        }
    };
    upkeep.abort();
    agent.shutdown().await;
    match failure {
        Some(error) => Err(error).context("a part of the node agent failed"),
        None => Ok(()),
    }
}

async fn start(
    args: AgentArgs,
    data_dir: &DataDir,
) -> anyhow::Result<(String, Upkeep, skiff_agent::Running)> {
    let identity = data_dir.identity();
    let address = args.node_ip.unwrap_or_else(skiff_agent::node::host_address);
    let node_name = match args.node_name {
        Some(name) => name,
        None => host_name()?,
    };
    let server = args.server.clone();
    let membership = join::join(JoinConfig {
        identity: identity.clone(),
        server: args.server,
        token: args.token,
        node_name: node_name.clone(),
        address,
    })
    .await?;
    let (images, puller) = args.pulling.open(data_dir).await?;
    let config = skiff_agent::Config {
        identity: identity.clone(),
        client: membership.client,
        api: ApiServer {
            url: Some(server),
            authority: membership.authority,
        },
        node_name: node_name.clone(),
        labels: BTreeMap::from_iter(args.node_label),
        taints: args.taint,
        address,
        images,
        puller,
        offline: args.pulling.offline,
        image_gc: args.pulling.image_gc(),
        listen: SocketAddr::new(address, 0),
        credentials: membership.credentials,
        blocks: blocks(&membership.cluster)?,
        resolv_conf: args.resolv_conf,
        max_pods: skiff_agent::MAX_PODS,
        hooks: Arc::new(AgentProcess {
            with_control_plane: false,
        }),
    };
    let agent = Agent::start(config)
        .await
        .context("the node agent does not start")?;
    Ok((node_name, membership.upkeep, agent))
}

fn blocks(cluster: &join::ClusterRecord) -> anyhow::Result<ClusterBlocks> {
    let unknown = "the cluster does not tell its address blocks";
    Ok(ClusterBlocks {
        pods: cluster.pod_block.parse().context(unknown)?,
        services: cluster.service_block.parse().context(unknown)?,
    })
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err("a label is KEY=VALUE".into());
    }
    if !is_nodes_own(key) {
        return Err(format!(
            "a node may not choose its own label {key}: an administrator sets it with `kubectl label node`"
        ));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `key=value:effect` or `key:effect`, as the kubelet's `--register-with-taints`.
fn parse_taint(text: &str) -> Result<Taint, String> {
    let wrong = || format!("{text:?} is no taint: KEY=VALUE:EFFECT or KEY:EFFECT");
    let (rest, effect) = text.rsplit_once(':').ok_or_else(wrong)?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(format!(
            "{effect:?} is no effect of a taint: NoSchedule, PreferNoSchedule or NoExecute"
        ));
    }
    let (key, value) = match rest.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (rest, None),
    };
    if key.is_empty() {
        return Err(wrong());
    }
    Ok(Taint {
        key: key.to_owned(),
        value: value.filter(|value| !value.is_empty()),
        effect: effect.to_owned(),
        time_added: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_are_written_as_the_kubelet_takes_them() {
        let taint = parse_taint("gpu=yes:NoSchedule").unwrap();
        assert_eq!(
            (taint.key.as_str(), taint.effect.as_str()),
            ("gpu", "NoSchedule")
        );
        assert_eq!(taint.value.as_deref(), Some("yes"));
        assert_eq!(parse_taint("gpu:NoExecute").unwrap().value, None);
        for wrong in [
            "gpu",
            "gpu=yes",
            "gpu:Never",
            ":NoSchedule",
            "=x:NoSchedule",
        ] {
            assert!(parse_taint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn labels_may_have_no_value() {
        assert_eq!(parse_label("a=b"), Ok(("a".into(), "b".into())));
        assert_eq!(parse_label("a"), Ok(("a".into(), String::new())));
        assert!(parse_label("=b").is_err());
    }
}
