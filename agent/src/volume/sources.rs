//! The content of volumes that come from the API: configMap, secret, downwardAPI, projected.

use std::path::{Path, PathBuf};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, DownwardAPIVolumeFile, KeyToPath, ServiceAccountTokenProjection, Volume,
    VolumeProjection,
};

use super::Context;
use super::atomic::{File, Payload};
use crate::pod::fields;

/// Permission bits when neither the item nor the volume says any.
const DEFAULT_MODE: i32 = 0o644;

/// A volume's files.
pub(super) struct Content {
    pub(super) files: Payload,
    /// Secrets and tokens never touch the disk.
    pub(super) in_memory: bool,
}

/// Whether a volume's files come from the API.
pub(super) fn is_content(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.projected.is_some()
}

/// The files of a volume, if its content comes from the API.
pub(super) async fn content(
    context: &Context<'_>,
    volume: &Volume,
) -> Result<Option<Content>, String> {
    let mut collector = Collector {
        context,
        files: Payload::new(),
        mode: DEFAULT_MODE,
    };
    let mut in_memory = false;
    if let Some(source) = &volume.config_map {
        collector.mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let optional = source.optional == Some(true);
        collector
            .config_map(&source.name, source.items.as_deref(), optional)
            .await?;
    } else if let Some(source) = &volume.secret {
        in_memory = true;
        collector.mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.as_deref().unwrap_or_default();
        let optional = source.optional == Some(true);
        collector
            .secret(name, source.items.as_deref(), optional)
            .await?;
    } else if let Some(source) = &volume.downward_api {
        collector.mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        collector.downward(source.items.as_deref().unwrap_or_default())?;
    } else if let Some(source) = &volume.projected {
        collector.mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        for projection in source.sources.iter().flatten() {
            in_memory |= projection.secret.is_some() || projection.service_account_token.is_some();
            collector.projection(projection).await?;
        }
    } else {
        return Ok(None);
    }
    Ok(Some(Content {
        files: collector.files,
        in_memory,
    }))
}

struct Collector<'a> {
    context: &'a Context<'a>,
    files: Payload,
    mode: i32,
}

