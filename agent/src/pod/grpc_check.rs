//! gRPC probes: one call of `grpc.health.v1.Health/Check`, as the kubelet makes it (`pkg/probe/grpc`).
//!
//! The two messages have a field each, so they are written and read here.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::GRPCAction;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::backoff::go_seconds;
use super::network_check::{CheckError, dial_error, join};

/// Bytes of an answer that are taken; a good one has seven.
const MOST_ANSWER: usize = 64 * 1024;
const UNIMPLEMENTED: i32 = 12;
const DEADLINE_EXCEEDED: i32 = 4;
/// `HealthCheckResponse.ServingStatus`
const SERVING: u64 = 1;
const STATUSES: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];
/// Codes by their numbers, as Go prints them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Why a call has no answer.
enum CallError {
    Connect(String),
    Status { code: i32, message: String },
}

/// Asks whether the service serves.
///
/// # Errors
/// In the kubelet's words.
pub(super) async fn check(
    action: &GRPCAction,
    pod_ip: &str,
    limit: Duration,
) -> Result<(), CheckError> {
    let port = u16::try_from(action.port).ok().filter(|port| *port > 0);
    let port =
        port.ok_or_else(|| CheckError::Invalid(format!("invalid port number: {}", action.port)))?;
    let address = join(pod_ip, port);
    let service = action.service.as_deref().unwrap_or_default();
    let within = go_seconds(limit);
    let result = match timeout(limit, TcpStream::connect((pod_ip, port))).await {
        Err(_) => Err(CallError::Connect("context deadline exceeded".into())),
        Ok(Err(error)) => Err(CallError::Connect(dial_error(&address, &error))),
        Ok(Ok(stream)) => match timeout(limit, call(stream, &address, service)).await {
            Ok(result) => result,
            Err(_) => Err(CallError::Status {
                code: DEADLINE_EXCEEDED,
                message: String::new(),
            }),
        },
    };
    let message = match result {
        Ok(SERVING) => return Ok(()),
        Ok(status) => {
            let known = usize::try_from(status).ok().and_then(|s| STATUSES.get(s));
            let name = known.map_or_else(|| status.to_string(), |name| (*name).to_owned());
            format!("service unhealthy (responded with {name:?})")
        }
        Err(CallError::Connect(cause)) => {
            format!("timeout: failed to connect service {address:?} within {within}: {cause}")
        }
        Err(CallError::Status { code, message }) => match code {
            UNIMPLEMENTED => format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {message}"
            ),
            DEADLINE_EXCEEDED => format!("timeout: health rpc did not complete within {within}"),
            _ => {
                let known = usize::try_from(code).ok().and_then(|c| CODES.get(c));
                let name = known.map_or_else(|| format!("Code({code})"), |name| (*name).to_owned());
                format!("error: health rpc probe failed: rpc error: code = {name} desc = {message}")
            }
        },
    };
    Err(CheckError::Failed(message))
}

/// The `ServingStatus` that the server gives.
async fn call(stream: TcpStream, authority: &str, service: &str) -> Result<u64, CallError> {
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(unavailable)?;
    let exchange = async {
        let request = request(authority, service).map_err(unavailable)?;
        let response = sender.send_request(request).await.map_err(unavailable)?;
        let (head, body) = response.into_parts();
        if !head.status.is_success() {
            let message = format!(
                "unexpected HTTP status code received from server: {}",
                head.status
            );
            return Err(CallError::Status { code: 2, message });
        }
        // An answer without a message has its status in the head.
        status(&head.headers)?;
        let body = Limited::new(body, MOST_ANSWER).collect().await;
        let body = body.map_err(unavailable)?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        status(&trailers)?;
        Ok(serving_status(&body.to_bytes()))
    };
    tokio::pin!(exchange);
    tokio::select! {
        answer = &mut exchange => answer,
        _ = connection => exchange.await,
    }
}

fn unavailable(error: impl std::fmt::Display) -> CallError {
    CallError::Status {
        code: 14,
        message: error.to_string(),
    }
}

fn request(authority: &str, service: &str) -> Result<Request<Full<Bytes>>, http::Error> {
    Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, "kube-probe/1.37")
        .body(Full::from(framed(&check_request(service))))
}

/// A gRPC message: not compressed, its length, itself.
fn framed(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    [&[0], &length.to_be_bytes()[..], message].concat()
}

