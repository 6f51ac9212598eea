//! Services over several nodes, while agents die, nodes vanish and links flap.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::cluster::{Cluster, name};
use crate::load::{Load, inside};
use crate::node_tables::led;
use crate::nodes::until_ready_is;
use crate::web::Web;
use crate::{host, wait};

/// One nginx on every node.
fn web_on(nodes: usize) -> String {
    Web::nginx(nodes).port(8080).manifest()
}

impl Cluster {
    /// Nodes with a pod of the Service `web` on each, and the Service's address.
    fn serving_nodes(nodes: usize) -> (Self, String) {
        let mut cluster = Self::of_nodes(nodes);
        cluster.apply(&web_on(nodes));
        cluster.until_all_ready("app=web", nodes);
        let service = wait::until("the Service", || {
            cluster.get("/api/v1/namespaces/default/services/web")
        });
        let ip = service["spec"]["clusterIP"].as_str().expect("an address");
        let address = format!("{ip}:8080");
        for node in cluster.nodes() {
            cluster.until_table_is_right(&node);
            cluster.until_answered(&node, &address);
        }
        (cluster, address)
    }

    fn nodes(&mut self) -> Vec<String> {
        let listed = self.get("/api/v1/nodes").expect("the nodes");
        let listed = listed["items"].as_array().expect("a list");
        listed.iter().map(name).collect()
    }

    /// Waits until a process of the node gets a page.
    fn until_answered(&self, node: &str, address: &str) {
        let namespace = self.namespace_of(node);
        wait::until(&format!("{node} is answered by {address}"), || {
            let page = inside(&namespace, || host::http_get(address)).ok()?;
            page.starts_with("HTTP/1.1 200").then_some(())
        });
    }

    /// The process of a node's agent, once it runs.
    pub(crate) fn agent_pid(&self, node: &str) -> i32 {
        wait::until(&format!("the agent of {node}"), || {
            let listed: Value =
                serde_json::from_str(&self.skiff(["node", "list", "-o", "json"])).expect("JSON");
            let found = listed.as_array()?.iter().find(|n| n["name"] == node)?;
            found["pid"].as_i64().map(|pid| pid as i32)
        })
    }

    /// The pod of the Service on a node.
    fn web_on_node(&mut self, node: &str) -> Value {
        let pods = self.pods("app=web");
        let found = pods.into_iter().find(|pod| pod["spec"]["nodeName"] == node);
        found.expect("a pod on every node")
    }
}

fn ip_of(pod: &Value) -> String {
    pod["status"]["podIP"]
        .as_str()
        .expect("an address")
        .to_owned()
}

/// A Service, and a slice that leads it to so many addresses.
fn hand_made(number: usize, endpoints: usize) -> (Service, EndpointSlice) {
    let name = format!("made-{number}");
    let service = json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    let address = |n: usize| {
        let n = number * endpoints + n;
        json!({"addresses": [format!("198.18.{}.{}", (n / 250) % 250, n % 250 + 1)]})
    };
    let slice = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"name": "", "port": 8080}],
        "endpoints": (0..endpoints).map(address).collect::<Vec<_>>(),
    });
    (
        serde_json::from_value(service).expect("a Service"),
        serde_json::from_value(slice).expect("a slice"),
    )
}

/// Makes, changes and deletes Services; counts what was acknowledged.
async fn churn(client: kube::Client, numbers: std::ops::Range<usize>, written: &AtomicUsize) {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let slices: Api<EndpointSlice> = Api::default_namespaced(client);
    let done = || written.fetch_add(1, Ordering::Relaxed);
    for number in numbers {
        let (service, slice) = hand_made(number, 3);
        let name = service.metadata.name.clone().expect("a name");
        let post = PostParams::default();
        services.create(&post, &service).await.expect("created");
        slices.create(&post, &slice).await.expect("created");
        done();
        let moved =
            json!({"endpoints": [{"addresses": [format!("198.19.0.{}", number % 250 + 1)]}]});
        let patch = PatchParams::default();
        slices
            .patch(&name, &patch, &Patch::Merge(moved))
            .await
            .expect("changed");
        done();
        if number % 3 == 0 {
            let now = DeleteParams::default();
            services.delete(&name, &now).await.expect("deleted");
            done();
        }
    }
}

