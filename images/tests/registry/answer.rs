//! What the faulty registry answers: the distribution API's reading half, a token server, faults.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::{Method, Response, StatusCode};
use http_body_util::StreamBody;
use hyper::body::Frame;
use skiff_images::Digest;

use super::{Auth, Fault, Seen, State};

/// Ends a connection.
#[derive(Debug, thiserror::Error)]
#[error("the connection is cut")]
pub(crate) struct HangUp;

type Body = StreamBody<BoxStream<'static, Result<Frame<Bytes>, HangUp>>>;
pub(crate) type Answer = Response<Body>;

pub(super) fn answer(
    state: &mut State,
    seen: &Seen,
    fault: Option<Fault>,
) -> Result<Answer, HangUp> {
    match &fault {
        Some(Fault::HangUp) => return Err(HangUp),
        Some(Fault::Status(status, headers, body)) => {
            let mut answer = Response::builder().status(*status);
            for (name, value) in headers {
                answer = answer.header(*name, value);
            }
            return Ok(answer.body(whole(body.clone().into())).unwrap());
        }
        Some(Fault::Redirect(base)) => {
            let location = format!("{base}{}?signature=secret", seen.uri.path());
            let answer = Response::builder().status(307).header("location", location);
            return Ok(answer.body(whole(Bytes::new())).unwrap());
        }
        _ => {}
    }
    if seen.uri.path() == "/token" {
        return Ok(token(state, seen));
    }
    if let Some(challenge) = challenge(state, seen) {
        let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        let answer = Response::builder()
            .status(401)
            .header("www-authenticate", challenge);
        return Ok(answer.body(whole(body.into())).unwrap());
    }
    Ok(content(state, seen, fault))
}

fn content(state: &State, seen: &Seen, fault: Option<Fault>) -> Answer {
    let path = seen.uri.path().strip_prefix("/v2/").unwrap_or_default();
    let mut parts = path.rsplitn(3, '/');
    let (name, kind, repository) = (parts.next(), parts.next(), parts.next());
    let (Some(name), Some(kind), Some(repository)) = (name, kind, repository) else {
        return not_found("NAME_UNKNOWN");
    };
    let digest = match name.parse::<Digest>() {
        Ok(digest) => Some(digest),
        Err(_) => {
            let key = (repository.to_owned(), name.to_owned());
            state.tags.get(&key).copied()
        }
    };
    let found = digest.and_then(|digest| Some((digest, state.content.get(&digest)?)));
    let Some((digest, (media_type, bytes))) = found else {
        return not_found(match kind {
            "manifests" => "MANIFEST_UNKNOWN",
            _ => "BLOB_UNKNOWN",
        });
    };
    let answer = Response::builder()
        .header("content-type", media_type)
        .header("docker-content-digest", digest.to_string());
    let total = bytes.len();
    let range = seen.header("range").filter(|_| kind == "blobs");
    let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
    let start: Option<usize> = start.map(|start| start.parse().unwrap());
    let (answer, bytes) = match (start, &fault) {
        (None, _) | (_, Some(Fault::IgnoreRange)) => (answer, bytes.clone()),
        (Some(start), _) if start >= total => {
            let answer = answer
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .header("content-range", format!("bytes */{total}"));
            return answer.body(whole(Bytes::new())).unwrap();
        }
        (Some(start), fault) => {
            let start = match fault {
                Some(Fault::WrongRange) => start + 1,
                _ => start,
            };
            let range = format!("bytes {start}-{}/{total}", total - 1);
            let answer = answer
                .status(StatusCode::PARTIAL_CONTENT)
                .header("content-range", range);
            (answer, bytes.slice(start..))
        }
    };
    if seen.method == Method::HEAD {
        let answer = answer.header("content-length", bytes.len());
        return answer.body(whole(Bytes::new())).unwrap();
    }
    let (answer, body) = match fault {
        Some(Fault::Body(other)) => (answer, whole(other)),
        Some(Fault::Cut(after)) => {
            let rest = stream::once(async { Err(HangUp) }).boxed();
            let answer = answer.header("content-length", bytes.len());
            (answer, followed(bytes.slice(..after), rest))
        }
        Some(Fault::Stall(after)) => {
            let answer = answer.header("content-length", bytes.len());
            (
                answer,
                followed(bytes.slice(..after), stream::pending().boxed()),
            )
        }
        _ => (answer.header("content-length", bytes.len()), whole(bytes)),
    };
    answer.body(body).unwrap()
}

