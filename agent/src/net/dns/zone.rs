//! What the cluster's names stand for: services and their endpoints, as they were last seen.
//!
//! One entry for each service, found by the two labels of its name as a query has them, so that a look-up copies
//! nothing. A change touches the entry that it is about and the addresses that lead back to it.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Service as ServiceObject;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::name::{Labels, push_label};
use crate::net::service_watch::ObjectName;

/// The label that names a slice's service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// The labels `name.namespace`, as they stand in a query.
fn wire(object: &ObjectName) -> Option<Key> {
    let mut bytes = Vec::with_capacity(object.name.len() + object.namespace.len() + 2);
    push_label(&mut bytes, &object.name).ok()?;
    push_label(&mut bytes, &object.namespace).ok()?;
    Some(bytes.into())
}

/// The name that a key was made from.
fn object_name(key: &[u8]) -> ObjectName {
    let mut labels = Labels::of(key).map(|label| String::from_utf8_lossy(label).into_owned());
    let name = labels.next().unwrap_or_default();
    ObjectName {
        namespace: labels.next().unwrap_or_default(),
        name,
    }
}

/// What DNS needs to know of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Service {
    pub(super) kind: ServiceKind,
    pub(super) ports: Vec<Port>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum ServiceKind {
    ClusterIp(Vec<Ipv4Addr>),
    Headless,
    External(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Port {
    /// In lower case; empty when it has none.
    pub(super) name: Box<str>,
    /// `tcp`, `udp` or `sctp`.
    pub(super) protocol: Box<str>,
    pub(super) number: u16,
}

/// The ready endpoints of one EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slice {
    pub(super) ports: Vec<Port>,
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Endpoint {
    pub(super) address: Ipv4Addr,
    /// Its label under the service: the pod's hostname, or its address with dashes.
    pub(super) label: Box<str>,
}

/// A service and its endpoints; either may be seen first.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) service: Option<Service>,
    pub(super) slices: BTreeMap<String, Slice>,
}

impl Entry {
    /// Addresses that lead back to this service: its own, and those of a headless one's endpoints.
    fn addresses(&self) -> Vec<Ipv4Addr> {
        let mut all = match self.service.as_ref().map(|service| &service.kind) {
            Some(ServiceKind::ClusterIp(own)) => own.clone(),
            Some(ServiceKind::Headless) => {
                let endpoints = self.slices.values().flat_map(|slice| &slice.endpoints);
                endpoints.map(|endpoint| endpoint.address).collect()
            }
            Some(ServiceKind::External(_)) | None => Vec::new(),
        };
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// A service's key: its two labels on the wire.
pub(super) type Key = Box<[u8]>;

/// The names of the cluster.
#[derive(Debug, Default)]
pub(super) struct Zone {
    pub(super) entries: HashMap<Key, Entry>,
    pub(super) by_address: HashMap<Ipv4Addr, Vec<Key>>,
    /// Seconds since 1970 of the last change.
    pub(super) serial: u32,
    /// Everything was seen once; before, a name that is missing may exist.
    pub(super) complete: bool,
}

impl Zone {
    /// Takes in a service as it is now.
    pub(super) fn put_service(&mut self, name: &ObjectName, service: Service) {
        self.change(name, |entry| entry.service = Some(service));
    }

    pub(super) fn remove_service(&mut self, name: &ObjectName) {
        self.change(name, |entry| entry.service = None);
    }

    /// Takes in the slice `slice` of a service as it is now.
    pub(super) fn put_slice(&mut self, service: &ObjectName, slice: &str, content: Slice) {
        self.change(service, |entry| {
            entry.slices.insert(slice.to_owned(), content);
        });
    }

    pub(super) fn remove_slice(&mut self, service: &ObjectName, slice: &str) {
        self.change(service, |entry| {
            entry.slices.remove(slice);
        });
    }

    /// Takes in all that is known of a service.
    pub(super) fn put(&mut self, name: &ObjectName, all: Entry) {
        self.change(name, |entry| *entry = all);
    }

    /// Every entry under its name.
    pub(super) fn named_entries(&self) -> impl Iterator<Item = (ObjectName, &Entry)> {
        self.entries
            .iter()
            .map(|(key, entry)| (object_name(key), entry))
    }

    fn change(&mut self, name: &ObjectName, change: impl FnOnce(&mut Entry)) {
        // What is no name can't be asked for either.
        let Some(key) = wire(name) else { return };
        let entry = self.entries.entry(key.clone()).or_default();
        let before = entry.addresses();
        change(entry);
        let after = entry.addresses();
        if entry.service.is_none() && entry.slices.is_empty() {
            self.entries.remove(&key);
        }
        for address in before.iter().filter(|a| !after.contains(a)) {
            self.forget_address(*address, &key);
        }
        for address in after.into_iter().filter(|a| !before.contains(a)) {
            self.by_address
                .entry(address)
                .or_default()
                .push(key.clone());
        }
        self.serial = u32::try_from(Timestamp::now().as_second()).unwrap_or_default();
    }

    fn forget_address(&mut self, address: Ipv4Addr, key: &[u8]) {
        if let MapEntry::Occupied(mut found) = self.by_address.entry(address) {
            found.get_mut().retain(|known| **known != *key);
            if found.get().is_empty() {
                found.remove();
            }
        }
    }
}

impl Service {
    /// `None` for a service that has no name in DNS (yet): one that waits for its address.
    pub(super) fn of(object: &ServiceObject) -> Option<Self> {
        let spec = object.spec.as_ref()?;
        let own = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let own: Vec<&str> = own.map(String::as_str).collect();
        let kind = if spec.type_.as_deref() == Some("ExternalName") {
            let name = spec.external_name.clone().unwrap_or_default();
            // An address is no name that an alias could lead to.
            if name.parse::<std::net::IpAddr>().is_ok() {
                return None;
            }
            ServiceKind::External(name)
        } else if own.contains(&"None") {
            ServiceKind::Headless
        } else {
            let mut addresses: Vec<_> = own.iter().filter_map(|ip| ip.parse().ok()).collect();
            addresses.sort_unstable();
            addresses.dedup();
            if addresses.is_empty() {
                return None;
            }
            ServiceKind::ClusterIp(addresses)
        };
        let ports = spec.ports.iter().flatten();
        let ports =
            ports.filter_map(|p| Port::of(p.name.as_deref(), p.protocol.as_deref(), p.port));
        Some(Self {
            kind,
            ports: ports.collect(),
        })
    }
}

impl Port {
    fn of(name: Option<&str>, protocol: Option<&str>, number: i32) -> Option<Self> {
        Some(Self {
            name: name.unwrap_or_default().to_ascii_lowercase().into(),
            protocol: protocol.unwrap_or("TCP").to_ascii_lowercase().into(),
            number: u16::try_from(number).ok()?,
        })
    }
}

impl Slice {
    /// A slice's service, and its endpoints that are ready: with `publishNotReadyAddresses`, all
    /// are said to be. `None` for one of another address family, or of no service.
    pub(super) fn of(object: &EndpointSlice) -> Option<(ObjectName, Self)> {
        if object.address_type != "IPv4" {
            return None;
        }
        let labels = object.metadata.labels.as_ref()?;
        let service = ObjectName {
            namespace: object.metadata.namespace.clone()?,
            name: labels.get(SERVICE_NAME)?.clone(),
        };
        let ready = object.endpoints.iter().flatten().filter(|endpoint| {
            let conditions = endpoint.conditions.as_ref();
            conditions.and_then(|c| c.ready).unwrap_or(true)
        });
        let endpoints = ready.flat_map(|endpoint| {
            let addresses = endpoint.addresses.iter().filter_map(|a| a.parse().ok());
            addresses.map(|address: Ipv4Addr| Endpoint {
                address,
                label: match endpoint.hostname.as_deref() {
                    Some(hostname) if !hostname.is_empty() => hostname.to_ascii_lowercase().into(),
                    _ => address.to_string().replace('.', "-").into(),
                },
            })
        });
        let ports = object.ports.iter().flatten();
        let ports =
            ports.filter_map(|p| Port::of(p.name.as_deref(), p.protocol.as_deref(), p.port?));
        let slice = Self {
            ports: ports.collect(),
            endpoints: endpoints.collect(),
        };
        Some((service, slice))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn name() -> ObjectName {
        ObjectName {
            namespace: "ns".into(),
            name: "db".into(),
        }
    }

    fn slice(addresses: &[&str]) -> Slice {
        let endpoints: Vec<_> = addresses
            .iter()
            .map(|a| json!({"addresses": [a]}))
            .collect();
        let object = json!({"metadata": {"namespace": "ns", "labels": {SERVICE_NAME: "db"}},
            "addressType": "IPv4", "endpoints": endpoints});
        Slice::of(&serde_json::from_value(object).unwrap())
            .unwrap()
            .1
    }

    fn known(zone: &Zone) -> Vec<String> {
        let mut all: Vec<_> = zone.by_address.keys().map(ToString::to_string).collect();
        all.sort();
        all
    }

    #[test]
    fn addresses_follow_what_changes() {
        let mut zone = Zone::default();
        zone.put_slice(&name(), "db-1", slice(&["10.0.0.1", "10.0.0.2"]));
        assert!(known(&zone).is_empty(), "no service yet");
        let headless = Service {
            kind: ServiceKind::Headless,
            ports: Vec::new(),
        };
        zone.put_service(&name(), headless);
        assert_eq!(known(&zone), ["10.0.0.1", "10.0.0.2"]);
        zone.put_slice(&name(), "db-1", slice(&["10.0.0.2"]));
        zone.put_slice(&name(), "db-2", slice(&["10.0.0.3", "10.0.0.2"]));
        assert_eq!(known(&zone), ["10.0.0.2", "10.0.0.3"]);
        zone.remove_slice(&name(), "db-1");
        assert_eq!(known(&zone), ["10.0.0.2", "10.0.0.3"]);
        zone.remove_service(&name());
        assert!(known(&zone).is_empty());
        zone.remove_slice(&name(), "db-2");
        assert!(zone.entries.is_empty());
    }

    #[test]
    fn only_ready_endpoints_count() {
        let object = json!({"metadata": {"namespace": "ns", "labels": {SERVICE_NAME: "db"}},
            "addressType": "IPv4", "endpoints": [
                {"addresses": ["10.0.0.1"], "conditions": {"ready": false}},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": true}, "hostname": "Db-0"},
                {"addresses": ["10.0.0.3"]}]});
        let (_, slice) = Slice::of(&serde_json::from_value(object).unwrap()).unwrap();
        let labels: Vec<_> = slice.endpoints.iter().map(|e| &*e.label).collect();
        assert_eq!(labels, ["db-0", "10-0-0-3"]);
    }

    #[test]
    fn services_without_a_name() {
        let service = |spec: serde_json::Value| {
            let object = serde_json::from_value(json!({"metadata": {}, "spec": spec}));
            Service::of(&object.unwrap()).map(|service| service.kind)
        };
        assert_eq!(service(json!({"type": "ClusterIP"})), None);
        assert_eq!(
            service(json!({"type": "ExternalName", "externalName": "1.2.3.4"})),
            None
        );
        assert_eq!(
            service(json!({"clusterIP": "None", "clusterIPs": ["None"]})),
            Some(ServiceKind::Headless)
        );
    }
}
