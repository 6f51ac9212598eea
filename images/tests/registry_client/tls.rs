//! Registries by TLS, and through proxies.

use std::path::Path;

use bytes::Bytes;
use skiff_images::registry::{Registries, RegistryConfig, RegistryError};

use crate::registry::certificates::Authority;
use crate::registry::proxy::Proxy;
use crate::registry::{Auth, Fault, FaultyRegistry};
use crate::{MANIFEST, OCI, account, accounts, config, hosts, manifest};

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
