//! Undoing what drills did to the nodes of a data directory, without the API: as each node's own journal says.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use skiff_agent::drill::{ask_to_heal, heal_in_place, open_tasks};
use skiff_agent::identity::Identity;

use crate::data_dir::DataDir;

/// Between two looks at the journal of an agent that is another process.
const LOOK: Duration = Duration::from_millis(50);

/// Whether there is a node to heal.
pub fn has_nodes(data_dir: &Path) -> bool {
    nodes(data_dir).next().is_some()
}

/// Undoes everything; returns the names of the tasks that had done it.
///
/// # Errors
/// When something could not be undone, or not in time.
pub async fn heal(data_dir: &Path, timeout: Duration) -> anyhow::Result<Vec<String>> {
    let mut healed = Vec::new();
    for node in nodes(data_dir) {
        let identity =
            Identity::of(&node).with_context(|| format!("no node in {}", node.display()))?;
        let open = open_tasks(&identity)?;
        if open.is_empty() {
            continue;
        }
        // Whoever holds the lock is the agent: it has the journal in hand, so it is asked.
        match DataDir::try_lock(&node)? {
            Ok(alone) => {
                healed.extend(heal_in_place(&identity).await?);
                drop(alone);
            }
            Err(_) => {
                ask_to_heal(&identity)?;
                until_healed(&identity, timeout).await?;
                healed.extend(open);
            }
        }
    }
    Ok(healed)
}

async fn until_healed(identity: &Identity, timeout: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let open = open_tasks(identity)?;
        if open.is_empty() {
            return Ok(());
        }
        if began.elapsed() > timeout {
            anyhow::bail!(
                "the agent of {} was asked to undo {}, and has not",
                identity.data_dir().display(),
                open.join(", ")
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The data directory itself, if this host is a node, and those of `up --nodes`.
fn nodes(data_dir: &Path) -> impl Iterator<Item = PathBuf> {
    let own = std::iter::once(data_dir.to_owned());
    let entries = std::fs::read_dir(data_dir.join("nodes"));
    let fleet = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    own.chain(fleet).filter(|node| node.join("agent").is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_where_agents_were() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(!has_nodes(scratch.path()));
        let node = scratch.path().join("nodes/node-1");
        std::fs::create_dir_all(node.join("agent")).unwrap();
        std::fs::write(scratch.path().join("nodes/node-1.log"), "").unwrap();
        assert_eq!(nodes(scratch.path()).collect::<Vec<_>>(), [node]);
    }
}
