//! What is remembered of a cluster's nodes on this host, under `<data>/nodes`.
//!
//! | path | |
//! |---|---|
//! | `<data>/nodes/fleet.json` | the nodes' network, and where the API is |
//! | `<data>/nodes/<name>.json` | a node's number, and whether it is meant to run |
//! | `<data>/nodes/<name>.log` | what its agent says, and `<name>.log.1` what it said before |
//! | `<data>/nodes/<name>/` | its data directory |

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use ipnet::Ipv4Net;

/// The network of the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetRecord {
    /// In CIDR notation.
    pub block: String,
    /// The API's URL as the nodes reach it.
    pub server: String,
    /// What the nodes' agents are told besides.
    pub flags: Vec<String>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// From 1: its place in the network.
    pub number: u16,
    /// Whether its agent is to run; false once it was killed.
    pub running: bool,
}

impl FleetRecord {
    pub(super) fn block(&self) -> io::Result<Ipv4Net> {
        let block: Ipv4Net = self.block.parse().map_err(io::Error::other)?;
        Ok(block.trunc())
    }
}

pub(super) fn directory(data_dir: &Path) -> PathBuf {
    data_dir.join("nodes")
}

pub(super) fn load_fleet(data_dir: &Path) -> io::Result<Option<FleetRecord>> {
    load(&directory(data_dir).join("fleet.json"))
}

pub(super) fn save_fleet(data_dir: &Path, record: &FleetRecord) -> io::Result<()> {
    save(&directory(data_dir).join("fleet.json"), record)
}

pub(super) fn load_node(data_dir: &Path, name: &str) -> io::Result<Option<NodeState>> {
    load(&node_file(data_dir, name))
}

pub(super) fn save_node(data_dir: &Path, name: &str, state: &NodeState) -> io::Result<()> {
    save(&node_file(data_dir, name), state)
}

/// Every node, in the order of their numbers.
pub(super) fn load_nodes(data_dir: &Path) -> io::Result<Vec<(String, NodeState)>> {
    let entries = match fs::read_dir(directory(data_dir)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut nodes = Vec::new();
    for entry in entries {
        let file = entry?.file_name();
        let name = file.to_str().and_then(|name| name.strip_suffix(".json"));
        let Some(name) = name.filter(|name| *name != "fleet") else {
            continue;
        };
        if let Some(state) = load_node(data_dir, name)? {
            nodes.push((name.to_owned(), state));
        }
    }
    nodes.sort_by_key(|(_, state)| state.number);
    Ok(nodes)
}

fn node_file(data_dir: &Path, name: &str) -> PathBuf {
    directory(data_dir).join(format!("{name}.json"))
}

fn load<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn save<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(value)?)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_come_back_in_order() {
        let data = tempfile::tempdir().unwrap();
        assert!(load_nodes(data.path()).unwrap().is_empty());
        fs::create_dir(directory(data.path())).unwrap();
        let record = FleetRecord {
            block: "100.96.0.0/24".into(),
            server: "https://100.96.0.1:6443".into(),
            flags: vec!["--offline".into()],
        };
        save_fleet(data.path(), &record).unwrap();
        for number in [10, 2, 1] {
            let state = NodeState {
                number,
                running: number != 2,
            };
            save_node(data.path(), &format!("node-{number}"), &state).unwrap();
        }
        let nodes = load_nodes(data.path()).unwrap();
        let names: Vec<_> = nodes.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["node-1", "node-2", "node-10"]);
        assert!(!nodes[1].1.running);
        assert_eq!(load_fleet(data.path()).unwrap(), Some(record));
    }
}