impl Collector<'_> {
    fn namespace(&self) -> &str {
        self.context
            .pod
            .metadata
            .namespace
            .as_deref()
            .unwrap_or_default()
    }

    fn add(&mut self, path: &str, content: Vec<u8>, mode: Option<i32>) {
        let mode = u32::try_from(mode.unwrap_or(self.mode)).unwrap_or(0o644) & 0o7777;
        let file = File {
            content,
            mode,
            uid: None,
        };
        self.files.insert(PathBuf::from(path), file);
    }

    async fn config_map(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
    ) -> Result<(), String> {
        let found = self.context.api.config_map(self.namespace(), name).await;
        let Some(map) = found.map_err(|e| e.to_string())? else {
            return missing(optional, || format!("configmap \"{name}\" not found"));
        };
        let get = |key: &str| bytes_of(&map, key);
        let keys = map.data.iter().flatten().map(|(k, _)| k);
        let keys = keys.chain(map.binary_data.iter().flatten().map(|(k, _)| k));
        let keys: Vec<String> = keys.cloned().collect();
        self.select(&keys, get, items, optional, "configmap")
    }

    async fn secret(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
    ) -> Result<(), String> {
        let found = self.context.api.secret(self.namespace(), name).await;
        let Some(secret) = found.map_err(|e| e.to_string())? else {
            return missing(optional, || format!("secret \"{name}\" not found"));
        };
        let data = secret.data.unwrap_or_default();
        let keys: Vec<String> = data.keys().cloned().collect();
        let get = |key: &str| data.get(key).map(|ByteString(bytes)| bytes.clone());
        self.select(&keys, get, items, optional, "secret")
    }

    /// Takes all keys, or those that `items` name.
    fn select(
        &mut self,
        keys: &[String],
        get: impl Fn(&str) -> Option<Vec<u8>>,
        items: Option<&[KeyToPath]>,
        optional: bool,
        kind: &str,
    ) -> Result<(), String> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            for key in keys {
                self.add(key, get(key).unwrap_or_default(), None);
            }
            return Ok(());
        };
        for item in items {
            match get(&item.key) {
                Some(content) => self.add(&item.path, content, item.mode),
                None if optional => {}
                None => {
                    return Err(format!(
                        "{kind} references non-existent {kind} key: {}",
                        item.key
                    ));
                }
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile]) -> Result<(), String> {
        let Context {
            pod, pod_ips, node, ..
        } = *self.context;
        for item in items {
            let value = if let Some(selector) = &item.field_ref {
                fields::field(pod, pod_ips, node, &selector.field_path)?
            } else if let Some(selector) = &item.resource_field_ref {
                let spec = pod.spec.as_ref();
                let container = spec.and_then(|s| s.containers.first());
                let container = container.ok_or("the pod has no containers")?;
                fields::resource_field(pod, container, node, selector)?
            } else {
                return Err(format!(
                    "item {} has neither fieldRef nor resourceFieldRef",
                    item.path
                ));
            };
            self.add(&item.path, value.into_bytes(), item.mode);
        }
        Ok(())
    }

    async fn projection(&mut self, projection: &VolumeProjection) -> Result<(), String> {
        if let Some(source) = &projection.config_map {
            let optional = source.optional == Some(true);
            self.config_map(&source.name, source.items.as_deref(), optional)
                .await?;
        }
        if let Some(source) = &projection.secret {
            let optional = source.optional == Some(true);
            self.secret(&source.name, source.items.as_deref(), optional)
                .await?;
        }
        if let Some(source) = &projection.downward_api {
            self.downward(source.items.as_deref().unwrap_or_default())?;
        }
        if let Some(source) = &projection.service_account_token {
            self.token(source).await?;
        }
        if projection.cluster_trust_bundle.is_some() || projection.pod_certificate.is_some() {
            return Err(
                "clusterTrustBundle and podCertificate projections are not supported".into(),
            );
        }
        Ok(())
    }

    /// A token that is still good for a while stays; it is renewed after 80 % of its life.
    async fn token(&mut self, source: &ServiceAccountTokenProjection) -> Result<(), String> {
        let context = self.context;
        let life = source.expiration_seconds.unwrap_or(3600).max(600);
        let kept = self.written_token(&source.path, life).await;
        let token = match kept {
            Some(token) => token,
            None => {
                let audience = source.audience.as_deref().filter(|a| !a.is_empty());
                let token = context
                    .api
                    .service_account_token(context.pod, audience, life)
                    .await;
                token.map_err(|e| e.to_string())?.into_bytes()
            }
        };
        self.add(&source.path, token, None);
        // Without a group to read it, the process's own user owns the token, as the kubelet has it.
        let owner = run_as_user(context).filter(|_| context.fs_group().is_none());
        if let Some(file) = self.files.get_mut(Path::new(&source.path)) {
            file.mode = if owner.is_some() { 0o600 } else { file.mode };
            file.uid = owner;
        }
        Ok(())
    }

    async fn written_token(&self, path: &str, life: i64) -> Option<Vec<u8>> {
        let volumes = self.context.pod_dir.join("volumes");
        let spec = self.context.pod.spec.as_ref()?;
        let volume = spec.volumes.iter().flatten().find(|v| {
            let sources = v.projected.iter().flat_map(|p| p.sources.iter().flatten());
            sources
                .filter_map(|s| s.service_account_token.as_ref())
                .any(|t| t.path == path)
        })?;
        let file = volumes.join(&volume.name).join(path);
        let age = tokio::fs::metadata(&file)
            .await
            .ok()?
            .modified()
            .ok()?
            .elapsed()
            .ok()?;
        let renew_after = u64::try_from(life).ok()? * 8 / 10;
        if age.as_secs() >= renew_after {
            return None;
        }
        tokio::fs::read(&file).await.ok()
    }
}

fn run_as_user(context: &Context<'_>) -> Option<u32> {
    let spec = context.pod.spec.as_ref()?;
    let of_pod = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let mut users = spec.containers.iter().map(|c| {
        let own = c.security_context.as_ref().and_then(|s| s.run_as_user);
        own.or(of_pod)
    });
    let first = users.next()??;
    users.all(|u| u == Some(first)).then_some(())?;
    u32::try_from(first).ok()
}

fn bytes_of(map: &ConfigMap, key: &str) -> Option<Vec<u8>> {
    let text = map.data.as_ref().and_then(|d| d.get(key));
    let binary = || map.binary_data.as_ref().and_then(|d| d.get(key));
    text.map(|t| t.clone().into_bytes())
        .or_else(|| binary().map(|ByteString(bytes)| bytes.clone()))
}

fn missing(optional: bool, message: impl FnOnce() -> String) -> Result<(), String> {
    if optional { Ok(()) } else { Err(message()) }
}
