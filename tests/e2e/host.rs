//! What a cluster has on the host, seen with the kernel's own eyes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use skiff_agent::identity::Identity;

/// Everything on this host that belongs to the node, one line for each thing; empty when there is nothing.
pub(crate) fn traces(identity: &Identity) -> Vec<String> {
    let mut found = Vec::new();
    found.extend(processes(identity));
    found.extend(mounts(identity));
    found.extend(
        cgroups(identity)
            .into_iter()
            .map(|c| format!("cgroup {}", c.display())),
    );
    found.extend(links(identity).into_iter().map(|l| format!("link {l}")));
    found.extend(nft_tables(identity));
    found.extend(claims(identity));
    found.extend(routes(identity));
    if identity.run_dir().exists() {
        found.push(format!("{}", identity.run_dir().display()));
    }
    found
}

/// Processes that are in the node's cgroups, or carry its data or run directory on their command line.
fn processes(identity: &Identity) -> Vec<String> {
    let data = identity.data_dir().display().to_string();
    let run = identity.run_dir().display().to_string();
    let cgroup = format!("/{}/", identity.cgroup_root());
    pids()
        .into_iter()
        .filter(|pid| *pid != std::process::id() as i32)
        .filter_map(|pid| {
            let command = command_line(pid);
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let ours =
                command.contains(&data) || command.contains(&run) || groups.contains(&cgroup);
            ours.then(|| format!("process {pid}: {command}"))
        })
        .collect()
}

fn pids() -> Vec<i32> {
    fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect()
}

/// The command line, its words separated by spaces; empty when the process is gone.
pub(crate) fn command_line(pid: i32) -> String {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&raw)
        .replace('\0', " ")
        .trim_end()
        .to_owned()
}

fn mounts(identity: &Identity) -> Vec<String> {
    let data = identity.data_dir().display().to_string();
    let run = identity.run_dir().display().to_string();
    fs::read_to_string("/proc/self/mountinfo")
        .expect("mountinfo")
        .lines()
        .filter(|line| {
            let target = line.split(' ').nth(4).unwrap_or_default();
            target.starts_with(&data) || target.starts_with(&run)
        })
        .map(|line| format!("mount {line}"))
        .collect()
}

/// Where the hierarchies are: the directory itself with pure cgroup v2, else one for each controller.
pub(crate) fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    fs::read_dir(root)
        .expect("cgroups")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

fn cgroups(identity: &Identity) -> Vec<PathBuf> {
    hierarchies()
        .into_iter()
        .map(|h| h.join(identity.cgroup_root()))
        .filter(|c| c.exists())
        .collect()
}

/// The content of a cgroup's file, found in whichever hierarchy has it.
pub(crate) fn cgroup_file(cgroup: &str, file: &str) -> Option<String> {
    hierarchies()
        .into_iter()
        .find_map(|hierarchy| fs::read_to_string(hierarchy.join(cgroup).join(file)).ok())
        .map(|content| content.trim().to_owned())
}

/// Whether the host has cgroup v2 alone.
pub(crate) fn cgroup_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

fn links(identity: &Identity) -> Vec<String> {
    fs::read_dir("/sys/class/net")
        .expect("links")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with(&identity.link_prefix()))
        .collect()
}

/// Addresses on `lo` that claim blocks.
fn claims(identity: &Identity) -> Vec<String> {
    let label = format!("lo:{}", identity.link_prefix());
    ip(&["-o", "address", "show", "dev", "lo"])
        .into_iter()
        .filter(|line| line.contains(&label))
        .collect()
}

/// Routes to services and other nodes.
fn routes(identity: &Identity) -> Vec<String> {
    let metric = format!("metric {} ", identity.link_group());
    ip(&["route", "show", "proto", "83"])
        .into_iter()
        .filter(|line| format!("{line} ").contains(&metric))
        .collect()
}

fn ip(args: &[&str]) -> Vec<String> {
    let output = Command::new("ip").args(args).output().expect("ip");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(str::to_owned).collect()
}

/// The node's own, and those of its drills.
fn nft_tables(identity: &Identity) -> Vec<String> {
    let output = Command::new("nft")
        .args(["list", "tables"])
        .output()
        .expect("nft");
    let own = format!("table inet {}", identity.nft_table());
    let drills = format!("table inet {}", identity.drill_table_prefix());
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter(|line| *line == own || line.starts_with(&drills))
        .map(|line| format!("nftables {line}"))
        .collect()
}

/// The inode of one of a process's namespaces (`net`, `pid` ...).
pub(crate) fn namespace(pid: i32, kind: &str) -> String {
    let link =
        fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("namespace of a running process");
    link.display().to_string()
}

/// A field of `/proc/PID/status`.
pub(crate) fn status_field(pid: i32, field: &str) -> String {
    let status =
        fs::read_to_string(format!("/proc/{pid}/status")).expect("status of a running process");
    let line = status
        .lines()
        .find(|line| line.starts_with(&format!("{field}:")))
        .expect("the field");
    line[field.len() + 1..].trim().to_owned()
}

/// GET / of an HTTP server, by hand: status line, headers and body.
///
/// # Errors
/// When the server can't be reached or hangs up.
pub(crate) fn http_get(address: &str) -> std::io::Result<String> {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    let address = address.parse().map_err(std::io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, std::time::Duration::from_secs(5))?;
    // Who answers may vanish without a word.
    stream.set_read_timeout(Some(std::time::Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: pod\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
