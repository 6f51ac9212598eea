//! Services and their endpoints, and the program that follows from them.
//!
//! Kubernetes' objects are reduced to what the data plane needs when they arrive. Which endpoints are
//! used, and for whom, follows kube-proxy: those that are ready, and of these the ones that are meant for this
//! node or its zone where all of them say whom they are meant for; where none is ready, those that end but
//! still serve; only this node's where a traffic policy says `Local`.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;

use super::program::{Chain, Entry, Frontend, Program, Protocol, Target};
use ipnet::Ipv4Net;

/// The affinity of a client that does not say how long.
const DEFAULT_AFFINITY: i32 = 10_800;

/// A service that the data plane has something to do for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    cluster_ips: Vec<Ipv4Addr>,
    external_ips: Vec<Ipv4Addr>,
    load_balancers: Vec<Ipv4Addr>,
    source_ranges: Vec<Ipv4Net>,
    ports: Vec<Port>,
    affinity: Option<Duration>,
    internal_local: bool,
    external_local: bool,
    pub(super) health_port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    name: String,
    protocol: Protocol,
    port: u16,
    node_port: Option<u16>,
}

impl Service {
    /// `None` for one without an address of its own: headless, or a name for something else.
    pub(super) fn read(service: &core::Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
        let cluster_ip = spec.cluster_ip.as_deref().unwrap_or_default();
        if kind == "ExternalName" || cluster_ip == "None" || cluster_ip.is_empty() {
            return None;
        }
        let is = |policy: &Option<String>| policy.as_deref() == Some("Local");
        let outside = matches!(kind, "NodePort" | "LoadBalancer");
        let ingress = service
            .status
            .as_ref()
            .and_then(|s| s.load_balancer.as_ref()?.ingress.as_ref());
        let ingress = ingress.filter(|_| kind == "LoadBalancer");
        let load_balancers = ingress
            .into_iter()
            .flatten()
            .filter(|i| i.ip_mode.as_deref() != Some("Proxy"))
            .filter_map(|i| i.ip.as_deref()?.parse().ok());
        let affinity = spec.session_affinity.as_deref() == Some("ClientIP");
        let seconds = spec
            .session_affinity_config
            .as_ref()
            .and_then(|c| c.client_ip.as_ref()?.timeout_seconds)
            .unwrap_or(DEFAULT_AFFINITY);
        let port = |port: &core::ServicePort| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                protocol: Protocol::named(port.protocol.as_deref())?,
                port: u16::try_from(port.port).ok()?,
                node_port: number(port.node_port).filter(|_| outside),
            })
        };
        Some(Self {
            cluster_ips: addresses(
                spec.cluster_ips
                    .as_deref()
                    .unwrap_or(&[cluster_ip.to_owned()]),
            ),
            external_ips: addresses(spec.external_ips.as_deref().unwrap_or_default()),
            load_balancers: load_balancers.collect(),
            source_ranges: spec
                .load_balancer_source_ranges
                .iter()
                .flatten()
                .filter_map(|range| range.trim().parse::<Ipv4Net>().ok())
                .map(|range| range.trunc())
                .collect(),
            ports: spec.ports.iter().flatten().filter_map(port).collect(),
            affinity: affinity.then(|| Duration::from_secs(u64::try_from(seconds).unwrap_or(1))),
            internal_local: is(&spec.internal_traffic_policy),
            external_local: is(&spec.external_traffic_policy),
            health_port: number(spec.health_check_node_port),
        })
    }

    /// What the table of a node in `zone` shall do for this service. `name` is `<namespace>/<name>`.
    pub(super) fn program<'a>(
        &self,
        name: &str,
        slices: impl Iterator<Item = &'a Slice> + Clone,
        own_pods: Ipv4Net,
        zone: &str,
    ) -> Program {
        let mut program = Program::default();
        for address in &self.cluster_ips {
            let entry = Entry::ClusterAddress(*address);
            program.entries.insert(entry, Target::Present);
        }
        for port in &self.ports {
            let endpoints = Endpoints::of(port, slices.clone(), zone);
            PortProgram {
                service: self,
                port,
                endpoints,
                name: port.path(name),
                program: &mut program,
            }
            .write(own_pods);
        }
        program
    }

    /// The same, with a socket of this node in the place of the endpoints.
    pub(super) fn local_program(&self, name: &str, to: SocketAddrV4, own_pods: Ipv4Net) -> Program {
        let ports = self.ports.iter().map(|port| SlicePort {
            name: port.name.clone(),
            protocol: port.protocol,
            port: to.port(),
        });
        let slice = Slice {
            ports: ports.collect(),
            endpoints: vec![Endpoint {
                address: *to.ip(),
                state: EndpointState::Ready,
                terminating: false,
                local: true,
                for_node: Hint::None,
                for_zones: Box::default(),
                pod: None,
            }],
        };
        self.program(name, std::iter::once(&slice), own_pods, "")
    }

    /// How many endpoints of this node are ready, for `healthCheckNodePort`.
    pub(super) fn local_endpoints<'a>(&self, slices: impl Iterator<Item = &'a Slice>) -> usize {
        let endpoints = slices.flat_map(|s| &s.endpoints);
        let ready = endpoints.filter(|e| e.local && e.state == EndpointState::Ready);
        ready.map(|e| e.address).collect::<BTreeSet<_>>().len()
    }
}

