//! A client's side of a running command or of an attachment: its streams, its terminal, its end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use skiff_shim::protocol::{Call, Exec, Message};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::{Connection, watched};
use super::error::RuntimeError;
use super::types::{AttachRequest, ExecRequest};

/// A pipe's or terminal's end, read or written without blocking.
#[derive(Debug)]
pub struct Stream(AsyncFd<OwnedFd>);

impl Stream {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        watched(fd).map(Self)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(context))?;
            let read = guard.try_io(|fd| Ok(nix::unistd::read(fd, buffer.initialize_unfilled())?));
            match read {
                Ok(Ok(count)) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                // A terminal whose other side has closed says EIO where a pipe ends.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(context))?;
            if let Ok(result) = guard.try_io(|fd| Ok(nix::unistd::write(fd, bytes)?)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The descriptor closes when the stream is dropped.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Sets the size of a session's terminal. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Terminal(std::sync::Arc<OwnedFd>);

impl Terminal {
    /// Tells the processes on the terminal its size in characters.
    ///
    /// # Errors
    /// When the terminal is gone.
    pub fn resize(&self, rows: u16, columns: u16) -> io::Result<()> {
        let size = libc::winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: the descriptor is open for as long as `self`, and `size` outlives the call.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        nix::errno::Errno::result(result)?;
        Ok(())
    }
}

/// A running command, or an attachment to a container's own process.
///
/// The streams may be taken out and moved to other tasks. Dropping the session kills the command
/// (or ends the attachment); drop `stdin` to give the command its end of input.
#[derive(Debug)]
pub struct Session {
    /// `None` when no input was asked for, or the container has none.
    pub stdin: Option<Stream>,
    /// Output; with a terminal it carries both streams.
    pub stdout: Option<Stream>,
    /// `None` with a terminal.
    pub stderr: Option<Stream>,
    /// With a terminal only.
    pub terminal: Option<Terminal>,
    connection: Connection,
    pod: String,
}

impl Session {
    /// Runs a command in a container and returns once it has been executed.
    pub(super) async fn exec(
        socket: &Path,
        pod: &str,
        id: &str,
        request: ExecRequest,
    ) -> Result<Self, RuntimeError> {
        let gone = |_| RuntimeError::Gone(pod.to_owned());
        let pipes = || RuntimeError::io("making the pipes of a command in", socket);
        let connection = Connection::open(socket).map_err(gone)?;
        let call = Call::Exec(Exec {
            id: id.to_owned(),
            args: request.command,
            tty: request.tty,
        });
        if request.tty {
            let (_, fds) = connection.ask(pod, call, &[]).await?;
            let master = fds.into_iter().next().ok_or_else(|| missing(pod))?;
            return Self::on_terminal(connection, pod, master, request.stdin).map_err(pipes());
        }
        let (stdin, stdin_ours) = stdin_pipe(request.stdin).map_err(pipes())?;
        let (stdout_ours, stdout) = pipe().map_err(pipes())?;
        let (stderr_ours, stderr) = pipe().map_err(pipes())?;
        let theirs: [RawFd; 3] = [stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()];
        connection.ask(pod, call, &theirs).await?;
        Ok(Self {
            stdin: stdin_ours.map(Stream::new).transpose().map_err(pipes())?,
            stdout: Some(Stream::new(stdout_ours).map_err(pipes())?),
            stderr: Some(Stream::new(stderr_ours).map_err(pipes())?),
            terminal: None,
            connection,
            pod: pod.to_owned(),
        })
    }

    /// Follows a container's output from now on, and feeds its input if that is wanted and it
    /// has one.
    pub(super) async fn attach(
        socket: &Path,
        pod: &str,
        id: &str,
        request: AttachRequest,
    ) -> Result<Self, RuntimeError> {
        let AttachRequest { tty, stdin } = request;
        let gone = |_| RuntimeError::Gone(pod.to_owned());
        let pipes = || RuntimeError::io("making the pipes of an attachment in", socket);
        let connection = Connection::open(socket).map_err(gone)?;
        let (stdout_ours, stdout) = pipe().map_err(pipes())?;
        let (stderr_ours, stderr) = pipe().map_err(pipes())?;
        let theirs: [RawFd; 2] = [stdout.as_raw_fd(), stderr.as_raw_fd()];
        let call = Call::Attach {
            id: id.to_owned(),
            stdin,
        };
        let (_, fds) = connection.ask(pod, call, &theirs).await?;
        let input = fds.into_iter().next();
        let terminal = match &input {
            Some(fd) if tty => {
                let copy = fd.as_fd().try_clone_to_owned().map_err(pipes())?;
                Some(Terminal(std::sync::Arc::new(copy)))
            }
            _ => None,
        };
        Ok(Self {
            stdin: input
                .filter(|_| stdin)
                .map(Stream::new)
                .transpose()
                .map_err(pipes())?,
            stdout: Some(Stream::new(stdout_ours).map_err(pipes())?),
            stderr: if tty {
                None
            } else {
                Some(Stream::new(stderr_ours).map_err(pipes())?)
            },
            terminal,
            connection,
            pod: pod.to_owned(),
        })
    }

    fn on_terminal(
        connection: Connection,
        pod: &str,
        master: OwnedFd,
        stdin: bool,
    ) -> io::Result<Self> {
        let input = match stdin {
            true => Some(Stream::new(master.try_clone()?)?),
            false => None,
        };
        let terminal = Terminal(std::sync::Arc::new(master.try_clone()?));
        Ok(Self {
            stdin: input,
            stdout: Some(Stream::new(master)?),
            stderr: None,
            terminal: Some(terminal),
            connection,
            pod: pod.to_owned(),
        })
    }

    /// Waits for the end of the command, or of the container attached to: its exit code, 128 +
    /// signal when a signal ended it. Output may still be in the streams.
    ///
    /// # Errors
    /// [`RuntimeError::Gone`] when the shim died first.
    pub async fn wait(&mut self) -> Result<i32, RuntimeError> {
        loop {
            match self.connection.receive().await {
                Ok(Some((Message::Ended { exit_code }, _))) => return Ok(exit_code),
                Ok(Some(_)) => {}
                Ok(None) => return Err(RuntimeError::Gone(self.pod.clone())),
                Err(source) => return Err(RuntimeError::io("waiting for", "a command")(source)),
            }
        }
    }
}

fn missing(pod: &str) -> RuntimeError {
    RuntimeError::Shim {
        pod: pod.to_owned(),
        message: "it answered without the terminal of the command".to_owned(),
    }
}

/// Read end, write end.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(pipe2(OFlag::O_CLOEXEC)?)
}

/// What the command reads, and our end of it if it is to have input.
fn stdin_pipe(wanted: bool) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    if wanted {
        let (read, write) = pipe()?;
        return Ok((read, Some(write)));
    }
    Ok((std::fs::File::open("/dev/null")?.into(), None))
}
