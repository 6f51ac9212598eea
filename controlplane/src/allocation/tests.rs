use serde_json::json;

use super::*;

fn allocator() -> Arc<ServiceAllocator> {
    Arc::new(ServiceAllocator::new("10.43.0.0/16".parse().unwrap()))
}

fn key(name: &str) -> Key {
    Key::new("", "services", "default", name)
}

/// As a committed write does.
fn store(allocator: &ServiceAllocator, name: &str, service: &Value) {
    allocator.learn(&key(name), Some(service.to_string().as_bytes()));
}

fn cluster_ip(address: &str) -> Value {
    let mut service = json!({"spec": {"type": "ClusterIP", "ports": [{"port": 80}]}});
    if !address.is_empty() {
        service["spec"]["clusterIP"] = json!(address);
        service["spec"]["clusterIPs"] = json!([address]);
    }
    service
}

fn refusal(refused: Result<Reservation, Refusal>) -> String {
    match refused {
        Err(Refusal::Invalid(error)) => format!("{}: {}", error.field, error.message),
        Err(Refusal::Exhausted(why)) => why,
        Ok(_) => panic!("it was allowed"),
    }
}

#[test]
fn an_address_is_taken_until_its_service_goes() {
    let allocator = allocator();
    let mut service = cluster_ip("");
    let reservation = allocator.allocate(None, &mut service).unwrap();
    let address = service["spec"]["clusterIP"].as_str().unwrap().to_string();
    assert_eq!(service["spec"]["clusterIPs"], json!([address]));
    let taken = format!(
        r#"spec.clusterIPs: Invalid value: ["{address}"]: failed to allocate IP {address}: provided IP is already allocated"#
    );
    assert_eq!(
        refusal(allocator.allocate(None, &mut cluster_ip(&address))),
        taken
    );
    store(&allocator, "a", &service);
    drop(reservation);
    assert_eq!(
        refusal(allocator.allocate(None, &mut cluster_ip(&address))),
        taken
    );
    allocator.learn(&key("a"), None);
    allocator.allocate(None, &mut cluster_ip(&address)).unwrap();
}

#[test]
fn a_write_that_fails_takes_nothing() {
    let allocator = allocator();
    drop(
        allocator
            .allocate(None, &mut cluster_ip("10.43.0.10"))
            .unwrap(),
    );
    let mut service = cluster_ip("10.43.0.10");
    service["spec"]["type"] = json!("NodePort");
    service["spec"]["ports"][0]["nodePort"] = json!(80);
    assert_eq!(
        refusal(allocator.allocate(None, &mut service)),
        "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767"
    );
    allocator
        .allocate(None, &mut cluster_ip("10.43.0.10"))
        .unwrap();
}

#[test]
fn addresses_out_of_range_are_refused() {
    let allocator = allocator();
    for outside in ["10.44.0.1", "10.43.0.0", "10.43.255.255", "fd00::1"] {
        let said = refusal(allocator.allocate(None, &mut cluster_ip(outside)));
        assert!(
            said.ends_with(
                "provided IP is not in the valid range. The range of valid IPs is 10.43.0.0/16"
            ),
            "{said}"
        );
    }
}

#[test]
fn an_update_keeps_what_it_has_and_releases_the_rest() {
    let allocator = allocator();
    let mut old = json!({"spec": {"type": "NodePort", "ports": [
        {"port": 80, "protocol": "TCP"}, {"port": 80, "protocol": "UDP"}, {"port": 81, "protocol": "TCP"},
    ]}});
    let reservation = allocator.allocate(None, &mut old).unwrap();
    let ports: Vec<i64> = old["spec"]["ports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["nodePort"].as_i64().unwrap())
        .collect();
    assert_eq!(ports[0], ports[1]);
    assert_ne!(ports[0], ports[2]);
    assert!(ports.iter().all(|port| (30_086..=32_767).contains(port)));
    store(&allocator, "a", &old);
    drop(reservation);

    let mut new = old.clone();
    new["spec"]["ports"].as_array_mut().unwrap().pop();
    let reservation = allocator.allocate(Some(&old), &mut new).unwrap();
    assert!(reservation.items.is_empty());
    store(&allocator, "a", &new);
    drop(reservation);

    let mut other =
        json!({"spec": {"type": "NodePort", "ports": [{"port": 1, "nodePort": ports[2]}]}});
    allocator.allocate(None, &mut other).unwrap();
    other["spec"]["ports"][0]["nodePort"] = json!(ports[0]);
    let said = refusal(allocator.allocate(None, &mut other));
    assert!(
        said.ends_with("provided port is already allocated"),
        "{said}"
    );
}

#[test]
fn services_without_an_address_take_none() {
    let allocator = allocator();
    for mut service in [
        json!({"spec": {"type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"]}}),
        json!({"spec": {"type": "ExternalName", "externalName": "example.com"}}),
    ] {
        let before = service.clone();
        let reservation = allocator.allocate(None, &mut service).unwrap();
        assert!(reservation.items.is_empty());
        assert_eq!(service, before);
    }
}

#[test]
fn load_balancers_get_node_ports_unless_they_want_none() {
    let allocator = allocator();
    let mut service = json!({"spec": {
        "type": "LoadBalancer", "allocateLoadBalancerNodePorts": true,
        "externalTrafficPolicy": "Local", "ports": [{"port": 80}],
    }});
    let reservation = allocator.allocate(None, &mut service).unwrap();
    let (port, health) = (
        &service["spec"]["ports"][0]["nodePort"],
        &service["spec"]["healthCheckNodePort"],
    );
    assert!(
        port.is_u64() && health.is_u64() && port != health,
        "{service}"
    );
    assert_eq!(reservation.items.len(), 3);
    let mut without = json!({"spec": {
        "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}],
    }});
    let reservation = allocator.allocate(None, &mut without).unwrap();
    assert_eq!(reservation.items.len(), 1);
    assert!(without["spec"]["ports"][0].get("nodePort").is_none());
}

#[test]
fn a_block_can_be_used_up() {
    let allocator = Arc::new(ServiceAllocator::new("10.43.0.0/29".parse().unwrap()));
    let held: Vec<Reservation> = (0..6)
        .map(|_| allocator.allocate(None, &mut cluster_ip("")).unwrap())
        .collect();
    assert_eq!(
        refusal(allocator.allocate(None, &mut cluster_ip(""))),
        "failed to allocate a serviceIP: range is full"
    );
    drop(held);
    allocator.allocate(None, &mut cluster_ip("")).unwrap();
}

#[test]
fn an_address_of_another_block_is_kept() {
    let allocator = allocator();
    let old = cluster_ip("10.99.0.7");
    let reservation = allocator.allocate(Some(&old), &mut old.clone()).unwrap();
    assert!(reservation.items.is_empty());
    let said = refusal(allocator.allocate(Some(&old), &mut cluster_ip("10.99.0.8")));
    assert!(said.contains("not in the valid range"), "{said}");
}
