//! OCI layouts made blob by blob, honest or not.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};
use skiff_images::{Digest, Reference, Store};
use tempfile::TempDir;

pub(crate) fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(crate) fn config(diff_ids: &[Digest]) -> Vec<u8> {
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        // As Docker writes what is not set.
        "config": {"Cmd": ["sh"], "Entrypoint": null, "ExposedPorts": null, "Labels": null},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    serde_json::to_vec(&config).unwrap()
}

/// An OCI layout directory under construction.
pub(crate) struct Layout {
    pub(crate) dir: TempDir,
}

impl Layout {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("layout/blobs/sha256")).unwrap();
        let layout = Self { dir };
        fs::write(
            layout.path().join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        layout
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("layout")
    }

    pub(crate) fn blob_path(&self, digest: Digest) -> PathBuf {
        self.path().join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs::write(self.blob_path(digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// An image of plain layers; gives the descriptor of its manifest.
    pub(crate) fn image(&self, layers: &[Vec<u8>]) -> Value {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        self.image_with(layers, &diff_ids)
    }

    pub(crate) fn image_with(&self, layers: &[Vec<u8>], diff_ids: &[Digest]) -> Value {
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| self.blob("application/vnd.oci.image.layer.v1.tar", layer))
            .collect();
        self.manifest(&layers, diff_ids)
    }

    pub(crate) fn manifest(&self, layers: &[Value], diff_ids: &[Digest]) -> Value {
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.blob("application/vnd.oci.image.config.v1+json", &config(diff_ids)),
            "layers": layers,
        });
        let bytes = serde_json::to_vec(&manifest).unwrap();
        self.blob("application/vnd.oci.image.manifest.v1+json", &bytes)
    }

    pub(crate) fn index(&self, named: &[(&Value, &str)]) -> PathBuf {
        let manifests: Vec<Value> = named
            .iter()
            .map(|(descriptor, name)| {
                let mut descriptor = (*descriptor).clone();
                descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
                descriptor
            })
            .collect();
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.path().join("index.json"), index.to_string()).unwrap();
        self.path()
    }

    pub(crate) fn tar(&self) -> PathBuf {
        let path = self.dir.path().join("layout.tar");
        let mut tar = tar::Builder::new(fs::File::create(&path).unwrap());
        tar.append_dir_all(".", self.path()).unwrap();
        tar.finish().unwrap();
        path
    }

    pub(crate) async fn store(&self) -> Store {
        Store::open(self.dir.path().join("store")).await.unwrap()
    }
}
