//! Ports of the host that lead to a pod: `hostPort`.

use std::net::{Ipv4Addr, SocketAddrV4};

use k8s_openapi::api::core::v1::Pod;

use super::services::{Entry, Frontend, Program, Protocol, Target};

/// One port of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPort {
    /// `None` for every address of the host.
    host_ip: Option<Ipv4Addr>,
    protocol: Protocol,
    host_port: u16,
    container_port: u16,
}

/// The ports of the host that a pod asks for. One on the host's network serves them itself.
pub fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = pod.spec.as_ref().filter(|s| s.host_network != Some(true)) else {
        return Vec::new();
    };
    let init = spec.init_containers.iter().flatten();
    // A sidecar is an init container that keeps running.
    let sidecars = init.filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let host_port = port.host_port.filter(|port| *port > 0)?;
            let host_ip = match port.host_ip.as_deref().unwrap_or_default() {
                "" | "0.0.0.0" => None,
                // One that is no IPv4 address leads nowhere.
                text => Some(text.parse().ok()?),
            };
            Some(HostPort {
                host_ip,
                protocol: Protocol::named(port.protocol.as_deref())?,
                host_port: u16::try_from(host_port).ok()?,
                container_port: u16::try_from(port.container_port).ok()?,
            })
        })
        .collect()
}

/// What the node's table has to do for a pod's ports.
pub(super) fn program(pod: Ipv4Addr, ports: &[HostPort]) -> Program {
    let mut program = Program::default();
    for port in ports {
        let frontend = Frontend {
            address: port.host_ip,
            protocol: port.protocol,
            port: port.host_port,
        };
        let endpoint = SocketAddrV4::new(pod, port.container_port);
        let entries = &mut program.entries;
        entries.insert(Entry::HostPort(frontend), Target::Endpoint(endpoint));
        entries.insert(Entry::KeepSource(frontend), Target::Present);
        entries.insert(Entry::Hairpin(pod), Target::Present);
        if port.protocol == Protocol::Udp {
            program.udp.insert(frontend, vec![endpoint]);
        }
    }
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ports_of_the_host_are_those_that_are_asked_for() {
        let mut pod = json!({"spec": {"containers": [{"name": "c", "ports": [
            {"containerPort": 80},
            {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "192.0.2.1"},
            {"containerPort": 81, "hostPort": 8081, "hostIP": "0.0.0.0"},
            {"containerPort": 82, "hostPort": 8082, "hostIP": "::1"},
        ]}]}});
        let read = |pod: &serde_json::Value| {
            let ports = host_ports(&serde_json::from_value(pod.clone()).unwrap());
            ports.iter().map(|p| p.host_port).collect::<Vec<_>>()
        };
        assert_eq!(read(&pod), [8080, 53, 8081]);
        let ports = host_ports(&serde_json::from_value(pod.clone()).unwrap());
        assert_eq!(ports[1].host_ip, Some(Ipv4Addr::new(192, 0, 2, 1)));
        assert_eq!(ports[1].protocol, Protocol::Udp);
        pod["spec"]["hostNetwork"] = true.into();
        assert!(read(&pod).is_empty());
    }
}
