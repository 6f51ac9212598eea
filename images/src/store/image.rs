//! An image of the store: what its manifest and configuration say, and where its layers are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};

use super::disk::Disk;
use super::index::Named;
use super::parents;
use crate::platform::{self, Platform};
use crate::unpack::Unpacked;
use crate::{Digest, Error, Reference};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_MANIFEST_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Overlayfs takes 500 directories (`OVL_MAX_STACK`), and a layer may need two.
const LAYERS_MAX: usize = 250;

/// An image that is complete and unpacked.
#[derive(Debug)]
pub struct Image {
    /// Its names, sorted. Never empty.
    pub references: Vec<Reference>,
    /// The digest of its configuration: the image id that Docker and Kubernetes show.
    pub id: Digest,
    /// What its name stands for: the manifest, or the index that lists it among other platforms'.
    pub digest: Digest,
    /// The digest of its manifest.
    pub manifest: Digest,
    /// Bytes of its blobs (compressed, as in a registry): what the kubelet reports.
    pub size: u64,
    pub config: ImageConfiguration,
    /// Directories for overlayfs, lowest first.
    pub layers: Vec<PathBuf>,
    /// It came from a file and could not be fetched again: it is removed by its name alone.
    pub pinned: bool,
}

impl Image {
    /// Whether a reference means this image.
    pub fn is(&self, reference: &Reference) -> bool {
        match reference.digest() {
            None => self.references.contains(reference),
            Some(digest) => {
                (digest == self.digest || digest == self.manifest)
                    && self
                        .references
                        .iter()
                        .any(|own| own.name() == reference.name())
            }
        }
    }

    /// What it runs on: `linux/amd64`, `linux/arm/v7`.
    pub fn platform(&self) -> String {
        let mut platform = format!("{}/{}", self.config.os(), self.config.architecture());
        if let Some(variant) = self.config.variant() {
            platform.push('/');
            platform.push_str(variant);
        }
        platform
    }

    /// Whether its id, its digest or its manifest's digest begins with these digits.
    pub(super) fn starts_with(&self, digits: &str) -> bool {
        let digits = digits.strip_prefix("sha256:").unwrap_or(digits);
        let own = [self.id, self.digest, self.manifest];
        !digits.is_empty() && own.iter().any(|own| own.hex().starts_with(digits))
    }

    /// The repositories it came from, each with the digest that names it there.
    pub fn repo_digests(&self) -> Vec<Reference> {
        let mut digests: Vec<Reference> = self
            .references
            .iter()
            .map(|own| own.at_digest(self.digest))
            .collect();
        digests.sort();
        digests.dedup();
        digests
    }
}

/// How a media type is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Manifest,
    Index,
}

