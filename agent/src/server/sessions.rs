//! Commands in containers and attachments to them, over WebSockets.

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{WebSocket, WebSocketUpgrade};
use axum::http::StatusCode;
use axum::response::Response;
use futures::FutureExt;
use tokio::io::{AsyncReadExt, sink};

use super::channels::{self, Process, Protocol};
use super::containers::{Attempts, Missing};
use super::query::Query;
use super::routes::Refusal;
use super::{NodePod, ServerState};
use crate::runtime::types::{AttachRequest, ExecRequest};
use crate::runtime::{RuntimeError, Session};

/// What a session is for.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Exec { command: Vec<String> },
    Attach,
}

/// The streams that the client asks for.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    /// Both the kubelet's names and those of the API.
    fn in_query(query: &Query) -> Self {
        Self {
            stdin: query.flag(&["input", "stdin"]),
            stdout: query.flag(&["output", "stdout"]),
            stderr: query.flag(&["error", "stderr"]),
            tty: query.flag(&["tty"]),
        }
    }
}

/// Upgrades the connection. Whether the command can be run is told inside the session, because
/// clients take a refused upgrade as a sign to try another protocol.
pub(super) fn start(
    state: ServerState,
    pod: NodePod,
    container: String,
    query: &Query,
    kind: Kind,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Refusal> {
    let wanted = Wanted::in_query(query);
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        let message = "you must specify at least 1 of stdin, stdout, stderr";
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message.into()));
    }
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
    let upgrade = upgrade
        .map_err(|rejection| {
            bad(format!(
                "Upgrade request required: {}",
                rejection.body_text()
            ))
        })?
        .protocols(Protocol::ALL.map(Protocol::name));
    let selected = upgrade
        .selected_protocol()
        .and_then(|name| name.to_str().ok());
    let Some(protocol) = Protocol::ALL
        .into_iter()
        .find(|p| Some(p.name()) == selected)
    else {
        let known = Protocol::ALL.map(Protocol::name).join(", ");
        return Err(bad(format!(
            "unable to upgrade: none of the requested subprotocols is supported, only {known}"
        )));
    };
    let owned = state.sessions.token();
    Ok(upgrade.on_upgrade(async move |socket| {
        let session = run(socket, protocol, pod, container, wanted, kind);
        state.stop.run_until_cancelled(session).await;
        drop(owned);
    }))
}

async fn run(
    socket: WebSocket,
    protocol: Protocol,
    pod: NodePod,
    container: String,
    wanted: Wanted,
    kind: Kind,
) {
    let attached = matches!(kind, Kind::Attach);
    match begin(&pod, &container, wanted, kind).await {
        Ok(session) => channels::carry(socket, protocol, process(session, wanted, attached)).await,
        Err(message) => channels::refuse(socket, &channels::internal_error(&message)).await,
    }
}

/// Starts the command or attaches, or says why not in the kubelet's words.
async fn begin(
    pod: &NodePod,
    container: &str,
    wanted: Wanted,
    kind: Kind,
) -> Result<Session, String> {
    let unable = |missing: Missing| format!("unable to upgrade connection: {missing}");
    let attempts = Attempts::of(pod, container).await.map_err(unable)?;
    let record = attempts.running().map_err(unable)?;
    let not_running = || unable(Missing::NotRunning(container.to_owned()));
    let sandbox = pod.sandbox.as_ref().ok_or_else(not_running)?;
    match kind {
        Kind::Exec { command } => {
            let request = ExecRequest {
                command,
                tty: wanted.tty,
                stdin: wanted.stdin,
            };
            let failed =
                |error: RuntimeError| format!("error executing command in container: {error}");
            sandbox.exec(&record.id, request).await.map_err(failed)
        }
        Kind::Attach => {
            let failed = |error: RuntimeError| format!("error attaching to container: {error}");
            let request = AttachRequest {
                tty: attempts.tty(),
                stdin: wanted.stdin,
            };
            sandbox.attach(&record.id, request).await.map_err(failed)
        }
    }
}

/// A session's streams as far as they are wanted. Output that nobody wants is read all the same:
/// the command must not block on it.
fn process(mut session: Session, wanted: Wanted, attached: bool) -> Process {
    let stdin = session.stdin.take().filter(|_| wanted.stdin);
    let mut unwanted = Vec::new();
    let stdout = session.stdout.take();
    let stderr = session.stderr.take();
    let (stdout, unread) = keep(stdout, wanted.stdout);
    unwanted.extend(unread);
    let (stderr, unread) = keep(stderr, wanted.stderr);
    unwanted.extend(unread);
    let terminal = session.terminal.clone();
    let end = async move {
        let discard = futures::future::join_all(unwanted.into_iter().map(async |mut stream| {
            let _ = tokio::io::copy(&mut stream, &mut sink()).await;
        }));
        let (ended, _) = tokio::join!(session.wait(), discard);
        match ended {
            Ok(_) if attached => channels::success(),
            Ok(code) => channels::exited(code),
            Err(error) => channels::internal_error(&error.to_string()),
        }
    };
    Process {
        stdin: stdin.map(|stream| Box::new(stream) as _),
        stdout: stdout.map(|stream| Box::new(stream) as _),
        stderr: stderr.map(|stream| Box::new(stream) as _),
        resize: terminal
            .map(|terminal| Box::new(move |rows, columns| terminal.resize(rows, columns)) as _),
        end: end.boxed(),
    }
}

/// `(wanted, to be discarded)`
fn keep<T: AsyncReadExt>(stream: Option<T>, wanted: bool) -> (Option<T>, Option<T>) {
    if wanted {
        (stream, None)
    } else {
        (None, stream)
    }
}
