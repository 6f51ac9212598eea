//! Which pods belong to a drill's target.

use k8s_openapi::api::core::v1::Pod;
use skiff_dev::Scope;

use crate::cache::Selector;
use crate::controllers::ownership::controller_ref;

/// A scope, ready to match.
#[derive(Debug, Clone, Default)]
pub(super) struct Membership {
    scope: Scope,
    selector: Option<Selector>,
}

impl Membership {
    /// A selector that can't be parsed selects nothing: the API refuses those.
    pub(super) fn new(scope: Scope) -> Self {
        let selector = scope.selector.as_deref();
        let selector = selector.and_then(|text| Selector::parse(text, "", &[]).ok());
        Self { scope, selector }
    }

    /// Whether a pod is one of the target's. `owner_of` gives the uid of the workload that controls the replica
    /// set with a namespace and a name.
    pub(super) fn has(&self, pod: &Pod, owner_of: &dyn Fn(&str, &str) -> Option<String>) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if self.scope.pods.iter().any(|known| known == uid) {
            return true;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(selector) = &self.selector
            && namespace == self.scope.namespace
            && selector.matches_labels(|key| {
                let labels = pod.metadata.labels.as_ref()?;
                labels.get(key).map(String::as_str)
            })
        {
            return true;
        }
        if self.scope.controllers.is_empty() {
            return false;
        }
        let is_owner = |uid: &str| self.scope.controllers.iter().any(|known| known == uid);
        controller_ref(pod).is_some_and(|owner| {
            is_owner(&owner.uid)
                || owner_of(namespace, &owner.name).is_some_and(|above| is_owner(&above))
        })
    }

    /// Whether an object with this uid is a workload of the target.
    pub(super) fn is_workload(&self, uid: &str) -> bool {
        self.scope.controllers.iter().any(|known| known == uid)
    }
}
