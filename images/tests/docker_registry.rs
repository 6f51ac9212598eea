//! The registry client against Debian's `docker-registry`: TLS, passwords, tokens, mirrors.
#![allow(clippy::unwrap_used, reason = "tests")]

mod layout;
mod registry;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::TryStreamExt;
use layout::Layout;
use registry::certificates::{Authority, Pair};
use registry::debian::{Access, DebianRegistry, PASSWORD, USER};
use registry::{Fault, FaultyRegistry};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use skiff_images::registry::{Registries, RegistryConfig, RegistryError, RetryPolicy};
use skiff_images::{Credentials, Digest, Reference};

/// A registry with one image of one layer, `a/b:1`.
struct Filled {
    registry: DebianRegistry,
    layer: Vec<u8>,
    manifest: Digest,
}

fn filled(tls: Option<&Pair>, access: &Access<'_>) -> Filled {
    let registry = DebianRegistry::start(tls, access);
    let (layer, manifest) = fill(&registry, access);
    Filled {
        registry,
        layer,
        manifest,
    }
}

fn fill(registry: &DebianRegistry, access: &Access<'_>) -> (Vec<u8>, Digest) {
    let numbers = (0u64..20_000).flat_map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    let content: Vec<u8> = numbers.collect();
    let layer = layout::gzip(&content);
    let layout = Layout::new();
    let blob = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", &layer);
    let manifest = layout.manifest(&[blob], &[Digest::of(&content)]);
    layout.index(&[(&manifest, "it")]);
    registry.push(&layout.path(), "it", "a/b:1", access);
    let digest = manifest["digest"].as_str().unwrap().parse().unwrap();
    (layer, digest)
}

fn config() -> RegistryConfig {
    RegistryConfig {
        retry: RetryPolicy {
            attempts: 2,
            base: Duration::from_millis(10),
            ..RetryPolicy::default()
        },
        ..RegistryConfig::default()
    }
}

/// A folder with a `hosts.toml`, beside a CA.
fn hosts(registry: &str, text: &str, ca: &str) -> (tempfile::TempDir, RegistryConfig) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(registry);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
    std::fs::write(folder.join("ca.pem"), ca).unwrap();
    let config = RegistryConfig {
        hosts_dirs: vec![dir.path().to_owned()],
        ..config()
    };
    (dir, config)
}

/// Fetches the manifest, and its layer in two parts.
async fn fetch(
    config: RegistryConfig,
    reference: &Reference,
    credentials: &[Credentials],
) -> Result<(Digest, Vec<u8>), RegistryError> {
    let repository = Registries::new(config).repository(reference, credentials);
    let accept = ["application/vnd.oci.image.manifest.v1+json"];
    let resolved = repository.resolve(&repository.target(), &accept).await?;
    let manifest = repository.manifest(&repository.target(), &accept).await?;
    assert_eq!(resolved, Some(manifest.digest));
    assert_eq!(manifest.media_type, accept[0]);
    let value: Value = serde_json::from_slice(&manifest.bytes).unwrap();
    let layer = value["layers"][0]["digest"].as_str().unwrap();
    let layer: Digest = layer.parse().unwrap();
    let size = value["layers"][0]["size"].as_u64().unwrap();
    let mut bytes = Vec::new();
    for offset in [0, size / 3] {
        let blob = repository.blob(&layer, offset).await?;
        assert_eq!((blob.offset, blob.total), (offset, Some(size)));
        bytes.truncate(usize::try_from(offset).unwrap());
        let pieces: Vec<_> = blob.stream.try_collect().await?;
        bytes.extend(pieces.concat());
    }
    Ok((manifest.digest, bytes))
}

#[tokio::test]
async fn without_tls_on_loopback() {
    let it = filled(None, &Access::Anyone);
    let reference = it.registry.reference("a/b:1");
    let (digest, layer) = fetch(config(), &reference, &[]).await.unwrap();
    assert_eq!((digest, layer), (it.manifest, it.layer));
    let by_digest = it.registry.reference(&format!("a/b@{digest}"));
    fetch(config(), &by_digest, &[]).await.unwrap();
    for absent in ["a/b:2", "b/a:1", &format!("a/b@{}", Digest::of(b"x"))] {
        let reference = it.registry.reference(absent);
        let error = fetch(config(), &reference, &[]).await.unwrap_err();
        assert!(error.is_not_found(), "{error}");
        assert_eq!(
            error.to_string(),
            format!("failed to resolve reference \"{reference}\": {reference}: not found")
        );
    }
}

#[tokio::test]
async fn with_tls_and_a_password() {
    let authority = Authority::new();
    let pair = authority.issue(&["127.0.0.1"]);
    let it = filled(Some(&pair), &Access::Password);
    let host = it.registry.host().to_owned();
    let reference = it.registry.reference("a/b:1");
    let (_dir, trusting) = hosts(&host, "ca = \"ca.pem\"", &authority.pem());

    let me = Credentials::basic(USER, PASSWORD);
    let (digest, layer) = fetch(trusting.clone(), &reference, &[me]).await.unwrap();
    assert_eq!((digest, layer), (it.manifest, it.layer));

    let wrong = Credentials::basic(USER, "wrong");
    for (credentials, who) in [
        (vec![wrong], "tried as user 'me'"),
        (vec![], "no credentials were given"),
    ] {
        let error = fetch(trusting.clone(), &reference, &credentials)
            .await
            .unwrap_err();
        assert!(error.is_denied() && !error.is_transient());
        assert_eq!(
            error.to_string(),
            format!(
                "failed to resolve reference \"{reference}\": pull access denied, repository does \
                 not exist or may require authorization: 401 Unauthorized: authorization failed \
                 ({who})"
            )
        );
    }

    let me = Credentials::basic(USER, PASSWORD);
    let error = fetch(config(), &reference, &[me]).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("x509: certificate signed by unknown authority"),
        "{error}"
    );
    let other = Authority::new();
    let (_dir, mistaken) = hosts(&host, "ca = \"ca.pem\"", &other.pem());
    assert!(fetch(mistaken, &reference, &[]).await.is_err());
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    let pair = authority.issue(&["registry.example.com"]);
    let registry = DebianRegistry::start(Some(&pair), &Access::Anyone);
    let (_dir, config) = hosts(registry.host(), "ca = \"ca.pem\"", &authority.pem());
    let error = fetch(config, &registry.reference("a/b:1"), &[])
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("x509: certificate is not valid for 127.0.0.1"),
        "{error}"
    );
}

