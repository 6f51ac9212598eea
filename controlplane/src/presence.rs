//! Which nodes hold a connection to the API server, and which have just lost their last.
//!
//! An agent always watches something, so a node without any connection is a node without an agent.
//! The node lifecycle controller hears of it here at once, where a lease would take its grace
//! period to tell. Nodes whose agent is in this process never appear.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The nodes' connections. Clones share them.
#[derive(Clone)]
pub struct Presence {
    nodes: Arc<Mutex<HashMap<String, Line>>>,
    /// Changes when a node loses its last connection.
    lost: watch::Sender<()>,
}

#[derive(Debug, Clone, Copy)]
enum Line {
    Open { connections: usize },
    Closed { since: Instant },
}

/// One connection of a node, for as long as it lives.
pub struct Connection {
    presence: Presence,
    node: String,
}

impl Default for Presence {
    fn default() -> Self {
        Self {
            nodes: Arc::default(),
            lost: watch::channel(()).0,
        }
    }
}

impl Presence {
    /// Notes a connection.
    pub fn connect(&self, node: &str) -> Connection {
        let mut nodes = self.nodes();
        let connections = match nodes.get(node) {
            Some(Line::Open { connections }) => connections + 1,
            _ => 1,
        };
        nodes.insert(node.to_string(), Line::Open { connections });
        Connection {
            presence: self.clone(),
            node: node.to_string(),
        }
    }

    /// For how long a node that was connected has not been; `None` while it is, and for a node that
    /// this process never saw.
    pub fn absent_for(&self, node: &str) -> Option<Duration> {
        match self.nodes().get(node) {
            Some(Line::Closed { since }) => Some(since.elapsed()),
            _ => None,
        }
    }

    /// The nodes that are absent.
    pub fn absent(&self) -> Vec<String> {
        let nodes = self.nodes();
        let closed = nodes
            .iter()
            .filter(|(_, line)| matches!(line, Line::Closed { .. }));
        closed.map(|(node, _)| node.clone()).collect()
    }

    /// Forgets a node that has left for good.
    pub fn forget(&self, node: &str) {
        let mut nodes = self.nodes();
        if matches!(nodes.get(node), Some(Line::Closed { .. })) {
            nodes.remove(node);
        }
    }

    /// Tells when a node has lost its last connection.
    pub fn losses(&self) -> watch::Receiver<()> {
        self.lost.subscribe()
    }

    fn disconnect(&self, node: &str) {
        let mut nodes = self.nodes();
        let Some(Line::Open { connections }) = nodes.get_mut(node) else {
            return;
        };
        *connections -= 1;
        if *connections == 0 {
            let since = Instant::now();
            nodes.insert(node.to_string(), Line::Closed { since });
            drop(nodes);
            self.lost.send_replace(());
        }
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<String, Line>> {
        // The map is whole between any two statements, also after a panic elsewhere.
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.presence.disconnect(&self.node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_last_connection_counts() {
        let presence = Presence::default();
        let mut losses = presence.losses();
        let (first, second) = (presence.connect("a"), presence.connect("a"));
        drop(first);
        assert_eq!(presence.absent_for("a"), None);
        assert!(!losses.has_changed().unwrap());
        drop(second);
        losses.changed().await.unwrap();
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(presence.absent_for("a"), Some(Duration::from_secs(3)));
        assert_eq!(presence.absent(), ["a"]);
        let _back = presence.connect("a");
        assert_eq!(presence.absent_for("a"), None);
        presence.forget("a");
        assert_eq!(presence.absent_for("b"), None);
    }
}
