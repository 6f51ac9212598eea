//! The registry client against a registry that misbehaves.
#![allow(clippy::unwrap_used, reason = "tests")]

mod registry;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::TryStreamExt;
use registry::certificates::Authority;
use registry::proxy::Proxy;
use registry::{Auth, Fault, FaultyRegistry};
use skiff_images::registry::{
    Blob, MANIFEST_LIMIT, Registries, RegistryConfig, RegistryError, Repository, RetryPolicy,
    Target, Timeouts,
};
use skiff_images::{Credentials, Digest};

const MANIFEST: &str = r#"{"schemaVersion":2}"#;
const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

/// Tries again soon, and waits for long: the machine may be busy.
fn config() -> RegistryConfig {
    RegistryConfig {
        timeouts: Timeouts {
            connect: Duration::from_secs(20),
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
    }
}

/// For registries that say nothing.
fn impatient() -> RegistryConfig {
    RegistryConfig {
        timeouts: Timeouts {
            connect: Duration::from_secs(1),
            headers: Duration::from_secs(1),
            body: Duration::from_secs(1),
        },
        ..config()
    }
}

fn repository(registry: &FaultyRegistry, credentials: &[Credentials]) -> Repository {
    Registries::new(config()).repository(&registry.reference("a/b:1"), credentials)
}

async fn manifest(repository: &Repository) -> Result<Bytes, RegistryError> {
    let manifest = repository.manifest(&repository.target(), &[OCI]).await;
    manifest.map(|manifest| manifest.bytes)
}

async fn read(blob: Blob) -> Result<Vec<u8>, (Vec<u8>, RegistryError)> {
    let Blob { mut stream, .. } = blob;
    let mut bytes = Vec::new();
    loop {
        match stream.try_next().await {
            Ok(Some(piece)) => bytes.extend_from_slice(&piece),
            Ok(None) => return Ok(bytes),
            Err(error) => return Err((bytes, error)),
        }
    }
}

/// So many bytes, no two runs of them alike.
fn noise(length: usize) -> Bytes {
    let numbers = (0u64..).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    numbers.take(length).collect::<Vec<u8>>().into()
}

fn account(name: &str) -> Credentials {
    Credentials::basic(name, "word")
}

fn accounts(name: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), "word".to_owned())]
}

