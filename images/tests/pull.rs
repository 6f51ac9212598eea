//! Pulls from a registry that misbehaves, counted request by request.
#![allow(clippy::unwrap_used, reason = "tests")]

mod layer;
mod registry;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use layer::Layer;
use registry::{Auth, Fault, FaultyRegistry};
use serde_json::{Value, json};
use skiff_images::registry::{Registries, RegistryConfig, RetryPolicy, Timeouts};
use skiff_images::{
    Credentials, Digest, PullError, PullRequest, Pulled, Puller, Reference, RegistryPuller, Store,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// A store and what pulls into it.
struct Node {
    dir: tempfile::TempDir,
    store: Store,
    puller: RegistryPuller,
}

impl Node {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let config = RegistryConfig {
            timeouts: Timeouts {
                connect: Duration::from_secs(5),
                headers: Duration::from_secs(20),
                body: Duration::from_secs(20),
            },
            retry: RetryPolicy {
                attempts: 3,
                base: Duration::from_millis(10),
                max: Duration::from_millis(20),
                max_retry_after: Duration::from_secs(5),
            },
            ..RegistryConfig::default()
        };
        let puller = RegistryPuller::new(store.clone(), Registries::new(config));
        Self { dir, store, puller }
    }

    async fn pull(&self, reference: &Reference) -> Result<Pulled, PullError> {
        self.pull_as(reference, &[]).await
    }

    async fn pull_as(
        &self,
        reference: &Reference,
        accounts: &[Credentials],
    ) -> Result<Pulled, PullError> {
        let request = PullRequest::new(reference.clone(), accounts.to_vec());
        self.puller.pull(request).await
    }

    async fn fails(&self, reference: &Reference) -> String {
        let error = self.pull(reference).await.unwrap_err().to_string();
        assert!(error.contains(&reference.to_string()), "{error}");
        assert!(self.store.list().await.unwrap().is_empty());
        self.is_tidy().await;
        error
    }

    /// Waits until nothing is staged and no turn is held; what is dropped is cleared by a thread.
    async fn is_tidy(&self) {
        let empty = |name: &str| {
            let path: &Path = self.dir.path();
            std::fs::read_dir(path.join(name)).unwrap().count() == 0
        };
        let tidy = async {
            while !(empty("ingest") && empty("turns")) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, tidy)
            .await
            .expect("a tidy store");
    }
}

/// A layer as a registry has it.
#[derive(Clone)]
struct Packed {
    media_type: &'static str,
    blob: Bytes,
    diff_id: Digest,
}

fn gzip(tar: &[u8]) -> Packed {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(tar).unwrap();
    Packed {
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip",
        blob: packed.finish().unwrap().into(),
        diff_id: Digest::of(tar),
    }
}

fn zstd(tar: &[u8]) -> Packed {
    Packed {
        media_type: "application/vnd.oci.image.layer.v1.tar+zstd",
        blob: zstd::encode_all(tar, 1).unwrap().into(),
        diff_id: Digest::of(tar),
    }
}

fn plain(tar: &[u8]) -> Packed {
    Packed {
        media_type: "application/vnd.oci.image.layer.v1.tar",
        blob: tar.to_vec().into(),
        diff_id: Digest::of(tar),
    }
}

fn tar(name: &str) -> Vec<u8> {
    Layer::new().file(name, name).finish()
}

/// A layer that does not compress, of about so many bytes.
fn large(seed: u64, bytes: usize) -> Packed {
    let mut state = seed;
    let content: String = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b'!' + (state >> 33) as u8 % 94)
    })
    .take(bytes)
    .collect();
    gzip(&Layer::new().file("large", &content).finish())
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len()})
}

/// The manifest of an image, whose blobs are put into the registry.
fn image(registry: &FaultyRegistry, architecture: &str, layers: &[Packed]) -> Value {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id).collect();
    let config = serde_json::to_vec(&json!({
        "architecture": architecture,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap();
    for layer in layers {
        registry.put_blob(layer.blob.clone());
    }
    registry.put_blob(config.clone());
    let layers: Vec<Value> = layers
        .iter()
        .map(|layer| descriptor(layer.media_type, &layer.blob))
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers,
    })
}

