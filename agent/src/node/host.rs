//! What this host is and has. Everything here blocks for moments: files under /proc and /sys.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;

/// What does not change while the host runs.
#[derive(Debug, Clone, Default)]
pub struct Host {
    pub hostname: String,
    /// Go's name: `amd64`, `arm64`.
    pub architecture: &'static str,
    pub kernel: String,
    /// `PRETTY_NAME` of os-release(5).
    pub os_image: String,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub cpus: usize,
    pub memory_bytes: i64,
    pub swap_bytes: i64,
    /// Size of the file system with the node's data.
    pub storage_bytes: i64,
    pub max_pids: i64,
    /// Bytes by page size as Kubernetes names it (`2Mi`, `1Gi`).
    pub huge_pages: Vec<(String, i64)>,
}

impl Host {
    /// Looks at the host; `data` is a directory on the file system with the node's data.
    pub fn look(data: &Path) -> Self {
        let uname = nix::sys::utsname::uname().ok();
        let kernel = uname
            .as_ref()
            .map(|u| u.release().to_string_lossy().into_owned());
        let hostname = uname
            .as_ref()
            .map(|u| u.nodename().to_string_lossy().into_owned());
        Self {
            hostname: hostname.unwrap_or_default().to_lowercase(),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            kernel: kernel.unwrap_or_default(),
            os_image: os_image(&read("/etc/os-release")),
            machine_id: read("/etc/machine-id").trim().to_owned(),
            system_uuid: read("/sys/class/dmi/id/product_uuid").trim().to_owned(),
            boot_id: read("/proc/sys/kernel/random/boot_id").trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: meminfo(&read("/proc/meminfo"), "MemTotal"),
            swap_bytes: meminfo(&read("/proc/meminfo"), "SwapTotal"),
            storage_bytes: storage(data).map_or(0, |s| s.total),
            max_pids: read("/proc/sys/kernel/pid_max")
                .trim()
                .parse()
                .unwrap_or(i64::MAX),
            huge_pages: huge_pages(Path::new("/sys/kernel/mm/hugepages")),
        }
    }
}

/// Where other hosts reach this one: the source address of the default route, or the loopback
/// address of a host that has none.
pub fn host_address() -> IpAddr {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let ask = || -> std::io::Result<IpAddr> {
        // Connecting a datagram socket sends nothing; it makes the kernel choose a route.
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(SocketAddr::from(([192, 0, 2, 1], 9)))?;
        Ok(socket.local_addr()?.ip())
    };
    ask()
        .ok()
        .filter(|ip| !ip.is_unspecified())
        .unwrap_or(loopback)
}

/// What a host runs short of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pressure {
    pub memory: bool,
    pub disk: bool,
    pub pids: bool,
}

impl Pressure {
    /// Compares the host with the kubelet's default hard eviction thresholds, disk apart.
    pub fn look(data: &Path) -> Self {
        let memory = meminfo(&read("/proc/meminfo"), "MemAvailable");
        let disk = storage(data).is_some_and(|s| s.is_short());
        Self {
            memory: memory > 0 && memory < 100 << 20,
            disk,
            pids: pids_are_short(),
        }
    }
}

/// Bytes that are enough, whatever the size of the file system.
const PLENTY: i64 = 4 << 30;

/// The file system that holds pods and images.
pub(super) struct Storage {
    /// Bytes.
    pub(super) total: i64,
    /// Bytes that others than root may use.
    pub(super) available: i64,
    pub(super) inodes: u64,
    pub(super) free_inodes: u64,
}

impl Storage {
    /// Less than 5 % of the bytes or of the inodes are left, as k3s has it: images and pods
    /// share one file system, which other things of the host share too. What is plenty for any
    /// pod is no shortage, however small a part of a large file system it is.
    pub(super) fn is_short(&self) -> bool {
        let least = (self.total / 20).min(PLENTY);
        let bytes = self.available < least;
        let inodes =
            self.inodes > 0 && u128::from(self.free_inodes) * 100 < u128::from(self.inodes) * 5;
        bytes || inodes
    }
}

pub(super) fn storage(data: &Path) -> Option<Storage> {
    let stat = nix::sys::statvfs::statvfs(data).ok()?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(stat.fragment_size())).ok();
    Some(Storage {
        total: bytes(stat.blocks())?,
        available: bytes(stat.blocks_available())?,
        inodes: stat.files(),
        free_inodes: stat.files_available(),
    })
}

/// Fewer than a tenth of the process ids are left.
fn pids_are_short() -> bool {
    let max: u64 = read("/proc/sys/kernel/pid_max")
        .trim()
        .parse()
        .unwrap_or(u64::MAX);
    // "0.20 0.18 0.12 1/80 11206": the fourth field is running/all (proc(5)).
    let load = read("/proc/loadavg");
    let tasks = load.split(' ').nth(3).and_then(|f| f.split_once('/'));
    let tasks: u64 = tasks.and_then(|(_, all)| all.parse().ok()).unwrap_or(0);
    tasks.saturating_mul(10) > max.saturating_mul(9)
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A line of /proc/meminfo in bytes.
fn meminfo(text: &str, key: &str) -> i64 {
    let line = text
        .lines()
        .find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
    let kib = line.and_then(|l| l.split_whitespace().next());
    kib.and_then(|n| n.parse::<i64>().ok()).unwrap_or(0) * 1024
}

fn os_image(text: &str) -> String {
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("Linux").trim_matches('"').to_owned()
}

fn huge_pages(dir: &Path) -> Vec<(String, i64)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut pages: Vec<_> = entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let kib: i64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?;
            let count: i64 = count.trim().parse().ok()?;
            let size = match kib {
                kib if kib % (1 << 20) == 0 => format!("{}Gi", kib >> 20),
                kib if kib % (1 << 10) == 0 => format!("{}Mi", kib >> 10),
                kib => format!("{kib}Ki"),
            };
            Some((size, kib * 1024 * count))
        })
        .collect();
    pages.sort();
    pages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_the_host_says() {
        assert_eq!(
            meminfo("MemTotal:  24 kB\nMemFree: 1 kB\n", "MemTotal"),
            24 * 1024
        );
        assert_eq!(meminfo("", "MemTotal"), 0);
        assert_eq!(
            os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
    }

    #[test]
    fn looks_at_this_host() {
        let host = Host::look(Path::new("/"));
        assert!(host.cpus > 0 && host.memory_bytes > 0 && host.storage_bytes > 0);
        assert!(!host.kernel.is_empty() && !host.boot_id.is_empty());
    }

    #[test]
    fn a_disk_is_short_below_a_twentieth_but_never_above_what_is_plenty() {
        const GIB: i64 = 1 << 30;
        let short = |total: i64, available: i64, free_inodes: u64| {
            let storage = Storage {
                total,
                available,
                inodes: 1000,
                free_inodes,
            };
            storage.is_short()
        };
        assert!(short(20 * GIB, GIB - 1, 1000));
        assert!(!short(20 * GIB, GIB, 1000));
        assert!(short(1000 * GIB, 4 * GIB - 1, 1000));
        assert!(!short(1000 * GIB, 4 * GIB, 1000));
        assert!(short(20 * GIB, 10 * GIB, 49));
    }
}
