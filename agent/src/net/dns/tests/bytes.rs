//! Messages as bytes: limits, extensions, and what is no query at all.

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::{Bench, query, with_edns};
use crate::net::dns::message::{Question, kind};
use crate::net::dns::name::Name;
use crate::net::dns::relay::Relayed;

/// A headless service with many endpoints.
fn crowd(count: u32) -> Bench {
    let mut bench = Bench::furnished(&[]);
    bench.service(
        "crowd",
        "ns",
        json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}),
    );
    let endpoints: Vec<_> = (0..count)
        .map(|i| json!({"addresses": [std::net::Ipv4Addr::from(0x0a2a_0100 + i)]}))
        .collect();
    bench.slice("crowd-1", "ns", "crowd", json!(endpoints));
    bench
}

#[test]
fn answers_are_cut_to_what_the_client_takes() {
    let bench = crowd(200);
    let asked = query("crowd.ns.svc.cluster.local.", RecordType::A);
    let size = |message: &Message, limit| {
        let answer = bench
            .server
            .answer_now(&message.to_vec().unwrap(), limit)
            .unwrap();
        let read = Message::from_vec(&answer).unwrap();
        (answer.len(), read.metadata.truncation, read.answers.len())
    };
    let (bytes, cut, records) = size(&asked, None);
    assert!(bytes <= 512 && cut && records > 20, "{bytes} {records}");
    let (bytes, cut, records) = size(&with_edns(asked.clone(), 1232), None);
    assert!(bytes <= 1232 && cut && records > 60, "{bytes} {records}");
    let (bytes, cut, _) = size(&with_edns(asked.clone(), 0), None);
    assert!(bytes <= 512 && cut, "{bytes}");
    let (bytes, cut, records) = size(&with_edns(asked.clone(), 65535), None);
    assert!(bytes <= 4096 && !cut && records == 200, "{bytes} {records}");
    let (_, cut, records) = size(&asked, Some(65535));
    assert!(!cut && records == 200);
}

#[test]
fn names_far_into_a_message_are_written_out() {
    let bench = crowd(1000);
    let asked = query("_http._tcp.crowd.ns.svc.cluster.local.", RecordType::SRV);
    let answer = bench
        .server
        .answer_now(&asked.to_vec().unwrap(), Some(65535))
        .unwrap();
    let answer = Message::from_vec(&answer).unwrap();
    // Pointers reach 16 KiB; 1,000 records of 80 bytes go far beyond.
    assert_eq!(
        answer.answers.len(),
        if answer.metadata.truncation {
            answer.answers.len()
        } else {
            1000
        }
    );
    assert!(answer.answers.len() > 500);
    for extra in &answer.additionals {
        assert!(
            extra
                .name
                .to_string()
                .ends_with("crowd.ns.svc.cluster.local."),
            "{extra}"
        );
    }
}

#[test]
fn edns_is_answered_with_edns() {
    let bench = Bench::furnished(&[]);
    let asked = query("web.ns.svc.cluster.local.", RecordType::A);
    assert!(bench.ask(&asked).edns.is_none());
    let mut with = with_edns(asked, 4096);
    let answer = bench.ask(&with);
    assert_eq!(answer.edns.unwrap().max_payload(), 1232);
    with.edns.as_mut().unwrap().set_version(1);
    let answer = bench.ask(&with);
    // BADVERS; it shares its number with BADSIG.
    assert_eq!(u16::from(answer.metadata.response_code), 16);
    assert!(answer.answers.is_empty());
}

#[test]
fn what_is_not_served_is_refused() {
    let bench = Bench::furnished(&[]);
    let code = |message: &Message| bench.ask(message).metadata.response_code;
    let asked = query("web.ns.svc.cluster.local.", RecordType::A);
    let mut two = asked.clone();
    two.add_query(asked.queries[0].clone());
    assert_eq!(code(&two), ResponseCode::FormErr);
    let mut none = asked.clone();
    none.queries.clear();
    assert_eq!(code(&none), ResponseCode::FormErr);
    let mut update = asked.clone();
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&update), ResponseCode::NotImp);
    let mut chaos = asked.clone();
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos), ResponseCode::Refused);
    let transfer = query("cluster.local.", RecordType::AXFR);
    assert_eq!(code(&transfer), ResponseCode::Refused);
    let response = asked.into_response().to_vec().unwrap();
    assert_eq!(
        bench.server.answer_now(&response, None),
        None,
        "an answer to an answer"
    );
    assert_eq!(bench.server.answer_now(&[0; 11], None), None);
    let mut garbled = query("a.b.", RecordType::A).to_vec().unwrap();
    garbled[12] = 0xc0;
    let answer = Message::from_vec(&bench.server.answer_now(&garbled, None).unwrap()).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
}

/// Queries with bits flipped, cut and grown: whatever comes, the answer can be read, carries the id of the query, and
/// keeps to its limit.
#[test]
fn no_bytes_do_harm() {
    let bench = crowd(40);
    let mut random = StdRng::seed_from_u64(4);
    let names = [
        "crowd.ns.svc.cluster.local.",
        "none.cluster.local.",
        "5.0.42.10.in-addr.arpa.",
        "out.ns.svc.cluster.local.",
    ];
    let kinds = [
        RecordType::A,
        RecordType::SRV,
        RecordType::PTR,
        RecordType::ANY,
    ];
    for round in 0..40_000 {
        let asked = query(names[round % 4], kinds[round / 4 % 4]);
        let asked = if round % 3 == 0 {
            with_edns(asked, random.random())
        } else {
            asked
        };
        let mut bytes = asked.to_vec().unwrap();
        for _ in 0..random.random_range(0..6) {
            let at = random.random_range(0..bytes.len());
            match random.random_range(0..4) {
                0 => bytes[at] = random.random(),
                1 => bytes[at] ^= 1 << random.random_range(0..8),
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, random.random()),
            }
        }
        let Some(answer) = bench.server.answer_now(&bytes, None) else {
            continue;
        };
        assert_eq!(answer[..2], bytes[..2]);
        assert!(answer.len() <= 4096, "{bytes:?}");
        if answer[3] & 0xf != 1 {
            Message::from_vec(&answer).unwrap_or_else(|e| panic!("{e}: {bytes:?} gave {answer:?}"));
        }
    }
}

/// The same for answers from further up: nothing that they hold may go out unread.
#[test]
fn no_answer_does_harm() {
    let bench = crowd(30);
    let mut random = StdRng::seed_from_u64(5);
    let asked = query("crowd.ns.svc.cluster.local.", RecordType::A);
    let question = Question {
        name: Name::parse("crowd.ns.svc.cluster.local").unwrap(),
        kind: kind::A,
        class: kind::INTERNET,
    };
    let read = crate::net::dns::message::Query::read(&asked.to_vec().unwrap()).unwrap();
    let good = bench.ask(&with_edns(asked.clone(), 4096)).to_vec().unwrap();
    for _ in 0..20_000 {
        let mut bytes = good.clone();
        for _ in 0..random.random_range(0..4) {
            let at = random.random_range(4..bytes.len());
            bytes[at] = random.random();
        }
        if random.random_bool(0.2) {
            bytes.truncate(random.random_range(1..bytes.len()));
        }
        let id = u16::from_be_bytes([good[0], good[1]]);
        if let Ok(relayed) = Relayed::read(bytes, id, &question) {
            let mut out = Vec::new();
            relayed.write(&read, 512, &mut out);
            assert!(out.len() <= 512);
        }
    }
}
