//! The servers that know the rest of the world: the host's, as its `resolv.conf` names them now.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use super::resolv_conf::ResolvConf;
use crate::logs::{Watch, Watcher};

const PORT: u16 = 53;

/// Follows a `resolv.conf` until it is dropped.
pub(super) struct Follow {
    pub(super) file: PathBuf,
    /// Ourselves: asking there would go round in circles.
    pub(super) own: Vec<IpAddr>,
    pub(super) servers: watch::Sender<Arc<[SocketAddr]>>,
}

impl Follow {
    /// Reads the file now and whenever it changes.
    pub(super) async fn run(self, watcher: Watcher) {
        loop {
            // The watches come first, so that no change is missed.
            let watches = watches(&watcher, &self.file);
            self.read().await;
            if watches.is_empty() {
                tracing::warn!(file = %self.file.display(), "the host's resolvers can't be watched: restart the agent when they change");
                return std::future::pending().await;
            }
            let changes = watches.iter().map(|watch| Box::pin(watch.changed()));
            futures::future::select_all(changes).await;
        }
    }

    pub(super) async fn read(&self) {
        let text = tokio::fs::read_to_string(&self.file).await;
        let text = text.unwrap_or_else(|error| {
            tracing::debug!(file = %self.file.display(), %error, "no resolvers of the host");
            String::new()
        });
        let (own, others): (Vec<_>, Vec<_>) = ResolvConf::parse(&text)
            .addresses()
            .partition(|address| self.own.contains(address));
        let servers: Arc<[_]> = others
            .into_iter()
            .map(|ip| SocketAddr::new(ip, PORT))
            .collect();
        let changed = self.servers.send_if_modified(|known| {
            let changed = *known != servers;
            *known = servers;
            changed
        });
        if changed && !own.is_empty() {
            tracing::warn!(file = %self.file.display(), ?own, "this node's own resolver is named as the host's: it is left out, because it would ask itself");
        }
    }
}

/// The file itself, where it is looked up, and where a link leads.
fn watches(watcher: &Watcher, file: &Path) -> Vec<Watch> {
    let target = file.canonicalize().ok();
    let places = [
        Some(file),
        file.parent(),
        target.as_deref(),
        target.as_deref().and_then(Path::parent),
    ];
    let mut places: Vec<&Path> = places.into_iter().flatten().collect();
    places.sort();
    places.dedup();
    places
        .into_iter()
        .filter_map(|place| watcher.watch(place).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn follows_a_file_that_is_written_replaced_and_linked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        std::fs::write(&file, "nameserver 10.0.0.1\nnameserver 10.9.9.9\n").unwrap();
        let (servers, mut seen) = watch::channel(Arc::from([]));
        let follow = Follow {
            file: file.clone(),
            own: vec!["10.9.9.9".parse().unwrap()],
            servers,
        };
        let task = tokio::spawn(follow.run(Watcher::new().unwrap()));
        let mut until = async |wanted: &str| {
            let wanted: SocketAddr = wanted.parse().unwrap();
            let found = seen.wait_for(|servers| **servers == [wanted]);
            let found = tokio::time::timeout(std::time::Duration::from_secs(20), found).await;
            assert!(found.is_ok_and(|f| f.is_ok()), "never {wanted}");
        };
        until("10.0.0.1:53").await;
        std::fs::write(&file, "nameserver 10.0.0.2\n").unwrap();
        until("10.0.0.2:53").await;
        let elsewhere = tempfile::tempdir().unwrap();
        let target = elsewhere.path().join("stub.conf");
        std::fs::write(&target, "nameserver 10.0.0.3\n").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join("new")).unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        until("10.0.0.3:53").await;
        std::fs::write(&target, "nameserver 10.0.0.4\n").unwrap();
        until("10.0.0.4:53").await;
        std::fs::remove_file(&target).unwrap();
        std::fs::write(&target, "nameserver 10.0.0.5\n").unwrap();
        until("10.0.0.5:53").await;
        task.abort();
    }
}
