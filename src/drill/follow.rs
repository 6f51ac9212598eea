//! Staying with a drill until it is over.
//!
//! The API may be away meanwhile, since it may be what the drill breaks. A first interrupt has the
//! drill cancelled, and waits for what it did to be undone; a second one leaves.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{Fuse, FusedFuture, FutureExt};
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, watch_object};
use serde_json::json;
use skiff_dev::{Drill, DrillPhase};

use super::progress::Progress;
use super::submit::in_words;
use crate::serving::StopSignals;

/// Between two attempts to reach an API that is away: a drill's own client is in a hurry.
const RETRY: Duration = Duration::from_millis(250);

/// How following a drill ended.
pub enum Followed {
    /// The drill is over. Boxed, since it holds the whole report.
    Ended(Box<Drill>),
    /// Whoever waited does not want to any more; the drill goes on being undone.
    Left,
}

/// Follows the drill of a name.
///
/// # Errors
/// When it was deleted, or may not be read.
pub async fn follow(
    drills: &Api<Drill>,
    name: &str,
    progress: &mut Progress,
    signals: &mut StopSignals,
) -> anyhow::Result<Followed> {
    let mut states = pin!(watch_object(drills.clone(), name).backoff(Retry));
    let mut cancelling = pin!(Fuse::terminated());
    let mut cancelled = false;
    loop {
        tokio::select! {
            state = states.next() => match state {
                Some(Ok(Some(drill))) => {
                    progress.show(&drill);
                    if is_over(&drill) {
                        return Ok(Followed::Ended(Box::new(drill)));
                    }
                }
                Some(Ok(None)) => anyhow::bail!(
                    "drill {name} was deleted; what it did is undone by those who did it"
                ),
                Some(Err(error)) => missed(name, &error, progress)?,
                None => anyhow::bail!("drill {name} can't be watched any longer"),
            },
            done = &mut cancelling => done?,
            _ = signals.next() => {
                if cancelled {
                    progress.note(&farewell(name, cancelling.is_terminated()));
                    return Ok(Followed::Left);
                }
                cancelled = true;
                progress.note("cancelling: what was done is undone first; interrupt again to leave at once");
                cancelling.set(cancel(drills, name).fuse());
            }
        }
    }
}

/// What becomes of a drill that is left before it is over.
fn farewell(name: &str, is_cancelled: bool) -> String {
    match is_cancelled {
        true => format!(
            "left; drill {name} goes on being undone: see `skiff drill report {name}`, or wait for it with `skiff drill heal`"
        ),
        false => format!(
            "left; the API could not be told to cancel drill {name}, which goes on to its end: `skiff drill heal` undoes it before"
        ),
    }
}

pub fn is_over(drill: &Drill) -> bool {
    let status = drill.status.as_ref();
    status.is_some_and(|status| status.phase == DrillPhase::Completed)
}

/// Asks for the undo, for as long as the API is away.
///
/// # Errors
/// When the API refuses.
pub async fn cancel(drills: &Api<Drill>, name: &str) -> anyhow::Result<()> {
    let patch = Patch::Merge(json!({"spec": {"cancel": true}}));
    loop {
        match drills.patch(name, &PatchParams::default(), &patch).await {
            Ok(_) => return Ok(()),
            // It is over, and gone.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) if is_passing(&error) => tokio::time::sleep(RETRY).await,
            Err(error) => {
                anyhow::bail!("drill {name} can't be cancelled: {}", in_words(&error));
            }
        }
    }
}

/// A watch that broke is begun again by itself, unless it never will be any good.
fn missed(name: &str, error: &watcher::Error, progress: &mut Progress) -> anyhow::Result<()> {
    use watcher::Error;
    match error {
        Error::InitialListFailed(cause) | Error::WatchStartFailed(cause) if !is_passing(cause) => {
            anyhow::bail!("drill {name} can't be watched: {}", in_words(cause));
        }
        Error::InitialListFailed(cause)
        | Error::WatchStartFailed(cause)
        | Error::WatchFailed(cause) => progress.lost(&in_words(cause)),
        // Its place in the history was forgotten: it is listed again.
        Error::WatchError(_) | Error::NoResourceVersion => {}
    }
    Ok(())
}

/// Whether it may go better the next time.
fn is_passing(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code == 429 || status.code >= 500 || status.code == 410,
        _ => true,
    }
}

/// Always the same short time.
pub struct Retry;

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(RETRY)
    }
}

impl Backoff for Retry {
    fn reset(&mut self) {}
}
