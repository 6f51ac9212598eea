//! When things happen, by two clocks: the wall clock says when, the one that is never set says how long between.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use tokio::time::Instant;

use super::samples::{Outcome, Sample};

/// A request that was sent.
#[derive(Debug, Clone, Copy)]
pub(in crate::drill) struct Sent {
    sent_at: u64,
    sent: u64,
    begin: Instant,
    late: u16,
}

/// The host's clock that is never set, as other processes read it too.
#[derive(Debug, Clone, Copy)]
pub(in crate::drill) struct Clock {
    /// Microseconds at `base`.
    ticks: u64,
    base: Instant,
}

impl Clock {
    pub(in crate::drill) fn start() -> std::io::Result<Self> {
        Ok(Self {
            ticks: monotonic()?.as_micros() as u64,
            base: Instant::now(),
        })
    }

    /// Something is sent now that was to be sent at `due`.
    pub(in crate::drill) fn send(&self, due: Instant) -> Sent {
        let begin = Instant::now();
        let late = begin.saturating_duration_since(due).as_millis();
        let since_base = begin.duration_since(self.base).as_micros() as u64;
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        Sent {
            sent_at: wall.unwrap_or_default().as_micros() as u64,
            sent: self.ticks + since_base,
            begin,
            late: u16::try_from(late).unwrap_or(u16::MAX),
        }
    }
}

impl Sent {
    /// Its outcome is known now.
    pub(in crate::drill) fn ended(self, outcome: Outcome) -> Sample {
        let took = self.begin.elapsed().as_micros();
        Sample {
            sent_at: self.sent_at,
            sent: self.sent,
            took: u32::try_from(took).unwrap_or(u32::MAX),
            late: self.late,
            outcome,
        }
    }
}

/// clock_gettime(2) with `CLOCK_MONOTONIC`.
fn monotonic() -> std::io::Result<Duration> {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes into `time`, which lives longer than the call.
    Errno::result(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) })?;
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}
