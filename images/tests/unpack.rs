//! Awkward layers unpack exactly; hostile ones are refused and touch nothing. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

mod layer;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use layer::Layer;
use skiff_images::{Limits, UnpackError, Unpacked, unpack};
use tar::EntryType;
use tempfile::TempDir;

/// Unpacks into `<dir>/root`; what a hostile layer aims at is beside it.
fn unpacked(layer: Layer) -> (TempDir, Result<Unpacked, UnpackError>) {
    unpacked_within(layer, Limits::default())
}

fn unpacked_within(layer: Layer, limits: Limits) -> (TempDir, Result<Unpacked, UnpackError>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("root")).unwrap();
    fs::create_dir(dir.path().join("outside")).unwrap();
    let result = unpack(&layer.finish()[..], &dir.path().join("root"), limits);
    (dir, result)
}

fn exact(layer: Layer) -> (TempDir, PathBuf, Unpacked) {
    let (dir, result) = unpacked(layer);
    let root = dir.path().join("root");
    (dir, root, result.unwrap())
}

fn is_whiteout(path: &Path) -> bool {
    let metadata = fs::symlink_metadata(path).unwrap();
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn is_opaque(path: &Path) -> bool {
    xattr::get(path, "trusted.overlay.opaque")
        .unwrap()
        .as_deref()
        == Some(b"y")
}

#[test]
fn whiteouts_become_what_overlayfs_knows() {
    let (_dir, root, done) = exact(
        Layer::new()
            .dir("a/")
            .file("a/.wh.gone", "")
            .file("opaque/.wh..wh..opq", "")
            .file("opaque/kept", "x")
            // Both orders of a name that this layer hides below and has itself.
            .file(".wh.file", "")
            .file("file", "new")
            .file("late", "new")
            .file(".wh.late", "")
            .file(".wh.dir", "")
            .dir("dir/")
            .dir("dir2/")
            .file(".wh.dir2", "")
            .file(".wh..wh.plnk/1.2", ""),
    );
    assert!(is_whiteout(&root.join("a/gone")));
    assert!(is_opaque(&root.join("opaque")) && root.join("opaque/kept").exists());
    assert_eq!(fs::read(root.join("file")).unwrap(), b"new");
    assert_eq!(fs::read(root.join("late")).unwrap(), b"new");
    assert!(is_opaque(&root.join("dir")) && is_opaque(&root.join("dir2")));
    assert!(!root.join(".wh..wh.plnk").exists());
    assert!(!is_opaque(&root.join("a")));
    assert_eq!(done.implied, [Path::new("opaque")]);
    assert!(!done.opaque_root);
}

#[test]
fn an_opaque_root_is_reported() {
    let (_dir, _root, done) = exact(Layer::new().file(".wh..wh..opq", "").file("a", "x"));
    assert!(done.opaque_root);
}

#[test]
fn kinds_owners_modes_and_times_are_kept() {
    let device = |major, minor| {
        move |header: &mut tar::Header| {
            header.set_device_major(major).unwrap();
            header.set_device_minor(minor).unwrap();
            header.set_mode(0o660);
            header.set_gid(6);
        }
    };
    let (_dir, root, _) = exact(
        Layer::new()
            .entry("dir/", EntryType::Directory, |header| {
                header.set_mode(0o1777);
                header.set_uid(3);
                header.set_mtime(500);
            })
            .file("dir/file", "x")
            .entry("su", EntryType::Regular, |header| {
                header.set_mode(0o6755);
                header.set_uid(1);
                header.set_gid(3_000_000);
            })
            .hard_link("dir/su", "./su")
            .symlink("dangling", "/nowhere/at/all")
            .entry("pipe", EntryType::Fifo, |header| header.set_mode(0o622))
            .entry("null", EntryType::Char, device(1, 3))
            .entry("disk", EntryType::Block, device(8, 300)),
    );
    let dir = fs::metadata(root.join("dir")).unwrap();
    assert_eq!(
        (dir.mode() & 0o7777, dir.uid(), dir.mtime()),
        (0o1777, 3, 500)
    );
    let su = fs::metadata(root.join("su")).unwrap();
    assert_eq!(
        (su.mode() & 0o7777, su.uid(), su.gid()),
        (0o6755, 1, 3_000_000)
    );
    assert_eq!((su.nlink(), su.mtime()), (2, 1_000_000_000));
    let link = fs::symlink_metadata(root.join("dangling")).unwrap();
    assert_eq!((link.is_symlink(), link.mtime()), (true, 1_000_000_000));
    let pipe = fs::metadata(root.join("pipe")).unwrap();
    assert!(pipe.file_type().is_fifo());
    assert_eq!(pipe.mode() & 0o7777, 0o622);
    let null = fs::metadata(root.join("null")).unwrap();
    assert!(null.file_type().is_char_device());
    assert_eq!(
        (null.rdev(), null.mode() & 0o7777, null.gid()),
        (libc_dev(1, 3), 0o660, 6)
    );
    let disk = fs::metadata(root.join("disk")).unwrap();
    assert!(disk.file_type().is_block_device());
    assert_eq!(disk.rdev(), libc_dev(8, 300));
}

fn libc_dev(major: u64, minor: u64) -> u64 {
    nix::sys::stat::makedev(major, minor)
}

#[test]
fn attributes_and_fractions_come_from_pax_records() {
    // cap_dac_override and cap_fowner, version 2 (capability.h): the mask is a line feed.
    let capability = [1, 0, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = "d/".repeat(120) + "leaf";
    let (_dir, root, _) = exact(
        Layer::new()
            .pax(&[
                ("SCHILY.xattr.security.capability", &capability),
                ("SCHILY.xattr.user.note", b"a\0b\nc"),
                ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
                ("mtime", b"1234.5"),
            ])
            .entry("ping", EntryType::Regular, |header| {
                header.set_mode(0o755);
                header.set_uid(5);
            })
            .pax(&[("path", long.as_bytes())])
            .file("short", "deep"),
    );
    let ping = root.join("ping");
    let get = |name| xattr::get(&ping, name).unwrap();
    assert_eq!(get("security.capability").as_deref(), Some(&capability[..]));
    assert_eq!(get("user.note").as_deref(), Some(&b"a\0b\nc"[..]));
    assert_eq!(get("trusted.overlay.redirect"), None);
    let metadata = fs::metadata(&ping).unwrap();
    assert_eq!(
        (metadata.mtime(), metadata.mtime_nsec()),
        (1234, 500_000_000)
    );
    assert_eq!(fs::read(root.join(long)).unwrap(), b"deep");
}

#[test]
fn symbolic_links_inside_the_layer_are_followed() {
    let (_dir, root, _) = exact(
        Layer::new()
            .dir("usr/")
            .dir("usr/lib/")
            .symlink("lib", "usr/lib")
            .symlink("usr/abs", "/usr/lib")
            .symlink("usr/up", "../usr/./lib")
            .file("lib/a", "")
            .file("usr/abs/b", "")
            .file("usr/up/c", "")
            .hard_link("d", "lib/a"),
    );
    for name in ["a", "b", "c"] {
        assert!(root.join("usr/lib").join(name).exists(), "{name}");
    }
    assert!(root.join("d").exists());
}

#[test]
fn hostile_entries_are_refused_by_name() {
    let regular = |layer: Layer, name: &str| layer.file(name, "pwned");
    let cases: Vec<(&str, Layer)> = vec![
        ("../outside/x", regular(Layer::new(), "../outside/x")),
        (
            "a/../../outside/x",
            regular(Layer::new(), "a/../../outside/x"),
        ),
        ("/tmp/x", regular(Layer::new(), "/tmp/x")),
        (
            "out/x",
            regular(Layer::new().symlink("out", "../outside"), "out/x"),
        ),
        (
            "out/x",
            regular(Layer::new().symlink("out", "/outside"), "out/x"),
        ),
        (
            "l/x",
            regular(Layer::new().symlink("l", "m").symlink("m", "l"), "l/x"),
        ),
        ("f/x", regular(Layer::new().file("f", ""), "f/x")),
        (
            "out/d/",
            Layer::new().symlink("out", "../outside").dir("out/d/"),
        ),
        (
            "out/.wh.x",
            regular(Layer::new().symlink("out", "../outside"), "out/.wh.x"),
        ),
        (
            "out/.wh..wh..opq",
            regular(Layer::new().symlink("out", ".."), "out/.wh..wh..opq"),
        ),
        ("h", Layer::new().hard_link("h", "../outside/target")),
        ("h", Layer::new().hard_link("h", "/etc/passwd")),
        (
            "h",
            Layer::new()
                .symlink("out", "../outside")
                .hard_link("h", "out/target"),
        ),
        ("h", Layer::new().hard_link("h", "missing")),
        ("h", Layer::new().dir("d/").hard_link("h", "d")),
        ("h", Layer::new().file(".wh.w", "").hard_link("h", "w")),
        (".wh.", regular(Layer::new(), ".wh.")),
        (".wh...", regular(Layer::new(), ".wh...")),
        ("./", regular(Layer::new(), "./")),
        ("twice", regular(Layer::new().file("twice", ""), "twice")),
        (
            "twice",
            regular(Layer::new().symlink("twice", "../outside/x"), "twice"),
        ),
        ("twice/", Layer::new().file("twice", "").dir("twice/")),
        (
            "odd",
            Layer::new().entry("odd", EntryType::new(b'Z'), |_| {}),
        ),
        (
            "link",
            Layer::new().entry("link", EntryType::Symlink, |_| {}),
        ),
        (
            "big",
            Layer::new().entry("big", EntryType::Char, |header| header.set_uid(1 << 40)),
        ),
    ];
    for (number, (entry, layer)) in cases.into_iter().enumerate() {
        let (dir, result) = unpacked(layer);
        match result {
            Err(UnpackError::Refused { entry: refused, .. }) => {
                assert_eq!(refused, entry, "case {number}");
            }
            other => panic!("case {number} ({entry}): {other:?}"),
        }
        let outside = dir.path().join("outside");
        assert_eq!(
            fs::read_dir(&outside).unwrap().count(),
            0,
            "case {number} ({entry})"
        );
        let beside = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(beside, 2, "case {number} ({entry})");
    }
}

#[test]
fn bounds_are_kept() {
    let limits = Limits {
        bytes: 10,
        entries: 3,
    };
    let (_dir, result) =
        unpacked_within(Layer::new().file("a", "123456").file("b", "123456"), limits);
    assert!(matches!(result, Err(UnpackError::TooLarge { entry, limit: 10 }) if entry == "b"));
    let many = Layer::new().dir("a/").dir("b/").dir("c/").dir("d/");
    let (_dir, result) = unpacked_within(many, limits);
    assert!(matches!(result, Err(UnpackError::TooMany { entry, limit: 3 }) if entry == "d/"));
}

#[test]
fn a_stream_that_ends_early_is_an_error() {
    let whole = Layer::new().file("a", &"x".repeat(2000)).finish();
    let dir = tempfile::tempdir().unwrap();
    let result = unpack(&whole[..1024], dir.path(), Limits::default());
    assert!(matches!(result, Err(UnpackError::Read(_))), "{result:?}");
}

#[test]
fn sparse_files_come_in_every_format_that_tar_writes() {
    use std::os::unix::fs::FileExt;
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join("sparse")).unwrap();
    file.write_all_at(b"start", 0).unwrap();
    // More parts than the header itself has room for.
    for part in 1..40 {
        file.write_all_at(b"part", part * 65_536 + 4_000).unwrap();
    }
    file.set_len(40 * 65_536).unwrap();
    let expected = fs::read(dir.path().join("sparse")).unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let tar = std::process::Command::new("tar")
            .args(["--create", "--sparse", "--file=-"])
            .args(format)
            .arg("--directory")
            .arg(dir.path())
            .arg("sparse")
            .output()
            .unwrap();
        assert!(
            tar.status.success() && tar.stdout.len() < expected.len(),
            "{format:?}"
        );
        let root = tempfile::tempdir().unwrap();
        let done = unpack(&tar.stdout[..], root.path(), Limits::default()).unwrap();
        let made = root.path().join("sparse");
        assert_eq!(fs::read(&made).unwrap(), expected, "{format:?}");
        assert_eq!((done.bytes, done.entries), (expected.len() as u64, 1));
        assert!(fs::metadata(&made).unwrap().blocks() * 512 < expected.len() as u64);
    }
}