fn bearer(realm: &FaultyRegistry, accounts: Vec<(String, String)>) -> Auth {
    Auth::Bearer {
        realm: realm.url(),
        accounts,
        identity_token: Some("identity".to_owned()),
    }
}

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
async fn credentials_do_not_follow_redirects_elsewhere() {
    let (registry, cdn) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
    registry.set_auth(Auth::Basic {
        accounts: accounts("me"),
    });
    let digest = registry.put_blob("content");
    cdn.put_blob("content");
    let repository = repository(&registry, &[account("me")]);
    // Once for the request without, once for the one with the account.
    registry.fail("/blobs/", [Fault::status(503)]);
    repository.blob(&digest, 0).await.unwrap();
    registry.fail("/blobs/", [Fault::Redirect(cdn.url())]);
    let blob = repository.blob(&digest, 3).await.unwrap();
    assert_eq!(read(blob).await.unwrap(), b"tent");
    let asked = registry.seen("/blobs/").pop().unwrap();
    assert!(asked.header("authorization").is_some());
    let led = cdn.seen("/blobs/").pop().unwrap();
    assert!(led.header("authorization").is_none());
    assert_eq!(led.header("range"), Some("bytes=3-"));
    assert_eq!(led.uri.query(), Some("signature=secret"));

    // A signature is not shown to anybody.
    registry.fail("/blobs/", [Fault::Redirect(cdn.url())]);
    cdn.fail("/blobs/", [Fault::status(403)]);
    let error = repository.blob(&digest, 0).await.unwrap_err().to_string();
    assert!(
        error.contains(&cdn.url()) && error.contains("403 Forbidden"),
        "{error}"
    );
    assert!(!error.contains("secret"), "{error}");

    // Nor is a server that asks for our account there given it.
    cdn.set_auth(Auth::Basic {
        accounts: accounts("me"),
    });
    registry.fail("/blobs/", [Fault::Redirect(cdn.url())]);
    let error = repository.blob(&digest, 0).await.unwrap_err().to_string();
    assert!(error.contains("401 Unauthorized"), "{error}");
    assert!(
        cdn.seen("/")
            .iter()
            .all(|seen| seen.header("authorization").is_none())
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

#[tokio::test]
async fn a_password_is_shown_when_it_is_asked_for() {
    let registry = FaultyRegistry::start().await;
    registry.put_manifest("a/b", "1", OCI, MANIFEST);
    registry.set_auth(Auth::Basic {
        accounts: accounts("me"),
    });
    let repository = repository(&registry, &[account("me")]);
    assert_eq!(manifest(&repository).await.unwrap(), MANIFEST);
    assert_eq!(manifest(&repository).await.unwrap(), MANIFEST);
    let shown: Vec<_> = registry
        .seen("/")
        .iter()
        .map(|s| s.header("authorization").is_some())
        .collect();
    // The first time after being asked, then at once.
    assert_eq!(shown, [false, true, true]);
}

#[tokio::test]
async fn refusals_say_as_whom() {
    let registry = FaultyRegistry::start().await;
    registry.put_manifest("a/b", "1", OCI, MANIFEST);
    for (auth, said, said_nobody) in [
        (
            Auth::Basic {
                accounts: accounts("me"),
            },
            "unauthorized: authentication required",
            "unauthorized: authentication required",
        ),
        (
            bearer(&registry, accounts("me")),
            "failed to authorize: failed to fetch oauth token: unexpected status from GET request \
             to {url}/token: 401 Unauthorized: incorrect username or password",
            "failed to authorize: failed to fetch anonymous token: unexpected status from GET \
             request to {url}/token: 401 Unauthorized: incorrect username or password",
        ),
    ] {
        registry.set_auth(auth);
        let name = registry.reference("a/b:1").to_string();
        for (credentials, said, who) in [
            (vec![account("you")], said, "tried as user 'you'"),
            (vec![], said_nobody, "no credentials were given"),
        ] {
            let error = manifest(&repository(&registry, &credentials))
                .await
                .unwrap_err();
            let said = said.replace("{url}", &registry.url());
            assert_eq!(
                error.to_string(),
                format!(
                    "failed to resolve reference \"{name}\": pull access denied, repository does \
                     not exist or may require authorization: {said}: authorization failed ({who})"
                )
            );
            assert!(error.is_denied() && !error.is_transient());
        }
    }
}

#[tokio::test]
async fn accounts_are_tried_in_order() {
    let registry = FaultyRegistry::start().await;
    let digest = registry.put_manifest("a/b", "1", OCI, MANIFEST);
    for auth in [
        Auth::Basic {
            accounts: accounts("third"),
        },
        bearer(&registry, accounts("third")),
    ] {
        registry.set_auth(auth);
        let credentials = ["first", "second", "third", "fourth"].map(account);
        let repository = repository(&registry, &credentials);
        assert_eq!(manifest(&repository).await.unwrap(), MANIFEST);
        // The one that was let in goes first from then on.
        let before = registry.seen("/").len();
        repository.manifest(&digest.into(), &[]).await.unwrap();
        assert_eq!(registry.seen("/").len(), before + 1);
    }
}

#[tokio::test]
async fn tokens_are_fetched_once_and_again_when_they_are_worthless() {
    let (registry, realm) = (FaultyRegistry::start().await, FaultyRegistry::start().await);
    let digest = registry.put_manifest("a/b", "1", OCI, MANIFEST);
    // The registry is its own token server here, by another name: its tokens are its own.
    registry.set_auth(bearer(&registry, accounts("me")));
    let registries = Registries::new(config());
    let reference = registry.reference("a/b:1");
    for _ in 0..2 {
        // Another pull: what was learnt is not lost.
        let repository = registries.repository(&reference, &[account("me")]);
        assert_eq!(manifest(&repository).await.unwrap(), MANIFEST);
        repository.manifest(&digest.into(), &[]).await.unwrap();
    }
    assert_eq!(registry.tokens_given(), 1);
    let asked = registry.seen("/token").pop().unwrap();
    let query: Vec<(String, String)> =
        form_urlencoded::parse(asked.uri.query().unwrap().as_bytes())
            .into_owned()
            .collect();
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(
        query,
        [
            pair("service", "faulty"),
            pair("scope", "repository:a/b:pull"),
            pair("account", "me")
        ]
    );

    registry.forget_tokens();
    let repository = registries.repository(&reference, &[account("me")]);
    assert_eq!(manifest(&repository).await.unwrap(), MANIFEST);
    assert_eq!(registry.tokens_given(), 2);

    // Another account does not get this one's token.
    let stranger = registries.repository(&reference, &[account("you")]);
    assert!(manifest(&stranger).await.unwrap_err().is_denied());
    // And a token server whose tokens are worth nothing is asked once, not for ever.
    realm.set_auth(bearer(&realm, vec![]));
    registry.set_auth(bearer(&realm, vec![]));
    registry.forget_tokens();
    assert!(manifest(&repository).await.unwrap_err().is_denied());
    assert_eq!(realm.tokens_given(), 1);
}

#[tokio::test]
async fn anybody_gets_a_token_for_what_is_public() {
    let registry = FaultyRegistry::start().await;
    registry.put_manifest("a/b", "1", OCI, MANIFEST);
    registry.set_auth(bearer(&registry, vec![]));
    assert_eq!(
        manifest(&repository(&registry, &[])).await.unwrap(),
        MANIFEST
    );
    assert!(registry.seen("/token")[0].header("authorization").is_none());
}

#[tokio::test]
async fn an_identity_token_is_exchanged() {
    let registry = FaultyRegistry::start().await;
    registry.put_manifest("a/b", "1", OCI, MANIFEST);
    registry.set_auth(bearer(&registry, accounts("me")));
    let token = Credentials::IdentityToken("identity".to_owned());
    assert_eq!(
        manifest(&repository(&registry, &[token])).await.unwrap(),
        MANIFEST
    );
    let asked = registry.seen("/token").pop().unwrap();
    let form: Vec<(String, String)> = form_urlencoded::parse(&asked.body).into_owned().collect();
    for (key, value) in [
        ("grant_type", "refresh_token"),
        ("refresh_token", "identity"),
        ("service", "faulty"),
        ("scope", "repository:a/b:pull"),
    ] {
        assert!(
            form.contains(&(key.to_owned(), value.to_owned())),
            "{form:?}"
        );
    }
    let other = Credentials::IdentityToken("other".to_owned());
    assert!(
        manifest(&repository(&registry, &[other]))
            .await
            .unwrap_err()
            .is_denied()
    );
}

#[tokio::test]
async fn a_token_server_may_fail_for_a_moment() {
    let registry = FaultyRegistry::start().await;
    registry.put_manifest("a/b", "1", OCI, MANIFEST);
    registry.set_auth(bearer(&registry, vec![]));
    registry.fail("/token", [Fault::status(502)]);
    assert_eq!(
        manifest(&repository(&registry, &[])).await.unwrap(),
        MANIFEST
    );
    for nonsense in ["", "[]", "{\"token\":\"\"}", "{\"token\":\"a\\nb\"}"] {
        registry.forget_tokens();
        let fault = Fault::Status(200, vec![], nonsense.to_owned());
        registry.fail("/token", [fault]);
        let error = manifest(&repository(&registry, &[])).await.unwrap_err();
        assert!(
            error.to_string().contains("failed to authorize: "),
            "{error}"
        );
    }
}

/// A folder of `hosts.toml` for one registry, or for all (`_default`).
fn hosts(registry: &str, text: &str) -> (tempfile::TempDir, RegistryConfig) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(registry);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
    let config = RegistryConfig {
        hosts_dirs: vec![dir.path().to_owned()],
        ..config()
    };
    (dir, config)
}

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

async fn tls_registry(authority: &Authority, clients_show_certificates: bool) -> FaultyRegistry {
    let acceptor = authority.acceptor(clients_show_certificates);
    let registry = FaultyRegistry::start_tls(acceptor).await;
    registry.put_manifest("a/b", "1", OCI, MANIFEST);
    registry
}

fn hosts_of(
    registry: &FaultyRegistry,
    text: &str,
    files: &[(&str, &str)],
) -> (tempfile::TempDir, RegistryConfig) {
    let (dir, config) = hosts(&registry.host(), text);
    for (name, content) in files {
        write(&dir.path().join(registry.host()), name, content);
    }
    (dir, config)
}

fn write(dir: &Path, name: &str, content: &str) {
    std::fs::write(dir.join(name), content).unwrap();
}

async fn fetched(
    registry: &FaultyRegistry,
    config: RegistryConfig,
) -> Result<Bytes, RegistryError> {
    let registries = Registries::new(config);
    manifest(&registries.repository(&registry.reference("a/b:1"), &[])).await
}

#[tokio::test]
async fn a_registry_is_who_its_certificate_says() {
    let (authority, other) = (Authority::new(), Authority::new());
    let registry = tls_registry(&authority, false).await;
    let error = fetched(&registry, config()).await.unwrap_err();
    let expected = format!(
        "failed to do request: Get \"{}/v2/a/b/manifests/1\": tls: failed to verify certificate: \
         x509: certificate signed by unknown authority (name its CA in hosts.toml with 'ca')",
        registry.url()
    );
    assert!(error.to_string().ends_with(&expected), "{error}");
    assert!(!error.is_transient());
    // Not even on loopback is it asked without TLS after that.
    assert!(registry.seen("/").is_empty());

    let (_dir, own) = hosts_of(
        &registry,
        "ca = \"ca.pem\"",
        &[("ca.pem", &authority.pem())],
    );
    assert_eq!(fetched(&registry, own).await.unwrap(), MANIFEST);
    let (_dir, wrong) = hosts_of(&registry, "ca = \"ca.pem\"", &[("ca.pem", &other.pem())]);
    assert!(fetched(&registry, wrong).await.is_err());
    let (_dir, skip) = hosts_of(&registry, "skip_verify = true", &[]);
    assert_eq!(fetched(&registry, skip).await.unwrap(), MANIFEST);
    let (dir, absent) = hosts_of(&registry, "ca = \"ca.pem\"", &[]);
    let error = fetched(&registry, absent).await.unwrap_err();
    let file = dir.path().join(registry.host()).join("ca.pem");
    assert!(
        error
            .to_string()
            .contains(&format!("cannot read CA certificate {}", file.display())),
        "{error}"
    );

    let ca = dir.path().join("extra.pem");
    std::fs::write(&ca, authority.pem()).unwrap();
    let extra = RegistryConfig {
        extra_cas: vec![ca],
        ..config()
    };
    assert_eq!(fetched(&registry, extra).await.unwrap(), MANIFEST);
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let authority = Authority::new();
    let registry = tls_registry(&authority, true).await;
    let ca = ("ca.crt", authority.pem());
    let (_dir, without) = hosts_of(&registry, "ca = \"ca.crt\"", &[(ca.0, &ca.1)]);
    assert!(fetched(&registry, without).await.is_err());
    let pair = authority.issue(&["client"]);
    let both = format!("{}{}", pair.certificate, pair.key);
    let files = [
        (ca.0, ca.1.as_str()),
        ("me.cert", &pair.certificate),
        ("me.key", &pair.key),
        ("both.pem", &both),
    ];
    for text in [
        "ca = \"ca.crt\"\nclient = [[\"me.cert\", \"me.key\"]]",
        "ca = \"ca.crt\"\nclient = \"both.pem\"",
        // Docker's layout: the files alone.
        "",
    ] {
        let (_dir, config) = hosts_of(&registry, text, &files);
        let fetched = fetched(&registry, config).await;
        assert_eq!(fetched.unwrap_or_else(|e| panic!("{text}: {e}")), MANIFEST);
    }
}

#[tokio::test]
async fn tls_is_not_lost_on_the_way() {
    let authority = Authority::new();
    let registry = tls_registry(&authority, false).await;
    let (_dir, config) = hosts_of(&registry, "skip_verify = true", &[]);
    for target in ["http://example.com", "http://10.0.0.1:5000"] {
        registry.fail("/manifests/", [Fault::Redirect(target.to_owned())]);
        let error = fetched(&registry, config.clone()).await.unwrap_err();
        assert!(error.to_string().contains("it does not use TLS"), "{error}");
        registry.set_auth(Auth::Bearer {
            realm: target.to_owned(),
            accounts: accounts("me"),
            identity_token: None,
        });
        let registries = Registries::new(config.clone());
        let repository = registries.repository(&registry.reference("a/b:1"), &[account("me")]);
        let error = manifest(&repository).await.unwrap_err();
        assert!(error.to_string().contains("does not use TLS"), "{error}");
        registry.set_auth(Auth::Nobody);
    }
    // A registry that was named may be asked without.
    let plain = FaultyRegistry::start().await;
    plain.put_manifest("a/b", "1", OCI, MANIFEST);
    registry.fail("/manifests/", [Fault::Redirect(plain.url())]);
    assert_eq!(fetched(&registry, config).await.unwrap(), MANIFEST);
}

#[tokio::test]
async fn a_registry_elsewhere_is_not_asked_without_tls() {
    // The name is loopback's only by its address, so nothing but the name counts.
    let registry = FaultyRegistry::start().await;
    registry.put_manifest("a/b", "1", OCI, MANIFEST);
    let (_dir, config) = hosts(
        "example.com",
        &format!("server = \"https://{}\"", registry.host()),
    );
    let reference = "example.com/a/b:1".parse().unwrap();
    let repository = Registries::new(config).repository(&reference, &[]);
    let error = manifest(&repository).await.unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("http: server gave HTTP response to HTTPS client"),
        "{error}"
    );
    assert!(registry.seen("/").is_empty());
}

