//! What programs come to, without a kernel.

use serde_json::{Value, json};

use super::*;

fn service(spec: Value) -> Service {
    let mut object = json!({"metadata": {"namespace": "ns", "name": "web"}, "spec": spec});
    if let Some(status) = object["spec"]
        .as_object_mut()
        .and_then(|s| s.remove("status"))
    {
        object["status"] = status;
    }
    Service::read(&serde_json::from_value(object).unwrap()).unwrap()
}

fn slice(port: &str, endpoints: Value) -> Slice {
    let object = json!({
        "metadata": {"name": "s"}, "addressType": "IPv4",
        "ports": [{"name": port, "protocol": "TCP", "port": 8080}],
        "endpoints": endpoints,
    });
    Slice::read(&serde_json::from_value(object).unwrap(), "here").unwrap()
}

fn own_pods() -> Ipv4Net {
    "10.42.0.0/22".parse().unwrap()
}

fn program(service: &Service, slices: &[Slice]) -> Program {
    service.program("ns/web", slices.iter(), own_pods(), "west")
}

fn endpoints(program: &Program, chain: &str) -> Vec<String> {
    match &program.chains[chain] {
        Chain::Spread { endpoints, .. } => endpoints.iter().map(ToString::to_string).collect(),
        other => panic!("{chain}: {other:?}"),
    }
}

fn frontend(address: Option<&str>, port: u16) -> Frontend {
    Frontend {
        address: address.map(|a| a.parse().unwrap()),
        protocol: Protocol::Tcp,
        port,
    }
}

#[test]
fn services_without_an_address_are_none_of_the_data_planes() {
    let read = |spec: Value| {
        let object = json!({"metadata": {"name": "web"}, "spec": spec});
        Service::read(&serde_json::from_value(object).unwrap())
    };
    assert_eq!(read(json!({"clusterIP": "None"})), None);
    assert_eq!(
        read(json!({"type": "ExternalName", "externalName": "a.b"})),
        None
    );
    assert_eq!(read(json!({})), None, "not allocated yet");
}

#[test]
fn ports_find_their_endpoints_by_name() {
    let web = service(json!({"clusterIP": "10.43.0.7", "ports": [
        {"name": "http", "port": 80}, {"name": "admin", "port": 81},
    ]}));
    let here = slice(
        "http",
        json!([
            {"addresses": ["10.42.0.5"], "nodeName": "here"},
            {"addresses": ["10.42.4.5"], "nodeName": "there"},
        ]),
    );
    let program = program(&web, &[here.clone(), here]);
    assert_eq!(
        endpoints(&program, "service-ns/web/tcp/http"),
        ["10.42.0.5:8080", "10.42.4.5:8080"]
    );
    let address = Some("10.43.0.7");
    let unserved = &program.entries[&Entry::Unserved(frontend(address, 81))];
    assert_eq!(*unserved, Target::Reject);
    assert!(
        program
            .entries
            .contains_key(&Entry::Served(frontend(address, 80)))
    );
    let hairpin = |ip: &str| Entry::Hairpin(ip.parse().unwrap());
    assert!(program.entries.contains_key(&hairpin("10.42.0.5")));
    assert!(
        !program.entries.contains_key(&hairpin("10.42.4.5")),
        "elsewhere"
    );
}

#[test]
fn local_policies_keep_to_this_node() {
    let spec = json!({
        "type": "NodePort", "clusterIP": "10.43.0.7",
        "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
        "ports": [{"port": 80, "nodePort": 30080}],
    });
    let both = slice(
        "",
        json!([
            {"addresses": ["10.42.0.5"], "nodeName": "here"},
            {"addresses": ["10.42.4.5"], "nodeName": "there"},
        ]),
    );
    let written = program(&service(spec.clone()), &[both]);
    assert_eq!(
        endpoints(&written, "local-ns/web/tcp/80"),
        ["10.42.0.5:8080"]
    );
    assert_eq!(endpoints(&written, "service-ns/web/tcp/80").len(), 2);
    let node_port = frontend(None, 30080);
    let outside: Arc<str> = "outside-ns/web/tcp/80".into();
    assert_eq!(
        written.entries[&Entry::Served(node_port)],
        Target::Chain(outside)
    );
    assert!(written.entries.contains_key(&Entry::KeepSource(node_port)));

    let there = slice(
        "",
        json!([{"addresses": ["10.42.4.5"], "nodeName": "there"}]),
    );
    let written = program(&service(spec), &[there]);
    let inside = Entry::Unserved(frontend(Some("10.43.0.7"), 80));
    assert_eq!(written.entries[&inside], Target::Drop);
    assert_eq!(written.entries[&Entry::Unserved(node_port)], Target::Drop);
}

