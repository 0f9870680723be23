//! What is kept of a packet: headers, without payload.

use tracer_ebpf::event::PACKET_BYTES;
use tracer_ebpf::header::ethertype;
use tracer_ebpf::hook::HookId;

use super::super::record::{FRAME_BYTES, Headers};
use super::event;
use super::shown::lengths;
use crate::event::{Detail, Packet};

const PAYLOAD: u8 = 0xaa;

/// As many bytes as the kernel side reads, of an IP packet behind a link header; payload to the end.
fn headers(protocol: u16, ip: &[&[u8]]) -> Headers {
    let ip = ip.concat();
    let mut bytes = [PAYLOAD; FRAME_BYTES];
    bytes[12..14].copy_from_slice(&protocol.to_be_bytes());
    bytes[14..14 + ip.len()].copy_from_slice(&ip);
    Headers {
        bytes,
        length: PACKET_BYTES,
        network: 14,
        protocol: protocol.to_be(),
    }
}

fn ip4(number: u8) -> [u8; 20] {
    let mut header = [0; 20];
    (header[0], header[3], header[9]) = (0x45, 58, number);
    header[12..].copy_from_slice(&[192, 0, 2, 1, 192, 0, 2, 2]);
    header
}

fn ip6(next: u8) -> [u8; 40] {
    let mut header = [0xfd; 40];
    header[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 18, next, 64]);
    header
}

const UDP: [u8; 8] = [0x9c, 0x40, 0x75, 0x30, 0, 38, 0, 0];
const TO_DNS: [u8; 8] = [0x9c, 0x40, 0, 53, 0, 38, 0, 0];
const FROM_DNS: [u8; 8] = [0, 53, 0x9c, 0x40, 0, 38, 0, 0];
const DNS: &[u8] = b"\x12\x34\x81\x80\0\x01\0\x01\0\0\0\0\x02kb\0\0\x01\0\x01";
const ECHO: [u8; 8] = [8, 0, 0, 0, 0, 1, 0, 1];
const UNREACHABLE: [u8; 8] = [3, 3, 0, 0, 0, 0, 0, 0];
const FIRST_FRAGMENT: [u8; 8] = [17, 0, 0, 1, 0, 0, 0, 9];

#[test]
fn headers_are_kept_and_payload_is_not() {
    let (v4, v6) = (ethertype::IPV4, ethertype::IPV6);
    for (what, headers, kept) in [
        ("a datagram", headers(v4, &[&ip4(17), &UDP]), 42),
        ("a question", headers(v4, &[&ip4(17), &TO_DNS, DNS]), 62),
        ("an answer", headers(v4, &[&ip4(17), &FROM_DNS, DNS]), 62),
        ("an echo", headers(v4, &[&ip4(1), &ECHO]), 42),
        (
            "an error",
            headers(v4, &[&ip4(1), &UNREACHABLE, &ip4(17), &UDP]),
            70,
        ),
        (
            "a first fragment",
            headers(v6, &[&ip6(44), &FIRST_FRAGMENT, &UDP]),
            70,
        ),
    ] {
        let mut event = event(0, HookId::DeviceReceive, Detail::None);
        event.packet = Packet::parse(headers.frame(), 14);
        assert!(event.packet.is_some(), "{what}");
        assert_eq!(lengths(&event, headers).1, kept, "{what}");
        // What the file holds says the same as what the kernel gave.
        let read = Packet::parse(&headers.bytes[..kept as usize], 14);
        assert_eq!(read, event.packet, "{what}");
        // An event that is shown with the bytes of one before it has no packet of its own.
        event.packet = None;
        assert_eq!(lengths(&event, headers).1, kept, "{what}");
    }
}
