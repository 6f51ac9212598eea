//! Awkward images look through the overlay as `umoci` unpacks them, file by file. Needs root and umoci.
#![allow(clippy::unwrap_used, reason = "tests")]

mod layer;
mod layout;
mod tree;

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use layer::Layer;
use layout::{Layout, gzip};
use serde_json::Value;
use skiff_images::{Digest, Store};
use tar::{EntryType, Header};

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";

/// Times of directories that no layer describes are those of the unpacking.
fn same_as_umoci(layers: &[Vec<u8>], undescribed: &[&str]) {
    let packed = layers.iter().map(|layer| gzip(layer)).collect();
    compare(layers, (layers, packed, GZIP), undescribed);
}

/// `theirs` are the layers for umoci. Those for the store are the same, or mean the same in a way
/// that umoci does not know; with them, how they are packed.
fn compare(
    theirs: &[Vec<u8>],
    (ours, packed, media_type): (&[Vec<u8>], Vec<Vec<u8>>, &str),
    undescribed: &[&str],
) {
    let layout = Layout::new();
    let image = |media_type: &str, layers: &[Vec<u8>], packed: &[Vec<u8>]| {
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
        let blobs: Vec<Value> = packed
            .iter()
            .map(|blob| layout.blob(media_type, blob))
            .collect();
        layout.manifest(&blobs, &diff_ids)
    };
    let by_gzip: Vec<Vec<u8>> = theirs.iter().map(|layer| gzip(layer)).collect();
    layout.index(&[(&image(GZIP, theirs, &by_gzip), "latest")]);
    let rootfs = layout.dir.path().join("rootfs");
    run(Command::new("umoci")
        .args(["raw", "unpack", "--image"])
        .arg(format!("{}:latest", layout.path().display()))
        .arg(&rootfs));
    let expected = tree::read(&rootfs, undescribed);

    let source = layout.index(&[(&image(media_type, ours, &packed), "app:v1")]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let images = runtime.block_on(async {
        let store = Store::open(layout.dir.path().join("store")).await.unwrap();
        store.import(source, &[]).await.unwrap()
    });
    let seen = tree::read_overlay(&images[0].layers, layout.dir.path(), undescribed);
    tree::assert_same(&seen, &expected);
    // Something was compared.
    assert!(seen.len() > 1, "{seen:?}");
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    output.stdout
}

/// What GNU tar makes of a directory.
fn gnu_tar(directory: &Path, options: &[&str]) -> Vec<u8> {
    run(Command::new("tar")
        .args(["--create", "--file=-", "--sort=name", "--numeric-owner"])
        .args(options)
        .arg("--directory")
        .arg(directory)
        .arg("."))
}

fn base() -> Vec<u8> {
    Layer::new()
        .dir("./")
        .dir("etc/")
        .file("etc/passwd", "root:x:0:0")
        .file("etc/group", "root:x:0:")
        .dir("etc/conf.d/")
        .file("etc/conf.d/a", "a")
        .file("etc/conf.d/b", "b")
        .dir("usr/")
        .dir("usr/lib/")
        .file("usr/lib/libc.so", "elf")
        .symlink("lib", "usr/lib")
        .dir("var/")
        .dir("var/cache/")
        .file("var/cache/old", "x")
        .dir("was-dir/")
        .dir("was-dir/deep/")
        .file("was-dir/deep/file", "x")
        .file("was-file", "x")
        .symlink("was-link", "etc")
        .finish()
}

#[test]
fn whiteouts_and_opaque_directories() {
    let upper = Layer::new()
        .file("etc/.wh.passwd", "")
        .dir("etc/")
        .dir("etc/conf.d/")
        .file("etc/conf.d/.wh..wh..opq", "")
        .file("etc/conf.d/c", "c")
        .dir("var/")
        .file("var/.wh.cache", "")
        .dir("usr/")
        .file("usr/.wh.not-there", "")
        .finish();
    let again = Layer::new()
        .dir("etc/")
        .file("etc/passwd", "back")
        .dir("var/")
        .dir("var/cache/")
        .file("var/cache/new", "x")
        .finish();
    same_as_umoci(&[base(), upper, again], &[]);
}

#[test]
fn files_replace_directories_and_directories_files() {
    let upper = Layer::new()
        .file("was-dir", "now a file")
        .dir("was-file/")
        .file("was-file/inside", "x")
        .dir("was-link/")
        .file("was-link/own", "x")
        .entry("lib", EntryType::Fifo, |header| header.set_mode(0o600))
        .finish();
    let swapped = Layer::new()
        .dir("was-dir/")
        .file("was-dir/again", "x")
        .symlink("was-file", "was-dir/again")
        .finish();
    same_as_umoci(&[base(), upper, swapped], &[]);
}

#[test]
fn a_name_that_a_layer_hides_and_has() {
    let upper = Layer::new()
        .file(".wh.was-file", "")
        .file("was-file", "new")
        .file(".wh.was-dir", "")
        .dir("was-dir/")
        .file("was-dir/fresh", "x")
        .dir("etc/")
        .file("etc/.wh.group", "")
        .hard_link("etc/group", "was-file")
        .finish();
    same_as_umoci(&[base(), upper], &[]);
}

#[test]
fn empty_layers_and_layers_of_directories_alone() {
    let empty = Layer::new().finish();
    let modes = Layer::new()
        .entry("etc/", EntryType::Directory, |header| {
            header.set_mode(0o2770);
            header.set_gid(100_000);
            header.set_mtime(77);
        })
        .finish();
    same_as_umoci(&[empty.clone(), base(), empty, modes], &[]);
}

#[test]
fn directories_without_an_entry() {
    let upper = Layer::new()
        .file("usr/lib/more/deep/file", "x")
        .file("var/cache/new", "x")
        .finish();
    // Of those that are below, umoci sets the time of when it wrote into them.
    same_as_umoci(
        &[base(), upper],
        &["usr/lib/more", "usr/lib/more/deep", "usr/lib", "var/cache"],
    );
}

#[test]
fn names_that_are_links_in_a_layer_below() {
    let upper = Layer::new()
        .file("lib/new.so", "elf")
        .file("lib/.wh.libc.so", "")
        .file("lib/deep/er", "x")
        .hard_link("lib/twin.so", "lib/new.so")
        .symlink("lib64", "/lib")
        .finish();
    let top = Layer::new()
        .file("lib64/again.so", "elf")
        .dir("usr/")
        .file("was-link/resolv.conf", "x")
        .finish();
    let undescribed = ["", "usr/lib", "usr/lib/deep", "usr", "etc"];
    same_as_umoci(&[base(), upper, top], &undescribed);
}

#[test]
fn owners_modes_kinds_and_links() {
    let device = |major, minor| {
        move |header: &mut Header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
            header.set_mode(0o660);
        }
    };
    let layer = Layer::new()
        .dir("dev/")
        .entry("dev/null", EntryType::Char, device(1, 3))
        .entry("dev/big", EntryType::Block, device(259, 70_000))
        .entry("dev/pipe", EntryType::Fifo, |header| header.set_mode(0o622))
        .entry("sticky/", EntryType::Directory, |header| {
            header.set_mode(0o1777)
        })
        .entry("setgid/", EntryType::Directory, |header| {
            header.set_mode(0o2755)
        })
        .bytes("su", b"elf", |header| {
            header.set_mode(0o6755);
            header.set_uid(65_534);
            header.set_gid(2_097_151);
        })
        .bytes("large-ids", b"x", |header| {
            header.set_uid(4_000_000_000);
            header.set_gid(3_000_000_000);
        })
        .bytes("no-rights", b"x", |header| header.set_mode(0))
        .hard_link("su2", "su")
        .hard_link("dev/su3", "./su2")
        .symlink("dangling", "/nowhere")
        .symlink("loop", "loop")
        .entry("owned-link", EntryType::Symlink, |header| {
            header.set_link_name_literal("su").unwrap();
            header.set_uid(12);
            header.set_mtime(1234);
        })
        .bytes("\u{fc}ml\u{e4}ut \n\t'\"", b"x", |_| {})
        .bytes("before-1970", b"x", |header| {
            // GNU's base-256: -86400.
            let mtime = &mut header.as_old_mut().mtime;
            *mtime = [0xff; 12];
            mtime[4..].copy_from_slice(&(-86_400i64).to_be_bytes());
        })
        .finish();
    same_as_umoci(&[layer], &[""]);
}

