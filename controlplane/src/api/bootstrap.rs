//! Objects that every cluster starts with.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::try_join_all;
use http::HeaderMap;
use serde_json::{Value, json};

use super::Api;
use super::call::Call;
use super::object::Object;
use super::path::ResourcePath;
use super::query::Query;
use super::status::ApiError;
use crate::auth::UserInfo;

/// The namespaces that every cluster has.
pub(crate) const NAMESPACES: [&str; 4] =
    ["default", "kube-system", "kube-public", "kube-node-lease"];

impl Api {
    /// Creates the system's namespaces with their service accounts, and `objects`, where they are missing. From then on the
    /// server says that it is ready.
    ///
    /// # Errors
    /// When one can't be created.
    pub async fn bootstrap(&self, objects: Vec<Value>) -> Result<(), ApiError> {
        let namespaces = NAMESPACES.map(|name| {
            json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
            })
        });
        // All at once: they share the store's transactions.
        try_join_all(namespaces.into_iter().map(|object| self.ensure(object))).await?;
        let accounts = NAMESPACES.map(|namespace| {
            json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": "default", "namespace": namespace},
            })
        });
        try_join_all(accounts.into_iter().map(|object| self.ensure(object))).await?;
        try_join_all(objects.into_iter().map(|object| self.ensure(object))).await?;
        self.bootstrapped.store(true, Ordering::Release);
        Ok(())
    }

    async fn ensure(&self, object: Value) -> Result<(), ApiError> {
        let call = self.own_call(&object)?;
        if self.cache.get(&call.key(object.name())).is_some() {
            return Ok(());
        }
        match self.create_object(&call, object).await {
            Err(error) if error.reason == "AlreadyExists" => Ok(()),
            created => created.map(|_| ()),
        }
    }

    /// A request of the control plane itself about an object of a served kind.
    fn own_call(&self, object: &Value) -> Result<Call, ApiError> {
        let text = |field: &str| {
            object
                .get(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        let registry = self.registry();
        let resource = registry
            .iter()
            .find(|r| r.kind == kind && r.api_version() == api_version)
            .ok_or_else(|| ApiError::internal(format!("{api_version} {kind} is not served")))?;
        let namespace = Some(object.namespace().to_string()).filter(|ns| !ns.is_empty());
        let path = ResourcePath {
            namespace,
            ..ResourcePath::default()
        };
        let stored = registry
            .storing(resource)
            .unwrap_or_else(|| Arc::clone(resource));
        Call::new(
            UserInfo::control_plane(),
            resource.clone(),
            stored,
            path,
            Query::default(),
            HeaderMap::new(),
        )
    }
}
