//! The loop: what the API says of services, into this node's table.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddrV4;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::ResourceExt;
use tokio::sync::{Notify, watch};

use super::conntrack;
use super::health::HealthServers;
use super::lost::Lost;
use super::model::{EndpointState, Service, Slice};
use super::program::{Owner, Program, ServiceName};
use super::selectors::Selectors;
use super::tables::{Outcome, Tables};
use super::withdrawal::{Served, Withdrawal};
use crate::net::service_watch::{Change, ObjectName, Observer};
use ipnet::Ipv4Net;

/// Another proxy takes care of what carries this label.
pub(super) const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";
/// The service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Before what the kernel refused is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Slices of services without an address of their own.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// The part that others of this node use: the table, and what is known of it.
pub(in crate::net) struct Services {
    /// `None` on a host without nftables.
    tables: Mutex<Option<Tables>>,
    local: Mutex<HashMap<ServiceName, SocketAddrV4>>,
    local_changed: Notify,
    /// `topology.kubernetes.io/zone` of this node; empty while there is none.
    zone: watch::Sender<Arc<str>>,
    selectors: Mutex<Selectors>,
    pub(in crate::net) withdrawal: Withdrawal,
    pub(in crate::net) lost: Lost,
}

impl Services {
    pub(in crate::net) fn new(tables: Option<Tables>) -> Self {
        Self {
            tables: Mutex::new(tables),
            local: Mutex::default(),
            local_changed: Notify::new(),
            zone: watch::Sender::new("".into()),
            selectors: Mutex::default(),
            withdrawal: Withdrawal::default(),
            lost: Lost::default(),
        }
    }

