//! Manifests and blobs: what is fetched, refused, tried again and taken up again.

use std::time::{Duration, Instant};

use skiff_images::Digest;
use skiff_images::registry::{MANIFEST_LIMIT, Registries, RegistryConfig, Target};

use crate::registry::{Fault, FaultyRegistry};
use crate::{MANIFEST, OCI, impatient, manifest, noise, read, repository};

#[tokio::test]
async fn manifests_and_blobs_are_fetched() {
    let registry = FaultyRegistry::start().await;
    let digest = registry.put_manifest("a/b", "1", OCI, MANIFEST);
    let content = noise(100_000);
    let blob = registry.put_blob(content.clone());
    let repository = repository(&registry, &[]);

    let by_tag = repository
        .manifest(&repository.target(), &[OCI])
        .await
        .unwrap();
    assert_eq!(by_tag.bytes, MANIFEST);
    assert_eq!(by_tag.media_type, OCI);
    assert_eq!(by_tag.digest, digest);
    let by_digest = repository.manifest(&digest.into(), &[]).await.unwrap();
    assert_eq!(by_digest, by_tag);
    let resolved = repository
        .resolve(&repository.target(), &[OCI])
        .await
        .unwrap();
    assert_eq!(resolved, Some(digest));

    let whole = repository.blob(&blob, 0).await.unwrap();
    assert_eq!((whole.offset, whole.total), (0, Some(100_000)));
    assert_eq!(read(whole).await.unwrap(), content);
    let part = repository.blob(&blob, 60_000).await.unwrap();
    assert_eq!((part.offset, part.total), (60_000, Some(100_000)));
    assert_eq!(read(part).await.unwrap(), content[60_000..]);
    // What is complete already.
    let nothing = repository.blob(&blob, 100_000).await.unwrap();
    assert_eq!((nothing.offset, nothing.total), (100_000, Some(100_000)));
    assert!(read(nothing).await.unwrap().is_empty());

    let accept = registry.seen("/manifests/1");
    assert_eq!(accept[0].header("accept"), Some(OCI));
    assert!(
        accept[0]
            .header("user-agent")
            .unwrap()
            .starts_with("skiff/")
    );
    assert!(accept[0].header("authorization").is_none());
}

#[tokio::test]
async fn what_is_not_there_is_said_at_once() {
    let registry = FaultyRegistry::start().await;
    let repository = repository(&registry, &[]);
    let error = manifest(&repository).await.unwrap_err();
    let name = registry.reference("a/b:1").to_string();
    assert_eq!(
        error.to_string(),
        format!("failed to resolve reference \"{name}\": {name}: not found")
    );
    assert!(error.is_not_found() && !error.is_transient());
    let error = repository.blob(&Digest::of(b"x"), 0).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert_eq!(registry.seen("/").len(), 2);
}

#[tokio::test]
async fn altered_content_is_refused() {
    let registry = FaultyRegistry::start().await;
    let digest = registry.put_manifest("a/b", "1", OCI, MANIFEST);
    let repository = repository(&registry, &[]);
    let other = || Fault::Body("{\"schemaVersion\":3}".into());
    registry.fail("/manifests/", [other(), other(), other()]);
    let error = repository.manifest(&digest.into(), &[]).await.unwrap_err();
    assert!(
        error.to_string().contains(&format!("not {digest}")),
        "{error}"
    );
    // By tag, what the registry's own header says counts. Damage on the way passes.
    registry.fail("/manifests/", [other()]);
    assert_eq!(manifest(&repository).await.unwrap(), MANIFEST);
    assert_eq!(registry.seen("/manifests/1").len(), 2);
}

#[tokio::test]
async fn manifests_are_bounded() {
    let registry = FaultyRegistry::start().await;
    let repository = repository(&registry, &[]);
    registry.put_manifest("a/b", "1", OCI, vec![b' '; MANIFEST_LIMIT]);
    assert_eq!(manifest(&repository).await.unwrap().len(), MANIFEST_LIMIT);
    let huge = vec![b' '; MANIFEST_LIMIT + 1];
    registry.put_manifest("a/b", "1", OCI, huge.clone());
    let error = manifest(&repository).await.unwrap_err();
    assert!(
        error.to_string().contains("larger than 4194304 bytes"),
        "{error}"
    );
    // Also if the registry doesn't say how large it is.
    registry.fail("/manifests/", [Fault::Body(huge.into())]);
    let error = manifest(&repository).await.unwrap_err();
    assert!(
        error.to_string().contains("larger than 4194304 bytes"),
        "{error}"
    );
    assert!(!error.is_transient());
}