fn put(registry: &FaultyRegistry, name: &str, manifest: &Value) -> (Reference, Digest) {
    let (repository, tag) = name.split_once(':').unwrap();
    let media_type = manifest["mediaType"].as_str().unwrap();
    let bytes = serde_json::to_vec(manifest).unwrap();
    let digest = registry.put_manifest(repository, tag, media_type, bytes);
    (registry.reference(name), digest)
}

/// How often something was fetched, not only asked about.
fn fetched(registry: &FaultyRegistry, digest: Digest) -> usize {
    let seen = registry.seen(&digest.to_string());
    seen.iter().filter(|seen| seen.method == "GET").count()
}

fn blob(layer: &Packed) -> Digest {
    Digest::of(&layer.blob)
}

#[tokio::test]
async fn layers_come_packed_in_every_way_and_only_once() {
    let (registry, node) = (FaultyRegistry::start().await, Node::new().await);
    let layers = [
        plain(&tar("a")),
        gzip(&tar("b")),
        zstd(&tar("c")),
        gzip(&tar("b")),
    ];
    let (reference, digest) = put(&registry, "app:1", &image(&registry, "amd64", &layers));
    let pulled = node.pull(&reference).await.unwrap();
    assert_eq!(pulled.image.digest, digest);
    assert_eq!(pulled.image.references, std::slice::from_ref(&reference));
    // One that is there twice counts at its upper place.
    assert_eq!(pulled.image.layers.len(), 3);
    for (path, name) in pulled.image.layers.iter().zip(["a", "c", "b"]) {
        assert_eq!(std::fs::read_to_string(path.join(name)).unwrap(), name);
    }
    for layer in &layers {
        assert_eq!(fetched(&registry, blob(layer)), 1);
    }
    // What is here is asked about, and not fetched again; neither is what another name shares.
    let before = registry.seen("/v2/").len();
    node.pull(&reference).await.unwrap();
    assert_eq!(registry.seen("/v2/").len(), before + 1);
    let more = [layers[0].clone(), gzip(&tar("d"))];
    let (other, _) = put(&registry, "app:2", &image(&registry, "amd64", &more));
    node.pull(&other).await.unwrap();
    assert_eq!(fetched(&registry, blob(&layers[0])), 1);
    node.is_tidy().await;
}

