//! `skiff exec`: a command in a container, through the pod's shim.

use std::io::{self, IsTerminal, Read};
use std::process::ExitCode;

use clap::Args;
use skiff_agent::runtime::types::ExecRequest;
use skiff_agent::runtime::{self, Session, Stream, Terminal};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::local::{NodeArgs, TargetArgs};
use crate::terminal::{RawMode, size};

const CHUNK: usize = 32 * 1024;

#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    target: TargetArgs,
    /// Pass standard input to the command
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub async fn run(args: ExecArgs) -> anyhow::Result<ExitCode> {
    let (pod, container) = args.node.nodes()?.find(&args.target).await?;
    let container = match container {
        Some(container) => container,
        None => pod.default_container()?,
    };
    let record = pod.running(&container)?;
    let tty = args.tty && io::stdin().is_terminal();
    if args.tty && !tty {
        eprintln!("skiff: no terminal for the command: the input is not a terminal");
    }
    let request = ExecRequest {
        command: args.command,
        tty,
        stdin: args.stdin,
    };
    let session = runtime::exec(&pod.identity, &pod.uid, &record.id, request).await?;
    // Restored when this returns, whatever happens.
    let _raw = tty.then(RawMode::enter).transpose()?;
    let code = carry(session).await?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)))
}

/// Carries the streams until the command has ended and its output is written.
async fn carry(mut session: Session) -> anyhow::Result<i32> {
    let input = session.stdin.take().map(|stdin| tokio::spawn(feed(stdin)));
    let sizes = session
        .terminal
        .take()
        .map(|terminal| tokio::spawn(keep_size(terminal)));
    let stdout = session.stdout.take();
    let stderr = session.stderr.take();
    let (code, ..) = tokio::join!(
        session.wait(),
        print(stdout, tokio::io::stdout()),
        print(stderr, tokio::io::stderr()),
    );
    for task in [input, sizes].into_iter().flatten() {
        task.abort();
    }
    Ok(code?)
}

async fn print(from: Option<impl AsyncRead + Unpin>, mut to: impl AsyncWrite + Unpin) {
    let Some(mut from) = from else {
        return;
    };
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        // Nobody reads our output any more: closing the command's tells it so.
        if to.write_all(&buffer[..count]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

async fn feed(mut stdin: Stream) {
    let mut chunks = read_stdin();
    while let Some(chunk) = chunks.recv().await {
        if stdin.write_all(&chunk).await.is_err() {
            return;
        }
    }
}

/// Standard input may be a file or a terminal, which only a blocked thread can read. It ends
/// with the process.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (send, chunks) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = io::stdin().read(&mut buffer) {
            if send.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    chunks
}

/// Gives the command's terminal the size of ours, now and whenever it changes.
async fn keep_size(terminal: Terminal) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return;
    };
    loop {
        if let Some((rows, columns)) = size() {
            // Fails when the command is gone, and then this is about to end.
            let _ = terminal.resize(rows, columns);
        }
        changes.recv().await;
    }
}
