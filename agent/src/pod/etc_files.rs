//! The files that Kubernetes manages in every container: `/etc/hosts`, `/etc/hostname`,
//! `/etc/resolv.conf`. They are written into the pod's directory and bind-mounted.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

/// The files of one pod on the host.
#[derive(Debug, Clone)]
pub struct EtcFiles {
    pub hosts: PathBuf,
    pub hostname: PathBuf,
    pub resolv_conf: PathBuf,
}

impl EtcFiles {
    /// Where a pod's files are.
    pub fn at(pod_dir: &Path) -> Self {
        Self {
            hosts: pod_dir.join("etc-hosts"),
            hostname: pod_dir.join("etc-hostname"),
            resolv_conf: pod_dir.join("resolv.conf"),
        }
    }

    /// Writes them, in place: running containers have them mounted. Blocking.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write(&self, pod: &Pod, pod_ips: &[IpAddr]) -> std::io::Result<()> {
        let host_hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let host_resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        std::fs::write(&self.hosts, hosts(pod, pod_ips, &host_hosts))?;
        std::fs::write(&self.hostname, format!("{}\n", hostname(pod)))?;
        std::fs::write(&self.resolv_conf, resolv_conf(pod, &host_resolv))
    }
}

fn spec(pod: &Pod) -> Option<&PodSpec> {
    pod.spec.as_ref()
}

/// The host's own namespace is used instead of one for the pod.
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).and_then(|s| s.host_network).unwrap_or(false)
}

/// The name that the pod's processes see.
pub fn hostname(pod: &Pod) -> String {
    if host_network(pod) {
        return nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
    }
    let declared = spec(pod).and_then(|s| {
        s.hostname_override
            .clone()
            .or_else(|| s.hostname.clone())
            .filter(|h| !h.is_empty())
    });
    let name = declared.unwrap_or_else(|| pod.metadata.name.clone().unwrap_or_default());
    // The kernel takes 64 bytes, Kubernetes cuts at 63 and leaves no separator at the end.
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

fn hosts(pod: &Pod, pod_ips: &[IpAddr], host_file: &str) -> String {
    let mut out = if host_network(pod) {
        format!("# Kubernetes-managed hosts file (host network).\n{host_file}")
    } else {
        let mut out = String::from(
            "# Kubernetes-managed hosts file.\n\
             127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        );
        let name = hostname(pod);
        for ip in pod_ips {
            let _ = match domain(pod) {
                Some(domain) => writeln!(out, "{ip}\t{name}.{domain}\t{name}"),
                None => writeln!(out, "{ip}\t{name}"),
            };
        }
        out
    };
    let aliases = spec(pod).and_then(|s| s.host_aliases.as_ref());
    if let Some(aliases) = aliases.filter(|a| !a.is_empty()) {
        out.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            let _ = writeln!(out, "{}\t{names}", alias.ip);
        }
    }
    out
}

/// `<subdomain>.<namespace>.svc.cluster.local` for a pod with a subdomain.
fn domain(pod: &Pod) -> Option<String> {
    let subdomain = spec(pod)?.subdomain.as_ref().filter(|s| !s.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{subdomain}.{namespace}.svc.cluster.local"))
}

/// The resolver's configuration: the host's, except with `dnsPolicy: None`, plus `dnsConfig`.
/// `ClusterFirst` falls back to the host's, as the kubelet does without a cluster DNS address.
fn resolv_conf(pod: &Pod, host_file: &str) -> String {
    let policy = spec(pod).and_then(|s| s.dns_policy.as_deref());
    let (mut servers, mut searches, mut options) = match policy {
        Some("None") => (Vec::new(), Vec::new(), Vec::new()),
        _ => parse_resolv(host_file),
    };
    if let Some(config) = spec(pod).and_then(|s| s.dns_config.as_ref()) {
        for server in config.nameservers.iter().flatten() {
            push_new(&mut servers, server.clone());
        }
        for search in config.searches.iter().flatten() {
            push_new(&mut searches, search.clone());
        }
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            options.retain(|o: &String| o.split(':').next() != Some(name));
            options.push(match &option.value {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.clone(),
            });
        }
    }
    let mut out = String::new();
    if !searches.is_empty() {
        let _ = writeln!(out, "search {}", searches.join(" "));
    }
    for server in &servers {
        let _ = writeln!(out, "nameserver {server}");
    }
    if !options.is_empty() {
        let _ = writeln!(out, "options {}", options.join(" "));
    }
    out
}

fn push_new(list: &mut Vec<String>, item: String) {
    if !list.contains(&item) {
        list.push(item);
    }
}

fn parse_resolv(text: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next().map(str::to_owned)),
            Some("search") => searches = words.map(str::to_owned).collect(),
            Some("options") => options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    (servers, searches, options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn hosts_file_has_the_pod_and_its_aliases() {
        let pod = pod(json!({"containers": [], "subdomain": "db",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = hosts(&pod, &["10.1.0.2".parse().unwrap()], "");
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(text.contains("10.1.0.2\tweb-0.db.ns.svc.cluster.local\tweb-0\n"));
        assert!(text.ends_with("# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"));
    }

    #[test]
    fn resolv_conf_follows_the_policy() {
        let host = "nameserver 9.9.9.9\nsearch example.org\n";
        let default = resolv_conf(&pod(json!({"containers": []})), host);
        assert_eq!(default, "search example.org\nnameserver 9.9.9.9\n");
        let own = pod(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
            "nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}]}}));
        assert_eq!(
            resolv_conf(&own, host),
            "search x\nnameserver 1.1.1.1\noptions ndots:2\n"
        );
    }

    #[test]
    fn long_names_are_cut() {
        let mut pod = pod(json!({"containers": []}));
        pod.metadata.name = Some(format!("{}-tail", "a".repeat(62)));
        assert_eq!(hostname(&pod), "a".repeat(62));
    }
}
