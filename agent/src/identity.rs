//! The one place where names on the host are made.
//!
//! Everything that Skiff creates outside its data directory carries the identity of that
//! directory, so that several nodes share a host without touching each other and
//! `skiff down` knows what is its own.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// The names that derive from one data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    id: String,
    data_dir: PathBuf,
}

impl Identity {
    /// The identity of an existing data directory.
    ///
    /// # Errors
    /// When the directory's path can't be made canonical (it does not exist, or is not readable).
    pub fn of(data_dir: &Path) -> std::io::Result<Self> {
        let data_dir = data_dir.canonicalize()?;
        let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
        let id = digest[..4].iter().map(|b| format!("{b:02x}")).collect();
        Ok(Self { id, data_dir })
    }

    /// Eight hexadecimal digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// `<data>`
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// `<data>/agent`
    pub fn agent_root(&self) -> PathBuf {
        self.data_dir.join("agent")
    }

    /// `<data>/agent/images`
    pub fn images_dir(&self) -> PathBuf {
        self.agent_root().join("images")
    }

    /// `<data>/agent/pods`
    pub fn pods_dir(&self) -> PathBuf {
        self.agent_root().join("pods")
    }

    /// `<data>/agent/bin`: the shim's executable.
    pub fn shims_dir(&self) -> PathBuf {
        self.agent_root().join("bin")
    }

    /// `<data>/agent/drills`
    pub fn drills_dir(&self) -> PathBuf {
        self.agent_root().join("drills")
    }

    /// `<data>/agent/pods/<namespace>_<pod>_<uid>`
    pub fn pod_dir(&self, namespace: &str, pod: &str, uid: &str) -> PathBuf {
        self.pods_dir().join(format!("{namespace}_{pod}_{uid}"))
    }

    /// `/run/skiff/<id>`: gone after a reboot, as is what it describes.
    pub fn run_dir(&self) -> PathBuf {
        Path::new("/run/skiff").join(&self.id)
    }

    /// `/run/skiff/<id>/pods/<uid>`
    pub fn pod_run_dir(&self, uid: &str) -> PathBuf {
        self.run_dir().join("pods").join(uid)
    }

    /// The cgroup, relative to a hierarchy's root, under which all of this node's cgroups are.
    pub fn cgroup_root(&self) -> String {
        format!("skiff-{}", self.id)
    }

    /// The host end of the link of the pod with this address. Links are limited to 15
    /// characters: the address's low 20 bits tell the pods of one node apart.
    pub fn link(&self, pod_address: Ipv4Addr) -> String {
        format!("sk{}{:05x}", self.id, pod_address.to_bits() & 0xf_ffff)
    }

    /// The tunnel to nodes behind routers. No pod's link is called so: this is no number.
    pub fn tunnel_link(&self) -> String {
        format!("sk{}vxlan", self.id)
    }

    /// What every link of this node starts with.
    pub fn link_prefix(&self) -> String {
        format!("sk{}", self.id)
    }

    /// The kernel's group number of this node's links: a whole group is removed at once.
    pub fn link_group(&self) -> u32 {
        // Eight hexadecimal digits always fit. 0 is everybody's, so it can't be ours.
        u32::from_str_radix(&self.id, 16).unwrap_or_default().max(1)
    }

    /// The nftables table of this node, in the `inet` family.
    pub fn nft_table(&self) -> String {
        format!("skiff-{}", self.id)
    }

    /// What the nftables tables of this node's drills are called, followed by the task's uid.
    pub fn drill_table_prefix(&self) -> String {
        format!("skiff-{}-drill-", self.id)
    }
}