#[test]
fn an_agent_that_is_killed_in_the_middle_of_changes_costs_no_request() {
    let (mut cluster, address) = Cluster::serving_nodes(3);
    let loads: Vec<Load> = ["node-1", "node-2"]
        .iter()
        .map(|node| Load::from(&cluster.namespace_of(node), &address))
        .collect();
    for round in 0..4 {
        let victim = cluster.agent_pid("node-1");
        let written = AtomicUsize::new(0);
        let begin = round * 40;
        let client = cluster.client();
        let writers = (0..4).map(|writer| {
            let first = begin + writer * 10;
            churn(client.clone(), first..first + 10, &written)
        });
        let writers = futures::future::join_all(writers);
        let killing = async {
            // In the middle, a little later each time.
            while written.load(Ordering::Relaxed) < 20 + 10 * round {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            }
            kill(Pid::from_raw(victim), Signal::SIGKILL).expect("SIGKILL");
        };
        cluster.block_on(async { futures::future::join(writers, killing).await });
        wait::until("another agent", || {
            (cluster.agent_pid("node-1") != victim).then_some(())
        });
        for node in ["node-1", "node-2", "node-3"] {
            cluster.until_table_is_right(node);
        }
    }
    until_ready_is(&mut cluster, "node-1", "True");
    for load in loads {
        load.more(50);
        assert_eq!(load.failures(), Vec::<String>::new());
    }
}

#[test]
fn endpoints_of_a_node_that_vanishes_leave_the_others_tables() {
    let (mut cluster, address) = Cluster::serving_nodes(3);
    let lost = ip_of(&cluster.web_on_node("node-3"));
    cluster.skiff(["node", "kill", "node-3"]);
    for node in ["node-1", "node-2"] {
        wait::until(&format!("{lost} leaves the table of {node}"), || {
            let led = led(&cluster.table_of(node));
            let endpoints = led.get(&address)?;
            (endpoints.len() == 2 && !endpoints.contains(&format!("{lost}:80"))).then_some(())
        });
    }
    let loads = ["node-1", "node-2"].map(|node| Load::from(&cluster.namespace_of(node), &address));
    for load in loads {
        load.more(100);
        assert_eq!(load.failures(), Vec::<String>::new());
    }
    // It comes back, and so does its endpoint.
    cluster.skiff(["node", "start", "node-3"]);
    until_ready_is(&mut cluster, "node-3", "True");
    cluster.until_all_ready("app=web", 3);
    for node in ["node-1", "node-2", "node-3"] {
        cluster.until_table_is_right(node);
        cluster.until_answered(node, &address);
    }
}

#[test]
fn routes_are_right_after_links_flap() {
    let (mut cluster, address) = Cluster::serving_nodes(3);
    let nodes = ["node-1", "node-2", "node-3"];
    let routes = |cluster: &Cluster, node: &str| -> BTreeSet<String> {
        let listed = cluster.on_node(node, &["ip", "-o", "route", "show", "proto", "83"]);
        listed.lines().map(|line| line.trim().to_owned()).collect()
    };
    let before: Vec<_> = nodes.iter().map(|node| routes(&cluster, node)).collect();
    for _ in 0..5 {
        for node in ["node-1", "node-2"] {
            cluster.skiff(["node", "cut", node]);
            cluster.skiff(["node", "heal", node]);
        }
    }
    // A cut that is noticed, too.
    cluster.skiff(["node", "cut", "node-2"]);
    until_ready_is(&mut cluster, "node-2", "Unknown");
    cluster.skiff(["node", "heal", "node-2"]);
    for node in nodes {
        until_ready_is(&mut cluster, node, "True");
    }
    cluster.until_all_ready("app=web", 3);
    let addresses: Vec<String> = nodes
        .iter()
        .map(|node| format!("{}:80", ip_of(&cluster.web_on_node(node))))
        .collect();
    for (node, before) in nodes.iter().zip(&before) {
        wait::until(&format!("{node} has the routes that it had"), || {
            (routes(&cluster, node) == *before).then_some(())
        });
        cluster.until_table_is_right(node);
        // Every pod from every node, by itself and by the Service.
        for pod in &addresses {
            cluster.until_answered(node, pod);
        }
        let load = Load::from(&cluster.namespace_of(node), &address);
        load.more(50);
        assert_eq!(load.failures(), Vec::<String>::new());
    }
}

