//! Packets of JSON with file descriptors, over a sequenced-packet Unix socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    connect, recvmsg, sendmsg, setsockopt, socket, sockopt,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// No message carries more descriptors than this.
const MAX_FDS: usize = 3;

/// Room asked for in a socket's send buffer: one packet must fit in it.
const PACKET_BYTES: usize = 1 << 20;

/// A connection to the shim whose socket is at `path`; blocking.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` when no shim listens there.
pub fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    connect(fd.as_raw_fd(), &address(path)?)?;
    enlarge(fd.as_fd());
    Ok(fd)
}

/// The address of a socket file. Paths are limited to 107 bytes.
///
/// # Errors
/// When the path is too long.
pub fn address(path: &Path) -> io::Result<UnixAddr> {
    UnixAddr::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

/// Makes room for large packets, as far as the host allows.
pub fn enlarge(fd: BorrowedFd<'_>) {
    if setsockopt(&fd, sockopt::SndBufForce, &PACKET_BYTES).is_err() {
        let _ = setsockopt(&fd, sockopt::SndBuf, &PACKET_BYTES);
    }
}

/// Sends one message.
///
/// # Errors
/// `WouldBlock` on a full non-blocking socket, `BrokenPipe` when the other side is gone.
pub fn send(fd: BorrowedFd<'_>, message: &impl Serialize, fds: &[RawFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message).map_err(io::Error::other)?;
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<UnixAddr>(
        fd.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one message and its descriptors; `None` when the other side has closed.
///
/// # Errors
/// `WouldBlock` on an empty non-blocking socket, `InvalidData` when it is not a `T`.
pub fn receive<T: DeserializeOwned>(fd: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let length = pending_length(fd)?;
    let mut bytes = vec![0u8; length.max(1)];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut iov = [IoSliceMut::new(&mut bytes)];
    let packet = recvmsg::<UnixAddr>(
        fd.as_raw_fd(),
        &mut iov,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for message in packet.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = message {
            for fd in raw {
                // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    let received = packet.bytes;
    if received == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&bytes[..received])
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((message, fds)))
}

/// The length of the next packet, which stays in the queue.
fn pending_length(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC;
    Ok(nix::sys::socket::recv(fd.as_raw_fd(), &mut [], flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::socketpair;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (a, b) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let long = "x".repeat(100_000);
        enlarge(a.as_fd());
        send(a.as_fd(), &long, &[file.as_raw_fd()]).unwrap();
        send(a.as_fd(), &"short", &[]).unwrap();
        let (first, fds) = receive::<String>(b.as_fd()).unwrap().unwrap();
        assert_eq!(first, long);
        assert_eq!(fds.len(), 1);
        let (second, fds) = receive::<String>(b.as_fd()).unwrap().unwrap();
        assert_eq!(second, "short");
        assert!(fds.is_empty());
        drop(a);
        assert!(receive::<String>(b.as_fd()).unwrap().is_none());
    }
}
