//! RBAC's objects, as the authorizer reads them: from the watch cache, on each request.

use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::Value;

use super::Api;
use super::call::object_of;
use super::status::ApiError;
use crate::auth::authorize::{Attributes, Binding, Policy, PolicyRule, RoleRef, Subject, Used};
use crate::auth::references;
use crate::auth::{UNAUTHENTICATED, UserInfo, authorize};
use crate::cache::{Cache, Scope, Selector};
use crate::resources::{drill_tasks, pods};
use crate::store::Key;

const GROUP: &str = "rbac.authorization.k8s.io";

impl Api {
    /// # Errors
    /// 401 for those who showed no credentials, 403 in Kubernetes' words for all others.
    pub(super) fn authorize(
        &self,
        user: &UserInfo,
        wanted: &Attributes<'_>,
    ) -> Result<(), ApiError> {
        if authorize::is_allowed(user, wanted, &*self.cache) {
            return Ok(());
        }
        if user.is_in(UNAUTHENTICATED) {
            return Err(ApiError::unauthorized());
        }
        Err(refusal(user, wanted))
    }
}

fn refusal(user: &UserInfo, wanted: &Attributes<'_>) -> ApiError {
    let who = format!("User {:?}", user.name);
    if let Some(path) = wanted.path {
        return ApiError::forbidden_message(format!(
            "forbidden: {who} cannot {} path {path:?}",
            wanted.verb
        ));
    }
    let resource = match wanted.subresource {
        "" => wanted.resource.to_string(),
        subresource => format!("{}/{subresource}", wanted.resource),
    };
    let subject = match wanted.group {
        "" => wanted.resource.to_string(),
        group => format!("{}.{group}", wanted.resource),
    };
    let name = match wanted.name {
        "" => String::new(),
        name => format!(" {name:?}"),
    };
    let place = match wanted.namespace {
        "" => "at the cluster scope".to_string(),
        namespace => format!("in the namespace {namespace:?}"),
    };
    let message = format!(
        "{subject}{name} is forbidden: {who} cannot {} resource {resource:?} in API group {:?} {place}",
        wanted.verb, wanted.group
    );
    let mut error = ApiError::forbidden_message(message);
    let details = error.details.get_or_insert_default();
    details.name = wanted.name.to_string();
    details.group = wanted.group.to_string();
    details.kind = wanted.resource.to_string();
    error
}

#[derive(Deserialize)]
struct Role {
    #[serde(default)]
    rules: Option<Vec<PolicyRule>>,
    #[serde(default, rename = "aggregationRule")]
    aggregation: Option<Aggregation>,
}

#[derive(Deserialize)]
struct Aggregation {
    #[serde(default, rename = "clusterRoleSelectors")]
    selectors: Vec<LabelSelector>,
}

#[derive(Deserialize)]
struct LabelSelector {
    #[serde(default, rename = "matchLabels")]
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RoleBinding {
    #[serde(default)]
    subjects: Option<Vec<Subject>>,
    #[serde(rename = "roleRef")]
    role: RoleRef,
}

impl Policy for Cache {
    fn cluster_bindings(&self) -> Vec<Binding> {
        bindings(self, "clusterrolebindings", &Scope::everything())
    }

    fn bindings(&self, namespace: &str) -> Vec<Binding> {
        bindings(self, "rolebindings", &Scope::namespace(namespace))
    }

    fn cluster_role(&self, name: &str) -> Option<Vec<PolicyRule>> {
        let role = role(self, &Key::new(GROUP, "clusterroles", "", name))?;
        let mut rules = role.rules.unwrap_or_default();
        let aggregation = role.aggregation.map(|a| a.selectors).unwrap_or_default();
        for selector in aggregation {
            rules.extend(aggregated(self, &selector));
        }
        Some(rules)
    }

    fn role(&self, namespace: &str, name: &str) -> Option<Vec<PolicyRule>> {
        let role = role(self, &Key::new(GROUP, "roles", namespace, name))?;
        Some(role.rules.unwrap_or_default())
    }

    fn node_uses(&self, node: &str, namespace: &str, object: Used<'_>) -> bool {
        let pods = self.shelf("core/pods").all(&Scope::namespace(namespace));
        pods.iter()
            .filter(|entry| entry.field(pods::NODE_NAME) == node)
            .any(|entry| match object {
                Used::Pod(name) => entry.name() == name,
                object => serde_json::from_slice(&entry.bytes)
                    .is_ok_and(|pod: Pod| references::uses(&pod, object)),
            })
    }

    fn may_be_task_of(&self, node: &str, task: &str) -> bool {
        let key = Key::new(skiff_dev::GROUP, "drilltasks", "", task);
        let task = self.get(&key);
        task.is_none_or(|task| task.field(drill_tasks::NODE_NAME) == node)
    }
}

fn role(cache: &Cache, key: &Key) -> Option<Role> {
    serde_json::from_slice(&cache.get(key)?.bytes).ok()
}

fn bindings(cache: &Cache, plural: &str, scope: &Scope) -> Vec<Binding> {
    let shelf = cache.shelf(&format!("{GROUP}/{plural}"));
    shelf
        .all(scope)
        .iter()
        .filter_map(|entry| serde_json::from_slice::<RoleBinding>(&entry.bytes).ok())
        .map(|binding| Binding {
            subjects: binding.subjects.unwrap_or_default(),
            role: binding.role,
        })
        .collect()
}

/// The rules of all ClusterRoles with the selected labels.
fn aggregated(cache: &Cache, selector: &LabelSelector) -> Vec<PolicyRule> {
    let terms: Vec<String> = selector
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let Ok(selector) = Selector::parse(&terms.join(","), "", &[]) else {
        return Vec::new();
    };
    if selector.is_everything() {
        return Vec::new();
    }
    let shelf = cache.shelf(&format!("{GROUP}/clusterroles"));
    let mut rules = Vec::new();
    for entry in shelf.all(&Scope::everything()) {
        if !selector.matches(&entry) {
            continue;
        }
        let role = object_of(&entry).and_then(|role: Value| {
            serde_json::from_value::<Role>(role).map_err(ApiError::internal)
        });
        rules.extend(role.ok().and_then(|role| role.rules).unwrap_or_default());
    }
    rules
}
