//! What the long-running commands have in common: they serve until a signal, say when they are
//! ready, and know where they are reached.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM and SIGINT.
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// From now on they don't end the process.
    pub fn listen() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The name of the next one.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// Does some work that a signal may cut short.
    ///
    /// # Errors
    /// The work's, or that it was interrupted.
    pub async fn unless<T>(
        &mut self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            done = work => done,
            signal = self.next() => anyhow::bail!("interrupted by {signal} while starting"),
        }
    }
}

/// Tells whoever waits that requests are answered: a line on stdout, and systemd where it asked.
/// A pipe that nobody reads any more is no error: who waited for the first line knows, and a restart in the
/// same process says it again.
pub fn announce(what: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "ready {what}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
        written => written.context("cannot write to stdout")?,
    }
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("cannot notify systemd")
}

/// The host's name, as Kubernetes writes it.
pub fn host_name() -> anyhow::Result<String> {
    let name = nix::unistd::gethostname().context("cannot read the host name")?;
    Ok(name.to_string_lossy().trim().to_lowercase())
}

/// An address that a client on this host can use: a wildcard is not one.
pub fn local(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => {
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port())
        }
        IpAddr::V6(ip) if ip.is_unspecified() => {
            SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port())
        }
        _ => address,
    }
}

/// The address by which other hosts reach what listens here.
pub fn remote(address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        return SocketAddr::new(skiff_agent::node::host_address(), address.port());
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_is_no_ones_address() {
        let wildcard: SocketAddr = "0.0.0.0:6443".parse().unwrap();
        assert_eq!(local(wildcard).to_string(), "127.0.0.1:6443");
        assert!(!remote(wildcard).ip().is_unspecified());
        let own: SocketAddr = "10.0.0.1:6443".parse().unwrap();
        assert_eq!((local(own), remote(own)), (own, own));
    }
}