fn not_found(code: &str) -> Answer {
    let body = format!(r#"{{"errors":[{{"code":"{code}","message":"it is not here"}}]}}"#);
    let answer = Response::builder().status(404);
    answer.body(whole(body.into())).unwrap()
}

fn whole(bytes: Bytes) -> Body {
    followed(bytes, stream::empty().boxed())
}

/// Some bytes in small pieces, then something else.
fn followed(bytes: Bytes, rest: BoxStream<'static, Result<Frame<Bytes>, HangUp>>) -> Body {
    let pieces: Vec<Bytes> = (0..bytes.len())
        .step_by(8192)
        .map(|start| bytes.slice(start..bytes.len().min(start + 8192)))
        .collect();
    let pieces = stream::iter(pieces).map(|piece| Ok(Frame::data(piece)));
    // What was written has to be on its way before the connection is cut.
    let pause = stream::once(tokio::task::yield_now()).filter_map(|()| async { None });
    StreamBody::new(pieces.chain(pause).chain(rest).boxed())
}

/// What the registry wants to see, unless it saw it.
fn challenge(state: &State, seen: &Seen) -> Option<String> {
    let shown = seen.header("authorization").unwrap_or_default();
    match &state.auth {
        Auth::Nobody => None,
        Auth::Basic { accounts } => {
            let known = accounts.iter().any(|account| shown == basic(account));
            (!known).then(|| "Basic realm=\"faulty, as ever\"".to_owned())
        }
        Auth::Bearer { realm, .. } => {
            let token = shown.strip_prefix("Bearer ");
            let known = token.is_some_and(|token| state.tokens.contains(token));
            let path = seen.uri.path();
            let repository = path.strip_prefix("/v2/").and_then(|path| {
                let end = path.find("/manifests/").or_else(|| path.find("/blobs/"))?;
                Some(&path[..end])
            });
            (!known).then(|| {
                format!(
                    "Bearer realm=\"{realm}/token\",service=\"faulty\",\
                     scope=\"repository:{}:pull\"",
                    repository.unwrap_or_default()
                )
            })
        }
    }
}

fn basic((name, password): &(String, String)) -> String {
    format!("Basic {}", STANDARD.encode(format!("{name}:{password}")))
}

/// The token server. It serves registries other than this one too: what counts is that the one
/// that is asked has the accounts, and shares its tokens by their form.
fn token(state: &mut State, seen: &Seen) -> Answer {
    let refuse = || {
        let body = r#"{"details":"incorrect username or password"}"#;
        let answer = Response::builder().status(401);
        answer.body(whole(body.into())).unwrap()
    };
    let Auth::Bearer {
        accounts,
        identity_token,
        ..
    } = &state.auth
    else {
        return refuse();
    };
    let known = match seen.method {
        Method::POST => {
            let form = form_urlencoded::parse(&seen.body);
            let mut tokens = form.filter(|(key, _)| key == "refresh_token");
            let shown = tokens.next().map(|(_, token)| token.into_owned());
            identity_token.is_some() && shown == *identity_token
        }
        _ => {
            let shown = seen.header("authorization");
            accounts.is_empty() || accounts.iter().any(|a| shown == Some(basic(a).as_str()))
        }
    };
    if !known {
        return refuse();
    }
    state.tokens_given += 1;
    let token = format!("token-{}", state.tokens_given);
    state.tokens.insert(token.clone());
    let field = match seen.method {
        Method::POST => "access_token",
        _ => "token",
    };
    let mut body = serde_json::json!({ field: token });
    if let Some(life) = state.token_life {
        body["expires_in"] = life.into();
    }
    Response::new(whole(body.to_string().into()))
}
