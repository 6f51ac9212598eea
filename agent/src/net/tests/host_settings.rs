//! Hosts whose kernel is set otherwise than the pod network needs it, and hosts that won't have that changed.

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::peers::{behind_a_router, on_a_switch, transfer};
use super::*;

const SETTINGS: &str = "/proc/sys";

/// Makes the host's settings unchangeable for this thread and those that it starts.
fn forbid_changes() {
    let none: Option<&str> = None;
    mount(
        Some(SETTINGS),
        SETTINGS,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
    .unwrap();
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, SETTINGS, none, read_only, none).unwrap();
}

fn allow_changes() {
    umount2(SETTINGS, MntFlags::MNT_DETACH).unwrap();
}

fn set(setting: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/ipv4/{setting}"), value).unwrap();
}

fn get(setting: &str) -> String {
    let value = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{setting}")).unwrap();
    value.trim().to_owned()
}

#[test]
fn a_host_that_forbids_a_setting_is_told_which() {
    on_new_host(async || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none: Option<&str> = None;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).unwrap();
        let outside = Namespace::new();
        let (here, far) = (Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2));
        connect_uplink(&outside, here, far);
        let node = Node::new();
        let refusal = async || {
            forbid_changes();
            let opened = Network::open(node.identity(), node.config.clone()).await;
            allow_changes();
            opened.err().map(|error| error.to_string())
        };
        let says = |setting: &str| {
            Some(format!(
                "{setting} is 0 on this host and can't be set to 1: Read-only file system (os error 30); pods can't \
                 reach anything without it: run `sysctl -w {setting}=1`, and put `{setting} = 1` in /etc/sysctl.d"
            ))
        };

        set("ip_forward", "0");
        assert_eq!(refusal().await, says("net.ipv4.ip_forward"));
        set("ip_forward", "1");
        set("conf/up0/forwarding", "0");
        assert_eq!(refusal().await, says("net.ipv4.conf.up0.forwarding"));
        set("conf/up0/forwarding", "1");
        assert_eq!(refusal().await, None, "nothing has to be changed");
    });
}

#[test]
fn links_forward_whatever_they_are_made_with() {
    on_new_host(async || {
        let outside = Namespace::new();
        let (here, far) = (Ipv4Addr::new(203, 0, 113, 1), Ipv4Addr::new(203, 0, 113, 2));
        connect_uplink(&outside, here, far);
        set("ip_forward", "1");
        set("conf/default/forwarding", "0");
        set("conf/up0/forwarding", "0");
        let node = Node::new();
        let network = node.network().await;
        assert_eq!(get("conf/up0/forwarding"), "1");
        let pod = Namespace::new();
        network
            .attach("uid", &pod.path(), Vec::new())
            .await
            .unwrap();
        let server = outside.serve();
        assert_eq!(exchange(&server, || pod.run(|| connect(far))), here);
    });
}

/// Strict reverse path filtering (RFC 3704) on every link: nothing in the pod network takes one way there and another back.
#[test]
fn reverse_path_filters_let_pods_through() {
    let (_switch, switched) = on_a_switch::<2>();
    let (_router, routed) = behind_a_router();
    for [a, b] in [&switched, &routed] {
        for host in [a, b] {
            host.namespace.run(|| {
                for link in ["all", "default", "eth0"] {
                    set(&format!("conf/{link}/rp_filter"), "1");
                }
            });
        }
        a.reach(&[b]);
        b.reach(&[a]);
        let (pod_a, ip_a) = a.add_pod();
        let (pod_b, ip_b) = b.add_pod();
        let (server_a, server_b) = (pod_a.serve(), pod_b.serve());
        assert_eq!(transfer(&server_b, &pod_a, ip_b), ip_a);
        assert_eq!(transfer(&server_a, &pod_b, ip_a), ip_b);
        let from_node = transfer(&server_b, &a.namespace, ip_b);
        assert_eq!(from_node, a.network.node_address());
    }
}