#[tokio::test]
async fn tls_passes_through_a_proxy() {
    let authority = Authority::new();
    let registry = tls_registry(&authority, false).await;
    let proxy = Proxy::start("proxy-authorization: Basic bWU6d29yZA==").await;
    for (account, expected) in [("me:word@", Ok(())), ("me:wrong@", Err(()))] {
        let text = format!(
            "ca = \"ca.pem\"\nproxy = \"http://{account}{}\"",
            proxy.address
        );
        let (_dir, config) = hosts_of(&registry, &text, &[("ca.pem", &authority.pem())]);
        let fetched = fetched(&registry, config).await;
        assert_eq!(fetched.as_ref().map(|_| ()).map_err(|_| ()), expected);
        if let Err(error) = fetched {
            let text = error.to_string();
            let expected = "proxyconnect 127.0.0.1: tunnel error: proxy authorization required";
            assert!(text.ends_with(expected), "{text}");
            assert!(!text.contains("wrong"), "{text}");
        }
    }
    let connect = format!("CONNECT {} HTTP/1.1", registry.host());
    assert!(proxy.heads()[0].starts_with(&connect));
    // Nothing but the proxy's own account is said where others can read it.
    assert!(!proxy.heads()[0].contains("manifests"));
}

#[tokio::test]
async fn a_proxy_is_asked_for_what_is_behind_it() {
    let registry = FaultyRegistry::start().await;
    // Without TLS, a proxy gets the request itself: this registry plays one.
    let proxy = FaultyRegistry::start().await;
    proxy.put_manifest("a/b", "1", OCI, MANIFEST);
    let text = format!(
        "server = \"{}\"\nproxy = \"http://me:word@{}\"",
        registry.url(),
        proxy.host()
    );
    let (_dir, config) = hosts("example.com", &text);
    let reference = "example.com/a/b:1".parse().unwrap();
    let repository = Registries::new(config).repository(&reference, &[]);
    assert_eq!(manifest(&repository).await.unwrap(), MANIFEST);
    let asked = proxy.seen("/").pop().unwrap();
    assert_eq!(asked.uri.authority().unwrap().as_str(), registry.host());
    assert_eq!(
        asked.header("proxy-authorization"),
        Some("Basic bWU6d29yZA==")
    );
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