#[test]
fn pax_records_say_what_headers_cannot() {
    let capability = [1, 0, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = "directory/".repeat(30) + "leaf";
    let target = "target/".repeat(40);
    let layer = |first: Layer| {
        first
            .pax(&[
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.user.note", b"a\0b\nc=d"),
                ("SCHILY.xattr.trusted.own", b"t"),
                ("mtime", b"1234.567891234"),
                ("atime", b"99.5"),
                ("ctime", b"98"),
            ])
            .bytes("ping", b"elf", |header| {
                header.set_mode(0o755);
                header.set_uid(5);
            })
            .pax(&[
                ("path", long.as_bytes()),
                ("uid", b"70000"),
                ("gid", b"3000000000"),
            ])
            .file("short", "deep")
            .pax(&[("linkpath", target.as_bytes())])
            .symlink("far", "near")
            .pax(&[("size", b"5"), ("path", b"pax-size")])
            .bytes("x", b"12345", |_| {})
            .pax(&[("mtime", b"-3.25")])
            .file("before", "x")
            .pax(&[("SCHILY.xattr.user.dir", b"on a directory")])
            .dir("attributed/")
            .file("attributed/file", "x")
            .finish()
    };
    // Builders ignore global records, and umoci does not know them.
    let global = Layer::new().pax_global(&[("comment", b"by a test"), ("mtime", b"5.5")]);
    let (theirs, ours) = (layer(Layer::new()), layer(global));
    let implied: Vec<String> = (1..=30).map(|n| "directory/".repeat(n)).collect();
    let mut undescribed: Vec<&str> = implied.iter().map(|p| p.trim_end_matches('/')).collect();
    undescribed.push("");
    let ours = [ours];
    compare(&[theirs], (&ours, ours.to_vec(), PLAIN), &undescribed);
}

#[test]
fn every_format_that_gnu_tar_writes() {
    for options in [
        &["--format=v7"][..],
        &["--format=ustar"],
        &["--format=oldgnu", "--sparse"],
        &["--format=gnu", "--sparse"],
        &[
            "--format=posix",
            "--sparse",
            "--sparse-version=0.0",
            "--xattrs",
            "--xattrs-include=*",
        ],
        &[
            "--format=posix",
            "--sparse",
            "--sparse-version=0.1",
            "--xattrs",
            "--xattrs-include=*",
        ],
        &[
            "--format=posix",
            "--sparse",
            "--sparse-version=1.0",
            "--xattrs",
            "--xattrs-include=*",
        ],
    ] {
        let dir = tempfile::tempdir().unwrap();
        sources(dir.path(), options[0]);
        let layers = [gnu_tar(dir.path(), options)];
        // umoci knows no sparse file in GNU's own format; the same file without holes it does.
        let theirs = match options[0] {
            "--format=gnu" | "--format=oldgnu" => gnu_tar(dir.path(), &options[..1]),
            _ => layers[0].clone(),
        };
        compare(&[theirs], (&layers, layers.to_vec(), PLAIN), &[]);
    }
}

/// Files as far as a format can hold them.
fn sources(at: &Path, format: &str) {
    use std::fs;
    fs::create_dir(at.join("d")).unwrap();
    fs::write(at.join("d/file"), "x".repeat(1000)).unwrap();
    fs::hard_link(at.join("d/file"), at.join("d/twin")).unwrap();
    std::os::unix::fs::symlink("d/file", at.join("link")).unwrap();
    fs::write(at.join("empty"), "").unwrap();
    if format == "--format=v7" {
        return;
    }
    let deep = at.join("p".repeat(80)).join("q".repeat(60));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("leaf"), "x").unwrap();
    if format == "--format=ustar" {
        return;
    }
    fs::write(at.join("n".repeat(250)), "long name").unwrap();
    std::os::unix::fs::symlink("t/".repeat(150), at.join("long-link")).unwrap();
    std::os::unix::fs::chown(at.join("empty"), Some(3_000_000), Some(4_000_000)).unwrap();
    let sparse = fs::File::create(at.join("sparse")).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    for part in 1..40 {
        sparse.write_all_at(b"part", part * 65_536 + 4_000).unwrap();
    }
    sparse.set_len(40 * 65_536 + 1).unwrap();
    let hole = fs::File::create(at.join("hole")).unwrap();
    hole.set_len(1 << 20).unwrap();
    if format == "--format=posix" {
        xattr::set(at.join("d/file"), "user.note", b"from tar").unwrap();
    }
}

#[test]
fn blobs_of_several_members_or_frames() {
    let layers = vec![
        base(),
        Layer::new().file("more", &"x".repeat(100_000)).finish(),
    ];
    let split = |pack: &dyn Fn(&[u8]) -> Vec<u8>| -> Vec<Vec<u8>> {
        let parts = layers.iter().map(|layer| {
            let (first, second) = layer.split_at(layer.len() / 3);
            [pack(first), pack(&[]), pack(second)].concat()
        });
        parts.collect()
    };
    compare(&layers, (&layers, split(&gzip), GZIP), &[]);
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    compare(&layers, (&layers, split(&zstd), ZSTD), &[]);
    // With a frame that carries no data, as seekable formats have (RFC 8878, 3.1.2).
    let skippable = layers.iter().map(|layer| {
        let mut packed = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0];
        packed.write_all(b"abc").unwrap();
        packed.extend(zstd(layer));
        packed
    });
    compare(&layers, (&layers, skippable.collect(), ZSTD), &[]);
    compare(&layers, (&layers, layers.clone(), PLAIN), &[]);
}
