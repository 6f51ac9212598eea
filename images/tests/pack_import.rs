//! A packed directory comes back out of the store as it went in. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use skiff_images::{PackOptions, Reference, Store, pack};

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn rootfs(at: &Path) {
    fs::create_dir_all(at.join("usr/bin")).unwrap();
    fs::write(at.join("usr/bin/tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at.join("usr/bin/tool"), PermissionsExt::from_mode(0o4755)).unwrap();
    fs::hard_link(at.join("usr/bin/tool"), at.join("usr/bin/twin")).unwrap();
    symlink("usr/bin", at.join("bin")).unwrap();
    symlink("./usr//bin/", at.join("odd")).unwrap();
    symlink("t".repeat(300), at.join("far")).unwrap();
    fs::write(at.join(format!("{}.txt", "n".repeat(200))), "long").unwrap();
    std::os::unix::fs::chown(at.join("usr/bin"), Some(7), Some(70_000)).unwrap();
    let fifo = at.join("pipe");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    xattr::set(at.join("usr"), "user.colour", b"blue\0green").unwrap();
}

fn options() -> PackOptions {
    PackOptions {
        references: vec![reference("tool:1"), reference("tool")],
        cmd: vec!["/bin/tool".to_owned()],
        ports: vec!["80".to_owned()],
        ..PackOptions::default()
    }
}

#[tokio::test]
async fn a_directory_survives_pack_import_and_export() {
    let dir = tempfile::tempdir().unwrap();
    let (root, archive) = (dir.path().join("rootfs"), dir.path().join("tool.tar"));
    rootfs(&root);
    pack(&root, &options(), &archive).unwrap();

    let store = Store::open(dir.path().join("store")).await.unwrap();
    let images = store.import(&archive, &[]).await.unwrap();
    assert_eq!(images.len(), 1);
    let image = store.get(&reference("tool:1")).await.unwrap().unwrap();
    assert_eq!(
        image.references,
        [reference("tool:1"), reference("tool:latest")]
    );
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.cmd().as_deref(), Some(&["/bin/tool".to_owned()][..]));
    assert_eq!(
        config.exposed_ports().as_deref(),
        Some(&["80/tcp".to_owned()][..])
    );

    let fs = &image.layers[0];
    let tool = fs::metadata(fs.join("usr/bin/tool")).unwrap();
    assert_eq!(tool.mode() & 0o7777, 0o4755);
    assert_eq!(
        tool.ino(),
        fs::metadata(fs.join("usr/bin/twin")).unwrap().ino()
    );
    assert_eq!(fs::read_link(fs.join("bin")).unwrap(), Path::new("usr/bin"));
    assert_eq!(
        fs::read_link(fs.join("odd")).unwrap().as_os_str(),
        "./usr//bin/"
    );
    assert_eq!(
        fs::read_link(fs.join("far")).unwrap().as_os_str().len(),
        300
    );
    assert!(fs.join(format!("{}.txt", "n".repeat(200))).exists());
    let bin = fs::metadata(fs.join("usr/bin")).unwrap();
    assert_eq!((bin.uid(), bin.gid()), (7, 70_000));
    let attribute = xattr::get(fs.join("usr"), "user.colour").unwrap();
    assert_eq!(attribute.as_deref(), Some(&b"blue\0green"[..]));

    // The exported archive is an image of the same content under another name.
    let exported = dir.path().join("again.tar");
    store.export(&[reference("tool")], &exported).await.unwrap();
    let other = Store::open(dir.path().join("other")).await.unwrap();
    let again = other
        .import(&exported, &[reference("host:5/renamed")])
        .await
        .unwrap();
    assert_eq!(again[0].id, image.id);
    assert_eq!(again[0].references, [reference("host:5/renamed")]);
}

#[tokio::test]
async fn the_same_tree_packs_to_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("rootfs");
    rootfs(&root);
    let mut options = options();
    options.created = Some(1_000_000_000);
    pack(&root, &options, &dir.path().join("one.tar")).unwrap();
    let copy = dir.path().join("copy");
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&root, &copy])
        .status();
    assert!(copied.unwrap().success());
    pack(&copy, &options, &dir.path().join("two.tar")).unwrap();
    assert_eq!(
        fs::read(dir.path().join("one.tar")).unwrap(),
        fs::read(dir.path().join("two.tar")).unwrap()
    );
}

#[tokio::test]
async fn removal_waits_for_leases_and_other_names() {
    let dir = tempfile::tempdir().unwrap();
    let (root, archive) = (dir.path().join("rootfs"), dir.path().join("tool.tar"));
    rootfs(&root);
    pack(&root, &options(), &archive).unwrap();
    let store = Store::open(dir.path().join("store")).await.unwrap();
    let image = store.import(&archive, &[]).await.unwrap().remove(0);
    let layer = image.layers[0].clone();
    store.lease("container-1", &image).await.unwrap();

    let removed = store.remove(&reference("tool:1")).await.unwrap();
    assert_eq!(removed.deleted, None);
    let removed = store.remove(&reference("tool")).await.unwrap();
    assert_eq!(removed.deleted, None);
    assert!(store.list().await.unwrap().is_empty());
    assert!(layer.exists(), "a leased layer stays");
    let store = Store::open(dir.path().join("store")).await.unwrap();
    assert!(layer.exists(), "opening the store respects leases");
    store.release("container-1").await.unwrap();
    assert!(!layer.exists());
    for left in ["layers", "blobs/sha256", "ingest", "leases"] {
        let left = dir.path().join("store").join(left);
        assert_eq!(
            fs::read_dir(&left).unwrap().count(),
            0,
            "{}",
            left.display()
        );
    }
}
