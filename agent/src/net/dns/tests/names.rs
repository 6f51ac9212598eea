//! The Kubernetes DNS specification, name by name.

use hickory_proto::rr::{RData, RecordType};
use serde_json::json;
use tokio::sync::watch;

use super::{Bench, query, summary};
use crate::net::dns::Directory;
use RecordType::{A, AAAA, ANY, CNAME, MX, NS, PTR, SOA, SRV, TXT};

const NX: &[&str] = &["rcode 3"];

#[track_caller]
fn check(bench: &Bench, name: &str, kind: RecordType, wanted: &[&str]) {
    assert_eq!(bench.look_up(name, kind), wanted, "{name} {kind}");
}

#[test]
fn services_with_an_address() {
    let bench = Bench::furnished(&[]);
    let name = "web.ns.svc.cluster.local.";
    check(
        &bench,
        name,
        A,
        &["web.ns.svc.cluster.local. 5 IN A 10.43.0.20"],
    );
    check(&bench, name, AAAA, &[]);
    check(&bench, name, MX, &[]);
    check(
        &bench,
        "kubernetes.default.svc.cluster.local.",
        A,
        &["kubernetes.default.svc.cluster.local. 5 IN A 10.43.0.1"],
    );
    check(&bench, "none.ns.svc.cluster.local.", A, NX);
    check(&bench, "web.other.svc.cluster.local.", A, NX);
    check(&bench, "web.ns.cluster.local.", A, NX);
    check(&bench, "a.b.c.web.ns.svc.cluster.local.", A, NX);
    for apex in [
        "ns.svc.cluster.local.",
        "svc.cluster.local.",
        "cluster.local.",
    ] {
        check(&bench, apex, A, &[]);
    }
}

#[test]
fn ports_of_services() {
    let bench = Bench::furnished(&[]);
    let http = "_http._tcp.web.ns.svc.cluster.local.";
    check(
        &bench,
        http,
        SRV,
        &["_http._tcp.web.ns.svc.cluster.local. 5 IN SRV 0 100 80 web.ns.svc.cluster.local."],
    );
    let answer = bench.ask(&query(http, SRV));
    assert_eq!(
        answer.additionals[0].to_string(),
        "web.ns.svc.cluster.local. 5 IN A 10.43.0.20"
    );
    check(
        &bench,
        "_dns._udp.web.ns.svc.cluster.local.",
        SRV,
        &["_dns._udp.web.ns.svc.cluster.local. 5 IN SRV 0 100 53 web.ns.svc.cluster.local."],
    );
    check(
        &bench,
        "web.ns.svc.cluster.local.",
        SRV,
        &[
            "web.ns.svc.cluster.local. 5 IN SRV 0 50 53 web.ns.svc.cluster.local.",
            "web.ns.svc.cluster.local. 5 IN SRV 0 50 80 web.ns.svc.cluster.local.",
        ],
    );
    check(&bench, "_http._udp.web.ns.svc.cluster.local.", SRV, NX);
    check(&bench, "_none._tcp.web.ns.svc.cluster.local.", SRV, NX);
}

