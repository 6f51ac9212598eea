//! What the drill controller decided before it broke anything.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde::{Deserialize, Serialize};

use crate::{GoDuration, PodRef, ProbeTarget};

/// The controller's own notes on a drill that is not over. They are in the drill's status so that another
/// process can go on with it at any point, and are taken out when the report is written.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DrillPlan {
    /// What is hit, sorted; empty when it is the control plane.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub victims: Vec<Victim>,
    /// The other side of a `pod-partition`: addresses; empty: everyone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<String>,
    /// Which pods have to recover.
    pub scope: Scope,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<PlannedProbe>,
    /// The nodes that were schedulable before a `node-drain`, and are to be so again.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub uncordon: Vec<String>,
    /// How it was right before the fault; there from the phase `Running` on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
    /// Since when as many pods as at the baseline are Ready and in the service; absent while they are not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole_since: Option<MicroTime>,
}

/// A pod, one of its containers, or a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Victim {
    /// Absent when the node is hit as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub container: String,
    /// The node that it runs on, or that is hit.
    pub node: String,
}

/// Some pods: those that any of these names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Scope {
    /// Where `selector` looks.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// A label selector as kubectl's `-l` takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// The uids of workloads that own pods, directly or through a replica set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub controllers: Vec<String>,
    /// The uids of pods.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<String>,
}

/// What is asked, how often, and from where.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PlannedProbe {
    /// The Service that leads to the target, as `default/web`; empty when an address is asked.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service: String,
    /// The labels of the pods that it leads to; those of the target's pods that it does not lead to have to be Ready only.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub selector: BTreeMap<String, String>,
    pub node: String,
    pub target: ProbeTarget,
    /// Requests a second.
    pub rate: i32,
    pub timeout: GoDuration,
}

/// The target as it was before the fault.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Baseline {
    /// Its pods that were Ready and, if it has a Service, in it.
    pub ready: i64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<BaselinePod>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BaselinePod {
    pub uid: String,
    pub node: String,
    /// How often its containers had been started anew by then.
    pub restarts: i64,
}