#[tokio::test]
async fn an_index_gives_the_platforms_image() {
    for (list, docker) in [(INDEX, false), (DOCKER_LIST, true)] {
        let (registry, node) = (FaultyRegistry::start().await, Node::new().await);
        let mut entries = Vec::new();
        for (architecture, file) in [("arm64", "arm"), ("amd64", "amd")] {
            let mut manifest = image(&registry, architecture, &[gzip(&tar(file))]);
            if docker {
                manifest["mediaType"] = DOCKER_MANIFEST.into();
                manifest["config"]["mediaType"] =
                    "application/vnd.docker.container.image.v1+json".into();
                manifest["layers"][0]["mediaType"] =
                    "application/vnd.docker.image.rootfs.diff.tar.gzip".into();
            }
            put(&registry, &format!("app:{architecture}"), &manifest);
            let bytes = serde_json::to_vec(&manifest).unwrap();
            let mut entry = descriptor(manifest["mediaType"].as_str().unwrap(), &bytes);
            entry["platform"] = json!({"os": "linux", "architecture": architecture});
            entries.push(entry);
        }
        let index = json!({"schemaVersion": 2, "mediaType": list, "manifests": entries});
        let (reference, digest) = put(&registry, "app:1", &index);
        let wanted = |platform: &str| PullRequest {
            platform: Some(platform.parse().unwrap()),
            ..PullRequest::new(reference.clone(), Vec::new())
        };
        let pulled = node.puller.pull(wanted("linux/amd64")).await.unwrap();
        assert!(pulled.image.layers[0].join("amd").exists());
        assert_eq!(pulled.image.digest, digest);
        // By digest as well, and then without a tag.
        let pulled = node.pull(&reference.at_digest(digest)).await.unwrap();
        assert_eq!(pulled.image.digest, digest);
        let pulled = node.puller.pull(wanted("linux/arm64/v8")).await.unwrap();
        assert!(pulled.image.layers[0].join("arm").exists());
        let error = node.puller.pull(wanted("linux/s390x")).await.unwrap_err();
        assert!(
            error.to_string().contains("linux/amd64, linux/arm64"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_broken_connection_goes_on_where_it_broke() {
    let (registry, layer) = (FaultyRegistry::start().await, large(1, 400_000));
    let (reference, _) = put(
        &registry,
        "app:1",
        &image(&registry, "amd64", std::slice::from_ref(&layer)),
    );
    let size = layer.blob.len();
    let digest = blob(&layer).to_string();
    for cut in [0, 1, 9, 70_000, size / 2, size - 1] {
        let node = Node::new().await;
        let before = registry.seen(&digest).len();
        registry.fail(&digest, [Fault::Cut(cut)]);
        node.pull(&reference).await.unwrap();
        let seen = registry.seen(&digest);
        let ranges: Vec<_> = seen[before..]
            .iter()
            .map(|seen| seen.header("range"))
            .collect();
        // The end of what was sent may be lost with the connection.
        assert_eq!(ranges.len(), 2, "{ranges:?}");
        assert_eq!(ranges[0], None);
        if let Some(range) = ranges[1] {
            let from = range.trim_start_matches("bytes=").trim_end_matches('-');
            assert!(
                (1..=cut).contains(&from.parse().unwrap()),
                "{range} after {cut}"
            );
        } else {
            assert!(cut < 10, "nothing of {cut} bytes counted");
        }
        node.is_tidy().await;
    }
    // Without ranges the beginning comes again, and is passed over.
    let node = Node::new().await;
    let faults = [Fault::Cut(100_000), Fault::IgnoreRange];
    registry.fail(&digest, faults);
    node.pull(&reference).await.unwrap();
    // Several times, as long as it gets on.
    let node = Node::new().await;
    registry.fail(&digest, vec![Fault::Cut(70_000); 4]);
    node.pull(&reference).await.unwrap();
}

#[tokio::test]
async fn a_download_that_gets_nowhere_is_given_up() {
    let (registry, node, layer) = (
        FaultyRegistry::start().await,
        Node::new().await,
        large(2, 100_000),
    );
    let (reference, _) = put(
        &registry,
        "app:1",
        &image(&registry, "amd64", std::slice::from_ref(&layer)),
    );
    let digest = blob(&layer);
    registry.fail(&digest.to_string(), vec![Fault::Cut(0); 50]);
    let error = node.fails(&reference).await;
    assert!(
        error.contains(&format!("layer {digest} broke off at 0 of")),
        "{error}"
    );
    assert_eq!(fetched(&registry, digest), 5);
    registry.forget_faults();
    node.pull(&reference).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_is_busy_is_asked_again_when_it_says() {
    let (registry, node, layer) = (
        FaultyRegistry::start().await,
        Node::new().await,
        gzip(&tar("a")),
    );
    let (reference, _) = put(
        &registry,
        "app:1",
        &image(&registry, "amd64", std::slice::from_ref(&layer)),
    );
    let faults = [Fault::too_many_requests("1"), Fault::status(503)];
    registry.fail(&blob(&layer).to_string(), faults);
    let pulled = node.pull(&reference).await.unwrap();
    assert!(pulled.took >= Duration::from_secs(1), "{:?}", pulled.took);
    assert_eq!(fetched(&registry, blob(&layer)), 3);
}

#[tokio::test]
async fn a_layer_that_is_wrong_fails_the_pull_and_leaves_nothing() {
    let (registry, node) = (FaultyRegistry::start().await, Node::new().await);
    let (good, layer) = (large(3, 200_000), large(4, 200_000));
    let layers = [good, layer.clone()];
    let (reference, _) = put(&registry, "app:1", &image(&registry, "amd64", &layers));
    let digest = blob(&layer).to_string();
    // Another layer of the same size: nothing is wrong with it but its name.
    let mut other = layer.blob.to_vec();
    let at = other.len() - 3;
    other[at] ^= 1;
    for (body, said) in [
        (other.clone(), "layer"),
        ([layer.blob.to_vec(), vec![0]].concat(), "bytes, not the"),
        // The rest of it comes after that, and is right.
        (vec![0x1f, 0x8b, 7, 7, 7], "layer"),
    ] {
        registry.fail(&digest, [Fault::Body(body.into())]);
        let error = node.fails(&reference).await;
        assert!(error.contains(said) && error.contains(&digest), "{error}");
        registry.forget_faults();
    }
    // Unpacks well, and has the digest that the manifest says, but not the configuration.
    let mut liar = gzip(&tar("a"));
    liar.diff_id = Digest::of(b"something else");
    let (lying, _) = put(
        &registry,
        "app:2",
        &image(&registry, "amd64", std::slice::from_ref(&liar)),
    );
    let error = node.fails(&lying).await;
    assert!(
        error.contains("unpacked") && error.contains(&blob(&liar).to_string()),
        "{error}"
    );
    // Has an entry that no honest layer has.
    let hostile = gzip(&Layer::new().file("../escape", "x").finish());
    let (hostile, _) = put(&registry, "app:3", &image(&registry, "amd64", &[hostile]));
    let error = node.fails(&hostile).await;
    assert!(error.contains("../escape"), "{error}");
    node.pull(&reference).await.unwrap();
}

#[tokio::test]
async fn a_configuration_that_was_altered_is_refused() {
    let (registry, node) = (FaultyRegistry::start().await, Node::new().await);
    let manifest = image(&registry, "amd64", &[gzip(&tar("a"))]);
    let (reference, _) = put(&registry, "app:1", &manifest);
    let config = manifest["config"]["digest"].as_str().unwrap();
    let size = manifest["config"]["size"].as_u64().unwrap();
    registry.fail(config, [Fault::Body(vec![b' '; size as usize].into())]);
    let error = node.fails(&reference).await;
    assert!(error.contains("the content was altered"), "{error}");
}

#[tokio::test]
async fn what_several_pods_need_is_fetched_once() {
    let (registry, node) = (FaultyRegistry::start().await, Arc::new(Node::new().await));
    let (shared, own) = (large(5, 300_000), gzip(&tar("own")));
    let (first, _) = put(
        &registry,
        "one:1",
        &image(&registry, "amd64", std::slice::from_ref(&shared)),
    );
    let both = [shared.clone(), own];
    let (second, _) = put(&registry, "two:1", &image(&registry, "amd64", &both));
    let slow = Fault::Delay(Duration::from_millis(500));
    registry.fail(&blob(&shared).to_string(), [slow]);
    let account = [Credentials::basic("me", "x")];
    let (a, b, c, d) = tokio::join!(
        node.pull(&first),
        node.pull(&first),
        // With another account, the registry is asked again; the content is the same.
        node.pull_as(&first, &account),
        node.pull(&second),
    );
    for pulled in [a, b, c, d] {
        pulled.unwrap();
    }
    assert_eq!(fetched(&registry, blob(&shared)), 1);
    assert_eq!(registry.seen("/v2/one/manifests/1").len(), 2);
    assert_eq!(node.store.list().await.unwrap().len(), 2);
}

#[tokio::test]
async fn two_processes_fetch_an_image_once() {
    let (registry, node) = (FaultyRegistry::start().await, Node::new().await);
    let layer = large(6, 300_000);
    let (reference, _) = put(
        &registry,
        "app:1",
        &image(&registry, "amd64", std::slice::from_ref(&layer)),
    );
    let slow = Fault::Delay(Duration::from_millis(500));
    registry.fail(&blob(&layer).to_string(), [slow]);
    // As another process would, it knows of the first only by the store's locks.
    let store = Store::open(node.dir.path()).await.unwrap();
    let other = RegistryPuller::new(store, Registries::new(RegistryConfig::default()));
    let request = PullRequest::new(reference.clone(), Vec::new());
    let (first, second) = tokio::join!(node.pull(&reference), other.pull(request));
    assert_eq!(first.unwrap().image.digest, second.unwrap().image.digest);
    assert_eq!(fetched(&registry, blob(&layer)), 1);
    node.is_tidy().await;
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_stops() {
    let (registry, node) = (FaultyRegistry::start().await, Node::new().await);
    let layer = large(7, 300_000);
    let (reference, _) = put(
        &registry,
        "app:1",
        &image(&registry, "amd64", std::slice::from_ref(&layer)),
    );
    registry.fail(&blob(&layer).to_string(), [Fault::Stall(100_000)]);
    let stalled = async {
        while registry.seen(&blob(&layer).to_string()).is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        pulled = node.pull(&reference) => panic!("{pulled:?}"),
        () = stalled => {}
    }
    node.is_tidy().await;
    assert!(node.store.list().await.unwrap().is_empty());
    node.pull(&reference).await.unwrap();
}

#[tokio::test]
async fn a_tag_that_moved_is_followed_and_the_old_image_goes() {
    let (registry, node) = (FaultyRegistry::start().await, Node::new().await);
    let (old, new) = (gzip(&tar("old")), gzip(&tar("new")));
    let (reference, _) = put(&registry, "app:1", &image(&registry, "amd64", &[old]));
    let before = node.pull(&reference).await.unwrap().image;
    let (_, moved) = put(&registry, "app:1", &image(&registry, "amd64", &[new]));
    let after = node.pull(&reference).await.unwrap().image;
    assert_eq!(after.digest, moved);
    assert!(after.layers[0].join("new").exists());
    assert!(
        !before.layers[0].exists(),
        "nothing names the old image any more"
    );
}

#[tokio::test]
async fn a_layer_whose_directory_is_gone_is_unpacked_again() {
    let (registry, node) = (FaultyRegistry::start().await, Node::new().await);
    let layer = gzip(&tar("a"));
    let manifest = image(&registry, "amd64", std::slice::from_ref(&layer));
    let (reference, _) = put(&registry, "app:1", &manifest);
    let before = node.pull(&reference).await.unwrap().image;
    std::fs::remove_dir_all(before.layers[0].parent().unwrap()).unwrap();
    let store = Store::open(node.dir.path()).await.unwrap();
    let puller = RegistryPuller::new(store, Registries::new(RegistryConfig::default()));
    let request = PullRequest::new(reference, Vec::new());
    let after = puller.pull(request).await.unwrap().image;
    assert!(after.layers[0].join("a").exists());
    assert_eq!(fetched(&registry, blob(&layer)), 1);
    node.is_tidy().await;
}

#[tokio::test]
async fn an_image_that_is_here_is_not_for_everybody() {
    let (registry, node) = (FaultyRegistry::start().await, Node::new().await);
    let (reference, _) = put(
        &registry,
        "app:1",
        &image(&registry, "amd64", &[gzip(&tar("a"))]),
    );
    registry.set_auth(Auth::Basic {
        accounts: vec![("me".to_owned(), "word".to_owned())],
    });
    let pull = |password: &str| {
        let account = [Credentials::basic("me", password)];
        let (node, reference) = (&node, &reference);
        async move { node.pull_as(reference, &account).await }
    };
    pull("word").await.unwrap();
    let error = pull("wrong").await.unwrap_err().to_string();
    assert!(error.contains("authorization failed"), "{error}");
    assert!(node.pull(&reference).await.is_err());
}

#[tokio::test]
async fn what_is_no_image_is_refused_before_anything_is_fetched() {
    let (registry, node) = (FaultyRegistry::start().await, Node::new().await);
    let layer = gzip(&tar("a"));
    let mut chart = image(&registry, "amd64", std::slice::from_ref(&layer));
    chart["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json".into();
    let (chart, _) = put(&registry, "chart:1", &chart);
    let error = node.fails(&chart).await;
    assert!(
        error.contains("not a container image but an artifact"),
        "{error}"
    );
    let mut foreign = image(&registry, "amd64", std::slice::from_ref(&layer));
    foreign["layers"][0]["mediaType"] =
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip".into();
    let (foreign, _) = put(&registry, "foreign:1", &foreign);
    let error = node.fails(&foreign).await;
    assert!(error.contains("not distributed"), "{error}");
    let old = json!({"schemaVersion": 1, "mediaType": "application/vnd.docker.distribution.manifest.v1+prettyjws", "fsLayers": []});
    let (old, _) = put(&registry, "old:1", &old);
    let error = node.fails(&old).await;
    assert!(error.contains("schema 1"), "{error}");
    assert_eq!(fetched(&registry, blob(&layer)), 0);
}
