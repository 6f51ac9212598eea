//! Other tools read the store and its archives. Needs root, skopeo and umoci.
#![allow(clippy::unwrap_used, reason = "tests")]

mod layer;
mod layout;
mod tree;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use layer::Layer;
use layout::{Layout, architecture, gzip, reference};
use serde_json::{Value, json};
use skiff_images::{Compression, PackOptions, Store, pack};

const NAME: &str = "docker.io/library/tool:1";

fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn skopeo(arguments: &[&str]) -> String {
    run(Command::new("skopeo")
        .arg("--insecure-policy")
        .args(arguments))
}

/// What a directory can hold that is hard to keep.
fn rootfs(at: &Path) {
    fs::create_dir_all(at.join("usr/bin")).unwrap();
    fs::set_permissions(at, PermissionsExt::from_mode(0o711)).unwrap();
    fs::write(at.join("usr/bin/tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at.join("usr/bin/tool"), PermissionsExt::from_mode(0o4755)).unwrap();
    fs::hard_link(at.join("usr/bin/tool"), at.join("usr/bin/twin")).unwrap();
    symlink("usr/bin", at.join("bin")).unwrap();
    fs::write(at.join("n".repeat(200)), "long").unwrap();
    std::os::unix::fs::chown(at.join("usr/bin"), Some(7), Some(70_000)).unwrap();
    nix::unistd::mkfifo(&at.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    xattr::set(at.join("usr"), "user.colour", b"blue\0green").unwrap();
    xattr::set(
        at.join("usr/bin/twin"),
        "security.capability",
        &[1, 0, 0, 2, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    )
    .unwrap();
    let sparse = fs::File::create(at.join("sparse")).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    sparse.write_all_at(b"middle", 20 << 20).unwrap();
    sparse.set_len(64 << 20).unwrap();
    fs::File::create(at.join("hole"))
        .unwrap()
        .set_len(8 << 20)
        .unwrap();
    for path in [
        "sparse",
        "hole",
        "usr/bin/tool",
        "usr/bin",
        "usr",
        "pipe",
        "",
    ] {
        let times = ["-h", "-d", "@1000000000"];
        run(Command::new("touch").args(times).arg(at.join(path)));
    }
    let rest = ["bin".to_owned(), "n".repeat(200)];
    for path in rest {
        run(Command::new("touch")
            .args(["-h", "-d", "@1000000000"])
            .arg(at.join(path)));
    }
    run(Command::new("touch").args(["-d", "@1000000000"]).arg(at));
}

fn options() -> PackOptions {
    PackOptions {
        references: vec![reference(NAME)],
        entrypoint: vec!["/usr/bin/tool".to_owned()],
        cmd: vec!["--serve".to_owned()],
        env: vec!["MODE=fast".to_owned()],
        ports: vec!["80".to_owned(), "53/udp".to_owned()],
        user: Some("7:70000".to_owned()),
        workdir: Some("/usr".to_owned()),
        volumes: vec!["/data".to_owned()],
        stop_signal: Some("SIGQUIT".to_owned()),
        labels: [("org.example".to_owned(), "yes".to_owned())].into(),
        ..PackOptions::default()
    }
}

/// A store with one packed image, and the tree that it was packed from.
async fn packed(dir: &Path) -> Store {
    rootfs(&dir.join("rootfs"));
    let archive = dir.join("packed.tar");
    pack(&dir.join("rootfs"), &options(), &archive).unwrap();
    let store = Store::open(dir.join("store")).await.unwrap();
    store.import(&archive, &[]).await.unwrap();
    store
}

#[tokio::test]
async fn skopeo_reads_the_store_and_copies_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = packed(dir.path()).await;
    let image = store.find("tool:1").await.unwrap();
    let source = format!("oci:{}:{NAME}", store.root().display());
    let seen: Value = serde_json::from_str(&skopeo(&["inspect", &source])).unwrap();
    assert_eq!(seen["Digest"], json!(image.manifest));
    assert_eq!(seen["Architecture"], json!(architecture()));
    assert_eq!(seen["Labels"], json!({"org.example": "yes"}));
    let config: Value = serde_json::from_str(&skopeo(&["inspect", "--config", &source])).unwrap();
    assert_eq!(config["config"]["Entrypoint"], json!(["/usr/bin/tool"]));
    assert_eq!(config["config"]["Cmd"], json!(["--serve"]));
    assert_eq!(
        config["config"]["ExposedPorts"],
        json!({"53/udp": {}, "80/tcp": {}})
    );
    assert_eq!(config["config"]["Volumes"], json!({"/data": {}}));
    assert_eq!(config["config"]["User"], json!("7:70000"));
    assert_eq!(config["config"]["WorkingDir"], json!("/usr"));
    assert_eq!(config["config"]["StopSignal"], json!("SIGQUIT"));

    // Docker's format and back: the same image, by its id.
    let saved = dir.path().join("saved.tar");
    let target = format!("docker-archive:{}:tool:1", saved.display());
    skopeo(&["copy", &source, &target]);
    let other = Store::open(dir.path().join("other")).await.unwrap();
    let again = other.import(&saved, &[]).await.unwrap();
    assert_eq!(again[0].id, image.id);
    assert_eq!(again[0].references, image.references);
}

#[tokio::test]
async fn an_export_is_read_by_others_and_comes_back_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let store = packed(dir.path()).await;
    let image = store.find("tool:1").await.unwrap();
    let exported = dir.path().join("exported.tar");
    store.export(&[reference(NAME)], &exported).await.unwrap();
    let source = format!("oci-archive:{}:{NAME}", exported.display());
    let seen: Value = serde_json::from_str(&skopeo(&["inspect", &source])).unwrap();
    assert_eq!(seen["Digest"], json!(image.digest));
    let other = Store::open(dir.path().join("other")).await.unwrap();
    let again = other.import(&exported, &[]).await.unwrap();
    assert_eq!((again[0].digest, again[0].id), (image.digest, image.id));
    let twice = dir.path().join("twice.tar");
    other.export(&[reference(NAME)], &twice).await.unwrap();
    assert_eq!(fs::read(&exported).unwrap(), fs::read(&twice).unwrap());
}

#[tokio::test]
async fn an_index_keeps_its_digest() {
    let layout = Layout::new();
    let layer = Layer::new().file("own", "x").finish();
    let blob = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", &gzip(&layer));
    let mut own = layout.manifest(&[blob], &[skiff_images::Digest::of(&layer)]);
    own["platform"] = json!({"os": "linux", "architecture": architecture()});
    let mut other = layout.image(&[Layer::new().file("other", "x").finish()]);
    other["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index = json!({"schemaVersion": 2, "manifests": [other, own]});
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = layout.blob(media_type, index.to_string().as_bytes());
    let store = layout.store().await;
    let images = store
        .import(layout.index(&[(&index, NAME)]), &[])
        .await
        .unwrap();
    assert_eq!(json!(images[0].digest), index["digest"]);
    let exported = layout.dir.path().join("exported.tar");
    store.export(&[reference(NAME)], &exported).await.unwrap();
    let again = Store::open(layout.dir.path().join("again")).await.unwrap();
    let again = again.import(&exported, &[]).await.unwrap();
    assert_eq!(json!(again[0].digest), index["digest"]);
    let source = format!("oci-archive:{}:{NAME}", exported.display());
    skopeo(&["inspect", &source]);
}

#[tokio::test]
async fn a_packed_directory_is_the_same_to_umoci_and_to_a_container() {
    let dir = tempfile::tempdir().unwrap();
    let store = packed(dir.path()).await;
    let image = store.find("tool:1").await.unwrap();
    let original = tree::read(&dir.path().join("rootfs"), &[]);
    let ours = tree::read_overlay(&image.layers, dir.path(), &[]);
    tree::assert_same(&ours, &original);
    // Holes are holes again.
    for file in ["sparse", "hole"] {
        let metadata = fs::metadata(image.layers[0].join(file)).unwrap();
        assert!(metadata.blocks() * 512 < 1 << 20, "{file}: {metadata:?}");
    }
    // And took no room in the archive.
    let archive = dir.path().join("plain.tar");
    let options = PackOptions {
        compression: Compression::None,
        ..options()
    };
    pack(&dir.path().join("rootfs"), &options, &archive).unwrap();
    assert!(fs::metadata(&archive).unwrap().len() < 1 << 20);

    let unpacked = dir.path().join("unpacked");
    run(Command::new("umoci")
        .args(["raw", "unpack", "--image"])
        .arg(format!("{}:{NAME}", store.root().display()))
        .arg(&unpacked));
    tree::assert_same(&tree::read(&unpacked, &[]), &original);
}

#[tokio::test]
async fn a_foreign_platform_is_written_as_it_is_called() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("rootfs")).unwrap();
    let mut options = PackOptions {
        references: vec![reference(NAME)],
        platform: Some("linux/arm/v7".to_owned()),
        ..PackOptions::default()
    };
    let archive = dir.path().join("arm.tar");
    pack(&dir.path().join("rootfs"), &options, &archive).unwrap();
    let source = format!("oci-archive:{}:{NAME}", archive.display());
    let config: Value = serde_json::from_str(&skopeo(&["inspect", "--config", &source])).unwrap();
    assert_eq!(
        (&config["architecture"], &config["variant"]),
        (&json!("arm"), &json!("v7"))
    );
    for wrong in ["linux", "linux/", "Linux/ARM", "a/b/c/d"] {
        options.platform = Some(wrong.to_owned());
        assert!(
            pack(&dir.path().join("rootfs"), &options, &archive).is_err(),
            "{wrong}"
        );
    }
}