#[test]
fn headless_services_and_their_endpoints() {
    let bench = Bench::furnished(&[]);
    check(
        &bench,
        "db.ns.svc.cluster.local.",
        A,
        &[
            "db.ns.svc.cluster.local. 5 IN A 10.42.0.5",
            "db.ns.svc.cluster.local. 5 IN A 10.42.0.6",
        ],
    );
    check(
        &bench,
        "db-0.db.ns.svc.cluster.local.",
        A,
        &["db-0.db.ns.svc.cluster.local. 5 IN A 10.42.0.5"],
    );
    check(
        &bench,
        "10-42-0-6.db.ns.svc.cluster.local.",
        A,
        &["10-42-0-6.db.ns.svc.cluster.local. 5 IN A 10.42.0.6"],
    );
    check(&bench, "10-42-0-9.db.ns.svc.cluster.local.", A, NX);
    check(
        &bench,
        "10-42-0-7.web.ns.svc.cluster.local.",
        A,
        &["10-42-0-7.web.ns.svc.cluster.local. 5 IN A 10.42.0.7"],
    );
    check(&bench, "empty.ns.svc.cluster.local.", A, NX);
    check(
        &bench,
        "portless.ns.svc.cluster.local.",
        A,
        &["portless.ns.svc.cluster.local. 5 IN A 10.42.0.8"],
    );
    check(&bench, "portless.ns.svc.cluster.local.", SRV, &[]);
    check(
        &bench,
        "_sql._tcp.db.ns.svc.cluster.local.",
        SRV,
        &[
            "_sql._tcp.db.ns.svc.cluster.local. 5 IN SRV 0 50 5432 10-42-0-6.db.ns.svc.cluster.local.",
            "_sql._tcp.db.ns.svc.cluster.local. 5 IN SRV 0 50 5432 db-0.db.ns.svc.cluster.local.",
        ],
    );
    let answer = bench.ask(&query("_sql._tcp.db.ns.svc.cluster.local.", SRV));
    let mut additional: Vec<_> = answer.additionals.iter().map(ToString::to_string).collect();
    additional.sort();
    assert_eq!(
        additional,
        [
            "10-42-0-6.db.ns.svc.cluster.local. 5 IN A 10.42.0.6",
            "db-0.db.ns.svc.cluster.local. 5 IN A 10.42.0.5"
        ]
    );
}

#[test]
fn endpoints_come_in_no_order() {
    let bench = Bench::furnished(&[]);
    let first = || {
        let answer = bench.ask(&query("db.ns.svc.cluster.local.", A));
        answer.answers[0].to_string()
    };
    let begin = first();
    // One in 2^64 fails.
    assert!((0..64).any(|_| first() != begin));
}

#[test]
fn pods_and_addresses() {
    let bench = Bench::furnished(&[]);
    check(
        &bench,
        "10-42-0-5.ns.pod.cluster.local.",
        A,
        &["10-42-0-5.ns.pod.cluster.local. 5 IN A 10.42.0.5"],
    );
    check(&bench, "10-42-0-5.ns.pod.cluster.local.", AAAA, &[]);
    check(&bench, "10-42-0-500.ns.pod.cluster.local.", A, NX);
    check(&bench, "web.ns.pod.cluster.local.", A, NX);
    let reverse = |address: &str, wanted: &[&str]| {
        let name = format!("{address}.in-addr.arpa.");
        let found = bench.ask(&query(&name, PTR));
        let names = found.answers.iter().map(|r| match &r.data {
            RData::PTR(name) => name.to_string(),
            other => panic!("{other}"),
        });
        let names: Vec<_> = names.collect();
        assert_eq!(names, wanted, "{address}");
        found
    };
    reverse("20.0.43.10", &["web.ns.svc.cluster.local."]);
    reverse("5.0.42.10", &["db-0.db.ns.svc.cluster.local."]);
    reverse("6.0.42.10", &["10-42-0-6.db.ns.svc.cluster.local."]);
    let unknown = reverse("7.0.42.10", &[]);
    assert_eq!(summary(&unknown), NX);
    assert_eq!(
        unknown.authorities[0].name.to_string(),
        "42.10.in-addr.arpa."
    );
    check(&bench, "20.0.43.10.in-addr.arpa.", A, &[]);
    // Not ours, and nobody to ask.
    check(&bench, "8.8.8.8.in-addr.arpa.", PTR, &["rcode 2"]);
    check(&bench, "43.10.in-addr.arpa.", PTR, &["rcode 2"]);
}