impl Kind {
    pub(crate) fn of(descriptor: &Descriptor) -> Option<Self> {
        match descriptor.media_type() {
            MediaType::ImageManifest => Some(Self::Manifest),
            MediaType::ImageIndex => Some(Self::Index),
            MediaType::Other(other) => match other.as_str() {
                DOCKER_MANIFEST => Some(Self::Manifest),
                DOCKER_MANIFEST_LIST => Some(Self::Index),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The manifest and configuration behind a name.
pub(crate) struct Parsed {
    pub(crate) manifest_digest: Digest,
    pub(crate) manifest: ImageManifest,
    pub(crate) config_digest: Digest,
    pub(crate) config: ImageConfiguration,
    /// The indexes on the way from the name to the manifest.
    pub(crate) indexes: Vec<Digest>,
}

impl Parsed {
    pub(crate) fn diff_ids(&self) -> Result<Vec<Digest>, Error> {
        self.config
            .rootfs()
            .diff_ids()
            .iter()
            .map(|id| id.parse().map_err(Error::from))
            .collect()
    }

    /// Every blob that the image is made of.
    pub(crate) fn blobs(&self) -> Result<Vec<Digest>, Error> {
        let mut blobs = self.indexes.clone();
        blobs.extend([self.manifest_digest, self.config_digest]);
        for layer in self.manifest.layers() {
            blobs.push(Digest::try_from(layer.digest())?);
        }
        Ok(blobs)
    }
}

/// Reads what a name stands for. `read` gives the bytes of a blob, verified.
pub(crate) fn parse(
    image: &str,
    target: &Descriptor,
    read: &mut dyn FnMut(Digest) -> Result<Vec<u8>, Error>,
) -> Result<Parsed, Error> {
    let mut indexes = Vec::new();
    let mut target = target.clone();
    // An index may hold an index; nobody nests deeper than this.
    for _ in 0..4 {
        let digest = Digest::try_from(target.digest())?;
        let bytes = read(digest)?;
        let what = |kind: &str| format!("the {kind} {digest} of {image}");
        match Kind::of(&target) {
            Some(Kind::Index) => {
                let index: ImageIndex =
                    serde_json::from_slice(&bytes).map_err(Error::json(what("index")))?;
                indexes.push(digest);
                target = platform::choose(image, &index, &Platform::host())?;
            }
            Some(Kind::Manifest) => {
                let manifest: ImageManifest =
                    serde_json::from_slice(&bytes).map_err(Error::json(what("manifest")))?;
                let config_digest = Digest::try_from(manifest.config().digest())?;
                let config: ImageConfiguration = serde_json::from_slice(&read(config_digest)?)
                    .map_err(Error::json(format!(
                        "the configuration {config_digest} of {image}"
                    )))?;
                let (layers, diff_ids) =
                    (manifest.layers().len(), config.rootfs().diff_ids().len());
                if layers > LAYERS_MAX {
                    return Err(Error::malformed(
                        image,
                        format!("it has {layers} layers: overlayfs takes {LAYERS_MAX} of them"),
                    ));
                }
                if layers != diff_ids {
                    return Err(Error::malformed(
                        image,
                        format!("its manifest has {layers} layers, its configuration {diff_ids}"),
                    ));
                }
                return Ok(Parsed {
                    manifest_digest: digest,
                    manifest,
                    config_digest,
                    config,
                    indexes,
                });
            }
            None => {
                return Err(Error::malformed(
                    image,
                    format!("'{}' is not an image's media type", target.media_type()),
                ));
            }
        }
    }
    Err(Error::malformed(image, "its indexes are nested too deep"))
}

/// All images that the index names.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(super) images: Arc<[Arc<Image>]>,
    pub(super) damaged: Vec<Damaged>,
}

/// An image whose files somebody changed or took away.
#[derive(Debug, Clone)]
pub struct Damaged {
    pub references: Vec<Reference>,
    pub problem: String,
}

impl Damaged {
    /// What to tell who asks for it.
    pub fn error(&self) -> Error {
        let names = self.references.iter().map(ToString::to_string);
        Error::Damaged {
            image: names.collect::<Vec<_>>().join(" "),
            problem: self.problem.clone(),
        }
    }
}

pub(super) fn load_all(disk: &Disk, names: &[Named]) -> Loaded {
    let mut by_digest: BTreeMap<Digest, Vec<&Named>> = BTreeMap::new();
    for named in names {
        if let Ok(digest) = Digest::try_from(named.target.digest()) {
            by_digest.entry(digest).or_default().push(named);
        }
    }
    let mut images = Vec::new();
    let mut damaged = Vec::new();
    for (digest, names) in by_digest {
        let mut references: Vec<Reference> =
            names.iter().map(|named| named.reference.clone()).collect();
        references.sort();
        references.dedup();
        match load(disk, digest, &names, references.clone()) {
            Ok(image) => images.push(Arc::new(image)),
            Err(error) => {
                let problem = error.to_string();
                damaged.push(Damaged {
                    references,
                    problem,
                });
            }
        }
    }
    images.sort_by(|a, b| a.references.cmp(&b.references));
    for damaged in &damaged {
        tracing::error!(error = %damaged.error(), "an image can't be used");
    }
    Loaded {
        images: images.into(),
        damaged,
    }
}

fn load(
    disk: &Disk,
    digest: Digest,
    names: &[&Named],
    references: Vec<Reference>,
) -> Result<Image, Error> {
    let name = references[0].to_string();
    let parsed = parse(&name, &names[0].target, &mut |digest| {
        disk.read_json(digest)
    })?;
    let mut size = parsed.manifest.config().size();
    size += parsed
        .manifest
        .layers()
        .iter()
        .map(Descriptor::size)
        .sum::<u64>();
    size += disk.read_json(parsed.manifest_digest)?.len() as u64;
    Ok(Image {
        id: parsed.config_digest,
        digest,
        manifest: parsed.manifest_digest,
        size,
        layers: layer_paths(disk, &name, &parsed)?,
        pinned: names.iter().any(|named| named.is_pinned()),
        config: parsed.config,
        references,
    })
}

fn layer_paths(disk: &Disk, image: &str, parsed: &Parsed) -> Result<Vec<PathBuf>, Error> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for step in parents::steps(&parsed.diff_ids()?, |diff_id| read_unpacked(disk, diff_id))? {
        if step.hides_below {
            paths.clear();
        }
        let layer = disk.layer_path(step.diff_id).join("fs");
        // Builders repeat layers (the empty one, mostly), and overlayfs refuses to. What the
        // upper one has hides all of the lower one.
        paths.retain(|path| *path != layer);
        if !step.needs_parents {
            paths.push(layer);
            continue;
        }
        let made = parents::find(disk, step.chain_id);
        let made = made.ok_or_else(|| missing(image, &disk.parents_path(step.chain_id)))?;
        made.put_on(layer, &mut paths);
    }
    match paths.iter().find(|path| !path.is_dir()) {
        Some(path) => Err(missing(image, path)),
        None => Ok(paths),
    }
}

fn missing(image: &str, path: &Path) -> Error {
    Error::malformed(image, format!("{} is missing", path.display()))
}

pub(super) fn read_unpacked(disk: &Disk, diff_id: Digest) -> Result<Unpacked, Error> {
    let path = disk.layer_path(diff_id).join("layer.json");
    let text = std::fs::read(&path).map_err(Error::io(format!("read {}", path.display())))?;
    serde_json::from_slice(&text).map_err(Error::json(path.display().to_string()))
}

/// The image that a person means: by a reference, or by some first digits of its id or digests.
pub(crate) fn find(loaded: &Loaded, name: &str) -> Result<Arc<Image>, Error> {
    let images = &loaded.images;
    if let Ok(reference) = name.parse::<Reference>()
        && let Some(image) = images.iter().find(|image| image.is(&reference))
    {
        return Ok(Arc::clone(image));
    }
    let mut found = images.iter().filter(|image| image.starts_with(name));
    match (found.next(), found.next()) {
        (Some(image), None) => Ok(Arc::clone(image)),
        (Some(one), Some(other)) if one.id == other.id => Ok(Arc::clone(one)),
        (Some(_), Some(_)) => Err(Error::Ambiguous(name.to_owned())),
        (None, _) => Err(damaged(loaded, name).unwrap_or_else(|| Error::NotFound(name.to_owned()))),
    }
}

fn damaged(loaded: &Loaded, name: &str) -> Option<Error> {
    let reference: Reference = name.parse().ok()?;
    let mut damaged = loaded.damaged.iter();
    Some(damaged.find(|d| d.references.contains(&reference))?.error())
}
