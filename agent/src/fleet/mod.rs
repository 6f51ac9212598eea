//! Several nodes on one host: `skiff up --nodes N`.
//!
//! Each node is an agent process of its own, with a network namespace on one bridge
//! ([`crate::net::segment`]), a control group that holds it and all of its pods, and a data
//! directory. The control plane is in none of them, so that whatever is killed or cut off is a node.
//!
//! ```text
//! wanted (state files) -> supervise: an agent for each node that is to run, anew when one ends
//! kill  = agent, shims, containers, then the network       cut / heal = its link down / up
//! start = wanted again
//! ```
//!
//! Nothing here needs the process that supervises: the state is in the data directory and in the
//! kernel, so nodes can be listed, killed and cut off after a crash too.

mod log;
mod process;
mod state;
mod supervise;

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinSet;

pub use supervise::{MakeToken, Supervisor};

use crate::identity::Identity;
use crate::net::NetworkError;
use crate::net::segment::{MAX_NODES, Segment};
use crate::purge::{self, PurgeError};
use crate::runtime::RuntimeError;
use ipnet::Ipv4Net;
use process::{Agent, Launch};
use state::{FleetRecord, NodeState};

/// How long an agent may take to end.
const PATIENCE: Duration = Duration::from_secs(4);

#[derive(Debug, thiserror::Error)]
pub enum FleetError {
    #[error("there is no node {name} in {}; `skiff node list` shows them", data_dir.display())]
    NoSuchNode { name: String, data_dir: PathBuf },
    #[error("{} has no nodes of its own: it was not started with --nodes", .0.display())]
    NoFleet(PathBuf),
    #[error(
        "this cluster has {has} nodes, and {wanted} are asked for: a node is removed with `skiff down`"
    )]
    TooFew { has: usize, wanted: u16 },
    #[error("a host holds at most {MAX_NODES} nodes")]
    TooMany,
    #[error("node {0} was killed: `skiff node start {0}` brings it back")]
    NotRunning(String),
    #[error("the nodes' network: {0}")]
    Network(#[from] NetworkError),
    #[error("the node's containers: {0}")]
    Runtime(#[from] RuntimeError),
    #[error("what is left of the node: {0}")]
    Purge(#[from] PurgeError),
    #[error("the nodes' state in the data directory: {0}")]
    State(#[source] io::Error),
    #[error("the agent of node {name}: {source}")]
    Agent { name: String, source: io::Error },
}

/// How a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Its agent runs.
    Running,
    /// Its agent runs, but its link is down.
    Cut,
    /// Nothing of it runs, on purpose.
    Killed,
    /// It is meant to run, but its agent does not.
    Stopped,
}

/// A node, as it is listed.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Listed {
    pub name: String,
    pub state: State,
    pub address: Ipv4Addr,
    /// Of its agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    pub data_dir: PathBuf,
}

/// The data directories of a cluster's nodes on this host, by the nodes' names; none for a cluster that was started
/// without such nodes.
///
/// # Errors
/// When the state can't be read.
pub fn data_dirs(data_dir: &Path) -> Result<Vec<(String, PathBuf)>, FleetError> {
    let nodes = state::load_nodes(data_dir).map_err(FleetError::State)?;
    let names = nodes.into_iter().map(|(name, _)| name);
    let directory = state::directory(data_dir);
    Ok(names
        .map(|name| (name.clone(), directory.join(name)))
        .collect())
}

/// The nodes of one cluster on this host. Its methods block.
#[derive(Debug, Clone)]
pub struct Fleet {
    identity: Identity,
    segment: Segment,
    record: FleetRecord,
}

impl Fleet {
    /// Whether a cluster has such nodes.
    pub fn exists(data_dir: &Path) -> bool {
        state::directory(data_dir).join("fleet.json").exists()
    }

    /// Makes the network of a cluster with `nodes` nodes (at least as many as it has), and
    /// remembers them. Nothing runs yet.
    ///
    /// # Errors
    /// When the host refuses, or the cluster has more nodes.
    pub fn make(
        identity: &Identity,
        nodes: Option<u16>,
        pods: Ipv4Net,
        flags: Vec<String>,
    ) -> Result<Self, FleetError> {
        let data_dir = identity.data_dir();
        std::fs::create_dir_all(state::directory(data_dir)).map_err(FleetError::State)?;
        let before = state::load_fleet(data_dir).map_err(FleetError::State)?;
        let block = before.as_ref().and_then(|record| record.block().ok());
        let known = state::load_nodes(data_dir).map_err(FleetError::State)?;
        let nodes = nodes.unwrap_or(known.len() as u16);
        if nodes > MAX_NODES {
            return Err(FleetError::TooMany);
        }
        if usize::from(nodes) < known.len() {
            return Err(FleetError::TooFew {
                has: known.len(),
                wanted: nodes,
            });
        }
        let segment = Segment::open(identity, block, pods)?;
        let fleet = Self {
            identity: identity.clone(),
            record: FleetRecord {
                block: segment.block().to_string(),
                server: before.map(|record| record.server).unwrap_or_default(),
                flags,
            },
            segment,
        };
        fleet.save()?;
        for number in known.len() as u16 + 1..=nodes {
            let state = NodeState {
                number,
                running: true,
            };
            state::save_node(data_dir, &format!("node-{number}"), &state)
                .map_err(FleetError::State)?;
        }
        Ok(fleet)
    }

    /// The nodes of a cluster that was started before.
    ///
    /// # Errors
    /// When it has none.
    pub fn open(data_dir: &Path) -> Result<Self, FleetError> {
        let none = || FleetError::NoFleet(data_dir.to_owned());
        let identity = Identity::of(data_dir).map_err(|_| none())?;
        let record = state::load_fleet(identity.data_dir()).map_err(FleetError::State)?;
        let record = record.ok_or_else(none)?;
        let block = record.block().map_err(FleetError::State)?;
        Ok(Self {
            segment: Segment::known(&identity, block),
            identity,
            record,
        })
    }

    /// The host as the nodes see it: where the API has to listen.
    pub fn host_address(&self) -> Ipv4Addr {
        self.segment.host_address()
    }

    /// The nodes' addresses.
    pub fn block(&self) -> Ipv4Net {
        self.segment.block()
    }

    /// Tells where the nodes reach the API.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn set_server(&mut self, url: &str) -> Result<(), FleetError> {
        url.clone_into(&mut self.record.server);
        self.save()
    }

    pub fn list(&self) -> Result<Vec<Listed>, FleetError> {
        let nodes = self.nodes()?.into_iter();
        Ok(nodes.map(|(name, state)| self.look(name, &state)).collect())
    }

    /// The names of the nodes that are meant to run.
    ///
    /// # Errors
    /// When the state can't be read.
    pub fn wanted(&self) -> Result<Vec<String>, FleetError> {
        let nodes = self.nodes()?.into_iter();
        let wanted = nodes.filter(|(_, state)| state.running);
        Ok(wanted.map(|(name, _)| name).collect())
    }

    /// The names of all nodes.
    ///
    /// # Errors
    /// When the state can't be read.
    pub fn names(&self) -> Result<Vec<String>, FleetError> {
        let nodes = self.nodes()?.into_iter();
        Ok(nodes.map(|(name, _)| name).collect())
    }

    /// Ends everything of a node at once: agent, shims, containers, then its network.
    ///
    /// # Errors
    /// When there is no such node, or something of it can't be removed.
    pub fn kill(&self, name: &str) -> Result<(), FleetError> {
        let state = self.node(name)?;
        self.want(name, &state, false)?;
        let node = self.node_identity(name)?;
        crate::runtime::purge_blocking(&node)?;
        purge::unmount_volumes(&node).map_err(PurgeError::Volumes)?;
        self.segment.unplug(name, state.number)?;
        Ok(())
    }

    /// Takes a node's link down; its pods live on.
    ///
    /// # Errors
    /// When there is no such node, or it was killed.
    pub fn cut(&self, name: &str) -> Result<(), FleetError> {
        self.connect(name, false)
    }

    /// Brings a node's link up again.
    ///
    /// # Errors
    /// As [`Fleet::cut`].
    pub fn heal(&self, name: &str) -> Result<(), FleetError> {
        self.connect(name, true)
    }

    /// Wants a node to run. Whoever supervises starts it; with nobody there, [`Fleet::spawn`] does.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn start(&self, name: &str) -> Result<(), FleetError> {
        let state = self.node(name)?;
        self.want(name, &state, true)
    }

    /// Starts a node's agent while nobody supervises.
    ///
    /// # Errors
    /// When the host refuses.
    pub fn spawn(&self, name: &str) -> Result<(), FleetError> {
        if process::find(&self.node_identity(name)?).is_some() {
            return Ok(());
        }
        self.launch(name, None).map(drop)
    }

    /// Whether a node's agent runs.
    pub fn is_running(&self, name: &str) -> Result<bool, FleetError> {
        Ok(process::find(&self.node_identity(name)?).is_some())
    }

    fn connect(&self, name: &str, connected: bool) -> Result<(), FleetError> {
        let state = self.node(name)?;
        if !state.running {
            return Err(FleetError::NotRunning(name.to_owned()));
        }
        Ok(self.segment.set_connected(state.number, connected)?)
    }

    /// The agent that an earlier process started for a node, if it can stay.
    fn adopt(&self, name: &str) -> Result<Option<Agent>, FleetError> {
        let state = self.node(name)?;
        let data_dir = self.identity.data_dir();
        let launch = self.launch_with(None);
        Ok(process::adopt(
            &self.segment,
            data_dir,
            name,
            state.number,
            &launch,
        ))
    }

    fn launch_with<'a>(&'a self, token: Option<&'a str>) -> Launch<'a> {
        Launch {
            server: &self.record.server,
            token,
            flags: &self.record.flags,
        }
    }

    fn launch(&self, name: &str, token: Option<&str>) -> Result<std::process::Child, FleetError> {
        let state = self.node(name)?;
        self.segment.plug(name, state.number)?;
        let launch = self.launch_with(token);
        let data_dir = self.identity.data_dir();
        process::spawn(&self.segment, data_dir, name, state.number, &launch).map_err(|source| {
            FleetError::Agent {
                name: name.to_owned(),
                source,
            }
        })
    }

    /// Ends a node's agent and leaves its containers running.
    fn stop_agent(&self, name: &str) -> Result<(), FleetError> {
        let stopped = process::stop(&self.node_identity(name)?, PATIENCE);
        stopped.map_err(|source| FleetError::Agent {
            name: name.to_owned(),
            source,
        })
    }

    /// Whether a node has joined, and needs no token.
    fn has_joined(&self, name: &str) -> bool {
        self.node_dir(name).join("agent/pki/node.json").exists()
    }

    fn look(&self, name: String, state: &NodeState) -> Listed {
        let data_dir = self.node_dir(&name);
        let pid = Identity::of(&data_dir)
            .ok()
            .and_then(|node| process::find(&node));
        let connected = self.segment.is_connected(state.number);
        Listed {
            state: match (pid, state.running) {
                (Some(_), _) if !connected => State::Cut,
                (Some(_), _) => State::Running,
                (None, true) => State::Stopped,
                (None, false) => State::Killed,
            },
            address: self.segment.address(state.number),
            pid: pid.map(nix::unistd::Pid::as_raw),
            data_dir,
            name,
        }
    }

    fn want(&self, name: &str, state: &NodeState, running: bool) -> Result<(), FleetError> {
        let state = NodeState {
            running,
            ..state.clone()
        };
        state::save_node(self.identity.data_dir(), name, &state).map_err(FleetError::State)
    }

    fn nodes(&self) -> Result<Vec<(String, NodeState)>, FleetError> {
        state::load_nodes(self.identity.data_dir()).map_err(FleetError::State)
    }

    fn node(&self, name: &str) -> Result<NodeState, FleetError> {
        let data_dir = self.identity.data_dir();
        let no_such = || FleetError::NoSuchNode {
            name: name.to_owned(),
            data_dir: data_dir.to_owned(),
        };
        // What people type becomes a file's name.
        if name.contains('/') || name == "fleet" {
            return Err(no_such());
        }
        let state = state::load_node(data_dir, name).map_err(FleetError::State)?;
        state.ok_or_else(no_such)
    }

    fn node_dir(&self, name: &str) -> PathBuf {
        state::directory(self.identity.data_dir()).join(name)
    }

    fn node_identity(&self, name: &str) -> Result<Identity, FleetError> {
        process::make_data_dir(&self.node_dir(name)).map_err(FleetError::State)
    }

    fn save(&self) -> Result<(), FleetError> {
        state::save_fleet(self.identity.data_dir(), &self.record).map_err(FleetError::State)
    }
}

