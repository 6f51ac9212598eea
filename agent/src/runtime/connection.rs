//! An asynchronous connection to a shim.

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Serialize;
use skiff_shim::protocol::{Call, Message, Reply, Request};
use skiff_shim::wire;
use tokio::io::unix::AsyncFd;

use super::error::RuntimeError;

/// One packet connection. Closing it ends what was begun on it (an exec, an attachment).
#[derive(Debug)]
pub(super) struct Connection {
    fd: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Connects to the shim that listens at `path`.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let fd = wire::connect_to(path)?;
        Ok(Self { fd: watched(fd)? })
    }

    pub(super) async fn send(&self, message: &impl Serialize, fds: &[RawFd]) -> io::Result<()> {
        loop {
            let mut ready = self.fd.writable().await?;
            let sent = ready.try_io(|fd| wire::send(fd.as_fd(), message, fds));
            if let Ok(result) = sent {
                return result;
            }
        }
    }

    /// The next message; `None` when the shim is gone.
    pub(super) async fn receive(&self) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
        loop {
            let mut ready = self.fd.readable().await?;
            let received = ready.try_io(|fd| wire::receive(fd.as_fd()));
            match received {
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(None);
                }
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Sends the only request of this connection and waits for its answer.
    pub(super) async fn ask(
        &self,
        pod: &str,
        call: Call,
        fds: &[RawFd],
    ) -> Result<(Reply, Vec<OwnedFd>), RuntimeError> {
        let gone = |_| RuntimeError::Gone(pod.to_owned());
        self.send(&Request { seq: 0, call }, fds)
            .await
            .map_err(gone)?;
        loop {
            match self.receive().await.map_err(gone)? {
                Some((Message::Answer { result, .. }, fds)) => {
                    return match result {
                        Ok(reply) => Ok((reply, fds)),
                        Err(failure) => Err(RuntimeError::from_failure(pod, failure)),
                    };
                }
                Some(_) => {}
                None => return Err(RuntimeError::Gone(pod.to_owned())),
            }
        }
    }
}

/// A descriptor whose reads and writes return at once, and whose readiness can be awaited.
pub(super) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // SAFETY: `OwnedFd` keeps its one descriptor open until it is dropped, by the `AsyncFd`,
    // which deregisters it first.
    Ok(unsafe { AsyncFd::register(fd) }?)
}
