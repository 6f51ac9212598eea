//! Packets to services, with a load that counts every failure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use crate::cluster::{Cluster, name};
use crate::load::Load;
use crate::web::Web;
use crate::{host, wait};

impl Cluster {
    /// Where the Service `web` is, once it leads to so many pods.
    pub(crate) fn until_web_serves(&mut self, count: usize) -> String {
        self.until_all_ready("app=web", count);
        let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3Dweb";
        wait::until("the endpoints are ready", || {
            let list = self.get(slices)?;
            let endpoints = list["items"].as_array()?.iter();
            let endpoints = endpoints.flat_map(|slice| slice["endpoints"].as_array());
            let ready = endpoints
                .flatten()
                .filter(|e| e["conditions"]["ready"] == true);
            (ready.count() == count).then_some(())
        });
        let service = self.get("/api/v1/namespaces/default/services/web");
        let service = service.expect("the Service");
        let ip = service["spec"]["clusterIP"].as_str().expect("an address");
        let address = format!("{ip}:8080");
        wait::until("the Service answers", || host::http_get(&address).ok());
        address
    }
}

#[test]
fn no_request_fails_while_pods_are_replaced_and_removed() {
    let mut cluster = Cluster::start();
    cluster.apply(&Web::nginx(3).port(8080).manifest());
    let address = cluster.until_web_serves(3);
    let before = cluster.pods("app=web");
    let load = Load::on(&address);
    load.more(50);
    cluster.kubectl("set image deployment/web nginx=docker.io/library/nginx:latest");
    cluster.kubectl("rollout status deployment/web --timeout=120s");
    load.more(50);
    let after = cluster.until_all_ready("app=web", 3);
    assert!(
        after
            .iter()
            .all(|new| before.iter().all(|old| name(old) != name(new)))
    );
    cluster.kubectl("scale deployment/web --replicas=1");
    cluster.until_all_ready("app=web", 1);
    wait::until("the others are gone", || {
        let all = cluster.get("/api/v1/namespaces/default/pods?labelSelector=app%3Dweb")?;
        (all["items"].as_array()?.len() == 1).then_some(())
    });
    load.more(50);
    assert_eq!(load.failures(), Vec::<String>::new());
}

#[test]
fn services_go_on_while_the_server_is_dead_and_when_it_is_back() {
    let mut cluster = Cluster::start();
    cluster.apply(&Web::nginx(3).port(8080).manifest());
    let address = cluster.until_web_serves(3);
    let load = Load::on(&address);
    load.more(20);
    cluster.crash();
    load.more(50);
    cluster.up();
    load.more(20);
    cluster.kubectl("scale deployment/web --replicas=2");
    cluster.until_web_serves(2);
    load.more(50);
    assert_eq!(load.failures(), Vec::<String>::new());
}

#[test]
fn two_clusters_keep_their_blocks_apart_and_nodes_get_theirs() {
    let (mut one, mut two) = (Cluster::start_empty(), Cluster::start_empty());
    let mut blocks = BTreeMap::new();
    for cluster in [&mut one, &mut two] {
        let node = wait::until("a node", || {
            cluster.get("/api/v1/nodes")?["items"].get(0).cloned()
        });
        let block = node["spec"]["podCIDR"]
            .as_str()
            .expect("a block")
            .to_owned();
        assert_eq!(node["spec"]["podCIDRs"], serde_json::json!([block]));
        let service = cluster.get("/api/v1/namespaces/default/services/kubernetes");
        let service = service.expect("the Service of the API");
        let ip = service["spec"]["clusterIP"].as_str().expect("an address");
        let ip: Ipv4Addr = ip.parse().expect("an IPv4 address");
        assert_eq!(ip.octets()[2..], [0, 1], "the first of its block");
        blocks.insert(block, ip);
    }
    assert_eq!(blocks.len(), 2, "{blocks:?}");
    let ips: Vec<_> = blocks.values().map(|ip| ip.octets()[1]).collect();
    assert_ne!(ips[0], ips[1]);
}

#[test]
fn a_host_port_leads_to_its_pod() {
    let mut cluster = Cluster::start();
    cluster.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: nginx\n    \
         image: nginx\n    ports: [{containerPort: 80, hostPort: 28080}]\n",
    );
    cluster.until_ready("web");
    let page = wait::until("it answers", || host::http_get("127.0.0.1:28080").ok());
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    // The next agent takes the ports of pods that run over.
    cluster.crash();
    cluster.up();
    let page = wait::until("it answers", || host::http_get("127.0.0.1:28080").ok());
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
}
