//! Undoing what drills did on a node because somebody there asks for it, without the API.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use skiff_dev::TaskPhase;

use super::fault::{self, FaultError, Order};
use super::helper::blocking;
use super::journal::{Entry, Journal, Stage};
use super::site::Site;
use crate::identity::Identity;
use crate::runtime::RuntimeError;

/// Why something is not undone.
#[derive(Debug, thiserror::Error)]
pub enum HealError {
    #[error("the journal of drills in {}: {source}", path.display())]
    Journal { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Runtime(#[from] RuntimeError),
    #[error("{task}, of the drill {drill}: {why}")]
    NotUndone {
        task: String,
        drill: String,
        why: String,
    },
}

/// The file by which an agent is asked to undo everything; it removes it when that is done.
pub(super) fn marker(identity: &Identity) -> PathBuf {
    identity.drills_dir().join("heal")
}

/// Asks the agent that runs to undo everything that drills did on this node. It is done when
/// [`open_tasks`] is empty. Blocking.
///
/// # Errors
/// When the request can't be written.
pub fn ask_to_heal(identity: &Identity) -> Result<(), HealError> {
    let failed = |source| journal_error(identity, source);
    if open_tasks(identity)?.is_empty() {
        return Ok(());
    }
    File::create(marker(identity)).map(drop).map_err(failed)
}

/// The names of the tasks that did something to this node which is not undone. Blocking.
///
/// # Errors
/// When the journal can't be read.
pub fn open_tasks(identity: &Identity) -> Result<Vec<String>, HealError> {
    let entries = Journal::of(identity).entries();
    let entries = entries.map_err(|source| journal_error(identity, source))?;
    let open = entries
        .into_iter()
        .filter(|entry| entry.stage == Stage::Open);
    Ok(open.map(|entry| entry.name().to_owned()).collect())
}

/// Undoes everything that drills did on a node whose agent does not run, and returns the names of the tasks that did it.
/// The next agent tells the API.
///
/// # Errors
/// The first thing that could not be undone; everything else is tried too.
pub async fn heal_in_place(identity: &Identity) -> Result<Vec<String>, HealError> {
    let journal = Journal::of(identity);
    let reading = journal.clone();
    let entries = blocking(move || reading.entries()).await;
    let mut entries = entries.map_err(|source| journal_error(identity, source))?;
    entries.retain(|entry| entry.stage == Stage::Open);
    let mut healed = Vec::new();
    let mut failed = None;
    if !entries.is_empty() {
        let site = Site::new(identity.clone())?;
        for entry in entries {
            let name = entry.name().to_owned();
            match undo(&site, &journal, entry).await {
                Ok(()) => healed.push(name),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
    }
    let marker = marker(identity);
    blocking(move || match std::fs::remove_file(marker) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    })
    .await
    .map_err(|source| journal_error(identity, source))?;
    match failed {
        Some(error) => Err(error),
        None => Ok(healed),
    }
}

async fn undo(site: &Site, journal: &Journal, mut entry: Entry) -> Result<(), HealError> {
    let failed = |entry: &Entry, error: FaultError| HealError::NotUndone {
        task: entry.name().to_owned(),
        drill: entry.task.spec.drill.clone(),
        why: error.to_string(),
    };
    let fault = fault::of(&entry.task.spec.action).ok_or_else(|| {
        let message = "this version of skiff does not know how to undo it".to_owned();
        failed(&entry, FaultError::Refused(message))
    })?;
    let order = Order::of(&entry.task);
    let undone = fault.undo(site, &order, &entry.undo).await;
    undone.map_err(|error| failed(&entry, error))?;
    let mut status = entry.status.clone();
    status.phase = TaskPhase::Ended;
    status.ended_at = Some(MicroTime(Timestamp::now()));
    status.message = Some("undone on the node while its agent did not run".to_owned());
    fault.conclude(site, &order, &entry.undo, &mut status).await;
    entry.status = status;
    entry.stage = Stage::Closed;
    let journal = journal.clone();
    let identity = site.identity.clone();
    let written = blocking(move || journal.write(&entry)).await;
    written.map_err(|source| journal_error(&identity, source))
}

fn journal_error(identity: &Identity, source: io::Error) -> HealError {
    HealError::Journal {
        path: identity.drills_dir(),
        source,
    }
}
