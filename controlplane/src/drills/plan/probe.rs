//! What is probed while a drill runs, and from where.
//!
//! The target's Service is the first one by namespace and name (the system's own come last) that selects one of its pods and
//! has a cluster address and a TCP port; `spec.probe` may name another Service, another port, or an address instead. A port
//! speaks HTTP if the container behind it has an HTTP readiness probe on it (whose path is asked), if it is named
//! `http` or says so by its `appProtocol`, or if it is 80 or 8080; else a TCP connection is a good answer.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use skiff_dev::{DrillSpec, GoDuration, PlannedProbe, ProbeScheme, ProbeSpec, ProbeTarget, Victim};

use super::target::{Found, is_ready_node};
use super::{Refusal, World};

const RATE: i32 = 10;
const TIMEOUT: GoDuration = GoDuration::from_secs(1);

/// The probe of a drill; `None` if its target has no Service and no address is given.
pub(super) fn plan(
    spec: &DrillSpec,
    found: &Found,
    victims: &[Victim],
    world: &World,
) -> Result<Option<PlannedProbe>, Refusal> {
    let none = ProbeSpec::default();
    let wanted = spec.probe.as_ref().unwrap_or(&none);
    if wanted.off {
        return Ok(None);
    }
    let asked = match &wanted.host {
        Some(host) => Some(address(host, wanted)),
        None => service(wanted, found, world)?,
    };
    let Some(Asked {
        service,
        selector,
        mut target,
    }) = asked
    else {
        return Ok(None);
    };
    if let Some(scheme) = wanted.scheme {
        target.scheme = scheme;
    }
    if let Some(path) = &wanted.path {
        target.path.clone_from(path);
    }
    Ok(Some(PlannedProbe {
        service,
        selector,
        node: prober(victims, world)?,
        target,
        rate: wanted.rate.unwrap_or(RATE),
        timeout: wanted.timeout.unwrap_or(TIMEOUT),
    }))
}

/// What is asked.
struct Asked {
    /// The Service's full name, and what it selects, if it is one.
    service: String,
    selector: BTreeMap<String, String>,
    target: ProbeTarget,
}

fn address(host: &str, wanted: &ProbeSpec) -> Asked {
    let port = wanted.port.and_then(|port| u16::try_from(port).ok());
    let port = port.unwrap_or(80);
    let target = ProbeTarget {
        scheme: scheme_of(port),
        host: host.to_owned(),
        port,
        path: "/".into(),
    };
    Asked {
        service: String::new(),
        selector: BTreeMap::new(),
        target,
    }
}

fn service(wanted: &ProbeSpec, found: &Found, world: &World) -> Result<Option<Asked>, Refusal> {
    let mut services = world.services.iter().map(|service| &**service);
    if let Some(name) = &wanted.service {
        let full_name = match name.contains('/') {
            true => name.clone(),
            false => format!("{}/{name}", found.namespace),
        };
        let named = services.find(|service| name_of(service) == full_name);
        let service = named.ok_or_else(|| Refusal::NoService(full_name.clone()))?;
        let target = ask(service, wanted, found);
        let asked = target.map(|target| asked(service, target));
        return asked.map(Some).map_err(|why| Refusal::Unprobeable {
            service: full_name,
            why,
        });
    }
    // The pods of a node may be of any namespace.
    let leads_here = |service: &&Service| found.pods.iter().any(|pod| selects(service, pod));
    let mut probed: Vec<&Service> = services.filter(leads_here).collect();
    probed.sort_by_key(|service| {
        let is_system = service.metadata.namespace.as_deref() == Some("kube-system");
        (is_system, name_of(service))
    });
    let mut probed = probed.into_iter();
    Ok(probed.find_map(|service| {
        let target = ask(service, wanted, found).ok()?;
        Some(asked(service, target))
    }))
}

fn asked(service: &Service, target: ProbeTarget) -> Asked {
    let spec = service.spec.as_ref();
    Asked {
        service: name_of(service),
        selector: spec
            .and_then(|spec| spec.selector.clone())
            .unwrap_or_default(),
        target,
    }
}

/// As `default/web`.
fn name_of(service: &Service) -> String {
    let meta = &service.metadata;
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    format!("{namespace}/{}", meta.name.as_deref().unwrap_or_default())
}

