//! The files that Kubernetes manages in every container: `/etc/hosts`, `/etc/hostname`,
//! `/etc/resolv.conf`. They are written into the pod's directory and bind-mounted.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, PodSpec};

use super::dns_config::{self, NodeDns};
use crate::net::dns::CLUSTER_DOMAIN;

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

    /// Writes them, in place: running containers have them mounted. Gives what had to be left out of the resolver's
    /// configuration. Blocking.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write(
        &self,
        pod: &Pod,
        pod_ips: &[IpAddr],
        dns: &NodeDns,
    ) -> std::io::Result<Vec<String>> {
        let host_hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        let formed = dns_config::form(pod, dns_config::read_host(pod, dns), dns);
        let kernel_name = kernel_hostname(pod).unwrap_or_else(|_| hostname(pod));
        std::fs::write(&self.hosts, hosts(pod, pod_ips, &host_hosts))?;
        std::fs::write(&self.hostname, format!("{kernel_name}\n"))?;
        std::fs::write(&self.resolv_conf, formed.conf.to_text())?;
        Ok(formed.warnings)
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
    if let Some(name) = spec(pod).and_then(|s| s.hostname_override.clone()) {
        return name;
    }
    let declared = spec(pod).and_then(|s| s.hostname.clone());
    let declared = declared.filter(|name| !name.is_empty());
    let name = declared.unwrap_or_else(|| pod.metadata.name.clone().unwrap_or_default());
    // The kernel takes 64 bytes, Kubernetes cuts at 63 and leaves no separator at the end.
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The name that the kernel tells, which `setHostnameAsFQDN` makes the full one.
///
/// # Errors
/// The kubelet's words when the full name is longer than the kernel takes.
pub fn kernel_hostname(pod: &Pod) -> Result<String, String> {
    const MOST: usize = 64;
    let name = hostname(pod);
    let full = spec(pod).and_then(|s| s.set_hostname_as_fqdn) == Some(true);
    let Some(domain) = domain(pod).filter(|_| full && !host_network(pod)) else {
        return Ok(name);
    };
    let full = format!("{name}.{domain}");
    if full.len() > MOST {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long ({MOST} characters is the max, {} characters requested)",
            full.len()
        ));
    }
    Ok(full)
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
    let spec = spec(pod).filter(|s| s.hostname_override.is_none())?;
    let subdomain = spec.subdomain.as_ref().filter(|s| !s.is_empty())?;
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    Some(format!("{subdomain}.{namespace}.svc.{CLUSTER_DOMAIN}"))
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
    fn the_kernel_learns_the_full_name_if_asked() {
        let asked = json!({"containers": [], "subdomain": "db", "setHostnameAsFQDN": true});
        let full = "web-0.db.ns.svc.cluster.local";
        assert_eq!(kernel_hostname(&pod(asked.clone())).as_deref(), Ok(full));
        let mut long = asked.clone();
        long["subdomain"] = json!("d".repeat(60));
        let error = kernel_hostname(&pod(long)).unwrap_err();
        assert!(
            error.ends_with("is too long (64 characters is the max, 87 characters requested)"),
            "{error}"
        );
        let mut overridden = asked;
        overridden["hostnameOverride"] = json!("any.name");
        assert_eq!(
            kernel_hostname(&pod(overridden.clone())).as_deref(),
            Ok("any.name")
        );
        assert!(!hosts(&pod(overridden), &[], "").contains("svc"));
    }

    #[test]
    fn long_names_are_cut() {
        let mut pod = pod(json!({"containers": []}));
        pod.metadata.name = Some(format!("{}-tail", "a".repeat(62)));
        assert_eq!(hostname(&pod), "a".repeat(62));
    }
}
