//! Proving who asks: basic credentials, and tokens from the server that a registry names.
//!
//! Nothing is shown before a registry asks for it with a 401; what satisfied it then is shown at
//! once the next time. Tokens are kept for a registry, an account and a scope until they expire.
//! (The token protocol: <https://distribution.github.io/distribution/spec/auth/token/>.)

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use form_urlencoded::Serializer;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::uri::Scheme;
use http::{Method, StatusCode, Uri};
use parking_lot::Mutex;
use serde::Deserialize;

use super::challenge::{Bearer, Challenge};
use super::error::{Attempt, Failure, clean};
use super::transport::{Answer, Ask, Transport, show};
use crate::{Credentials, Digest};

/// A token server's answer is a token and little more.
const TOKEN_LIMIT: usize = 1024 * 1024;
/// How long a token is good for if nobody says; also the least, as the protocol has it.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// A token that expires sooner than this is as good as expired.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);

/// What was learnt about proving who asks.
#[derive(Default)]
pub(super) struct Authorizer {
    tokens: Mutex<HashMap<TokenKey, Token>>,
    /// Servers (host and port) that want a name and a password with each request.
    basic: Mutex<HashSet<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    server: String,
    /// Not the account itself: it need not be kept.
    account: Option<Digest>,
    scope: String,
}

struct Token {
    header: HeaderValue,
    expires: Instant,
}

/// For whom and for what a server is asked.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) account: Option<&'a Credentials>,
    pub(super) scope: &'a str,
}

impl Asker<'_> {
    pub(super) fn attempt(&self) -> Attempt {
        match self.account {
            None => Attempt::Anonymous,
            Some(Credentials::Basic { username, .. }) => Attempt::User(username.clone()),
            Some(Credentials::IdentityToken(_)) => Attempt::IdentityToken,
        }
    }

    fn key(&self, server: &Uri) -> TokenKey {
        TokenKey {
            server: authority(server),
            account: self.account.map(Credentials::fingerprint),
            scope: self.scope.to_owned(),
        }
    }
}

impl Authorizer {
    /// What to show a server before it asks: what satisfied it before.
    pub(super) fn known(&self, server: &Uri, asker: Asker<'_>) -> Option<HeaderValue> {
        let soon = Instant::now() + TOKEN_MARGIN;
        let tokens = self.tokens.lock();
        let token = tokens.get(&asker.key(server));
        if let Some(token) = token.filter(|token| token.expires > soon) {
            return Some(token.header.clone());
        }
        drop(tokens);
        match asker.account {
            Some(account) if self.basic.lock().contains(&authority(server)) => {
                basic_header(account)
            }
            _ => None,
        }
    }

    /// What to show a server that answered 401 with these challenges, or `None` if nothing that
    /// we have would do. Replaces what was known before.
    pub(super) async fn answer(
        &self,
        transport: &Transport,
        server: &Uri,
        challenges: &[Challenge],
        asker: Asker<'_>,
    ) -> Result<Option<HeaderValue>, Failure> {
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer),
            Challenge::Basic => None,
        });
        if let Some(bearer) = bearer {
            let token = fetch_token(transport, server, bearer, asker).await?;
            let header = token.header.clone();
            let mut tokens = self.tokens.lock();
            let now = Instant::now();
            tokens.retain(|_, token| token.expires > now);
            tokens.insert(asker.key(server), token);
            return Ok(Some(header));
        }
        if !challenges.contains(&Challenge::Basic) {
            return Ok(None);
        }
        let header = asker.account.and_then(basic_header);
        if header.is_some() {
            self.basic.lock().insert(authority(server));
        }
        Ok(header)
    }
}

/// Host and port. Whether there is TLS makes no difference to who asks: a server that is spoken
/// to in both ways is one that fell back, and it has to be recognised before it does.
fn authority(url: &Uri) -> String {
    let authority = url.authority().map_or("", |authority| authority.as_str());
    authority.to_owned()
}

fn basic_header(account: &Credentials) -> Option<HeaderValue> {
    match account {
        Credentials::Basic { username, password } => secret_header(format!(
            "Basic {}",
            STANDARD.encode(format!("{username}:{password}"))
        )),
        Credentials::IdentityToken(_) => None,
    }
}

