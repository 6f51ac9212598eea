//! The store's lock between processes, and between handles in one process.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};

use crate::Error;

/// Shared: the index and what it names stay. Released when dropped.
pub(super) struct Shared(#[expect(dead_code, reason = "held, not read")] Flock<File>);

/// Exclusive: the index and the content may be changed.
pub(crate) struct Exclusive(#[expect(dead_code, reason = "held, not read")] Flock<File>);

impl Shared {
    pub(super) fn take(path: &Path) -> Result<Self, Error> {
        take(path, FlockArg::LockShared).map(Self)
    }
}

impl Exclusive {
    pub(super) fn take(path: &Path) -> Result<Self, Error> {
        take(path, FlockArg::LockExclusive).map(Self)
    }
}

fn take(path: &Path, how: FlockArg) -> Result<Flock<File>, Error> {
    let doing = || format!("lock the image store ({})", path.display());
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(Error::io(doing()))?;
    loop {
        match Flock::lock(file, how) {
            Ok(lock) => return Ok(lock),
            Err((again, nix::errno::Errno::EINTR)) => file = again,
            Err((_, errno)) => return Err(Error::io(doing())(io::Error::from(errno))),
        }
    }
}
