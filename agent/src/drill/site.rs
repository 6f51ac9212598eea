//! What faults work on.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;

use kube::Client;
use skiff_images::Puller;

use crate::hooks::AgentHooks;
use crate::identity::Identity;
use crate::logs::Watcher;
use crate::net::Network;
use crate::runtime::RuntimeError;
use crate::runtime::cgroup::Cgroups;
use crate::wiring::Sandboxes;

/// What there is of a node without an agent: everything here derives from its data directory.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    pub(crate) identity: Identity,
    pub(crate) cgroups: Cgroups,
}

impl Site {
    /// # Errors
    /// When the host has no usable control groups.
    pub(crate) fn new(identity: Identity) -> Result<Self, RuntimeError> {
        let cgroups = Cgroups::detect(identity.cgroup_root())?;
        Ok(Self { identity, cgroups })
    }

    /// A file of a task's own, beside its entry in the journal; removed with it.
    pub(crate) fn file(&self, uid: &str, kind: &str) -> PathBuf {
        self.identity.drills_dir().join(format!("{uid}.{kind}"))
    }

    /// The group of helpers that are in no container's.
    pub(crate) fn helpers(&self) -> String {
        format!("{}/drills", self.cgroups.root())
    }
}

/// What there is of a node whose agent runs.
pub(crate) struct Scene {
    pub(crate) site: Site,
    pub(crate) node_name: String,
    pub(crate) client: Client,
    pub(crate) sandboxes: Sandboxes,
    pub(crate) puller: Arc<dyn Puller>,
    /// What can be done to the process that the agent runs in.
    pub(crate) hooks: Arc<dyn AgentHooks>,
    /// Tells this process from those before and after it, which may have the same pid.
    pub(crate) incarnation: u64,
    pub(crate) surroundings: Surroundings,
    /// Tells of files that change.
    pub(crate) files: Watcher,
}

/// What there is around the node's pods.
pub(crate) struct Surroundings {
    pub(crate) network: Network,
    /// Where the agent asks the API, `https://HOST:PORT`; `None` when it is served in this process.
    pub(crate) api_server: Option<String>,
    /// The authority (PEM) that the API server's certificate comes from.
    pub(crate) authority: String,
    /// The Service by which pods ask the API.
    pub(crate) api_service: SocketAddrV4,
    /// The port of the agent's own HTTPS endpoint.
    pub(crate) endpoint: u16,
    /// The Service by which pods ask for names.
    pub(crate) dns_service: Ipv4Addr,
    /// The socket of this node that answers there.
    pub(crate) dns_server: SocketAddr,
}
