//! GET requests to a pod, for probes and lifecycle hooks, as the kubelet makes them (`pkg/probe/http`): certificates are
//! not checked, redirects are followed as long as they stay on the same host.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use http::uri::Authority;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::network_check::{CheckError, dial_error, join, port, unverified_tls};

/// Bytes of an answer that are read.
const MOST_BODY: usize = 10 * 1024;
const MOST_REDIRECTS: usize = 10;

/// What the pod answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Its beginning.
    pub(super) body: String,
}

/// What a request is for, as the pod sees it in `User-Agent`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    Probe,
    Hook,
}

impl Purpose {
    fn user_agent(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Probe => "kube-probe/1.37",
            Self::Hook => "kube-lifecycle/1.37",
        })
    }
}

/// Sends the request; the answer of the last redirect that was followed.
///
/// # Errors
/// Why there is no answer.
pub(super) async fn get(
    container: &Container,
    action: &HTTPGetAction,
    pod_ip: &str,
    limit: Duration,
    purpose: Purpose,
) -> Result<Answer, CheckError> {
    let mut target = Target::of(container, action, pod_ip)?;
    let headers = headers(action, purpose)?;
    let first = target.url();
    let failed = |cause: String| CheckError::Failed(format!("Get {first:?}: {cause}"));
    let exchange = async {
        for _ in 0..=MOST_REDIRECTS {
            match fetch(&target, &headers).await? {
                Fetched::Answer(answer) => return Ok(answer),
                Fetched::Redirect(next) => target = next,
            }
        }
        Err(format!("stopped after {MOST_REDIRECTS} redirects"))
    };
    match timeout(limit, exchange).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(failed(
            "context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into(),
        )),
    }
}

enum Fetched {
    Answer(Answer),
    Redirect(Target),
}

/// What is asked for, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    tls: bool,
    host: String,
    port: u16,
    /// With the query.
    path: String,
}

impl Target {
    fn of(container: &Container, action: &HTTPGetAction, pod_ip: &str) -> Result<Self, CheckError> {
        let host = action.host.as_deref().filter(|host| !host.is_empty());
        let scheme = action.scheme.as_deref().unwrap_or("HTTP");
        let path = action.path.as_deref().unwrap_or("/");
        // A fragment is never sent.
        let path = path.split('#').next().unwrap_or_default();
        Ok(Self {
            tls: scheme.eq_ignore_ascii_case("https"),
            host: host.unwrap_or(pod_ip).to_owned(),
            port: port(container, &action.port)?,
            path: match path.starts_with('/') {
                true => path.to_owned(),
                false => format!("/{path}"),
            },
        })
    }

    fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }

    fn authority(&self) -> String {
        join(&self.host, self.port)
    }

    fn url(&self) -> String {
        format!("{}://{}{}", self.scheme(), self.authority(), self.path)
    }

    /// Where a redirect leads, if it may be followed: to the same host.
    fn redirected(&self, location: &str) -> Option<Self> {
        let location = location.split('#').next().unwrap_or_default();
        let mut next = self.clone();
        let path = match location.split_once("//") {
            // With a host, and maybe a scheme.
            Some((scheme, rest)) if matches!(scheme, "" | "http:" | "https:") => {
                let at = rest.find(['/', '?']).unwrap_or(rest.len());
                let (authority, path) = rest.split_at(at);
                let authority: Authority = authority.parse().ok()?;
                if authority.host().trim_matches(['[', ']']) != self.host {
                    return None;
                }
                next.tls = match scheme {
                    "" => self.tls,
                    scheme => scheme == "https:",
                };
                next.port = authority
                    .port_u16()
                    .unwrap_or(if next.tls { 443 } else { 80 });
                path
            }
            _ => location,
        };
        let page = self.path.split('?').next().unwrap_or_default();
        next.path = match path.chars().next() {
            None => "/".to_owned(),
            Some('/') => path.to_owned(),
            Some('?') => format!("{page}{path}"),
            // Beside the page that it stands on.
            Some(_) => {
                let directory = page.rsplit_once('/').map_or("", |(directory, _)| directory);
                format!("{directory}/{path}")
            }
        };
        Some(next)
    }
}

