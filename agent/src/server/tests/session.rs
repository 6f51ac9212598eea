//! The channel protocol, from a client's end in memory.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::extract::ws::Message;
use futures::channel::mpsc;
use futures::{FutureExt, Sink, SinkExt, Stream};

use super::super::channels::{self, Process, Protocol};
use super::*;
use tokio::io::{AsyncWriteExt, duplex};

struct Socket {
    incoming: mpsc::UnboundedReceiver<Message>,
    outgoing: mpsc::Sender<Message>,
}

impl Stream for Socket {
    type Item = Result<Message, mpsc::SendError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.incoming.poll_next_unpin(cx).map(|item| item.map(Ok))
    }
}

impl Sink<Message> for Socket {
    type Error = mpsc::SendError;

    fn poll_ready(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.outgoing.poll_ready(cx)
    }

    fn start_send(mut self: Pin<&mut Self>, item: Message) -> Result<(), Self::Error> {
        self.outgoing.start_send(item)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.outgoing.poll_flush_unpin(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.outgoing.poll_close_unpin(cx)
    }
}

fn connected() -> (
    Socket,
    mpsc::UnboundedSender<Message>,
    mpsc::Receiver<Message>,
) {
    let (to_server, incoming) = mpsc::unbounded();
    let (outgoing, from_server) = mpsc::channel(0);
    (Socket { incoming, outgoing }, to_server, from_server)
}

fn send(to_server: &mpsc::UnboundedSender<Message>, channel: u8, bytes: &[u8]) {
    let data = [&[channel], bytes].concat();
    to_server
        .unbounded_send(Message::Binary(data.into()))
        .unwrap();
}

/// What came on each channel until the server closed.
async fn all(mut from_server: mpsc::Receiver<Message>) -> HashMap<u8, Vec<u8>> {
    let mut channels = HashMap::<u8, Vec<u8>>::new();
    while let Some(message) = from_server.next().await {
        let Message::Binary(data) = message else {
            assert!(matches!(message, Message::Close(Some(frame)) if frame.code == 1000));
            break;
        };
        channels.entry(data[0]).or_default().extend(&data[1..]);
    }
    channels
}

/// Copies its input to its output until the input ends, then ends with 3.
fn cat() -> Process {
    let (stdin, mut input) = duplex(1024);
    let (mut output, stdout) = duplex(1024);
    let (ended, end) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        tokio::io::copy(&mut input, &mut output).await.unwrap();
        ended.send(()).unwrap();
    });
    Process {
        stdin: Some(Box::new(stdin)),
        stdout: Some(Box::new(stdout)),
        stderr: None,
        resize: None,
        end: end.map(|_| channels::exited(3)).boxed(),
    }
}

#[tokio::test]
async fn v5_ends_the_input_and_keeps_every_byte() {
    let (socket, to_server, from_server) = connected();
    let carried = tokio::spawn(channels::carry(socket, Protocol::V5, cat()));
    let data: Vec<u8> = (0..300_000u32).map(|i| (i * 7) as u8).collect();
    for chunk in data.chunks(9000) {
        send(&to_server, 0, chunk);
    }
    send(&to_server, 255, &[0]);
    let channels = all(from_server).await;
    assert!(channels[&1] == data);
    let status: Value = serde_json::from_slice(&channels[&3]).unwrap();
    assert_eq!(
        status,
        json!({
            "apiVersion": "v1", "kind": "Status", "metadata": {},
            "status": "Failure", "reason": "NonZeroExitCode",
            "message": "command terminated with non-zero exit code: exit status 3",
            "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
        })
    );
    drop(to_server);
    carried.await.unwrap();
}

#[tokio::test]
async fn v4_knows_no_end_of_input() {
    let (socket, to_server, mut from_server) = connected();
    let carried = tokio::spawn(channels::carry(socket, Protocol::V4, cat()));
    send(&to_server, 255, &[0]);
    send(&to_server, 0, b"still open");
    let mut got: Vec<u8> = Vec::new();
    while got != b"still open" {
        got.extend(&from_server.next().await.unwrap().into_data()[1..]);
    }
    drop(to_server);
    carried.await.unwrap();
}

#[tokio::test]
async fn a_client_that_goes_takes_the_process_with_it() {
    let (socket, to_server, _from_server) = connected();
    let (stdin, mut input) = duplex(64);
    let process = Process {
        stdin: Some(Box::new(stdin)),
        stdout: None,
        stderr: None,
        resize: None,
        end: futures::future::pending().boxed(),
    };
    let carried = tokio::spawn(channels::carry(socket, Protocol::V5, process));
    drop(to_server);
    carried.await.unwrap();
    assert_eq!(input.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_slow_client_holds_the_process_up() {
    let (socket, _to_server, mut from_server) = connected();
    let (mut output, stdout) = duplex(1024);
    let process = Process {
        stdin: None,
        stdout: Some(Box::new(stdout)),
        stderr: None,
        resize: None,
        end: futures::future::pending().boxed(),
    };
    let carried = tokio::spawn(channels::carry(socket, Protocol::V5, process));
    let block = vec![7; 64 * 1024];
    let mut written = 0;
    // All buffers are full at some time: the next write does not go through.
    while let Ok(result) =
        tokio::time::timeout(Duration::from_millis(200), output.write_all(&block)).await
    {
        result.unwrap();
        written += block.len();
        assert!(written < 64 << 20, "nothing holds the process up");
    }
    from_server.next().await.unwrap();
    carried.abort();
}

#[tokio::test]
async fn sizes_reach_the_terminal() {
    let (socket, to_server, _from_server) = connected();
    let (sizes, mut applied) = tokio::sync::mpsc::unbounded_channel();
    let process = Process {
        stdin: None,
        stdout: None,
        stderr: None,
        resize: Some(Box::new(move |rows, columns| {
            sizes.send((rows, columns)).unwrap();
            Ok(())
        })),
        end: futures::future::pending().boxed(),
    };
    let carried = tokio::spawn(channels::carry(socket, Protocol::V4, process));
    send(&to_server, 4, b"not a size");
    send(&to_server, 4, br#"{"Width":120,"Height":40}"#);
    assert_eq!(applied.recv().await, Some((40, 120)));
    carried.abort();
}
