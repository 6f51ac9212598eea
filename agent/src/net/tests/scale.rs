//! Many services in one table.

use serde_json::json;

use super::services::{Served, answered_by, dial, dial_briefly};
use super::*;

const SERVICES: u32 = 1000;
const ENDPOINTS: u32 = 10;

impl Served {
    /// The whole table, as nft(8) shows it.
    fn table(&self) -> String {
        let table = self.node.identity().nft_table();
        let listed = Command::new("nft")
            .args(["list", "table", "inet", &table])
            .output()
            .unwrap();
        assert!(listed.status.success(), "{listed:?}");
        String::from_utf8(listed.stdout).unwrap()
    }
}

fn vip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 43, 1, 0)) + number)
}

fn elsewhere(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 42, 128, 0)) + number)
}

#[test]
fn a_thousand_services_come_change_and_go_and_leave_nothing() {
    on_new_host(async || {
        let mut node = Served::new(1).await;
        node.sync();
        let empty = node.table();
        let ip = node.pods[0].ip;
        let servers = [node.pods[0].namespace.serve()];
        for round in 0..3 {
            for number in 0..SERVICES {
                let name = format!("s{number}");
                let spec = json!({"clusterIP": vip(number), "ports": [{"port": 80}]});
                node.service_named(&name, spec);
                let first = (number * ENDPOINTS + round) % (SERVICES * ENDPOINTS);
                let ips: Vec<_> = (first..first + ENDPOINTS).map(elsewhere).collect();
                node.endpoints(&name, &ips);
                // In many transactions, some with several services.
                if number % 7 == 0 {
                    node.sync();
                }
            }
            node.sync();
            let full = node.table();
            for number in 0..SERVICES {
                let entry = format!(
                    "{} . tcp . 80 : goto service-default/s{number}/tcp/80",
                    vip(number)
                );
                assert!(full.contains(&entry), "{entry}");
            }
            assert_eq!(
                full.matches("dnat ip to").count(),
                empty.matches("dnat ip to").count() + SERVICES as usize
            );
            node.endpoints("s500", &[ip]);
            node.sync();
            answered_by(&servers, || dial(vip(500), 80));
            for number in 0..SERVICES {
                node.slice(&format!("s{number}"), Vec::new());
                node.delete(&format!("s{number}"));
                if number % 5 == 0 {
                    node.sync();
                }
            }
            node.sync();
            assert!(dial_briefly(&node.pods[0].namespace, vip(499), 80).is_err());
            assert_eq!(node.table(), empty, "nothing is left");
        }
    });
}
