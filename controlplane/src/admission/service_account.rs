//! A pod runs as a service account, and gets that account's token, the authority by which to
//! know the API server, and its namespace as files.

use rand::Rng;
use serde_json::{Value, json};

use super::Request;
use crate::api::object::Object;
use crate::api::status::ApiError;
use crate::resources::object::{at, ensure, items_mut, list, text};
use crate::store::Key;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME: &str = "kube-api-access-";
/// Seconds. A node asks for the next token when most of it is over.
const TOKEN_LIFETIME: i64 = 3607;
/// A static pod's picture in the API carries this annotation, and has no account.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// # Errors
/// 403 when a new pod's service account does not exist.
pub(super) fn admit(request: &Request<'_>, pod: &mut Value) -> Result<(), ApiError> {
    if !is_new_pod(request, pod) {
        return Ok(());
    }
    let name = account_name(pod).to_string();
    let key = Key::new("", "serviceaccounts", request.namespace, &name);
    let Some(entry) = request.cache.get(&key) else {
        let why = format!(
            "error looking up service account {}/{name}: serviceaccount {name:?} not found",
            request.namespace
        );
        return Err(ApiError::forbidden(request.resource, pod.name(), &why));
    };
    let account: Value = serde_json::from_slice(&entry.bytes).map_err(ApiError::internal)?;
    complete(pod, &account, &name);
    Ok(())
}

/// The service account that a new pod waits for: the one that each namespace has, should it not
/// be there yet.
pub fn awaits(request: &Request<'_>, pod: &Value) -> Option<Key> {
    let name = account_name(pod);
    if name != "default" || !is_new_pod(request, pod) {
        return None;
    }
    let key = Key::new("", "serviceaccounts", request.namespace, name);
    let namespace = Key::new("", "namespaces", "", request.namespace);
    let is_missing = request.cache.get(&key).is_none();
    (is_missing && request.cache.get(&namespace).is_some()).then_some(key)
}

fn is_new_pod(request: &Request<'_>, pod: &Value) -> bool {
    let resource = request.resource;
    let annotations = pod.metadata().and_then(|m| m.get("annotations"));
    request.old.is_none()
        && (resource.group, resource.plural) == ("", "pods")
        && annotations.is_none_or(|annotations| annotations.get(MIRROR).is_none())
}

fn account_name(pod: &Value) -> &str {
    match text(pod, "spec.serviceAccountName") {
        "" => "default",
        name => name,
    }
}

fn complete(pod: &mut Value, account: &Value, name: &str) {
    let automounts = [&pod["spec"], account]
        .iter()
        .find_map(|object| at(object, "automountServiceAccountToken").as_bool())
        .unwrap_or(true);
    let spec = ensure(pod, "spec");
    spec["serviceAccountName"] = json!(name);
    spec["serviceAccount"] = json!(name);
    let secrets = list(account, "imagePullSecrets");
    if list(spec, "imagePullSecrets").is_empty() && !secrets.is_empty() {
        spec["imagePullSecrets"] = json!(secrets);
    }
    if automounts {
        mount_token(spec);
    }
}

/// Mounts the volume into every container that has nothing of its own in that place.
fn mount_token(spec: &mut Value) {
    let volumes = list(spec, "volumes").iter();
    let present = volumes
        .map(|v| text(v, "name"))
        .find(|n| n.starts_with(VOLUME));
    let present = present.map(str::to_string);
    let name = present
        .clone()
        .unwrap_or_else(|| format!("{VOLUME}{}", suffix()));
    let mut is_needed = false;
    for kind in ["initContainers", "containers"] {
        for container in items_mut(spec, kind) {
            let mounts = list(container, "volumeMounts");
            if mounts
                .iter()
                .any(|mount| text(mount, "mountPath") == MOUNT_PATH)
            {
                continue;
            }
            push(
                container,
                "volumeMounts",
                json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}),
            );
            is_needed = true;
        }
    }
    if is_needed && present.is_none() {
        push(spec, "volumes", volume(&name));
    }
}

fn volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_LIFETIME}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ]}})
}

fn push(object: &mut Value, field: &str, item: Value) {
    match object[field].as_array_mut() {
        Some(items) => items.push(item),
        None => object[field] = json!([item]),
    }
}

/// Five characters, as generated names have.
fn suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    (0..5)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": spec})
    }

    fn completed(spec: Value, account: Value) -> Value {
        let mut pod = pod(spec);
        complete(&mut pod, &account, "default");
        pod["spec"].take()
    }

    #[test]
    fn every_container_gets_the_token() {
        let spec = completed(
            json!({"containers": [{"name": "a", "volumeMounts": [{"name": "x", "mountPath": "/x"}]}, {"name": "b"}],
                "initContainers": [{"name": "i"}], "volumes": [{"name": "x"}]}),
            json!({}),
        );
        let name = spec["volumes"][1]["name"].as_str().unwrap();
        assert!(name.starts_with(VOLUME) && name.len() == VOLUME.len() + 5);
        let mount = json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH});
        assert_eq!(spec["containers"][0]["volumeMounts"][1], mount);
        assert_eq!(spec["containers"][1]["volumeMounts"], json!([mount]));
        assert_eq!(spec["initContainers"][0]["volumeMounts"], json!([mount]));
        assert_eq!(
            spec["volumes"][1]["projected"]["sources"]
                .as_array()
                .unwrap()
                .len(),
            3
        );
        assert_eq!(spec["serviceAccountName"], "default");
    }

    #[test]
    fn a_place_that_is_taken_is_left_alone() {
        let spec = json!({"containers": [{"name": "a", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}]});
        let spec = completed(spec, json!({}));
        assert!(spec.get("volumes").is_none());
    }

    #[test]
    fn pods_and_accounts_can_do_without() {
        let container = json!([{"name": "a"}]);
        let no = json!({"automountServiceAccountToken": false});
        assert!(
            completed(json!({"containers": container}), no.clone())
                .get("volumes")
                .is_none()
        );
        let off = json!({"containers": container, "automountServiceAccountToken": false});
        assert!(completed(off, json!({})).get("volumes").is_none());
        let on = json!({"containers": container, "automountServiceAccountToken": true});
        assert!(completed(on, no).get("volumes").is_some());
    }

    #[test]
    fn pull_secrets_are_the_accounts_unless_the_pod_has_its_own() {
        let account = json!({"imagePullSecrets": [{"name": "registry"}]});
        let spec = completed(json!({"containers": []}), account.clone());
        assert_eq!(spec["imagePullSecrets"], json!([{"name": "registry"}]));
        let own = json!({"containers": [], "imagePullSecrets": [{"name": "own"}]});
        assert_eq!(
            completed(own, account)["imagePullSecrets"],
            json!([{"name": "own"}])
        );
    }
}
