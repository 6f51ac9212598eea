//! A directory tree as one can compare it: all that a program could see of it.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "each test binary uses some of it")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use skiff_images::Digest;

/// What can be seen of one file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct File {
    kind: char,
    mode: u32,
    owner: (u32, u32),
    /// Of its content, or where it leads.
    content: String,
    size: u64,
    device: u64,
    modified: Option<(i64, i64)>,
    attributes: BTreeMap<String, Vec<u8>>,
    /// The first of its names.
    same_as: PathBuf,
}

pub(crate) type Tree = BTreeMap<PathBuf, File>;

/// Reads a tree. The times of `undescribed` directories are not looked at.
pub(crate) fn read(root: &Path, undescribed: &[&str]) -> Tree {
    let mut paths = vec![PathBuf::new()];
    let mut at = 0;
    while at < paths.len() {
        let directory = root.join(&paths[at]);
        if fs::symlink_metadata(&directory).unwrap().is_dir() {
            let relative = paths[at].clone();
            let entries = fs::read_dir(directory).unwrap();
            paths.extend(entries.map(|entry| relative.join(entry.unwrap().file_name())));
        }
        at += 1;
    }
    paths.sort();
    let mut first: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let mut tree = Tree::new();
    for path in paths {
        let full = root.join(&path);
        let metadata = fs::symlink_metadata(&full).unwrap();
        let kind = metadata.file_type();
        let timeless = undescribed.iter().any(|own| Path::new(own) == path);
        let same_as = first
            .entry((metadata.dev(), metadata.ino()))
            .or_insert_with(|| path.clone())
            .clone();
        let file = File {
            kind: match () {
                () if kind.is_dir() => 'd',
                () if kind.is_symlink() => 'l',
                () if kind.is_fifo() => 'p',
                () if kind.is_char_device() => 'c',
                () if kind.is_block_device() => 'b',
                () => 'f',
            },
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            content: match () {
                () if kind.is_file() => Digest::of(&fs::read(&full).unwrap()).to_string(),
                () if kind.is_symlink() => format!("{:?}", fs::read_link(&full).unwrap()),
                () => String::new(),
            },
            size: if kind.is_file() { metadata.size() } else { 0 },
            device: metadata.rdev(),
            modified: (!timeless).then(|| (metadata.mtime(), metadata.mtime_nsec())),
            attributes: attributes(&full),
            same_as,
        };
        tree.insert(path, file);
    }
    tree
}

fn attributes(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let names = xattr::list(path).unwrap();
    names
        .map(|name| name.into_string().unwrap())
        // Marks of the overlay, and of umoci for itself.
        .filter(|name| {
            !name.starts_with("trusted.overlay.") && !name.starts_with("user.rootlesscontainers")
        })
        .map(|name| {
            let value = xattr::get(path, &name).unwrap().unwrap_or_default();
            (name, value)
        })
        .collect()
}

/// Reads what a container would see: the layers through overlayfs, mounted where nobody else sees it.
pub(crate) fn read_overlay(layers: &[PathBuf], scratch: &Path, undescribed: &[&str]) -> Tree {
    let (empty, merged) = (scratch.join("empty"), scratch.join("merged"));
    fs::create_dir_all(&empty).unwrap();
    fs::create_dir_all(&merged).unwrap();
    let mut lower: Vec<String> = layers
        .iter()
        .rev()
        .map(|l| l.display().to_string())
        .collect();
    // Overlayfs wants two.
    lower.push(empty.display().to_string());
    let options = format!("lowerdir={}", lower.join(":"));
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount(
                None::<&str>,
                "/",
                None::<&str>,
                MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                None::<&str>,
            )
            .unwrap();
            mount(
                Some("overlay"),
                &merged,
                Some("overlay"),
                MsFlags::MS_RDONLY,
                Some(options.as_str()),
            )
            .unwrap();
            let tree = read(&merged, undescribed);
            umount2(&merged, MntFlags::MNT_DETACH).unwrap();
            tree
        });
        reader.join().unwrap()
    })
}

/// Tells the differences, not the trees.
pub(crate) fn assert_same(ours: &Tree, theirs: &Tree) {
    let mut differences = Vec::new();
    for path in ours
        .keys()
        .chain(theirs.keys().filter(|p| !ours.contains_key(*p)))
    {
        let (our, their) = (ours.get(path), theirs.get(path));
        if our != their {
            differences.push(format!(
                "{}:\n  ours   {our:?}\n  theirs {their:?}",
                path.display()
            ));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
