//! Using up CPU time.

use std::io;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::left;

/// Threads that do nothing but run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spin {
    pub(crate) threads: usize,
}

impl Spin {
    pub(super) fn run(&self, until: Timestamp) -> io::Result<()> {
        for number in 0..self.threads {
            std::thread::Builder::new()
                .name(format!("spin-{number}"))
                .stack_size(64 << 10)
                .spawn(|| {
                    loop {
                        std::hint::spin_loop();
                    }
                })?;
        }
        // The threads end with the process. The clock may be set meanwhile.
        while !left(until).is_zero() {
            std::thread::sleep(left(until).min(std::time::Duration::from_secs(1)));
        }
        Ok(())
    }
}
