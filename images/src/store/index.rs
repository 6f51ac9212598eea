//! `index.json`: the names of the store's images (image-spec, image-layout.md).
//!
//! Each name has its own entry, as containerd and skopeo write it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use oci_spec::image::{Descriptor, ImageIndex, ImageIndexBuilder, MediaType};

use crate::{Error, Reference};

/// The name that skopeo and podman look for.
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The name that containerd looks for.
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// Marks an image that came from a file: nothing fetches it again, so nothing collects it. containerd
/// calls such images pinned too.
const PINNED: &str = "io.cri-containerd.pinned";

/// One name and what it stands for: a manifest, or an index of manifests for several platforms.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub(crate) reference: Reference,
    pub(crate) target: Descriptor,
}

impl Named {
    /// An entry of an index; nothing when it has no name that is a reference.
    fn read(descriptor: &Descriptor) -> Option<Self> {
        let annotations = descriptor.annotations().as_ref()?;
        let name = annotations
            .get(CONTAINERD_NAME)
            .or_else(|| annotations.get(REF_NAME))?;
        Some(Self {
            reference: name.parse().ok()?,
            target: descriptor.clone(),
        })
    }

    /// What a commit writes: without the annotations of where the image came from.
    pub(crate) fn new(reference: Reference, target: &Descriptor, pinned: bool) -> Self {
        let mut target = target.clone();
        let pin = || HashMap::from([(PINNED.to_owned(), "pinned".to_owned())]);
        target.set_annotations(pinned.then(pin));
        Self { reference, target }
    }

    pub(super) fn is_pinned(&self) -> bool {
        let annotations = self.target.annotations().as_ref();
        annotations.is_some_and(|annotations| annotations.contains_key(PINNED))
    }

    fn descriptor(&self) -> Descriptor {
        let name = self.reference.to_string();
        let mut annotations = HashMap::from([
            (REF_NAME.to_owned(), name.clone()),
            (CONTAINERD_NAME.to_owned(), name),
        ]);
        if self.is_pinned() {
            annotations.insert(PINNED.to_owned(), "pinned".to_owned());
        }
        let mut descriptor = self.target.clone();
        descriptor.set_annotations(Some(annotations));
        descriptor
    }
}

/// Reads the names; a store without an index has none.
pub(super) fn read(path: &Path) -> Result<Vec<Named>, Error> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(format!("read {}", path.display()))(error)),
    };
    let index: ImageIndex =
        serde_json::from_slice(&text).map_err(|source| Error::DamagedIndex {
            path: path.to_owned(),
            source,
        })?;
    Ok(index.manifests().iter().filter_map(Named::read).collect())
}

/// The bytes of an index with these names, the same for the same names.
pub(crate) fn encode(names: &[Named]) -> Result<Vec<u8>, Error> {
    let index = ImageIndexBuilder::default()
        .schema_version(2u32)
        .media_type(MediaType::ImageIndex)
        .manifests(names.iter().map(Named::descriptor).collect::<Vec<_>>())
        .build()
        .map_err(|error| Error::malformed("index.json", error.to_string()))?;
    // By way of a value, whose maps are sorted: annotations are a hash map.
    serde_json::to_value(&index)
        .and_then(|value| serde_json::to_vec_pretty(&value))
        .map_err(Error::json("index.json"))
}
