//! `kube-public/cluster-info`: how the cluster is reached and what its authority is, for hosts that
//! have not joined yet. Everybody may read it; who does checks the authority against a pin.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::auth::bootstrap::CLUSTER_INFO;
use crate::auth::kubeconfig;

const NAMESPACE: &str = "kube-public";
/// The entry of the ConfigMap, as kubeadm has it.
pub const KEY: &str = "kubeconfig";

/// Writes the URL by which other hosts reach the API, and the authority's certificate (PEM).
///
/// # Errors
/// The API's.
pub async fn publish(client: &kube::Client, url: &str, ca: &str) -> Result<(), kube::Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CLUSTER_INFO},
        "data": {KEY: kubeconfig::render_cluster(url, ca)},
    });
    let params = PatchParams::apply("skiff").force();
    maps.patch(CLUSTER_INFO, &params, &Patch::Apply(&map))
        .await
        .map(drop)
}

/// The URL that was published, and the authority; `None` when nothing was.
///
/// # Errors
/// The API's.
pub async fn read(client: &kube::Client) -> Result<Option<String>, kube::Error> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), NAMESPACE);
    let map = maps.get_opt(CLUSTER_INFO).await?;
    Ok(map.and_then(|map| map.data?.remove(KEY)))
}