    /// Resolves when no service leads to a pod any more that is deleted, with the revision of the slices since when;
    /// `None` for one that no service ever led to.
    pub(in crate::net) async fn withdrawn(&self, pod: &core::Pod) -> Option<u64> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let namespace = pod.namespace().unwrap_or_default();
        let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_deref());
        let mut conditions = conditions.unwrap_or_default().iter();
        let is_ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
        let is_led_to = is_ready && lock(&self.selectors).select(&namespace, pod.labels());
        let deleted = pod
            .resource_version()
            .and_then(|version| version.parse().ok());
        self.withdrawal
            .withdrawn(uid, deleted.filter(|_| is_led_to))
            .await
    }

    /// Leads a service to a socket of this node instead of its endpoints.
    pub(in crate::net) fn lead_to_socket(&self, service: ServiceName, socket: SocketAddrV4) {
        lock(&self.local).insert(service, socket);
        self.local_changed.notify_one();
    }

    /// Says which zone this node is in.
    pub(in crate::net) fn set_zone(&self, zone: &str) {
        self.zone.send_if_modified(|now| {
            let changed = **now != *zone;
            if changed {
                *now = zone.into();
            }
            changed
        });
    }

    /// Takes programs in. Blocking.
    ///
    /// # Errors
    /// When the kernel refuses the change.
    pub(in crate::net) fn apply(
        &self,
        updates: impl IntoIterator<Item = (Owner, Option<Program>)>,
    ) -> io::Result<()> {
        let mut tables = lock(&self.tables);
        let Some(tables) = &mut *tables else {
            return Ok(());
        };
        let outcome = tables.apply(updates)?;
        self.forget(tables, outcome);
        Ok(())
    }

    /// The same, with the knowledge of every service: a predecessor's table ends.
    pub(in crate::net) fn apply_all(
        &self,
        updates: Vec<(Owner, Option<Program>)>,
    ) -> io::Result<()> {
        let mut tables = lock(&self.tables);
        let Some(tables) = &mut *tables else {
            return Ok(());
        };
        let outcome = tables.apply(updates)?;
        tables.take_over()?;
        self.forget(tables, outcome);
        Ok(())
    }

    /// Has the kernel forget connections that lead where nobody is.
    fn forget(&self, tables: &Tables, outcome: Outcome) {
        self.lost.add(outcome.lost);
        if !outcome.udp_changed {
            return;
        }
        match conntrack::delete_stale(&tables.udp()) {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "deleted stale UDP connections"),
            Err(error) => tracing::warn!(%error, "stale UDP connections can't be deleted"),
        }
    }

    /// The same with connections that were never answered, to endpoints that were lost a while ago. Blocking.
    pub(in crate::net) fn forget_unanswered(&self, mut endpoints: HashSet<SocketAddrV4>) {
        if let Some(tables) = &*lock(&self.tables) {
            tables.retain_lost(&mut endpoints);
        }
        if endpoints.is_empty() {
            return;
        }
        match conntrack::delete_unanswered(&endpoints) {
            Ok(0) => {}
            Ok(count) => tracing::debug!(count, "deleted connections that nobody answered"),
            Err(error) => {
                tracing::warn!(%error, "connections that nobody answered can't be deleted")
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is whole between any two statements: a table that was left half-way is written anew.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Keeps the node's table true.
pub(crate) struct ServiceProxy {
    services: Arc<Services>,
    known: Arc<Mutex<Known>>,
    changed: Arc<Notify>,
    own_pods: Ipv4Net,
}

impl ServiceProxy {
    pub(in crate::net) fn new(
        services: Arc<Services>,
        node_name: String,
        own_pods: Ipv4Net,
    ) -> Self {
        Self {
            services,
            known: Arc::new(Mutex::new(Known::new(node_name))),
            changed: Arc::new(Notify::new()),
            own_pods,
        }
    }

    /// Takes in what the watch of services tells.
    pub(crate) fn observer(&self) -> Observer {
        let (known, changed) = (self.known.clone(), self.changed.clone());
        let services = self.services.clone();
        Box::new(move |change| {
            lock(&services.selectors).note(change);
            lock(&known).take(change);
            changed.notify_one();
        })
    }

    /// Runs until it is dropped; the table stays in force then.
    pub(crate) async fn run(self) {
        tokio::join!(self.follow(), self.clean_up());
    }

    /// Has connections forgotten that nobody will answer.
    async fn clean_up(&self) {
        loop {
            let endpoints = self.services.lost.due().await;
            let services = self.services.clone();
            let done = tokio::task::spawn_blocking(move || services.forget_unanswered(endpoints));
            if let Err(panic) = done.await {
                std::panic::resume_unwind(panic.into_panic());
            }
        }
    }

    /// Writes what changes.
    async fn follow(&self) {
        let mut health = HealthServers::default();
        let mut retry = false;
        let mut zone = self.services.zone.subscribe();
        zone.mark_changed();
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                // The sender lives as long as `self`.
                Ok(()) = zone.changed() => {
                    lock(&self.known).set_zone(zone.borrow_and_update().clone());
                }
                () = self.services.local_changed.notified() => {
                    lock(&self.known).touch(lock(&self.services.local).keys());
                }
                () = tokio::time::sleep(RETRY), if retry => {}
            }
            // What came while the last change was written is written together.
            let Some(pending) = self.pending(&mut health) else {
                continue;
            };
            if pending.updates.is_empty() && !pending.first && !retry {
                self.services
                    .withdrawal
                    .publish(pending.served, pending.revision);
                continue;
            }
            let shared = self.services.clone();
            let updates = pending.updates;
            let applied = tokio::task::spawn_blocking(move || shared.apply_all(updates)).await;
            match applied {
                Ok(Ok(())) => {
                    retry = false;
                    self.services
                        .withdrawal
                        .publish(pending.served, pending.revision);
                }
                Ok(Err(error)) => {
                    if !retry {
                        tracing::error!(%error, "nftables refuses the services of this node, trying again");
                    }
                    retry = true;
                }
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
    }

    /// `None` before everything was told once.
    fn pending(&self, health: &mut HealthServers) -> Option<Pending> {
        let local = lock(&self.services.local).clone();
        let mut known = lock(&self.known);
        if !known.complete {
            return None;
        }
        for service in &known.dirty {
            known.report_health(service, health);
        }
        Some(Pending {
            first: !std::mem::replace(&mut known.written, true),
            updates: known.updates(&local, self.own_pods),
            served: known.served.pods(),
            revision: known.revision,
        })
    }
}

/// What is to be written.
struct Pending {
    /// Nothing was written before: a predecessor's table ends, whatever there is to write.
    first: bool,
    updates: Vec<(Owner, Option<Program>)>,
    /// The pods of this node that services lead to once it is written.
    served: HashSet<Arc<str>>,
    /// What the slices were at that revision is then in the table.
    revision: u64,
}

/// What the API said.
pub(in crate::net) struct Known {
    node_name: String,
    zone: Arc<str>,
    services: HashMap<ServiceName, Service>,
    slices: HashMap<ServiceName, HashMap<String, Slice>>,
    owners: HashMap<ObjectName, ServiceName>,
    served: Served,
    /// The newest of the slices.
    revision: u64,
    /// Services whose program may be another now.
    dirty: HashSet<ServiceName>,
    complete: bool,
    written: bool,
}

impl Known {
    pub(in crate::net) fn new(node_name: String) -> Self {
        Self {
            node_name,
            zone: "".into(),
            services: HashMap::new(),
            slices: HashMap::new(),
            owners: HashMap::new(),
            served: Served::default(),
            revision: 0,
            dirty: HashSet::new(),
            complete: false,
            written: false,
        }
    }

    /// Services whose endpoints prefer a zone may have others now.
    fn set_zone(&mut self, zone: Arc<str>) {
        if self.zone != zone {
            self.zone = zone;
            self.dirty.extend(self.services.keys().cloned());
        }
    }

    pub(in crate::net) fn take(&mut self, change: &Change) {
        match change {
            Change::Service(service) => self.put_service(service),
            Change::ServiceGone(name) => self.remove_service(name),
            Change::Slice(slice) => self.put_slice(slice),
            Change::SliceGone(name) => self.remove_slice(name),
            Change::Complete => self.complete = true,
        }
    }

    fn put_service(&mut self, object: &core::Service) {
        let name = service_name(&ObjectName::of(object));
        let service = match object.labels().contains_key(OTHER_PROXY) {
            true => None,
            false => Service::read(object),
        };
        if self.services.get(&name) == service.as_ref() {
            return;
        }
        match service {
            Some(service) => self.services.insert(name.clone(), service),
            None => self.services.remove(&name),
        };
        self.dirty.insert(name);
    }

    fn remove_service(&mut self, name: &ObjectName) {
        let name = service_name(name);
        if self.services.remove(&name).is_some() {
            self.dirty.insert(name);
        }
    }

    fn put_slice(&mut self, object: &discovery::EndpointSlice) {
        let revision = object.resource_version();
        let revision = revision.and_then(|version| version.parse().ok());
        self.revision = self.revision.max(revision.unwrap_or_default());
        let name = ObjectName::of(object);
        let labels = object.labels();
        let owner = labels.get(SERVICE_NAME);
        let owner = owner.filter(|_| !labels.contains_key(HEADLESS));
        let owner = owner.map(|service| ServiceName::new(&name.namespace, service));
        let slice = Slice::read(object, &self.node_name);
        let (Some(owner), Some(slice)) = (owner, slice) else {
            return self.remove_slice(&name);
        };
        if self
            .owners
            .get(&name)
            .is_some_and(|before| *before != owner)
        {
            self.remove_slice(&name);
        }
        let slices = self.slices.entry(owner.clone()).or_default();
        if slices.get(&name.name) == Some(&slice) {
            return;
        }
        self.served.add(served_here(&slice));
        if let Some(before) = slices.insert(name.name.clone(), slice) {
            self.served.remove(served_here(&before));
        }
        self.owners.insert(name, owner.clone());
        self.dirty.insert(owner);
    }

    fn remove_slice(&mut self, name: &ObjectName) {
        let Some(owner) = self.owners.remove(name) else {
            return;
        };
        if let Some(slices) = self.slices.get_mut(&owner) {
            if let Some(slice) = slices.remove(&name.name) {
                self.served.remove(served_here(&slice));
            }
            if slices.is_empty() {
                self.slices.remove(&owner);
            }
        }
        self.dirty.insert(owner);
    }

    fn touch<'a>(&mut self, services: impl Iterator<Item = &'a ServiceName>) {
        self.dirty.extend(services.cloned());
    }

    /// The programs of what changed since the last time.
    pub(in crate::net) fn updates(
        &mut self,
        local: &HashMap<ServiceName, SocketAddrV4>,
        own_pods: Ipv4Net,
    ) -> Vec<(Owner, Option<Program>)> {
        let program = |name: &ServiceName| {
            let service = self.services.get(name)?;
            let text = name.to_string();
            Some(match local.get(name) {
                Some(socket) => service.local_program(&text, *socket, own_pods),
                None => service.program(&text, self.slices_of(name), own_pods, &self.zone),
            })
        };
        let dirty = self.dirty.iter();
        let updates = dirty
            .map(|name| (Owner::Service(name.clone()), program(name)))
            .collect();
        self.dirty.clear();
        updates
    }

    fn slices_of(&self, service: &ServiceName) -> impl Iterator<Item = &Slice> + Clone {
        self.slices
            .get(service)
            .into_iter()
            .flat_map(|slices| slices.values())
    }

    fn report_health(&self, name: &ServiceName, health: &mut HealthServers) {
        let service = self.services.get(name);
        let port = service.and_then(|s| s.health_port);
        let endpoints = service.map_or(0, |s| s.local_endpoints(self.slices_of(name)));
        health.set(name, port, endpoints);
    }
}

fn service_name(name: &ObjectName) -> ServiceName {
    ServiceName::new(&name.namespace, &name.name)
}

/// The pods of this node that a slice leads to and that are not on their way out.
fn served_here(slice: &Slice) -> impl Iterator<Item = &Arc<str>> {
    slice
        .endpoints
        .iter()
        .filter(|e| e.local && e.state == EndpointState::Ready && !e.terminating)
        .filter_map(|e| e.pod.as_ref())
}
