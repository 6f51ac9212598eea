//! What control groups use, read from the kernel's files.

use std::fs;
use std::path::Path;

use crate::runtime::error::RuntimeError;
use crate::runtime::types::CgroupStats;

/// v1 says "no limit" with the largest multiple of a page that fits.
pub(super) const V1_UNLIMITED: u64 = 0x7fff_ffff_ffff_f000;

pub(super) fn v1(cpuacct: &Path, memory: &Path, pids: &Path) -> Result<CgroupStats, RuntimeError> {
    let usage = number(memory, "memory.usage_in_bytes")?;
    let stat = read(memory, "memory.stat")?;
    let inactive = keyed(&stat, "total_inactive_file");
    let limit = number(memory, "memory.limit_in_bytes")?;
    Ok(CgroupStats {
        cpu_usage_ns: number(cpuacct, "cpuacct.usage")?,
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(inactive),
        memory_rss_bytes: keyed(&stat, "total_rss"),
        memory_limit_bytes: (limit < V1_UNLIMITED).then_some(limit),
        pids: number(pids, "pids.current")?,
    })
}

pub(super) fn v2(directory: &Path) -> Result<CgroupStats, RuntimeError> {
    let usage = number(directory, "memory.current")?;
    let stat = read(directory, "memory.stat")?;
    let cpu = read(directory, "cpu.stat")?;
    Ok(CgroupStats {
        cpu_usage_ns: keyed(&cpu, "usage_usec") * 1000,
        memory_usage_bytes: usage,
        memory_working_set_bytes: usage.saturating_sub(keyed(&stat, "inactive_file")),
        memory_rss_bytes: keyed(&stat, "anon"),
        memory_limit_bytes: read(directory, "memory.max")?.trim().parse().ok(),
        pids: number(directory, "pids.current")?,
    })
}

fn read(directory: &Path, file: &str) -> Result<String, RuntimeError> {
    let path = directory.join(file);
    fs::read_to_string(&path).map_err(RuntimeError::io("reading", path))
}

fn number(directory: &Path, file: &str) -> Result<u64, RuntimeError> {
    let text = read(directory, file)?;
    text.trim().parse().map_err(|_| {
        RuntimeError::Cgroup(format!(
            "{}/{file} is not a number: {text:?}",
            directory.display()
        ))
    })
}

/// The number after a word at the start of a line; 0 when the kernel does not tell it.
fn keyed(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .unwrap_or(0)
}
