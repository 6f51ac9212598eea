//! The terminal that a command is typed at.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// Every key goes to the program at once and unchanged, until this is dropped.
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// # Errors
    /// When standard input is not a terminal.
    pub fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &self.before);
    }
}

nix::ioctl_read_bad!(get_window_size, nix::libc::TIOCGWINSZ, nix::libc::winsize);

/// Rows and columns; `None` when standard input is not a terminal.
pub fn size() -> Option<(u16, u16)> {
    size_of(&io::stdin())
}

/// Rows and columns of what may be a terminal.
pub fn size_of(file: &impl AsRawFd) -> Option<(u16, u16)> {
    let mut size = nix::libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open, and the kernel writes one `winsize`.
    unsafe { get_window_size(file.as_raw_fd(), &raw mut size) }.ok()?;
    Some((size.ws_row, size.ws_col))
}