fn secret_header(text: String) -> Option<HeaderValue> {
    let mut header = HeaderValue::try_from(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}

async fn fetch_token(
    transport: &Transport,
    server: &Uri,
    bearer: &Bearer,
    asker: Asker<'_>,
) -> Result<Token, Failure> {
    let realm = realm_url(transport, server, bearer)?;
    let scope = bearer.scope.as_deref().unwrap_or(asker.scope);
    let ask = match asker.account {
        Some(Credentials::IdentityToken(token)) => exchange_request(realm, bearer, scope, token),
        account => token_request(realm, bearer, scope, account)?,
    };
    let answer = transport.send(ask).await?;
    match answer.status() {
        StatusCode::OK => read_token(answer).await,
        StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            let kind = match asker.account {
                Some(_) => "oauth",
                None => "anonymous",
            };
            let refused = answer.into_failure().await;
            Err(Failure::Denied {
                said: format!("failed to authorize: failed to fetch {kind} token: {refused}"),
                who: asker.attempt(),
            })
        }
        _ => Err(answer.into_failure().await),
    }
}

/// Where tokens are given. Passwords go there: it has to use TLS, if the registry does.
fn realm_url(transport: &Transport, server: &Uri, bearer: &Bearer) -> Result<Uri, Failure> {
    let fail = |reason: &str| Failure::Token {
        url: show(server),
        reason: format!("its token server {reason}"),
    };
    let realm: Uri = bearer
        .realm
        .parse()
        .map_err(|_| fail(&format!("'{}' has no valid URL", clean(&bearer.realm, 128))))?;
    let authority = realm.authority().ok_or_else(|| fail("has no host name"))?;
    let plain_is_fine =
        || server.scheme() == Some(&Scheme::HTTP) || transport.plain_http.allows(authority);
    match realm.scheme_str() {
        Some("https") => Ok(realm),
        Some("http") if plain_is_fine() => Ok(realm),
        Some("http") => Err(fail(&format!("{} does not use TLS", show(&realm)))),
        _ => Err(fail("has no valid URL")),
    }
}

/// A token for a name and a password, or for anybody.
fn token_request(
    realm: Uri,
    bearer: &Bearer,
    scope: &str,
    account: Option<&Credentials>,
) -> Result<Ask, Failure> {
    let mut query = Serializer::new(String::new());
    if let Some(service) = &bearer.service {
        query.append_pair("service", service);
    }
    for scope in scope.split(' ').filter(|scope| !scope.is_empty()) {
        query.append_pair("scope", scope);
    }
    let mut private = HeaderMap::new();
    if let Some(Credentials::Basic { username, .. }) = account {
        query.append_pair("account", username);
    }
    if let Some(header) = account.and_then(basic_header) {
        private.insert(AUTHORIZATION, header);
    }
    let text = realm.to_string();
    let separator = if realm.query().is_some() { '&' } else { '?' };
    let url = format!("{text}{separator}{}", query.finish());
    let url = url.parse().map_err(|_| Failure::Token {
        url: show(&realm),
        reason: "its token server has no valid URL".to_owned(),
    })?;
    Ok(Ask {
        method: Method::GET,
        url,
        headers: HeaderMap::new(),
        private,
        body: Bytes::new(),
    })
}

/// A token for an identity (refresh) token, by OAuth2.
fn exchange_request(realm: Uri, bearer: &Bearer, scope: &str, token: &str) -> Ask {
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token");
    form.append_pair("service", bearer.service.as_deref().unwrap_or_default());
    form.append_pair("client_id", "skiff");
    form.append_pair("scope", scope);
    form.append_pair("refresh_token", token);
    let kind = HeaderValue::from_static("application/x-www-form-urlencoded");
    Ask {
        method: Method::POST,
        url: realm,
        headers: HeaderMap::from_iter([(CONTENT_TYPE, kind)]),
        private: HeaderMap::new(),
        body: form.finish().into(),
    }
}

async fn read_token(answer: Answer) -> Result<Token, Failure> {
    #[derive(Deserialize)]
    struct Body {
        token: Option<String>,
        access_token: Option<String>,
        /// Seconds.
        expires_in: Option<u64>,
    }
    let url = show(&answer.url);
    let fail = |reason: &str| Failure::Token {
        url: url.clone(),
        reason: reason.to_owned(),
    };
    let body = answer.read(TOKEN_LIMIT).await?;
    let body = body.ok_or_else(|| fail("its answer is larger than a token can be"))?;
    let body: Body =
        serde_json::from_slice(&body).map_err(|_| fail("its answer is not a token in JSON"))?;
    let mut given = [body.access_token, body.token].into_iter().flatten();
    let token = given.find(|token| !token.is_empty());
    let token = token.ok_or_else(|| fail("there is no token in its answer"))?;
    let life = body.expires_in.map_or(TOKEN_LIFE, Duration::from_secs);
    // A year is for ever, and can be added to any instant.
    let life = life.clamp(TOKEN_LIFE, Duration::from_secs(365 * 24 * 3600));
    Ok(Token {
        header: secret_header(format!("Bearer {token}"))
            .ok_or_else(|| fail("its token has characters that no header may have"))?,
        expires: Instant::now() + life,
    })
}
