//! All formats of archives, honest and not, and what the store makes of them. Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

mod layer;
mod layout;

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use layer::Layer;
use layout::{Layout, architecture, config, gzip, reference};
use serde_json::{Value, json};
use skiff_images::{Digest, Error, Reference, Store};

fn hello() -> Vec<u8> {
    Layer::new().file("hello", "hello").finish()
}

/// Nothing was added, and nothing left behind.
fn assert_untouched(store: &Store) {
    for part in ["blobs/sha256", "layers", "ingest"] {
        let path = store.root().join(part);
        assert_eq!(
            fs::read_dir(&path).unwrap().count(),
            0,
            "{}",
            path.display()
        );
    }
}

#[tokio::test]
async fn layouts_come_as_directories_tars_and_compressed_tars() {
    let layout = Layout::new();
    let (plain, packed, zstd) = (
        hello(),
        Layer::new().file("gzip", "").finish(),
        Layer::new().file("zstd", "").finish(),
    );
    let ids = [&plain, &packed, &zstd].map(|layer| Digest::of(layer));
    let layers = [
        layout.blob("application/vnd.oci.image.layer.v1.tar", &plain),
        layout.blob(
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            &gzip(&packed),
        ),
        layout.blob(
            "application/vnd.oci.image.layer.v1.tar+zstd",
            &zstd::encode_all(&zstd[..], 1).unwrap(),
        ),
    ];
    let image = layout.manifest(&layers, &ids);
    let directory = layout.index(&[(&image, "app:v1"), (&image, "quay.io/org/app:v2")]);
    let tar = layout.tar();
    let compressed = layout.dir.path().join("layout.tar.gz");
    fs::write(&compressed, gzip(&fs::read(&tar).unwrap())).unwrap();

    for (number, source) in [directory, tar, compressed].into_iter().enumerate() {
        let store = Store::open(layout.dir.path().join(number.to_string()))
            .await
            .unwrap();
        let images = store.import(source, &[]).await.unwrap();
        assert_eq!(images.len(), 1);
        assert_eq!(
            images[0].references,
            [reference("app:v1"), reference("quay.io/org/app:v2")]
        );
        for (layer, name) in images[0].layers.iter().zip(["hello", "gzip", "zstd"]) {
            assert!(layer.join(name).exists(), "{name}");
        }
    }
}

#[tokio::test]
async fn docker_save_archives_are_understood() {
    let layout = Layout::new();
    let root = layout.dir.path().join("docker");
    fs::create_dir_all(root.join("one")).unwrap();
    fs::create_dir_all(root.join("two")).unwrap();
    fs::write(root.join("one/layer.tar"), hello()).unwrap();
    std::os::unix::fs::symlink("../one/layer.tar", root.join("two/layer.tar")).unwrap();
    let id = Digest::of(&hello());
    fs::write(root.join("config.json"), config(&[id, id])).unwrap();
    let manifest = json!([{
        "Config": "config.json",
        "RepoTags": ["nginx:1", "nginx:latest"],
        "Layers": ["one/layer.tar", "two/layer.tar"],
    }]);
    fs::write(root.join("manifest.json"), manifest.to_string()).unwrap();
    let archive = layout.dir.path().join("docker.tar");
    let mut tar = tar::Builder::new(fs::File::create(&archive).unwrap());
    tar.follow_symlinks(false);
    tar.append_dir_all("", &root).unwrap();
    tar.finish().unwrap();

    let store = layout.store().await;
    let images = store.import(&archive, &[]).await.unwrap();
    assert_eq!(
        images[0].references,
        [reference("nginx:1"), reference("nginx")]
    );
    assert_eq!(images[0].id, Digest::of(&config(&[id, id])));
    // The same layer twice: overlayfs would refuse it.
    assert_eq!(images[0].layers.len(), 1);
    assert!(images[0].layers[0].join("hello").exists());
    assert_eq!(
        images[0].config.config().as_ref().unwrap().exposed_ports(),
        &None
    );
    let by_digest = reference("nginx").at_digest(images[0].digest);
    assert!(store.get(&by_digest).await.unwrap().is_some());

    // A layer that is not what the configuration says.
    fs::write(
        root.join("config.json"),
        config(&[Digest::of(b"other"), id]),
    )
    .unwrap();
    let store = Store::open(layout.dir.path().join("second")).await.unwrap();
    let error = store.import(&root, &[]).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert_untouched(&store);
}

