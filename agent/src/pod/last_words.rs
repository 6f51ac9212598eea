//! What a container said at its end: its termination log, or the end of its output.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Container;

use super::NodeContext;
use super::status::Attempt;
use super::tasks::blocking;
use crate::runtime::types::{ContainerRecord, ContainerState};

/// The kubelet's bounds for a message of a terminated container.
const MAX_MESSAGE: usize = 4096;
const MAX_LOG_MESSAGE: usize = 2048;
const MAX_LOG_LINES: usize = 80;

/// Where the last words of an attempt are.
pub(super) fn termination_log(pod_dir: &Path, id: &str) -> PathBuf {
    pod_dir.join("termination").join(id)
}

/// Reads the last words of an attempt that ended.
pub(super) async fn close(
    node: Arc<NodeContext>,
    pod_dir: PathBuf,
    container: Container,
    mut record: ContainerRecord,
) -> Attempt {
    record.image = node.images.canonical(&record.image);
    let read = record.clone();
    let message = blocking(move || Ok(last_words(&pod_dir, &container, &read))).await;
    Attempt {
        record,
        message: message.unwrap_or_default(),
    }
}

fn last_words(pod_dir: &Path, container: &Container, record: &ContainerRecord) -> Option<String> {
    let said = std::fs::read(termination_log(pod_dir, &record.id)).unwrap_or_default();
    if !said.is_empty() {
        let end = said.len().min(MAX_MESSAGE);
        return Some(String::from_utf8_lossy(&said[..end]).into_owned());
    }
    let ContainerState::Exited {
        exit_code,
        error: None,
        ..
    } = &record.state
    else {
        return None;
    };
    let policy = container.termination_message_policy.as_deref();
    if *exit_code == 0 || policy != Some("FallbackToLogsOnError") {
        return None;
    }
    let log = std::fs::read(&record.log_path).ok()?;
    Some(tail(&log)).filter(|m| !m.is_empty())
}

/// The end of a log in the CRI format, without its time stamps.
fn tail(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let mut lines = Vec::new();
    let mut size = 0;
    for line in text.lines().rev().take(MAX_LOG_LINES) {
        // <time> <stream> <P|F> <text>
        let mut parts = line.splitn(4, ' ').skip(2);
        let end = if parts.next() == Some("P") { "" } else { "\n" };
        let line = format!("{}{end}", parts.next().unwrap_or_default());
        size += line.len();
        if size > MAX_LOG_MESSAGE {
            break;
        }
        lines.push(line);
    }
    lines.reverse();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_tails_lose_their_stamps() {
        let log = b"2026-01-01T00:00:00.0Z stdout F one\n2026-01-01T00:00:00.0Z stderr P tw\n2026-01-01T00:00:00.0Z stderr F o\n";
        assert_eq!(tail(log), "one\ntwo\n");
        let long = format!("2026-01-01T00:00:00.0Z stdout F {}\n", "x".repeat(1000)).repeat(5);
        assert_eq!(tail(long.as_bytes()).len(), 2002);
    }
}