/// `HealthCheckRequest { string service = 1; }`
fn check_request(service: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    if service.is_empty() {
        return bytes;
    }
    bytes.push(0x0a);
    let mut length = service.len();
    while length >= 0x80 {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend_from_slice(service.as_bytes());
    bytes
}

/// `HealthCheckResponse { ServingStatus status = 1; }`; what can't be read is unknown.
fn serving_status(frame: &[u8]) -> u64 {
    let message = frame.get(5..).unwrap_or_default();
    let [0x08, rest @ ..] = message else { return 0 };
    let mut value = 0;
    for (index, byte) in rest.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return value;
        }
    }
    0
}

fn status(headers: &HeaderMap) -> Result<(), CallError> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").map(|code| code.parse().unwrap_or(2)) {
        None | Some(0) => Ok(()),
        Some(code) => {
            let message = text("grpc-message").unwrap_or_default().as_bytes();
            let message = percent_decoded(message);
            Err(CallError::Status { code, message })
        }
    }
}

/// gRPC writes what is no printable ASCII as `%XX`.
fn percent_decoded(text: &[u8]) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        let byte = digits.and_then(|d| u8::from_str_radix(d, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &after[2..];
            }
            _ => {
                out.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Response};
    use http_body_util::StreamBody;
    use hyper::body::{Frame, Incoming};
    use hyper::service::service_fn;
    use serde_json::json;
    use std::convert::Infallible;
    use tokio::net::TcpListener;

    const LIMIT: Duration = Duration::from_secs(20);

    /// A server that answers every call with `body`, and in the trailers with `status`.
    async fn server(body: &'static [u8], status: &'static str, message: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = service_fn(move |request: Request<Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    assert_eq!(request.headers()["te"], "trailers");
                    assert_eq!(request.headers()["user-agent"], "kube-probe/1.37");
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    // A service of this name is silent.
                    if asked.ends_with(b"silent") {
                        std::future::pending::<()>().await;
                    }
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", HeaderValue::from_static(status));
                    trailers.insert("grpc-message", HeaderValue::from_static(message));
                    let frames = [
                        Frame::data(Bytes::from_static(body)),
                        Frame::trailers(trailers),
                    ];
                    let frames = frames.map(Ok::<_, Infallible>);
                    let body = StreamBody::new(futures::stream::iter(frames));
                    Ok::<_, Infallible>(Response::new(body))
                });
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(connection.serve_connection(TokioIo::new(stream), service));
            }
        });
        port
    }

    async fn ask(port: u16, service: Option<&str>, limit: Duration) -> Result<(), String> {
        let action = serde_json::from_value(json!({"port": port, "service": service})).unwrap();
        check(&action, "127.0.0.1", limit)
            .await
            .map_err(|e| e.to_string())
    }

    #[tokio::test]
    async fn every_answer_has_its_words() {
        let serving = server(b"\0\0\0\0\x02\x08\x01", "0", "").await;
        assert_eq!(ask(serving, None, LIMIT).await, Ok(()));
        assert_eq!(ask(serving, Some("a"), LIMIT).await, Ok(()));
        let limit = Duration::from_secs(1);
        assert_eq!(
            ask(serving, Some("silent"), limit).await,
            Err("timeout: health rpc did not complete within 1s".into())
        );
        let not = server(b"\0\0\0\0\x02\x08\x02", "0", "").await;
        assert_eq!(
            ask(not, None, LIMIT).await,
            Err("service unhealthy (responded with \"NOT_SERVING\")".into())
        );
        let empty = server(b"\0\0\0\0\0", "0", "").await;
        assert_eq!(
            ask(empty, None, LIMIT).await,
            Err("service unhealthy (responded with \"UNKNOWN\")".into())
        );
        let missing = server(b"", "5", "unknown%20service").await;
        assert_eq!(
            ask(missing, Some("x"), LIMIT).await,
            Err(
                "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service"
                    .into()
            )
        );
        let other = server(b"", "12", "no").await;
        assert_eq!(
            ask(other, None, LIMIT).await,
            Err("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): no".into())
        );
        let refused = ask(9, None, limit).await.unwrap_err();
        assert!(
            refused.starts_with("timeout: failed to connect service \"127.0.0.1:9\" within 1s: "),
            "{refused}"
        );
    }

    #[test]
    fn long_service_names_have_long_lengths() {
        let request = check_request(&"s".repeat(300));
        assert_eq!(request[..3], [0x0a, 0xac, 0x02]);
        assert_eq!(request.len(), 303);
        assert!(check_request("").is_empty());
        for bad in [
            &b""[..],
            b"\0\0\0\0\x01\x08",
            b"\0\0\0\0\x0b\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            assert_eq!(serving_status(bad), 0);
        }
    }
}