#[tokio::test]
async fn an_index_gives_its_own_platform() {
    let layout = Layout::new();
    let other = layout.image(&[Layer::new().file("other", "").finish()]);
    let own = layout.image(&[hello()]);
    let index = |platforms: &[(&Value, &str)]| {
        let manifests: Vec<Value> = platforms
            .iter()
            .map(|(descriptor, architecture)| {
                let mut descriptor = (*descriptor).clone();
                descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
                descriptor
            })
            .collect();
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        layout.blob(
            "application/vnd.oci.image.index.v1+json",
            index.to_string().as_bytes(),
        )
    };
    let many = index(&[(&other, "s390x"), (&own, architecture())]);
    let store = layout.store().await;
    let images = store
        .import(layout.index(&[(&many, "app:v1")]), &[])
        .await
        .unwrap();
    assert!(images[0].layers[0].join("hello").exists());
    assert_eq!(json!(images[0].digest), many["digest"]);
    assert_eq!(json!(images[0].manifest), own["digest"]);
    // What opening again clears away does not belong to the image.
    let store = layout.store().await;
    assert_eq!(store.list().await.unwrap().len(), 1);

    let foreign = index(&[(&other, "s390x")]);
    let error = store
        .import(layout.index(&[(&foreign, "app:v2")]), &[])
        .await
        .unwrap_err();
    assert!(
        error.to_string().ends_with("only for linux/s390x"),
        "{error}"
    );
}

#[tokio::test]
async fn altered_content_is_refused() {
    let layout = Layout::new();
    let image = layout.image(&[hello()]);
    let source = layout.index(&[(&image, "app:v1")]);
    let store = layout.store().await;
    let blob = layout.blob_path(Digest::of(&hello()));
    fs::write(&blob, Layer::new().file("hello", "jello").finish()).unwrap();
    let error = store.import(&source, &[]).await.unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");

    let liar = layout.image_with(&[hello()], &[Digest::of(b"something else")]);
    let error = store
        .import(layout.index(&[(&liar, "app:v1")]), &[])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("unpacked"), "{error}");

    let manifest: Digest = image["digest"].as_str().unwrap().parse().unwrap();
    fs::write(layout.blob_path(manifest), "{}").unwrap();
    let error = store
        .import(layout.index(&[(&image, "app:v1")]), &[])
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    assert_untouched(&store);
}