fn headers(action: &HTTPGetAction, purpose: Purpose) -> Result<HeaderMap, CheckError> {
    let mut headers = HeaderMap::new();
    for header in action.http_headers.iter().flatten() {
        let invalid = |error: String| CheckError::Failed(format!("net/http: {error}"));
        let name: HeaderName = header
            .name
            .parse()
            .map_err(|_| invalid(format!("invalid header field name {:?}", header.name)))?;
        let value = HeaderValue::from_str(&header.value)
            .map_err(|_| invalid(format!("invalid header field value for {:?}", header.name)))?;
        headers.append(name, value);
    }
    if !headers.contains_key(USER_AGENT) {
        headers.insert(USER_AGENT, purpose.user_agent());
    }
    match headers.get(ACCEPT).map(HeaderValue::is_empty) {
        None => drop(headers.insert(ACCEPT, HeaderValue::from_static("*/*"))),
        // An empty one asks for none.
        Some(true) => drop(headers.remove(ACCEPT)),
        Some(false) => {}
    }
    headers.insert("connection", HeaderValue::from_static("close"));
    Ok(headers)
}

async fn fetch(target: &Target, headers: &HeaderMap) -> Result<Fetched, String> {
    let address = (target.host.as_str(), target.port);
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|e| dial_error(&target.authority(), &e))?;
    if !target.tls {
        return request(stream, target, headers).await;
    }
    let name = ServerName::try_from(target.host.clone()).map_err(|e| e.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(unverified_tls());
    let stream = connector.connect(name, stream).await;
    request(stream.map_err(|e| e.to_string())?, target, headers).await
}

async fn request<S>(stream: S, target: &Target, headers: &HeaderMap) -> Result<Fetched, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut request = Request::get(&target.path)
        .version(Version::HTTP_11)
        .body(Empty::<Bytes>::new())
        .map_err(|e| e.to_string())?;
    *request.headers_mut() = headers.clone();
    if !headers.contains_key(HOST) {
        let host = HeaderValue::from_str(&target.authority()).map_err(|e| e.to_string())?;
        request.headers_mut().insert(HOST, host);
    }
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await;
        let response = response.map_err(|e| match e.is_incomplete_message() {
            true => "EOF".to_owned(),
            false => e.to_string(),
        })?;
        Ok(read(target, response).await)
    };
    tokio::pin!(exchange);
    tokio::select! {
        fetched = &mut exchange => fetched,
        _ = connection => exchange.await,
    }
}

