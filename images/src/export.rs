//! Writing images of the store to an OCI archive.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::archive::ArchiveWriter;
use crate::store::disk::Disk;
use crate::store::image;
use crate::store::index::{self, Named};
use crate::{Digest, Error, Reference};

pub(crate) const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

pub(crate) fn export(disk: &Disk, references: &[Reference], to: &Path) -> Result<(), Error> {
    let loaded = disk.loaded()?;
    let mut names = Vec::new();
    let mut blobs = BTreeSet::new();
    for reference in references {
        let image = image::find(&loaded, &reference.to_string())?;
        let stored = disk.read_index()?;
        // An index of several platforms stays one, so that the digest stays; of the platforms that it lists
        // the archive has those that the store has.
        let target = stored
            .iter()
            .map(|named| &named.target)
            .find(|target| Digest::try_from(target.digest()) == Ok(image.digest))
            .ok_or_else(|| Error::not_found(reference))?;
        let parsed = image::parse(&reference.to_string(), target, &mut |digest| {
            disk.read_json(digest)
        })?;
        blobs.extend(parsed.blobs()?);
        names.push(Named::new(reference.clone(), target, false));
    }
    let index = index::encode(&names)?;
    write_file(to, |file| {
        write_layout(file, &index, &blobs, |digest| {
            let path = disk.blob_path(digest);
            File::open(&path).map_err(|error| {
                let path = path.display();
                io::Error::new(
                    error.kind(),
                    format!("the store's {path} is damaged: {error}"),
                )
            })
        })
    })
}

/// Writes an archive in a fixed order, so that the same images give the same bytes.
pub(crate) fn write_layout<W: Write>(
    to: W,
    index: &[u8],
    blobs: &BTreeSet<Digest>,
    open: impl Fn(Digest) -> io::Result<File>,
) -> io::Result<()> {
    let mut archive = ArchiveWriter::new(to);
    archive.bytes("oci-layout", LAYOUT)?;
    archive.bytes("index.json", index)?;
    archive.directory("blobs")?;
    archive.directory("blobs/sha256")?;
    for digest in blobs {
        let blob = open(*digest)?;
        let size = blob.metadata()?.len();
        archive.reader(&format!("blobs/sha256/{}", digest.hex()), blob, size)?;
    }
    archive.finish()?.flush()
}

/// Makes a file that is either complete or not there.
pub(crate) fn write_file(
    to: &Path,
    write: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<(), Error> {
    let directory = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let make = || -> io::Result<()> {
        let file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(directory)?;
        let mut writer = BufWriter::with_capacity(128 * 1024, file.as_file());
        write(&mut writer)?;
        writer.flush()?;
        drop(writer);
        file.as_file().sync_all()?;
        file.persist(to).map_err(|error| error.error)?;
        Ok(())
    };
    make().map_err(Error::io(format!("write {}", to.display())))
}
