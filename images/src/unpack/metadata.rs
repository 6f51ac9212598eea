//! Owner, mode, extended attributes and times of an entry, and how to set them.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat};

const PAX_XATTR: &str = "SCHILY.xattr.";
/// Overlayfs's own marks: an image must not be able to forge one.
const OVERLAY_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

#[derive(Debug)]
pub(super) struct Metadata {
    uid: Uid,
    gid: Gid,
    mode: Mode,
    mtime: TimeSpec,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Whether the format that needs the PAX sparse map is used.
const PAX_SPARSE: &str = "GNU.sparse.major";

impl Metadata {
    /// Reads an entry's header and PAX records.
    ///
    /// # Errors
    /// The reason why the entry can't be represented.
    pub(super) fn read<R: Read>(entry: &mut tar::Entry<'_, R>) -> Result<Self, String> {
        let header = entry.header();
        let bad = |what: &'static str| move |error: io::Error| format!("bad {what}: {error}");
        let uid = header.uid().map_err(bad("owner"))?;
        let gid = header.gid().map_err(bad("group"))?;
        let mode = header.mode().map_err(bad("mode"))?;
        let seconds = header.mtime().map_err(bad("time"))?;
        let mut metadata = Self {
            uid: Uid::from_raw(
                u32::try_from(uid).map_err(|_| format!("owner {uid} is too large"))?,
            ),
            gid: Gid::from_raw(
                u32::try_from(gid).map_err(|_| format!("group {gid} is too large"))?,
            ),
            mode: Mode::from_bits_truncate(mode & 0o7777),
            mtime: TimeSpec::new(i64::try_from(seconds).unwrap_or(0), 0),
            xattrs: Vec::new(),
        };
        let records = entry.pax_extensions().map_err(bad("PAX header"))?;
        for record in records.into_iter().flatten() {
            let record = record.map_err(bad("PAX header"))?;
            let Ok(key) = record.key() else {
                return Err("a PAX record's key is not UTF-8".to_owned());
            };
            match key {
                "mtime" => {
                    metadata.mtime = parse_time(record.value_bytes())
                        .ok_or_else(|| "the PAX time is not a number".to_owned())?;
                }
                PAX_SPARSE => {
                    return Err("sparse files in the PAX format are not supported".to_owned());
                }
                _ => {
                    if let Some(name) = key.strip_prefix(PAX_XATTR) {
                        metadata
                            .xattrs
                            .push((name.as_bytes().to_vec(), record.value_bytes().to_vec()));
                    }
                }
            }
        }
        Ok(metadata)
    }

    pub(super) fn mtime(&self) -> TimeSpec {
        self.mtime
    }

    /// Sets everything but the times of a directory (whose content is still to come).
    ///
    /// The order matters: a change of owner clears the setuid bits and file capabilities.
    pub(super) fn set(&self, directory: &OwnedFd, name: &OsStr, is_link: bool) -> io::Result<()> {
        let node = openat(
            directory,
            name,
            OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        self.set_on(node.as_fd(), is_link)
    }

    pub(super) fn set_on(&self, node: BorrowedFd<'_>, is_link: bool) -> io::Result<()> {
        fchownat(
            node,
            "",
            Some(self.uid),
            Some(self.gid),
            AtFlags::AT_EMPTY_PATH,
        )?;
        // A descriptor of the node itself, whatever it is: the only way to change the mode or
        // the attributes of a device or a link without opening it.
        let path = format!("/proc/self/fd/{}", node.as_raw_fd());
        if !is_link {
            nix::sys::stat::fchmodat(
                nix::fcntl::AT_FDCWD,
                path.as_str(),
                self.mode,
                nix::sys::stat::FchmodatFlags::FollowSymlink,
            )?;
        }
        for (name, value) in &self.xattrs {
            if OVERLAY_XATTRS.iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            match xattr::set_deref(&path, OsStr::from_bytes(name), value) {
                Ok(()) => {}
                // As containerd does: the file system may not have them.
                Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => {
                    tracing::warn!(xattr = %name.escape_ascii(), "extended attribute not supported here");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) fn set_times(&self, directory: &OwnedFd, name: &OsStr) -> io::Result<()> {
        Ok(utimensat(
            directory,
            name,
            &self.mtime,
            &self.mtime,
            UtimensatFlags::NoFollowSymlink,
        )?)
    }
}

/// Decimal seconds with an optional fraction, perhaps before 1970 (pax(1)).
fn parse_time(value: &[u8]) -> Option<TimeSpec> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction
        .chars()
        .chain("000000000".chars())
        .take(9)
        .collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    Some(match whole.starts_with('-') && nanoseconds > 0 {
        true => TimeSpec::new(seconds - 1, 1_000_000_000 - nanoseconds),
        false => TimeSpec::new(seconds, nanoseconds),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_fractions_and_signs() {
        for (text, expected) in [
            ("12", Some((12, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.1234567891", Some((12, 123_456_789))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-3", Some((-3, 0))),
            ("x", None),
            ("1.x", None),
        ] {
            let expected = expected.map(|(s, ns)| TimeSpec::new(s, ns));
            assert_eq!(parse_time(text.as_bytes()), expected, "{text}");
        }
    }
}