#[test]
fn no_request_fails_on_any_node_while_pods_are_replaced() {
    let (mut cluster, address) = Cluster::serving_nodes(3);
    let nodes = ["node-1", "node-2", "node-3"];
    let loads = nodes.map(|node| Load::from(&cluster.namespace_of(node), &address));
    for _ in 0..2 {
        let before = cluster.pods("app=web");
        cluster.kubectl("rollout restart deployment/web");
        cluster.kubectl("rollout status deployment/web --timeout=120s");
        let after = cluster.until_all_ready("app=web", 3);
        let is_new = |pod: &Value| before.iter().all(|old| name(old) != name(pod));
        assert!(after.iter().all(is_new));
    }
    cluster.kubectl("scale deployment/web --replicas=1");
    wait::until("the others are gone", || {
        let all = cluster.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dweb")?;
        (all["items"].as_array()?.len() == 1).then_some(())
    });
    for load in loads {
        load.more(50);
        assert_eq!(load.failures(), Vec::<String>::new());
    }
}

/// A pod that gets little of the CPU has connections waiting that it has not accepted; they end with its sockets.
#[test]
fn no_request_fails_that_a_slow_pod_had_not_accepted_yet() {
    let mut cluster = Cluster::of_nodes(2);
    let slow = Web::nginx(3).container("resources", json!({"limits": {"cpu": "30m"}}));
    cluster.apply(&slow.port(8080).manifest());
    let address = cluster.until_web_serves(3);
    let loads = ["node-1", "node-2"].map(|node| Load::from(&cluster.namespace_of(node), &address));
    for _ in 0..2 {
        cluster.kubectl("rollout restart deployment/web");
        cluster.kubectl("rollout status deployment/web --timeout=120s");
    }
    for load in loads {
        load.more(10);
        assert_eq!(load.failures(), Vec::<String>::new());
    }
}

#[test]
fn load_balancers_learn_which_nodes_have_endpoints() {
    let (mut cluster, _) = Cluster::serving_nodes(2);
    cluster.kubectl("scale deployment/web --replicas=1");
    let pod = cluster.until_all_ready("app=web", 1).remove(0);
    let own = pod["spec"]["nodeName"].as_str().expect("a node").to_owned();
    let other = if own == "node-1" { "node-2" } else { "node-1" };
    cluster.apply(
        &json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "outer"},
            "spec": {
                "type": "LoadBalancer", "externalTrafficPolicy": "Local", "selector": {"app": "web"},
                "ports": [{"port": 8081, "targetPort": "http"}],
            },
        })
        .to_string(),
    );
    let port = wait::until("a port for health checks", || {
        let service = cluster.get("/api/v1/namespaces/default/services/outer")?;
        service["spec"]["healthCheckNodePort"].as_u64()
    });
    let until_says = |cluster: &Cluster, node: &str, status: &str, count: usize| {
        let namespace = cluster.namespace_of(node);
        wait::until(&format!("{node} says {status}"), || {
            let answer =
                inside(&namespace, || host::http_get(&format!("127.0.0.1:{port}"))).ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            let body: Value = serde_json::from_str(body).ok()?;
            let right = head.contains(status)
                && body["localEndpoints"] == count
                && body["service"] == json!({"namespace": "default", "name": "outer"});
            right.then_some(())
        });
    };
    until_says(&cluster, &own, " 200 ", 1);
    until_says(&cluster, other, " 503 ", 0);
    cluster.kubectl(&format!("cordon {other}"));
    cluster.kubectl("scale deployment/web --replicas=2");
    cluster.until_all_ready("app=web", 2);
    until_says(&cluster, &own, " 200 ", 2);
    cluster.kubectl("delete service outer");
    let namespace = cluster.namespace_of(&own);
    wait::until("nobody answers", || {
        let asked = inside(&namespace, || host::http_get(&format!("127.0.0.1:{port}")));
        asked.is_err().then_some(())
    });
}

