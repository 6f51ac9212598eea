//! Watches of the observer's own, on a thread of their own.
//!
//! A watch that breaks off goes on from the last version that it saw, so nothing is lost. The one thing that this is
//! impossible over is a new start of the control plane, which keeps no history: then a list tells what became of
//! everything meanwhile, and when it happened is known as a span ([`When`]).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{
    ApiResource, DynamicObject, GroupVersionKind, ListParams, WatchEvent, WatchParams,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::Value;
use tokio::sync::oneshot;

use super::record::Record;
use super::{on_this_thread, seconds};
use crate::wait;

/// Between two attempts to go on.
const AGAIN: Duration = Duration::from_millis(10);
/// What comes so soon after a watch began anew, in seconds, may have waited for that.
const WAITED: f64 = 0.1;
/// `410 Gone`: the version is from before the server's history.
const GONE: u16 = 410;

/// When something happened, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct When {
    /// Not before: earlier than `seen` only while nobody could be told.
    pub(super) since: f64,
    pub(super) seen: f64,
}

/// What is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Pod,
    Node,
    Slice,
    Event,
    Task,
}

const KINDS: [Kind; 5] = [Kind::Pod, Kind::Node, Kind::Slice, Kind::Event, Kind::Task];

impl Kind {
    fn resource(self) -> ApiResource {
        let (group, version, kind, plural) = match self {
            Self::Pod => ("", "v1", "Pod", "pods"),
            Self::Node => ("", "v1", "Node", "nodes"),
            Self::Slice => ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
            Self::Event => ("", "v1", "Event", "events"),
            Self::Task => ("skiff.dev", "v1", "DrillTask", "drilltasks"),
        };
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    }

    fn api(self, client: Client) -> Api<DynamicObject> {
        match self {
            Self::Node | Self::Task => Api::all_with(client, &self.resource()),
            _ => Api::namespaced_with(client, "default", &self.resource()),
        }
    }

    fn selector(self) -> &'static str {
        match self {
            Self::Pod => "app=web",
            Self::Slice => "kubernetes.io/service-name=web",
            _ => "",
        }
    }
}

pub(super) struct Watch {
    stop: oneshot::Sender<()>,
    record: Arc<Mutex<Record>>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Begins, and has seen what is there.
    pub(super) fn start(kubeconfig: &Path) -> Self {
        let (stop, stopped) = oneshot::channel();
        let record = Arc::new(Mutex::new(Record::default()));
        let (kept, path) = (record.clone(), kubeconfig.to_owned());
        let listed = Arc::new(Mutex::new(BTreeSet::new()));
        let tell = listed.clone();
        let thread = std::thread::spawn(move || {
            on_this_thread(async {
                tokio::select! {
                    () = watch(&path, &kept, &tell) => {}
                    _ = stopped => {}
                }
            });
        });
        wait::until("the observer's watches", || {
            let listed = listed.lock().expect("no panic").len();
            (listed == KINDS.len()).then_some(())
        });
        Self {
            stop,
            record,
            thread,
        }
    }

    pub(super) fn end(self) -> Record {
        let _ = self.stop.send(());
        self.thread.join().expect("the watch");
        std::mem::take(&mut *self.record.lock().expect("no panic"))
    }
}

async fn watch(kubeconfig: &Path, record: &Mutex<Record>, listed: &Mutex<BTreeSet<Kind>>) {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("the kubeconfig");
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await;
    let client = kube::Client::try_from(config.expect("a configuration")).expect("a client");
    let all = KINDS.map(|kind| follow(kind, client.clone(), record, listed));
    futures::future::join_all(all).await;
}

/// Follows one kind of objects for as long as it is polled.
async fn follow(
    kind: Kind,
    client: Client,
    record: &Mutex<Record>,
    listed: &Mutex<BTreeSet<Kind>>,
) {
    let api = kind.api(client);
    let parameters = WatchParams::default().labels(kind.selector());
    let mut version: Option<String> = None;
    // Since when nothing may have been told.
    let mut blind = seconds();
    loop {
        let Some(from) = &version else {
            let list = ListParams::default().labels(kind.selector());
            let asked = seconds();
            let Ok(list) = api.list(&list).await else {
                tokio::time::sleep(AGAIN).await;
                continue;
            };
            let when = When {
                since: blind,
                seen: seconds(),
            };
            version = list.metadata.resource_version.clone();
            let objects: Vec<Value> = list.items.into_iter().map(to_json).collect();
            record.lock().expect("no panic").list(kind, when, &objects);
            blind = asked;
            listed.lock().expect("no panic").insert(kind);
            continue;
        };
        let changes = match api.watch(&parameters, from).await {
            Ok(changes) => changes,
            Err(error) => {
                if is_gone(&error) {
                    version = None;
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        let begun = seconds();
        let mut changes = std::pin::pin!(changes);
        while let Some(change) = changes.next().await {
            let change = match change {
                Ok(change) => change,
                Err(error) => {
                    if is_gone(&error) {
                        version = None;
                    }
                    break;
                }
            };
            let seen = seconds();
            let waited = seen < begun + WAITED;
            let when = When {
                since: if waited { blind.min(seen) } else { seen },
                seen,
            };
            let (object, is_gone) = match change {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
                WatchEvent::Deleted(object) => (object, true),
                WatchEvent::Bookmark(bookmark) => {
                    version = Some(bookmark.metadata.resource_version);
                    continue;
                }
                WatchEvent::Error(status) => {
                    assert_eq!(status.code, GONE, "{kind:?}: {status:?}");
                    version = None;
                    break;
                }
            };
            version.clone_from(&object.metadata.resource_version);
            let object = to_json(object);
            let mut record = record.lock().expect("no panic");
            match is_gone {
                true => record.lose(kind, when, &object),
                false => record.see(kind, when, &object),
            }
        }
        blind = seconds();
        tokio::time::sleep(AGAIN).await;
    }
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == GONE)
}

fn to_json(object: DynamicObject) -> Value {
    serde_json::to_value(object).expect("JSON")
}
