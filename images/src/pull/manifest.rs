//! From a name to what an image is made of: index, manifest and configuration, each verified.
//!
//! The registry is asked what the name stands for, always, because the answer may have changed
//! and the one who asks may have no right to it. What follows from that by digest is only fetched
//! when it is not here.

use std::collections::BTreeMap;
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;

use super::download;
use super::error::FetchError;
use crate::Digest;
use crate::platform::{self, Platform};
use crate::registry::{Manifest, Repository, Target};
use crate::store::disk::{Disk, JSON_MAX};
use crate::store::image::{self, Kind, Parsed};

/// Index, manifest and their Docker counterparts; then anything, so that what is no image can be
/// told by its type.
const ACCEPT: [&str; 5] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "*/*",
];

const SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// How indexes may be nested; nobody goes deeper.
const NESTED: usize = 4;

/// An image as its name stands for it now.
pub(super) struct Resolved {
    /// What the name is to stand for in the store.
    pub(super) target: Descriptor,
    pub(super) parsed: Parsed,
    /// Index, manifest and configuration, those that are here already too.
    pub(super) documents: BTreeMap<Digest, Vec<u8>>,
}

/// Asks the registry what a name stands for, and reads it for a platform; the host's, unless one
/// is given.
pub(super) async fn resolve(
    repository: &Repository,
    disk: &Arc<Disk>,
    platform: Option<&Platform>,
) -> Result<Resolved, FetchError> {
    let name = repository.reference().to_string();
    let mut documents = BTreeMap::new();
    let first = look_up(repository, disk).await?;
    let top = describe(&name, &first.bytes, &first.media_type, first.digest)?;
    documents.insert(first.digest, first.bytes.to_vec());
    let mut target = top.clone();
    for _ in 0..NESTED {
        let digest = Digest::try_from(target.digest())?;
        let bytes = match documents.get(&digest) {
            Some(bytes) => bytes.clone(),
            None => child(repository, disk, &name, &target).await?,
        };
        let what = |kind: &str| format!("the {kind} {digest}");
        if Kind::of(&target) == Some(Kind::Index) {
            let index: ImageIndex = serde_json::from_slice(&bytes)
                .map_err(|error| FetchError::invalid(what("index"), error))?;
            documents.insert(digest, bytes);
            let host = Platform::host();
            target = platform::choose(&name, &index, platform.unwrap_or(&host))?;
            continue;
        }
        let manifest: ImageManifest = serde_json::from_slice(&bytes)
            .map_err(|error| FetchError::invalid(what("manifest"), error))?;
        check(&manifest, &bytes)?;
        documents.insert(digest, bytes);
        let config = Digest::try_from(manifest.config().digest())?;
        let bytes = configuration(repository, disk, manifest.config()).await?;
        documents.insert(config, bytes);
        // The store reads indexes for the host: for another platform a name means the manifest.
        let named = match platform {
            Some(wanted) if *wanted != Platform::host() => target,
            _ => top,
        };
        let parsed = image::parse(&name, &named, &mut |digest| {
            Ok(documents.get(&digest).cloned().unwrap_or_default())
        })?;
        check_platform(&parsed, platform)?;
        return Ok(Resolved {
            target: named,
            parsed,
            documents,
        });
    }
    Err(FetchError::invalid(name, "its indexes are nested too deep"))
}

/// What the name stands for now. A registry that tells the digest needs not send what is here
/// already, and does not count the question against its limits.
async fn look_up(repository: &Repository, disk: &Arc<Disk>) -> Result<Manifest, FetchError> {
    let target = repository.target();
    if let Some(digest) = repository.resolve(&target, &ACCEPT).await? {
        if let Some(bytes) = stored(disk, digest).await? {
            return Ok(Manifest {
                bytes: bytes.into(),
                media_type: String::new(),
                digest,
            });
        }
        return Ok(repository
            .manifest(&Target::Digest(digest), &ACCEPT)
            .await?);
    }
    Ok(repository.manifest(&target, &ACCEPT).await?)
}

/// What an index lists: here, or fetched.
async fn child(
    repository: &Repository,
    disk: &Arc<Disk>,
    name: &str,
    listed: &Descriptor,
) -> Result<Vec<u8>, FetchError> {
    let digest = Digest::try_from(listed.digest())?;
    if let Some(bytes) = stored(disk, digest).await? {
        return Ok(bytes);
    }
    let fetched = repository.manifest(&digest.into(), &ACCEPT).await?;
    let described = describe(name, &fetched.bytes, &fetched.media_type, digest)?;
    if described.media_type() != listed.media_type() {
        return Err(FetchError::invalid(
            format!("the manifest {digest}"),
            format!(
                "the index calls it {}, the registry {}",
                listed.media_type(),
                described.media_type()
            ),
        ));
    }
    expect_size(format!("the manifest {digest}"), listed, described.size())?;
    Ok(fetched.bytes.to_vec())
}

