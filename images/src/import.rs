//! Taking in archives: OCI layouts (a directory or a tar file), and what `docker save` writes.
//!
//! Every blob is hashed while it is staged and compared with what names it; every layer's
//! unpacked content is compared with its diff id. A digest that the store has already needs no
//! second look: the store only holds content under its own digest.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use oci_spec::image::{
    Descriptor, ImageConfiguration, ImageIndex, ImageManifestBuilder, MediaType, SCHEMA_VERSION,
};
use serde::Deserialize;

use crate::archive::{Packing, Source};
use crate::store::disk::Disk;
use crate::store::image::{self, Parsed};
use crate::store::index::{CONTAINERD_NAME, Named, REF_NAME};
use crate::store::ingest::{Commit, Ingest, StagedLayer};
use crate::{Digest, Error, Image, Reference};

/// How often an import starts over because others removed what it relied on.
const ATTEMPTS: u32 = 5;

pub(crate) fn import(
    disk: &Arc<Disk>,
    path: &Path,
    names: &[Reference],
) -> Result<Vec<Arc<Image>>, Error> {
    for _ in 0..ATTEMPTS {
        let mut ingest = Ingest::begin(disk)?;
        ingest.pin();
        let source = Source::open(path, &mut ingest)?;
        let images = stage(&mut ingest, &source, names)?;
        if ingest.commit(&images)? == Commit::Done {
            return added(disk, &images);
        }
    }
    Err(Error::Raced {
        image: path.display().to_string(),
    })
}

/// The images as the store has them now, each once.
fn added(disk: &Disk, named: &[(Named, Parsed)]) -> Result<Vec<Arc<Image>>, Error> {
    let mut images: Vec<Arc<Image>> = disk
        .images()?
        .iter()
        .filter(|image| named.iter().any(|(named, _)| image.is(&named.reference)))
        .cloned()
        .collect();
    images.sort_by(|a, b| a.references.cmp(&b.references));
    Ok(images)
}

fn stage(
    ingest: &mut Ingest,
    source: &Source,
    names: &[Reference],
) -> Result<Vec<(Named, Parsed)>, Error> {
    // What newer versions of `docker save` write has both; the layout says more.
    let images = if let Some(index) = source.json("index.json")? {
        let docker = docker_manifest(source)?.unwrap_or_default();
        named_in_index(source, &index, &docker, names)?
    } else if let Some(entries) = docker_manifest(source)? {
        named_by_docker(ingest, source, &entries, names)?
    } else {
        return Err(Error::not_an_image(
            source.path(),
            "it has neither an index.json (OCI) nor a manifest.json (docker save)",
        ));
    };
    images
        .into_iter()
        .map(|named| {
            ingest.begin_image();
            let parsed = stage_image(ingest, source, &named)?;
            Ok((named, parsed))
        })
        .collect()
}

/// Stages all blobs of one image. Those of `docker save` are staged already, because only
/// reading them tells what they are called.
fn stage_image(ingest: &mut Ingest, source: &Source, named: &Named) -> Result<Parsed, Error> {
    let name = named.reference.to_string();
    let parsed = image::parse(&name, &named.target, &mut |digest| {
        stage_json(ingest, source, &name, digest)
    })?;
    for (layer, diff_id) in parsed.manifest.layers().iter().zip(parsed.diff_ids()?) {
        let blob = Digest::try_from(layer.digest())?;
        match (ingest.has_blob(blob), ingest.has_layer(diff_id)) {
            (true, true) => {}
            (true, false) => {
                let actual = ingest.unpack_stored(&name, blob)?;
                check(
                    &name,
                    || format!("layer {blob}, unpacked,"),
                    diff_id,
                    actual,
                )?;
            }
            (false, unpacked_already) => {
                let part = source.require(&blob_name(blob))?;
                let staged = ingest.put_layer(&name, blob, unpacked_already, part)?;
                check_layer(&name, &staged, blob, diff_id)?;
            }
        }
    }
    Ok(parsed)
}

pub(crate) fn check_layer(
    image: &str,
    staged: &StagedLayer,
    blob: Digest,
    diff_id: Digest,
) -> Result<(), Error> {
    check(image, || format!("layer {blob}"), blob, staged.blob)?;
    check(
        image,
        || format!("layer {blob}, unpacked,"),
        diff_id,
        staged.diff_id,
    )
}

