//! A pod's `resolv.conf`: what `dnsPolicy` and `dnsConfig` make of the cluster's DNS address and of the host's own
//! configuration (kubelet `network/dns`).

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, PodDNSConfig};

use super::etc_files::host_network;
use crate::net::dns::CLUSTER_DOMAIN;
use crate::net::dns::resolv_conf::{ResolvConf, SYSTEMD_FILE};

/// What the C library reads of a file, as the API's validation has it.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARACTERS: usize = 2048;
/// glibc 2.28 aborts when a search path is longer.
const MAX_DOMAIN: usize = 253;

/// What the node tells its pods about DNS.
#[derive(Debug, Clone)]
pub struct NodeDns {
    /// The cluster's DNS service.
    pub address: IpAddr,
    /// Names the host's resolvers; `/etc/resolv.conf` as a rule.
    pub host_file: PathBuf,
}

/// A configuration, and what had to be left out of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Formed {
    pub(super) conf: ResolvConf,
    /// Messages of `DNSConfigForming` events.
    pub(super) warnings: Vec<String>,
}

enum Base {
    Cluster,
    Host,
    Nothing,
}

fn base(pod: &Pod) -> Base {
    let policy = pod.spec.as_ref().and_then(|s| s.dns_policy.as_deref());
    match policy {
        Some("None") => Base::Nothing,
        Some("Default") => Base::Host,
        Some("ClusterFirstWithHostNet") => Base::Cluster,
        _ if host_network(pod) => Base::Host,
        _ => Base::Cluster,
    }
}

/// Reads the host's configuration as the pod can use it. Blocking.
pub(super) fn read_host(pod: &Pod, node: &NodeDns) -> ResolvConf {
    let host = read(&node.host_file);
    if host_network(pod) || !only_loopback(&host) {
        return host;
    }
    // A pod's loopback is its own: what listens on the host's can't be reached from there.
    let behind = read(Path::new(SYSTEMD_FILE));
    if behind.addresses().next().is_some() && !only_loopback(&behind) {
        return behind;
    }
    ResolvConf {
        nameservers: vec![node.address.to_string()],
        ..host
    }
}

fn read(path: &Path) -> ResolvConf {
    ResolvConf::parse(&std::fs::read_to_string(path).unwrap_or_default())
}

fn only_loopback(conf: &ResolvConf) -> bool {
    let mut addresses = conf.addresses().peekable();
    addresses.peek().is_some() && addresses.all(|address| address.is_loopback())
}

/// The pod's configuration, given the host's.
pub(super) fn form(pod: &Pod, host: ResolvConf, node: &NodeDns) -> Formed {
    let mut conf = match base(pod) {
        Base::Nothing => ResolvConf::default(),
        Base::Host => host,
        Base::Cluster => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let mut searches = vec![
                format!("{namespace}.svc.{CLUSTER_DOMAIN}"),
                format!("svc.{CLUSTER_DOMAIN}"),
                CLUSTER_DOMAIN.to_owned(),
            ];
            searches.extend(host.searches);
            ResolvConf {
                nameservers: vec![node.address.to_string()],
                searches,
                options: vec!["ndots:5".to_owned()],
            }
        }
    };
    if let Some(config) = pod.spec.as_ref().and_then(|s| s.dns_config.as_ref()) {
        append(&mut conf, config);
    }
    omit_duplicates(&mut conf.nameservers);
    omit_duplicates(&mut conf.searches);
    limit(conf)
}

fn append(conf: &mut ResolvConf, config: &PodDNSConfig) {
    let own = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
    conf.nameservers.extend(own(&config.nameservers));
    conf.searches.extend(own(&config.searches));
    for option in config.options.iter().flatten() {
        let Some(name) = &option.name else { continue };
        let text = match &option.value {
            Some(value) if !value.is_empty() => format!("{name}:{value}"),
            _ => name.clone(),
        };
        let same = |o: &&mut String| o.split(':').next() == Some(name);
        match conf.options.iter_mut().find(same) {
            Some(known) => *known = text,
            None => conf.options.push(text),
        }
    }
}

fn omit_duplicates(list: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    list.retain(|item| seen.insert(item.clone()));
}

