//! The API as one pod's worker uses it, over [`kube::Client`].

use async_trait::async_trait;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, PodStatus, Secret, ServiceAccount};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::conditions;
use super::seams::{PodApi, SeamError, SeamResult, WriteError};

/// [`PodApi`] over a client.
#[derive(Clone)]
pub struct KubeApi {
    client: Client,
}

impl KubeApi {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn pods(&self, pod: &Pod) -> Api<Pod> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        Api::namespaced(self.client.clone(), namespace)
    }
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

#[async_trait]
impl PodApi for KubeApi {
    async fn config_map(&self, namespace: &str, name: &str) -> SeamResult<Option<ConfigMap>> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name).await.map_err(SeamError::from_display)
    }

    async fn secret(&self, namespace: &str, name: &str) -> SeamResult<Option<Secret>> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        api.get_opt(name).await.map_err(SeamError::from_display)
    }

    async fn service_account_token(
        &self,
        pod: &Pod,
        audience: Option<&str>,
        expiration: i64,
    ) -> SeamResult<String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let spec = pod.spec.as_ref();
        let account = spec
            .and_then(|s| s.service_account_name.as_deref())
            .unwrap_or("default");
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: audience.map(|a| vec![a.to_owned()]),
                expiration_seconds: Some(expiration),
                attestations: None,
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
            }),
            ..TokenRequest::default()
        };
        let issued = api
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .map_err(SeamError::from_display)?;
        let token = issued.status.and_then(|s| s.token);
        token.ok_or_else(|| SeamError("the API issued no token".into()))
    }

    async fn write_status(&self, pod: &Pod, status: &PodStatus) -> Result<(), WriteError> {
        let patch = Patch::Strategic(status_patch(pod, status));
        let written = self
            .pods(pod)
            .patch_status(name(pod), &PatchParams::default(), &patch)
            .await;
        written.map(drop).map_err(write_error)
    }

    async fn delete(&self, pod: &Pod) -> Result<(), WriteError> {
        let params = DeleteParams::default()
            .grace_period(0)
            .preconditions(Preconditions {
                uid: pod.metadata.uid.clone(),
                resource_version: None,
            });
        let deleted = self.pods(pod).delete(name(pod), &params).await;
        deleted.map(drop).map_err(write_error)
    }
}

fn write_error(error: kube::Error) -> WriteError {
    match error {
        // 409: the uid is another one.
        kube::Error::Api(status) if matches!(status.code, 404 | 409) => WriteError::Gone,
        other => WriteError::Retry(other.to_string()),
    }
}

/// A strategic merge patch that leaves other parties' conditions alone.
fn status_patch(pod: &Pod, status: &PodStatus) -> Value {
    let mut body = serde_json::to_value(status).unwrap_or_default();
    // What is not set any more has to be removed by name.
    for field in ["reason", "message"] {
        if body.get(field).is_none() {
            body[field] = Value::Null;
        }
    }
    for condition in body["conditions"].as_array_mut().into_iter().flatten() {
        for field in ["reason", "message"] {
            if condition.get(field).is_none() {
                condition[field] = Value::Null;
            }
        }
    }
    let known = pod.status.as_ref();
    let order = conditions::OWNED.into_iter();
    let others = known
        .and_then(|s| s.conditions.as_ref())
        .into_iter()
        .flatten();
    let others = others
        .map(|c| c.type_.as_str())
        .filter(|t| !conditions::OWNED.contains(t));
    let order: Vec<Value> = order.chain(others).map(|t| json!({"type": t})).collect();
    body["$setElementOrder/conditions"] = Value::Array(order);
    // Addresses merge by their own value: a new one would join the old ones.
    if known.is_some_and(|k| k.pod_ips.is_some() && k.pod_ips != status.pod_ips)
        && let Some(list) = body["podIPs"].as_array_mut()
    {
        list.push(json!({"$patch": "replace"}));
    }
    json!({"metadata": {"uid": pod.metadata.uid}, "status": body})
}