async fn configuration(
    repository: &Repository,
    disk: &Arc<Disk>,
    descriptor: &Descriptor,
) -> Result<Vec<u8>, FetchError> {
    let digest = Digest::try_from(descriptor.digest())?;
    let what = format!("the configuration {digest}");
    if descriptor.size() > JSON_MAX {
        let reason = format!(
            "{} bytes are more than the {JSON_MAX} allowed",
            descriptor.size()
        );
        return Err(FetchError::invalid(what, reason));
    }
    if let Some(bytes) = stored(disk, digest).await? {
        return Ok(bytes);
    }
    let bytes = download::whole(repository, digest, descriptor.size(), &what).await?;
    match Digest::of(&bytes) {
        actual if actual == digest => Ok(bytes),
        actual => Err(FetchError::invalid(
            what,
            format!("what came has the digest {actual}: the content was altered"),
        )),
    }
}

/// A document that is in the store.
async fn stored(disk: &Arc<Disk>, digest: Digest) -> Result<Option<Vec<u8>>, FetchError> {
    let disk = Arc::clone(disk);
    let read = move || match disk.blob_path(digest).exists() {
        true => disk.read_json(digest).map(Some),
        false => Ok(None),
    };
    let read = tokio::task::spawn_blocking(read).await;
    Ok(read.map_err(|error| crate::Error::Interrupted(error.to_string()))??)
}

fn expect_size(what: String, listed: &Descriptor, actual: u64) -> Result<(), FetchError> {
    match listed.size() == actual {
        true => Ok(()),
        false => Err(FetchError::Size {
            what,
            expected: listed.size(),
            actual,
        }),
    }
}

/// The fields by which documents are told apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<u64>,
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// The descriptor of what a registry gave: an index or an image's manifest.
///
/// # Errors
/// When it is neither, or could be read as both (CVE-2021-41190).
fn describe(
    name: &str,
    bytes: &[u8],
    content_type: &str,
    digest: Digest,
) -> Result<Descriptor, FetchError> {
    let what = || format!("what \"{name}\" stands for");
    // Without parameters such as a character set.
    let content_type = content_type.split(';').next().unwrap_or_default().trim();
    let shape: Shape =
        serde_json::from_slice(bytes).map_err(|error| FetchError::invalid(what(), error))?;
    if SCHEMA_1.contains(&content_type)
        || shape.fs_layers.is_some()
        || shape.schema_version == Some(1)
    {
        return Err(FetchError::Schema1 { what: what() });
    }
    if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
        let reason = "it could be read as an index and as a manifest";
        return Err(FetchError::invalid(what(), reason));
    }
    let descriptor =
        |media_type: &str| Descriptor::new(MediaType::from(media_type), bytes.len() as u64, digest);
    let is_image = |media_type: &str| match Kind::of(&descriptor(media_type)) {
        Some(Kind::Index) => shape.manifests.is_some(),
        Some(Kind::Manifest) => shape.manifests.is_none(),
        None => false,
    };
    // The document's own word counts; older ones of OCI have none, and the registry's serves.
    let said = shape.media_type.as_deref().unwrap_or(content_type);
    if is_image(said) {
        return Ok(descriptor(said));
    }
    let by_shape = match (&shape.manifests, &shape.layers, &shape.config) {
        (Some(_), _, _) => Some("application/vnd.oci.image.index.v1+json"),
        (None, Some(_), Some(_)) => Some("application/vnd.oci.image.manifest.v1+json"),
        _ => None,
    };
    match by_shape {
        // Registries on plain file servers don't know types.
        Some(media_type) if shape.media_type.is_none() => Ok(descriptor(media_type)),
        _ => Err(FetchError::NotAnImage {
            what: match shape.artifact_type {
                Some(artifact) => format!("an artifact of the type {artifact:?}"),
                None => format!("something of the type {said:?}"),
            },
        }),
    }
}