fn limit(mut conf: ResolvConf) -> Formed {
    let mut warnings = Vec::new();
    if conf.nameservers.len() > MAX_NAMESERVERS {
        conf.nameservers.truncate(MAX_NAMESERVERS);
        warnings.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            conf.nameservers.join(" ")
        ));
    }
    let wanted = conf.searches.len();
    conf.searches.truncate(MAX_SEARCHES);
    conf.searches.retain(|search| search.len() <= MAX_DOMAIN);
    let length = |searches: &[String]| {
        let characters: usize = searches.iter().map(String::len).sum();
        characters + searches.len().saturating_sub(1)
    };
    while length(&conf.searches) > MAX_SEARCH_CHARACTERS {
        conf.searches.pop();
    }
    if conf.searches.len() < wanted {
        warnings.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            conf.searches.join(" ")
        ));
    }
    Formed { conf, warnings }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(host_file: PathBuf) -> NodeDns {
        NodeDns {
            address: [10, 43, 0, 10].into(),
            host_file,
        }
    }

    fn pod(spec: Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "ns"}, "spec": spec}),
        )
        .unwrap()
    }

    fn formed(spec: Value) -> Formed {
        let host = "nameserver 9.9.9.9\nsearch example.org svc.cluster.local\noptions edns0\n";
        form(&pod(spec), ResolvConf::parse(host), &node(PathBuf::new()))
    }

    #[test]
    fn every_policy() {
        let cluster = "search ns.svc.cluster.local svc.cluster.local cluster.local example.org\n\
                       nameserver 10.43.0.10\noptions ndots:5\n";
        let host = "search example.org svc.cluster.local\nnameserver 9.9.9.9\noptions edns0\n";
        for (spec, wanted) in [
            (json!({}), cluster),
            (json!({"dnsPolicy": "ClusterFirst"}), cluster),
            (
                json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}),
                host,
            ),
            (
                json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
                cluster,
            ),
            (json!({"dnsPolicy": "Default"}), host),
            (json!({"dnsPolicy": "None"}), ""),
        ] {
            let found = formed(spec.clone());
            assert_eq!(found.conf.to_text(), wanted, "{spec}");
            assert!(found.warnings.is_empty());
        }
    }

    #[test]
    fn the_pods_own_words_are_added() {
        let own = json!({"nameservers": ["1.1.1.1", "10.43.0.10"], "searches": ["x", "cluster.local"],
            "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]});
        assert_eq!(
            formed(json!({"dnsConfig": own})).conf.to_text(),
            "search ns.svc.cluster.local svc.cluster.local cluster.local example.org x\n\
             nameserver 10.43.0.10\nnameserver 1.1.1.1\noptions ndots:2 edns0\n"
        );
        assert_eq!(
            formed(json!({"dnsPolicy": "None", "dnsConfig": own}))
                .conf
                .to_text(),
            "search x cluster.local\nnameserver 1.1.1.1\nnameserver 10.43.0.10\noptions ndots:2 edns0\n"
        );
    }

    #[test]
    fn what_exceeds_the_limits_is_left_out_and_said_so() {
        let servers: Vec<_> = (1..=4).map(|i| format!("10.0.0.{i}")).collect();
        let found = formed(json!({"dnsPolicy": "None", "dnsConfig": {"nameservers": servers}}));
        assert_eq!(
            found.warnings,
            [
                "Nameserver limits were exceeded, some nameservers have been omitted, \
             the applied nameserver line is: 10.0.0.1 10.0.0.2 10.0.0.3"
            ]
        );
        let searches = |list: Vec<String>| {
            formed(json!({"dnsPolicy": "None", "dnsConfig": {"searches": list}}))
        };
        let many = searches((0..33).map(|i| format!("s{i}")).collect());
        assert_eq!((many.conf.searches.len(), many.warnings.len()), (32, 1));
        let long = searches(vec!["a".repeat(254), "b".into()]);
        assert_eq!(long.conf.searches, ["b"]);
        assert_eq!(
            long.warnings,
            [
                "Search Line limits were exceeded, some search paths have been omitted, \
             the applied search line is: b"
            ]
        );
        // Nine of 240 characters and eight spaces are 2,168.
        let wide = searches((0..9).map(|i| format!("{i}{}", "c".repeat(239))).collect());
        assert_eq!((wide.conf.searches.len(), wide.warnings.len()), (8, 1));
    }

    #[test]
    fn a_resolver_on_the_hosts_loopback_is_no_use_to_a_pod() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        let node = node(file.clone());
        std::fs::write(&file, "nameserver 127.0.0.53\nsearch lan\n").unwrap();
        if !Path::new(SYSTEMD_FILE).exists() {
            let found = read_host(&pod(json!({"dnsPolicy": "Default"})), &node);
            assert_eq!(found.to_text(), "search lan\nnameserver 10.43.0.10\n");
        }
        let on_host = pod(json!({"dnsPolicy": "Default", "hostNetwork": true}));
        assert_eq!(read_host(&on_host, &node).nameservers, ["127.0.0.53"]);
        std::fs::write(&file, "nameserver 127.0.0.53\nnameserver 9.9.9.9\n").unwrap();
        let found = read_host(&pod(json!({"dnsPolicy": "Default"})), &node);
        assert_eq!(found.nameservers, ["127.0.0.53", "9.9.9.9"]);
    }
}