#[tokio::test]
async fn a_hostile_layer_is_named_with_its_image_and_entry() {
    let layout = Layout::new();
    let bad = Layer::new().file("../../evil", "").finish();
    let image = layout.image(std::slice::from_ref(&bad));
    let store = layout.store().await;
    let error = store
        .import(layout.index(&[(&image, "app:v1")]), &[])
        .await
        .unwrap_err();
    let text = error.to_string();
    for part in [
        "docker.io/library/app:v1",
        &Digest::of(&bad).to_string(),
        "'../../evil'",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_untouched(&store);
}

#[tokio::test]
async fn files_that_are_no_images_say_so() {
    let layout = Layout::new();
    let store = layout.store().await;
    let path = layout.dir.path().join("file");
    for content in [&b"not a tar at all"[..], b"", &hello(), &gzip(b"text")] {
        fs::write(&path, content).unwrap();
        let error = store.import(&path, &[]).await.unwrap_err();
        assert!(matches!(error, Error::NotAnImage { .. }), "{error}");
    }
    let image = layout.image(&[hello()]);
    let unnamed = layout.index(&[(&image, "latest")]);
    let error = store.import(&unnamed, &[]).await.unwrap_err();
    assert!(matches!(error, Error::Unnamed(_)), "{error}");
    let named = store.import(&unnamed, &[reference("given")]).await.unwrap();
    assert_eq!(named[0].references, [reference("given")]);
}

#[tokio::test]
async fn what_a_killed_process_left_is_cleared_away() {
    let layout = Layout::new();
    let image = layout.image(&[hello()]);
    let store = layout.store().await;
    store
        .import(layout.index(&[(&image, "app:v1")]), &[])
        .await
        .unwrap();
    let root = store.root().to_owned();
    // Killed while staging, between the renames of a commit, and before the index was renamed.
    fs::create_dir_all(root.join("ingest/.tmpdead/unpacking-1/fs/etc")).unwrap();
    fs::write(root.join("ingest/.tmpfile"), "{").unwrap();
    fs::write(
        root.join("blobs/sha256").join(Digest::of(b"orphan").hex()),
        "orphan",
    )
    .unwrap();
    fs::create_dir_all(
        root.join("layers")
            .join(Digest::of(b"orphan").hex())
            .join("fs"),
    )
    .unwrap();

    let again = layout.store().await;
    let left = |part: &str| fs::read_dir(root.join(part)).unwrap().count();
    assert_eq!(
        (left("ingest"), left("layers"), left("blobs/sha256")),
        (0, 1, 3)
    );
    assert!(again.get(&reference("app:v1")).await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_handles_see_each_others_changes() {
    let layout = Layout::new();
    let image = layout.image(&[hello(), Layer::new().file("more", "").finish()]);
    let source = layout.index(&[(&image, "app:v1")]);
    let (one, two) = (layout.store().await, layout.store().await);
    assert!(two.list().await.unwrap().is_empty());
    let names: Vec<Reference> = (0..8).map(|n| reference(&format!("app:n{n}"))).collect();
    let tasks: Vec<_> = names
        .iter()
        .map(|name| {
            let (store, source, name) = (one.clone(), source.clone(), name.clone());
            tokio::spawn(async move {
                // Each removal may take away what another import relies on.
                store
                    .import(source, std::slice::from_ref(&name))
                    .await
                    .unwrap();
                store.remove(&name).await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert!(two.list().await.unwrap().is_empty());
    assert_untouched(&two);
    one.import(&source, &names).await.unwrap();
    assert_eq!(two.list().await.unwrap()[0].references.len(), 8);
}

#[tokio::test]
async fn directories_without_an_entry_look_as_they_do_below() {
    let layout = Layout::new();
    let base = Layer::new()
        .entry("var/", tar::EntryType::Directory, |header| {
            header.set_mode(0o1777);
            header.set_uid(42);
        })
        .entry("var/lib/", tar::EntryType::Directory, |header| {
            header.set_mode(0o700)
        })
        .finish();
    let upper = Layer::new().file("var/lib/app/data", "").finish();
    let image = layout.image(&[base, upper]);
    let store = layout.store().await;
    let images = store
        .import(layout.index(&[(&image, "app:v1")]), &[])
        .await
        .unwrap();
    let layers = &images[0].layers;
    assert_eq!(layers.len(), 3, "{layers:?}");
    let seen = |path: &str| {
        let top = layers
            .iter()
            .rev()
            .map(|layer| layer.join(path))
            .find(|path| path.exists());
        let metadata = fs::metadata(top.unwrap()).unwrap();
        (metadata.mode() & 0o7777, metadata.uid(), metadata.mtime())
    };
    assert_eq!(seen("var"), (0o1777, 42, 1_000_000_000));
    assert_eq!(seen("var/lib"), (0o700, 0, 1_000_000_000));
    assert_eq!(seen("var/lib/app").0, 0o755);
    // All of it goes with the image.
    store.remove(&reference("app:v1")).await.unwrap();
    assert_untouched(&store);
    assert_eq!(
        fs::read_dir(store.root().join("parents")).unwrap().count(),
        0
    );
}

#[tokio::test]
async fn an_opaque_root_hides_all_below() {
    let layout = Layout::new();
    let top = Layer::new()
        .file(".wh..wh..opq", "")
        .file("only", "")
        .finish();
    let image = layout.image(&[hello(), top]);
    let store = layout.store().await;
    let images = store
        .import(layout.index(&[(&image, "app:v1")]), &[])
        .await
        .unwrap();
    assert_eq!(images[0].layers.len(), 1);
    assert!(images[0].layers[0].join("only").exists());
}

#[tokio::test]
async fn the_store_is_an_oci_layout() {
    let layout = Layout::new();
    let image = layout.image(&[hello()]);
    let store = layout.store().await;
    store
        .import(layout.index(&[(&image, "app:v1")]), &[])
        .await
        .unwrap();
    // It can be imported itself.
    let copy = Store::open(layout.dir.path().join("copy")).await.unwrap();
    let images = copy.import(store.root(), &[]).await.unwrap();
    assert_eq!(images[0].references, [reference("app:v1")]);
    let index = fs::read(store.root().join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(
        index["manifests"][0]["annotations"],
        json!({
            "io.containerd.image.name": "docker.io/library/app:v1",
            "io.cri-containerd.pinned": "pinned",
            "org.opencontainers.image.ref.name": "docker.io/library/app:v1",
        })
    );
    assert!(Path::exists(&store.root().join("oci-layout")));
}

#[tokio::test]
async fn links_of_layers_below_that_lead_nowhere_are_refused() {
    for target in ["/nowhere", "../../outside", "link", "hello"] {
        let layout = Layout::new();
        let base = Layer::new()
            .dir("./")
            .file("hello", "")
            .symlink("link", target)
            .finish();
        let upper = Layer::new().file("link/pwned", "").finish();
        let image = layout.image(&[base, upper.clone()]);
        let store = layout.store().await;
        let error = store
            .import(layout.index(&[(&image, "app:v1")]), &[])
            .await
            .unwrap_err()
            .to_string();
        for part in ["library/app:v1", &Digest::of(&upper).to_string(), "'link'"] {
            assert!(error.contains(part), "{target}: {error}");
        }
        assert_untouched(&store);
    }
}

#[tokio::test]
async fn more_layers_than_overlayfs_takes_are_refused() {
    let layout = Layout::new();
    let layers = vec![hello(); 251];
    let image = layout.image(&layers);
    let error = layout
        .store()
        .await
        .import(layout.index(&[(&image, "app:v1")]), &[])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("251 layers"), "{error}");
}

#[tokio::test]
async fn layers_share_one_bound() {
    let layout = Layout::new();
    let layer = |name: &str| Layer::new().file(name, &"x".repeat(600)).finish();
    let image = layout.image(&[layer("a"), layer("b")]);
    let source = layout.index(&[(&image, "app:v1")]);
    let limits = skiff_images::Limits {
        bytes: 1000,
        entries: 100,
    };
    let open = || Store::open_with(layout.dir.path().join("store"), limits);
    let store = open().await.unwrap();
    let error = store.import(&source, &[]).await.unwrap_err().to_string();
    for part in [
        "library/app:v1",
        &Digest::of(&layer("b")).to_string(),
        "'b'",
        "1000 bytes",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert_untouched(&store);
    // Also when one of them is here already.
    let first = layout.image(&[layer("a")]);
    store
        .import(layout.index(&[(&first, "first:v1")]), &[])
        .await
        .unwrap();
    let error = store
        .import(layout.index(&[(&image, "app:v1")]), &[])
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn bombs_are_refused() {
    let limits = skiff_images::Limits {
        bytes: 1 << 20,
        entries: 100,
    };
    // What follows the end of an archive is no file, and a global header neither.
    let mut after_the_end = Layer::new().file("a", "").finish();
    after_the_end.resize(64 << 20, 0);
    let header = Layer::new()
        .bytes("x", &vec![b' '; 64 << 20], |header| {
            header.set_entry_type(tar::EntryType::XGlobalHeader)
        })
        .finish();
    let mut wide = Layer::new();
    for number in 0..10 {
        wide = wide.file(&format!("{number}/{}x", "d/".repeat(40)), "");
    }
    for (layer, said) in [
        (after_the_end, "inflate to more than"),
        (header, "inflate to more than"),
        (wide.finish(), "more than the 100 files"),
    ] {
        let layout = Layout::new();
        let gzip_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let blob = layout.blob(gzip_type, &gzip(&layer));
        let image = layout.manifest(&[blob], &[Digest::of(&layer)]);
        let store = Store::open_with(layout.dir.path().join("store"), limits)
            .await
            .unwrap();
        let error = store
            .import(layout.index(&[(&image, "app:v1")]), &[])
            .await
            .unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
        assert_untouched(&store);
    }
    // A window that would take two gigabytes of memory.
    let mut packer = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    packer.long_distance_matching(true).unwrap();
    packer.window_log(31).unwrap();
    packer.write_all(&hello()).unwrap();
    let packed = packer.finish().unwrap();
    let layout = Layout::new();
    let blob = layout.blob("application/vnd.oci.image.layer.v1.tar+zstd", &packed);
    let image = layout.manifest(&[blob], &[Digest::of(&hello())]);
    let store = layout.store().await;
    let error = store
        .import(layout.index(&[(&image, "app:v1")]), &[])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("memory"), "{error}");
    assert_untouched(&store);
}