/// Refuses what can't be run: artifacts that are no images, and layers that can't be had.
fn check(manifest: &ImageManifest, bytes: &[u8]) -> Result<(), FetchError> {
    let config = manifest.config().media_type().to_string();
    // Docker 1.10 said no more than that.
    let old = manifest.media_type().is_some() && config == "application/octet-stream";
    if !(*manifest.config().media_type() == MediaType::ImageConfig
        || config == DOCKER_CONFIG
        || old)
    {
        let shape: Option<Shape> = serde_json::from_slice(bytes).ok();
        let artifact = shape.and_then(|shape| shape.artifact_type);
        let artifact = artifact
            .filter(|artifact| !artifact.is_empty())
            .unwrap_or(config);
        return Err(FetchError::NotAnImage {
            what: format!("an artifact of the type {artifact:?}"),
        });
    }
    for layer in manifest.layers() {
        let media_type = layer.media_type().to_string();
        match media_type.as_str() {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => {}
            foreign if foreign.contains("nondistributable") || foreign.contains(".foreign.") => {
                let urls = layer.urls().as_deref().unwrap_or_default();
                return Err(FetchError::ForeignLayer {
                    layer: layer.digest().to_string(),
                    from: match urls.first() {
                        Some(url) => url.clone(),
                        None => "somewhere else".to_owned(),
                    },
                    media_type,
                });
            }
            _ => {
                return Err(FetchError::LayerType {
                    layer: layer.digest().to_string(),
                    media_type,
                });
            }
        }
    }
    Ok(())
}

/// A platform that was asked for must be the image's, also where no index offers a choice.
fn check_platform(parsed: &Parsed, wanted: Option<&Platform>) -> Result<(), FetchError> {
    let Some(wanted) = wanted else {
        return Ok(());
    };
    let found = Platform::new(
        &parsed.config.os().to_string(),
        &parsed.config.architecture().to_string(),
        parsed.config.variant().as_deref().unwrap_or_default(),
    );
    match wanted.can_run(&found) {
        true => Ok(()),
        false => Err(FetchError::Platform {
            found: found.to_string(),
            wanted: wanted.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(body: &str, content_type: &str) -> Result<String, String> {
        let found = describe("a", body.as_bytes(), content_type, Digest::of(b""));
        found
            .map(|found| found.media_type().to_string())
            .map_err(|error| error.to_string())
    }

    const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

    #[test]
    fn documents_are_told_apart() {
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        let manifest = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
        let list = format!(r#"{{"schemaVersion":2,"mediaType":"{LIST}","manifests":[]}}"#);
        for (body, content_type, expected) in [
            (index, INDEX, INDEX),
            (index, "application/json; charset=utf-8", INDEX),
            (manifest, MANIFEST, MANIFEST),
            (manifest, "text/plain", MANIFEST),
            (&list, LIST, LIST),
            (&list, "application/octet-stream", LIST),
        ] {
            assert_eq!(described(body, content_type).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn what_is_no_image_is_refused_in_clear_words() {
        for (body, content_type, said) in [
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, MANIFEST, "schema 1"),
            (r#"{"schemaVersion":2}"#, SCHEMA_1[1], "schema 1"),
            (
                r#"{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}"#,
                INDEX,
                "as an index and",
            ),
            (
                r#"{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","artifactType":"a/sbom","blobs":[]}"#,
                MANIFEST,
                "not a container image but an artifact of the type \"a/sbom\"",
            ),
            (r#"{"manifests":[]}"#, MANIFEST, ""),
            ("<html>", MANIFEST, "not valid"),
            ("{}", "application/json", "not a container image"),
        ] {
            match described(body, content_type) {
                Err(error) => assert!(error.contains(said), "{error}"),
                // By its shape, whatever the header says.
                Ok(found) => assert_eq!((said, found.as_str()), ("", INDEX)),
            }
        }
    }

    #[test]
    fn layers_that_can_not_be_had_are_refused() {
        let refused = |config: &str, layer: &str| {
            let digest = Digest::of(b"");
            let manifest = serde_json::json!({
                "schemaVersion": 2,
                "config": {"mediaType": config, "digest": digest, "size": 2},
                "layers": [{"mediaType": layer, "digest": digest, "size": 2, "urls": ["https://go.microsoft.com/x"]}],
            });
            let bytes = serde_json::to_vec(&manifest).unwrap();
            check(&serde_json::from_slice(&bytes).unwrap(), &bytes)
                .err()
                .map(|error| error.to_string())
        };
        let (config, layer) = (
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.oci.image.layer.v1.tar+zstd",
        );
        assert_eq!(refused(config, layer), None);
        assert_eq!(
            refused(
                DOCKER_CONFIG,
                "application/vnd.docker.image.rootfs.diff.tar.gzip"
            ),
            None
        );
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        let error = refused(DOCKER_CONFIG, foreign).unwrap();
        assert!(error.contains("https://go.microsoft.com/x"), "{error}");
        let error = refused(
            config,
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        )
        .unwrap();
        assert!(error.contains("can't be unpacked"), "{error}");
        let error = refused("application/vnd.cncf.helm.config.v1+json", layer).unwrap();
        assert!(error.contains("helm"), "{error}");
    }
}
