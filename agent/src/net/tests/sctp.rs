//! SCTP to a service, by hand: few kernels have its sockets, most can lead its packets.

use nix::sys::socket::{MsgFlags, SockaddrIn, recv, sendto, setsockopt, sockopt};
use nix::sys::time::TimeVal;
use serde_json::json;

use super::services::{Served, VIP};
use super::*;
use crate::net::service_watch::Change;

const SCTP: i32 = 132;
const INIT: u8 = 1;
/// Without options.
const IP_HEADER_LEN: usize = 20;

/// A socket that gives and takes whole SCTP packets.
fn raw_socket() -> OwnedFd {
    // SAFETY: a plain system call; what it gives is a new descriptor that nobody else owns.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, SCTP) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: as above.
    let fd = unsafe { std::os::fd::FromRawFd::from_raw_fd(fd) };
    setsockopt(
        &fd,
        sockopt::ReceiveTimeout,
        &TimeVal::new(PATIENCE.as_secs() as i64, 0),
    )
    .unwrap();
    fd
}

/// The first packet of an association (RFC 9260, 3.3.2).
fn init(from: u16, to: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(from.to_be_bytes());
    packet.extend(to.to_be_bytes());
    // No verification tag yet, and the checksum's place.
    packet.extend([0; 8]);
    packet.extend([INIT, 0, 0, 20]);
    // Initiate tag, window, streams out and in, first number.
    packet.extend(0x1234_5678u32.to_be_bytes());
    packet.extend(65_536u32.to_be_bytes());
    packet.extend([0, 1, 0, 1]);
    packet.extend(1u32.to_be_bytes());
    let checksum = crc32c(&packet);
    packet[8..12].copy_from_slice(&checksum.to_le_bytes());
    packet
}

fn crc32c(bytes: &[u8]) -> u32 {
    let mut remainder = u32::MAX;
    for byte in bytes {
        remainder ^= u32::from(*byte);
        for _ in 0..8 {
            let odd = remainder & 1 == 1;
            remainder = (remainder >> 1) ^ if odd { 0x82f6_3b78 } else { 0 };
        }
    }
    !remainder
}

#[test]
fn sctp_services_lead_to_their_endpoints() {
    assert_eq!(
        crc32c(b"123456789"),
        0xe306_9283,
        "the checksum of RFC 3720"
    );
    on_new_host(async || {
        let mut node = Served::new(2).await;
        let spec = json!({"clusterIP": VIP, "ports": [{"port": 3868, "protocol": "SCTP"}]});
        node.service(spec);
        let ip = node.pods[0].ip;
        let slice = json!({
            "metadata": {
                "namespace": "default", "name": "web-x", "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": "IPv4",
            "ports": [{"name": "", "protocol": "SCTP", "port": 3869}],
            "endpoints": [{"addresses": [ip], "nodeName": "here"}],
        });
        let slice = serde_json::from_value(slice).unwrap();
        node.known.take(&Change::Slice(slice));
        node.sync();
        let (server, client) = (&node.pods[0], &node.pods[1]);
        let listening = server.namespace.run(raw_socket);
        let asking = client.namespace.run(raw_socket);
        let to = SockaddrIn::from(std::net::SocketAddrV4::new(VIP, 0));
        let packet = init(40_000, 3868);
        sendto(asking.as_raw_fd(), &packet, &to, MsgFlags::empty()).unwrap();
        let mut buffer = [0; 256];
        let length = recv(listening.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
        let got = &buffer[IP_HEADER_LEN..length];
        // The port is the endpoint's, and the checksum was made right.
        assert_eq!(got, init(40_000, 3869));
        assert_eq!(
            buffer[12..16],
            client.ip.octets(),
            "pods keep their address"
        );
    });
}
