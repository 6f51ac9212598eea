//! The data directory: made private, and held by one process at a time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;
use skiff_agent::identity::Identity;

/// Where a cluster keeps its state unless told otherwise.
pub const DEFAULT: &str = "/var/lib/skiff";

/// A data directory, locked for as long as this value lives.
pub struct DataDir {
    identity: Identity,
    _lock: Flock<File>,
}

/// Why a data directory could not be locked.
pub enum Locked {
    /// Another live process holds it; its pid, where it could be read.
    By(Option<Pid>),
}

impl DataDir {
    /// Makes the directory (mode 0700) where it is missing, and locks it.
    ///
    /// # Errors
    /// When the directory can't be made or locked, or another process holds it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if !path.exists() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .with_context(|| format!("cannot make the data directory {}", path.display()))?;
        }
        match Self::try_lock(path)? {
            Ok(dir) => Ok(dir),
            Err(Locked::By(holder)) => {
                let holder = holder.map_or_else(String::new, |pid| format!(" (pid {pid})"));
                anyhow::bail!(
                    "the data directory {} is in use by another skiff process{holder}; \
                     stop it, or choose another with --data-dir",
                    path.display()
                )
            }
        }
    }

    /// Locks an existing directory, or says who holds it.
    pub fn try_lock(path: &Path) -> anyhow::Result<Result<Self, Locked>> {
        let identity = Identity::of(path)
            .with_context(|| format!("cannot use the data directory {}", path.display()))?;
        let lock_path = identity.data_dir().join("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .with_context(|| format!("cannot open {}", lock_path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                lock.set_len(0)?;
                writeln!(lock, "{}", std::process::id())?;
                Ok(Ok(Self {
                    identity,
                    _lock: lock,
                }))
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid)?;
                let pid = pid.trim().parse().ok().map(Pid::from_raw);
                Ok(Err(Locked::By(pid)))
            }
            Err((_, errno)) => {
                Err(errno).with_context(|| format!("cannot lock {}", lock_path.display()))
            }
        }
    }

    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    pub fn path(&self) -> &Path {
        self.identity.data_dir()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.path().join("kubeconfig")
    }

    /// Removes the directory and everything in it.
    pub fn remove(self) -> anyhow::Result<()> {
        let path = self.path().to_path_buf();
        fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))
    }
}
