//! Keeps the zone as the API has it, and a copy of it on disk.
//!
//! The copy is what an agent answers from that starts while the API is away: an address that was right a while ago
//! is better than none. It is written some seconds after a change, so a quiet cluster writes nothing.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::zone::{Entry, Service, Slice, Zone};
use crate::net::service_watch::{Change, ObjectName};

/// Between a change and the copy that has it.
const SAVE_AFTER: Duration = Duration::from_secs(5);

/// The zone as it is on disk.
#[derive(Serialize, Deserialize)]
struct Copy {
    entries: Vec<(ObjectName, Entry)>,
}

/// Takes changes into the zone.
pub(super) struct Feed {
    zone: Arc<RwLock<Zone>>,
    /// The service of each slice: a slice may be given to another one.
    slices: HashMap<ObjectName, ObjectName>,
    /// What the copy on disk has and the API has not named yet.
    unconfirmed: HashSet<ObjectName>,
    unconfirmed_slices: HashSet<ObjectName>,
    changed: Arc<Notify>,
}

impl Feed {
    pub(super) fn new(zone: Arc<RwLock<Zone>>, changed: Arc<Notify>) -> Self {
        let (mut slices, mut unconfirmed) = (HashMap::new(), HashSet::new());
        {
            let zone = zone.read().unwrap_or_else(PoisonError::into_inner);
            for (service, entry) in zone.named_entries() {
                for name in entry.slices.keys() {
                    let slice = ObjectName {
                        namespace: service.namespace.clone(),
                        name: name.clone(),
                    };
                    slices.insert(slice, service.clone());
                }
                unconfirmed.insert(service);
            }
        }
        Self {
            unconfirmed_slices: slices.keys().cloned().collect(),
            zone,
            slices,
            unconfirmed,
            changed,
        }
    }

    pub(super) fn take(&mut self, change: &Change) {
        match change {
            Change::Service(service) => {
                let name = ObjectName::of(&**service);
                self.unconfirmed.remove(&name);
                match Service::of(service) {
                    Some(service) => self.write(|zone| zone.put_service(&name, service)),
                    None => self.write(|zone| zone.remove_service(&name)),
                }
            }
            Change::ServiceGone(name) => self.write(|zone| zone.remove_service(name)),
            Change::Slice(slice) => {
                let name = ObjectName::of(&**slice);
                self.unconfirmed_slices.remove(&name);
                let content = Slice::of(slice);
                let service = content.as_ref().map(|(service, _)| service);
                if self.slices.get(&name) != service {
                    self.remove_slice(&name);
                }
                if let Some((service, content)) = content {
                    self.slices.insert(name.clone(), service.clone());
                    self.write(|zone| zone.put_slice(&service, &name.name, content));
                }
            }
            Change::SliceGone(name) => self.remove_slice(name),
            Change::Complete => self.complete(),
        }
        self.changed.notify_one();
    }

    /// What nobody named is gone.
    fn complete(&mut self) {
        for name in std::mem::take(&mut self.unconfirmed) {
            self.write(|zone| zone.remove_service(&name));
        }
        for name in std::mem::take(&mut self.unconfirmed_slices) {
            self.remove_slice(&name);
        }
        self.write(|zone| zone.complete = true);
    }

    fn remove_slice(&mut self, name: &ObjectName) {
        if let Some(service) = self.slices.remove(name) {
            self.write(|zone| zone.remove_slice(&service, &name.name));
        }
    }

    fn write(&self, change: impl FnOnce(&mut Zone)) {
        change(&mut self.zone.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The zone of the copy, if there is a good one; it counts as complete.
pub(super) fn load(file: &std::path::Path) -> Zone {
    let copy = std::fs::read(file).ok();
    let copy = copy.and_then(|bytes| serde_json::from_slice::<Copy>(&bytes).ok());
    let mut zone = Zone::default();
    if let Some(copy) = copy {
        zone.complete = true;
        for (name, entry) in copy.entries {
            zone.put(&name, entry);
        }
    }
    zone
}

/// Writes the copy whenever the zone has changed, until it is dropped.
pub(super) async fn keep_copy(zone: Arc<RwLock<Zone>>, file: PathBuf, changed: Arc<Notify>) {
    loop {
        changed.notified().await;
        tokio::time::sleep(SAVE_AFTER).await;
        let (zone, file) = (zone.clone(), file.clone());
        let saved = tokio::task::spawn_blocking(move || save(&zone, &file)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(%error, "the copy of the cluster's names was not written");
        }
    }
}

fn save(zone: &RwLock<Zone>, file: &std::path::Path) -> io::Result<()> {
    let entries = {
        let zone = zone.read().unwrap_or_else(PoisonError::into_inner);
        if !zone.complete {
            return Ok(());
        }
        let entries = zone.named_entries();
        entries.map(|(name, entry)| (name, entry.clone())).collect()
    };
    let bytes = serde_json::to_vec(&Copy { entries })?;
    if std::fs::read(file).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(directory) = file.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let new = file.with_extension("new");
    std::fs::write(&new, bytes)?;
    std::fs::rename(new, file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(name: &str, address: &str) -> Change {
        let object = json!({"metadata": {"namespace": "ns", "name": name},
            "spec": {"clusterIP": address, "clusterIPs": [address]}});
        Change::Service(Box::new(serde_json::from_value(object).unwrap()))
    }

    fn slice(name: &str, service: &str, address: &str) -> Change {
        let object = json!({"metadata": {"namespace": "ns", "name": name,
            "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": [{"addresses": [address]}]});
        Change::Slice(Box::new(serde_json::from_value(object).unwrap()))
    }

    fn content(zone: &RwLock<Zone>) -> Vec<String> {
        let zone = zone.read().unwrap();
        let mut all: Vec<String> = zone
            .named_entries()
            .map(|(name, entry)| {
                let slices: Vec<_> = entry.slices.keys().map(String::as_str).collect();
                format!(
                    "{} {} {}",
                    name.name,
                    entry.service.is_some(),
                    slices.join(",")
                )
            })
            .collect();
        all.sort();
        all
    }

    #[test]
    fn a_copy_serves_until_the_api_says_better() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("net/names.json");
        let zone = Arc::new(RwLock::new(load(&file)));
        assert!(!zone.read().unwrap().complete);
        let mut feed = Feed::new(zone.clone(), Arc::default());
        save(&zone, &file).unwrap();
        assert!(!file.exists(), "half a zone is not kept");
        for change in [
            service("a", "10.0.0.1"),
            service("b", "None"),
            slice("b-1", "b", "10.1.0.1"),
            slice("b-2", "b", "10.1.0.2"),
            Change::Complete,
        ] {
            feed.take(&change);
        }
        save(&zone, &file).unwrap();

        let again = Arc::new(RwLock::new(load(&file)));
        assert!(again.read().unwrap().complete);
        assert_eq!(content(&again), ["a true ", "b true b-1,b-2"]);
        assert_eq!(again.read().unwrap().by_address.len(), 3);
        let mut feed = Feed::new(again.clone(), Arc::default());
        feed.take(&service("b", "None"));
        feed.take(&slice("b-2", "c", "10.1.0.2"));
        assert_eq!(content(&again), ["a true ", "b true b-1", "c false b-2"]);
        feed.take(&Change::Complete);
        assert_eq!(content(&again), ["b true ", "c false b-2"]);
    }

    #[test]
    fn a_broken_copy_is_no_copy() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("names.json");
        std::fs::write(&file, "{\"entries\": [").unwrap();
        assert!(!load(&file).complete);
    }
}
