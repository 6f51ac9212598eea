//! What all measuring helpers have in common: a runtime of one thread, and the reasons to end.

use std::io;
use std::net::Ipv4Addr;

use k8s_openapi::jiff::Timestamp;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::left;
use crate::net::address_is_gone;

/// The clock may be set while a helper works: it is looked at this often.
const CLOCK: std::time::Duration = std::time::Duration::from_secs(5);

/// Does the work until it is time, the agent asks for the end (SIGTERM), or the node's pod network is gone, which `node`
/// is an address of. The work gets a token that is cancelled then, and may still finish what it began.
pub(super) fn until_ended<W: Future<Output = io::Result<()>>>(
    until: Timestamp,
    node: Ipv4Addr,
    work: impl FnOnce(CancellationToken) -> W,
) -> io::Result<()> {
    allow_many_sockets();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut asked = signal(SignalKind::terminate())?;
        let stop = CancellationToken::new();
        let ended = async {
            tokio::select! {
                () = due(until) => {}
                _ = asked.recv() => {}
                gone = address_is_gone(node) => gone?,
            }
            stop.cancel();
            Ok(())
        };
        let (ended, worked) = tokio::join!(ended, async {
            let worked = work(stop.clone()).await;
            if worked.is_err() {
                // Nothing is left to be ended.
                stop.cancel();
            }
            worked
        });
        worked.and(ended)
    })
}

async fn due(until: Timestamp) {
    while !left(until).is_zero() {
        tokio::time::sleep(left(until).min(CLOCK)).await;
    }
}

/// A slow target has many requests under way, each with a socket.
fn allow_many_sockets() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // What can't be raised is left as it is: a request without a socket is told as such.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