fn check(
    image: &str,
    what: impl FnOnce() -> String,
    expected: Digest,
    actual: Digest,
) -> Result<(), Error> {
    match expected == actual {
        true => Ok(()),
        false => Err(Error::Mismatch {
            image: image.to_owned(),
            what: what(),
            expected,
            actual,
        }),
    }
}

fn stage_json(
    ingest: &mut Ingest,
    source: &Source,
    image: &str,
    digest: Digest,
) -> Result<Vec<u8>, Error> {
    if ingest.has_blob(digest) {
        return ingest.read_json(digest);
    }
    let name = blob_name(digest);
    let bytes = source
        .json(&name)?
        .ok_or_else(|| Error::not_an_image(source.path(), format!("'{name}' is missing in it")))?;
    check(image, || name, digest, Digest::of(&bytes))?;
    ingest.put_json(&bytes)?;
    Ok(bytes)
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The images of an OCI layout, each under each of its names.
fn named_in_index(
    source: &Source,
    index: &[u8],
    docker: &[DockerEntry],
    overrides: &[Reference],
) -> Result<Vec<Named>, Error> {
    let what = format!("index.json in {}", source.path().display());
    let index: ImageIndex = serde_json::from_slice(index).map_err(Error::json(what))?;
    let images: Vec<&Descriptor> = index
        .manifests()
        .iter()
        .filter(|descriptor| image::Kind::of(descriptor).is_some())
        .collect();
    if images.is_empty() {
        return Err(Error::not_an_image(
            source.path(),
            "its index.json lists no image",
        ));
    }
    let mut distinct: Vec<&str> = images.iter().map(|image| image.digest().as_ref()).collect();
    distinct.sort_unstable();
    distinct.dedup();
    if !overrides.is_empty() {
        if distinct.len() > 1 {
            return Err(Error::ManyImages {
                path: source.path().to_owned(),
                count: distinct.len(),
            });
        }
        return Ok(name_all(images[0], overrides));
    }
    let mut named: Vec<Named> = Vec::new();
    for descriptor in &images {
        named.extend(annotated_name(descriptor)?.map(|reference| Named {
            reference,
            target: (*descriptor).clone(),
        }));
    }
    // Tools that annotate only the tag write the full names where Docker looks for them.
    if named.is_empty() && distinct.len() == 1 {
        let tags: Vec<Reference> = parse_tags(docker)?;
        named = name_all(images[0], &tags);
    }
    match named.is_empty() {
        true => Err(Error::Unnamed(source.path().to_owned())),
        false => Ok(named),
    }
}

fn name_all(target: &Descriptor, names: &[Reference]) -> Vec<Named> {
    names
        .iter()
        .map(|reference| Named {
            reference: reference.clone(),
            target: target.clone(),
        })
        .collect()
}

/// The name in an index entry's annotations. A bare word is a tag, and names nothing.
fn annotated_name(descriptor: &Descriptor) -> Result<Option<Reference>, Error> {
    let Some(annotations) = descriptor.annotations() else {
        return Ok(None);
    };
    let name = annotations.get(CONTAINERD_NAME).or_else(|| {
        annotations
            .get(REF_NAME)
            .filter(|name| name.contains(['/', ':']))
    });
    Ok(name.map(|name| name.parse()).transpose()?)
}

/// One image of a `docker save` archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn docker_manifest(source: &Source) -> Result<Option<Vec<DockerEntry>>, Error> {
    let Some(bytes) = source.json("manifest.json")? else {
        return Ok(None);
    };
    let what = format!("manifest.json in {}", source.path().display());
    let entries: Vec<DockerEntry> = serde_json::from_slice(&bytes).map_err(Error::json(what))?;
    match entries.is_empty() {
        true => Err(Error::not_an_image(
            source.path(),
            "its manifest.json lists no image",
        )),
        false => Ok(Some(entries)),
    }
}