#[test]
fn those_that_end_serve_when_nobody_is_ready() {
    let web = service(json!({"clusterIP": "10.43.0.7", "ports": [{"port": 80}]}));
    let ending = json!({"addresses": ["10.42.0.5"], "conditions":
        {"ready": false, "serving": true, "terminating": true}});
    let unready = json!({"addresses": ["10.42.0.6"], "conditions": {"ready": false}});
    let ready = json!({"addresses": ["10.42.0.7"]});
    let name = "service-ns/web/tcp/80";
    let all = slice("", json!([ending, unready, ready]));
    assert_eq!(endpoints(&program(&web, &[all]), name), ["10.42.0.7:8080"]);
    let rest = slice("", json!([ending, unready]));
    assert_eq!(endpoints(&program(&web, &[rest]), name), ["10.42.0.5:8080"]);
    let none = slice("", json!([unready]));
    assert!(program(&web, &[none]).chains.is_empty());
}

#[test]
fn balancers_that_proxy_themselves_are_left_alone() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.43.0.7", "ports": [{"port": 80}],
        "loadBalancerSourceRanges": ["192.0.2.0/24", "nonsense"],
        "status": {"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "Proxy"}, {"hostname": "lb"},
        ]}},
    });
    let ready = slice("", json!([{"addresses": ["10.42.0.7"]}]));
    let program = program(&service(spec), &[ready]);
    let served = |ip: &str| program.entries.get(&Entry::Served(frontend(Some(ip), 80)));
    let gate: Arc<str> = "gate-ns/web/tcp/80".into();
    assert_eq!(served("203.0.113.1"), Some(&Target::Chain(gate.clone())));
    assert_eq!(served("203.0.113.2"), None);
    assert!(matches!(&program.chains[&gate], Chain::Gate { sources, .. } if sources.len() == 1));
}

#[test]
fn near_endpoints_are_preferred_while_all_say_whom_they_are_for() {
    let web = service(json!({"clusterIP": "10.43.0.7", "ports": [{"name": "http", "port": 80}]}));
    let endpoint = |address: &str, nodes: &[&str], zones: &[&str]| {
        let names = |names: &[&str]| -> Vec<Value> {
            names.iter().map(|name| json!({"name": name})).collect()
        };
        let hints = json!({"forNodes": names(nodes), "forZones": names(zones)});
        json!({"addresses": [address], "nodeName": "there", "hints": hints})
    };
    let chosen = |all: Value| {
        let program = program(&web, &[slice("http", all)]);
        endpoints(&program, "service-ns/web/tcp/http")
    };
    let (one, two, three) = ("10.42.4.1", "10.42.4.2", "10.42.4.3");
    let ports = |addresses: &[&str]| -> Vec<String> {
        addresses.iter().map(|a| format!("{a}:8080")).collect()
    };
    // This node comes before its zone.
    let same_node = json!([
        endpoint(one, &["here"], &["west"]),
        endpoint(two, &["there"], &["west"]),
        endpoint(three, &["there"], &["east"]),
    ]);
    assert_eq!(chosen(same_node), ports(&[one]));
    let same_zone = json!([
        endpoint(one, &["there"], &["west"]),
        endpoint(two, &["there"], &["west", "east"]),
        endpoint(three, &["there"], &["east"]),
    ]);
    assert_eq!(chosen(same_zone), ports(&[one, two]));
    // One that says nothing makes all of them equal.
    let incomplete = json!([endpoint(one, &[], &["west"]), endpoint(two, &[], &[])]);
    assert_eq!(chosen(incomplete), ports(&[one, two]));
    // So does a zone that nobody is meant for.
    let elsewhere = json!([
        endpoint(one, &[], &["east"]),
        endpoint(two, &[], &["north"])
    ]);
    assert_eq!(chosen(elsewhere), ports(&[one, two]));
    // What is not ready has no say, and what ends is used wherever it is.
    let mut unready = endpoint(two, &[], &[]);
    unready["conditions"] = json!({"ready": false});
    let with_unready = json!([
        endpoint(one, &[], &["west"]),
        endpoint(three, &[], &["east"]),
        unready
    ]);
    assert_eq!(chosen(with_unready), ports(&[one]));
    let mut ending = endpoint(two, &[], &["east"]);
    ending["conditions"] = json!({"ready": false, "serving": true, "terminating": true});
    assert_eq!(chosen(json!([ending])), ports(&[two]));
}

#[test]
fn a_local_policy_knows_no_nearness() {
    let spec = json!({
        "clusterIP": "10.43.0.7", "type": "NodePort", "externalTrafficPolicy": "Local",
        "ports": [{"name": "http", "port": 80, "nodePort": 30080}],
    });
    let zone = |name: &str| json!({"forZones": [{"name": name}]});
    let both = slice(
        "http",
        json!([
            {"addresses": ["10.42.0.5"], "nodeName": "here", "hints": zone("east")},
            {"addresses": ["10.42.4.5"], "nodeName": "there", "hints": zone("west")},
        ]),
    );
    let program = program(&service(spec), &[both]);
    assert_eq!(
        endpoints(&program, "service-ns/web/tcp/http"),
        ["10.42.4.5:8080"]
    );
    assert_eq!(
        endpoints(&program, "local-ns/web/tcp/http"),
        ["10.42.0.5:8080"]
    );
    let hairpin = Entry::Hairpin("10.42.0.5".parse().unwrap());
    assert!(program.entries.contains_key(&hairpin));
}
