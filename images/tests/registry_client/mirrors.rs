//! Where a registry's images come from: mirrors, and the files that name them.

use skiff_images::Digest;
use skiff_images::registry::Registries;

use crate::registry::{Fault, FaultyRegistry};
use crate::{MANIFEST, OCI, hosts, manifest};

#[tokio::test]
async fn mirrors_are_asked_first_and_fallen_through() {
    let (first, second) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
    let upstream = FaultyRegistry::start().await;
    let digest = upstream.put_manifest("a/b", "1", OCI, MANIFEST);
    let content = upstream.put_blob("content");
    let text = format!(
        "server = \"{}\"\n[host.\"{}\"]\ncapabilities = [\"pull\"]\n[host.\"{}/prefix\"]\n\
         override_path = true\n[host.\"{}\".header]\nx-key = \"mirror's\"\n",
        upstream.url(),
        first.url(),
        second.url(),
        first.url()
    );
    let (_dir, config) = hosts("example.com_5000_", &text);
    let reference = "example.com:5000/a/b:1".parse().unwrap();
    let repository = Registries::new(config).repository(&reference, &[]);

    assert_eq!(manifest(&repository).await.unwrap(), MANIFEST);
    // The first is not trusted with tags.
    assert_eq!(first.seen("/").len(), 0);
    let asked = second.seen("/").pop().unwrap();
    assert_eq!(asked.uri, "/prefix/a/b/manifests/1?ns=example.com%3A5000");
    assert_eq!(asked.header("x-key"), None);
    assert_eq!(upstream.seen("/").len(), 1);

    first.put_blob("content");
    repository.blob(&content, 0).await.unwrap();
    let asked = first.seen("/").pop().unwrap();
    assert_eq!(asked.header("x-key"), Some("mirror's"));
    assert_eq!(upstream.seen("/").len(), 1);

    // Whatever is wrong with a mirror, the next one is asked, and nobody waits.
    for fault in [
        Fault::status(500),
        Fault::status(429),
        Fault::HangUp,
        Fault::status(403),
    ] {
        let (before, at_first) = (upstream.seen("/").len(), first.seen("/").len());
        first.fail("/manifests/", [fault]);
        repository.manifest(&digest.into(), &[]).await.unwrap();
        assert_eq!(first.seen("/").len(), at_first + 1);
        assert_eq!(upstream.seen("/").len(), before + 1);
    }

    // All of them are named when none has it.
    let error = repository.blob(&Digest::of(b"x"), 0).await.unwrap_err();
    assert!(error.is_not_found());
    let (first, second) = (first.url(), second.url());
    let text = error.to_string();
    assert!(text.contains(&first) && text.contains(&second), "{text}");
}

#[tokio::test]
async fn a_mirror_serves_while_its_registry_is_dead() {
    let mirror = FaultyRegistry::start().await;
    mirror.put_manifest("library/nginx", "latest", OCI, MANIFEST);
    let dead = dead_port().await;
    let text = format!("server = \"http://{dead}\"\n[host.\"{}\"]\n", mirror.url());
    let (_dir, config) = hosts("docker.io", &text);
    let registries = Registries::new(config);
    let repository = registries.repository(&"nginx".parse().unwrap(), &[]);
    assert_eq!(manifest(&repository).await.unwrap(), MANIFEST);
    assert_eq!(
        mirror.seen("/").pop().unwrap().uri.query(),
        Some("ns=docker.io")
    );

    // What the mirror does not have, nobody has: both are named, and it may be there later.
    let repository = registries.repository(&"busybox".parse().unwrap(), &[]);
    let error = manifest(&repository).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "failed to resolve reference \"docker.io/library/busybox:latest\": \
             docker.io/library/busybox:latest: not found; http://{dead}: failed to do request: \
             Get \"http://{dead}/v2/library/busybox/manifests/latest?ns=docker.io\": dial tcp \
             {dead}: connect: connection refused"
        )
        .replace("?ns=docker.io", "")
    );
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_dead_mirror_is_asked_once() {
    let upstream = FaultyRegistry::start().await;
    let digest = upstream.put_manifest("a/b", "1", OCI, MANIFEST);
    let dead = dead_port().await;
    let text = format!(
        "server = \"{}\"\n[host.\"http://{dead}\"]\n",
        upstream.url()
    );
    let (_dir, config) = hosts("_default", &text);
    let reference = "example.com/a/b:1".parse().unwrap();
    let repository = Registries::new(config).repository(&reference, &[]);
    assert_eq!(manifest(&repository).await.unwrap(), MANIFEST);
    // It comes to life, but this pull has given up on it.
    let late = std::net::TcpListener::bind(&dead).unwrap();
    late.set_nonblocking(true).unwrap();
    repository.manifest(&digest.into(), &[]).await.unwrap();
    let asked = late.accept();
    assert_eq!(asked.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

/// An address where nobody listens.
async fn dead_port() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

#[tokio::test]
async fn a_configuration_that_is_wrong_fails_and_is_named() {
    let (dir, config) = hosts("example.com", "server = [");
    let reference = "example.com/a/b:1".parse().unwrap();
    let repository = Registries::new(config).repository(&reference, &[]);
    let error = manifest(&repository).await.unwrap_err();
    let file = dir.path().join("example.com/hosts.toml");
    assert!(
        error.to_string().contains(file.to_str().unwrap()),
        "{error}"
    );
    assert!(!error.is_transient());
    let nobody = "capabilities = [\"pull\"]\nserver = \"https://example.com\"";
    let (_dir, config) = hosts("example.com", nobody);
    let repository = Registries::new(config).repository(&reference, &[]);
    let error = manifest(&repository).await.unwrap_err();
    assert!(error.to_string().contains("capabilities"), "{error}");
}
