//! Turns at one image: whoever fetches it holds a lock, and others wait instead of fetching it too.
//!
//! The lock is a file under `turns`, named by the manifest's digest. It is removed before it is
//! unlocked, so that none is left behind, and whoever gets a lock looks whether its file is
//! still the one by that name.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::oneshot;

use super::disk::Disk;
use crate::{Digest, Error};

/// One's turn. It ends when this is dropped, or with the process.
#[derive(Debug)]
pub(crate) struct Turn {
    path: PathBuf,
    _lock: Flock<File>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // While the lock is held. A file that stays is taken away at the next open.
        let _ = fs::remove_file(&self.path);
    }
}

/// Takes the turn at an image if nobody has it.
pub(crate) fn take(disk: &Disk, manifest: Digest) -> Result<Option<Turn>, Error> {
    let path = disk.turns_dir().join(manifest.hex());
    lock(&path, FlockArg::LockExclusiveNonblock).map_err(Error::io(doing(&path)))
}

/// Waits for the turn at an image.
///
/// A thread of its own waits, not one of the runtime's: it can't be interrupted, and must hold up
/// nobody's end. When nobody waits for it any more, it gives the turn back at once.
pub(crate) async fn wait(disk: &Arc<Disk>, manifest: Digest) -> Result<Turn, Error> {
    let path = disk.turns_dir().join(manifest.hex());
    let (answer, answered) = oneshot::channel();
    let waited = path.clone();
    std::thread::Builder::new()
        .name("image turn".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || {
            let _ = answer.send(lock(&waited, FlockArg::LockExclusive));
        })
        .map_err(Error::io("start a thread"))?;
    let turn = answered
        .await
        .map_err(|error| Error::Interrupted(error.to_string()))?;
    turn.map_err(Error::io(doing(&path)))?
        .ok_or_else(|| Error::Interrupted(doing(&path)))
}

fn doing(path: &Path) -> String {
    format!("wait for another pull of the image ({})", path.display())
}

/// Nothing when somebody else has the lock and `how` does not wait.
fn lock(path: &Path, how: FlockArg) -> io::Result<Option<Turn>> {
    loop {
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        let lock = match Flock::lock(file, how) {
            Ok(lock) => lock,
            Err((_, Errno::EINTR)) => continue,
            Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
            Err((_, errno)) => return Err(errno.into()),
        };
        let held = lock.metadata()?.ino();
        // Otherwise it was another's, who has removed it.
        if fs::metadata(path).is_ok_and(|now| now.ino() == held) {
            return Ok(Some(Turn {
                path: path.to_owned(),
                _lock: lock,
            }));
        }
    }
}

/// Removes the files of processes that were killed.
pub(super) fn sweep(disk: &Disk) -> io::Result<()> {
    for entry in fs::read_dir(disk.turns_dir())? {
        drop(lock(&entry?.path(), FlockArg::LockExclusiveNonblock)?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    #[tokio::test]
    async fn turns_are_taken_one_after_the_other() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let (disk, image) = (store.disk().clone(), Digest::of(b"image"));
        let turn = take(&disk, image).unwrap().unwrap();
        assert!(take(&disk, image).unwrap().is_none());
        assert!(take(&disk, Digest::of(b"other")).unwrap().is_some());
        let waiting = {
            let disk = disk.clone();
            tokio::spawn(async move { wait(&disk, image).await })
        };
        // One that nobody waits for any more does not keep the turn.
        let gone = {
            let disk = disk.clone();
            tokio::spawn(async move { wait(&disk, image).await })
        };
        tokio::task::yield_now().await;
        gone.abort();
        drop(turn);
        drop(waiting.await.unwrap().unwrap());
        drop(wait(&disk, image).await.unwrap());
        assert_eq!(fs::read_dir(disk.turns_dir()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_a_killed_process_left_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let left = store.disk().turns_dir().join(Digest::of(b"a").hex());
        fs::write(&left, "").unwrap();
        Store::open(dir.path()).await.unwrap();
        assert!(!left.exists());
    }
}
