//! The server as its clients see it, with an implementation of DNS that is not ours on the other side.

mod bytes;
mod forwarding;
mod names;

use std::net::SocketAddr;
use std::sync::{Arc, RwLock};

use hickory_proto::op::{Edns, Message, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::cluster_domain;
use super::feed::Feed;
use super::forward::Forwarder;
use super::lookup::Names;
use super::server::Server;
use super::zone::Zone;
use crate::net::service_watch::Change;

/// A server and what feeds it.
struct Bench {
    server: Arc<Server>,
    feed: Feed,
    servers: watch::Sender<Arc<[SocketAddr]>>,
    stop: CancellationToken,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Bench {
    /// A cluster without services; `servers` are further up.
    fn new(servers: &[SocketAddr]) -> Self {
        let zone = Arc::new(RwLock::new(Zone::default()));
        let (sender, receiver) = watch::channel(Arc::from(servers));
        let stop = CancellationToken::new();
        let blocks = ["10.42.0.0/16", "10.43.0.0/16"].map(|block| block.parse().unwrap());
        let address = "10.43.0.10".parse().unwrap();
        let names = Names::new(&cluster_domain(), address, blocks.into());
        let forwarder = Arc::new(Forwarder::new(receiver));
        let feed = Feed::new(zone.clone(), Arc::default());
        Self {
            server: Arc::new(Server::new(zone, names, forwarder, stop.clone())),
            feed,
            servers: sender,
            stop,
        }
    }

    /// A cluster with services of every kind.
    fn furnished(servers: &[SocketAddr]) -> Self {
        let mut bench = Self::new(servers);
        bench.service(
            "kubernetes",
            "default",
            json!({"clusterIP": "10.43.0.1",
            "ports": [{"name": "https", "port": 443}]}),
        );
        bench.service(
            "web",
            "ns",
            json!({"clusterIP": "10.43.0.20", "ports": [
            {"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        );
        bench.slice("web-1", "ns", "web", json!([{"addresses": ["10.42.0.7"]}]));
        bench.service(
            "db",
            "ns",
            json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}),
        );
        bench.slice(
            "db-1",
            "ns",
            "db",
            json!([
            {"addresses": ["10.42.0.5"], "hostname": "db-0"},
            {"addresses": ["10.42.0.6"]},
            {"addresses": ["10.42.0.9"], "conditions": {"ready": false}}]),
        );
        bench.service("empty", "ns", json!({"clusterIP": "None"}));
        bench.service("portless", "ns", json!({"clusterIP": "None"}));
        bench.slice(
            "portless-1",
            "ns",
            "portless",
            json!([{"addresses": ["10.42.0.8"]}]),
        );
        let external = |name: &str| json!({"type": "ExternalName", "externalName": name});
        bench.service("out", "ns", external("Example.org."));
        bench.service("inward", "ns", external("web.ns.svc.cluster.local"));
        bench.service("astray", "ns", external("none.ns.svc.cluster.local"));
        bench.service("ring", "ns", external("gnir.ns.svc.cluster.local"));
        bench.service("gnir", "ns", external("ring.ns.svc.cluster.local"));
        bench.feed.take(&Change::Complete);
        bench
    }

    fn service(&mut self, name: &str, namespace: &str, spec: Value) {
        let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
        let service = serde_json::from_value(object).unwrap();
        self.feed.take(&Change::Service(Box::new(service)));
    }

    fn slice(&mut self, name: &str, namespace: &str, service: &str, endpoints: Value) {
        let ports = match service {
            "portless" => json!([]),
            "db" => json!([{"name": "sql", "port": 5432, "protocol": "TCP"}]),
            _ => json!([{"name": "http", "port": 8080, "protocol": "TCP"}]),
        };
        let object = json!({"metadata": {"namespace": namespace, "name": name,
            "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": ports});
        let slice = serde_json::from_value(object).unwrap();
        self.feed.take(&Change::Slice(Box::new(slice)));
    }

    /// What the server answers at once.
    fn ask(&self, query: &Message) -> Message {
        let answer = self.server.answer_now(&query.to_vec().unwrap(), None);
        Message::from_vec(&answer.expect("an answer at once")).expect("an answer that can be read")
    }

    /// The answer's records, sorted, after its code where that is not NOERROR.
    fn look_up(&self, name: &str, kind: RecordType) -> Vec<String> {
        summary(&self.ask(&query(name, kind)))
    }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

fn summary(message: &Message) -> Vec<String> {
    let code = message.metadata.response_code.low();
    let mut lines: Vec<_> = message.answers.iter().map(ToString::to_string).collect();
    lines.sort();
    if code != 0 {
        lines.insert(0, format!("rcode {code}"));
    }
    lines
}
