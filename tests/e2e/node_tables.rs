//! What the nftables table of a node leads to, read with nft(8), beside what the API says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use skiff_agent::identity::Identity;

use crate::cluster::{Cluster, succeeded};
use crate::wait;

/// The endpoints by `address:port` of the Service's cluster addresses.
pub(crate) type Led = BTreeMap<String, BTreeSet<String>>;

impl Cluster {
    /// Where the network namespace of a node of `up --nodes` is pinned.
    pub(crate) fn namespace_of(&self, node: &str) -> PathBuf {
        let pins = self.identity().run_dir().join("nodes");
        pins.join(format!("{node}.net"))
    }

    /// A program's output inside a node's network namespace.
    pub(crate) fn on_node(&self, node: &str, words: &[&str]) -> String {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", self.namespace_of(node).display()))
            .args(words)
            .output()
            .expect("nsenter");
        succeeded(&words.join(" "), &output)
    }

    /// The whole table of a node, in nft's words.
    pub(crate) fn table_of(&self, node: &str) -> String {
        let identity = Identity::of(&self.node_dir(node)).expect("the node's data directory");
        let table = identity.nft_table();
        self.on_node(node, &["nft", "list", "table", "inet", &table])
    }

    /// What the API wants every node's table to lead to; cluster DNS is each node's own affair.
    pub(crate) fn wanted(&mut self) -> Option<Led> {
        let services = self.get("/api/v1/services")?;
        let slices = self.get("/apis/discovery.k8s.io/v1/endpointslices")?;
        let mut wanted = Led::new();
        for service in services["items"].as_array()? {
            if service["metadata"]["name"] == "kube-dns" {
                continue;
            }
            let Some(address) = service["spec"]["clusterIP"].as_str() else {
                continue;
            };
            for port in service["spec"]["ports"].as_array().into_iter().flatten() {
                let endpoints = endpoints(service, port, &slices);
                if !endpoints.is_empty() {
                    wanted.insert(format!("{address}:{}", port["port"]), endpoints);
                }
            }
        }
        Some(wanted)
    }

    /// Waits until a node's table is exactly what the API says.
    pub(crate) fn until_table_is_right(&mut self, node: &str) {
        let mut last = None;
        let begun = std::time::Instant::now();
        while begun.elapsed() < wait::DEADLINE {
            let (led, wanted) = (led(&self.table_of(node)), self.wanted());
            if Some(&led) == wanted.as_ref() {
                return;
            }
            last = Some((led, wanted));
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let (led, wanted) = last.expect("a look");
        let wanted = wanted.unwrap_or_default();
        let differing = |one: &Led, other: &Led| -> Vec<String> {
            let missing = one.iter().filter(|(key, to)| other.get(*key) != Some(to));
            missing.map(|(key, to)| format!("{key} {to:?}")).collect()
        };
        panic!(
            "{node}: only in the table {:?}, only in the API {:?}",
            differing(&led, &wanted),
            differing(&wanted, &led)
        );
    }
}

/// The ready endpoints of one port of a Service.
fn endpoints(service: &Value, port: &Value, slices: &Value) -> BTreeSet<String> {
    let (meta, name) = (&service["metadata"], &port["name"]);
    let mut found = BTreeSet::new();
    for slice in slices["items"].as_array().into_iter().flatten() {
        let of = &slice["metadata"]["labels"]["kubernetes.io/service-name"];
        if *of != meta["name"] || slice["metadata"]["namespace"] != meta["namespace"] {
            continue;
        }
        let mut ports = slice["ports"].as_array().into_iter().flatten();
        let same = |p: &&Value| {
            p["name"].as_str().unwrap_or_default() == name.as_str().unwrap_or_default()
        };
        let Some(number) = ports.find(same).map(|p| p["port"].to_string()) else {
            continue;
        };
        let endpoints = slice["endpoints"].as_array().into_iter().flatten();
        for endpoint in endpoints.filter(|e| e["conditions"]["ready"] != false) {
            let address = endpoint["addresses"][0].as_str().unwrap_or_default();
            found.insert(format!("{address}:{number}"));
        }
    }
    found
}

/// What a listed table leads to.
pub(crate) fn led(table: &str) -> Led {
    let words: Vec<&str> = table
        .split([' ', '\t', '\n', ','])
        .filter(|w| !w.is_empty())
        .collect();
    let mut chains: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut chain = "";
    let mut entries = Vec::new();
    for (at, word) in words.iter().enumerate() {
        match *word {
            "chain" => chain = words[at + 1],
            // dnat ip to 10.42.0.5:80
            endpoint if endpoint.parse::<SocketAddrV4>().is_ok() && words[at - 1] == "to" => {
                let endpoints = chains.entry(chain).or_default();
                endpoints.insert(endpoint.to_owned());
            }
            // 0 : 10.42.0.5 . 80
            "." if is_address(words[at - 1]) && words[at - 2] == ":" => {
                let endpoint = format!("{}:{}", words[at - 1], words[at + 1]);
                chains.entry(chain).or_default().insert(endpoint);
            }
            // 10.43.0.7 . tcp . 80 : goto service-default/web/tcp/80
            "goto" if at >= 6 && words[at - 1] == ":" && is_address(words[at - 6]) => {
                entries.push((
                    format!("{}:{}", words[at - 6], words[at - 2]),
                    words[at + 1],
                ));
            }
            _ => {}
        }
    }
    let mut led = Led::new();
    for (frontend, chain) in entries {
        let is_dns = chain.contains("/kube-dns/") || !chain.starts_with("service-");
        if !is_dns {
            let endpoints = chains.get(chain).cloned().unwrap_or_default();
            led.insert(frontend, endpoints);
        }
    }
    led
}

fn is_address(word: &str) -> bool {
    word.parse::<Ipv4Addr>().is_ok()
}