impl Port {
    fn path(&self, service: &str) -> String {
        let protocol = self.protocol.name();
        match self.name.as_str() {
            "" => format!("{service}/{protocol}/{}", self.port),
            name => format!("{service}/{protocol}/{name}"),
        }
    }
}

fn number(port: Option<i32>) -> Option<u16> {
    u16::try_from(port?).ok().filter(|port| *port > 0)
}

fn addresses(texts: &[String]) -> Vec<Ipv4Addr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// One EndpointSlice.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Slice {
    ports: Vec<SlicePort>,
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct SlicePort {
    name: String,
    protocol: Protocol,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    address: Ipv4Addr,
    pub(super) state: EndpointState,
    /// On its way out, whatever its state: `publishNotReadyAddresses` calls it ready still.
    pub(super) terminating: bool,
    /// On this node.
    pub(super) local: bool,
    /// Whether it is meant for this node.
    for_node: Hint,
    /// The zones that it is meant for; none is no hint.
    for_zones: Box<[Box<str>]>,
    /// The uid of the pod that it is.
    pub(super) pod: Option<Arc<str>>,
}

/// What an EndpointSlice says of whom an endpoint is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hint {
    None,
    Us,
    Others,
}

impl Hint {
    fn of<'a>(mut meant_for: impl Iterator<Item = &'a str> + Clone, us: &str) -> Self {
        match meant_for.clone().next() {
            None => Self::None,
            Some(_) if meant_for.any(|name| name == us) => Self::Us,
            Some(_) => Self::Others,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndpointState {
    Ready,
    /// Ending, but still serving: used when nobody is ready.
    Terminating,
    NotReady,
}

impl Slice {
    /// `None` for one that has no IPv4 addresses.
    pub(super) fn read(slice: &discovery::EndpointSlice, node: &str) -> Option<Self> {
        if slice.address_type != "IPv4" {
            return None;
        }
        let port = |port: &discovery::EndpointPort| {
            Some(SlicePort {
                name: port.name.clone().unwrap_or_default(),
                protocol: Protocol::named(port.protocol.as_deref())?,
                port: number(port.port)?,
            })
        };
        Some(Self {
            ports: slice.ports.iter().flatten().filter_map(port).collect(),
            endpoints: slice
                .endpoints
                .iter()
                .flatten()
                .filter_map(|endpoint| Endpoint::read(endpoint, node))
                .collect(),
        })
    }
}

impl Endpoint {
    fn read(endpoint: &discovery::Endpoint, node: &str) -> Option<Self> {
        // More than one address is not defined; kube-proxy takes the first too.
        let address = endpoint.addresses.first()?.parse().ok()?;
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let state = match ready {
            true => EndpointState::Ready,
            false
                if conditions.serving.unwrap_or(ready)
                    && conditions.terminating.unwrap_or(false) =>
            {
                EndpointState::Terminating
            }
            false => EndpointState::NotReady,
        };
        let hints = endpoint.hints.as_ref();
        let nodes = hints.and_then(|h| h.for_nodes.as_ref()).into_iter();
        let nodes = nodes.flatten().map(|node| node.name.as_str());
        let zones = hints.and_then(|h| h.for_zones.as_ref()).into_iter();
        let target = endpoint.target_ref.as_ref();
        let pod = target.filter(|t| t.kind.as_deref() == Some("Pod"));
        Some(Self {
            address,
            state,
            terminating: conditions.terminating.unwrap_or(false),
            local: endpoint.node_name.as_deref() == Some(node),
            for_node: Hint::of(nodes, node),
            for_zones: zones.flatten().map(|z| z.name.as_str().into()).collect(),
            pod: pod.and_then(|t| t.uid.as_deref()).map(Arc::from),
        })
    }
}

/// The endpoints of one port.
struct Endpoints {
    /// Those that everything is spread over which is not bound to this node.
    all: Vec<SocketAddrV4>,
    /// This node's.
    local: Vec<SocketAddrV4>,
}

impl Endpoints {
    fn of<'a>(port: &Port, slices: impl Iterator<Item = &'a Slice>, zone: &str) -> Self {
        let mut candidates = Vec::new();
        for slice in slices {
            let numbers = slice
                .ports
                .iter()
                .filter(|p| p.name == port.name && p.protocol == port.protocol);
            for number in numbers {
                let usable = slice.endpoints.iter();
                let usable = usable.filter(|e| e.state != EndpointState::NotReady);
                candidates.extend(usable.map(|endpoint| Candidate {
                    address: SocketAddrV4::new(endpoint.address, number.port),
                    endpoint,
                }));
            }
        }
        let (ready, ending): (Vec<_>, Vec<_>) = candidates
            .into_iter()
            .partition(|c| c.endpoint.state == EndpointState::Ready);
        let near = Nearness::of(&ready, zone);
        let prefer = |first: Vec<SocketAddrV4>, second: Vec<SocketAddrV4>| match first.as_slice() {
            [] => second,
            _ => first,
        };
        let local = |c: &Candidate<'_>| c.endpoint.local;
        Self {
            all: prefer(
                addresses_of(&ready, |c| near.admits(c.endpoint, zone)),
                addresses_of(&ending, |_| true),
            ),
            local: prefer(addresses_of(&ready, local), addresses_of(&ending, local)),
        }
    }

    /// Every endpoint that packets may come to.
    fn reachable(&self) -> Vec<SocketAddrV4> {
        let all: BTreeSet<_> = self.all.iter().chain(&self.local).copied().collect();
        all.into_iter().collect()
    }
}

struct Candidate<'a> {
    address: SocketAddrV4,
    endpoint: &'a Endpoint,
}

