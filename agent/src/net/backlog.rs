//! Connections that wait at a pod's listening sockets.
//!
//! When no service leads to a pod any more, the kernel may still keep connections for it that its program had no
//! time to accept. A server that ends gracefully closes its listening sockets first, which resets them. The kernel
//! shows them in `/proc/net/tcp` and `tcp6` of the pod's network namespace: handshakes under way as sockets in
//! SYN_RECV, the others as the receive queue of the socket that listens.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::time::Instant;

/// Between two looks; also what a packet that was sent before the tables changed may take to arrive.
const GLANCE: Duration = Duration::from_millis(5);
/// How long a program is given to accept what waits: one that hangs does not hold its end up.
const PATIENCE: Duration = Duration::from_secs(1);
/// Of one pod with more sockets than any has.
const MOST_BYTES: u64 = 64 << 20;

const SYN_RECV: u8 = 0x03;
const LISTEN: u8 = 0x0a;

/// Resolves when nothing waits to be accepted in the network namespace pinned at `namespace`, after
/// [`PATIENCE`] at the latest.
///
/// # Errors
/// When the namespace can't be entered or its sockets can't be listed.
pub(super) async fn emptied(namespace: &Path) -> io::Result<()> {
    let begun = Instant::now();
    let mut sockets = Sockets::of(File::open(namespace)?.into())?;
    loop {
        tokio::time::sleep(GLANCE).await;
        if !sockets.any_waits()? || begun.elapsed() >= PATIENCE {
            return Ok(());
        }
    }
}

/// The lists of a namespace's TCP sockets; a file shows the namespace that it was opened in.
struct Sockets {
    lists: Vec<File>,
}

impl Sockets {
    fn of(namespace: OwnedFd) -> io::Result<Self> {
        // A thread that changed its namespace serves nothing else.
        let opened = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET)?;
                ["tcp", "tcp6"]
                    .map(|list| Path::new("/proc/thread-self/net").join(list))
                    .into_iter()
                    // Kernels without IPv6 have no second list.
                    .filter(|list| fs::exists(list).unwrap_or(true))
                    .map(File::open)
                    .collect()
            });
            inside.join()
        });
        let lists: io::Result<_> = match opened {
            Ok(lists) => lists,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        Ok(Self { lists: lists? })
    }

    fn any_waits(&mut self) -> io::Result<bool> {
        let mut text = String::new();
        for list in &mut self.lists {
            text.clear();
            list.rewind()?;
            list.take(MOST_BYTES).read_to_string(&mut text)?;
            if text.lines().skip(1).any(waits) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether a line of the list tells of a connection that is not accepted yet.
fn waits(socket: &str) -> bool {
    let mut fields = socket.split_ascii_whitespace().skip(3);
    let state = fields.next().and_then(|s| u8::from_str_radix(s, 16).ok());
    let queues = fields.next().and_then(|queues| queues.split_once(':'));
    match state {
        Some(SYN_RECV) => true,
        Some(LISTEN) => queues.is_some_and(|(_, received)| received.bytes().any(|c| c != b'0')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use nix::sched::unshare;

    use super::*;

    #[test]
    fn lines_are_read() {
        let line = |state, queues| {
            format!(
                "   0: 00000000:0050 00000000:0000 {state} {queues} 00:00000000 00000000  0  0 7 1"
            )
        };
        assert!(waits(&line("0A", "00000000:00000002")));
        assert!(waits(&line("03", "00000000:00000000")));
        assert!(!waits(&line("0A", "00000000:00000000")));
        assert!(
            !waits(&line("01", "00000000:00000010")),
            "accepted, not read"
        );
        assert!(!waits("") && !waits("0: x y zz"));
    }

    #[test]
    fn what_nobody_accepts_is_seen_until_somebody_does() {
        std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("tests run as root");
            let mut up = std::process::Command::new("ip");
            let up = up.args(["link", "set", "lo", "up"]).status();
            assert!(up.expect("ip(8)").success());
            let namespace = File::open("/proc/thread-self/ns/net").expect("a namespace");
            let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
            let mut sockets = Sockets::of(namespace.into()).expect("the lists");
            assert!(!sockets.any_waits().expect("a list"));
            let address = listener.local_addr().expect("an address");
            let _waiting = TcpStream::connect(address).expect("the kernel answers");
            assert!(sockets.any_waits().expect("a list"));
            let _accepted = listener.accept().expect("a connection");
            assert!(!sockets.any_waits().expect("a list"));
        })
        .join()
        .expect("the test");
    }
}
