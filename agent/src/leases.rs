//! Keeps the images that containers of this node use, whoever removes their names.
//!
//! A lease in the store is durable and costs a sync of the disk, so there is one for each image
//! and not for each container. One task owns the count of containers; when the last one of an
//! image is gone, the lease ends.

use std::collections::{HashMap, HashSet};

use skiff_images::{Reference, Store};
use tokio::sync::{mpsc, oneshot};

use crate::pod::seams::{SeamError, SeamResult};

/// Requests that may wait.
const QUEUE: usize = 64;
/// What the names of this module's leases begin with.
const PREFIX: &str = "node-";

/// An image, as the record of a container has it: `docker.io/library/nginx@sha256:...` or
/// `sha256:...`.
type ImageId = String;

enum Request {
    Hold {
        container: String,
        id: ImageId,
        name: Reference,
        answer: oneshot::Sender<SeamResult<()>>,
    },
    Release {
        container: String,
    },
}

/// Asks the owner of the leases. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Leases {
    requests: mpsc::Sender<Request>,
}

impl Leases {
    /// The asking side, and the task that owns the leases. `used` are the containers there are,
    /// with the images they were made from.
    pub(crate) fn new(
        store: Store,
        used: Vec<(String, ImageId)>,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (requests, queue) = mpsc::channel(QUEUE);
        let mut owner = Owner {
            store,
            users: HashMap::new(),
        };
        for (container, id) in used {
            owner.users.entry(id).or_default().insert(container);
        }
        (Self { requests }, owner.run(queue))
    }

    /// Keeps an image while `container` exists.
    pub(crate) async fn hold(&self, container: &str, id: &str, name: Reference) -> SeamResult<()> {
        let (answer, answered) = oneshot::channel();
        let request = Request::Hold {
            container: container.to_owned(),
            id: id.to_owned(),
            name,
            answer,
        };
        let stopped = || SeamError("the agent stops".to_owned());
        self.requests.send(request).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }

    /// Says that a container is gone.
    pub(crate) async fn release(&self, container: &str) {
        let container = container.to_owned();
        // Nobody listens any more: the next agent ends leases that no container needs.
        let _ = self.requests.send(Request::Release { container }).await;
    }
}

struct Owner {
    store: Store,
    users: HashMap<ImageId, HashSet<String>>,
}

impl Owner {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        self.end_unused().await;
        while let Some(request) = queue.recv().await {
            match request {
                Request::Hold {
                    container,
                    id,
                    name,
                    answer,
                } => {
                    let held = self.hold(container, id, &name).await;
                    // The one who asked may have been ended meanwhile.
                    let _ = answer.send(held);
                }
                Request::Release { container } => self.release(&container).await,
            }
        }
    }

    async fn hold(&mut self, container: String, id: ImageId, name: &Reference) -> SeamResult<()> {
        if !self.users.contains_key(&id) {
            let image = self
                .store
                .get(name)
                .await
                .map_err(SeamError::from_display)?;
            let image = image.ok_or_else(|| SeamError(format!("image {name} is gone")))?;
            let leased = self.store.lease(&lease(&id), &image).await;
            leased.map_err(SeamError::from_display)?;
        }
        self.users.entry(id).or_default().insert(container);
        Ok(())
    }

    async fn release(&mut self, container: &str) {
        let mut ended = Vec::new();
        self.users.retain(|id, users| {
            if users.remove(container) && users.is_empty() {
                ended.push(id.clone());
            }
            !users.is_empty()
        });
        for id in ended {
            self.end(&lease(&id)).await;
        }
    }

    /// Ends leases of an earlier agent that no container needs.
    async fn end_unused(&self) {
        let needed: HashSet<String> = self.users.keys().map(|id| lease(id)).collect();
        let leases = match self.store.leases().await {
            Ok(leases) => leases,
            Err(error) => {
                tracing::warn!(%error, "can't list the images in use");
                return;
            }
        };
        for name in leases {
            if name.starts_with(PREFIX) && !needed.contains(&name) {
                self.end(&name).await;
            }
        }
    }

    async fn end(&self, name: &str) {
        if let Err(error) = self.store.release(name).await {
            tracing::warn!(lease = name, %error, "image not released");
        }
    }
}

/// The name of an image's lease: the digits of its digest.
fn lease(id: &str) -> String {
    let digits = id.rsplit(':').next().unwrap_or(id);
    format!("{PREFIX}{digits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_lease_serves_all_containers_of_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        std::fs::create_dir(&rootfs).unwrap();
        let archive = dir.path().join("a.tar");
        let name: Reference = "a".parse().unwrap();
        let options = skiff_images::PackOptions {
            references: vec![name.clone()],
            created: Some(0),
            ..skiff_images::PackOptions::default()
        };
        skiff_images::pack(&rootfs, &options, &archive).unwrap();
        let store = Store::open(dir.path().join("store")).await.unwrap();
        let image = store.import(&archive, &[]).await.unwrap().remove(0);
        store.lease("node-old", &image).await.unwrap();

        let (leases, owner) = Leases::new(store.clone(), Vec::new());
        let owner = tokio::spawn(owner);
        leases.hold("c1", "sha256:1", name.clone()).await.unwrap();
        leases.hold("c2", "sha256:1", name.clone()).await.unwrap();
        assert_eq!(store.leases().await.unwrap(), ["node-1"]);
        leases.release("c1").await;
        leases.hold("c3", "sha256:2", name).await.unwrap();
        assert_eq!(store.leases().await.unwrap(), ["node-1", "node-2"]);
        leases.release("c2").await;
        leases.release("c3").await;
        drop(leases);
        owner.await.unwrap();
        assert!(store.leases().await.unwrap().is_empty());
    }
}
