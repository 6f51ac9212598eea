//! A netlink socket that sends many requests at once and reads what became of each.
//!
//! The kernel carries out netlink requests inside `sendmsg`, and its answers are queued by the time
//! that returns. So nothing here waits for an event: setting up a pod's whole end of the network is
//! one `send` and one `recv` for each answer, on whatever thread entered the namespace.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};

const HEADER_LEN: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// What every kernel takes without being told to make room.
const DEFAULT_SEND_BYTES: usize = 64 * 1024;
/// More than the kernel puts in one datagram of a dump.
pub(super) const RECEIVE_BYTES: usize = 64 * 1024;

/// One message for the kernel.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) payload: Vec<u8>,
}

impl Request {
    /// A request that the kernel acknowledges.
    pub(super) fn route(message: &RouteNetlinkMessage, flags: u16) -> Self {
        let mut payload = vec![0; message.buffer_len()];
        message.serialize(&mut payload);
        Self {
            kind: message.message_type(),
            flags: flags | NLM_F_ACK,
            payload,
        }
    }

    fn emit(&self, sequence: u32, buffer: &mut Vec<u8>) {
        let length = (HEADER_LEN + self.payload.len()) as u32;
        buffer.extend_from_slice(&length.to_ne_bytes());
        buffer.extend_from_slice(&self.kind.to_ne_bytes());
        buffer.extend_from_slice(&(self.flags | NLM_F_REQUEST).to_ne_bytes());
        buffer.extend_from_slice(&sequence.to_ne_bytes());
        buffer.extend_from_slice(&0u32.to_ne_bytes());
        buffer.extend_from_slice(&self.payload);
        buffer.resize(buffer.len().next_multiple_of(4), 0);
    }
}

/// The kernel refused one request of a batch; those after it may have been carried out.
#[derive(Debug, thiserror::Error)]
#[error("{source}")]
pub(super) struct Refused {
    /// Position in the batch.
    pub(super) index: usize,
    pub(super) source: io::Error,
}

/// A socket in the network namespace of the thread that opened it; it stays in that namespace.
pub(super) struct Netlink {
    fd: OwnedFd,
    sequence: Cell<u32>,
}

