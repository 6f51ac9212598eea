//! What a pod depends on, for the node authorizer: as Kubernetes' graph of nodes, pods, secrets and
//! config maps, but looked at from the pods that run on a node.

use k8s_openapi::api::core::v1::{
    Container, EnvFromSource, EnvVar, EphemeralContainer, Pod, PodSpec, Volume,
};

use super::authorize::Used;

/// Whether the pod's spec names the object.
pub fn uses(pod: &Pod, object: Used<'_>) -> bool {
    let Some(spec) = &pod.spec else { return false };
    match object {
        Used::Pod(name) => pod.metadata.name.as_deref() == Some(name),
        Used::ServiceAccount(name) => {
            spec.service_account_name.as_deref().unwrap_or("default") == name
        }
        Used::Secret(name) => secrets(spec).any(|used| used == name),
        Used::ConfigMap(name) => config_maps(spec).any(|used| used == name),
    }
}

fn secrets(spec: &PodSpec) -> impl Iterator<Item = &str> {
    let pull = spec.image_pull_secrets.iter().flatten();
    let environment = environments(spec).flat_map(|(variables, sources)| {
        let keys = variables.iter().filter_map(|variable| {
            let from = variable.value_from.as_ref()?;
            Some(from.secret_key_ref.as_ref()?.name.as_str())
        });
        let whole = sources.iter();
        keys.chain(whole.filter_map(|from| Some(from.secret_ref.as_ref()?.name.as_str())))
    });
    let volumes = spec.volumes.iter().flatten().flat_map(volume_secrets);
    pull.map(|secret| secret.name.as_str())
        .chain(environment)
        .chain(volumes)
}

fn config_maps(spec: &PodSpec) -> impl Iterator<Item = &str> {
    let environment = environments(spec).flat_map(|(variables, sources)| {
        let keys = variables.iter().filter_map(|variable| {
            let from = variable.value_from.as_ref()?;
            Some(from.config_map_key_ref.as_ref()?.name.as_str())
        });
        let whole = sources.iter();
        keys.chain(whole.filter_map(|from| Some(from.config_map_ref.as_ref()?.name.as_str())))
    });
    let volumes = spec.volumes.iter().flatten().flat_map(volume_config_maps);
    environment.chain(volumes)
}

/// A container's `env` and `envFrom`.
type Environment<'a> = (&'a [EnvVar], &'a [EnvFromSource]);

/// The environments of all containers.
fn environments(spec: &PodSpec) -> impl Iterator<Item = Environment<'_>> {
    let init = spec.init_containers.iter().flatten();
    let ephemeral = spec.ephemeral_containers.iter().flatten();
    init.chain(&spec.containers)
        .map(environment)
        .chain(ephemeral.map(ephemeral_environment))
}

fn environment(container: &Container) -> Environment<'_> {
    (
        container.env.as_deref().unwrap_or_default(),
        container.env_from.as_deref().unwrap_or_default(),
    )
}

fn ephemeral_environment(container: &EphemeralContainer) -> Environment<'_> {
    (
        container.env.as_deref().unwrap_or_default(),
        container.env_from.as_deref().unwrap_or_default(),
    )
}

fn volume_secrets(volume: &Volume) -> Vec<&str> {
    let own = volume
        .secret
        .as_ref()
        .and_then(|s| s.secret_name.as_deref());
    let projected = volume.projected.as_ref().and_then(|p| p.sources.as_ref());
    let projected = projected.into_iter().flatten();
    let projected = projected.filter_map(|source| Some(source.secret.as_ref()?.name.as_str()));
    own.into_iter().chain(projected).collect()
}

fn volume_config_maps(volume: &Volume) -> Vec<&str> {
    let own = volume.config_map.as_ref().map(|map| map.name.as_str());
    let projected = volume.projected.as_ref().and_then(|p| p.sources.as_ref());
    let projected = projected.into_iter().flatten();
    let projected = projected.filter_map(|source| Some(source.config_map.as_ref()?.name.as_str()));
    own.into_iter().chain(projected).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_that_names_an_object_counts() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p"},
            "spec": {
                "serviceAccountName": "robot",
                "imagePullSecrets": [{"name": "pull"}],
                "initContainers": [{"name": "i", "envFrom": [{"secretRef": {"name": "whole"}}]}],
                "containers": [{"name": "c", "env": [
                    {"name": "A", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}},
                    {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "k"}}},
                ]}],
                "volumes": [
                    {"name": "s", "secret": {"secretName": "mounted"}},
                    {"name": "m", "configMap": {"name": "mounted-map"}},
                    {"name": "p", "projected": {"sources": [
                        {"secret": {"name": "projected"}},
                        {"configMap": {"name": "kube-root-ca.crt"}},
                    ]}},
                ],
            },
        }))
        .unwrap();
        for secret in ["pull", "whole", "key", "mounted", "projected"] {
            assert!(uses(&pod, Used::Secret(secret)), "{secret}");
            assert!(!uses(&pod, Used::ConfigMap(secret)), "{secret}");
        }
        for map in ["map", "mounted-map", "kube-root-ca.crt"] {
            assert!(uses(&pod, Used::ConfigMap(map)), "{map}");
        }
        assert!(uses(&pod, Used::ServiceAccount("robot")));
        assert!(!uses(&pod, Used::ServiceAccount("default")));
        assert!(uses(&pod, Used::Pod("p")) && !uses(&pod, Used::Secret("other")));
    }
}