#[test]
fn services_prefer_the_endpoints_that_are_near() {
    let (mut cluster, address) = Cluster::serving_nodes(3);
    for (node, zone) in [("node-1", "west"), ("node-2", "west"), ("node-3", "east")] {
        cluster.kubectl(&format!(
            "label node {node} topology.kubernetes.io/zone={zone}"
        ));
    }
    let of = |cluster: &mut Cluster, nodes: &[&str]| -> BTreeSet<String> {
        let pods = nodes.iter().map(|node| cluster.web_on_node(node));
        pods.map(|pod| format!("{}:80", ip_of(&pod))).collect()
    };
    let until_led = |cluster: &mut Cluster, node: &str, to: &[&str]| {
        let wanted = of(cluster, to);
        wait::until(&format!("{node} is led to {to:?}"), || {
            (led(&cluster.table_of(node)).get(&address) == Some(&wanted)).then_some(())
        });
    };
    let prefer = |cluster: &Cluster, whom: &str| {
        let patch = json!({"spec": {"trafficDistribution": whom}}).to_string();
        cluster.kubectl_args(&["patch", "service", "web", "--type=merge", "-p", &patch]);
    };
    prefer(&cluster, "PreferSameZone");
    until_led(&mut cluster, "node-1", &["node-1", "node-2"]);
    until_led(&mut cluster, "node-2", &["node-1", "node-2"]);
    until_led(&mut cluster, "node-3", &["node-3"]);
    prefer(&cluster, "PreferSameNode");
    for node in ["node-1", "node-2", "node-3"] {
        until_led(&mut cluster, node, &[node]);
    }
    // A node that moves has other neighbours.
    prefer(&cluster, "PreferClose");
    cluster.kubectl("label node node-2 --overwrite topology.kubernetes.io/zone=south");
    until_led(&mut cluster, "node-1", &["node-1", "node-2"]);
    until_led(&mut cluster, "node-2", &["node-1", "node-2", "node-3"]);
    cluster.kubectl_args(&[
        "patch",
        "service",
        "web",
        "--type=json",
        "-p",
        r#"[{"op": "remove", "path": "/spec/trafficDistribution"}]"#,
    ]);
    for node in ["node-1", "node-2", "node-3"] {
        until_led(&mut cluster, node, &["node-1", "node-2", "node-3"]);
    }
}

const MANY: usize = 1000;

#[test]
fn a_thousand_services_come_and_go() {
    let mut cluster = Cluster::new();
    cluster.set_nodes(2);
    cluster.up();
    for node in ["node-1", "node-2"] {
        until_ready_is(&mut cluster, node, "True");
        cluster.until_table_is_right(node);
    }
    let empty = cluster.table_of("node-1");
    let agent = cluster.agent_pid("node-1");
    let mut memory = Vec::new();
    for _ in 0..2 {
        make(&mut cluster, MANY);
        for node in ["node-1", "node-2"] {
            cluster.until_table_is_right(node);
        }
        assert!(
            led(&cluster.table_of("node-1")).len() > MANY,
            "they and the API's own"
        );
        let client = cluster.client();
        cluster.block_on(async {
            let services: Api<Service> = Api::default_namespaced(client.clone());
            let made = services.list(&ListParams::default()).await.expect("a list");
            let names = made.items.into_iter().filter_map(|s| s.metadata.name);
            let names = names.filter(|name| name.starts_with("made-"));
            in_parallel(names.collect(), async |name: String| {
                let now = DeleteParams::default();
                services.delete(&name, &now).await.expect("deleted");
            })
            .await;
        });
        wait::until("the slices are gone with their Services", || {
            let slices =
                cluster.get("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices")?;
            (slices["items"].as_array()?.len() == 1).then_some(())
        });
        for node in ["node-1", "node-2"] {
            cluster.until_table_is_right(node);
        }
        assert_eq!(cluster.table_of("node-1"), empty, "nothing is left");
        memory.push(resident_kb(agent));
    }
    assert_eq!(
        cluster.agent_pid("node-1"),
        agent,
        "it was the same agent all the time"
    );
    // What it keeps for later does not grow with each round.
    assert!(memory[1] < memory[0] * 5 / 4 + 8 * 1024, "{memory:?} kB");
}

fn make(cluster: &mut Cluster, count: usize) {
    let client = cluster.client();
    cluster.block_on(async {
        let services: Api<Service> = Api::default_namespaced(client.clone());
        let slices: Api<EndpointSlice> = Api::default_namespaced(client);
        in_parallel((0..count).collect(), async |number| {
            let (service, mut slice) = hand_made(number, 10);
            let made = services.create(&PostParams::default(), &service).await;
            // It ends with its Service.
            let owner = made.expect("created");
            let owner = kube::Resource::controller_owner_ref(&owner, &());
            slice.metadata.owner_references = owner.map(|owner| vec![owner]);
            let made = slices.create(&PostParams::default(), &slice).await;
            made.expect("created");
        })
        .await;
    });
}

async fn in_parallel<T>(items: Vec<T>, work: impl AsyncFn(T)) {
    use futures::StreamExt;
    futures::stream::iter(items)
        .for_each_concurrent(16, |item| work(item))
        .await;
}

fn resident_kb(pid: i32) -> usize {
    let resident = host::status_field(pid, "VmRSS");
    let number = resident.split_whitespace().next().expect("a number");
    number.parse().expect("a number")
}
