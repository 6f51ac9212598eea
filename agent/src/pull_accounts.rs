//! The accounts that a pod's images are pulled with: those of its `imagePullSecrets`, then the
//! node's own, as the kubelet has them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use skiff_images::{Credentials, DockerConfig, Keyring, Reference};

use crate::pod::seams::{SeamError, SeamResult};

/// Finds the accounts for an image.
#[derive(Debug, Clone)]
pub(crate) struct PullAccounts {
    /// Where the node's own may be, in Docker's format; the first file that is there counts. They
    /// are for all pods of the node, and read for each pull.
    node_files: Arc<[PathBuf]>,
}

impl PullAccounts {
    /// The node's own are in `<data-dir>/config.json` or `~/.docker/config.json`.
    pub(crate) fn new(data_dir: &Path) -> Self {
        let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
        let docker = home.map(|home| Path::new(&home).join(".docker/config.json"));
        let files = std::iter::once(data_dir.join("config.json")).chain(docker);
        Self {
            node_files: files.collect(),
        }
    }

    /// The accounts to try for an image, in order. A secret that holds no valid configuration
    /// fails the pull, as it does with the kubelet; a node's file that is not valid does not.
    pub(crate) async fn for_image(
        &self,
        reference: &Reference,
        secrets: &[Secret],
    ) -> SeamResult<Vec<Credentials>> {
        let mut accounts = secret_keyring(secrets)?.lookup(reference);
        let files = self.node_files.clone();
        let reading = tokio::task::spawn_blocking(move || node_keyring(&files));
        let node = reading.await.map_err(SeamError::from_display)?;
        for account in node.lookup(reference) {
            if !accounts.contains(&account) {
                accounts.push(account);
            }
        }
        Ok(accounts)
    }
}

fn secret_keyring(secrets: &[Secret]) -> SeamResult<Keyring> {
    let mut keyring = Keyring::new();
    for secret in secrets {
        let name = secret.metadata.name.as_deref().unwrap_or_default();
        let what = format!("secret \"{name}\"");
        let held = |kind: &str, key: &str| {
            let ByteString(bytes) = secret.data.as_ref()?.get(key)?;
            (secret.type_.as_deref() == Some(kind) && !bytes.is_empty()).then_some(bytes)
        };
        let added = if let Some(bytes) = held("kubernetes.io/dockerconfigjson", ".dockerconfigjson")
        {
            keyring.add_docker_config_json(bytes, &what)
        } else if let Some(bytes) = held("kubernetes.io/dockercfg", ".dockercfg") {
            keyring.add_docker_cfg(bytes, &what)
        } else {
            Ok(())
        };
        added.map_err(SeamError::from_display)?;
    }
    Ok(keyring)
}

fn node_keyring(files: &[PathBuf]) -> Keyring {
    let mut keyring = Keyring::new();
    let Some(file) = files.iter().find(|file| file.exists()) else {
        return keyring;
    };
    match DockerConfig::read(file) {
        Ok(config) => keyring.add(config),
        Err(error) => tracing::warn!(%error, "pulling without this node's accounts"),
    }
    keyring
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn secret(kind: &str, key: &str, config: serde_json::Value) -> Secret {
        let data = ByteString(serde_json::to_vec(&config).unwrap());
        Secret {
            type_: Some(kind.to_owned()),
            data: Some([(key.to_owned(), data)].into()),
            ..Secret::default()
        }
    }

    fn account(name: &str) -> serde_json::Value {
        json!({"username": name, "password": "word"})
    }

    async fn names(node_files: &[PathBuf], secrets: &[Secret]) -> Vec<String> {
        let accounts = PullAccounts {
            node_files: node_files.into(),
        };
        let image = "ghcr.io/a/b".parse().unwrap();
        let found = accounts.for_image(&image, secrets).await.unwrap();
        let name = |account| match account {
            Credentials::Basic { username, .. } => username,
            Credentials::IdentityToken(token) => token,
        };
        found.into_iter().map(name).collect()
    }

    #[tokio::test]
    async fn pull_secrets_of_both_kinds_are_read_and_others_are_not() {
        let new = json!({"auths": {"ghcr.io": account("new")}});
        let opaque = json!({"auths": {"ghcr.io": account("opaque")}});
        let secrets = [
            secret(
                "kubernetes.io/dockerconfigjson",
                ".dockerconfigjson",
                new.clone(),
            ),
            secret(
                "kubernetes.io/dockercfg",
                ".dockercfg",
                json!({"ghcr.io": account("old")}),
            ),
            secret("Opaque", ".dockerconfigjson", opaque),
            secret("kubernetes.io/dockercfg", ".dockerconfigjson", new),
        ];
        assert_eq!(names(&[], &secrets).await, ["new", "old"]);
    }

    #[tokio::test]
    async fn a_secret_that_is_no_configuration_is_named() {
        let mut bad = secret("kubernetes.io/dockercfg", ".dockercfg", json!(3));
        bad.metadata.name = Some("bad".to_owned());
        let error = secret_keyring(&[bad]).unwrap_err();
        assert!(error.to_string().contains("secret \"bad\""), "{error}");
    }

    #[tokio::test]
    async fn the_nodes_accounts_come_after_the_secrets() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let of = |name: &str| json!({"auths": {"ghcr.io": account(name)}});
        let kind = "kubernetes.io/dockerconfigjson";
        let secrets = [secret(kind, ".dockerconfigjson", of("secret"))];
        let absent = dir.path().join("absent");
        let node = file("node", of("node").to_string());
        let other = file("other", of("other").to_string());
        let files = [absent, node.clone(), other];
        assert_eq!(names(&files, &secrets).await, ["secret", "node"]);
        let same = [secret(kind, ".dockerconfigjson", of("node"))];
        assert_eq!(names(&[node], &same).await, ["node"]);
        let broken = file("broken", "{".to_owned());
        assert_eq!(names(&[broken], &secrets).await, ["secret"]);
    }
}
