//! `kube-public/cluster-info`: how the cluster is reached and what its authority is, for hosts that
//! have not joined yet. Everybody may read it; who does checks the authority against a pin.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::config::Kubeconfig;
use serde_json::json;

use crate::auth::bootstrap::CLUSTER_INFO;
use crate::auth::kubeconfig;

const NAMESPACE: &str = "kube-public";
/// As kubeadm has it: a client configuration that names nobody.
const KUBECONFIG: &str = "kubeconfig";
const POD_BLOCK: &str = "podCIDR";
const SERVICE_BLOCK: &str = "serviceCIDR";

/// What a host has to know to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterInfo {
    /// By which other hosts reach the API.
    pub url: String,
    /// The authority's certificate, PEM.
    pub authority: String,
    /// In CIDR notation.
    pub pod_block: String,
    /// In CIDR notation.
    pub service_block: String,
}

impl ClusterInfo {
    /// Writes it where hosts look for it.
    ///
    /// # Errors
    /// The API's.
    pub async fn publish(&self, client: &kube::Client) -> Result<(), kube::Error> {
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": CLUSTER_INFO},
            "data": {
                KUBECONFIG: kubeconfig::render_cluster(&self.url, &self.authority),
                POD_BLOCK: self.pod_block,
                SERVICE_BLOCK: self.service_block,
            },
        });
        let params = PatchParams::apply("skiff").force();
        maps(client)
            .patch(CLUSTER_INFO, &params, &Patch::Apply(&map))
            .await
            .map(drop)
    }

    /// What was published; `None` when nothing usable was.
    ///
    /// # Errors
    /// The API's.
    pub async fn read(client: &kube::Client) -> Result<Option<Self>, kube::Error> {
        let map = maps(client).get_opt(CLUSTER_INFO).await?;
        Ok(map.as_ref().and_then(Self::of))
    }

    fn of(map: &ConfigMap) -> Option<Self> {
        use base64::Engine;
        let data = map.data.as_ref()?;
        let config = Kubeconfig::from_yaml(data.get(KUBECONFIG)?).ok()?;
        let cluster = config.clusters.into_iter().next()?.cluster?;
        let authority = cluster.certificate_authority_data?;
        let authority = base64::prelude::BASE64_STANDARD.decode(authority).ok()?;
        let entry = |key: &str| data.get(key).cloned().unwrap_or_default();
        Some(Self {
            url: cluster.server?,
            authority: String::from_utf8(authority).ok()?,
            pod_block: entry(POD_BLOCK),
            service_block: entry(SERVICE_BLOCK),
        })
    }
}

fn maps(client: &kube::Client) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), NAMESPACE)
}
