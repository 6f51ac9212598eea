//! Which block of addresses the control plane gave this node for its pods.

use std::pin::pin;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Node, NodeSpec};
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};

use ipnet::Ipv4Net;

/// Where a node that registers says which block its pods use already.
pub(super) const WANTED: &str = "skiff.dev/pod-cidr";
/// Between attempts to reach an API that does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// How long an agent whose pods may run already waits for an API that does not answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The node's `spec.podCIDR`; `new` is registered where the node is not in the API yet. While the API
/// does not answer, an agent that ran here before goes on with the block it had.
pub(crate) async fn pod_cidr(client: Client, new: Node, recorded: Option<Ipv4Net>) -> Ipv4Net {
    let asked = ask(client, new);
    match recorded {
        None => asked.await,
        Some(recorded) => match tokio::time::timeout(PATIENCE, asked).await {
            Ok(block) => block,
            Err(_) => recorded,
        },
    }
}

async fn ask(client: Client, new: Node) -> Ipv4Net {
    let nodes: Api<Node> = Api::all(client);
    let mut reported = false;
    loop {
        match given(&nodes, &new).await {
            Ok(block) => return block,
            Err(error) if !reported => {
                let node = new.metadata.name.as_deref();
                tracing::warn!(node, %error, "no pod CIDR from the API, trying again");
                reported = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RETRY).await;
    }
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Watch(#[from] watcher::Error),
    #[error("the watch of the node ended")]
    Ended,
}

async fn given(nodes: &Api<Node>, new: &Node) -> Result<Ipv4Net, AskError> {
    let name = new.metadata.name.clone().unwrap_or_default();
    let known = match nodes.get_opt(&name).await? {
        Some(node) => node,
        None => match nodes.create(&PostParams::default(), new).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => nodes.get(&name).await?,
            created => created?,
        },
    };
    if let Some(block) = block_of(&known) {
        return Ok(block);
    }
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut watch = pin!(watcher(nodes.clone(), config).applied_objects());
    while let Some(node) = watch.try_next().await? {
        if let Some(block) = block_of(&node) {
            return Ok(block);
        }
    }
    Err(AskError::Ended)
}

fn block_of(node: &Node) -> Option<Ipv4Net> {
    let NodeSpec { pod_cidr, .. } = node.spec.as_ref()?;
    let block: Ipv4Net = pod_cidr.as_ref()?.parse().ok()?;
    Some(block.trunc())
}
