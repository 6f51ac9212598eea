//! Owner, mode, extended attributes and times of an entry, and how to set them.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};

use super::stream::Entry;

/// Overlayfs's own marks: an image must not be able to forge one.
const OVERLAY_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

#[derive(Debug)]
pub(super) struct Metadata<'a> {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    mtime: TimeSpec,
    xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

impl<'a> Metadata<'a> {
    /// # Errors
    /// The reason why no file can have it.
    pub(super) fn of(entry: &'a Entry) -> Result<Self, String> {
        let id = |what: &str, id: u64| {
            u32::try_from(id).map_err(|_| format!("the {what} {id} is too large"))
        };
        Ok(Self {
            uid: Uid::from_raw(id("owner", entry.uid)?),
            gid: Gid::from_raw(id("group", entry.gid)?),
            mode: Mode::from_bits_truncate(entry.mode & 0o7777),
            mtime: TimeSpec::new(entry.mtime.0, entry.mtime.1),
            xattrs: &entry.xattrs,
        })
    }

    pub(super) fn mtime(&self) -> TimeSpec {
        self.mtime
    }

    /// Sets everything but the time.
    pub(super) fn set(&self, directory: &OwnedFd, name: &OsStr, node: Node) -> io::Result<()> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let opened = openat(directory, name, flags, Mode::empty())?;
        self.set_on(opened.as_fd(), node)
    }

    /// The order matters: a change of owner clears the setuid bits and file capabilities.
    pub(super) fn set_on(&self, opened: BorrowedFd<'_>, node: Node) -> io::Result<()> {
        fchownat(
            opened,
            "",
            Some(self.uid),
            Some(self.gid),
            AtFlags::AT_EMPTY_PATH,
        )?;
        // A descriptor of the node itself, whatever it is: the only way to change the mode or
        // the attributes of a device or a link without opening it.
        let path = format!("/proc/self/fd/{}", opened.as_raw_fd());
        if node != Node::Symlink {
            fchmodat(
                AT_FDCWD,
                path.as_str(),
                self.mode,
                FchmodatFlags::FollowSymlink,
            )?;
        }
        for (name, value) in self.xattrs {
            if OVERLAY_XATTRS.iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            match xattr::set_deref(&path, OsStr::from_bytes(name), value) {
                // As containerd does: the file system may not have them.
                Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                    tracing::warn!(xattr = %name.escape_ascii(), "extended attribute not supported here");
                }
                result => result?,
            }
        }
        Ok(())
    }

    pub(super) fn set_time(&self, directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let flags = UtimensatFlags::NoFollowSymlink;
        Ok(utimensat(directory, name, &self.mtime, &self.mtime, flags)?)
    }
}

/// What can be set depends on it: a symbolic link has no mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    Symlink,
    Other,
}