/// Ends all nodes of a data directory and removes what they have on this host, also after a crash.
///
/// # Errors
/// What could not be removed; everything else is tried first.
pub async fn purge(identity: &Identity) -> Result<(), FleetError> {
    let data_dir = identity.data_dir().to_owned();
    let nodes = state::load_nodes(&data_dir).map_err(FleetError::State)?;
    let mut ended = JoinSet::new();
    for (name, _) in nodes {
        let directory = state::directory(&data_dir).join(&name);
        let Ok(node) = Identity::of(&directory) else {
            continue;
        };
        ended.spawn(async move {
            let stopping = node.clone();
            let stopped = tokio::task::spawn_blocking(move || process::stop(&stopping, PATIENCE));
            let stopped = stopped.await.unwrap_or_else(|e| Err(io::Error::other(e)));
            let purged = purge::purge(&node).await;
            stopped.map_err(|source| FleetError::Agent { name, source })?;
            Ok(purged?)
        });
    }
    let mut result = Ok(());
    while let Some(one) = ended.join_next().await {
        let one: Result<(), FleetError> = match one {
            Ok(one) => one,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        result = result.and(one);
    }
    let identity = identity.clone();
    let network = tokio::task::spawn_blocking(move || Segment::purge(&identity)).await;
    match network {
        Ok(network) => result.and(network.map_err(FleetError::Network)),
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
