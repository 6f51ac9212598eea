//! `resolv.conf`: which servers a host asks, and how (resolv.conf(5)).

use std::net::IpAddr;

/// The host's own configuration.
pub const HOST_FILE: &str = "/etc/resolv.conf";
/// The servers that systemd-resolved forwards to, when [`HOST_FILE`] only names itself.
pub const SYSTEMD_FILE: &str = "/run/systemd/resolve/resolv.conf";

/// A resolver's configuration, in the words of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl ResolvConf {
    /// Reads what the kubelet does: the last `search` and the last `options` hold.
    pub fn parse(text: &str) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.nameservers.extend(words.next().map(str::to_owned)),
                Some("search") => {
                    let domain = |word: &str| match word {
                        "." => word.to_owned(),
                        _ => word.trim_end_matches('.').to_owned(),
                    };
                    conf.searches = words.map(domain).collect();
                }
                Some("options") => conf.options = words.map(str::to_owned).collect(),
                _ => {}
            }
        }
        conf
    }

    /// The servers, those left out that are no addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.nameservers.iter().filter_map(|text| text.parse().ok())
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        if !self.searches.is_empty() {
            out += &format!("search {}\n", self.searches.join(" "));
        }
        for server in &self.nameservers {
            out += &format!("nameserver {server}\n");
        }
        if !self.options.is_empty() {
            out += &format!("options {}\n", self.options.join(" "));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_hosts_write() {
        let text = "# made by a person\nsearch old\nnameserver 9.9.9.9\nnameserver fe80::1%eth0\n\
                    search example.org. .\noptions edns0 ndots:2\nnameserver\n";
        let conf = ResolvConf::parse(text);
        assert_eq!(conf.nameservers, ["9.9.9.9", "fe80::1%eth0"]);
        assert_eq!(conf.addresses().count(), 1);
        assert_eq!(
            conf.to_text(),
            "search example.org .\nnameserver 9.9.9.9\nnameserver fe80::1%eth0\noptions edns0 ndots:2\n"
        );
    }
}
