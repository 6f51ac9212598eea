//! What a controller has written and its informer may not have seen yet.
//!
//! A second slice would be created for endpoints that are in one already, should a reconcile
//! not know of the first. So all writes of slices go through here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;

use super::packing::Draft;
use crate::controllers::informer::ObjectKey;
use crate::controllers::writes::{only, unless_gone};

/// An informer that has not seen a write for so long never will: the object is gone.
const PATIENCE: Duration = Duration::from_secs(30);

/// Slices as they were last written, by their own names.
#[derive(Default)]
pub(super) struct Written {
    slices: Mutex<HashMap<ObjectKey, (Arc<EndpointSlice>, Instant)>>,
}

impl Written {
    /// Writes what a draft holds: into its slice, or into a new one like `template`. `amend`
    /// sets the labels and annotations.
    ///
    /// # Errors
    /// The API server's; a conflict when the slice has changed since.
    pub(super) async fn write(
        &self,
        client: &Client,
        template: &EndpointSlice,
        draft: Draft,
        amend: impl Fn(&mut ObjectMeta),
    ) -> Result<(), kube::Error> {
        let namespace = template.metadata.namespace.as_deref().unwrap_or_default();
        let api: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
        let mut slice = EndpointSlice::clone(draft.slice.as_deref().unwrap_or(template));
        amend(&mut slice.metadata);
        slice.endpoints = Some(draft.endpoints);
        slice.ports = Some(draft.ports);
        let params = PostParams::default();
        let written = match &draft.slice {
            Some(old) => api.replace(&old.name_any(), &params, &slice).await,
            None => api.create(&params, &slice).await,
        };
        match written {
            Ok(slice) => {
                let key = ObjectKey::of(&slice);
                self.lock().insert(key, (Arc::new(slice), Instant::now()));
                Ok(())
            }
            Err(error) => {
                // Whoever was quicker, the informer tells.
                if let Some(slice) = &draft.slice {
                    self.forget(&ObjectKey::of(&**slice));
                }
                Err(error)
            }
        }
    }

    /// Removes slices that are not needed any more.
    ///
    /// # Errors
    /// The API server's.
    pub(super) async fn delete(
        &self,
        client: &Client,
        slices: &[Arc<EndpointSlice>],
    ) -> Result<(), kube::Error> {
        for slice in slices {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            let api: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
            let params = only(slice.metadata.uid.as_deref());
            unless_gone(api.delete(&slice.name_any(), &params).await)?;
            self.forget(&ObjectKey::of(&**slice));
        }
        Ok(())
    }

    pub(super) fn forget(&self, key: &ObjectKey) {
        self.lock().remove(key);
    }

    /// Whether what the informer tells of is news: neither an own write nor older than one.
    /// From then on the informer knows.
    pub(super) fn is_news(&self, seen: &EndpointSlice) -> bool {
        let key = ObjectKey::of(seen);
        let mut slices = self.lock();
        let Some((own, _)) = slices.get(&key) else {
            return true;
        };
        let (own, seen) = (revision(own), revision(seen));
        if seen >= own {
            slices.remove(&key);
        }
        seen > own
    }

    /// What the informer has of a Service's slices, with own writes that it does not have.
    pub(super) fn over(
        &self,
        service: &ObjectKey,
        mut seen: Vec<Arc<EndpointSlice>>,
    ) -> Vec<Arc<EndpointSlice>> {
        let mut slices = self.lock();
        slices.retain(|key, (own, at)| {
            if key.namespace != service.namespace || service_name(own) != Some(&service.name) {
                return at.elapsed() < PATIENCE;
            }
            match seen
                .iter_mut()
                .find(|slice| ObjectKey::of(&***slice) == *key)
            {
                Some(slice) if revision(slice) >= revision(own) => return false,
                Some(slice) => *slice = own.clone(),
                None if at.elapsed() >= PATIENCE => return false,
                None => seen.push(own.clone()),
            }
            true
        });
        seen
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ObjectKey, (Arc<EndpointSlice>, Instant)>> {
        self.slices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The Service that a slice says it belongs to.
pub(super) fn service_name(slice: &EndpointSlice) -> Option<&str> {
    slice
        .labels()
        .get("kubernetes.io/service-name")
        .map(String::as_str)
}

fn revision(slice: &EndpointSlice) -> u64 {
    let version = slice.metadata.resource_version.as_deref();
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}
