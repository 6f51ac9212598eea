//! Owner references: who controls an object, and how a controller adopts and releases.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};
use kube::api::{Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;

/// The reference to the one owner that manages `object`, if there is one.
pub fn controller_ref<K: Resource>(object: &K) -> Option<&OwnerReference> {
    let owners = object.meta().owner_references.as_deref()?;
    owners.iter().find(|owner| owner.controller == Some(true))
}

/// The reference by which `owner` controls another object.
pub fn new_controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A label selector, ready to match. One that can't be parsed selects nothing, as the API
/// server refuses those.
pub fn parse_selector(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok()
}

pub fn selects<K: Resource>(selector: &Selector, object: &K) -> bool {
    match &object.meta().labels {
        Some(labels) => selector.matches(labels),
        None => selector.matches(&Default::default()),
    }
}

/// What a controller has to do about one object that might be its own.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Mine,
    NotMine,
    /// It is ours but no longer matches the selector.
    Release,
    /// Nobody controls it and it matches the selector.
    Adopt,
}

fn decide_claim<K: Resource>(object: &K, owner: &Owner<'_>) -> Claim {
    let matches = selects(owner.selector, object);
    match controller_ref(object) {
        Some(controller) if controller.uid != owner.reference.uid => Claim::NotMine,
        Some(_) if matches => Claim::Mine,
        Some(_) if owner.is_deleted => Claim::NotMine,
        Some(_) => Claim::Release,
        None if !matches || owner.is_deleted => Claim::NotMine,
        None if object.meta().deletion_timestamp.is_some() => Claim::NotMine,
        None => Claim::Adopt,
    }
}

/// A controller object that claims its dependents.
pub struct Owner<'a> {
    pub reference: OwnerReference,
    pub selector: &'a Selector,
    pub is_deleted: bool,
}

/// The objects of `candidates` that belong to `owner`, after adopting orphans that match its
/// selector and releasing owned objects that don't. Before it adopts, `may_adopt` has to
/// confirm with the API server that the owner still exists and isn't being deleted.
pub async fn claim<K, F>(
    api: &Api<K>,
    owner: &Owner<'_>,
    candidates: Vec<Arc<K>>,
    may_adopt: impl FnOnce() -> F,
) -> Result<Vec<Arc<K>>, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
    F: Future<Output = Result<bool, kube::Error>>,
{
    let mut claimed = Vec::with_capacity(candidates.len());
    let mut orphans = Vec::new();
    for object in candidates {
        match decide_claim(&*object, owner) {
            Claim::Mine => claimed.push(object),
            Claim::NotMine => {}
            Claim::Adopt => orphans.push(object),
            Claim::Release => release(api, &*object, owner).await?,
        }
    }
    if !orphans.is_empty() && may_adopt().await? {
        for orphan in orphans {
            if adopt(api, &*orphan, owner).await? {
                claimed.push(orphan);
            }
        }
    }
    Ok(claimed)
}

/// False when the object is gone.
async fn adopt<K>(api: &Api<K>, object: &K, owner: &Owner<'_>) -> Result<bool, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut owners = object.meta().owner_references.clone().unwrap_or_default();
    owners.push(owner.reference.clone());
    write_owners(api, object, &owners).await
}

async fn release<K>(api: &Api<K>, object: &K, owner: &Owner<'_>) -> Result<(), kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let mut owners = object.meta().owner_references.clone().unwrap_or_default();
    owners.retain(|other| other.uid != owner.reference.uid);
    write_owners(api, object, &owners).await.map(|_| ())
}

async fn write_owners<K>(
    api: &Api<K>,
    object: &K,
    owners: &[OwnerReference],
) -> Result<bool, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    // The version makes sure that the list of owners is still the one that was read.
    let patch = json!({"metadata": {
        "uid": object.meta().uid,
        "resourceVersion": object.meta().resource_version,
        "ownerReferences": owners,
    }});
    let name = object.meta().name.as_deref().unwrap_or_default();
    match api
        .patch(name, &PatchParams::default(), &Patch::Merge(patch))
        .await
    {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the owner that a controller has in memory is still there and not being deleted.
pub async fn still_exists<K>(api: &Api<K>, owner: &K) -> Result<bool, kube::Error>
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    let name = owner.meta().name.as_deref().unwrap_or_default();
    Ok(api.get_opt(name).await?.is_some_and(|fresh| {
        fresh.meta().uid == owner.meta().uid && fresh.meta().deletion_timestamp.is_none()
    }))
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn pod(label: &str, owner_uid: Option<&str>) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.labels = Some([("app".to_string(), label.to_string())].into());
        pod.metadata.owner_references = owner_uid.map(|uid| {
            vec![OwnerReference {
                uid: uid.into(),
                controller: Some(true),
                ..Default::default()
            }]
        });
        pod
    }

    #[test]
    fn claims_follow_the_owner_reference_then_the_selector() {
        let selector = parse_selector(&LabelSelector {
            match_labels: Some([("app".to_string(), "web".to_string())].into()),
            match_expressions: None,
        })
        .unwrap();
        let mut owner = Owner {
            reference: OwnerReference {
                uid: "me".into(),
                ..Default::default()
            },
            selector: &selector,
            is_deleted: false,
        };
        assert_eq!(decide_claim(&pod("web", Some("me")), &owner), Claim::Mine);
        assert_eq!(
            decide_claim(&pod("web", Some("you")), &owner),
            Claim::NotMine
        );
        assert_eq!(decide_claim(&pod("db", Some("me")), &owner), Claim::Release);
        assert_eq!(decide_claim(&pod("web", None), &owner), Claim::Adopt);
        assert_eq!(decide_claim(&pod("db", None), &owner), Claim::NotMine);
        let mut dying = pod("web", None);
        dying.metadata.deletion_timestamp = Some(Time(jiff::Timestamp::now()));
        assert_eq!(decide_claim(&dying, &owner), Claim::NotMine);
        owner.is_deleted = true;
        assert_eq!(decide_claim(&pod("web", None), &owner), Claim::NotMine);
        assert_eq!(decide_claim(&pod("db", Some("me")), &owner), Claim::NotMine);
    }
}
