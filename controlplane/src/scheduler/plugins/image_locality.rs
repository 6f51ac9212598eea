//! A node that has the pod's images already starts it sooner.
//!
//! An image counts the more the larger it is, and the more nodes have it: otherwise all pods of
//! an image would go to the one node that happened to get it first.

use super::{Plugin, Plugins};
use crate::scheduler::cluster::{Cluster, NodeInfo};
use crate::scheduler::needs::Needs;

const MIB: i64 = 1024 * 1024;
/// Below this many bytes nothing is gained.
const LEAST: i64 = 23 * MIB;
/// From this many bytes for each container on, more is not better.
const MOST_FOR_EACH: i64 = 1000 * MIB;

pub(super) struct ImageLocality;

impl Plugin for ImageLocality {
    fn id(&self) -> Plugins {
        Plugins::IMAGES
    }

    fn score(&self, pod: &Needs, cluster: &Cluster, nodes: &[&NodeInfo]) -> Option<Vec<i64>> {
        let images = &pod.footprint.images;
        let total = cluster.nodes().len().max(1) as i64;
        let known: Vec<(&String, i64)> = images
            .iter()
            .map(|image| (image, cluster.nodes_with_image(image) as i64))
            .filter(|(_, having)| *having > 0)
            .collect();
        if known.is_empty() {
            return None;
        }
        let most = MOST_FOR_EACH * images.len() as i64;
        let score = |node: &&NodeInfo| {
            let here = known.iter().filter_map(|(image, having)| {
                let size = node.images.get(*image)?;
                Some((*size as f64 * (*having as f64 / total as f64)) as i64)
            });
            let sum = here.sum::<i64>().clamp(LEAST, most);
            100 * (sum - LEAST) / (most - LEAST)
        };
        Some(nodes.iter().map(score).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::ContainerImage;

    use super::*;
    use crate::scheduler::cycle::tests::{node, pod};

    #[test]
    fn a_large_image_that_is_here_counts() {
        let mut cluster = Cluster::default();
        for (name, size) in [("n1", Some(523)), ("n2", Some(523)), ("n3", None)] {
            let mut node = node(name, &[]);
            node.status.as_mut().unwrap().images = size.map(|size| {
                vec![ContainerImage {
                    names: Some(vec!["large:latest".into()]),
                    size_bytes: Some(size * MIB),
                }]
            });
            cluster.set_node(Arc::new(node));
        }
        let mut pod = pod("p", &[]);
        pod.spec.as_mut().unwrap().containers[0].image = Some("large".into());
        let nodes: Vec<&NodeInfo> = cluster.nodes().iter().collect();
        let scores = ImageLocality.score(&Needs::of(&pod), &cluster, &nodes);
        // 523 MiB on two of three nodes count for 348: 325 above the least, of 977.
        assert_eq!(scores, Some(vec![33, 33, 0]));
        pod.spec.as_mut().unwrap().containers[0].image = Some("other:1".into());
        let scores = ImageLocality.score(&Needs::of(&pod), &cluster, &nodes);
        assert_eq!(scores, None);
    }
}
