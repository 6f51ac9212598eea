//! Objects that every cluster starts with.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures::future::try_join_all;
use http::HeaderMap;
use serde_json::{Value, json};

use super::Api;
use super::call::{Call, object_of};
use super::object::Object;
use super::path::ResourcePath;
use super::query::Query;
use super::status::ApiError;
use super::update::{Proposal, Surface};
use crate::auth::UserInfo;
use crate::cache::Scope;
use crate::resources::object::text;
use crate::resources::priorityclasses;
use crate::resources::services::has_cluster_address;

/// The namespaces that every cluster has.
pub(crate) const NAMESPACES: [&str; 4] =
    ["default", "kube-system", "kube-public", "kube-node-lease"];

impl Api {
    /// Creates the system's namespaces with their service accounts, and `objects`, where they
    /// are missing. From then on the server says that it is ready.
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
        let classes = priorityclasses::SYSTEM.map(|(name, value, description)| {
            json!({
                "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
                "metadata": {"name": name}, "value": value, "description": description,
            })
        });
        let objects = objects.into_iter().chain(classes);
        try_join_all(objects.map(|object| self.ensure(object))).await?;
        self.complete_services().await?;
        self.bootstrapped.store(true, Ordering::Release);
        Ok(())
    }

    /// Gives stored Services what they should have and do not: those of a data directory from
    /// before there were addresses.
    async fn complete_services(&self) -> Result<(), ApiError> {
        let shelf = self.cache.shelf("core/services");
        for entry in shelf.all(&Scope::everything()) {
            let service = object_of(&entry)?;
            if !has_cluster_address(&service) || !text(&service, "spec.clusterIP").is_empty() {
                continue;
            }
            let mut call = self.own_call(&service)?;
            call.name = service.name().to_string();
            let again = |current: &Value| {
                Ok(Proposal {
                    object: current.clone(),
                    managed: true,
                })
            };
            // One that is not right any more is no reason to keep the others waiting.
            if let Err(error) = self.write(&call, Surface::Object, again).await {
                let (namespace, name) = (service.namespace(), service.name());
                tracing::warn!(namespace, name, %error, "a stored Service gets no address");
            }
        }
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
    pub(super) fn own_call(&self, object: &Value) -> Result<Call, ApiError> {
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
