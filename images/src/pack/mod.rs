//! A directory becomes an image of one layer, always with the same bytes for the same tree.

mod holes;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Seek, Write};
use std::path::Path;

use oci_spec::image::{Descriptor, ImageManifestBuilder, MediaType, SCHEMA_VERSION};
use serde_json::{Map, Value, json};
use tree::Tree;

use crate::Platform;
use crate::digest::DigestReader;
use crate::export::{write_file, write_layout};
use crate::store::index::{self, Named};
use crate::{Digest, Error, Reference};

/// How a layer's bytes are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    None,
    #[default]
    Gzip,
    Zstd,
}

/// What the image is called and how it runs.
#[derive(Debug, Clone, Default)]
pub struct PackOptions {
    pub references: Vec<Reference>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    /// `80`, `80/tcp` or `53/udp`
    pub ports: Vec<String>,
    pub user: Option<String>,
    pub workdir: Option<String>,
    pub stop_signal: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// Directories.
    pub volumes: Vec<String>,
    /// `linux/arm64` or `linux/arm/v7`; this machine's if not given.
    pub platform: Option<String>,
    pub compression: Compression,
    /// Seconds since 1970: when the image was created, and the latest time that a file in it may
    /// carry. Without it, the newest file's time.
    pub created: Option<i64>,
}

/// Packs a directory and writes an OCI archive.
///
/// # Errors
/// When the directory can't be read in full, or the archive can't be written.
pub fn pack(rootfs: &Path, options: &PackOptions, to: &Path) -> Result<(), Error> {
    let refuse = |reason: &str| Error::Pack {
        rootfs: rootfs.to_owned(),
        reason: reason.to_owned(),
    };
    if options.references.is_empty() {
        return Err(refuse("the image needs a name"));
    }
    let platform = match &options.platform {
        Some(platform) => parse_platform(platform).ok_or_else(|| {
            refuse(&format!(
                "'{platform}' is no platform, as linux/amd64 and linux/arm/v7 are"
            ))
        })?,
        None => vec![
            "linux".to_owned(),
            Platform::host().architecture().to_owned(),
        ],
    };
    let tree = Tree::read(rootfs)?;
    let created = options.created.unwrap_or_else(|| tree.newest());
    let layer = Layer::write(&tree, created, options.compression)?;
    let config = serde_json::to_vec(&configuration(options, &platform, created, layer.diff_id))
        .map_err(Error::json("the image configuration"))?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(Descriptor::new(
            MediaType::ImageConfig,
            config.len() as u64,
            Digest::of(&config),
        ))
        .layers(vec![layer.descriptor(options.compression)])
        .build()
        .map_err(|error| refuse(&error.to_string()))?;
    let manifest = serde_json::to_vec(&manifest).map_err(Error::json("the manifest"))?;
    let target = Descriptor::new(
        MediaType::ImageManifest,
        manifest.len() as u64,
        Digest::of(&manifest),
    );
    let names: Vec<Named> = options
        .references
        .iter()
        .map(|reference| Named {
            reference: reference.clone(),
            target: target.clone(),
        })
        .collect();
    let index = index::encode(&names)?;
    let small = [config, manifest].map(|bytes| (Digest::of(&bytes), bytes));
    let blobs: BTreeSet<Digest> = small
        .iter()
        .map(|(digest, _)| *digest)
        .chain([layer.blob])
        .collect();
    write_file(to, |file| {
        write_layout(file, &index, &blobs, |digest| {
            match small.iter().find(|(own, _)| *own == digest) {
                Some((_, bytes)) => scratch(bytes),
                None => layer.reopen(),
            }
        })
    })
}

