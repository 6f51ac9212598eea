//! Gives each node its block of pod addresses, `spec.podCIDR`, out of the cluster's.
//!
//! A block belongs to one node until the node's object is gone. Blocks are given out in turn, so
//! one that came back rests as long as possible. A node that was removed and joins again asks for
//! the block that its pods still use by the annotation [`WANTED`], and gets it while nobody else has it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::Informers;
use super::events::{EventRecorder, Severity};
use super::informer::{Informer, ObjectKey};
use super::queue::WorkQueue;
use super::runner::{self, Controller, Next};
use super::tasks::Tasks;
use ipnet::Ipv4Net;

/// Where a node says which block it had before.
pub const WANTED: &str = "skiff.dev/pod-cidr";

pub(super) fn start(
    client: Client,
    informers: &Informers,
    events: &EventRecorder,
    cluster: Ipv4Net,
    prefix: u8,
    tasks: &Tasks,
) {
    let queue = WorkQueue::default();
    let nodes = queue.clone();
    informers.nodes.subscribe(move |change| {
        nodes.add(ObjectKey::of(&**change.object()));
    });
    let controller = Arc::new(NodeIpam {
        api: Api::all(client),
        nodes: informers.nodes.clone(),
        events: events.named("cidrAllocator"),
        blocks: Mutex::new(Blocks::new(cluster, prefix)),
    });
    // One worker: a block is chosen and written before the next is.
    runner::run(controller, &queue, 1, tasks);
}

struct NodeIpam {
    api: Api<Node>,
    nodes: Informer<Node>,
    events: EventRecorder,
    blocks: Mutex<Blocks>,
}

impl Controller for NodeIpam {
    type Key = ObjectKey;
    type Error = kube::Error;
    const NAME: &'static str = "node-ipam-controller";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next, kube::Error> {
        self.nodes.synced().await;
        let Some(node) = self.nodes.get(key) else {
            self.blocks().release(&key.name);
            return Ok(Next::Wait);
        };
        if let Some(block) = pod_cidr(&node) {
            self.blocks().note(&key.name, block);
            return Ok(Next::Wait);
        }
        let wanted = node.metadata.annotations.as_ref();
        let wanted = wanted.and_then(|a| a.get(WANTED)?.parse().ok());
        let chosen = {
            let mut blocks = self.blocks();
            // A node that nobody reconciled yet may hold one too.
            for other in self.nodes.list() {
                if let (Some(name), Some(block)) = (&other.metadata.name, pod_cidr(&other)) {
                    blocks.note(name, block);
                }
            }
            blocks.choose(&key.name, wanted)
        };
        let Some(block) = chosen else {
            let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
            self.events
                .record(&*node, Severity::Normal, "CIDRNotAvailable", message);
            return Ok(Next::Backoff);
        };
        let block = block.to_string();
        let patch = json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "spec": {"podCIDR": block, "podCIDRs": [block]},
        });
        let params = PatchParams::default();
        self.api
            .patch(&key.name, &params, &Patch::Merge(patch))
            .await?;
        Ok(Next::Wait)
    }
}

impl NodeIpam {
    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        // The map is whole between any two statements, also after a panic elsewhere.
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pod_cidr(node: &Node) -> Option<Ipv4Net> {
    let text = node.spec.as_ref()?.pod_cidr.as_deref()?;
    let block: Ipv4Net = text.parse().ok()?;
    Some(block.trunc())
}

/// Who has which block.
struct Blocks {
    cluster: Ipv4Net,
    prefix: u8,
    held: HashMap<Arc<str>, Ipv4Net>,
    /// Where the search for the next free one begins.
    next: usize,
}

impl Blocks {
    fn new(cluster: Ipv4Net, prefix: u8) -> Self {
        Self {
            cluster,
            prefix,
            held: HashMap::new(),
            next: 0,
        }
    }

    /// Every block that a node may have, in order; none where the cluster's is too small.
    fn all(&self) -> impl Iterator<Item = Ipv4Net> + use<> {
        self.cluster.subnets(self.prefix).into_iter().flatten()
    }

    fn note(&mut self, node: &str, block: Ipv4Net) {
        if self.held.insert(node.into(), block) != Some(block)
            && let Some(index) = self.all().position(|b| overlap(&b, &block))
        {
            self.next = self.next.max(index + 1);
        }
    }

    fn release(&mut self, node: &str) {
        self.held.remove(node);
    }

    /// The block that the node has or wants, if that is free, or the next free one.
    fn choose(&mut self, node: &str, wanted: Option<Ipv4Net>) -> Option<Ipv4Net> {
        if let Some(block) = self.held.get(node) {
            return Some(*block);
        }
        let free = |block: &Ipv4Net| !self.held.values().any(|held| overlap(held, block));
        let count = self.all().count();
        let ours = |block: &Ipv4Net| self.cluster.contains(block);
        if let Some(block) = wanted.filter(ours).filter(free) {
            self.held.insert(node.into(), block);
            return Some(block);
        }
        let (index, block) = (0..count)
            .map(|offset| (self.next + offset) % count)
            .filter_map(|index| Some((index, self.all().nth(index)?)))
            .find(|(_, block)| free(block))?;
        self.next = index + 1;
        self.held.insert(node.into(), block);
        Some(block)
    }
}

fn overlap(one: &Ipv4Net, other: &Ipv4Net) -> bool {
    one.contains(other) || other.contains(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    fn blocks() -> Blocks {
        Blocks::new(cidr("10.42.0.0/22"), 24)
    }

    #[test]
    fn every_node_has_a_block_of_its_own_and_keeps_it() {
        let mut blocks = blocks();
        assert_eq!(blocks.choose("a", None), Some(cidr("10.42.0.0/24")));
        assert_eq!(blocks.choose("b", None), Some(cidr("10.42.1.0/24")));
        assert_eq!(blocks.choose("a", None), Some(cidr("10.42.0.0/24")));
        blocks.note("c", cidr("10.42.2.0/24"));
        assert_eq!(blocks.choose("d", None), Some(cidr("10.42.3.0/24")));
        assert_eq!(blocks.choose("e", None), None);
    }

    #[test]
    fn a_freed_block_rests_before_it_is_given_out_again() {
        let mut blocks = blocks();
        blocks.choose("a", None);
        blocks.release("a");
        assert_eq!(blocks.choose("b", None), Some(cidr("10.42.1.0/24")));
        for name in ["c", "d"] {
            blocks.choose(name, None);
        }
        assert_eq!(blocks.choose("e", None), Some(cidr("10.42.0.0/24")));
    }

    #[test]
    fn a_node_gets_what_it_had_unless_another_has_it_or_it_is_foreign() {
        let mut blocks = blocks();
        let wanted = Some(cidr("10.42.2.0/24"));
        assert_eq!(blocks.choose("a", wanted), wanted);
        assert_eq!(blocks.choose("b", wanted), Some(cidr("10.42.0.0/24")));
        let foreign = Some(cidr("192.168.0.0/24"));
        assert_eq!(blocks.choose("c", foreign), Some(cidr("10.42.1.0/24")));
        let too_large = Some(cidr("10.42.0.0/16"));
        assert_eq!(blocks.choose("d", too_large), Some(cidr("10.42.3.0/24")));
    }

    #[test]
    fn blocks_of_other_sizes_are_respected() {
        let mut blocks = blocks();
        blocks.note("a", cidr("10.42.0.0/23"));
        assert_eq!(blocks.choose("b", None), Some(cidr("10.42.2.0/24")));
    }
}