#[tokio::test]
async fn a_mirror_while_its_registry_is_dead() {
    let authority = Authority::new();
    let pair = authority.issue(&["127.0.0.1"]);
    let it = filled(Some(&pair), &Access::Password);
    // The upstream has a name that nobody can resolve.
    let text = format!(
        "[host.\"https://{}\"]\nca = \"ca.pem\"\n",
        it.registry.host()
    );
    let (_dir, config) = hosts("registry.invalid", &text, &authority.pem());
    let me = [Credentials::basic(USER, PASSWORD)];
    let reference = "registry.invalid/a/b:1".parse().unwrap();
    let (digest, layer) = fetch(config.clone(), &reference, &me).await.unwrap();
    assert_eq!((digest, layer), (it.manifest, it.layer));
    let absent = "registry.invalid/a/b:2".parse().unwrap();
    let error = fetch(config, &absent, &me).await.unwrap_err();
    assert!(error.is_not_found() && error.is_transient());
    assert!(
        error
            .to_string()
            .contains("dial tcp: lookup registry.invalid"),
        "{error}"
    );
}

/// Signs tokens as `docker-registry` wants them: its certificate is in the header.
fn sign(signer: &Pair, actions: &[&str]) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let der: String = signer
        .certificate
        .lines()
        .filter(|line| !line.starts_with('-'))
        .collect();
    let header = json!({"alg": "ES256", "typ": "JWT", "x5c": [der]});
    let claims = json!({
        "iss": "test", "aud": "test", "sub": "me", "jti": "1",
        "iat": now - 10, "nbf": now - 10, "exp": now + 600,
        "access": [{"type": "repository", "name": "a/b", "actions": actions}],
    });
    let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
    let message = format!(
        "{}.{}",
        encode(header.to_string().as_bytes()),
        encode(claims.to_string().as_bytes())
    );
    let key = PrivateKeyDer::from_pem_slice(signer.key.as_bytes()).unwrap();
    let random = SystemRandom::new();
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.secret_der(), &random)
            .unwrap();
    let signature = pair.sign(&random, message.as_bytes()).unwrap();
    format!("{message}.{}", encode(signature.as_ref()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_tokens_of_a_server_that_it_trusts() {
    let tokens = FaultyRegistry::start().await;
    let signer = Authority::new().issue(&["signer"]);
    let realm = format!("{}/token", tokens.url());
    let access = Access::Token {
        realm: &realm,
        signer: &signer,
    };
    let registry = DebianRegistry::start(None, &access);
    let token = |actions: &[&str]| {
        let body = json!({"token": sign(&signer, actions), "expires_in": 300});
        Fault::Status(200, vec![], body.to_string())
    };
    // Pushing takes as many tokens as the pusher likes to ask for.
    tokens.fail("/token", vec![token(&["push", "pull"]); 20]);
    let filling = tokio::task::block_in_place(|| fill(&registry, &access));
    tokens.forget_faults();
    let before = tokens.seen("/token").len();

    tokens.fail("/token", [token(&["pull"])]);
    let reference = registry.reference("a/b:1");
    let me = [Credentials::basic("me", "word")];
    let (digest, layer) = fetch(config(), &reference, &me).await.unwrap();
    assert_eq!((layer, digest), filling);
    // One does for everything in a repository.
    let asked = tokens.seen("/token");
    assert_eq!(asked.len(), before + 1);
    let asked = asked.last().unwrap();
    assert_eq!(asked.header("authorization"), Some("Basic bWU6d29yZA=="));
    let query = asked.uri.query().unwrap();
    assert!(
        query.contains("service=test&scope=repository%3Aa%2Fb%3Apull"),
        "{query}"
    );

    // A token that does not do, and one that nobody trusts.
    let other = Authority::new().issue(&["other"]);
    let untrusted = json!({"token": sign(&other, &["pull"])}).to_string();
    for (fault, said) in [
        (token(&[]), "server message: insufficient_scope"),
        (
            Fault::Status(200, vec![], untrusted),
            "server message: invalid_token",
        ),
    ] {
        tokens.fail("/token", [fault]);
        let error = fetch(config(), &reference, &me).await.unwrap_err();
        assert!(error.is_denied(), "{error}");
        assert!(error.to_string().contains(said), "{error}");
    }
}

#[tokio::test]
async fn a_registry_that_is_named_is_spoken_to_without_tls() {
    let it = filled(None, &Access::Anyone);
    // By a file, and by a name.
    let text = format!("server = \"http://{}\"", it.registry.host());
    let (_dir, by_file) = hosts("example.com", &text, "");
    let reference = "example.com/a/b:1".parse().unwrap();
    assert_eq!(
        fetch(by_file, &reference, &[]).await.unwrap().0,
        it.manifest
    );
    let named = RegistryConfig {
        plain_http: vec![it.registry.host().to_owned()],
        ..config()
    };
    let reference = it.registry.reference("a/b:1");
    assert_eq!(fetch(named, &reference, &[]).await.unwrap().0, it.manifest);
}
