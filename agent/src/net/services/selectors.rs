//! Which pods services select, whether their slices say so yet or not.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::Service;
use kube::ResourceExt;

use super::proxy::OTHER_PROXY;
use crate::net::service_watch::{Change, ObjectName};

/// The selectors of the services that this node's table leads to pods.
#[derive(Default)]
pub(super) struct Selectors {
    known: HashMap<ObjectName, BTreeMap<String, String>>,
}

impl Selectors {
    pub(super) fn note(&mut self, change: &Change) {
        match change {
            Change::Service(service) => {
                let name = ObjectName::of(&**service);
                match selector(service) {
                    Some(selector) => self.known.insert(name, selector),
                    None => self.known.remove(&name),
                };
            }
            Change::ServiceGone(name) => {
                self.known.remove(name);
            }
            Change::Slice(_) | Change::SliceGone(_) | Change::Complete => {}
        }
    }

    /// Whether a service selects a pod of this namespace with these labels.
    pub(super) fn select(&self, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        let mut here = self
            .known
            .iter()
            .filter(|(name, _)| name.namespace == namespace);
        here.any(|(_, selector)| {
            selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
        })
    }
}

/// What a service selects, if it has an address and this node is to lead to it.
fn selector(service: &Service) -> Option<BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    let is_led = !service.labels().contains_key(OTHER_PROXY)
        && spec
            .cluster_ip
            .as_deref()
            .is_some_and(|ip| ip != "None" && !ip.is_empty());
    spec.selector
        .clone()
        .filter(|selector| is_led && !selector.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_with_addresses_select_pods_of_their_namespace() {
        let mut selectors = Selectors::default();
        let mut note = |name: &str, ip: &str, selector: &str| {
            let service = json!({"metadata": {"name": name, "namespace": "shop"},
                "spec": {"clusterIP": ip, "selector": {"app": selector}}});
            selectors.note(&Change::Service(serde_json::from_value(service).unwrap()));
        };
        note("web", "10.43.0.7", "web");
        note("headless", "None", "db");
        note("changed", "10.43.0.8", "old");
        note("changed", "10.43.0.8", "new");
        let labels = |app: &str| BTreeMap::from([("app".to_owned(), app.to_owned())]);
        assert!(selectors.select("shop", &labels("web")));
        assert!(!selectors.select("default", &labels("web")));
        assert!(!selectors.select("shop", &labels("db")));
        assert!(!selectors.select("shop", &labels("old")));
        assert!(selectors.select("shop", &labels("new")));
        selectors.note(&Change::ServiceGone(ObjectName {
            namespace: "shop".into(),
            name: "web".into(),
        }));
        assert!(!selectors.select("shop", &labels("web")));
    }
}
