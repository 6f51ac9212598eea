//! A container's environment: literal values, references to other objects and to the pod
//! itself, and `$(NAME)` expansion.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret};

use super::fields::{self, NodeFacts};
use super::seams::PodApi;

/// Resolves the environment that the pod's declaration gives a container, in order; services come last, where the
/// declaration does not use their names.
///
/// # Errors
/// The message of the kubelet's `CreateContainerConfigError`.
pub async fn resolve(
    api: &dyn PodApi,
    pod: &Pod,
    container: &Container,
    pod_ips: &[IpAddr],
    node: &NodeFacts,
    services: &[(String, String)],
) -> Result<Vec<(String, String)>, String> {
    let mut objects = Objects {
        api,
        namespace: pod.metadata.namespace.as_deref().unwrap_or_default(),
        config_maps: BTreeMap::new(),
        secrets: BTreeMap::new(),
    };
    let mut env = Environment {
        list: Vec::new(),
        services,
    };
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            let optional = reference.optional == Some(true);
            if let Some(map) = objects.config_map(&reference.name, optional).await? {
                for (key, value) in map.data.iter().flatten() {
                    env.set(format!("{prefix}{key}"), value.clone());
                }
            }
        }
        if let Some(reference) = &source.secret_ref {
            let optional = reference.optional == Some(true);
            if let Some(secret) = objects.secret(&reference.name, optional).await? {
                for (key, value) in secret.data.iter().flatten() {
                    let value = String::from_utf8_lossy(&value.0).into_owned();
                    env.set(format!("{prefix}{key}"), value);
                }
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => Some(env.expand(value)),
            (_, Some(source)) => {
                from_source(&mut objects, pod, container, pod_ips, node, source).await?
            }
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            env.set(variable.name.clone(), value);
        }
    }
    Ok(env.whole())
}

async fn from_source(
    objects: &mut Objects<'_>,
    pod: &Pod,
    container: &Container,
    pod_ips: &[IpAddr],
    node: &NodeFacts,
    source: &EnvVarSource,
) -> Result<Option<String>, String> {
    if let Some(selector) = &source.field_ref {
        return fields::field(pod, pod_ips, node, &selector.field_path).map(Some);
    }
    if let Some(selector) = &source.resource_field_ref {
        return fields::resource_field(pod, container, node, selector).map(Some);
    }
    if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional == Some(true);
        let namespace = objects.namespace;
        let Some(map) = objects.config_map(&selector.name, optional).await? else {
            return Ok(None);
        };
        let value = map.data.as_ref().and_then(|d| d.get(&selector.key));
        return match value {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                selector.key, selector.name
            )),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional == Some(true);
        let namespace = objects.namespace;
        let Some(secret) = objects.secret(&selector.name, optional).await? else {
            return Ok(None);
        };
        let value = secret.data.as_ref().and_then(|d| d.get(&selector.key));
        return match value {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                selector.key, selector.name
            )),
        };
    }
    Ok(Some(String::new()))
}

/// Objects that the environment refers to, each fetched once.
struct Objects<'a> {
    api: &'a dyn PodApi,
    namespace: &'a str,
    config_maps: BTreeMap<String, Option<ConfigMap>>,
    secrets: BTreeMap<String, Option<Secret>>,
}

impl Objects<'_> {
    async fn config_map(
        &mut self,
        name: &str,
        optional: bool,
    ) -> Result<Option<&ConfigMap>, String> {
        if !self.config_maps.contains_key(name) {
            let object = self.api.config_map(self.namespace, name).await;
            let object = object.map_err(|e| e.to_string())?;
            self.config_maps.insert(name.to_owned(), object);
        }
        let object = self.config_maps.get(name).and_then(Option::as_ref);
        required(object, optional, || {
            format!("configmap \"{name}\" not found")
        })
    }

    async fn secret(&mut self, name: &str, optional: bool) -> Result<Option<&Secret>, String> {
        if !self.secrets.contains_key(name) {
            let object = self.api.secret(self.namespace, name).await;
            let object = object.map_err(|e| e.to_string())?;
            self.secrets.insert(name.to_owned(), object);
        }
        let object = self.secrets.get(name).and_then(Option::as_ref);
        required(object, optional, || format!("secret \"{name}\" not found"))
    }
}