/// Each address once, and the same ones always in the same order.
fn addresses_of(
    candidates: &[Candidate<'_>],
    wanted: impl Fn(&Candidate<'_>) -> bool,
) -> Vec<SocketAddrV4> {
    let wanted = candidates.iter().filter(|c| wanted(c));
    let found: BTreeSet<_> = wanted.map(|c| c.address).collect();
    found.into_iter().collect()
}

/// Which of the ready endpoints are near enough. As in kube-proxy, hints count only when every ready endpoint has
/// them and at least one is for us: otherwise some clients would have no endpoint at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nearness {
    Node,
    Zone,
    Anywhere,
}

impl Nearness {
    fn of(ready: &[Candidate<'_>], zone: &str) -> Self {
        let each = |near: Self| {
            let hints = ready.iter().map(move |c| near.hint(c.endpoint, zone));
            let all = hints.clone().all(|hint| hint != Hint::None);
            all && hints.into_iter().any(|hint| hint == Hint::Us)
        };
        [Self::Node, Self::Zone]
            .into_iter()
            .find(|near| each(*near))
            .unwrap_or(Self::Anywhere)
    }

    fn admits(self, endpoint: &Endpoint, zone: &str) -> bool {
        self == Self::Anywhere || self.hint(endpoint, zone) == Hint::Us
    }

    fn hint(self, endpoint: &Endpoint, zone: &str) -> Hint {
        match self {
            Self::Node => endpoint.for_node,
            Self::Zone => Hint::of(endpoint.for_zones.iter().map(|z| &**z), zone),
            Self::Anywhere => Hint::None,
        }
    }
}

/// Writes the program of one port.
struct PortProgram<'a> {
    service: &'a Service,
    port: &'a Port,
    endpoints: Endpoints,
    /// `<namespace>/<service>/<protocol>/<port>`
    name: String,
    program: &'a mut Program,
}

impl PortProgram<'_> {
    fn write(&mut self, own_pods: Ipv4Net) {
        for endpoint in self.endpoints.reachable() {
            if own_pods.contains(endpoint.ip()) {
                let entry = Entry::Hairpin(*endpoint.ip());
                self.program.entries.insert(entry, Target::Present);
            }
        }
        self.write_inside();
        self.write_outside();
    }

    /// What pods and nodes reach it by.
    fn write_inside(&mut self) {
        let target = match self.service.internal_local {
            true => self.spread("local", self.endpoints.local.clone()),
            false => self.spread("service", self.endpoints.all.clone()),
        };
        for address in &self.service.cluster_ips {
            let frontend = self.frontend(Some(*address), self.port.port);
            match &target {
                Some(chain) => self.serve(frontend, chain.clone()),
                None => self.refuse(frontend),
            }
        }
    }

    /// What others reach it by.
    fn write_outside(&mut self) {
        let service = self.service;
        let external = service.external_ips.iter();
        let mut open: Vec<_> = external
            .map(|address| self.frontend(Some(*address), self.port.port))
            .collect();
        open.extend(self.port.node_port.map(|port| self.frontend(None, port)));
        let balanced: Vec<_> = service
            .load_balancers
            .iter()
            .map(|address| self.frontend(Some(*address), self.port.port))
            .collect();
        if open.is_empty() && balanced.is_empty() {
            return;
        }
        let Some(chain) = self.outside_chain() else {
            for frontend in open.into_iter().chain(balanced) {
                self.refuse(frontend);
            }
            return;
        };
        let gate = match service.source_ranges.as_slice() {
            [] => chain.clone(),
            ranges => {
                let gate = Chain::Gate {
                    sources: ranges.to_vec(),
                    to: chain.clone(),
                };
                self.chain("gate", gate)
            }
        };
        let open = open.into_iter().map(|frontend| (frontend, chain.clone()));
        let balanced = balanced
            .into_iter()
            .map(|frontend| (frontend, gate.clone()));
        for (frontend, chain) in open.chain(balanced) {
            self.serve(frontend, chain);
            if service.external_local {
                self.entry(Entry::KeepSource(frontend), Target::Present);
                if self.endpoints.local.is_empty() {
                    self.entry(Entry::Unserved(frontend), Target::Drop);
                }
            }
        }
    }

    fn outside_chain(&mut self) -> Option<Arc<str>> {
        let all = self.spread("service", self.endpoints.all.clone())?;
        if !self.service.external_local {
            return Some(all);
        }
        let local = self.spread("local", self.endpoints.local.clone());
        Some(self.chain("outside", Chain::Outside { all, local }))
    }

    /// `None` without endpoints.
    fn spread(&mut self, kind: &str, endpoints: Vec<SocketAddrV4>) -> Option<Arc<str>> {
        if endpoints.is_empty() {
            return None;
        }
        let affinity = self.service.affinity;
        let spread = Chain::Spread {
            endpoints,
            affinity,
        };
        Some(self.chain(kind, spread))
    }

    fn chain(&mut self, kind: &str, chain: Chain) -> Arc<str> {
        let name: Arc<str> = format!("{kind}-{}", self.name).into();
        self.program.chains.insert(name.clone(), chain);
        name
    }

    fn serve(&mut self, frontend: Frontend, chain: Arc<str>) {
        self.entry(Entry::Served(frontend), Target::Chain(chain));
        self.note_udp(frontend, self.endpoints.reachable());
    }

    /// Nobody at all is a refusal, nobody on this node alone is silence: somebody else may answer.
    fn refuse(&mut self, frontend: Frontend) {
        let target = match self.endpoints.all.as_slice() {
            [] => Target::Reject,
            _ => Target::Drop,
        };
        self.entry(Entry::Unserved(frontend), target);
        self.note_udp(frontend, Vec::new());
    }

    fn note_udp(&mut self, frontend: Frontend, endpoints: Vec<SocketAddrV4>) {
        if self.port.protocol == Protocol::Udp {
            self.program.udp.insert(frontend, endpoints);
        }
    }

    fn entry(&mut self, entry: Entry, target: Target) {
        self.program.entries.insert(entry, target);
    }

    fn frontend(&self, address: Option<Ipv4Addr>, port: u16) -> Frontend {
        Frontend {
            address,
            protocol: self.port.protocol,
            port,
        }
    }
}

#[cfg(test)]
#[path = "model_tests.rs"]
mod tests;