#[tokio::test]
async fn what_may_pass_is_tried_again() {
    let registry = FaultyRegistry::start().await;
    registry.put_manifest("a/b", "1", OCI, MANIFEST);
    let repository = repository(&registry, &[]);
    let short = Registries::new(impatient()).repository(&registry.reference("a/b:1"), &[]);
    for (fault, repository) in [
        (Fault::status(500), &repository),
        (Fault::status(503), &repository),
        (Fault::HangUp, &repository),
        (Fault::Cut(3), &repository),
        (Fault::too_many_requests("0"), &repository),
        (Fault::Stall(3), &short),
        (Fault::Silence, &short),
    ] {
        let before = registry.seen("/").len();
        registry.fail("/manifests/", [fault.clone(), fault.clone()]);
        let fetched = manifest(repository).await;
        assert_eq!(
            fetched.unwrap_or_else(|e| panic!("{fault:?}: {e}")),
            MANIFEST
        );
        assert_eq!(registry.seen("/").len(), before + 3, "{fault:?}");
    }
    registry.fail("/manifests/", [503; 3].map(Fault::status));
    let error = manifest(&repository).await.unwrap_err();
    let url = format!("{}/v2/a/b/manifests/1", registry.url());
    let expected = format!(
        "unexpected status from GET request to {url}: 503 Service Unavailable: unknown: it was \
         told to"
    );
    assert!(error.to_string().ends_with(&expected), "{error}");
    assert!(error.is_transient());
    // What will not pass is not.
    let before = registry.seen("/").len();
    registry.fail("/manifests/", [Fault::status(400)]);
    assert!(!manifest(&repository).await.unwrap_err().is_transient());
    assert_eq!(registry.seen("/").len(), before + 1);
}

#[tokio::test]
async fn a_registry_gets_the_time_that_it_asks_for() {
    let registry = FaultyRegistry::start().await;
    registry.put_manifest("a/b", "1", OCI, MANIFEST);
    let repository = repository(&registry, &[]);
    registry.fail("/manifests/", [Fault::too_many_requests("1")]);
    let begun = Instant::now();
    assert_eq!(manifest(&repository).await.unwrap(), MANIFEST);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    // Too long to wait for.
    registry.fail("/manifests/", [Fault::too_many_requests("3600")]);
    let error = manifest(&repository).await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(3600)));
    assert!(error.is_transient());
    assert!(
        error
            .to_string()
            .ends_with("toomanyrequests: slow down (try again after 3600s)"),
        "{error}"
    );
    assert_eq!(registry.seen("/").len(), 3);
}

#[tokio::test]
async fn a_broken_body_can_be_taken_up_again() {
    let registry = FaultyRegistry::start().await;
    let content = noise(200_000);
    let digest = registry.put_blob(content.clone());
    let patient = repository(&registry, &[]);
    let short = Registries::new(impatient()).repository(&registry.reference("a/b:1"), &[]);
    for (fault, repository) in [
        (Fault::Cut(70_000), &patient),
        (Fault::Stall(70_000), &short),
    ] {
        registry.fail("/blobs/", [fault.clone()]);
        let blob = repository.blob(&digest, 0).await.unwrap();
        let (begin, error) = read(blob).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
        assert!(
            error.to_string().starts_with(&format!(
                "failed to fetch {digest} of \"{}\": reading from ",
                registry.reference("a/b").name()
            )),
            "{error}"
        );
        assert_eq!(begin, content[..begin.len()], "{fault:?}");
        let rest = repository.blob(&digest, begin.len() as u64).await.unwrap();
        assert_eq!(rest.offset, begin.len() as u64);
        assert_eq!(read(rest).await.unwrap(), content[begin.len()..]);
    }
}

#[tokio::test]
async fn ranges_that_are_ignored_or_wrong_are_noticed() {
    let registry = FaultyRegistry::start().await;
    let content = noise(1000);
    let digest = registry.put_blob(content.clone());
    let repository = repository(&registry, &[]);
    registry.fail("/blobs/", [Fault::IgnoreRange]);
    let blob = repository.blob(&digest, 600).await.unwrap();
    assert_eq!(blob.offset, 0);
    assert_eq!(read(blob).await.unwrap(), content);
    registry.fail("/blobs/", [Fault::WrongRange]);
    let error = repository.blob(&digest, 600).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("another part than the one from byte 600"),
        "{error}"
    );
    // Beyond the end: the blob is not what the caller thinks.
    let error = repository.blob(&digest, 2000).await.unwrap_err();
    assert!(
        error.to_string().contains("416 Range Not Satisfiable"),
        "{error}"
    );
}

#[tokio::test]
async fn redirects_end() {
    let registry = FaultyRegistry::start().await;
    let repository = repository(&registry, &[]);
    registry.fail("/manifests/", vec![Fault::Redirect(registry.url()); 20]);
    let error = manifest(&repository).await.unwrap_err();
    assert!(
        error.to_string().contains("stopped after 10 redirects"),
        "{error}"
    );
    assert_eq!(registry.seen("/").len(), 11);
}

#[test]
fn targets_are_what_references_name() {
    let target = |text: &str| {
        let registries = Registries::new(RegistryConfig::default());
        registries.repository(&text.parse().unwrap(), &[]).target()
    };
    let digest = Digest::of(b"");
    assert_eq!(target("nginx"), Target::Tag("latest".to_owned()));
    assert_eq!(target("nginx:1"), Target::Tag("1".to_owned()));
    assert_eq!(target(&format!("nginx:1@{digest}")), Target::Digest(digest));
}