fn required<T>(
    object: Option<&T>,
    optional: bool,
    message: impl FnOnce() -> String,
) -> Result<Option<&T>, String> {
    match object {
        None if !optional => Err(message()),
        found => Ok(found),
    }
}

/// Variables in the order of their first mention; a later one replaces the value.
struct Environment<'a> {
    list: Vec<(String, String)>,
    /// Known from the start, but replaced by any of the same name.
    services: &'a [(String, String)],
}

impl Environment<'_> {
    fn set(&mut self, name: String, value: String) {
        match self.list.iter_mut().find(|(n, _)| *n == name) {
            Some(slot) => slot.1 = value,
            None => self.list.push((name, value)),
        }
    }

    fn expand(&self, text: &str) -> String {
        let all = [self.services, &self.list].concat();
        expand(text, &all)
    }

    fn whole(mut self) -> Vec<(String, String)> {
        for (name, value) in self.services {
            if !self.list.iter().any(|(known, _)| known == name) {
                self.list.push((name.clone(), value.clone()));
            }
        }
        self.list
    }
}

/// Replaces `$(NAME)` by the variable's value; `$$` is a literal `$`, an unknown name stays as
/// it is written.
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match env.iter().rev().find(|(n, _)| n == name) {
                Some((_, value)) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::scripted::ScriptedApi;
    use serde_json::json;

    #[test]
    fn expands_as_kubernetes_does() {
        let env = [
            ("A".to_owned(), "1".to_owned()),
            ("B".to_owned(), "2".to_owned()),
        ];
        for (text, expected) in [
            ("$(A)-$(B)", "1-2"),
            ("$$(A)", "$(A)"),
            ("$(C)", "$(C)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("a$", "a$"),
            ("$$$(A)", "$1"),
        ] {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }

    async fn resolved(container: serde_json::Value) -> Result<Vec<(String, String)>, String> {
        let api = ScriptedApi::default();
        api.put_config_map(
            json!({"metadata": {"namespace": "ns", "name": "cm"}, "data": {"k": "v"}}),
        );
        api.put_secret(
            json!({"metadata": {"namespace": "ns", "name": "s"}, "data": {"p": "c2VjcmV0"}}),
        );
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns"}, "spec": {"containers": [container]},
        }))
        .unwrap();
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let services = [("WEB_SERVICE_HOST", "10.43.0.2"), ("K", "service")];
        let services = services.map(|(k, v)| (k.to_owned(), v.to_owned()));
        resolve(&api, &pod, container, &[], &NodeFacts::default(), &services).await
    }

    #[tokio::test]
    async fn every_source() {
        let env = resolved(json!({"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}},
                {"secretRef": {"name": "absent", "optional": true}}],
            "env": [
                {"name": "X", "value": "x"},
                {"name": "Y", "value": "$(X)$(P_k)$(WEB_SERVICE_HOST)"},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
                {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "p"}}},
                {"name": "O", "valueFrom": {"secretKeyRef": {"name": "s", "key": "no", "optional": true}}},
            ]}))
        .await
        .unwrap();
        let env: Vec<_> = env.iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(
            env,
            [
                "P_k=v",
                "X=x",
                "Y=xv10.43.0.2",
                "NAME=web",
                "K=v",
                "S=secret",
                "WEB_SERVICE_HOST=10.43.0.2"
            ]
        );
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        let missing = |source: serde_json::Value| {
            resolved(json!({"name": "c", "env": [{"name": "X", "valueFrom": source}]}))
        };
        assert_eq!(
            missing(json!({"configMapKeyRef": {"name": "none", "key": "k"}})).await,
            Err("configmap \"none\" not found".into())
        );
        assert_eq!(
            missing(json!({"secretKeyRef": {"name": "s", "key": "none"}})).await,
            Err("couldn't find key none in Secret ns/s".into())
        );
    }
}