/// How a Service is asked.
fn ask(service: &Service, wanted: &ProbeSpec, found: &Found) -> Result<ProbeTarget, &'static str> {
    let spec = service.spec.as_ref().ok_or("it has no spec")?;
    let host = spec.cluster_ip.as_deref().unwrap_or_default();
    if host.is_empty() || host == "None" {
        return Err("it has no cluster address");
    }
    let mut ports = spec.ports.iter().flatten();
    let port = ports.find(|port| match wanted.port {
        Some(number) => port.port == number && is_tcp(port),
        None => is_tcp(port),
    });
    let port = port.ok_or("it has no such TCP port")?;
    let pod = found.pods.iter().find(|pod| selects(service, pod));
    let readiness = pod.and_then(|pod| http_readiness(pod, port));
    let is_http = readiness.is_some() || says_http(port);
    Ok(ProbeTarget {
        scheme: if is_http {
            ProbeScheme::Http
        } else {
            ProbeScheme::Tcp
        },
        host: host.to_owned(),
        port: u16::try_from(port.port).map_err(|_| "its port is out of range")?,
        path: readiness
            .and_then(|get| get.path.clone())
            .filter(|path| path.starts_with('/'))
            .unwrap_or_else(|| "/".into()),
    })
}

fn is_tcp(port: &ServicePort) -> bool {
    matches!(port.protocol.as_deref(), None | Some("TCP"))
}

fn says_http(port: &ServicePort) -> bool {
    let number = u16::try_from(port.port).unwrap_or_default();
    port.name.as_deref() == Some("http")
        || port.app_protocol.as_deref() == Some("http")
        || scheme_of(number) == ProbeScheme::Http
}

fn scheme_of(port: u16) -> ProbeScheme {
    match port {
        80 | 8080 => ProbeScheme::Http,
        _ => ProbeScheme::Tcp,
    }
}

/// The HTTP readiness probe of the container that a Service's port leads to.
fn http_readiness<'a>(pod: &'a Pod, port: &ServicePort) -> Option<&'a HTTPGetAction> {
    let containers = &pod.spec.as_ref()?.containers;
    let target = match &port.target_port {
        Some(target) => target.clone(),
        None => IntOrString::Int(port.port),
    };
    let number = containers.iter().find_map(|c| resolve(&target, c))?;
    containers.iter().find_map(|container| {
        let probe = container.readiness_probe.as_ref()?;
        let get = probe.http_get.as_ref()?;
        let is_plain = get.scheme.as_deref().is_none_or(|scheme| scheme == "HTTP");
        (is_plain && resolve(&get.port, container) == Some(number)).then_some(get)
    })
}

/// The number of a port of a container; a number needs not be declared.
fn resolve(port: &IntOrString, container: &Container) -> Option<i32> {
    match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let mut ports = container.ports.iter().flatten();
            let port = ports.find(|port| port.name.as_ref() == Some(name))?;
            Some(port.container_port)
        }
    }
}

fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref());
    let none = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    let is_near = service.metadata.namespace == pod.metadata.namespace;
    selector.is_some_and(|selector| {
        is_near
            && !selector.is_empty()
            && selector
                .iter()
                .all(|(key, value)| labels.get(key) == Some(value))
    })
}

/// A Ready node that the drill leaves alone; else one that hosts a victim but is not hit as a whole; else any.
fn prober(victims: &[Victim], world: &World) -> Result<String, Refusal> {
    let ready = world.nodes.iter().filter(|node| is_ready_node(node));
    let mut ready: Vec<&str> = ready
        .filter_map(|node| node.metadata.name.as_deref())
        .collect();
    ready.sort_unstable();
    let hosts_victim = |name: &str| victims.iter().any(|victim| victim.node == name);
    let is_victim = |name: &str| {
        let mut victims = victims.iter();
        victims.any(|victim| victim.pod.is_none() && victim.node == name)
    };
    let alone = ready.iter().find(|name| !hosts_victim(name));
    let unhit = alone.or_else(|| ready.iter().find(|name| !is_victim(name)));
    let chosen = unhit.or_else(|| ready.first());
    chosen
        .map(|name| (*name).to_owned())
        .ok_or(Refusal::NoProber)
}