fn scratch(bytes: &[u8]) -> io::Result<File> {
    let mut file = tempfile::tempfile()?;
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

/// The configuration in the field order of the specification, with sorted maps.
fn configuration(
    options: &PackOptions,
    platform: &[String],
    created: i64,
    diff_id: Digest,
) -> Value {
    let mut config = Map::new();
    let mut set = |name: &str, value: Value| {
        config.insert(name.to_owned(), value);
    };
    if let Some(user) = &options.user {
        set("User", json!(user));
    }
    if !options.ports.is_empty() {
        let ports = options.ports.iter().map(|port| match port.contains('/') {
            true => (port.clone(), json!({})),
            false => (format!("{port}/tcp"), json!({})),
        });
        set("ExposedPorts", Value::Object(ports.collect()));
    }
    set("Env", json!(environment(&options.env)));
    if !options.entrypoint.is_empty() {
        set("Entrypoint", json!(options.entrypoint));
    }
    if !options.cmd.is_empty() {
        set("Cmd", json!(options.cmd));
    }
    if !options.volumes.is_empty() {
        let volumes = options.volumes.iter();
        let volumes = volumes.map(|volume| (volume.clone(), json!({})));
        set("Volumes", Value::Object(volumes.collect()));
    }
    if let Some(workdir) = &options.workdir {
        set("WorkingDir", json!(workdir));
    }
    if !options.labels.is_empty() {
        set("Labels", json!(options.labels));
    }
    if let Some(signal) = &options.stop_signal {
        set("StopSignal", json!(signal));
    }
    let created = jiff::Timestamp::from_second(created)
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_string();
    let mut image = json!({
        "created": created,
        "architecture": platform[1],
        "os": platform[0],
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "created_by": "skiff image pack"}],
    });
    if let Some(variant) = platform.get(2) {
        image["variant"] = json!(variant);
    }
    image
}

/// Operating system, architecture and perhaps a variant.
fn parse_platform(text: &str) -> Option<Vec<String>> {
    let parts: Vec<String> = text.split('/').map(str::to_owned).collect();
    let plain = |part: &String| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        !part.is_empty() && part.chars().all(allowed)
    };
    (matches!(parts.len(), 2 | 3) && parts.iter().all(plain)).then_some(parts)
}

/// A PATH is what every runtime expects an image to have.
fn environment(given: &[String]) -> Vec<String> {
    let mut env = given.to_vec();
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.insert(
            0,
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        );
    }
    env
}

/// A layer in a file that has no name.
struct Layer {
    file: File,
    blob: Digest,
    size: u64,
    diff_id: Digest,
}

impl Layer {
    fn write(tree: &Tree, latest: i64, compression: Compression) -> Result<Self, Error> {
        let temporary = || Error::io("write the layer to a temporary file");
        let file = tempfile::tempfile().map_err(temporary())?;
        let buffered = BufWriter::with_capacity(128 * 1024, file);
        let (file, diff_id) = match compression {
            Compression::None => write_tree(tree, latest, buffered)?,
            Compression::Gzip => {
                let packer =
                    flate2::GzBuilder::new().write(buffered, flate2::Compression::default());
                let (packer, diff_id) = write_tree(tree, latest, packer)?;
                (packer.finish().map_err(temporary())?, diff_id)
            }
            Compression::Zstd => {
                let packer = zstd::stream::write::Encoder::new(buffered, 0).map_err(temporary())?;
                let (packer, diff_id) = write_tree(tree, latest, packer)?;
                (packer.finish().map_err(temporary())?, diff_id)
            }
        };
        let mut file = file
            .into_inner()
            .map_err(|error| temporary()(error.into_error()))?;
        file.rewind().map_err(temporary())?;
        let (blob, size) = DigestReader::new(&file).finish().map_err(temporary())?;
        Ok(Self {
            file,
            blob,
            size,
            diff_id,
        })
    }

    fn descriptor(&self, compression: Compression) -> Descriptor {
        let media_type = match compression {
            Compression::None => MediaType::ImageLayer,
            Compression::Gzip => MediaType::ImageLayerGzip,
            Compression::Zstd => MediaType::ImageLayerZstd,
        };
        Descriptor::new(media_type, self.size, self.blob)
    }

    fn reopen(&self) -> io::Result<File> {
        let mut file = self.file.try_clone()?;
        file.rewind()?;
        Ok(file)
    }
}

fn write_tree<W: Write>(tree: &Tree, latest: i64, to: W) -> Result<(W, Digest), Error> {
    let mut builder = tar::Builder::new(crate::digest::DigestWriter::new(to));
    tree.write(&mut builder, latest)?;
    let writer = builder.into_inner().map_err(Error::io("write the layer"))?;
    Ok(writer.finish())
}