impl Netlink {
    /// Links, addresses, neighbours and routes.
    pub(super) fn route() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// nftables.
    pub(super) fn netfilter() -> io::Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self {
            fd,
            sequence: Cell::new(0),
        })
    }

    /// Sends all requests at once and reads the answer to every one that asked for one.
    pub(super) fn apply(&self, requests: &[Request]) -> Result<(), Refused> {
        if requests.is_empty() {
            return Ok(());
        }
        let whole_batch = |source: io::Error| Refused { index: 0, source };
        let first = self.sequence.get() + 1;
        let mut buffer = Vec::with_capacity(1024);
        for (request, sequence) in requests.iter().zip(first..) {
            request.emit(sequence, &mut buffer);
        }
        self.sequence.set(first + requests.len() as u32);
        send(self.fd.as_raw_fd(), &buffer, MsgFlags::empty()).map_err(|e| whole_batch(e.into()))?;

        let mut unanswered = requests.iter().filter(|r| r.flags & NLM_F_ACK != 0).count();
        let mut refused: Option<Refused> = None;
        while unanswered > 0 && refused.is_none() {
            let answers = self.receive().map_err(whole_batch)?;
            for (kind, sequence, payload) in messages(&answers) {
                if kind != NLMSG_ERROR {
                    continue;
                }
                unanswered = unanswered.saturating_sub(1);
                let code = payload
                    .first_chunk()
                    .map_or(0, |code| i32::from_ne_bytes(*code));
                if code != 0 && refused.is_none() {
                    refused = Some(Refused {
                        index: sequence.saturating_sub(first) as usize,
                        source: io::Error::from_raw_os_error(-code),
                    });
                }
            }
        }
        match refused {
            None => Ok(()),
            Some(refused) => {
                self.drain();
                Err(refused)
            }
        }
    }

    /// Sends a batch of nftables requests, of which the last one before the end asks for an
    /// answer: the kernel carries out all of them or none. Gives how many bytes they were.
    pub(super) fn batch(&self, requests: &[Request]) -> Result<usize, Refused> {
        let whole_batch = |source: io::Error| Refused { index: 0, source };
        let first = self.sequence.get() + 1;
        let mut buffer = Vec::with_capacity(4096);
        for (request, sequence) in requests.iter().zip(first..) {
            request.emit(sequence, &mut buffer);
        }
        self.sequence.set(first + requests.len() as u32);
        if buffer.len() > DEFAULT_SEND_BYTES {
            setsockopt(&self.fd, sockopt::SndBufForce, &(2 * buffer.len()))
                .map_err(|e| whole_batch(e.into()))?;
        }
        send(self.fd.as_raw_fd(), &buffer, MsgFlags::empty()).map_err(|e| whole_batch(e.into()))?;

        // All answers are queued by now.
        let mut done = false;
        loop {
            let answers = match self.receive() {
                Ok(answers) => answers,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(whole_batch(error)),
            };
            for (kind, sequence, payload) in messages(&answers) {
                let code = payload.first_chunk().map(|code| i32::from_ne_bytes(*code));
                match code {
                    Some(0) if kind == NLMSG_ERROR => done = true,
                    Some(code) if kind == NLMSG_ERROR => {
                        self.drain();
                        return Err(Refused {
                            index: sequence.saturating_sub(first) as usize,
                            source: io::Error::from_raw_os_error(-code),
                        });
                    }
                    _ => {}
                }
            }
        }
        if done {
            Ok(buffer.len())
        } else {
            Err(whole_batch(io::Error::other("the kernel did not answer")))
        }
    }

    pub(super) fn apply_one(&self, request: Request) -> io::Result<()> {
        self.apply(&[request]).map_err(|refused| refused.source)
    }

    /// Everything of one kind: all links, all routes ...
    pub(super) fn dump(&self, query: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let mut request = Request::route(query, NLM_F_DUMP);
        request.flags &= !NLM_F_ACK;
        self.query(&request)
    }

    /// One thing, or `None` when the kernel knows none such.
    pub(super) fn get(
        &self,
        query: &RouteNetlinkMessage,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        match self.query(&Request::route(query, 0)) {
            Ok(found) => Ok(found.into_iter().next()),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENODEV | libc::ENOENT | libc::ESRCH)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the payload of every message of a dump to `visit`.
    pub(super) fn dump_raw(
        &self,
        request: &Request,
        mut visit: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        let mut buffer = Vec::with_capacity(128);
        request.emit(sequence, &mut buffer);
        send(self.fd.as_raw_fd(), &buffer, MsgFlags::empty())?;
        loop {
            let answers = self.receive()?;
            for (kind, _, payload) in messages(&answers) {
                match kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = payload.first_chunk().map_or(0, |c| i32::from_ne_bytes(*c));
                        return match code {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    _ => visit(payload),
                }
            }
        }
    }

    fn query(&self, request: &Request) -> io::Result<Vec<RouteNetlinkMessage>> {
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        let mut buffer = Vec::with_capacity(128);
        request.emit(sequence, &mut buffer);
        send(self.fd.as_raw_fd(), &buffer, MsgFlags::empty())?;

        let mut found = Vec::new();
        loop {
            let answers = self.receive()?;
            let mut rest = answers.as_slice();
            while let Some((message, kind, after)) = split_message(rest) {
                rest = after;
                match kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => {
                        let code = message[HEADER_LEN..]
                            .first_chunk()
                            .map_or(0, |code| i32::from_ne_bytes(*code));
                        return match code {
                            0 => Ok(found),
                            code => Err(io::Error::from_raw_os_error(-code)),
                        };
                    }
                    // A kernel newer than the crate may send what it can't parse: that
                    // message is of no use to us, the others are.
                    _ => {
                        if let Ok(NetlinkMessage {
                            payload: NetlinkPayload::InnerMessage(inner),
                            ..
                        }) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message)
                        {
                            found.push(inner);
                        }
                    }
                }
            }
        }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        let length = recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?;
        buffer.truncate(length);
        Ok(buffer)
    }

    fn drain(&self) {
        while self.receive().is_ok() {}
    }
}

/// `(kind, value)` of each attribute; flags are left out of the kind.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const KIND: u16 = 0x3fff;
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = u16::from_ne_bytes(*rest.first_chunk()?) as usize;
        if length < 4 || length > rest.len() {
            return None;
        }
        let kind = u16::from_ne_bytes([rest[2], rest[3]]) & KIND;
        let value = &rest[4..length];
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        Some((kind, value))
    })
}

/// `(kind, sequence, payload)` of each message in a datagram.
fn messages(datagram: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let (message, kind, after) = split_message(rest)?;
        rest = after;
        let sequence = u32::from_ne_bytes(*message[8..].first_chunk()?);
        Some((kind, sequence, &message[HEADER_LEN..]))
    })
}

/// The first message of a datagram, its kind, and what follows it.
pub(super) fn split_message(datagram: &[u8]) -> Option<(&[u8], u16, &[u8])> {
    let length = u32::from_ne_bytes(*datagram.first_chunk()?) as usize;
    if length < HEADER_LEN || length > datagram.len() {
        return None;
    }
    let kind = u16::from_ne_bytes([datagram[4], datagram[5]]);
    let after = length.next_multiple_of(4).min(datagram.len());
    Some((&datagram[..length], kind, &datagram[after..]))
}
