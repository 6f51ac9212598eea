//! Who asks: accounts, tokens, and to whom they are shown.

use skiff_images::Credentials;
use skiff_images::registry::Registries;

use crate::registry::{Auth, Fault, FaultyRegistry};
use crate::{MANIFEST, OCI, account, accounts, bearer, config, manifest, read, repository};

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
