//! What a container writes: read from its pipes or terminal, logged, and copied to the clients
//! that are attached.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{read, write};

use crate::clock::Moment;
use crate::log::{Lines, LogFile, Stream};

/// Read at a time. The buffer is on the stack, of which an idle shim should have little.
const CHUNK: usize = 8 * 1024;

/// What an attached client may be behind before it is let go.
const MAX_BACKLOG: usize = 1 << 20;

/// One stream of a container.
pub(crate) struct Output {
    pub(crate) fd: OwnedFd,
    stream: Stream,
    lines: Lines,
}

impl Output {
    pub(crate) fn new(fd: OwnedFd, stream: Stream) -> Self {
        set_nonblocking(&fd);
        Self {
            fd,
            stream,
            lines: Lines::new(stream),
        }
    }

    /// Moves one chunk; whether there may be more.
    pub(crate) fn pump(&mut self, log: &mut Option<LogFile>, attached: &mut [Attached]) -> Pumped {
        let mut buffer = [0u8; CHUNK];
        let bytes = match read(&self.fd, &mut buffer) {
            Ok(0) => return Pumped::End,
            Ok(count) => &buffer[..count],
            Err(Errno::EAGAIN) => return Pumped::Empty,
            Err(Errno::EINTR) => return Pumped::More,
            // A terminal that nobody has open any more.
            Err(_) => return Pumped::End,
        };
        if let Some(log) = log {
            let mut entries = Vec::with_capacity(bytes.len() + 64);
            self.lines.feed(bytes, Moment::now(), &mut entries);
            log.write(&entries);
        }
        for client in attached {
            client.give(self.stream, bytes);
        }
        Pumped::More
    }

    /// Moves what is there, and logs the line that was begun.
    pub(crate) fn finish(mut self, log: &mut Option<LogFile>, attached: &mut [Attached]) {
        while matches!(self.pump(log, attached), Pumped::More) {}
        if let Some(log) = log {
            let mut entries = Vec::new();
            self.lines.finish(Moment::now(), &mut entries);
            log.write(&entries);
        }
    }
}

pub(crate) enum Pumped {
    More,
    Empty,
    End,
}

/// A client that is attached to a container's output.
pub(crate) struct Attached {
    pub(crate) client: u64,
    stdout: Sink,
    stderr: Sink,
}

impl Attached {
    pub(crate) fn new(client: u64, stdout: OwnedFd, stderr: OwnedFd) -> Self {
        Self {
            client,
            stdout: Sink::new(stdout),
            stderr: Sink::new(stderr),
        }
    }

    fn give(&mut self, stream: Stream, bytes: &[u8]) {
        match stream {
            Stream::Stdout => self.stdout.give(bytes),
            Stream::Stderr => self.stderr.give(bytes),
        }
    }

    /// The descriptors that wait to be writable.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &OwnedFd> {
        let sinks = [&self.stdout, &self.stderr].into_iter();
        let waiting = sinks.filter(|sink| !sink.backlog.is_empty());
        waiting.filter_map(|sink| sink.fd.as_ref())
    }

    pub(crate) fn flush(&mut self) {
        self.stdout.flush();
        self.stderr.flush();
    }
}

/// A pipe to a client, which may be slow or gone.
struct Sink {
    fd: Option<OwnedFd>,
    backlog: Vec<u8>,
}

impl Sink {
    fn new(fd: OwnedFd) -> Self {
        set_nonblocking(&fd);
        Self {
            fd: Some(fd),
            backlog: Vec::new(),
        }
    }

    fn give(&mut self, bytes: &[u8]) {
        if self.fd.is_some() {
            self.backlog.extend_from_slice(bytes);
            self.flush();
        }
        if self.backlog.len() > MAX_BACKLOG {
            self.close();
        }
    }

    fn flush(&mut self) {
        let Some(fd) = &self.fd else { return };
        let mut written = 0;
        while written < self.backlog.len() {
            match write(fd.as_fd(), &self.backlog[written..]) {
                Ok(count) => written += count,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => return self.close(),
            }
        }
        self.backlog.drain(..written);
        if self.backlog.is_empty() {
            self.backlog = Vec::new();
        }
    }

    fn close(&mut self) {
        self.fd = None;
        self.backlog = Vec::new();
    }
}

pub(crate) fn set_nonblocking(fd: &OwnedFd) {
    if let Ok(flags) = fcntl(fd, FcntlArg::F_GETFL) {
        let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
        let _ = fcntl(fd, FcntlArg::F_SETFL(flags));
    }
}