async fn read(target: &Target, response: http::Response<Incoming>) -> Fetched {
    let status = response.status();
    let followed = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    let location = response.headers().get(LOCATION);
    let location = location.and_then(|value| value.to_str().ok());
    if let (true, Some(location)) = (followed.contains(&status), location)
        && let Some(next) = target.redirected(location)
    {
        return Fetched::Redirect(next);
    }
    // A body that is longer, or breaks off, does not change what the status says.
    let mut body = Vec::new();
    let mut rest = Limited::new(response.into_body(), MOST_BODY);
    while let Some(Ok(frame)) = rest.frame().await {
        body.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
    }
    Fetched::Answer(Answer {
        status: status.as_u16(),
        body: String::from_utf8_lossy(&body).into_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(20);

    fn action(port: u16, more: Value) -> HTTPGetAction {
        let mut action = json!({"port": port});
        for (key, value) in more.as_object().unwrap() {
            action[key] = value.clone();
        }
        serde_json::from_value(action).unwrap()
    }

    /// Gives these answers, each on a connection of its own, and tells what it was asked.
    async fn serve(answers: Vec<&'static str>) -> (u16, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let read = stream.read(&mut request).await.unwrap();
                asked.push(String::from_utf8_lossy(&request[..read]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (port, server)
    }

    async fn ask(port: u16, more: Value) -> Result<Answer, CheckError> {
        let action = action(port, more);
        get(
            &Container::default(),
            &action,
            "127.0.0.1",
            LIMIT,
            Purpose::Probe,
        )
        .await
    }

    #[tokio::test]
    async fn headers_are_the_kubelets_unless_they_are_given() {
        let no = "HTTP/1.1 503 no\r\ncontent-length: 4\r\n\r\nbusy";
        let (port, server) = serve(vec![no, no]).await;
        let answer = ask(port, json!({"path": "health?deep=1"})).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "busy"));
        ask(port, json!({"httpHeaders": [
            {"name": "Host", "value": "web.example"}, {"name": "User-Agent", "value": "me"},
            {"name": "Accept", "value": ""}, {"name": "X-Two", "value": "a"}, {"name": "X-Two", "value": "b"}]}))
        .await
        .unwrap();
        let asked = server.await.unwrap();
        assert!(
            asked[0].starts_with("GET /health?deep=1 HTTP/1.1\r\n"),
            "{}",
            asked[0]
        );
        for header in [
            "user-agent: kube-probe/1.37",
            "accept: */*",
            &format!("host: 127.0.0.1:{port}"),
        ] {
            assert!(asked[0].contains(header), "{}", asked[0]);
        }
        for header in [
            "host: web.example",
            "user-agent: me",
            "x-two: a",
            "x-two: b",
        ] {
            assert!(asked[1].contains(header), "{}", asked[1]);
        }
        assert!(!asked[1].contains("accept:"), "{}", asked[1]);
    }

    #[tokio::test]
    async fn redirects_are_followed_on_the_same_host_only() {
        let away =
            "HTTP/1.1 302 away\r\nlocation: http://example.org/x\r\ncontent-length: 2\r\n\r\ngo";
        let here = "HTTP/1.1 301 here\r\nlocation: there?a=b\r\ncontent-length: 0\r\n\r\n";
        let good = "HTTP/1.1 200 ok\r\ncontent-length: 0\r\n\r\n";
        let (port, server) = serve(vec![here, good, away]).await;
        assert_eq!(
            ask(port, json!({"path": "/a/b"})).await.unwrap().status,
            200
        );
        let answer = ask(port, json!({})).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (302, "go"));
        assert!(server.await.unwrap()[1].starts_with("GET /a/there?a=b "));
        let (port, _server) = serve(vec![
            "HTTP/1.1 307 again\r\nlocation: /\r\ncontent-length: 0\r\n\r\n";
            20
        ])
        .await;
        let error = ask(port, json!({})).await.unwrap_err().to_string();
        assert_eq!(
            error,
            format!("Get \"http://127.0.0.1:{port}/\": stopped after 10 redirects")
        );
    }

    #[test]
    fn where_redirects_lead() {
        let page = Target {
            tls: false,
            host: "10.0.0.1".to_owned(),
            port: 8080,
            path: "/a/b?q=1".to_owned(),
        };
        for (location, wanted) in [
            ("/x", Some("http://10.0.0.1:8080/x")),
            ("x?y=//z#f", Some("http://10.0.0.1:8080/a/x?y=//z")),
            ("?y", Some("http://10.0.0.1:8080/a/b?y")),
            ("http://10.0.0.1", Some("http://10.0.0.1:80/")),
            ("https://10.0.0.1/x", Some("https://10.0.0.1:443/x")),
            ("//10.0.0.1:9/x", Some("http://10.0.0.1:9/x")),
            ("http://10.0.0.2/x", None),
            ("http:///x", None),
        ] {
            let found = page.redirected(location).map(|target| target.url());
            assert_eq!(found.as_deref(), wanted, "{location}");
        }
    }

    #[tokio::test]
    async fn failures_are_told_in_gos_words() {
        let (port, server) = serve(vec![""]).await;
        let error = ask(port, json!({})).await.unwrap_err().to_string();
        assert_eq!(error, format!("Get \"http://127.0.0.1:{port}/\": EOF"));
        server.await.unwrap();
        let refused = ask(port, json!({"path": "/health"})).await.unwrap_err();
        let message = format!(
            "Get \"http://127.0.0.1:{port}/health\": dial tcp 127.0.0.1:{port}: connect: connection refused"
        );
        assert_eq!(refused, CheckError::Failed(message));
        let unknown = ask(port, json!({"port": "web"})).await.unwrap_err();
        assert!(matches!(unknown, CheckError::Invalid(_)), "{unknown}");
    }

    #[tokio::test]
    async fn a_long_body_does_not_matter() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(b"HTTP/1.1 200 ok\r\n\r\n").await;
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        });
        let answer = ask(port, json!({})).await.unwrap();
        assert_eq!(answer.status, 200);
        assert!(answer.body.len() <= MOST_BODY);
    }
}
