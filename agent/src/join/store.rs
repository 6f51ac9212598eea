//! What a node keeps of its membership, under `<data>/agent/pki`.
//!
//! | file | |
//! |---|---|
//! | `node.json` | its name, and what it knows of the cluster |
//! | `ca.crt` | the cluster's authority |
//! | `client.pem` | key and certificate with which it asks the API (mode 0600) |
//! | `serving.pem` | those of its own endpoint (mode 0600) |
//!
//! Keys never leave the node. A key and its certificate share a file, so that a crash between two
//! writes can't part them.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::certificate::KeyAndCertificate;

const END_OF_KEY: &str = "-----END PRIVATE KEY-----";

/// The node's name and cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeRecord {
    pub(super) name: String,
    #[serde(default)]
    pub(super) cluster: ClusterRecord,
}

/// The cluster's address blocks, in CIDR notation.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterRecord {
    pub pod_block: String,
    pub service_block: String,
}

/// A node that joined before.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) record: NodeRecord,
    /// PEM.
    pub(super) authority: String,
    pub(super) client: KeyAndCertificate,
    pub(super) serving: Option<KeyAndCertificate>,
}

#[derive(Debug, Clone)]
pub(super) struct Store {
    directory: PathBuf,
}

impl Store {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// `None` when the node has not joined yet, or not to the end.
    pub(super) fn load(&self) -> io::Result<Option<Member>> {
        let Some(record) = read(&self.path("node.json"))? else {
            return Ok(None);
        };
        let (Some(authority), Some(client)) =
            (read(&self.path("ca.crt"))?, self.pair("client.pem")?)
        else {
            return Ok(None);
        };
        Ok(Some(Member {
            record: serde_json::from_str(&record)?,
            authority,
            client,
            serving: self.pair("serving.pem")?,
        }))
    }

    /// Writes what makes a node a member; it is one once all of it is there.
    pub(super) fn save(&self, member: &Member) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        write(&self.path("ca.crt"), &member.authority, 0o644)?;
        self.save_client(&member.client)?;
        self.save_record(&member.record)
    }

    pub(super) fn save_record(&self, record: &NodeRecord) -> io::Result<()> {
        let text = serde_json::to_string(record)?;
        write(&self.path("node.json"), &text, 0o600)
    }

    pub(super) fn save_client(&self, pair: &KeyAndCertificate) -> io::Result<()> {
        self.save_pair("client.pem", pair)
    }

    pub(super) fn save_serving(&self, pair: &KeyAndCertificate) -> io::Result<()> {
        self.save_pair("serving.pem", pair)
    }

    fn save_pair(&self, name: &str, pair: &KeyAndCertificate) -> io::Result<()> {
        let text = format!("{}{}", pair.key, pair.certificate);
        write(&self.path(name), &text, 0o600)
    }

    fn pair(&self, name: &str) -> io::Result<Option<KeyAndCertificate>> {
        let Some(text) = read(&self.path(name))? else {
            return Ok(None);
        };
        let at = text.find(END_OF_KEY).map(|at| at + END_OF_KEY.len());
        Ok(at.map(|at| KeyAndCertificate {
            key: format!("{}\n", &text[..at]),
            certificate: text[at..].trim_start().to_owned(),
        }))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// In one step, and for good.
fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::certificate::KeyAndRequest;
    use super::*;

    #[test]
    fn what_is_kept_comes_back_and_keys_are_private() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path().join("pki"));
        assert!(store.load().unwrap().is_none());
        let made = KeyAndRequest::new("n1", &[]).unwrap();
        let pair = KeyAndCertificate {
            key: made.key,
            certificate: "-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n".into(),
        };
        let record = NodeRecord {
            name: "n1".into(),
            cluster: ClusterRecord::default(),
        };
        let member = Member {
            record: record.clone(),
            authority: "authority".into(),
            client: pair.clone(),
            serving: None,
        };
        store.save(&member).unwrap();
        let found = store.load().unwrap().unwrap();
        assert_eq!(found.record, record);
        assert_eq!(found.client.key, pair.key);
        assert_eq!(found.client.certificate, pair.certificate);
        assert!(found.serving.is_none());
        let file = fs::metadata(directory.path().join("pki/client.pem")).unwrap();
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
    }
}
