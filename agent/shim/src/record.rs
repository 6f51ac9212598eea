//! What is durably known of a container: `<pod dir>/containers/<id>/record.json`.
//!
//! The shim writes it (write, fsync, rename) before it tells anybody of the change, so an exit
//! code survives the agent, the shim and a reboot.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file in a container's state directory.
pub const RECORD_FILE: &str = "record.json";

/// The exit code of a container whose end nobody saw (CRI's for "unknown").
pub const LOST_EXIT_CODE: i32 = 255;

/// The exit code of a container that could not be started (the kubelet's for `StartError`).
pub const START_ERROR_EXIT_CODE: i32 = 128;

/// What is durably known of a container. It survives the agent, the shim and a reboot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRecord {
    /// 64 hexadecimal digits.
    pub id: String,
    pub name: String,
    pub attempt: u32,
    /// The image as the pod names it, and the digest of its configuration.
    pub image: String,
    pub image_id: String,
    pub log_path: PathBuf,
    /// RFC 3339 with microseconds, as all times here.
    pub created_at: String,
    pub state: ContainerState,
}

impl ContainerRecord {
    /// The process id of the container's init, while it runs.
    pub fn pid(&self) -> Option<i32> {
        match self.state {
            ContainerState::Running { pid, .. } => Some(pid),
            _ => None,
        }
    }

    /// Whether the container has ended (or never came to run).
    pub fn has_exited(&self) -> bool {
        matches!(self.state, ContainerState::Exited { .. })
    }

    /// When its process was started, if it ever was.
    pub fn started_at(&self) -> Option<&str> {
        match &self.state {
            ContainerState::Created => None,
            ContainerState::Running { started_at, .. } => Some(started_at),
            ContainerState::Exited { started_at, .. } => started_at.as_deref(),
        }
    }

    /// The record of a container whose supervisor is gone: it has ended, and how is not known.
    pub fn lost(mut self, finished_at: String, why: &str) -> Self {
        if !self.has_exited() {
            self.state = ContainerState::Exited {
                started_at: self.started_at().map(str::to_owned),
                finished_at,
                exit_code: LOST_EXIT_CODE,
                signal: None,
                oom_killed: false,
                lost: true,
                error: Some(why.to_owned()),
            };
        }
        self
    }

    /// Reads the record in a container's state directory.
    ///
    /// # Errors
    /// When the file can't be read or is not a record.
    pub fn read(state_dir: &Path) -> std::io::Result<Self> {
        let bytes = std::fs::read(state_dir.join(RECORD_FILE))?;
        serde_json::from_slice(&bytes).map_err(std::io::Error::other)
    }

    /// Writes the record durably: when this returns, it survives a power cut.
    ///
    /// # Errors
    /// When the file can't be written, synced or renamed.
    pub fn write(&self, state_dir: &Path) -> std::io::Result<()> {
        self.replace(state_dir, true)
    }

    /// Writes the record so that it survives every process, but not a power cut.
    ///
    /// # Errors
    /// When the file can't be written or renamed.
    pub fn write_unsynced(&self, state_dir: &Path) -> std::io::Result<()> {
        self.replace(state_dir, false)
    }

    fn replace(&self, state_dir: &Path, sync: bool) -> std::io::Result<()> {
        let path = state_dir.join(RECORD_FILE);
        let draft = state_dir.join(".record.json");
        let bytes = serde_json::to_vec(self).map_err(std::io::Error::other)?;
        let mut file = std::fs::File::create(&draft)?;
        std::io::Write::write_all(&mut file, &bytes)?;
        if sync {
            file.sync_data()?;
        }
        std::fs::rename(&draft, &path)?;
        if sync {
            std::fs::File::open(state_dir)?.sync_data()?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    tag = "state",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum ContainerState {
    /// Set up, its process waits to be started.
    Created,
    Running {
        pid: i32,
        started_at: String,
    },
    Exited {
        started_at: Option<String>,
        finished_at: String,
        /// 128 + signal when a signal ended it; [`START_ERROR_EXIT_CODE`] when it never ran;
        /// [`LOST_EXIT_CODE`] when nobody saw it end.
        exit_code: i32,
        signal: Option<i32>,
        oom_killed: bool,
        /// The shim died or the host rebooted: `exit_code` and `finished_at` are not known.
        #[serde(default)]
        lost: bool,
        /// The runtime's own words when the container could not be started, or was lost.
        error: Option<String>,
    },
}
