//! What a Service has, and what it gets: its cluster address, its ports' node ports, and the
//! port of its health check.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::{Denied, Item, Refusal, Taking};
use crate::blocks;
use crate::resources::error::invalid;
use crate::resources::object::{at, integer, items_mut, list, text};
use crate::resources::services::{
    has_cluster_address, has_health_check, has_node_ports, is_headless,
};
use ipnet::Ipv4Net;

/// What a stored Service holds.
pub(super) fn items(service: &Value, block: Ipv4Net) -> Vec<Item> {
    let addresses = list(service, "spec.clusterIPs").iter();
    let addresses = addresses
        .filter_map(|address| address.as_str()?.parse::<Ipv4Addr>().ok())
        .filter_map(|address| blocks::offset(block, address))
        .map(Item::Address);
    let mut items: Vec<Item> = addresses.collect();
    let ports = list(service, "spec.ports")
        .iter()
        .map(|port| integer(port, "nodePort"));
    let health = integer(service, "spec.healthCheckNodePort");
    for port in ports.chain([health]) {
        if let (1.., Ok(port)) = (port, u32::try_from(port))
            && !items.contains(&Item::Port(port))
        {
            items.push(Item::Port(port));
        }
    }
    items
}

/// Takes what the new Service wants, and writes it into it.
pub(super) fn fill(
    new: &mut Value,
    old: Option<&Value>,
    taking: &mut Taking<'_>,
) -> Result<(), Refusal> {
    cluster_address(new, old, taking)?;
    if has_node_ports(new) {
        node_ports(new, old, taking)?;
    }
    if has_health_check(new) {
        health_check_port(new, taking)?;
    }
    Ok(())
}

fn cluster_address(
    service: &mut Value,
    old: Option<&Value>,
    taking: &mut Taking<'_>,
) -> Result<(), Refusal> {
    if !has_cluster_address(service) || is_headless(service) {
        return Ok(());
    }
    let given = text(service, "spec.clusterIP").to_string();
    // What it has it keeps, even should the block be another one by now.
    if !given.is_empty() && old.is_some_and(|old| text(old, "spec.clusterIP") == given) {
        return Ok(());
    }
    if given.is_empty() {
        let address = taking.next_address().ok_or_else(|| {
            Refusal::Exhausted("failed to allocate a serviceIP: range is full".to_string())
        })?;
        service["spec"]["clusterIP"] = json!(address.to_string());
        service["spec"]["clusterIPs"] = json!([address.to_string()]);
        return Ok(());
    }
    let taken = match given.parse() {
        Ok(address) => taking.address(address),
        // What validation lets pass and is no IPv4 address is of the other family.
        Err(_) => Err(Denied::AddressOutside(taking.block)),
    };
    taken.map_err(|why| {
        let why = format!("failed to allocate IP {given}: {why}");
        Refusal::Invalid(invalid(
            "spec.clusterIPs",
            at(service, "spec.clusterIPs"),
            &why,
        ))
    })
}

fn node_ports(
    service: &mut Value,
    old: Option<&Value>,
    taking: &mut Taking<'_>,
) -> Result<(), Refusal> {
    let fills = text(service, "spec.type") == "NodePort"
        || at(service, "spec.allocateLoadBalancerNodePorts") != false;
    // Those who ask for a certain port come first, so that nobody else is given it.
    for (index, port) in list(service, "spec.ports").iter().enumerate() {
        let number = integer(port, "nodePort");
        if number != 0 {
            taking.port(number as u32).map_err(|why| {
                let path = format!("spec.ports[{index}].nodePort");
                Refusal::Invalid(invalid(&path, &number.into(), &why.to_string()))
            })?;
        }
    }
    if !fills {
        return Ok(());
    }
    // Of a new Service, ports that differ in their protocol alone share a node port.
    let mut shared: HashMap<i64, i64> = HashMap::new();
    if old.is_none() {
        for port in list(service, "spec.ports") {
            let number = integer(port, "nodePort");
            if number != 0 {
                shared.entry(integer(port, "port")).or_insert(number);
            }
        }
    }
    for port in items_mut(&mut service["spec"], "ports") {
        if integer(port, "nodePort") != 0 {
            continue;
        }
        let number = match shared.get(&integer(port, "port")) {
            Some(number) => *number,
            None => i64::from(taking.next_port().ok_or_else(|| {
                Refusal::Exhausted("failed to allocate a nodePort: range is full".to_string())
            })?),
        };
        if old.is_none() {
            shared.insert(integer(port, "port"), number);
        }
        port["nodePort"] = json!(number);
    }
    Ok(())
}

fn health_check_port(service: &mut Value, taking: &mut Taking<'_>) -> Result<(), Refusal> {
    let given = integer(service, "spec.healthCheckNodePort");
    if given == 0 {
        let port = taking.next_port().ok_or_else(|| {
            let why = "failed to allocate a HealthCheck NodePort 0: range is full";
            Refusal::Exhausted(why.to_string())
        })?;
        service["spec"]["healthCheckNodePort"] = json!(port);
        return Ok(());
    }
    taking.port(given as u32).map_err(|why| {
        let why = format!("failed to allocate requested HealthCheck NodePort {given}: {why}");
        Refusal::Exhausted(why)
    })
}