fn parse_tags(entries: &[DockerEntry]) -> Result<Vec<Reference>, Error> {
    let tags = entries
        .iter()
        .flat_map(|entry| entry.repo_tags.iter().flatten());
    Ok(tags.map(|tag| tag.parse()).collect::<Result<_, _>>()?)
}

fn named_by_docker(
    ingest: &mut Ingest,
    source: &Source,
    entries: &[DockerEntry],
    overrides: &[Reference],
) -> Result<Vec<Named>, Error> {
    if !overrides.is_empty() && entries.len() > 1 {
        return Err(Error::ManyImages {
            path: source.path().to_owned(),
            count: entries.len(),
        });
    }
    let mut named = Vec::new();
    let mut seen = HashMap::new();
    for entry in entries {
        let names = match overrides.is_empty() {
            true => parse_tags(std::slice::from_ref(entry))?,
            false => overrides.to_vec(),
        };
        let Some(first) = names.first() else {
            continue;
        };
        let target = stage_docker(ingest, source, entry, &first.to_string(), &mut seen)?;
        named.extend(name_all(&target, &names));
    }
    match named.is_empty() {
        true => Err(Error::Unnamed(source.path().to_owned())),
        false => Ok(named),
    }
}

/// Stages an image of a `docker save` archive and makes the manifest that it lacks.
fn stage_docker(
    ingest: &mut Ingest,
    source: &Source,
    entry: &DockerEntry,
    name: &str,
    seen: &mut HashMap<String, (Descriptor, Digest)>,
) -> Result<Descriptor, Error> {
    let config = source.json(&entry.config)?.ok_or_else(|| {
        Error::not_an_image(
            source.path(),
            format!("'{}' is missing in it", entry.config),
        )
    })?;
    let parsed: ImageConfiguration = serde_json::from_slice(&config).map_err(Error::json(
        format!("'{}' in {}", entry.config, source.path().display()),
    ))?;
    let diff_ids = parsed.rootfs().diff_ids();
    if diff_ids.len() != entry.layers.len() {
        return Err(Error::malformed(
            name,
            format!(
                "manifest.json lists {} layers, its configuration {}",
                entry.layers.len(),
                diff_ids.len()
            ),
        ));
    }
    let mut layers = Vec::new();
    for (path, diff_id) in entry.layers.iter().zip(diff_ids) {
        let expected: Digest = diff_id.parse()?;
        let (descriptor, actual) = match seen.get(path) {
            Some(known) => known.clone(),
            None => stage_docker_layer(ingest, source, name, path, expected)?,
        };
        check(name, || format!("layer '{path}'"), expected, actual)?;
        seen.insert(path.clone(), (descriptor.clone(), actual));
        layers.push(descriptor);
    }
    let config_size = config.len() as u64;
    let config = Descriptor::new(
        MediaType::ImageConfig,
        config_size,
        ingest.put_json(&config)?,
    );
    let manifest = ImageManifestBuilder::default()
        .schema_version(SCHEMA_VERSION)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers)
        .build()
        .map_err(|error| Error::malformed(name, error.to_string()))?;
    let bytes = serde_json::to_vec(&manifest).map_err(Error::json("the manifest"))?;
    let digest = ingest.put_json(&bytes)?;
    Ok(Descriptor::new(
        MediaType::ImageManifest,
        bytes.len() as u64,
        digest,
    ))
}

fn stage_docker_layer(
    ingest: &mut Ingest,
    source: &Source,
    name: &str,
    path: &str,
    expected: Digest,
) -> Result<(Descriptor, Digest), Error> {
    let mut start = [0; 4];
    let read = source
        .require(path)?
        .read(&mut start)
        .map_err(Error::io(format!(
            "read '{path}' in {}",
            source.path().display()
        )))?;
    let media_type = match Packing::of(&start[..read]) {
        Packing::Plain => MediaType::ImageLayer,
        Packing::Gzip => MediaType::ImageLayerGzip,
        Packing::Zstd => MediaType::ImageLayerZstd,
    };
    let unpacked_already = ingest.has_layer(expected);
    let staged = ingest.put_layer(name, expected, unpacked_already, source.require(path)?)?;
    let descriptor = Descriptor::new(media_type, staged.size, staged.blob);
    Ok((descriptor, staged.diff_id))
}