#[test]
fn aliases() {
    let bench = Bench::furnished(&[]);
    let out = "out.ns.svc.cluster.local. 5 IN CNAME example.org.";
    // Nobody to ask for the rest.
    check(&bench, "out.ns.svc.cluster.local.", A, &[out]);
    check(&bench, "out.ns.svc.cluster.local.", CNAME, &[out]);
    check(
        &bench,
        "inward.ns.svc.cluster.local.",
        A,
        &[
            "inward.ns.svc.cluster.local. 5 IN CNAME web.ns.svc.cluster.local.",
            "web.ns.svc.cluster.local. 5 IN A 10.43.0.20",
        ],
    );
    check(
        &bench,
        "astray.ns.svc.cluster.local.",
        A,
        &[
            "rcode 3",
            "astray.ns.svc.cluster.local. 5 IN CNAME none.ns.svc.cluster.local.",
        ],
    );
    check(&bench, "_http._tcp.inward.ns.svc.cluster.local.", SRV, NX);
    assert!(bench.look_up("ring.ns.svc.cluster.local.", A).len() >= 2);
}

#[test]
fn the_zone_itself() {
    let bench = Bench::furnished(&[]);
    check(
        &bench,
        "dns-version.cluster.local.",
        TXT,
        &["dns-version.cluster.local. 5 IN TXT 1.1.0"],
    );
    check(
        &bench,
        "cluster.local.",
        NS,
        &["cluster.local. 5 IN NS ns.dns.cluster.local."],
    );
    check(
        &bench,
        "ns.dns.cluster.local.",
        A,
        &["ns.dns.cluster.local. 5 IN A 10.43.0.10"],
    );
    assert_eq!(bench.ask(&query("cluster.local.", SOA)).answers.len(), 1);
    assert_eq!(bench.ask(&query("cluster.local.", ANY)).answers.len(), 1);
}

#[test]
fn a_no_says_how_long_it_holds() {
    let bench = Bench::furnished(&[]);
    for (name, kind) in [
        ("none.ns.svc.cluster.local.", A),
        ("web.ns.svc.cluster.local.", AAAA),
        ("astray.ns.svc.cluster.local.", A),
    ] {
        let answer = bench.ask(&query(name, kind));
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
        let [soa] = answer.authorities.as_slice() else {
            panic!("{answer}")
        };
        assert_eq!(
            (soa.name.to_string().as_str(), soa.ttl),
            ("cluster.local.", 5)
        );
        let RData::SOA(data) = &soa.data else {
            panic!("{soa}")
        };
        assert_eq!(data.minimum, 5);
        assert_eq!(data.mname.to_string(), "ns.dns.cluster.local.");
    }
}

#[test]
fn case_is_kept_and_does_not_matter() {
    let bench = Bench::furnished(&[]);
    let answer = bench.ask(&query("WeB.Ns.sVc.Cluster.LOCAL.", A));
    assert_eq!(
        answer.queries[0].name.to_string(),
        "WeB.Ns.sVc.Cluster.LOCAL."
    );
    assert_eq!(
        summary(&answer),
        ["WeB.Ns.sVc.Cluster.LOCAL. 5 IN A 10.43.0.20"]
    );
}

#[test]
fn nothing_is_denied_before_everything_is_known() {
    let mut bench = Bench::new(&[]);
    bench.service("web", "ns", json!({"clusterIP": "10.43.0.20"}));
    check(
        &bench,
        "web.ns.svc.cluster.local.",
        A,
        &["web.ns.svc.cluster.local. 5 IN A 10.43.0.20"],
    );
    check(&bench, "late.ns.svc.cluster.local.", A, &["rcode 2"]);
    check(&bench, "21.0.43.10.in-addr.arpa.", PTR, &["rcode 2"]);
}

#[test]
fn others_learn_the_services_of_a_namespace() {
    let bench = Bench::furnished(&[]);
    let directory = Directory {
        zone: bench.server.zone.clone(),
        complete: watch::channel(true).1,
    };
    let found = directory.services("ns").unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].name.as_str(), found[0].ports[0].number),
        ("web", 80)
    );
    assert_eq!(directory.services("none").unwrap(), []);
}
