//! The channel protocol of remote commands: several streams over one WebSocket.
//!
//! The first byte of a message names its channel (`v4.channel.k8s.io`). `v5.channel.k8s.io` adds a
//! message that closes one direction of a channel, so that a command can see the end of its input.
//! The last message of the server is a `Status` on the error channel. See KEP-4006 and
//! `k8s.io/apimachinery/pkg/util/remotecommand`.

use std::io;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, close_code};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{Sink, SinkExt, Stream, StreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Status, StatusCause, StatusDetails};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Messages that may wait for a slow client; then the command has to wait too.
const QUEUE: usize = 8;
const CHUNK: usize = 32 * 1024;
/// How long a client may take to close its side after it got the status.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// The protocols, the better one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    V5,
    V4,
}

impl Protocol {
    pub(super) const ALL: [Protocol; 2] = [Self::V5, Self::V4];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::V5 => "v5.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
        }
    }
}

type Input = Box<dyn AsyncWrite + Send + Unpin>;
type Output = Box<dyn AsyncRead + Send + Unpin>;
/// Sets rows and columns of a terminal.
type Resize = Box<dyn Fn(u16, u16) -> io::Result<()> + Send>;

/// What runs at the other end. Dropping it ends it.
pub(super) struct Process {
    pub(super) stdin: Option<Input>,
    pub(super) stdout: Option<Output>,
    pub(super) stderr: Option<Output>,
    pub(super) resize: Option<Resize>,
    /// Tells how it ended.
    pub(super) end: BoxFuture<'static, Status>,
}

/// Carries a process' streams until it has ended or the client is gone.
pub(super) async fn carry<S, E>(socket: S, protocol: Protocol, process: Process)
where
    S: Stream<Item = Result<Message, E>> + Sink<Message> + Unpin,
{
    let Process {
        stdin,
        stdout,
        stderr,
        resize,
        end,
    } = process;
    let (mut sink, mut source) = socket.split();
    let (queue, mut queued) = mpsc::channel(QUEUE);
    let produce = async move {
        // An empty message tells the client that the command runs.
        let _ = queue.send(message(STDOUT, &[])).await;
        tokio::join!(pump(stdout, STDOUT, &queue), pump(stderr, STDERR, &queue));
        let status = end.await;
        let _ = queue.send(status_message(&status)).await;
    };
    let send = async {
        while let Some(message) = queued.recv().await {
            sink.send(message).await?;
        }
        sink.send(normal_closure()).await
    };
    let finished = tokio::select! {
        (_, sent) = async { tokio::join!(produce, send) } => sent.is_ok(),
        () = receive(&mut source, protocol, stdin, resize) => false,
    };
    if finished {
        // Closing the connection with input unread would take the status back from the client.
        let drain = async { while let Some(Ok(_)) = source.next().await {} };
        let _ = tokio::time::timeout(CLOSE_PATIENCE, drain).await;
    }
}

/// Tells the client that its command could not be run.
pub(super) async fn refuse<S, E>(mut socket: S, status: &Status)
where
    S: Stream<Item = Result<Message, E>> + Sink<Message> + Unpin,
{
    if socket.send(status_message(status)).await.is_err()
        || socket.send(normal_closure()).await.is_err()
    {
        return;
    }
    let drain = async { while let Some(Ok(_)) = socket.next().await {} };
    let _ = tokio::time::timeout(CLOSE_PATIENCE, drain).await;
}

/// The end of a session. kubectl takes a closure without a code for a failure.
fn normal_closure() -> Message {
    Message::Close(Some(CloseFrame {
        code: close_code::NORMAL,
        reason: "".into(),
    }))
}

/// Sends what a stream gives until it ends.
async fn pump(output: Option<Output>, channel: u8, queue: &mpsc::Sender<Message>) {
    let Some(mut output) = output else {
        return;
    };
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = output.read(&mut buffer).await {
        if queue
            .send(message(channel, &buffer[..count]))
            .await
            .is_err()
        {
            return;
        }
    }
}

/// Carries out what the client sends; returns when it is gone.
async fn receive<S, E>(
    source: &mut S,
    protocol: Protocol,
    mut stdin: Option<Input>,
    resize: Option<Resize>,
) where
    S: Stream<Item = Result<Message, E>> + Unpin,
{
    while let Some(Ok(message)) = source.next().await {
        if matches!(message, Message::Close(_)) {
            return;
        }
        let data = message.into_data();
        match (data.first(), data.get(1..).unwrap_or_default()) {
            (Some(&STDIN), bytes) => {
                if let Some(input) = &mut stdin
                    && input.write_all(bytes).await.is_err()
                {
                    // The command no longer reads; what else is sent is for nobody.
                    stdin = None;
                }
            }
            (Some(&RESIZE), bytes) => {
                if let Some(resize) = &resize {
                    apply_size(resize, bytes);
                }
            }
            (Some(&CLOSE), [STDIN]) if protocol == Protocol::V5 => stdin = None,
            _ => {}
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TerminalSize {
    width: u16,
    height: u16,
}

fn apply_size(resize: &Resize, bytes: &[u8]) {
    let Ok(size) = serde_json::from_slice::<TerminalSize>(bytes) else {
        return;
    };
    if let Err(error) = resize(size.height, size.width) {
        tracing::debug!(%error, "could not resize a terminal");
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut data = Vec::with_capacity(bytes.len() + 1);
    data.push(channel);
    data.extend_from_slice(bytes);
    Message::Binary(Bytes::from(data))
}

fn status_message(status: &Status) -> Message {
    // A struct of strings and numbers always has a JSON form.
    message(ERROR, &serde_json::to_vec(status).unwrap_or_default())
}

pub(super) fn success() -> Status {
    Status {
        status: Some("Success".into()),
        ..Status::default()
    }
}

/// How a command ended, as clients read its exit code.
pub(super) fn exited(code: i32) -> Status {
    if code == 0 {
        return success();
    }
    let cause = StatusCause {
        reason: Some("ExitCode".into()),
        message: Some(code.to_string()),
        ..StatusCause::default()
    };
    Status {
        status: Some("Failure".into()),
        reason: Some("NonZeroExitCode".into()),
        message: Some(format!(
            "command terminated with non-zero exit code: exit status {code}"
        )),
        details: Some(StatusDetails {
            causes: Some(vec![cause]),
            ..StatusDetails::default()
        }),
        ..Status::default()
    }
}

pub(super) fn internal_error(message: &str) -> Status {
    Status {
        status: Some("Failure".into()),
        reason: Some("InternalError".into()),
        message: Some(format!("Internal error occurred: {message}")),
        code: Some(500),
        details: Some(StatusDetails {
            causes: Some(vec![StatusCause {
                message: Some(message.to_owned()),
                ..StatusCause::default()
            }]),
            ..StatusDetails::default()
        }),
        ..Status::default()
    }
}
