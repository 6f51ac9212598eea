//! A directory becomes an image of one layer, always with the same bytes for the same tree.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use oci_spec::image::{Descriptor, ImageManifestBuilder, MediaType, SCHEMA_VERSION};
use serde_json::{Map, Value, json};
use tar::EntryType;

use crate::digest::DigestReader;
use crate::export::{write_file, write_layout};
use crate::store::image::architecture;
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
    let tree = Tree::read(rootfs)?;
    let created = options.created.unwrap_or_else(|| tree.newest());
    let layer = Layer::write(&tree, created, options.compression)?;
    let config = serde_json::to_vec(&configuration(options, created, layer.diff_id))
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
fn configuration(options: &PackOptions, created: i64, diff_id: Digest) -> Value {
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
    json!({
        "created": created,
        "architecture": architecture(),
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created": created, "created_by": "skiff image pack"}],
    })
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

/// All files below a directory, in the order of their paths.
struct Tree {
    root: PathBuf,
    files: BTreeMap<PathBuf, Metadata>,
}

impl Tree {
    fn read(root: &Path) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        let mut open = vec![PathBuf::new()];
        while let Some(directory) = open.pop() {
            let path = root.join(&directory);
            let read = || Error::io(format!("read {}", path.display()));
            for entry in fs::read_dir(&path).map_err(read())? {
                let entry = entry.map_err(read())?;
                let metadata = entry.metadata().map_err(read())?;
                let relative = directory.join(entry.file_name());
                if metadata.is_dir() {
                    open.push(relative.clone());
                }
                files.insert(relative, metadata);
            }
        }
        Ok(Self {
            root: root.to_owned(),
            files,
        })
    }

    /// The time of the newest file; directories' times say when they were last rearranged.
    fn newest(&self) -> i64 {
        self.files
            .values()
            .filter(|metadata| metadata.is_file())
            .map(MetadataExt::mtime)
            .max()
            .unwrap_or(0)
    }

    fn write(&self, to: &mut tar::Builder<impl Write>, latest: i64) -> Result<(), Error> {
        // Later names of a file become hard links to the first.
        let mut inodes: HashMap<(u64, u64), &Path> = HashMap::new();
        for (path, metadata) in &self.files {
            if metadata.file_type().is_socket() {
                continue;
            }
            let first = match metadata.nlink() > 1 && !metadata.is_dir() {
                true => inodes.get(&(metadata.dev(), metadata.ino())).copied(),
                false => None,
            };
            self.write_entry(to, path, metadata, first, latest)
                .map_err(Error::io(format!(
                    "pack {}",
                    self.root.join(path).display()
                )))?;
            inodes
                .entry((metadata.dev(), metadata.ino()))
                .or_insert(path);
        }
        Ok(())
    }

    fn write_entry(
        &self,
        to: &mut tar::Builder<impl Write>,
        path: &Path,
        metadata: &Metadata,
        link_to: Option<&Path>,
        latest: i64,
    ) -> io::Result<()> {
        let source = self.root.join(path);
        let mut header = tar::Header::new_gnu();
        header.set_mode(metadata.mode() & 0o7777);
        header.set_uid(metadata.uid().into());
        header.set_gid(metadata.gid().into());
        header.set_mtime(u64::try_from(metadata.mtime().min(latest)).unwrap_or(0));
        header.set_size(0);
        if let Some(first) = link_to {
            header.set_entry_type(EntryType::Link);
            return to.append_link(&mut header, path, first);
        }
        let attributes = attributes(&source)?;
        to.append_pax_extensions(
            attributes
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_slice())),
        )?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            header.set_entry_type(EntryType::Directory);
            return to.append_data(&mut header, directory_name(path), io::empty());
        }
        if kind.is_symlink() {
            header.set_entry_type(EntryType::Symlink);
            return to.append_link(&mut header, path, fs::read_link(&source)?);
        }
        if kind.is_file() {
            header.set_entry_type(EntryType::Regular);
            header.set_size(metadata.size());
            let content = File::open(&source)?.take(metadata.size());
            return to.append_data(
                &mut header,
                path,
                Exact {
                    content,
                    left: metadata.size(),
                },
            );
        }
        header.set_entry_type(match (kind.is_fifo(), kind.is_char_device()) {
            (true, _) => EntryType::Fifo,
            (false, true) => EntryType::Char,
            (false, false) => EntryType::Block,
        });
        header
            .set_device_major(u32::try_from(major(metadata.rdev())).map_err(io::Error::other)?)?;
        header
            .set_device_minor(u32::try_from(minor(metadata.rdev())).map_err(io::Error::other)?)?;
        to.append_data(&mut header, path, io::empty())
    }
}

fn directory_name(path: &Path) -> PathBuf {
    let mut name: OsString = path.as_os_str().to_owned();
    name.push("/");
    name.into()
}

/// Extended attributes as PAX records, sorted.
fn attributes(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let names = match xattr::list(path) {
        Ok(names) => names,
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => {
            return Ok(BTreeMap::new());
        }
        Err(error) => return Err(error),
    };
    let mut attributes = BTreeMap::new();
    for name in names {
        if name.as_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        let Some(key) = name.to_str() else {
            return Err(io::Error::other(
                "an extended attribute's name is not UTF-8",
            ));
        };
        if let Some(value) = xattr::get(path, OsStr::new(key))? {
            attributes.insert(format!("SCHILY.xattr.{key}"), value);
        }
    }
    Ok(attributes)
}

/// Fails when a file shrinks while it is read: its header has been written.
struct Exact<R> {
    content: R,
    left: u64,
}

impl<R: Read> Read for Exact<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.content.read(buffer)?;
        self.left -= read as u64;
        match read == 0 && self.left > 0 && !buffer.is_empty() {
            true => Err(io::Error::other(
                "the file became shorter while it was packed",
            )),
            false => Ok(read),
        }
    }
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
