//! The container's root: an overlay of the image's layers, mounted where only the container sees
//! it, so that it disappears with the container.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::utsname::uname;
use skiff_shim::protocol::Overlay;

use crate::{Result, context};

// `enum fsconfig_command` of the kernel.
const SET_FLAG: libc::c_uint = 0;
const SET_STRING: libc::c_uint = 1;
const CREATE: libc::c_uint = 6;

/// Mounts the overlay at `target`.
pub(crate) fn mount_overlay(overlay: &Overlay, target: &Path) -> Result<()> {
    if !takes_layers_one_by_one() {
        return mount_with_options(overlay, target);
    }
    match assemble(overlay) {
        Ok(filesystem) => {
            attach(&filesystem, target).map_err(context("mounting the root at", target))
        }
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => mount_with_options(overlay, target),
        Err(error) => Err(context("assembling", "the container's layers")(error)),
    }
}

/// Since Linux 6.5 an overlay takes its layers by one call for each, with no limit to how many
/// there are. Asking an older kernel for it would leave a line in its log at each start.
fn takes_layers_one_by_one() -> bool {
    let release = uname().ok();
    let release = release.as_ref().and_then(|host| host.release().to_str());
    // A release that can't be read is tried: the old way is fallen back to.
    release
        .and_then(version)
        .is_none_or(|version| version >= (6, 5))
}

/// `(6, 1)` of `6.1.0-13-cloud-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn assemble(overlay: &Overlay) -> nix::Result<OwnedFd> {
    // SAFETY: the name ends with NUL; the result is a new descriptor or an error.
    let opened = unsafe { libc::syscall(libc::SYS_fsopen, c"overlay".as_ptr(), 1) };
    let context = owned(opened)?;
    // What /proc/mounts shows as the device; container runtimes say `overlay`.
    configure(&context, SET_STRING, Some(c"source"), Some(c"overlay"))?;
    for layer in overlay.lower.iter().rev() {
        set(&context, c"lowerdir+", layer)?;
    }
    set(&context, c"upperdir", &overlay.upper)?;
    set(&context, c"workdir", &overlay.work)?;
    // A container's layer is thrown away with it: what it syncs need not reach the disk.
    let _ = configure(&context, SET_FLAG, Some(c"volatile"), None);
    configure(&context, CREATE, None, None)?;
    // SAFETY: the descriptor is open; the result is a new one or an error.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, context.as_raw_fd(), 1, 0) })
}

fn set(context: &OwnedFd, key: &CStr, path: &Path) -> nix::Result<()> {
    let value =
        CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::ENAMETOOLONG)?;
    configure(context, SET_STRING, Some(key), Some(&value))
}

fn configure(
    context: &OwnedFd,
    command: libc::c_uint,
    key: Option<&CStr>,
    value: Option<&CStr>,
) -> nix::Result<()> {
    let pointer = |text: Option<&CStr>| text.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the descriptor is open, and the strings outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_fsconfig,
            context.as_raw_fd(),
            command,
            pointer(key),
            pointer(value),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// A detached copy of the mount at a path and of those below it.
pub(crate) fn clone_tree(path: &Path) -> nix::Result<OwnedFd> {
    let path =
        CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::ENAMETOOLONG)?;
    const CLONE: libc::c_int = 1;
    let flags = CLONE | libc::O_CLOEXEC | libc::AT_RECURSIVE;
    // SAFETY: the string outlives the call; the result is a new descriptor or an error.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Mounts a detached mount somewhere.
pub(crate) fn attach(filesystem: &OwnedFd, target: &Path) -> nix::Result<()> {
    let target =
        CString::new(target.as_os_str().as_encoded_bytes()).map_err(|_| Errno::ENAMETOOLONG)?;
    const FROM_EMPTY_PATH: libc::c_uint = 4;
    // SAFETY: the descriptor is open, and the strings outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            filesystem.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            FROM_EMPTY_PATH,
        )
    };
    Errno::result(result).map(drop)
}

/// `mount(2)`, whose options have to fit into a page.
fn mount_with_options(overlay: &Overlay, target: &Path) -> Result<()> {
    let escape = |path: &Path| {
        let text = path.display().to_string();
        text.replace('\\', "\\\\")
            .replace(':', "\\:")
            .replace(',', "\\,")
    };
    let lower: Vec<_> = overlay
        .lower
        .iter()
        .rev()
        .map(|path| escape(path))
        .collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        escape(&overlay.upper),
        escape(&overlay.work)
    );
    let overlay = Some("overlay");
    mount(
        overlay,
        target,
        overlay,
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .map_err(context("mounting the root at", target))
}

fn owned(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = Errno::result(result)? as i32;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_tells_its_version() {
        assert_eq!(version("6.1.0-13-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("6.18.5+"), Some((6, 18)));
        assert_eq!(version("rolling"), None);
        assert!(version("10.0").unwrap() > version("6.5.1").unwrap());
    }
}
