//! The registry client against a registry that misbehaves.
#![allow(clippy::unwrap_used, reason = "tests")]

mod content;
mod credentials;
mod mirrors;
#[path = "../registry/mod.rs"]
mod registry;
mod tls;

use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use registry::{Auth, FaultyRegistry};
use skiff_images::Credentials;
use skiff_images::registry::{
    Blob, Registries, RegistryConfig, RegistryError, Repository, RetryPolicy, Timeouts,
};

pub(crate) const MANIFEST: &str = r#"{"schemaVersion":2}"#;

pub(crate) const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

/// Tries again soon, and waits for long: the machine may be busy.
pub(crate) fn config() -> RegistryConfig {
    RegistryConfig {
        timeouts: Timeouts {
            connect: Duration::from_secs(20),
            headers: Duration::from_secs(20),
            body: Duration::from_secs(20),
        },
        retry: RetryPolicy {
            attempts: 3,
            base: Duration::from_millis(10),
            max: Duration::from_millis(20),
            max_retry_after: Duration::from_secs(5),
        },
        ..RegistryConfig::default()
    }
}

/// For registries that say nothing.
pub(crate) fn impatient() -> RegistryConfig {
    RegistryConfig {
        timeouts: Timeouts {
            connect: Duration::from_secs(1),
            headers: Duration::from_secs(1),
            body: Duration::from_secs(1),
        },
        ..config()
    }
}

pub(crate) fn repository(registry: &FaultyRegistry, credentials: &[Credentials]) -> Repository {
    Registries::new(config()).repository(&registry.reference("a/b:1"), credentials)
}

pub(crate) async fn manifest(repository: &Repository) -> Result<Bytes, RegistryError> {
    let manifest = repository.manifest(&repository.target(), &[OCI]).await;
    manifest.map(|manifest| manifest.bytes)
}

pub(crate) async fn read(blob: Blob) -> Result<Vec<u8>, (Vec<u8>, RegistryError)> {
    let Blob { mut stream, .. } = blob;
    let mut bytes = Vec::new();
    loop {
        match stream.try_next().await {
            Ok(Some(piece)) => bytes.extend_from_slice(&piece),
            Ok(None) => return Ok(bytes),
            Err(error) => return Err((bytes, error)),
        }
    }
}

/// So many bytes, no two runs of them alike.
pub(crate) fn noise(length: usize) -> Bytes {
    let numbers = (0u64..).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    numbers.take(length).collect::<Vec<u8>>().into()
}

pub(crate) fn account(name: &str) -> Credentials {
    Credentials::basic(name, "word")
}

pub(crate) fn accounts(name: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), "word".to_owned())]
}

pub(crate) fn bearer(realm: &FaultyRegistry, accounts: Vec<(String, String)>) -> Auth {
    Auth::Bearer {
        realm: realm.url(),
        accounts,
        identity_token: Some("identity".to_owned()),
    }
}

/// A folder of `hosts.toml` for one registry, or for all (`_default`).
pub(crate) fn hosts(registry: &str, text: &str) -> (tempfile::TempDir, RegistryConfig) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(registry);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
    let config = RegistryConfig {
        hosts_dirs: vec![dir.path().to_owned()],
        ..config()
    };
    (dir, config)
}
