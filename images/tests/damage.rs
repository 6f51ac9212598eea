//! A store survives being killed at any point, and says what is wrong when files of it were changed.
//! Needs root.
#![allow(clippy::unwrap_used, reason = "tests")]

mod layer;
mod layout;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use layer::Layer;
use layout::{Layout, reference};
use serde_json::Value;
use skiff_images::{Digest, Error, Reference, Removal, Store};

const STORE: &str = "SKIFF_TEST_STORE";
const SOURCE: &str = "SKIFF_TEST_SOURCE";
const KILLS: u64 = 60;

/// Two images that share a layer; one of them leaves directories undescribed.
fn source(layout: &Layout) -> PathBuf {
    let mut shared = Layer::new().dir("./").dir("etc/").dir("data/");
    for file in 0..200 {
        shared = shared.file(&format!("data/{file}"), &"x".repeat(file * 50));
    }
    let shared = shared.finish();
    let one = layout.image(&[shared.clone(), Layer::new().file("etc/one", "1").finish()]);
    let two = layout.image(&[shared, Layer::new().file("two", "2").finish()]);
    layout.index(&[(&one, "one:v1"), (&two, "two:v1")])
}

fn names() -> [Reference; 2] {
    [reference("one:v1"), reference("two:v1")]
}

/// Not a test of its own: what the next one kills.
#[tokio::test]
#[ignore = "the victim of another test"]
async fn victim() {
    let (Ok(store), Ok(source)) = (std::env::var(STORE), std::env::var(SOURCE)) else {
        return;
    };
    // Both, one or the other are taken away: most kills come while something is there to be damaged.
    for round in 0.. {
        let store = Store::open(&store).await.unwrap();
        store.import(&source, &[]).await.unwrap();
        for (number, name) in names().iter().enumerate() {
            if round % 3 == 2 || round % 3 == number {
                store.remove(name).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn a_store_survives_kill_9_at_any_point() {
    let layout = Layout::new();
    let source = source(&layout);
    let root = layout.dir.path().join("store");
    let (mut half_done, mut named) = (0, 0);
    // Percent by which the kills come later: more and more until the victim gets to an end once, on a slow disk.
    let mut stretch = 100;
    for round in 0..KILLS {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--ignored", "--quiet"])
            .env(STORE, &root)
            .env(SOURCE, &source)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // Steps that share no divisor with what the victim does, so that each round ends elsewhere.
        let moment = Duration::from_micros(30_000 + round * 7_919 % 200_000);
        std::thread::sleep(moment * stretch / 100);
        victim.kill().unwrap();
        assert_eq!(victim.wait().unwrap().signal(), Some(9), "round {round}");
        half_done += count(&root.join("ingest")).min(1);

        let store = Store::open(&root).await.unwrap();
        assert_eq!(count(&root.join("ingest")), 0, "round {round}");
        assert!(store.damaged().await.unwrap().is_empty(), "round {round}");
        named += store.list().await.unwrap().len();
        if named == 0 {
            stretch = (stretch + stretch / 4).min(400);
        }
        check(&store).await;
    }
    // Otherwise this tested nothing.
    assert!(half_done > 0 && named > 0, "{half_done} {named}");
    let store = Store::open(&root).await.unwrap();
    assert_eq!(store.import(&source, &[]).await.unwrap().len(), 2);
    check(&store).await;
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}

/// Every image is complete, every blob what its name says, and nothing is there that no image needs.
async fn check(store: &Store) {
    let images = store.list().await.unwrap();
    let mut layers = BTreeSet::new();
    for image in &images {
        for layer in &image.layers {
            assert!(layer.is_dir(), "{}", layer.display());
            layers.insert(layer.parent().unwrap().to_owned());
        }
        let data = image.layers[0].join("data");
        for file in 0..200u64 {
            let length = fs::metadata(data.join(file.to_string())).unwrap().len();
            assert_eq!(length, file * 50);
        }
    }
    let here: BTreeSet<PathBuf> = ["layers", "parents"]
        .iter()
        .flat_map(|part| fs::read_dir(store.root().join(part)).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(here, layers);
    let blobs = fs::read_dir(store.root().join("blobs/sha256")).unwrap();
    let mut number = 0;
    for blob in blobs {
        let path = blob.unwrap().path();
        let digest = Digest::of(&fs::read(&path).unwrap());
        assert_eq!(path.file_name().unwrap().to_str().unwrap(), digest.hex());
        number += 1;
    }
    // A manifest, a configuration and a layer for each, and the layer that they share.
    assert_eq!(number, images.len() * 3 + images.len().min(1));
}

/// A store with both images, opened again after something was done to its files.
async fn damaged(layout: &Layout, damage: impl FnOnce(&Path, &Value)) -> Store {
    let source = source(layout);
    let root = layout.dir.path().join("store");
    let store = Store::open(&root).await.unwrap();
    let images = store.import(source, &[]).await.unwrap();
    let manifest = fs::read(root.join("blobs/sha256").join(images[0].manifest.hex())).unwrap();
    damage(&root, &serde_json::from_slice(&manifest).unwrap());
    // As the agent sees it too, whose handle is open: the index tells it to look again.
    Store::open(&root).await.unwrap()
}

fn hex(digest: &Value) -> String {
    digest
        .as_str()
        .unwrap()
        .strip_prefix("sha256:")
        .unwrap()
        .to_owned()
}

/// The damaged image says what is wrong with it, the other one works, and either cure cures.
async fn assert_told(layout: &Layout, store: &Store, file: &str) {
    let [one, two] = names();
    assert!(store.get(&one).await.unwrap().is_none());
    assert!(store.get(&two).await.unwrap().is_some());
    let error = store.find("one:v1").await.unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    let text = error.to_string();
    for part in [
        "docker.io/library/one:v1 is damaged",
        file,
        "skiff image rm",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let error = store
        .export(
            std::slice::from_ref(&one),
            layout.dir.path().join("out.tar"),
        )
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    store
        .export(&[two], layout.dir.path().join("out.tar"))
        .await
        .unwrap();
    let removed = store
        .remove_named("one:v1", Removal::Careful)
        .await
        .unwrap();
    assert_eq!(removed[0].reference, one);
    store.import(layout.path(), &[]).await.unwrap();
    check(store).await;
}

#[tokio::test]
async fn a_manifest_that_is_gone_is_told() {
    let layout = Layout::new();
    let store = damaged(&layout, |root, _| {
        let index = fs::read(root.join("index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let blob = hex(&index["manifests"][0]["digest"]);
        fs::remove_file(root.join("blobs/sha256").join(blob)).unwrap();
    })
    .await;
    assert_told(&layout, &store, "blobs/sha256/").await;
}

#[tokio::test]
async fn a_configuration_that_was_changed_is_told() {
    let layout = Layout::new();
    let store = damaged(&layout, |root, manifest| {
        let blob = root
            .join("blobs/sha256")
            .join(hex(&manifest["config"]["digest"]));
        let text = fs::read_to_string(&blob).unwrap();
        fs::write(&blob, text.replace("sh", "hs")).unwrap();
    })
    .await;
    assert_told(&layout, &store, "blobs/sha256/").await;
}

#[tokio::test]
async fn a_layer_directory_that_is_gone_is_told() {
    for part in ["", "fs", "layer.json"] {
        let layout = Layout::new();
        let store = damaged(&layout, |root, manifest| {
            // These layers are not compressed: the blob's digest is the diff id.
            let layer = root
                .join("layers")
                .join(hex(&manifest["layers"][1]["digest"]));
            match part {
                "layer.json" => fs::write(layer.join(part), "{").unwrap(),
                part => fs::remove_dir_all(layer.join(part)).unwrap(),
            }
        })
        .await;
        assert_told(&layout, &store, "layers/").await;
    }
}

#[tokio::test]
async fn adding_a_damaged_image_again_mends_it() {
    for part in ["layers", "parents"] {
        let layout = Layout::new();
        let store = damaged(&layout, |root, _| {
            for entry in fs::read_dir(root.join(part)).unwrap() {
                fs::remove_dir_all(entry.unwrap().path().join("fs")).unwrap();
            }
        })
        .await;
        assert!(!store.damaged().await.unwrap().is_empty(), "{part}");
        store.import(layout.path(), &[]).await.unwrap();
        assert!(store.damaged().await.unwrap().is_empty(), "{part}");
        check(&store).await;
    }
}

#[tokio::test]
async fn a_blob_that_is_gone_fails_the_export_alone() {
    let layout = Layout::new();
    let store = damaged(&layout, |root, manifest| {
        let blob = hex(&manifest["layers"][1]["digest"]);
        fs::remove_file(root.join("blobs/sha256").join(blob)).unwrap();
    })
    .await;
    let [one, two] = names();
    assert!(store.get(&one).await.unwrap().is_some());
    let out = layout.dir.path().join("out.tar");
    let error = store.export(&[one], &out).await.unwrap_err().to_string();
    assert!(error.contains("blobs/sha256/"), "{error}");
    assert!(!out.exists());
    store.export(&[two], &out).await.unwrap();
}

#[tokio::test]
async fn an_index_that_was_cut_is_told_and_never_written_over() {
    let layout = Layout::new();
    let store = damaged(&layout, |root, _| {
        let path = root.join("index.json");
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
    })
    .await;
    let error = store.list().await.unwrap_err();
    assert!(matches!(error, Error::DamagedIndex { .. }), "{error}");
    assert!(
        error.to_string().contains("index.json is damaged"),
        "{error}"
    );
    let error = store.import(layout.path(), &[]).await.unwrap_err();
    assert!(matches!(error, Error::DamagedIndex { .. }), "{error}");
    // Nothing was swept away meanwhile: with the file put right, all is there.
    assert!(count(&store.root().join("layers")) > 0);
    fs::remove_file(store.root().join("index.json")).unwrap();
    let store = Store::open(store.root()).await.unwrap();
    store.import(layout.path(), &[]).await.unwrap();
    check(&store).await;
}
